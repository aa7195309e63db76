"""The core's trace events as the lines that etcd-raft logs."""

from __future__ import annotations

import enum
from typing import Any

from raft import trace as t
from raft.messages import RequestVote, ServerId
from raft.progress import ProgressStatus
from tests.raft.etcd_text import (
    BLOCKED,
    ROLES,
    describe_change,
    describe_conf_state,
    describe_configuration,
    describe_progress,
    ids,
    message_type,
)


class Level(enum.IntEnum):
    DEBUG = 0
    INFO = 1
    WARN = 2
    ERROR = 3
    FATAL = 4
    NONE = 5


def render(server: ServerId, event: t.Trace) -> tuple[Level, str] | None:
    """Return the level and the line for *event* at *server*; None where etcd says nothing."""
    me = f"{server:x}"
    for table in (_elections, _roles, _log, _membership, _replication, _snapshots, _transfers):
        line = table(me, event)
        if line is not None:
            return line
    return None


Line = tuple[Level, str] | None
DEBUG, INFO, WARN, ERROR = Level.DEBUG, Level.INFO, Level.WARN, Level.ERROR


def _vote(pre: bool) -> str:
    return "MsgPreVote" if pre else "MsgVote"


def _stand(me: str, e: Any) -> str:
    return f"{me} [logterm: {e.last_term}, index: {e.last_index}, vote: {e.voted_for:x}]"


def _candidate(e: Any) -> str:
    request: RequestVote = e.request
    return (
        f"{e.candidate:x} [logterm: {request.last_term}, index: {request.last_index}] "
        f"at term {e.term}"
    )


def _elections(me: str, e: t.Trace) -> Line:
    match e:
        case t.ElectionStarted():
            return INFO, f"{me} is starting a new election at term {e.term}"
        case t.AlreadyLeader():
            return DEBUG, f"{me} ignoring MsgHup because already leader"
        case t.Unpromotable():
            return WARN, f"{me} is unpromotable and can not campaign"
        case t.ChangePending():
            return WARN, (
                f"{me} cannot campaign at term {e.term} since there are still pending "
                "configuration changes to apply"
            )
        case t.VoteRequested():
            return INFO, (
                f"{me} [logterm: {e.last_term}, index: {e.last_index}] "
                f"sent {_vote(e.pre)} request to {e.to:x} at term {e.term}"
            )
        case t.VoteIgnored():
            return INFO, (
                f"{_stand(me, e)} ignored {_vote(e.request.pre)} from {_candidate(e)}: "
                f"lease is not expired (remaining ticks: {e.ticks_left})"
            )
        case t.VoteCast():
            return INFO, f"{_stand(me, e)} cast {_vote(e.request.pre)} for {_candidate(e)}"
        case t.VoteRefused():
            return INFO, f"{_stand(me, e)} rejected {_vote(e.request.pre)} from {_candidate(e)}"
        case t.VoteReceived():
            what = f"{_vote(e.pre)}Resp" + ("" if e.granted else " rejection")
            return INFO, f"{me} received {what} from {e.voter:x} at term {e.term}"
        case t.VotesCounted():
            return INFO, (
                f"{me} has received {e.granted} {_vote(e.pre)}Resp votes and "
                f"{e.refused} vote rejections"
            )
    return None


def _roles(me: str, e: t.Trace) -> Line:
    match e:
        case t.Started():
            return INFO, (
                f"newRaft {me} [peers: [{ids(e.voters, ',')}], term: {e.term}, "
                f"commit: {e.commit_index}, applied: {e.applied_index}, "
                f"lastindex: {e.last_index}, lastterm: {e.last_term}]"
            )
        case t.BecameFollower():
            return INFO, f"{me} became follower at term {e.term}"
        case t.BecamePreCandidate():
            return INFO, f"{me} became pre-candidate at term {e.term}"
        case t.BecameCandidate():
            return INFO, f"{me} became candidate at term {e.term}"
        case t.BecameLeader():
            return INFO, f"{me} became leader at term {e.term}"
        case t.HigherTermSeen():
            return INFO, (
                f"{me} [term: {e.term}] received a {message_type(e.message)} message with "
                f"higher term from {e.sender:x} [term: {e.message_term}]"
            )
        case t.LowerTermIgnored():
            return INFO, (
                f"{me} [term: {e.term}] ignored a {message_type(e.message)} message with "
                f"lower term from {e.sender:x} [term: {e.message_term}]"
            )
        case t.StaleStoredIgnored():
            return INFO, (
                f"{me} [term: {e.term}] ignored entry appends from a MsgStorageAppendResp "
                f"message with lower term [term: {e.stored_term}]"
            )
        case t.QuorumLost():
            return WARN, f"{me} stepped down to follower since quorum is not active"
        case t.LeaderForgotten():
            return INFO, f"{me} forgetting leader {e.leader:x} at term {e.term}"
        case t.ForgetRefused():
            return ERROR, "ignoring MsgForgetLeader due to ReadOnlyLeaseBased"
    return None


def _log(me: str, e: t.Trace) -> Line:
    match e:
        case t.ConflictFound():
            return INFO, (
                f"found conflict at index {e.index} [existing term: {e.existing_term}, "
                f"conflicting term: {e.new_term}]"
            )
        case t.UnstableReplaced():
            return INFO, f"replace the unstable entries from index {e.index}"
        case t.UnstableTruncated():
            return INFO, f"truncate the unstable entries before index {e.index}"
        case t.StableMissing():
            return INFO, f"entry at index {e.index} missing from unstable log; ignoring"
        case t.StableWasSnapshot():
            return INFO, f"entry at index {e.index} matched unstable snapshot; ignoring"
        case t.StableMismatched():
            return INFO, (
                f"entry at (index,term)=({e.index},{e.term}) mismatched with entry at "
                f"({e.index},{e.existing_term}) in unstable log; ignoring"
            )
        case t.RestoreStarted():
            return INFO, (
                f"log [committed={e.committed}, applied={e.applied}, applying={e.applying}, "
                f"unstable.offset={e.offset}, unstable.offsetInProgress={e.offset_in_progress}, "
                f"len(unstable.Entries)={e.unstable}] starts to restore snapshot "
                f"[index: {e.index}, term: {e.term}]"
            )
    return None


def _membership(me: str, e: t.Trace) -> Line:
    match e:
        case t.NoLeaderForProposal():
            return INFO, f"{me} no leader at term {e.term}; dropping proposal"
        case t.ProposalNotForwarded():
            return INFO, (
                f"{me} not forwarding to leader {e.leader:x} at term {e.term}; dropping proposal"
            )
        case t.ProposalDuringTransfer():
            return DEBUG, (
                f"{me} [term {e.term}] transfer leadership to {e.transferee:x} is in progress; "
                "dropping proposal"
            )
        case t.UncommittedFull():
            return WARN, (
                f"{me} appending new entries to log would exceed uncommitted entry size limit; "
                "dropping proposal"
            )
        case t.ChangeIgnored():
            reason = BLOCKED.get(e.reason) or (
                f"possible unapplied conf change at index {e.pending_index} "
                f"(applied to {e.applied_index})"
            )
            return INFO, (
                f"{me} ignoring conf change {describe_change(e.change)} at config "
                f"{describe_configuration(e.configuration)}: {reason}"
            )
        case t.ConfigurationSwitched():
            text = describe_configuration(e.configuration)
            return INFO, f"{me} switched to configuration {text}"
        case t.AutoLeaveProposed():
            return INFO, (
                "initiating automatic transition out of joint configuration "
                f"{describe_configuration(e.configuration)}"
            )
        case t.AutoLeaveFailed():
            return DEBUG, (
                "not initiating automatic transition out of joint configuration "
                f"{describe_configuration(e.configuration)}: raft proposal dropped"
            )
    return None


def _replication(me: str, e: t.Trace) -> Line:
    match e:
        case t.NoProgress():
            return DEBUG, f"{me} no progress available for {e.sender:x}"
        case t.AppendRejected():
            return DEBUG, (
                f"{me} [logterm: {e.own_term}, index: {e.index}] rejected MsgApp "
                f"[logterm: {e.previous_term}, index: {e.index}] from {e.leader:x}"
            )
        case t.RejectionReceived():
            return DEBUG, (
                f"{me} received MsgAppResp(rejected, hint: (index {e.hint_index}, "
                f"term {e.hint_term})) from {e.follower:x} for index {e.index}"
            )
        case t.ProgressDecreased():
            return DEBUG, f"{me} decreased progress of {_of(e.progress)}".replace(" [", " to [", 1)
        case t.PeerUnreachable(p):
            return DEBUG, (
                f"{me} failed to send message to {p.server:x} because it is unreachable "
                f"[{describe_progress(p)}]"
            )
    return None


def _of(progress: ProgressStatus) -> str:
    return f"{progress.server:x} [{describe_progress(progress)}]"


def _snapshots(me: str, e: t.Trace) -> Line:
    match e:
        case t.SnapshotToInactive():
            return DEBUG, (
                f"ignore sending snapshot to {e.follower:x} since it is not recently active"
            )
        case t.SnapshotUnavailable():
            return DEBUG, (
                f"{me} failed to send snapshot to {e.follower:x} because snapshot is "
                "temporarily unavailable"
            )
        case t.SnapshotSent():
            return DEBUG, (
                f"{me} [firstindex: {e.first_index}, commit: {e.commit_index}] sent "
                f"snapshot[index: {e.index}, term: {e.term}] to {_of(e.progress)}"
            )
        case t.ReplicationPaused():
            return DEBUG, f"{me} paused sending replication messages to {_of(e.progress)}"
        case t.SnapshotArrived():
            return DEBUG, (
                f"{me} recovered from needing snapshot, resumed sending replication messages to "
                f"{_of(e.progress)}"
            )
        case t.SnapshotReported():
            how = "succeeded" if e.delivered else "failed"
            return DEBUG, (
                f"{me} snapshot {how}, resumed sending replication messages to {_of(e.progress)}"
            )
        case t.SnapshotWhileLeading():
            return WARN, f"{me} attempted to restore snapshot as leader; should never happen"
        case t.SnapshotWithoutUs():
            return WARN, (
                f"{me} attempted to restore snapshot but it is not in the ConfState "
                f"{describe_conf_state(e.configuration)}; should never happen"
            )
        case t.SnapshotFastForwarded():
            return INFO, f"{_log_end(me, e)} fast-forwarded commit to {_snapshot(e)}"
        case t.SnapshotRestored():
            return INFO, f"{_log_end(me, e)} restored {_snapshot(e)}"
        case t.SnapshotHandled():
            verb = "restored" if e.restored else "ignored"
            return INFO, f"{me} [commit: {e.commit_index}] {verb} {_snapshot(e)}"
    return None


def _log_end(me: str, e: Any) -> str:
    return f"{me} [commit: {e.commit_index}, lastindex: {e.last_index}, lastterm: {e.last_term}]"


def _snapshot(e: Any) -> str:
    return f"snapshot [index: {e.index}, term: {e.term}]"


def _transfers(me: str, e: t.Trace) -> Line:
    match e:
        case t.TransferToLearner():
            return DEBUG, f"{me} is learner. Ignored transferring leadership"
        case t.TransferUnderWay():
            return INFO, (
                f"{me} [term {e.term}] transfer leadership to {e.transferee:x} is in progress, "
                f"ignores request to same node {e.transferee:x}"
            )
        case t.TransferReplaced():
            return INFO, (
                f"{me} [term {e.term}] abort previous transferring leadership to {e.transferee:x}"
            )
        case t.TransferToSelf():
            return DEBUG, f"{me} is already leader. Ignored transferring leadership to self"
        case t.TransferStarted():
            return INFO, (f"{me} [term {e.term}] starts to transfer leadership to {e.transferee:x}")
        case t.TransferNow():
            return INFO, (
                f"{me} sends MsgTimeoutNow to {e.transferee:x} immediately as {e.transferee:x} "
                "already has up-to-date log"
            )
        case t.TransferCaughtUp():
            return INFO, (f"{me} sent MsgTimeoutNow to {e.transferee:x} after received MsgAppResp")
        case t.NoLeaderForTransfer():
            return INFO, f"{me} no leader at term {e.term}; dropping leader transfer msg"
        case t.TimeoutNowReceived():
            return INFO, (
                f"{me} [term {e.term}] received MsgTimeoutNow from {e.leader:x} and starts an "
                "election to get leadership."
            )
        case t.TimeoutNowIgnored():
            return DEBUG, (
                f"{me} [term {e.term} state {ROLES[e.role]}] ignored MsgTimeoutNow from "
                f"{e.leader:x}"
            )
        case t.NoLeaderForRead():
            return INFO, f"{me} no leader at term {e.term}; dropping index reading msg"
    return None
