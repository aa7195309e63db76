"""The core's messages, entries and traces in etcd-raft's words.

Here, and nowhere else, stands another project's wording, so that its data files can be compared
byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raft import trace as t
from raft.membership import Change, ChangeKind, Refusal, ServerChange, Transition, decode_change
from raft.messages import (
    CHANGE,
    NOBODY,
    AppendEntries,
    AppendReply,
    Configuration,
    Entry,
    HardState,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Propose,
    ReadReply,
    ReadRequest,
    Ready,
    RequestVote,
    Role,
    ServerId,
    SnapshotMeta,
    Stored,
    TimeoutNow,
    TransferLeadership,
    VoteReply,
)
from raft.progress import Pace, ProgressStatus

APPEND_THREAD = ServerId((1 << 64) - 1)
APPLY_THREAD = ServerId((1 << 64) - 2)
#: Context of a change that was proposed in etcd's older form.
V1 = b"v1"


@dataclass(frozen=True, slots=True)
class StorageAppend:
    """What a Ready asks of the append thread."""

    hard_state: HardState | None
    entries: tuple[Entry, ...]
    snapshot: SnapshotMeta | None
    responses: tuple[InFlight, ...]


@dataclass(frozen=True, slots=True)
class StorageApply:
    """What a Ready asks of the apply thread."""

    entries: tuple[Entry, ...]
    responses: tuple[InFlight, ...]


@dataclass(frozen=True, slots=True)
class Applied:
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class InFlight:
    """A message on its way, from one server or thread to another."""

    sender: ServerId
    to: ServerId
    message: Any

    @property
    def local(self) -> bool:
        threads = (APPEND_THREAD, APPLY_THREAD)
        return self.sender == self.to or self.sender in threads or self.to in threads


ROLES = {
    Role.FOLLOWER: "StateFollower",
    Role.CANDIDATE: "StateCandidate",
    Role.LEADER: "StateLeader",
    Role.PRE_CANDIDATE: "StatePreCandidate",
}
PACES = {
    Pace.PROBE: "StateProbe",
    Pace.REPLICATE: "StateReplicate",
    Pace.SNAPSHOT: "StateSnapshot",
}
LETTERS = {
    ChangeKind.ADD_VOTER: "v",
    ChangeKind.ADD_LEARNER: "l",
    ChangeKind.REMOVE: "r",
    ChangeKind.UPDATE: "u",
}
CHANGE_KINDS = {
    ChangeKind.ADD_VOTER: "ConfChangeAddNode",
    ChangeKind.REMOVE: "ConfChangeRemoveNode",
    ChangeKind.UPDATE: "ConfChangeUpdateNode",
    ChangeKind.ADD_LEARNER: "ConfChangeAddLearnerNode",
}
TRANSITIONS = {
    Transition.AUTO: "ConfChangeTransitionAuto",
    Transition.JOINT_IMPLICIT: "ConfChangeTransitionJointImplicit",
    Transition.JOINT_EXPLICIT: "ConfChangeTransitionJointExplicit",
}
REFUSALS = {
    Refusal.ALREADY_JOINT: "config is already joint",
    Refusal.NOT_JOINT: "can't leave a non-joint config",
    Refusal.SIMPLE_WHILE_JOINT: "can't apply simple config change in joint config",
    Refusal.NO_VOTERS: "removed all voters",
    Refusal.NO_VOTERS_YET: "can't make a zero-voter config joint",
    Refusal.MANY_VOTERS: "more than one voter changed without entering joint config",
}
BLOCKED = {
    t.ChangeBlocked.JOINT: "must transition out of joint config first",
    t.ChangeBlocked.NOT_JOINT: "not in joint state; refusing empty conf change",
}


def message_type(message: Any) -> str:
    match message:
        case RequestVote(pre=pre):
            return "MsgPreVote" if pre else "MsgVote"
        case VoteReply(pre=pre):
            return "MsgPreVoteResp" if pre else "MsgVoteResp"
    return MESSAGE_TYPES[type(message)]


MESSAGE_TYPES: dict[type, str] = {
    AppendEntries: "MsgApp",
    AppendReply: "MsgAppResp",
    Heartbeat: "MsgHeartbeat",
    HeartbeatReply: "MsgHeartbeatResp",
    InstallSnapshot: "MsgSnap",
    TimeoutNow: "MsgTimeoutNow",
    TransferLeadership: "MsgTransferLeader",
    ReadRequest: "MsgReadIndex",
    ReadReply: "MsgReadIndexResp",
    Propose: "MsgProp",
    StorageAppend: "MsgStorageAppend",
    Stored: "MsgStorageAppendResp",
    StorageApply: "MsgStorageApply",
    Applied: "MsgStorageApplyResp",
}


def quoted(data: bytes) -> str:
    return '"' + data.decode() + '"'


def changes_text(changes: Sequence[ServerChange]) -> str:
    return " ".join(f"{LETTERS[c.kind]}{c.server}" for c in changes)


def is_v1(change: Change) -> bool:
    return any(c.context == V1 for c in change.changes)


def describe_entry(entry: Entry) -> str:
    if entry.kind == CHANGE:
        change = decode_change(entry.data)
        kind = "EntryConfChange" if is_v1(change) else "EntryConfChangeV2"
        shown = changes_text(change.changes)
    else:
        kind, shown = "EntryNormal", quoted(entry.data)
    return f"{entry.term}/{entry.index} {kind}" + (f" {shown}" if shown else "")


def describe_entries(entries: Sequence[Entry]) -> str:
    return "".join(describe_entry(entry) + "\n" for entry in entries)


def ids(servers: Sequence[ServerId], separator: str = " ") -> str:
    return separator.join(str(server) for server in servers)


def describe_conf_state(c: Configuration) -> str:
    return (
        f"Voters:[{ids(c.voters)}] VotersOutgoing:[{ids(c.outgoing)}] "
        f"Learners:[{ids(c.learners)}] LearnersNext:[{ids(c.learners_next)}] "
        f"AutoLeave:{str(c.auto_leave).lower()}"
    )


def describe_snapshot(snapshot: SnapshotMeta) -> str:
    conf_state = describe_conf_state(snapshot.configuration)
    return f"Index:{snapshot.index} Term:{snapshot.term} ConfState:{conf_state}"


def describe_configuration(c: Configuration) -> str:
    text = f"voters=({ids(c.voters)})"
    if c.outgoing:
        text += f"&&({ids(c.outgoing)})"
    if c.learners:
        text += f" learners=({ids(c.learners)})"
    if c.learners_next:
        text += f" learners_next=({ids(c.learners_next)})"
    return text + (" autoleave" if c.auto_leave else "")


def describe_progress(p: ProgressStatus) -> str:
    text = f"{PACES[p.pace]} match={p.match_index} next={p.next_index}"
    if p.learner:
        text += " learner"
    if p.paused:
        text += " paused"
    if p.pending_snapshot:
        text += f" pendingSnap={p.pending_snapshot}"
    if not p.recent_active:
        text += " inactive"
    if p.in_flight:
        text += f" inflight={p.in_flight}" + ("[full]" if p.window_full else "")
    return text


def describe_target(server: ServerId) -> str:
    names = {NOBODY: "None", APPEND_THREAD: "AppendThread", APPLY_THREAD: "ApplyThread"}
    return names.get(server, f"{server:x}")


def describe_hard_state(state: HardState) -> str:
    vote = f" Vote:{state.voted_for}" if state.voted_for else ""
    return f"Term:{state.term}{vote} Commit:{state.commit_index}"


@dataclass(slots=True)
class Fields:
    """A message in the fields that all of etcd's messages share."""

    term: int = 0
    log_term: int = 0
    index: int = 0
    rejected: bool = False
    hint: int = 0
    commit: int = 0
    vote: int = 0
    entries: tuple[Entry, ...] = ()
    snapshot: SnapshotMeta | None = None
    responses: tuple[InFlight, ...] = ()


def fields_of(message: Any) -> Fields:
    match message:
        case AppendEntries(term, index, log_term, commit, entries):
            return Fields(term, log_term, index, commit=commit, entries=entries)
        case AppendReply(term, index, rejected, hint, hint_term):
            return Fields(term, hint_term, index, rejected, hint)
        case Heartbeat(term, commit):
            return Fields(term, commit=commit)
        case HeartbeatReply(term) | TimeoutNow(term) | TransferLeadership(term):
            return Fields(term)
        case RequestVote(term, index, log_term):
            return Fields(term, log_term, index)
        case VoteReply(term, _, rejected):
            return Fields(term, rejected=rejected)
        case InstallSnapshot(term, snapshot):
            return Fields(term, snapshot=snapshot)
        case ReadReply(term, index, _):
            return Fields(term, index=index)
        case ReadRequest():
            return Fields()
        case Propose(entries) | Applied(entries):
            return Fields(entries=entries)
        case Stored(term, index, entry_term, snapshot):
            return Fields(term, entry_term, index, snapshot=snapshot)
        case StorageAppend(state, entries, snapshot, responses):
            state = state or HardState()
            return Fields(
                state.term,
                commit=state.commit_index,
                vote=state.voted_for,
                entries=entries,
                snapshot=snapshot,
                responses=responses,
            )
        case StorageApply(entries, responses):
            return Fields(entries=entries, responses=responses)
    raise AssertionError(message)


def describe_message(m: InFlight, indent: str = "", *, responses: bool = True) -> str:
    f = fields_of(m.message)
    sender = m.sender
    if isinstance(m.message, TransferLeadership):
        sender = m.message.transferee  # etcd names the wanted leader as the sender
    text = (
        f"{indent}{describe_target(sender)}->{describe_target(m.to)} {message_type(m.message)} "
        f"Term:{f.term} Log:{f.log_term}/{f.index}"
    )
    if f.rejected:
        text += f" Rejected (Hint: {f.hint})"
    if f.commit:
        text += f" Commit:{f.commit}"
    if f.vote:
        text += f" Vote:{f.vote}"
    if len(f.entries) == 1:
        text += f" Entries:[{describe_entry(f.entries[0])}]"
    elif f.entries:
        lines = "".join(f"\n{indent}  {describe_entry(entry)}" for entry in f.entries)
        text += f" Entries:[{lines}\n{indent}]"
    if f.snapshot is not None:
        text += f"\n{indent}  Snapshot: {describe_snapshot(f.snapshot)}"
    if f.responses and responses:
        lines = "".join("\n" + describe_message(r, indent + "  ") for r in f.responses)
        text += f" Responses:[{lines}\n{indent}]"
    return text


def describe_ready(ready: Ready, messages: Sequence[InFlight]) -> str:
    text = ""
    if ready.soft_state:
        leader, role = ready.soft_state
        text += f"Lead:{leader} State:{ROLES[role]}\n"
    if ready.hard_state:
        text += f"HardState {describe_hard_state(ready.hard_state)}\n"
    if ready.read_states:
        states = " ".join(
            f"{{{s.index} [{' '.join(map(str, s.context))}]}}" for s in ready.read_states
        )
        text += f"ReadStates [{states}]\n"
    if ready.entries:
        text += "Entries:\n" + describe_entries(ready.entries)
    if ready.snapshot:
        text += f"Snapshot {describe_snapshot(ready.snapshot)}\n"
    if ready.committed:
        text += "CommittedEntries:\n" + describe_entries(ready.committed)
    if messages:
        text += "Messages:\n" + "".join(describe_message(m) + "\n" for m in messages)
    if not text:
        return "<empty Ready>"
    return f"Ready MustSync={str(ready.must_sync).lower()}:\n{text}"


def describe_change(change: Change) -> str:
    """A change as protobuf prints it."""
    if is_v1(change):
        (only,) = change.changes
        return f"type:{CHANGE_KINDS[only.kind]} node_id:{only.server}"
    changes = "".join(
        f" changes:{{type:{CHANGE_KINDS[c.kind]} node_id:{c.server}}}" for c in change.changes
    )
    return f"transition:{TRANSITIONS[change.transition]}{changes}"
