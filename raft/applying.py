"""The apply job: committed entries reach the state machine in order, snapshots are taken and
restored.

The state machine is only ever called from here, in the Trio thread. A long run of entries is cut
into slices, so that heartbeats go on meanwhile.
"""

from __future__ import annotations

import heapq
import itertools
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import trio

from raft.config import entry_bytes
from raft.disk import DiskFull
from raft.log import MemoryStorage
from raft.machine import Committed, StateMachine
from raft.messages import CHANGE, Configuration, Entry, SnapshotMeta, Stored
from raft.offload import Offload
from raft.proposals import Proposals, unpack_commands
from raft.snapshots import SnapshotStore, snapshot_name

logger = logging.getLogger(__name__)

#: A new snapshot is due when the log since the last one has so many entries, ...
SNAPSHOT_ENTRIES: Final = 20_000
#: ... or so many times the bytes of the last snapshot, and at least ...
SNAPSHOT_FACTOR: Final = 4
#: ... so many bytes (thesis section 5.1).
SNAPSHOT_BYTES_MIN: Final = 4 << 20
#: What is kept in memory behind a snapshot, for followers who are a little late: such a part of
#: the entries between two snapshots, ...
TRAILING_PART: Final = 4
#: ... and at most so many bytes.
TRAILING_BYTES: Final = 4 << 20
#: Seconds of applying without a pause for other jobs.
SLICE: Final = 0.005

ApplyChange = Callable[[int, bytes], Configuration]


@dataclass(frozen=True, slots=True)
class Restore:
    snapshot: SnapshotMeta
    stored: Stored


class Applier:
    """Owns the state machine.

    Args:
        machine: the state machine, restored to *applied*.
        proposals: who waits for results.
        snapshots: where snapshots are kept.
        storage: told about new snapshots, and compacted behind them.
        apply_change: applies a change of the configuration to the core.
        configuration: returns the core's configuration and the index it came from.
        applied_entries, restored: tell the core, in the Trio thread.
        compact: removes the log up to an index from the disk.
        snapshot_entries: entries after which a snapshot is due, at the latest.
        offload: runs what blocks.
    """

    def __init__(
        self,
        machine: StateMachine,
        proposals: Proposals,
        snapshots: SnapshotStore,
        storage: MemoryStorage,
        *,
        applied: int,
        apply_change: ApplyChange,
        configuration: Callable[[], tuple[Configuration, int]],
        applied_entries: Callable[[Sequence[Entry]], None],
        restored: Callable[[Stored], None],
        compact: Callable[[int], None],
        snapshot_entries: int,
        offload: Offload,
    ) -> None:
        self._machine = machine
        self._proposals = proposals
        self._snapshots = snapshots
        self._storage = storage
        self._apply_change = apply_change
        self._configuration = configuration
        self._applied_entries = applied_entries
        self._restored = restored
        self._compact = compact
        self._snapshot_entries = snapshot_entries
        self._offload = offload
        self.applied = applied
        snapshot = storage.snapshot()
        self._applied_term = snapshot.term if snapshot else 0
        self._queue: deque[tuple[Entry, ...] | Restore] = deque()
        self._wake = trio.Event()
        self._busy = False
        self._waiting: list[tuple[int, int, trio.Event]] = []
        self._ticket = itertools.count()
        self.snapshot_index = snapshot.index if snapshot else 0
        self._older_index = 0
        self._snapshot_bytes = 0
        self._bytes_since = 0
        self._snapshot_due = trio.Event()
        self._taking = trio.Lock()
        self._replace = False
        self._pinned: Counter[str] = Counter()

    def submit(self, entries: tuple[Entry, ...]) -> None:
        """Apply *entries*: at once if few and nothing is before them, else soon."""
        if not self._busy and not self._queue and len(entries) <= 8:
            self._apply_slice(deque(entries), deadline=None)
            self._applied_entries(entries)
            return
        self._queue.append(entries)
        self._wake.set()

    def submit_snapshot(self, snapshot: SnapshotMeta, stored: Stored) -> None:
        """Restore the state machine from the file of *snapshot*, then report *stored*."""
        self._queue.append(Restore(snapshot, stored))
        self._wake.set()

    async def run(self) -> None:
        """Apply until cancelled."""
        while True:
            while not self._queue:
                self._wake = trio.Event()
                await self._wake.wait()
            self._busy = True
            item = self._queue.popleft()
            if isinstance(item, Restore):
                await self._restore(item.snapshot, item.stored)
            else:
                await self._apply(item)
            self._busy = False

    async def _apply(self, entries: tuple[Entry, ...]) -> None:
        left = deque(entries)
        while left:
            self._apply_slice(left, deadline=trio.current_time() + SLICE)
            await trio.lowlevel.checkpoint()
        self._applied_entries(entries)

    def _apply_slice(self, entries: deque[Entry], *, deadline: float | None) -> None:
        while entries:
            entry = entries.popleft()
            self._apply_entry(entry)
            if deadline is not None and trio.current_time() > deadline:
                break
        self._wake_waiting()

    def _apply_entry(self, entry: Entry) -> None:
        index, term = entry.index, entry.term
        assert index == self.applied + 1, f"entry {index} after {self.applied}"
        waiters = self._proposals.take_applied(entry)
        if entry.kind == CHANGE:
            result: object = self._apply_change(index, entry.data)
            if waiters:
                waiters[0].resolve(Committed(index, 0, term, result))
        elif entry.data:
            apply = self._machine.apply
            for position, command in enumerate(unpack_commands(entry.data)):
                result = apply(index, position, term, command)
                if waiters:
                    waiters[position].resolve(Committed(index, position, term, result))
        self.applied = index
        self._applied_term = term
        self._bytes_since += entry_bytes(entry)

    # Waiting for an index.
    async def wait_applied(self, index: int) -> None:
        """Return once entry *index* is applied here."""
        if index <= self.applied:
            await trio.lowlevel.checkpoint()
            return
        event = trio.Event()
        heapq.heappush(self._waiting, (index, next(self._ticket), event))
        await event.wait()

    def _wake_waiting(self) -> None:
        waiting = self._waiting
        while waiting and waiting[0][0] <= self.applied:
            heapq.heappop(waiting)[2].set()
        if self._is_snapshot_due():
            self._snapshot_due.set()

    # Snapshots.
    def _is_snapshot_due(self) -> bool:
        if self.applied - self.snapshot_index >= self._snapshot_entries:
            return True
        limit = max(SNAPSHOT_FACTOR * self._snapshot_bytes, SNAPSHOT_BYTES_MIN)
        return self._bytes_since > limit

    async def _restore(self, snapshot: SnapshotMeta, stored: Stored) -> None:
        file = await self._offload(self._snapshots.open, snapshot_name(snapshot))
        state = await self._offload(file.state)
        await self._offload(self._snapshots.retain, list(+self._pinned))
        self._machine.restore(snapshot.index, state)
        self._proposals.forget_to(snapshot.index)
        self.applied, self._applied_term = snapshot.index, snapshot.term
        self._note_snapshot(snapshot, len(state))
        self._wake_waiting()
        self._restored(stored)
        logger.info("snapshot restored index=%d bytes=%d", snapshot.index, len(state))

    def _note_snapshot(self, snapshot: SnapshotMeta, size: int) -> None:
        self._older_index, self.snapshot_index = self.snapshot_index, snapshot.index
        self._snapshot_bytes, self._bytes_since = size, 0

    async def take_snapshots(self) -> None:
        """Take a snapshot whenever one is due, until cancelled."""
        while True:
            await self._snapshot_due.wait()
            self._snapshot_due = trio.Event()
            await self.take_snapshot()

    async def take_snapshot(self) -> None:
        """Write a snapshot of the state as it is now, and compact the log behind it."""
        async with self._taking:
            await self._take_snapshot()

    async def _take_snapshot(self) -> None:
        index, term = self.applied, self._applied_term
        configuration, configuration_index = self._configuration()
        replace, self._replace = self._replace, False
        least = self.snapshot_index + (0 if replace else 1)
        if index < least or index < configuration_index or not self._applied_term:
            return  # nothing new, or a leader's snapshot is on its way in
        # Captured here, without a checkpoint in between: state, index and configuration agree.
        encode = self._machine.snapshot()
        snapshot = SnapshotMeta(index, term, configuration)
        started = trio.current_time()
        self._bytes_since = 0
        try:
            size = await self._offload(self._write_snapshot, snapshot, encode)
        except DiskFull as exc:
            logger.warning("snapshot not written index=%d error=%s", index, exc.strerror)
            return
        if snapshot.index <= self.snapshot_index and not replace:
            return  # one from the leader was faster
        bytes_meanwhile = self._bytes_since
        self._note_snapshot(snapshot, size)
        self._bytes_since = bytes_meanwhile
        self._storage.note_snapshot(snapshot)
        entries_max = self._snapshot_entries // TRAILING_PART
        self._storage.compact(
            self._storage.index_before(index, entries_max=entries_max, bytes_max=TRAILING_BYTES)
        )
        self._compact(self._older_index)
        logger.info(
            "snapshot taken index=%d bytes=%d seconds=%.3f",
            index,
            size,
            trio.current_time() - started,
        )

    def _write_snapshot(self, snapshot: SnapshotMeta, encode: Callable[[], bytes]) -> int:
        state = encode()
        self._snapshots.write(snapshot, state)
        self._snapshots.retain(list(+self._pinned))
        return len(state)

    @contextmanager
    def pin(self, name: str) -> Iterator[None]:
        """Keep the snapshot file *name*, which is being sent, from being removed."""
        self._pinned[name] += 1
        try:
            yield
        finally:
            self._pinned[name] -= 1

    def replace_snapshot(self) -> None:
        """Take another snapshot soon: the newest cannot be read, or is too old for somebody."""
        self._replace = True
        self._snapshot_due.set()
