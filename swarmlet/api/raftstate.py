"""How a manager's copy of the state stands, and the way out when most managers are lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class RaftState:
    """One manager's server of Raft. Indexes count entries of the log."""

    server: int = 0
    role: str = ""  # leader, follower, candidate, learner; "" while it takes no part
    leader: bool = False  # whether it leads or hears from who does
    term: int = 0
    commit_index: int = 0
    last_index: int = 0
    last_term: int = 0
    voters: int = 0
    #: The disk has lost something, and the others have not made it whole yet.
    recovering: bool = False
    disk_full: bool = False
    fault: str = ""  # why it takes no part, and what to do


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherManager:
    """What another manager says of itself; *error* if it cannot be asked."""

    name: str
    address: str
    state: RaftState = RaftState()
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What is here, and what is known of the others."""

    here: RaftState
    others: tuple[OtherManager, ...] = ()
    damage: str = ""  # of the log here


class Recovery(Protocol):
    def state(self) -> RaftState:
        """Raises Unavailable: this node is no manager."""
        ...

    async def survey(self) -> Survey:
        """Look at this manager's log, and ask the others for theirs. Raises Unavailable."""
        ...

    async def recover(self, *, force: bool) -> None:
        """Make this manager the only one, with what it has.

        Raises:
            Conflicting: a leader is there, so nothing needs to be recovered (unless *force*).
        """
        ...
