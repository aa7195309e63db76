"""A running server under Trio: what callers may ask of it.

The jobs behind it are in driver.py.
"""

# A deadline is part of what is asked: its passing has an answer of its own, Unknown or a refusal.
# ruff: noqa: ASYNC109

from __future__ import annotations

import logging
import random
from functools import partial
from pathlib import Path
from typing import Final

import trio

from raft import boot, quorum
from raft.applying import SNAPSHOT_ENTRIES
from raft.config import LAN, Config
from raft.disk import DurableDir
from raft.driver import Driver, Read, Setup
from raft.machine import (
    ChangeRefused,
    Committed,
    Dropped,
    NotLeader,
    Outcome,
    ReadTimedOut,
    ReplicaStatus,
    StateMachine,
    TransferFailed,
    Transport,
    Unknown,
)
from raft.membership import (
    Change,
    ChangeKind,
    InvalidChange,
    ServerChange,
    Transition,
    change_configuration,
)
from raft.messages import Configuration, Role, ServerId
from raft.proposals import COMMAND_BYTES_MAX, Waiter
from raft.quorum import Vote
from raft.wal import SEGMENT_BYTES

logger = logging.getLogger(__name__)

#: Rounds in which a learner may catch up before it is refused as too slow (thesis 4.2.1).
CATCH_UP_ROUNDS: Final = 10


class Replica(Driver):
    """One server of a cluster; run() is its life.

    Args:
        directory: where its log and snapshots are; made by bootstrap() or create().
        key: 32 bytes that seal them.
        machine: the replicated state.
        transport: carries messages to the other servers.
        config: the knobs; a preset of raft.config.
        rng: source of every random choice.
        cluster: 16 bytes that name the cluster.
        disk: takes the place of *directory*, for tests.
        segment_bytes: the size of a segment of the log.
        snapshot_entries: entries after which a snapshot is due, at the latest.
    """

    def __init__(
        self,
        *,
        directory: Path,
        key: bytes,
        machine: StateMachine,
        transport: Transport,
        rng: random.Random,
        cluster: bytes,
        config: Config = LAN,
        disk: DurableDir | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        snapshot_entries: int = SNAPSHOT_ENTRIES,
    ) -> None:
        super().__init__(
            Setup(
                directory=directory,
                key=key,
                machine=machine,
                transport=transport,
                rng=rng,
                cluster=cluster,
                config=config,
                disk=disk,
                segment_bytes=segment_bytes,
                snapshot_entries=snapshot_entries,
            )
        )

    # Making one.
    @staticmethod
    def bootstrap(directory: Path, key: bytes, cluster: bytes, *, context: bytes = b"") -> ServerId:
        """Make the first server of a new cluster, its only voter; return its id."""
        return boot.bootstrap(directory, key, cluster, context=context)

    @staticmethod
    def create(directory: Path, key: bytes, cluster: bytes) -> ServerId:
        """Make a server that waits to be added to a cluster; return its id."""
        return boot.create(directory, key, cluster)

    # Proposals.
    async def propose(self, command: bytes, *, timeout: float) -> Outcome:
        """Put *command* into the log and apply it, within *timeout* seconds; say what became of it.

        Only the leader can. Dropped means never, Unknown means maybe: ask the state machine.
        """
        if len(command) > COMMAND_BYTES_MAX:
            return Dropped(f"the command is larger than {COMMAND_BYTES_MAX} bytes")
        refusal = self._refusal()
        if refusal is not None:
            await trio.lowlevel.checkpoint()
            return refusal
        waiter = self._proposals.add(command)
        self._wake.set()
        return await self._outcome_of(waiter, timeout)

    async def _outcome_of(self, waiter: Waiter, timeout: float) -> Outcome:
        with trio.move_on_after(timeout):
            await waiter.wait()
        if waiter.outcome is not None:
            return waiter.outcome
        if self._proposals.withdraw(waiter):
            return Dropped("it was not proposed in time")
        return Unknown(f"no majority has confirmed it within {timeout:g} s")

    def _refusal(self) -> Dropped | None:
        core = self._core
        if core.role is not Role.LEADER:
            return Dropped("this server does not lead", core.leader or None)
        if self._appender.disk_full:
            return Dropped("the disk of the leader is full")
        if self._proposals.full:
            return Dropped("too many commands are waiting")
        return None

    # Reads.
    async def read_index(self, *, timeout: float) -> int:
        """Return the index that a linearizable read has to see; it is applied here already.

        Any server may be asked; those who ask in one turn share one round.

        Raises:
            ReadTimedOut: no leader confirmed it in *timeout* seconds.
        """
        if self._next_read is None:
            self._next_read = Read(trio.current_time(), trio.Event())
        read = self._next_read
        self._wake.set()
        read.waiting += 1
        try:
            with trio.move_on_after(timeout):
                await read.event.wait()
                await self._applier.wait_applied(read.index)
                return read.index
        finally:
            read.waiting -= 1
        raise ReadTimedOut(f"no leader has confirmed the read within {timeout:g} s")

    async def wait_applied(self, index: int) -> None:
        """Return once entry *index* is applied here: reading one's own writes on any server."""
        await self._applier.wait_applied(index)

    async def take_snapshot(self) -> None:
        """Write a snapshot of the state as it is, and compact the log behind it.

        Snapshots come by themselves when the log has grown; this is for those who want one now.
        """
        await self._applier.take_snapshot()

    # Leadership.
    async def transfer_leadership(self, to: ServerId | None = None) -> None:
        """Hand leadership to *to*, or to the voter whose log is the longest.

        Returns when this server leads no more; does nothing if it does not lead.

        Raises:
            TransferFailed: it still leads after an election timeout, or nobody can take over.
        """
        core = self._core
        if core.role is not Role.LEADER:
            return
        successor = to if to is not None else self._best_successor()
        if successor is None:
            raise TransferFailed("there is no other voter that was heard from lately")
        self._call(partial(core.transfer, successor))
        # The core gives up after an election timeout; look a little longer.
        timeout = self._config.tick * (self._config.election_ticks + 2)
        with trio.move_on_after(timeout):
            while core.role is Role.LEADER:
                await self._changed.wait()
            return
        raise TransferFailed(f"server {successor} did not take over within {timeout:g} s")

    # Membership.
    async def add_learner(
        self, server: ServerId, context: bytes = b"", *, timeout: float
    ) -> Configuration:
        """Send the log to *server* from now on; it has no vote.

        The same call again, with another *context*, changes that.

        Raises: as change_membership().
        """
        kind = ChangeKind.ADD_LEARNER
        if server in self._core.configuration:
            kind = ChangeKind.UPDATE
        change = Change((ServerChange(kind, server, context),))
        return await self.change_membership(change, timeout=timeout)

    async def promote(
        self, server: ServerId, *, timeout: float, force: bool = False
    ) -> Configuration:
        """Make the learner *server* a voter, once it has caught up.

        A voter that is behind would stall every commit that needs it, so it gets rounds to catch
        up, each as long as the one before left work to do; a round shorter than an election
        timeout is good enough (thesis section 4.2.1).

        Raises: as change_membership().
        """
        if server in self._core.configuration.voters:
            return self._core.configuration
        if server not in self._core.configuration.learners:
            raise ChangeRefused(f"server {server} is no learner; add it as one first")
        with trio.move_on_after(timeout) as scope:
            await self._wait_caught_up(server)
            change = Change((ServerChange(ChangeKind.ADD_VOTER, server),))
            return await self.change_membership(change, timeout=timeout, force=force)
        assert scope.cancelled_caught
        raise ChangeRefused(f"server {server} has not caught up within {timeout:g} s")

    async def _wait_caught_up(self, server: ServerId) -> None:
        core = self._core
        enough = self._config.tick * self._config.election_ticks
        for _ in range(CATCH_UP_ROUNDS):
            started, target = trio.current_time(), core.log.last_index
            while True:
                self._check_leads()
                progress = core.progress.get(server)
                if progress is None:
                    raise ChangeRefused(f"server {server} is no member any more")
                if progress.match_index >= target:
                    break
                await trio.sleep(self._config.tick)
            if trio.current_time() - started < enough:
                return
        raise ChangeRefused(
            f"server {server} does not catch up: writes come faster than it can take them"
        )

    async def remove(
        self, server: ServerId, *, timeout: float, force: bool = False
    ) -> Configuration:
        """Remove *server* from the cluster.

        A leader that is to remove itself hands over first, and says so with NotLeader: ask the
        new one.

        Raises:
            TransferFailed: nobody takes over; and as change_membership().
        """
        configuration = self._core.configuration
        if server not in configuration:
            return configuration
        if server == self.server and len(configuration.voters) > 1:
            self._check_leads()
            await self.transfer_leadership()
            self._check_leads()
        change = Change((ServerChange(ChangeKind.REMOVE, server),))
        return await self.change_membership(change, timeout=timeout, force=force)

    async def change_membership(
        self, change: Change, *, timeout: float, force: bool = False
    ) -> Configuration:
        """Make *change*, whatever it is; return the configuration once it is in force.

        More than one server is changed by joint consensus, which is left before this returns.

        Raises:
            NotLeader: ask the leader.
            ChangeRefused: it makes no sense now, or, unless *force*, those voters that were
                heard from lately would not be a majority afterwards. Or it did not come to an
                end in time: then look at the configuration.
        """
        self._check_leads()
        self._check_change(change, force=force)
        waiter = Waiter(b"")
        self._call(partial(self._propose_change, change, waiter))
        match await self._outcome_of(waiter, timeout):
            case Committed(result=configuration):
                assert isinstance(configuration, Configuration)
            case Dropped(reason, leader):
                if leader is not None:
                    raise NotLeader(leader)
                raise ChangeRefused(reason)
            case Unknown(reason):
                raise ChangeRefused(f"the change may still come into force: {reason}")
        if change.transition is not Transition.JOINT_EXPLICIT:
            configuration = await self._wait_left_joint(timeout)
        return configuration

    async def _wait_left_joint(self, timeout: float) -> Configuration:
        core = self._core
        with trio.move_on_after(timeout):
            while core.configuration.joint:
                await self._changed.wait()
            return core.configuration
        raise ChangeRefused(f"the joint configuration was not left within {timeout:g} s")

    def _check_leads(self) -> None:
        if self._core.role is not Role.LEADER:
            raise NotLeader(self._core.leader or None)

    def _check_change(self, change: Change, *, force: bool) -> None:
        """Refuse *change* if it cannot work, from what is known now."""
        core = self._core
        if core.pending_change_index > core.log.applied:
            raise ChangeRefused("another change is not in force yet; try again in a moment")
        if core.configuration.joint and not change.leaves_joint:
            raise ChangeRefused("a change of several servers is still under way")
        try:
            after = change_configuration(core.configuration, change).configuration
        except InvalidChange as invalid:
            raise ChangeRefused(str(invalid)) from invalid
        if force:
            return
        heard = {
            server: server == self.server or (p.recent_active and not p.recovering)
            for server, p in core.progress.items()
        }
        if quorum.joint_vote_result(after.voters, after.outgoing, heard) is not Vote.WON:
            silent = [server for server in after.all_voters() if not heard.get(server)]
            raise ChangeRefused(
                "the voters that can be heard would not be a majority afterwards; silent: "
                + ", ".join(map(str, silent))
            )

    # What is shown.
    @property
    def status(self) -> ReplicaStatus:
        """How things stand now; usable once run() has started."""
        core = self._core
        leads = core.role is Role.LEADER
        return ReplicaStatus(
            server=self.server,
            term=core.term,
            role=core.role,
            leader=core.leader or None,
            commit_index=core.log.committed,
            applied_index=self._applier.applied,
            first_index=core.log.first_index,
            last_index=core.log.last_index,
            last_term=core.log.last_term,
            configuration=core.configuration,
            progress=tuple(
                progress.status(server)
                for server, progress in core.progress.items()
                if leads and server != self.server
            ),
            disk_full=self._appender.disk_full,
            recovering=core.recovering,
            snapshot_index=self._applier.snapshot_index,
            log_bytes_written=self._appender.wal.bytes_written,
        )

    async def wait_for_change(self, seen: ReplicaStatus) -> ReplicaStatus:
        """Return the status once role, term, leader, configuration or disk differ from *seen*.

        Indexes move with every entry and do not count.
        """
        while True:
            status = self.status
            if _brief_of(status) != _brief_of(seen):
                return status
            await self._changed.wait()


def _brief_of(status: ReplicaStatus) -> tuple[object, ...]:
    s = status
    return (s.role, s.term, s.leader, s.configuration, s.disk_full, s.recovering)
