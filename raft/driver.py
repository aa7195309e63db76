"""The jobs of a running server: the core's loop, its clock, its disk, its snapshots.

One job owns the core. Whatever happens, a message, a call, a finished write, is put into its
inbox; a turn counts the ticks that have passed, takes all of it in, then does what Ready says.
Between turns it sleeps until something comes, or until the tick that acts. The other jobs write
(appending.py), apply (applying.py) and send snapshots. replica.py has what callers may ask for.
"""

from __future__ import annotations

import errno
import logging
import random
import struct
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from raft import boot
from raft.appending import Appender, Work, work_of
from raft.applying import SNAPSHOT_ENTRIES, Applier
from raft.config import LAN, Config
from raft.core import ProposalDropped, Raft
from raft.disk import Directory, DurableDir
from raft.machine import Dropped, StateMachine, Transport
from raft.membership import Change
from raft.messages import (
    NOBODY,
    Configuration,
    InstallSnapshot,
    Message,
    Ready,
    Role,
    ServerId,
    is_well_formed,
)
from raft.offload import Inline, Offload, Threads
from raft.proposals import Proposals, Waiter, pack_commands, resolve_all
from raft.snapshots import (
    SnapshotDamaged,
    SnapshotFile,
    SnapshotHeader,
    SnapshotStore,
    SnapshotWriter,
    snapshot_name,
)
from raft.telling import tell
from raft.trace import Trace
from raft.wal import SEGMENT_BYTES

logger = logging.getLogger(__name__)

#: Messages that wait for the core; more are dropped, as a network may.
INBOX_MAX: Final = 10_000
#: Snapshots that are sent at the same time, and that wait for it.
SENDING_MAX: Final = 2
SEND_QUEUE_MAX: Final = 16
#: Seconds without a single chunk after which a snapshot that comes in is given up.
RECEIVE_STALL: Final = 60.0
#: A leader whose disk has been busy with one write for so long hands over.
DISK_STALL: Final = 2.0
#: A follower whose leader's port refuses connections campaigns so many seconds later.
REFUSED_CAMPAIGN: Final = (0.02, 0.15)
#: Seconds that the end of a replica may take for its last write.
CLOSE_SECONDS: Final = 5.0
#: Of a tick: sleeping until one is due may end a rounding error before it.
TICK_ROUNDING: Final = 1e-6
_READ_NUMBER: Final = struct.Struct("<Q")


def ticks_of_pause(planned: int) -> int:
    """Return what counts of the time after which a server woke that meant to sleep *planned* ticks.

    Half, but at least a tick: it was paused, or held up, and what it waits for may lie unread in
    a socket. Neither elections nor the leader's checks may come at once; nor never, on a host
    that is held up again and again.
    """
    return max(1, planned // 2)


class SnapshotRefused(OSError):
    """This server does not want the snapshot, or not now."""


@dataclass(slots=True)
class Read:
    """Those who wait for the same confirmation of a read."""

    asked_at: float
    event: trio.Event
    waiting: int = 0
    index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a replica is made from; Replica has the meaning of each."""

    directory: Path
    key: bytes
    machine: StateMachine
    transport: Transport
    rng: random.Random
    cluster: bytes
    config: Config = LAN
    disk: DurableDir | None = None
    segment_bytes: int = SEGMENT_BYTES
    snapshot_entries: int = SNAPSHOT_ENTRIES


class Driver:
    """What a Replica is inside: the jobs and what they share."""

    server: ServerId
    _core: Raft
    _appender: Appender
    _applier: Applier
    _snapshots: SnapshotStore

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._config = setup.config
        self._transport = setup.transport
        self._rng = setup.rng
        # The log is written by a thread of its own; snapshots must not get into its way.
        self._write_offload: Offload = Inline() if setup.disk else Threads(1)
        self._offload: Offload = Inline() if setup.disk else Threads(SENDING_MAX + 3)
        self._proposals = Proposals()
        self._inbox: deque[tuple[ServerId, Message]] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._ticked_at = 0.0
        self._planned = 1  # ticks that may pass before the next turn must come
        self._wake = trio.Event()
        self._changed = trio.Event()
        self._reads: dict[int, Read] = {}
        self._next_read: Read | None = None
        # Numbers of an earlier life must not come back: an old answer would match.
        self._read_number = setup.rng.getrandbits(62)
        self._to_send, self._sending = trio.open_memory_channel[tuple[ServerId, InstallSnapshot]](
            SEND_QUEUE_MAX
        )
        self._receiving = False
        self._orphaned = trio.Event()

    # Life.
    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be a server until cancelled; started once it has recovered and takes messages.

        Raises:
            LogMissing, LogDamaged, WrongKey, DirectoryLocked: it cannot start.
            OSError: its disk failed. Do not run it again before somebody looked at the disk.
                (In a group, as Trio raises what ends a job.)
        """
        setup = self._setup
        disk = setup.disk
        if disk is None:
            disk = await self._offload(Directory, setup.directory)
        try:
            self._assemble(await self._offload(self._load, disk))
            try:
                await self._live(task_status)
            finally:
                self._proposals.give_up("the server stops")
                with trio.move_on_after(CLOSE_SECONDS, shield=True):
                    await self._write_offload(self._appender.close)
        finally:
            disk.close()

    def _load(self, disk: DurableDir) -> boot.Booted:
        setup = self._setup
        return boot.load(disk, setup.key, setup.cluster, segment_bytes=setup.segment_bytes)

    async def _live(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as jobs:
            jobs.start_soon(self._appender.run)
            jobs.start_soon(self._appender.prepare_segments, self._offload)
            jobs.start_soon(self._applier.run)
            jobs.start_soon(self._applier.take_snapshots)
            jobs.start_soon(self._campaign_when_orphaned)
            for _ in range(SENDING_MAX):
                jobs.start_soon(self._send_snapshots)
            jobs.start_soon(self._drive)
            task_status.started()

    def _assemble(self, booted: boot.Booted) -> None:
        machine, snapshot = self._setup.machine, booted.snapshot
        self.server = booted.server
        self._snapshots = booted.snapshots
        applied = 0
        configuration = Configuration()
        if snapshot is not None:
            assert booted.state is not None
            applied, configuration = snapshot.index, snapshot.configuration
            machine.restore(applied, booted.state)
        self._core = core = Raft(
            self._config,
            self.server,
            booted.storage,
            hard_state=booted.hard_state,
            configuration=configuration,
            applied=applied,
            rng=self._rng,
            trace=self._trace,
        )
        self._appender = Appender(
            booted.wal, booted.storage, booted.hard_state, self._finished, self._write_offload
        )
        self._applier = Applier(
            machine,
            self._proposals,
            booted.snapshots,
            booted.storage,
            applied=applied,
            apply_change=core.apply_change,
            configuration=lambda: (core.configuration, core.configuration_index),
            applied_entries=lambda entries: self._call(partial(core.applied, entries)),
            restored=lambda stored: self._call(partial(core.stored, stored)),
            compact=self._appender.compact,
            snapshot_entries=self._setup.snapshot_entries,
            offload=self._offload,
        )
        log = core.log
        logger.info(
            "recovered server=%d term=%d snapshot=%d commit=%d last=%d",
            self.server,
            core.term,
            applied,
            log.committed,
            log.last_index,
        )

    def _trace(self, event: Trace) -> None:
        tell(logger, self.server, event)

    # The core's loop.
    def _call(self, call: Callable[[], None]) -> None:
        """Have *call* made by the job that owns the core, soon."""
        self._calls.append(call)
        self._wake.set()

    async def _drive(self) -> None:
        """Own the core: take what came in, step it all, then do what Ready says."""
        told = self._brief()
        self._ticked_at = trio.current_time()
        self._turn()
        if self._core.configuration.all_voters() == [self.server]:
            self._core.campaign()  # there is nobody to wait for
        self._wake.set()
        while True:
            self._planned = self._ticks_to_act()
            with trio.move_on_at(self._ticked_at + self._planned * self._config.tick):
                await self._wake.wait()
            self._wake = trio.Event()
            self._turn()
            brief = self._brief()
            if brief != told:
                told = brief
                self._changed.set()
                self._changed = trio.Event()

    def _turn(self) -> None:
        core = self._core
        for _ in range(self._ticks_passed()):
            core.tick()
            self._after_tick()
        while True:
            self._take_in()
            if not core.has_ready():
                break
            self._perform(core.ready())

    def _take_in(self) -> None:
        core, inbox, calls = self._core, self._inbox, self._calls
        while inbox or calls:
            while calls:
                calls.popleft()()
            if inbox:
                sender, message = inbox.popleft()
                try:
                    core.step(sender, message)
                except ProposalDropped as dropped:
                    logger.debug("proposal dropped sender=%d reason=%s", sender, dropped.reason)
        if self._proposals:
            self._propose_waiting()
        if self._next_read is not None:
            read, self._next_read = self._next_read, None
            self._ask_read(read)

    def _perform(self, ready: Ready) -> None:
        send = self._transport.send
        for to, message in ready.messages:
            if isinstance(message, InstallSnapshot):
                self._queue_snapshot(to, message)
            else:
                send(to, message)
        work = work_of(ready)
        if work is not None:
            self._appender.submit(work)
        if ready.committed:
            self._applier.submit(ready.committed)
        if ready.snapshot_wanted:
            self._applier.replace_snapshot()
        for read in ready.read_states:
            if len(read.context) == _READ_NUMBER.size:  # else nobody here has asked for it
                (number,) = _READ_NUMBER.unpack(read.context)
                self._answer_read(number, read.index)

    def _finished(self, works: Sequence[Work]) -> None:
        """Do what waited until *works* were durable."""
        for work in works:
            for to, message in work.after_sync:
                if to == self.server:
                    self._inbox.append((to, message))
                else:
                    self._transport.send(to, message)
            stored = work.stored
            if stored is None:
                continue
            if stored.snapshot is not None:
                # Not done before the state machine has it too.
                self._applier.submit_snapshot(stored.snapshot, stored)
            else:
                self._calls.append(partial(self._core.stored, stored))
        self._wake.set()

    # Time.
    def _ticks_to_act(self) -> int:
        """Return how many ticks on something may have to be done: until then nobody wakes."""
        watched = self._reads or self._appender.busy_since is not None
        return 1 if watched else self._core.ticks_to_act

    def _ticks_passed(self) -> int:
        """Return the ticks since they were last counted, and count on from here."""
        period, now = self._config.tick, trio.current_time()
        passed = int((now - self._ticked_at) / period + TICK_ROUNDING)
        if passed <= self._planned:
            self._ticked_at += passed * period
            return passed
        self._ticked_at = now
        return ticks_of_pause(self._planned)

    def _after_tick(self) -> None:
        now = trio.current_time()
        busy_since = self._appender.busy_since
        if busy_since is not None and now - busy_since > DISK_STALL:
            self._hand_over_if_leading(now - busy_since)
        # A read whose question or answer was lost, or that no leader could take.
        patience = self._config.tick * self._config.election_ticks / 2
        for number in [n for n, read in self._reads.items() if now - read.asked_at > patience]:
            read = self._reads.pop(number)
            if read.waiting:
                self._ask_read(read)

    def _hand_over_if_leading(self, seconds: float) -> None:
        core = self._core
        if core.role is not Role.LEADER or core.transferee != NOBODY:
            return
        successor = self._best_successor()
        if successor is not None:
            logger.warning("disk stalled seconds=%.1f successor=%d", seconds, successor)
            core.transfer(successor)

    def _best_successor(self) -> ServerId | None:
        """Return the voter whose log is the longest, of those heard from lately."""
        core = self._core
        candidates = [
            (progress.match_index, server)
            for server, progress in core.progress.items()
            if server != self.server
            and server in core.configuration.voters
            and progress.recent_active
            and not progress.recovering
        ]
        return max(candidates)[1] if candidates else None

    # Messages.
    def deliver(self, sender: ServerId, message: Message) -> None:
        """Take in *message* from *sender*, whose identity the transport has checked."""
        if isinstance(message, InstallSnapshot):
            return  # its state comes with it, through receive_snapshot(), or not at all
        if not is_well_formed(message):
            logger.warning("nonsense ignored sender=%d message=%r", sender, message)
            return
        if len(self._inbox) < INBOX_MAX:
            self._inbox.append((sender, message))
            self._wake.set()

    def report_unreachable(self, server: ServerId) -> None:
        """Note that messages to *server* were lost."""
        self._call(partial(self._core.report_unreachable, server))

    def connection_refused(self, server: ServerId) -> None:
        """Note that *server*'s process is gone: its connection closed and its port refuses.

        If it led, this server asks for votes soon instead of waiting for an election timeout. A
        leader who lives after all keeps the others' votes, so that nothing comes of it.
        """
        self._call(partial(self._leader_refuses, server))

    def _leader_refuses(self, server: ServerId) -> None:
        core = self._core
        if core.leader != server or core.role is not Role.FOLLOWER or self._config.lease_reads:
            return
        core.forget_leader()
        self._orphaned.set()
        logger.info("leader refuses connections server=%d leader=%d", self.server, server)

    async def _campaign_when_orphaned(self) -> None:
        """Campaign a random moment after the leader was found gone.

        Not with the next tick: servers that tick together would all vote for themselves.
        """
        while True:
            await self._orphaned.wait()
            self._orphaned = trio.Event()
            await trio.sleep(self._rng.uniform(*REFUSED_CAMPAIGN))
            self._call(self._campaign_if_orphaned)

    def _campaign_if_orphaned(self) -> None:
        if self._core.leader == NOBODY and self._core.role is Role.FOLLOWER:
            self._core.campaign()

    # What waits for the core.
    def _propose_waiting(self) -> None:
        core = self._core
        if core.role is not Role.LEADER:
            self._proposals.drop_waiting("this server does not lead", core.leader or None)
            return
        if core.transferee != NOBODY:
            return  # they wait: for this leader, if the transfer fails, or for the next
        while self._proposals:
            batch = self._proposals.take_batch()
            try:
                index = core.propose(pack_commands([waiter.command for waiter in batch]))
            except ProposalDropped as dropped:
                resolve_all(batch, Dropped(dropped.reason, dropped.leader or None))
            else:
                self._proposals.proposed(index, core.term, batch)

    def _propose_change(self, change: Change, waiter: Waiter) -> None:
        core = self._core
        try:
            index = core.propose_change(change)
        except ProposalDropped as dropped:
            waiter.resolve(Dropped(dropped.reason, dropped.leader or None))
            return
        if core.pending_change_index != index:
            # The core put a no-op in its place.
            waiter.resolve(Dropped("another change is under way, or this one makes no sense now"))
            return
        self._proposals.proposed(index, core.term, [waiter])

    def _ask_read(self, read: Read) -> None:
        self._read_number += 1
        read.asked_at = trio.current_time()
        self._reads[self._read_number] = read
        self._core.read_index(_READ_NUMBER.pack(self._read_number))

    def _answer_read(self, number: int, index: int) -> None:
        read = self._reads.pop(number, None)
        if read is not None:
            read.index = index
            read.event.set()

    def _brief(self) -> tuple[object, ...]:
        """What has changed when a status counts as changed."""
        core = self._core
        disk = (self._appender.disk_full, core.recovering)
        return (core.role, core.term, core.leader, core.configuration, disk)

    # Snapshots that go out.
    def _queue_snapshot(self, to: ServerId, install: InstallSnapshot) -> None:
        try:
            self._to_send.send_nowait((to, install))
        except trio.WouldBlock:
            self._call(partial(self._core.report_snapshot, to, delivered=False))

    async def _send_snapshots(self) -> None:
        while True:
            to, install = await self._sending.receive()
            delivered = await self._send_snapshot(to, install)
            self._call(partial(self._core.report_snapshot, to, delivered=delivered))

    async def _send_snapshot(self, to: ServerId, install: InstallSnapshot) -> bool:
        """Send the file behind *install*; say if it arrived."""
        name = snapshot_name(install.snapshot)
        with self._applier.pin(name):
            try:
                file = await self._offload(self._snapshots.open, name)
                header = file.header(install.term)
                async with aclosing(_chunks(file)) as chunks:
                    await self._transport.send_snapshot(to, header, chunks)
            except SnapshotDamaged as damage:
                logger.error("snapshot damaged %s", damage)
                self._applier.replace_snapshot()
                return False
            except OSError as exc:
                logger.warning("snapshot not sent follower=%d error=%s", to, exc)
                return False
        return True

    # Snapshots that come in.
    async def receive_snapshot(
        self, sender: ServerId, header: SnapshotHeader, chunks: AsyncIterator[bytes]
    ) -> None:
        """Take in a snapshot that the leader *sender* sends; it is on disk when this returns.

        Raises:
            SnapshotRefused: it is old, or another one is just coming in.
            SnapshotDamaged: what came is not what *header* says.
            DiskFull: there is no room for it.
        """
        try:
            await self._receive_snapshot(sender, header, chunks)
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()  # or it would be left hanging where it was refused

    async def _receive_snapshot(
        self, sender: ServerId, header: SnapshotHeader, chunks: AsyncIterator[bytes]
    ) -> None:
        core, snapshot = self._core, header.snapshot
        if not is_well_formed(InstallSnapshot(header.term, snapshot)):
            raise SnapshotDamaged("its header makes no sense")
        if header.term < core.term or snapshot.index <= core.log.committed:
            raise SnapshotRefused(errno.ESTALE, "the snapshot is older than what is here")
        if self._receiving:
            raise SnapshotRefused(errno.EBUSY, "another snapshot is just coming in")
        self._receiving = True
        try:
            writer = await self._offload(self._snapshots.receive, snapshot)
            try:
                await _receive(writer, header, chunks, self._offload)
            except BaseException:
                writer.discard()
                raise
            if not await self._install(sender, header):
                name = snapshot_name(snapshot)
                await self._offload(self._snapshots.directory.remove, name)
                raise SnapshotRefused(errno.ESTALE, "the log does not need the snapshot")
        finally:
            self._receiving = False

    async def _install(self, sender: ServerId, header: SnapshotHeader) -> bool:
        """Show the core a snapshot whose file is here; say if it took it."""
        core, done, taken = self._core, trio.Event(), False

        def install() -> None:
            nonlocal taken
            core.step(sender, InstallSnapshot(header.term, header.snapshot))
            taken = core.log.snapshot == header.snapshot
            done.set()

        self._call(install)
        await done.wait()
        return taken


async def _chunks(file: SnapshotFile) -> AsyncGenerator[bytes, None]:
    for position in range(file.chunk_count):
        yield file.chunk(position)


async def _receive(
    writer: SnapshotWriter,
    header: SnapshotHeader,
    chunks: AsyncIterator[bytes],
    offload: Offload,
) -> None:
    """Write *chunks* to a file and check that they are what *header* says."""
    while True:
        chunk = None
        with trio.move_on_after(RECEIVE_STALL) as patience:
            chunk = await anext(chunks, None)
        if patience.cancelled_caught:
            raise SnapshotRefused(errno.ETIMEDOUT, f"no chunk came for {RECEIVE_STALL:g} s")
        if chunk is None:
            break
        await offload(writer.add_untrusted, chunk)
    if (writer.state_bytes, writer.sha256) != (header.state_bytes, header.sha256):
        raise SnapshotDamaged("what arrived is not what was announced")
    await offload(writer.finish)
