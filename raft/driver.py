"""The jobs of a running server: the core's loop, its clock, its disk, its snapshots.

One job owns the core. Whatever happens, a message, a call, a finished write, is put into its
inbox; a turn counts the ticks that have passed, takes all of it in, then does what Ready says.
Between turns it sleeps until something comes, or until the tick that acts. The other jobs write
(appending.py), apply (applying.py) and send snapshots. replica.py has what callers may ask for.
"""

from __future__ import annotations

import logging
import random
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
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
    AppendEntries,
    Configuration,
    InstallSnapshot,
    Message,
    Ready,
    Role,
    ServerId,
    is_well_formed,
)
from raft.offload import Inline, Offload, OneThread, Threads
from raft.progress import Pace
from raft.proposals import Proposals, Waiter, pack_commands, resolve_all
from raft.snapshots import SnapshotHeader
from raft.telling import tell
from raft.trace import Trace
from raft.transfers import SENDING_MAX, Transfers
from raft.wal import SEGMENT_BYTES

logger = logging.getLogger(__name__)

#: Messages that wait for the core; more are dropped, as a network may.
INBOX_MAX: Final = 10_000
#: A leader whose disk has been busy with one write for so long hands over.
DISK_STALL: Final = 2.0
#: A follower whose leader's port refuses connections campaigns so many seconds later.
REFUSED_CAMPAIGN: Final = (0.02, 0.15)
#: It does so so many times, each time a little later, before it waits for a timeout after all.
REFUSED_CAMPAIGNS_MAX: Final = 4
#: Seconds that a commit index waits for the next entries to take it along. On its own it would
#: be a message and its answer for each round, a third of what a follower does under load.
COMMIT_DELAY: Final = 0.005
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

    server: ServerId = NOBODY  # until run() has read the log
    _core: Raft
    _appender: Appender
    _applier: Applier
    _transfers: Transfers

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._config = setup.config
        self._transport = setup.transport
        self._rng = setup.rng
        # The log is written by a thread of its own; snapshots must not get into its way.
        self._write_offload = Inline() if setup.disk else OneThread("raft log")
        self._offload: Offload = Inline() if setup.disk else Threads(SENDING_MAX + 3)
        self._proposals = Proposals()
        self._inbox: deque[tuple[ServerId, Message]] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._ticked_at = 0.0
        self._sleep = trio.CancelScope()
        self._turning = False
        self._told: tuple[object, ...] = ()
        self._planned = 1  # ticks that may pass before the next turn must come
        self._wake = trio.Event()
        self._changed = trio.Event()
        self._reads: dict[int, Read] = {}
        self._next_read: Read | None = None
        # Numbers of an earlier life must not come back: an old answer would match.
        self._read_number = setup.rng.getrandbits(62)
        # The newest message to each follower that only tells how far is committed.
        self._commits: dict[ServerId, Message] = {}
        self._commits_wait = trio.Event()
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
            self._write_offload.close()
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
            jobs.start_soon(self._tell_commits)
            for _ in range(SENDING_MAX):
                jobs.start_soon(self._transfers.send_queued)
            jobs.start_soon(self._drive)
            task_status.started()

    def _assemble(self, booted: boot.Booted) -> None:
        machine, snapshot = self._setup.machine, booted.snapshot
        self.server = booted.server
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
        self._transfers = Transfers(
            core, booted.snapshots, self._applier, self._transport, self._call, self._offload
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
        self._told = self._brief()
        self._ticked_at = trio.current_time()
        self._turn()
        if self._core.configuration.all_voters() == [self.server]:
            self._core.campaign()  # there is nobody to wait for
            self._turn()
        while True:
            with trio.CancelScope(deadline=self._sleep.deadline) as self._sleep:
                await self._wake.wait()
            self._turn()

    def _turn(self) -> None:
        core = self._core
        self._turning = True
        for _ in range(self._ticks_passed()):
            core.tick()
            self._after_tick()
        while True:
            self._take_in()
            if not core.has_ready():
                break
            self._perform(core.ready())
        self._turning = False
        if self._wake.is_set():
            self._wake = trio.Event()  # what rang it has been taken in
        self._planned = self._ticks_to_act()
        self._sleep.deadline = self._ticked_at + self._planned * self._config.tick
        brief = self._brief()
        if brief != self._told:
            self._told = brief
            self._changed.set()
            self._changed = trio.Event()

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
                self._transfers.queue(to, message)
            elif isinstance(message, AppendEntries) and self._may_wait(to, message):
                self._commits[to] = message
                self._commits_wait.set()
            else:
                if isinstance(message, AppendEntries):
                    self._commits.pop(to, None)  # it tells that as well
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

    def _may_wait(self, to: ServerId, message: AppendEntries) -> bool:
        """Say if *message* tells nothing but a commit index, to a follower that keeps up."""
        progress = self._core.progress.get(to)
        return not message.entries and progress is not None and progress.pace is Pace.REPLICATE

    async def _tell_commits(self) -> None:
        """Send the commit indexes that no entry has taken along."""
        while True:
            await self._commits_wait.wait()
            await trio.sleep(COMMIT_DELAY)
            self._commits_wait = trio.Event()
            commits, self._commits = self._commits, {}
            for to, message in commits.items():
                self._transport.send(to, message)

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
        if not self._turning:
            self._turn()  # at once: the loop of Trio would come back to it only later

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

    async def receive_snapshot(
        self, sender: ServerId, header: SnapshotHeader, chunks: AsyncIterator[bytes]
    ) -> None:
        """Take in a snapshot that the leader *sender* sends; it is on disk when this returns.

        Raises:
            SnapshotRefused: it is old, or another one is just coming in.
            SnapshotDamaged: what came is not what *header* says.
            DiskFull: there is no room for it.
        """
        await self._transfers.receive(sender, header, chunks)

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

        Not with the next tick: servers that tick together would all vote for themselves. They may
        still do, and then do so again a little later, rather than an election timeout later.
        """
        while True:
            await self._orphaned.wait()
            self._orphaned = trio.Event()
            for attempt in range(REFUSED_CAMPAIGNS_MAX):
                delay = self._rng.uniform(*REFUSED_CAMPAIGN)
                if attempt:  # long enough for votes to come from a slow disk
                    delay += attempt * self._rng.uniform(1, 3) * self._config.tick
                await trio.sleep(delay)
                if self._core.leader != NOBODY:
                    break
                self._call(self._campaign_if_orphaned)

    def _campaign_if_orphaned(self) -> None:
        if self._core.leader == NOBODY:
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
