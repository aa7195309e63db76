"""Who leads: roles, terms, elections and the handing over of leadership.

Pure (paper section 5.2 and 5.4.1; thesis 3.10, 4.2.3, 6.2 and 9.6). The middle part of the core:
below it replication.py moves the log, above it core.py takes in messages and proposals.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from raft import quorum
from raft.config import Config
from raft.log import Storage
from raft.messages import (
    CHANGE,
    COMMANDS,
    NOBODY,
    AppendEntries,
    AppendReply,
    Heartbeat,
    InstallSnapshot,
    Message,
    Propose,
    ReadRequest,
    RequestVote,
    Role,
    ServerId,
    TimeoutNow,
    TransferLeadership,
    VoteReply,
)
from raft.progress import Progress
from raft.quorum import Vote
from raft.reads import Reads
from raft.replication import Replication
from raft.trace import (
    AlreadyLeader,
    BecameCandidate,
    BecameFollower,
    BecameLeader,
    BecamePreCandidate,
    ChangePending,
    ElectionStarted,
    ForgetRefused,
    HigherTermSeen,
    LeaderForgotten,
    LowerTermIgnored,
    NoLeaderForTransfer,
    NoProgress,
    TimeoutNowIgnored,
    TimeoutNowReceived,
    Trace,
    TransferNow,
    TransferReplaced,
    TransferStarted,
    TransferToLearner,
    TransferToSelf,
    TransferUnderWay,
    Unpromotable,
    VoteCast,
    VoteIgnored,
    VoteReceived,
    VoteRefused,
    VoteRequested,
    VotesCounted,
)


class Elections(Replication):
    """The roles of one server and how it changes between them."""

    def __init__(
        self,
        config: Config,
        server: ServerId,
        storage: Storage,
        *,
        rng: random.Random,
        trace: Callable[[Trace], None],
    ) -> None:
        super().__init__(config, server, storage, rng=rng, trace=trace)
        self._votes: dict[ServerId, bool] = {}
        self._heartbeat_elapsed = 0
        self._election_timeout = 0

    # Roles.
    def _reset(self, term: int) -> None:
        if self.term != term:
            self.term = term
            self.voted_for = NOBODY
        self.leader = NOBODY
        self._election_elapsed = self._heartbeat_elapsed = 0
        ticks = self.config.election_ticks
        self._election_timeout = ticks + self._rng.randrange(ticks)
        self.transferee = NOBODY
        self._votes = {}
        next_index = self.log.last_index + 1
        for server, old in self.progress.items():
            fresh = self._new_progress(next_index=next_index, learner=old.learner)
            if server == self.server:
                fresh.match_index = next_index - 1
            self.progress[server] = fresh
        self.pending_change_index = 0
        self._uncommitted_bytes = 0
        self._reads = Reads(self._reads.number)

    def _become_follower(self, term: int, leader: ServerId) -> None:
        self._reset(term)
        self.leader = leader
        self.role = Role.FOLLOWER
        self._trace(BecameFollower(term))

    def _become_pre_candidate(self) -> None:
        assert self.role is not Role.LEADER
        # Neither term nor vote changes: this only asks (thesis section 9.6).
        self._votes = {}
        self.leader = NOBODY
        self.role = Role.PRE_CANDIDATE
        self._trace(BecamePreCandidate(self.term))

    def _become_candidate(self) -> None:
        assert self.role is not Role.LEADER
        self._reset(self.term + 1)
        self.voted_for = self.server
        self.role = Role.CANDIDATE
        self._trace(BecameCandidate(self.term))

    def _become_leader(self) -> None:
        assert self.role is not Role.FOLLOWER
        self._reset(self.term)
        self.leader = self.server
        self.role = Role.LEADER
        mine = self.progress[self.server]
        mine.replicate()
        mine.recent_active = True
        # A change of the configuration may be among the entries that came before.
        self.pending_change_index = self.log.last_index
        # The no-op that lets this term commit what came before it (paper section 8).
        appended = self._append_entries([(COMMANDS, b"")])
        assert appended
        self._trace(BecameLeader(self.term))

    # Elections.
    @property
    def _promotable(self) -> bool:
        mine = self.progress.get(self.server)
        return (
            mine is not None
            and not mine.learner
            and self.log.snapshot is None
            and not self.recovering
        )

    def campaign(self) -> None:
        """Try to lead: by asking first, if pre-vote is on."""
        self._campaign(pre=self.config.pre_vote, transfer=False)

    def _campaign(self, *, pre: bool, transfer: bool) -> None:
        if self.role is Role.LEADER:
            self._trace(AlreadyLeader())
        elif not self._promotable:
            self._trace(Unpromotable())
        elif self.log.has_unapplied_change(CHANGE):
            self._trace(ChangePending(self.term))
        else:
            self._trace(ElectionStarted(self.term))
            self._ask_for_votes(pre=pre, transfer=transfer)

    def _ask_for_votes(self, *, pre: bool, transfer: bool) -> None:
        if pre:
            self._become_pre_candidate()
            term = self.term + 1
        else:
            self._become_candidate()
            term = self.term
        last_index, last_term = self.log.last_index, self.log.last_term
        request = RequestVote(term, last_index, last_term, pre, transfer)
        for voter in self.configuration.all_voters():
            if voter == self.server:
                # Its own vote counts once it is on disk.
                self._send_after_sync(voter, VoteReply(term, pre))
            else:
                self._trace(VoteRequested(last_term, last_index, pre, voter, self.term))
                self._send(voter, request)

    def _receive_vote_request(self, candidate: ServerId, request: RequestVote) -> None:
        if self.recovering:
            return  # it may have voted already, and lost the memory of it
        may_vote = (
            self.voted_for == candidate
            or (self.voted_for == NOBODY and self.leader == NOBODY)
            or (request.pre and request.term > self.term)
        )
        log = self.log
        good = log.up_to_date(request.last_index, request.last_term)
        event = VoteCast if may_vote and good else VoteRefused
        self._trace(
            event(log.last_term, log.last_index, self.voted_for, request, candidate, self.term)
        )
        # A learner votes too: a candidate who asks may know that it was promoted, before it does.
        if may_vote and good:
            # The term of the request: a pre-vote is for the future, and a candidate would ignore
            # an answer of a lower term.
            self._send_after_sync(candidate, VoteReply(request.term, request.pre))
            if not request.pre:
                self._election_elapsed = 0
                self.voted_for = candidate
        else:
            refusal = VoteReply(self.term, request.pre, rejected=True)
            self._send_after_sync(candidate, refusal)

    def _receive_vote_reply(self, voter: ServerId, reply: VoteReply) -> None:
        if reply.pre != (self.role is Role.PRE_CANDIDATE):
            return  # an answer to the other kind of question
        granted = not reply.rejected
        self._trace(VoteReceived(reply.pre, voter, self.term, granted))
        self._votes.setdefault(voter, granted)
        counted = [
            self._votes[server]
            for server, progress in self.progress.items()
            if not progress.learner and server in self._votes
        ]
        self._trace(VotesCounted(counted.count(True), reply.pre, counted.count(False)))
        match self._tally(self._votes):
            case Vote.WON:
                if self.role is Role.PRE_CANDIDATE:
                    self._ask_for_votes(pre=False, transfer=False)
                else:
                    self._become_leader()
                    self._broadcast_append()
            case Vote.LOST:
                self._become_follower(self.term, NOBODY)
            case Vote.PENDING:
                pass

    def _tally(self, votes: dict[ServerId, bool]) -> Vote:
        configuration = self.configuration
        return quorum.joint_vote_result(configuration.voters, configuration.outgoing, votes)

    # Terms.
    def _accept_higher_term(self, sender: ServerId, message: Message) -> bool:
        """Follow *message* into its term; False if it must be ignored."""
        assert not isinstance(message, Propose | ReadRequest)
        if isinstance(message, RequestVote):
            in_lease = (
                self.config.check_quorum
                and self.leader != NOBODY
                and self._election_elapsed < self.config.election_ticks
            )
            if in_lease and not message.transfer:
                log = self.log
                left = self.config.election_ticks - self._election_elapsed
                self._trace(
                    VoteIgnored(
                        log.last_term,
                        log.last_index,
                        self.voted_for,
                        message,
                        sender,
                        self.term,
                        left,
                    )
                )
                return False
            if message.pre:
                return True  # a question never changes a term
        if isinstance(message, VoteReply) and message.pre and not message.rejected:
            return True  # granted for the term we asked about, which is not ours yet
        self._trace(HigherTermSeen(self.term, message, sender, message.term))
        leads = isinstance(message, AppendEntries | Heartbeat | InstallSnapshot)
        self._become_follower(message.term, sender if leads else NOBODY)
        return True

    def _answer_lower_term(self, sender: ServerId, message: Message) -> None:
        assert not isinstance(message, Propose | ReadRequest)
        guarded = self.config.check_quorum or self.config.pre_vote
        if guarded and isinstance(message, AppendEntries | Heartbeat):
            # With leases on, our vote request would be ignored: only this makes that leader
            # learn of our term, and so lets a server that ran ahead come back.
            self._send_after_sync(sender, AppendReply(self.term))
        elif isinstance(message, RequestVote) and message.pre:
            # Without an answer, servers that ran ahead before pre-vote was on could deadlock.
            log = self.log
            self._trace(
                VoteRefused(
                    log.last_term, log.last_index, self.voted_for, message, sender, self.term
                )
            )
            self._send_after_sync(sender, VoteReply(self.term, pre=True, rejected=True))
        else:
            self._trace(LowerTermIgnored(self.term, message, sender, message.term))

    # Transfer of leadership.
    def transfer(self, transferee: ServerId) -> None:
        """Hand leadership to *transferee*, within an election timeout or not at all (3.10)."""
        if self.role is Role.FOLLOWER:
            if self.leader == NOBODY:
                self._trace(NoLeaderForTransfer(self.term))
            else:
                self._send(self.leader, TransferLeadership(self.term, transferee))
        elif self.role is Role.LEADER:
            progress = self.progress.get(transferee)
            if progress is None:
                self._trace(NoProgress(transferee))
            else:
                self._lead_transfer(transferee, progress)

    def _lead_transfer(self, transferee: ServerId, progress: Progress) -> None:
        if progress.learner:
            self._trace(TransferToLearner())
            return
        if self.transferee != NOBODY:
            if self.transferee == transferee:
                self._trace(TransferUnderWay(self.term, transferee))
                return
            self._trace(TransferReplaced(self.term, self.transferee))
            self.transferee = NOBODY
        if transferee == self.server:
            self._trace(TransferToSelf())
            return
        self._trace(TransferStarted(self.term, transferee))
        self._election_elapsed = 0
        self.transferee = transferee
        if progress.match_index == self.log.last_index:
            self._send(transferee, TimeoutNow(self.term))
            self._trace(TransferNow(transferee))
        else:
            self._send_append(transferee, progress)

    def _receive_timeout_now(self, leader: ServerId) -> None:
        if self.role is Role.FOLLOWER:
            self._trace(TimeoutNowReceived(self.term, leader))
            # No pre-vote: the leader asked for this, so nobody is disturbed.
            self._campaign(pre=False, transfer=True)
        elif self.role is not Role.LEADER:
            self._trace(TimeoutNowIgnored(self.term, self.role, leader))

    def forget_leader(self) -> None:
        """Stop to count on the current leader: pre-votes are granted at once."""
        if self.role is not Role.FOLLOWER:
            return
        if self.config.lease_reads:
            self._trace(ForgetRefused())
        elif self.leader != NOBODY:
            self._trace(LeaderForgotten(self.leader, self.term))
            self.leader = NOBODY
