"""The Raft core of one server: its doors, proposals, membership, and Ready.

Pure: no clock, no disk, no socket, no chance of its own. The shell calls tick(), step() and the
methods that ask for something, then takes ready() and does what it says. Below this file,
elections.py decides who leads and replication.py moves the log.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from raft import membership
from raft.config import Config
from raft.elections import Elections
from raft.log import Storage
from raft.membership import Change, InvalidChange
from raft.messages import (
    CHANGE,
    COMMANDS,
    NOBODY,
    REPLIES,
    AppendEntries,
    AppendReply,
    Configuration,
    Entry,
    HardState,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    Propose,
    ReadReply,
    ReadRequest,
    ReadState,
    Ready,
    RequestVote,
    Role,
    ServerId,
    Stored,
    TimeoutNow,
    TransferLeadership,
    VoteReply,
)
from raft.quorum import Vote
from raft.replication import RECOVERY
from raft.trace import (
    AutoLeaveFailed,
    AutoLeaveProposed,
    ChangeBlocked,
    ChangeIgnored,
    ChangeInvalid,
    ConfigurationSwitched,
    NoLeaderForProposal,
    NoLeaderForRead,
    NoProgress,
    ProposalDuringTransfer,
    ProposalNotForwarded,
    QuorumLost,
    RivalIgnored,
    StaleStoredIgnored,
    Started,
    Trace,
)


class ProposalDropped(Exception):
    """The proposal is in no log and never will be; *reason* says why."""

    def __init__(self, reason: str, leader: ServerId = NOBODY) -> None:
        super().__init__(reason)
        self.reason = reason
        self.leader = leader


def ignore_trace(event: Trace) -> None:
    """The listener of a core that nobody listens to."""


class Raft(Elections):
    """One server of a cluster.

    Args:
        config: the knobs.
        server: this server; never 0.
        storage: its stable log; the core only reads it.
        hard_state: what storage holds besides the log.
        applied: the last entry that the state machine holds.
        rng: source of every random choice, so that a seed replays a run.
        trace: hears what happens; must not call back.
    """

    def __init__(
        self,
        config: Config,
        server: ServerId,
        storage: Storage,
        *,
        hard_state: HardState,
        configuration: Configuration,
        applied: int = 0,
        rng: random.Random,
        trace: Callable[[Trace], None] = ignore_trace,
    ) -> None:
        super().__init__(config, server, storage, rng=rng, trace=trace)
        self._install_configuration(configuration, frozenset(), applied)
        if hard_state != HardState():
            assert self.log.committed <= hard_state.commit_index <= self.log.last_index, (
                f"commit index {hard_state.commit_index} is outside the log"
            )
            self.log.committed = hard_state.commit_index
            self.term, self.voted_for = hard_state.term, hard_state.voted_for
            self.recovering = hard_state.recovering
        if applied:
            self.log.applied_to(applied)
        self._become_follower(self.term, NOBODY)
        self._told_soft_state = self._soft_state
        self._told_hard_state = self._hard_state
        log = self.log
        trace(
            Started(
                tuple(self.configuration.all_voters()),
                self.term,
                log.committed,
                log.applied,
                log.last_index,
                log.last_term,
            )
        )

    @property
    def _soft_state(self) -> tuple[ServerId, Role]:
        return self.leader, self.role

    @property
    def _hard_state(self) -> HardState:
        return HardState(self.term, self.voted_for, self.log.committed, self.recovering)

    # Time.
    def tick(self) -> None:
        """One tick passed."""
        if self.role is Role.LEADER:
            self._tick_leader()
            return
        self._election_elapsed += 1
        if self._promotable and self._election_elapsed >= self._election_timeout:
            self._election_elapsed = 0
            self.campaign()

    @property
    def ticks_to_act(self) -> int:
        """Which of the next ticks acts: those before it only count. At least 1.

        A message may change it, and so may a change of the configuration.
        """
        if self.role is Role.LEADER:
            to_check = self.config.election_ticks - self._election_elapsed
            return min(to_check, self.config.heartbeat_ticks - self._heartbeat_elapsed)
        if not self._promotable:
            return self.config.election_ticks
        return max(1, self._election_timeout - self._election_elapsed)

    def _tick_leader(self) -> None:
        self._heartbeat_elapsed += 1
        self._election_elapsed += 1
        if self._election_elapsed >= self.config.election_ticks:
            self._election_elapsed = 0
            if self.config.check_quorum:
                self._check_quorum()
            # One election timeout is what a transfer gets; then proposals flow again.
            if self.role is Role.LEADER:
                self.transferee = NOBODY
        if self.role is not Role.LEADER:
            return
        if self._heartbeat_elapsed >= self.config.heartbeat_ticks:
            self._heartbeat_elapsed = 0
            self._broadcast_heartbeat()
            if self.compat is None:
                self._tick_corrections()

    def _tick_corrections(self) -> None:
        """Retry what must not depend on another entry or another message coming by."""
        self._tick_snapshots()
        self._leave_joint_if_due()
        if self.lame and self.transferee == NOBODY:
            best = max(
                (server for server in self.configuration.voters if server in self.progress),
                key=lambda server: (self.progress[server].match_index, server),
            )
            self.transfer(best)

    def _check_quorum(self) -> None:
        votes = {
            server: progress.recent_active and not progress.recovering
            for server, progress in self.progress.items()
            if not progress.learner
        }
        # A lame leader stays: if it left, a longer log of its could keep all others from winning.
        if self._tally(votes) is not Vote.WON and (self.compat or not self.lame):
            self._trace(QuorumLost())
            self._become_follower(self.term, NOBODY)
        for server, progress in self.progress.items():
            if server != self.server:
                progress.recent_active = False

    # Messages.
    def step(self, sender: ServerId, message: Message) -> None:
        """Take in *message* from *sender*, or from this server itself after a sync.

        Raises:
            ProposalDropped: it was a Propose and nobody here can take it.
        """
        if isinstance(message, Propose):
            self._propose([(entry.kind, entry.data) for entry in message.entries], message)
            return
        if isinstance(message, ReadRequest):
            self._request_read(sender, message)
            return
        if isinstance(message, REPLIES) and sender not in self.progress and sender != self.server:
            return
        term = message.term
        if term > self.term:
            if not self._accept_higher_term(sender, message):
                return
        elif term < self.term:
            self._answer_lower_term(sender, message)
            return
        match message:
            case RequestVote():
                self._receive_vote_request(sender, message)
            case AppendEntries() | Heartbeat() | InstallSnapshot():
                self._receive_from_leader(sender, message)
            case AppendReply() | HeartbeatReply():
                self._receive_from_follower(sender, message)
            case VoteReply():
                if self.role in (Role.CANDIDATE, Role.PRE_CANDIDATE):
                    self._receive_vote_reply(sender, message)
            case TimeoutNow():
                self._receive_timeout_now(sender)
            case TransferLeadership(transferee=transferee):
                self.transfer(transferee)
            case ReadReply(index=index, context=context):
                if self.role is Role.FOLLOWER:
                    self._receive_read(index, context)

    def _receive_from_leader(
        self, leader: ServerId, message: AppendEntries | Heartbeat | InstallSnapshot
    ) -> None:
        if self.role is Role.LEADER:
            # Cannot be while everybody keeps the rules; whoever breaks them is not followed.
            self._trace(RivalIgnored(self.term, leader))
            return
        if self.role is Role.FOLLOWER:
            self._election_elapsed = 0
            self.leader = leader
        else:
            self._become_follower(message.term, leader)
        match message:
            case AppendEntries():
                self._receive_append(leader, message)
            case Heartbeat():
                self._receive_heartbeat(leader, message)
            case InstallSnapshot():
                self._receive_snapshot(leader, message)

    def _receive_read(self, index: int, context: bytes) -> None:
        if context == RECOVERY:
            self.recovery_index = index
        else:
            self._read_states.append(ReadState(index, context))

    def _receive_from_follower(
        self, sender: ServerId, message: AppendReply | HeartbeatReply
    ) -> None:
        if self.role is not Role.LEADER:
            return
        if sender not in self.progress:
            self._trace(NoProgress(sender))
        elif isinstance(message, AppendReply):
            self._receive_append_reply(sender, message)
        else:
            self._receive_heartbeat_reply(sender, message)

    # Reads.
    def read_index(self, context: bytes) -> None:
        """Ask which index a read must wait for; ReadState(index, context) is the answer.

        It may get lost with the leader or a message: ask again.
        """
        self._request_read(self.server, ReadRequest(context))

    def _request_read(self, requester: ServerId, request: ReadRequest) -> None:
        if self.role is Role.LEADER:
            self._lead_read(requester, request)
        elif self.role is Role.FOLLOWER:
            if self.leader == NOBODY:
                self._trace(NoLeaderForRead(self.term))
            elif requester == self.server:
                self._send(self.leader, request)

    # Proposals.
    def propose(self, data: bytes) -> int:
        """Append *data* to the log; return its index, which is not committed yet.

        Raises:
            ProposalDropped: this server cannot take it now. (Or it forwarded the proposal:
                then 0 is returned.)
        """
        return self._propose([(COMMANDS, data)], Propose((Entry(0, 0, COMMANDS, data),)))

    def propose_change(self, change: Change) -> int:
        """Append *change* to the log; as propose().

        A change that cannot be made now is replaced by an entry that does nothing.
        """
        data = membership.encode_change(change)
        return self._propose([(CHANGE, data)], Propose((Entry(0, 0, CHANGE, data),)))

    def _propose(self, entries: list[tuple[int, bytes]], forward: Propose) -> int:
        if self.role is Role.LEADER:
            return self._lead_proposal(entries)
        if self.role is not Role.FOLLOWER or self.leader == NOBODY:
            self._trace(NoLeaderForProposal(self.term))
            raise ProposalDropped("there is no leader")
        if not self.config.forward_proposals:
            self._trace(ProposalNotForwarded(self.leader, self.term))
            raise ProposalDropped("another server leads", self.leader)
        self._send(self.leader, forward)
        return 0

    def _lead_proposal(self, entries: list[tuple[int, bytes]]) -> int:
        if self.server not in self.progress or (self.lame and self.compat is None):
            raise ProposalDropped("this server was removed from the cluster")
        if self.transferee != NOBODY:
            self._trace(ProposalDuringTransfer(self.term, self.transferee))
            raise ProposalDropped("leadership is being handed over", self.transferee)
        accepted = [
            (kind, data)
            if kind != CHANGE or self._may_propose_change(data, position)
            else (COMMANDS, b"")
            for position, (kind, data) in enumerate(entries, start=1)
        ]
        if not self._append_entries(accepted):
            raise ProposalDropped("too much is waiting to be committed")
        self._broadcast_append()
        return self.log.last_index

    def _may_propose_change(self, data: bytes, position: int) -> bool:
        """Check a change against the configuration as it is now, and note where it will stand."""
        applied, pending = self.log.applied, self.pending_change_index
        joint = self.configuration.joint
        change, blocked = None, None
        try:
            change = membership.decode_change(data)
        except InvalidChange:
            blocked = ChangeBlocked.INVALID
        # An explicit transition without changes only looks as if it left a joint configuration.
        leaves = change is not None and (not change.changes if self.compat else change.leaves_joint)
        if pending > applied:
            blocked = ChangeBlocked.UNAPPLIED
        elif joint and not leaves:
            blocked = ChangeBlocked.JOINT
        elif not joint and leaves:
            blocked = ChangeBlocked.NOT_JOINT
        elif change is not None and self.compat is None:
            try:
                membership.change_configuration(self.configuration, change)
            except InvalidChange:
                blocked = ChangeBlocked.INVALID
        unchecked = self.compat is not None and self.compat.unchecked_changes
        if blocked and not unchecked:
            shown = change or Change()
            self._trace(ChangeIgnored(shown, self.configuration, blocked, pending, applied))
            return False
        self.pending_change_index = self.log.last_index + position
        return True

    # Membership.
    def apply_change(self, index: int, data: bytes) -> Configuration:
        """Apply the change that entry *index* holds; return the configuration from now on.

        The shell calls this when it applies the entry, for every such entry, in order.
        """
        corrected = self.compat is None
        # A snapshot may have brought a newer configuration while the entry was on its way here.
        if corrected and index <= self.configuration_index:
            return self.configuration
        try:
            change = membership.decode_change(data)
            changed = membership.change_configuration(self.configuration, change)
        except InvalidChange as invalid:
            if not corrected:
                raise
            self._trace(ChangeInvalid(index, invalid.refusal))
            return self.configuration
        self._install_configuration(changed.configuration, changed.fresh, index)
        return self.configuration

    def _install_configuration(
        self, configuration: Configuration, fresh: frozenset[ServerId], index: int
    ) -> None:
        self.configuration = configuration
        self.configuration_index = index
        old = self.progress
        self.progress = {}
        for server in configuration.servers():
            learner = server in configuration.learners
            progress = None if server in fresh else old.get(server)
            if progress is None:
                # Not silent yet: the quorum check must give a new server a chance to speak.
                progress = self._new_progress(
                    next_index=max(self.log.last_index, 1), learner=learner
                )
                progress.recent_active = True
            progress.learner = learner
            self.progress[server] = progress
        self._trace(ConfigurationSwitched(configuration))
        if self.role is not Role.LEADER:
            return
        mine = self.progress.get(self.server)
        if mine is None or mine.learner:
            # Removed: the others may need this log to elect anyone, so hand over first.
            if self.compat and self.compat.step_down_on_removal:
                self._become_follower(self.term, NOBODY)
            if self.compat or not configuration.voters:
                return
        if self._advance_commit():
            self._broadcast_append()
        else:
            for server, progress in self.progress.items():
                if server != self.server:
                    self._send_append(server, progress, even_if_empty=False)
        if self.transferee != NOBODY and self.transferee not in configuration.all_voters():
            self.transferee = NOBODY

    def _leave_joint_if_due(self) -> None:
        """Propose to leave a joint configuration that asks for it, once it is applied."""
        due = self.configuration.auto_leave and self.log.applied >= self.pending_change_index
        if self.role is not Role.LEADER or not due:
            return
        configuration = self.configuration
        try:
            self.propose_change(Change())
        except ProposalDropped:
            self._trace(AutoLeaveFailed(configuration))
        else:
            self._trace(AutoLeaveProposed(configuration))

    # The shell's reports.
    def stored(self, stored: Stored) -> None:
        """Note that what *stored* came with, and everything before it, is durable."""
        if stored.term < self.term:
            # The term has moved on, so a write still under way may replace those entries: only
            # a report of the current term shows what is there (the ABA problem).
            if stored.index:
                self._trace(StaleStoredIgnored(self.term, stored.term))
        elif stored.index:
            self.log.stable_to(stored.index, stored.entry_term)
        if stored.snapshot is not None:
            self.log.stable_snapshot(stored.snapshot.index)
            self._applied_to(stored.snapshot.index, 0)

    def applied(self, entries: Sequence[Entry]) -> None:
        """Note that the state machine holds *entries*, which a Ready gave as committed."""
        size = sum(map(self.log.entry_bytes, entries))
        self._applied_to(entries[-1].index, size)
        data = sum([len(entry.data) for entry in entries])
        self._uncommitted_bytes = max(0, self._uncommitted_bytes - data)

    def _applied_to(self, index: int, size: int) -> None:
        self.log.applied_to(index, size)
        self._leave_joint_if_due()

    # Ready.
    def has_ready(self) -> bool:
        log = self.log
        return bool(
            self._messages
            or self._after_sync
            or log.has_next_unstable
            or log.has_next_committed
            or self._read_states
            or self._snapshot_wanted
            or log.next_snapshot() is not None
            or self._soft_state != self._told_soft_state
            or self._hard_state != self._told_hard_state
        )

    def ready(self) -> Ready:
        """Return what is to be done, and count all of it as handed out."""
        log = self.log
        soft_state, hard_state = self._soft_state, self._hard_state
        told = self._told_hard_state
        entries, snapshot = log.next_unstable(), log.next_snapshot()
        committed = log.take_committed()
        stored = None
        if log.unstable or snapshot is not None:
            # Whatever is unstable, not just what is new: a report that was dropped because its
            # term had passed is made good by any later one.
            index, term = (log.last_index, log.last_term) if log.unstable else (0, 0)
            stored = Stored(self.term, index, term, snapshot)
        ready = Ready(
            soft_state=soft_state if soft_state != self._told_soft_state else None,
            hard_state=hard_state if hard_state != told else None,
            entries=entries,
            snapshot=snapshot,
            committed=committed,
            read_states=tuple(self._read_states),
            messages=tuple(self._messages),
            after_sync=tuple(self._after_sync),
            stored=stored,
            must_sync=bool(entries) or _promises(hard_state) != _promises(told),
            snapshot_wanted=self._snapshot_wanted,
        )
        self._snapshot_wanted = False
        self._told_soft_state, self._told_hard_state = soft_state, hard_state
        self._read_states, self._messages, self._after_sync = [], [], []
        log.accept_unstable()
        return ready


def _promises(state: HardState) -> tuple[int, ServerId, bool]:
    """What of *state* must be on disk before anybody hears of it."""
    return state.term, state.voted_for, state.recovering
