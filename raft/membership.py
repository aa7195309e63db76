"""Changes of the configuration: one voter at a time, or any number by joint consensus.

Pure (thesis chapter 4). A Change travels as the data of an entry and takes effect when that
entry is applied; change_configuration() is the whole rule. A change that makes no sense raises
InvalidChange, the same on every server, and the core treats such an entry as a no-op.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import msgpack

from raft.messages import NOBODY, Configuration, Member, ServerId


class ChangeKind(enum.IntEnum):
    """Numbers are part of the log format."""

    ADD_VOTER = 0
    REMOVE = 1
    UPDATE = 2
    ADD_LEARNER = 3


class Transition(enum.IntEnum):
    """How to get from one configuration to the next; numbers are part of the log format."""

    #: One change is made simply, more by joint consensus that is left automatically.
    AUTO = 0
    #: Joint consensus, left automatically.
    JOINT_IMPLICIT = 1
    #: Joint consensus, left by an empty Change that somebody proposes.
    JOINT_EXPLICIT = 2


@dataclass(frozen=True, slots=True)
class ServerChange:
    """*context* replaces the caller's note about the server, if it is not empty."""

    kind: ChangeKind
    server: ServerId
    context: bytes = b""


@dataclass(frozen=True, slots=True)
class Change:
    """What one entry changes. Without changes and transition it leaves a joint configuration."""

    changes: tuple[ServerChange, ...] = ()
    transition: Transition = Transition.AUTO

    @property
    def leaves_joint(self) -> bool:
        return not self.changes and self.transition is Transition.AUTO

    @property
    def enters_joint(self) -> bool:
        return self.transition is not Transition.AUTO or len(self.changes) > 1


class Refusal(enum.Enum):
    """Why a change cannot be made."""

    ALREADY_JOINT = "the configuration is already joint"
    NOT_JOINT = "the configuration is not joint, so there is nothing to leave"
    SIMPLE_WHILE_JOINT = "a simple change cannot be made while the configuration is joint"
    NO_VOTERS = "no voters would remain"
    NO_VOTERS_YET = "a configuration without voters cannot become joint"
    MANY_VOTERS = "more than one voter would change without joint consensus"
    UNREADABLE = "the entry holds no change that this version can read"


class InvalidChange(Exception):
    """The change cannot be made in this configuration; nothing was changed."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.value)
        self.refusal = refusal


def encode_change(change: Change) -> bytes:
    """Return the data of an entry; leaving a joint configuration is free of data."""
    if change.leaves_joint:
        return b""
    changes = [[int(c.kind), c.server, c.context] for c in change.changes]
    data: bytes = msgpack.packb([int(change.transition), changes])
    return data


def decode_change(data: bytes) -> Change:
    """Return the Change in *data*, which a server of any version may have written.

    Raises:
        InvalidChange: it is none that this version knows.
    """
    if not data:
        return Change()
    try:
        transition, changes = msgpack.unpackb(data)
        return Change(
            tuple(
                ServerChange(ChangeKind(kind), ServerId(int(server)), bytes(context))
                for kind, server, context in changes
            ),
            Transition(transition),
        )
    except (ValueError, TypeError, msgpack.UnpackException) as exc:
        raise InvalidChange(Refusal.UNREADABLE) from exc


@dataclass(frozen=True, slots=True)
class Changed:
    """The next configuration. *fresh* servers start with no known progress."""

    configuration: Configuration
    fresh: frozenset[ServerId]


def change_configuration(current: Configuration, change: Change) -> Changed:
    """Return what *change* makes of *current*.

    Raises:
        InvalidChange: it cannot be made there.
    """
    if change.leaves_joint:
        return leave_joint(current)
    if change.enters_joint:
        return enter_joint(
            current, change.changes, auto_leave=change.transition is not Transition.JOINT_EXPLICIT
        )
    return simple_change(current, change.changes)


def simple_change(current: Configuration, changes: tuple[ServerChange, ...]) -> Changed:
    """Change at most one voter: two majorities that differ by one server overlap (thesis 4.1)."""
    if current.joint:
        raise InvalidChange(Refusal.SIMPLE_WHILE_JOINT)
    draft = _Draft(current)
    draft.apply(changes)
    if len(draft.voters.symmetric_difference(current.voters)) > 1:
        raise InvalidChange(Refusal.MANY_VOTERS)
    return draft.finish(auto_leave=False)


def enter_joint(
    current: Configuration, changes: tuple[ServerChange, ...], *, auto_leave: bool
) -> Changed:
    """Make *changes* while the voters of *current* stay as the outgoing half (thesis 4.3)."""
    if current.joint:
        raise InvalidChange(Refusal.ALREADY_JOINT)
    if not current.voters:
        raise InvalidChange(Refusal.NO_VOTERS_YET)
    draft = _Draft(current)
    draft.outgoing = set(current.voters)
    draft.apply(changes)
    return draft.finish(auto_leave=auto_leave)


def leave_joint(current: Configuration) -> Changed:
    """Drop the outgoing half; those waiting to be learners become learners."""
    if not current.joint:
        raise InvalidChange(Refusal.NOT_JOINT)
    draft = _Draft(current)
    draft.learners |= draft.learners_next
    draft.learners_next = set()
    draft.outgoing = set()
    draft.tracked = draft.voters | draft.learners
    return draft.finish(auto_leave=False)


class _Draft:
    """A configuration while it is being changed.

    *tracked* are the servers that the log is sent to: a voter who was removed from the incoming
    half stays tracked, and keeps its progress, for as long as the outgoing half needs it.
    """

    def __init__(self, current: Configuration) -> None:
        self.voters = set(current.voters)
        self.outgoing = set(current.outgoing)
        self.learners = set(current.learners)
        self.learners_next = set(current.learners_next)
        self.contexts = {member.server: member.context for member in current.members}
        self.tracked = self.voters | self.outgoing | self.learners
        self.fresh: set[ServerId] = set()

    def apply(self, changes: tuple[ServerChange, ...]) -> None:
        for change in changes:
            server = change.server
            if server == NOBODY:
                continue
            match change.kind:
                case ChangeKind.ADD_VOTER:
                    self._add_voter(server)
                case ChangeKind.ADD_LEARNER:
                    self._add_learner(server)
                case ChangeKind.REMOVE:
                    self._remove(server)
                case ChangeKind.UPDATE:
                    pass
            if change.context and change.kind is not ChangeKind.REMOVE:
                self.contexts[server] = change.context
        if not self.voters:
            raise InvalidChange(Refusal.NO_VOTERS)

    def _add_voter(self, server: ServerId) -> None:
        self._track(server)
        self.learners.discard(server)
        self.learners_next.discard(server)
        self.voters.add(server)

    def _add_learner(self, server: ServerId) -> None:
        if server in self.learners:
            return
        self.voters.discard(server)
        self.learners_next.discard(server)
        self._track(server)
        # A voter of the outgoing half cannot be a learner too: it waits until that half is left.
        if server in self.outgoing:
            self.learners_next.add(server)
        else:
            self.learners.add(server)

    def _remove(self, server: ServerId) -> None:
        self.voters.discard(server)
        self.learners.discard(server)
        self.learners_next.discard(server)
        if server not in self.outgoing:
            self.tracked.discard(server)

    def _track(self, server: ServerId) -> None:
        if server not in self.tracked:
            self.tracked.add(server)
            self.fresh.add(server)

    def finish(self, *, auto_leave: bool) -> Changed:
        configuration = Configuration(
            voters=tuple(sorted(self.voters)),
            outgoing=tuple(sorted(self.outgoing)),
            learners=tuple(sorted(self.learners)),
            learners_next=tuple(sorted(self.learners_next)),
            auto_leave=auto_leave,
            members=tuple(
                Member(server, context)
                for server, context in sorted(self.contexts.items())
                if server in self.tracked
            ),
        )
        check_configuration(configuration)
        return Changed(configuration, frozenset(self.fresh & self.tracked))


def check_configuration(configuration: Configuration) -> None:
    """Assert what holds in every configuration, however it came to be."""
    voters = {*configuration.voters, *configuration.outgoing}
    assert not voters.intersection(configuration.learners), configuration
    assert set(configuration.learners_next) <= set(configuration.outgoing), configuration
    if not configuration.joint:
        assert not configuration.learners_next, configuration
        assert not configuration.auto_leave, configuration
