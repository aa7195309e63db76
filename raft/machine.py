"""What a replica needs from the outside: a state machine to feed, a transport to speak through.

And what it says to its callers. Pure: protocols and values.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from raft.messages import Configuration, Message, Role, ServerId
from raft.progress import ProgressStatus
from raft.snapshots import SnapshotHeader


class StateMachine(Protocol):
    """The replicated state. Called from the Trio thread, one call at a time, in log order."""

    def apply(self, index: int, position: int, term: int, command: bytes) -> object:
        """Apply *command*, the *position*-th of entry *index*; return the proposer's result.

        Deterministic: every server gets the same commands in the same order, and must come to
        the same state. Never raises: a command that makes no sense changes nothing.
        """

    def snapshot(self) -> Callable[[], bytes]:
        """Capture the state now, at little cost; the callable encodes it in a worker thread."""

    def restore(self, index: int, data: bytes) -> None:
        """Replace the state by what snapshot() encoded after entry *index*."""


class Transport(Protocol):
    """Carries messages between servers. Knows who is at the other end of each connection."""

    def send(self, to: ServerId, message: Message) -> None:
        """Send soon, or drop; never block. Drops are reported with report_unreachable()."""

    async def send_snapshot(
        self, to: ServerId, header: SnapshotHeader, chunks: AsyncIterator[bytes]
    ) -> None:
        """Deliver a snapshot to Replica.receive_snapshot() at *to*; return when it has it.

        Raises:
            OSError: it did not arrive.
        """


# What becomes of a proposal.
@dataclass(frozen=True, slots=True)
class Committed:
    """The command is in the log for good, and was applied here with *result*."""

    index: int
    position: int
    term: int
    result: object


@dataclass(frozen=True, slots=True)
class Dropped:
    """The command is in no log and never will be. *leader* may take it, if one is known."""

    reason: str
    leader: ServerId | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """The command was sent on its way and may or may not take effect."""

    reason: str


Outcome: TypeAlias = Committed | Dropped | Unknown


class NotLeader(Exception):
    """Only the leader can do this; *leader* is who that is, as far as this server knows."""

    def __init__(self, leader: ServerId | None) -> None:
        known = f"server {leader} leads" if leader else "no leader is known"
        super().__init__(f"this server does not lead: {known}")
        self.leader = leader


class ChangeRefused(Exception):
    """The configuration was not changed; the text says why and what would help."""


class TransferFailed(Exception):
    """Leadership stayed where it was."""


class ReadTimedOut(Exception):
    """No leader confirmed the read in time; what it would have returned is not known."""


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """A frozen look at one server. Indexes move on all the time; roles seldom."""

    server: ServerId
    term: int
    role: Role
    leader: ServerId | None
    commit_index: int
    applied_index: int
    first_index: int
    last_index: int
    last_term: int
    configuration: Configuration
    progress: tuple[ProgressStatus, ...]  # of the followers, while this server leads
    disk_full: bool
    #: The disk has lost something, and no leader has made it whole yet: no votes until then.
    recovering: bool
    snapshot_index: int
    log_bytes_written: int

    @property
    def voters(self) -> tuple[ServerId, ...]:
        return self.configuration.voters

    @property
    def learners(self) -> tuple[ServerId, ...]:
        return self.configuration.learners

    @property
    def leads(self) -> bool:
        return self.role is Role.LEADER
