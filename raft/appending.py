"""The append job: everything that waits for the disk becomes one frame and one sync.

A slow disk must not fall behind for good, so each round takes all that is queued (one sync for
each store of the core made a follower's queue grow without end in simulation).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from raft.disk import DiskFull
from raft.log import MemoryStorage
from raft.messages import Envelope, HardState, Ready, Stored
from raft.offload import Offload
from raft.records import Write
from raft.wal import WAL

logger = logging.getLogger(__name__)

#: Seconds without a write after which the end of the log is marked as durable.
IDLE: Final = 0.05
#: Seconds until a full disk is tried again.
RETRY: Final = 1.0


@dataclass(frozen=True, slots=True)
class Work:
    """What one Ready asked to store, and what follows from it."""

    hard_state: HardState | None
    write: Write | None
    must_sync: bool
    after_sync: tuple[Envelope, ...]
    stored: Stored | None


def work_of(ready: Ready) -> Work | None:
    """Return what *ready* asks of the disk; None if it asks nothing."""
    if not (ready.hard_state or ready.entries or ready.snapshot or ready.after_sync):
        return None
    write = None
    if ready.entries or ready.snapshot:
        write = Write(ready.entries, ready.snapshot)
    return Work(ready.hard_state, write, ready.must_sync, ready.after_sync, ready.stored)


class Appender:
    """Owns the WAL and the stable log.

    Args:
        wal: the open log.
        storage: the stable entries, which the core reads.
        hard_state: as it is on disk.
        finished: called in the Trio thread with work whose data is durable, in order.
        offload: runs what blocks, one call at a time.
    """

    def __init__(
        self,
        wal: WAL,
        storage: MemoryStorage,
        hard_state: HardState,
        finished: Callable[[Sequence[Work]], None],
        offload: Offload,
    ) -> None:
        self.wal = wal
        self._storage = storage
        self._hard_state = hard_state
        self._durable = hard_state
        self._finished = finished
        self._offload = offload
        self._queue: list[Work] = []
        self._wake = trio.Event()
        #: Since when the disk has been busy with one round; None while it is not.
        self.busy_since: float | None = None
        self.disk_full = False
        self._failed = False
        self._half_full = trio.Event()
        self._compact_to = 0

    def submit(self, work: Work) -> None:
        """Store *work*. What needs no disk is finished before this returns.

        A new commit index alone is not written: a leader will tell it again. It goes along with
        the next write, so that an entry costs one write and an idle server none.
        """
        if work.hard_state is not None:
            self._hard_state = work.hard_state
        idle = self.busy_since is None and not self._queue
        if idle and work.write is None and not work.must_sync:
            self._finished([work])
            return
        self._queue.append(work)
        self._wake.set()

    def compact(self, index: int) -> None:
        """Remove what is on disk of the entries up to *index*, when the disk is free."""
        self._compact_to = max(self._compact_to, index)
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled.

        Raises:
            OSError: the disk failed. Nobody must be answered from here on.
        """
        while True:
            if not self._queue and not self._compact_to:
                await self._wait_idle()
            self._wake = trio.Event()
            if self._queue:
                await self._round()
            if self._compact_to:
                index, self._compact_to = self._compact_to, 0
                await self._offload(self.wal.compact, index)

    async def _wait_idle(self) -> None:
        with trio.move_on_after(IDLE):
            await self._wake.wait()
        if not self._wake.is_set():
            await self._offload(self.wal.seal)
            await self._wake.wait()

    async def prepare_segments(self, offload: Offload) -> None:
        """Make each next segment while the current one is still written, until cancelled."""
        while True:
            await self._half_full.wait()
            self._half_full = trio.Event()
            try:
                await offload(self.wal.prepare)
            except DiskFull as exc:
                logger.warning("log segment not prepared error=%s", exc.strerror)

    async def _round(self) -> None:
        queue, self._queue = self._queue, []
        self.busy_since = trio.current_time()
        hard_state = self._hard_state
        writes = [work.write for work in queue if work.write is not None]
        if writes or any(work.must_sync for work in queue):
            await self._append(hard_state, writes)
            self._durable = hard_state
        for write in writes:
            if write.snapshot is not None:
                self._storage.restore(write.snapshot)
            self._storage.append(write.entries)
        self.busy_since = None
        self._finished(queue)

    async def _append(self, hard_state: HardState, writes: list[Write]) -> None:
        """Append, however long a full disk makes it take; nobody is answered meanwhile."""
        while True:
            try:
                await self._offload(self.wal.append, hard_state, writes)
            except DiskFull as exc:
                if not self.disk_full:
                    logger.error("log write refused error=%s retry=%ss", exc.strerror, RETRY)
                self.disk_full = True
                await trio.sleep(RETRY)
            except OSError as exc:
                self._failed = True
                name = errno.errorcode.get(exc.errno or 0, "")
                logger.critical("log write failed errno=%s error=%s", name, exc.strerror)
                raise
            else:
                if self.disk_full:
                    logger.info("log write resumed")
                self.disk_full = False
                if self.wal.wants_spare:
                    self._half_full.set()
                return

    def close(self) -> None:
        """Write the last commit index, if it is not on disk, and let go of the log.

        Sync, for the end: a restarted server then starts from what it knew. Nothing is written
        after a failure, not even to try: a second sync may claim what the first could not do.
        """
        sound = not (self._failed or self.disk_full)
        try:
            if sound and self._hard_state != self._durable and not self._queue:
                self.wal.append(self._hard_state, [])
            if sound:
                self.wal.seal()
        except OSError as exc:
            logger.warning("log not closed cleanly error=%s", exc.strerror)
        self.wal.close()
