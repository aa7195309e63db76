"""The vocabulary of raft: ids, entries, configurations, and what servers say to each other.

Pure. Field order is part of the wire format: append fields with a default, never reorder. Terms
and indexes start at 1; 0 means "none". A message does not name its sender: the transport knows
who is at the other end of the connection, and a sender's word for it would be worth nothing.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, NewType, TypeAlias

#: A server is one WAL: a random 63-bit number made with it, so that a lost WAL is a new server
#: and nobody votes twice.
ServerId = NewType("ServerId", int)
NOBODY: Final = ServerId(0)

#: Kinds of entries. The data of COMMANDS is the caller's; empty data is a leader's no-op.
COMMANDS: Final = 0
#: The data is a membership.Change; empty data leaves a joint configuration.
CHANGE: Final = 1


class Role(enum.Enum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


@dataclass(frozen=True, slots=True)
class Entry:
    index: int
    term: int
    kind: int = COMMANDS
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class HardState:
    """What must be on disk before anyone hears of it (thesis section 3.8).

    *commit_index* is the exception: it may be lost, a leader tells it again. *recovering*: this
    disk has lost something that may have been acknowledged, and is not made whole yet.
    """

    term: int = 0
    voted_for: ServerId = NOBODY
    commit_index: int = 0
    recovering: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """The caller's note about a server of the configuration, for instance its address."""

    server: ServerId
    context: bytes


@dataclass(frozen=True, slots=True)
class Configuration:
    """Who takes part (thesis chapter 4). Joint while *outgoing* is not empty.

    *learners_next* are voters of the outgoing half who become learners when it is left. All
    tuples are sorted; no server is both voter and learner.
    """

    voters: tuple[ServerId, ...] = ()
    outgoing: tuple[ServerId, ...] = ()
    learners: tuple[ServerId, ...] = ()
    learners_next: tuple[ServerId, ...] = ()
    auto_leave: bool = False
    members: tuple[Member, ...] = ()

    @property
    def joint(self) -> bool:
        return bool(self.outgoing)

    def all_voters(self) -> list[ServerId]:
        """Voters of either half, sorted."""
        return sorted({*self.voters, *self.outgoing})

    def servers(self) -> list[ServerId]:
        """Everybody the log is sent to, sorted."""
        return sorted({*self.voters, *self.outgoing, *self.learners})

    def __contains__(self, server: object) -> bool:
        return server in self.voters or server in self.outgoing or server in self.learners

    def context_of(self, server: ServerId) -> bytes | None:
        return next((m.context for m in self.members if m.server == server), None)


@dataclass(frozen=True, slots=True)
class SnapshotMeta:
    """The state machine after entry *index*; its bytes travel and rest elsewhere."""

    index: int
    term: int
    configuration: Configuration


# Messages: what servers say to each other.
@dataclass(frozen=True, slots=True)
class AppendEntries:
    """Follow my log from (*previous_index*, *previous_term*) on (paper section 5.3)."""

    term: int
    previous_index: int
    previous_term: int
    commit_index: int
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class AppendReply:
    """*index* is on disk here; or, *rejected*: it does not fit, try after *hint_index*."""

    term: int
    index: int = 0
    rejected: bool = False
    hint_index: int = 0
    hint_term: int = 0
    recovering: bool = False


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """I lead. *commit_index* never passes what the receiver has; *read* asks for its echo."""

    term: int
    commit_index: int
    read: int = 0


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    term: int
    read: int = 0
    recovering: bool = False


@dataclass(frozen=True, slots=True)
class RequestVote:
    """May I lead *term*? *pre* only asks (thesis 9.6); *transfer*: the leader wants it (3.10)."""

    term: int
    last_index: int
    last_term: int
    pre: bool = False
    transfer: bool = False


@dataclass(frozen=True, slots=True)
class VoteReply:
    term: int
    pre: bool = False
    rejected: bool = False


@dataclass(frozen=True, slots=True)
class InstallSnapshot:
    """The log you need is gone: take this state (thesis section 5.2)."""

    term: int
    snapshot: SnapshotMeta


@dataclass(frozen=True, slots=True)
class TimeoutNow:
    """Campaign at once: leadership is yours (thesis section 3.10)."""

    term: int


@dataclass(frozen=True, slots=True)
class TransferLeadership:
    """A follower's wish that *transferee* should lead, sent on to the leader."""

    term: int
    transferee: ServerId


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """Which index must a read wait for, to be linearizable (thesis section 6.4)?"""

    context: bytes
    recovering: bool = False


@dataclass(frozen=True, slots=True)
class ReadReply:
    term: int
    index: int
    context: bytes


@dataclass(frozen=True, slots=True)
class Propose:
    """Entries that a follower forwards; index and term are the leader's to give."""

    entries: tuple[Entry, ...]


Message: TypeAlias = (
    AppendEntries
    | AppendReply
    | Heartbeat
    | HeartbeatReply
    | RequestVote
    | VoteReply
    | InstallSnapshot
    | TimeoutNow
    | TransferLeadership
    | ReadRequest
    | ReadReply
    | Propose
)

#: Answers: worthless from a server that the log is not sent to.
REPLIES: Final = (AppendReply, HeartbeatReply, VoteReply, ReadReply)

Envelope: TypeAlias = tuple[ServerId, Message]


#: Terms and indexes beyond it are nonsense, and would overflow what the disk can hold.
NUMBER_MAX: Final = 1 << 62


def is_well_formed(message: Message) -> bool:
    """Say if a message from another server holds what such a message may hold.

    Types are the codec's business; this is about values: a server that sends others is broken
    or hostile, and must not break this one.
    """
    match message:
        case AppendEntries(term, index, previous_term, commit_index, entries):
            if not (_numbers(term, index, previous_term, commit_index) and previous_term <= term):
                return False
            for entry in entries:
                index += 1
                if entry.index != index or not previous_term <= entry.term <= term:
                    return False
                if entry.kind not in (COMMANDS, CHANGE):
                    return False
                previous_term = entry.term
            return index <= NUMBER_MAX
        case AppendReply(term, index, _, hint_index, hint_term):
            return _numbers(term, index, hint_index, hint_term)
        case Heartbeat(term, commit_index, read):
            return _numbers(term, commit_index, read)
        case HeartbeatReply(term, read):
            return _numbers(term, read)
        case RequestVote(term, last_index, last_term):
            return _numbers(term, last_index, last_term) and last_term <= term
        case InstallSnapshot(term, snapshot):
            return _numbers(term, snapshot.index, snapshot.term) and snapshot.index > 0
        case ReadReply(term, index, _):
            return _numbers(term, index)
        case VoteReply(term) | TimeoutNow(term) | TransferLeadership(term):
            return _numbers(term)
        case ReadRequest() | Propose():
            return True


def _numbers(*values: int) -> bool:
    return all(0 <= value <= NUMBER_MAX for value in values)


# Ready: what the core asks of its shell.
@dataclass(frozen=True, slots=True)
class Stored:
    """Hand this back when all that Ready asked to store, and everything before it, is durable."""

    term: int
    index: int = 0
    entry_term: int = 0
    snapshot: SnapshotMeta | None = None


@dataclass(frozen=True, slots=True)
class ReadState:
    """A read asked with *context* may be served once *index* is applied."""

    index: int
    context: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What has to be done now; nothing in it may be left out, and stores keep their order.

    *messages* may leave at once, even before the disk has *entries* (thesis 10.2.1).
    *after_sync* promises what *hard_state*, *entries* and *snapshot* hold, in this and every
    earlier Ready: they leave (or come back, if they are for this server) after the sync. Then
    the core gets *stored*. *committed* goes to the state machine, and then to Raft.applied().
    *snapshot_wanted*: a follower needs a newer snapshot than there is.
    """

    soft_state: tuple[ServerId, Role] | None = None
    hard_state: HardState | None = None
    entries: tuple[Entry, ...] = ()
    snapshot: SnapshotMeta | None = None
    committed: tuple[Entry, ...] = ()
    read_states: tuple[ReadState, ...] = ()
    messages: tuple[Envelope, ...] = ()
    after_sync: tuple[Envelope, ...] = ()
    stored: Stored | None = None
    must_sync: bool = False
    snapshot_wanted: bool = False
