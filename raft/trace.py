"""What the core did and why: typed events for logs and tests, never for decisions.

Pure. The core calls its *trace* with one of these whenever it does something a person could
ask about; none of them comes up while entries simply flow. The conformance adapter of the tests
renders them as etcd-raft words them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

from raft.membership import Change, Refusal
from raft.messages import Configuration, Message, RequestVote, Role, ServerId
from raft.progress import ProgressStatus


class ChangeBlocked(enum.Enum):
    """Why a leader does not even try a change of the configuration now."""

    UNAPPLIED = "an earlier change may not be applied yet"
    JOINT = "the joint configuration must be left first"
    NOT_JOINT = "the configuration is not joint, so there is nothing to leave"
    INVALID = "the change makes no sense in the current configuration"


# The log.


@dataclass(frozen=True, slots=True)
class ConflictFound:
    """A leader's entry replaces a different one."""

    index: int
    existing_term: int
    new_term: int


@dataclass(frozen=True, slots=True)
class UnstableReplaced:
    """Every unstable entry, and maybe stable ones, from *index* on are replaced."""

    index: int


@dataclass(frozen=True, slots=True)
class UnstableTruncated:
    """The unstable entries from *index* on are replaced."""

    index: int


@dataclass(frozen=True, slots=True)
class StableMissing:
    """A finished write was of entries that are not waiting any more."""

    index: int


@dataclass(frozen=True, slots=True)
class StableWasSnapshot:
    """A finished write was of an entry that a snapshot has replaced."""

    index: int


@dataclass(frozen=True, slots=True)
class StableMismatched:
    """A finished write was of an entry that another has replaced."""

    index: int
    term: int
    existing_term: int


@dataclass(frozen=True, slots=True)
class RestoreStarted:
    """A snapshot replaces the log, which looked so."""

    index: int
    term: int
    committed: int
    applied: int
    applying: int
    offset: int
    offset_in_progress: int
    unstable: int


# Roles and terms.


@dataclass(frozen=True, slots=True)
class Started:
    voters: tuple[ServerId, ...]
    term: int
    commit_index: int
    applied_index: int
    last_index: int
    last_term: int


@dataclass(frozen=True, slots=True)
class BecameFollower:
    term: int


@dataclass(frozen=True, slots=True)
class BecamePreCandidate:
    term: int


@dataclass(frozen=True, slots=True)
class BecameCandidate:
    term: int


@dataclass(frozen=True, slots=True)
class BecameLeader:
    term: int


@dataclass(frozen=True, slots=True)
class HigherTermSeen:
    term: int
    message: Message
    sender: ServerId
    message_term: int


@dataclass(frozen=True, slots=True)
class LowerTermIgnored:
    term: int
    message: Message
    sender: ServerId
    message_term: int


@dataclass(frozen=True, slots=True)
class StaleStoredIgnored:
    """A write finished in a later term than it began: what it covered may be replaced."""

    term: int
    stored_term: int


@dataclass(frozen=True, slots=True)
class QuorumLost:
    """The leader heard from too few voters and stepped down (thesis 6.2)."""


@dataclass(frozen=True, slots=True)
class RivalIgnored:
    """Another server claims to lead the term that this one leads."""

    term: int
    sender: ServerId


@dataclass(frozen=True, slots=True)
class LeaderForgotten:
    leader: ServerId
    term: int


@dataclass(frozen=True, slots=True)
class ForgetRefused:
    """Lease reads rely on followers who remember their leader."""


# Elections.


@dataclass(frozen=True, slots=True)
class ElectionStarted:
    term: int


@dataclass(frozen=True, slots=True)
class AlreadyLeader:
    """A leader has no reason to campaign."""


@dataclass(frozen=True, slots=True)
class Unpromotable:
    """A server that is no voter, or is still taking in a snapshot, does not campaign."""


@dataclass(frozen=True, slots=True)
class ChangePending:
    """A campaign has to wait until committed changes of the configuration are applied."""

    term: int


@dataclass(frozen=True, slots=True)
class VoteRequested:
    last_term: int
    last_index: int
    pre: bool
    to: ServerId
    term: int


@dataclass(frozen=True, slots=True)
class VoteIgnored:
    """The leader was heard from too recently (thesis 4.2.3)."""

    last_term: int
    last_index: int
    voted_for: ServerId
    request: RequestVote
    candidate: ServerId
    term: int
    ticks_left: int


@dataclass(frozen=True, slots=True)
class VoteCast:
    last_term: int
    last_index: int
    voted_for: ServerId
    request: RequestVote
    candidate: ServerId
    term: int


@dataclass(frozen=True, slots=True)
class VoteRefused:
    last_term: int
    last_index: int
    voted_for: ServerId
    request: RequestVote
    candidate: ServerId
    term: int


@dataclass(frozen=True, slots=True)
class VoteReceived:
    pre: bool
    voter: ServerId
    term: int
    granted: bool


@dataclass(frozen=True, slots=True)
class VotesCounted:
    granted: int
    pre: bool
    refused: int


# Proposals and membership.


@dataclass(frozen=True, slots=True)
class NoLeaderForProposal:
    term: int


@dataclass(frozen=True, slots=True)
class ProposalNotForwarded:
    leader: ServerId
    term: int


@dataclass(frozen=True, slots=True)
class ProposalDuringTransfer:
    term: int
    transferee: ServerId


@dataclass(frozen=True, slots=True)
class UncommittedFull:
    """The uncommitted tail of the log is as long as it may be: a proposal was dropped."""


@dataclass(frozen=True, slots=True)
class ChangeIgnored:
    change: Change
    configuration: Configuration
    reason: ChangeBlocked
    pending_index: int
    applied_index: int


@dataclass(frozen=True, slots=True)
class ChangeInvalid:
    """A committed change makes no sense in this configuration: it does nothing."""

    index: int
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class ConfigurationSwitched:
    configuration: Configuration


@dataclass(frozen=True, slots=True)
class AutoLeaveProposed:
    configuration: Configuration


@dataclass(frozen=True, slots=True)
class AutoLeaveFailed:
    configuration: Configuration


# Replication.


@dataclass(frozen=True, slots=True)
class NoProgress:
    """A message came from a server that the log is not sent to."""

    sender: ServerId


@dataclass(frozen=True, slots=True)
class AppendRejected:
    own_term: int
    index: int
    previous_term: int
    leader: ServerId


@dataclass(frozen=True, slots=True)
class RejectionReceived:
    hint_index: int
    hint_term: int
    follower: ServerId
    index: int


@dataclass(frozen=True, slots=True)
class ProgressDecreased:
    progress: ProgressStatus


@dataclass(frozen=True, slots=True)
class LossNoticed:
    """The leader counts on entries that were here once and are gone."""

    acknowledged_index: int
    last_index: int


@dataclass(frozen=True, slots=True)
class Recovered:
    """All that this server may ever have acknowledged is here again."""

    index: int


@dataclass(frozen=True, slots=True)
class PeerUnreachable:
    progress: ProgressStatus


# Snapshots.


@dataclass(frozen=True, slots=True)
class SnapshotToInactive:
    follower: ServerId


@dataclass(frozen=True, slots=True)
class SnapshotUnavailable:
    follower: ServerId


@dataclass(frozen=True, slots=True)
class SnapshotSent:
    first_index: int
    commit_index: int
    index: int
    term: int
    progress: ProgressStatus


@dataclass(frozen=True, slots=True)
class ReplicationPaused:
    progress: ProgressStatus


@dataclass(frozen=True, slots=True)
class SnapshotArrived:
    """An acknowledgement shows that the follower needs no snapshot any more."""

    progress: ProgressStatus


@dataclass(frozen=True, slots=True)
class SnapshotReported:
    delivered: bool
    progress: ProgressStatus


@dataclass(frozen=True, slots=True)
class SnapshotTimedOut:
    """Nobody said what became of a snapshot: probe again."""

    progress: ProgressStatus


@dataclass(frozen=True, slots=True)
class SnapshotWhileLeading:
    """A leader was told to install a snapshot, which cannot be."""


@dataclass(frozen=True, slots=True)
class SnapshotWithoutUs:
    configuration: Configuration


@dataclass(frozen=True, slots=True)
class SnapshotFastForwarded:
    """The log holds the snapshot's last entry already."""

    commit_index: int
    last_index: int
    last_term: int
    index: int
    term: int


@dataclass(frozen=True, slots=True)
class SnapshotRestored:
    commit_index: int
    last_index: int
    last_term: int
    index: int
    term: int


@dataclass(frozen=True, slots=True)
class SnapshotHandled:
    restored: bool
    commit_index: int
    index: int
    term: int


# Transfer of leadership.


@dataclass(frozen=True, slots=True)
class TransferToLearner:
    """A learner cannot take over."""


@dataclass(frozen=True, slots=True)
class TransferUnderWay:
    term: int
    transferee: ServerId


@dataclass(frozen=True, slots=True)
class TransferReplaced:
    term: int
    transferee: ServerId


@dataclass(frozen=True, slots=True)
class TransferToSelf:
    """The leader already is who it was asked to hand over to."""


@dataclass(frozen=True, slots=True)
class TransferStarted:
    term: int
    transferee: ServerId


@dataclass(frozen=True, slots=True)
class TransferNow:
    transferee: ServerId


@dataclass(frozen=True, slots=True)
class TransferCaughtUp:
    transferee: ServerId


@dataclass(frozen=True, slots=True)
class NoLeaderForTransfer:
    term: int


@dataclass(frozen=True, slots=True)
class TimeoutNowReceived:
    term: int
    leader: ServerId


@dataclass(frozen=True, slots=True)
class TimeoutNowIgnored:
    term: int
    role: Role
    leader: ServerId


@dataclass(frozen=True, slots=True)
class NoLeaderForRead:
    term: int


Trace: TypeAlias = (
    ConflictFound
    | UnstableReplaced
    | UnstableTruncated
    | StableMissing
    | StableWasSnapshot
    | StableMismatched
    | RestoreStarted
    | Started
    | BecameFollower
    | BecamePreCandidate
    | BecameCandidate
    | BecameLeader
    | HigherTermSeen
    | LowerTermIgnored
    | StaleStoredIgnored
    | QuorumLost
    | RivalIgnored
    | LeaderForgotten
    | ForgetRefused
    | ElectionStarted
    | AlreadyLeader
    | Unpromotable
    | ChangePending
    | VoteRequested
    | VoteIgnored
    | VoteCast
    | VoteRefused
    | VoteReceived
    | VotesCounted
    | NoLeaderForProposal
    | ProposalNotForwarded
    | ProposalDuringTransfer
    | UncommittedFull
    | ChangeIgnored
    | ChangeInvalid
    | ConfigurationSwitched
    | AutoLeaveProposed
    | AutoLeaveFailed
    | NoProgress
    | AppendRejected
    | RejectionReceived
    | ProgressDecreased
    | LossNoticed
    | Recovered
    | PeerUnreachable
    | SnapshotToInactive
    | SnapshotUnavailable
    | SnapshotSent
    | ReplicationPaused
    | SnapshotArrived
    | SnapshotReported
    | SnapshotTimedOut
    | SnapshotWhileLeading
    | SnapshotWithoutUs
    | SnapshotFastForwarded
    | SnapshotRestored
    | SnapshotHandled
    | TransferToLearner
    | TransferUnderWay
    | TransferReplaced
    | TransferToSelf
    | TransferStarted
    | TransferNow
    | TransferCaughtUp
    | NoLeaderForTransfer
    | TimeoutNowReceived
    | TimeoutNowIgnored
    | NoLeaderForRead
)
