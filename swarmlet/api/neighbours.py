"""What gossip on this node has to show: members, news of them, counters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import trio


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A node as this node's gossip sees it.

    Attributes:
        since: wall clock of the last change of state; 0: not known.
        rtt: smoothed round trip time in seconds; None before the first answer.
        health: Lifeguard's score of this node itself, 0 is healthy; None for the others.
        reason, by: how it came into this state, and who said so first.
        accusers: who suspects it.
        protocols: least and highest version of the session's protocol that it speaks.
        conflict: the address of another node with the same identity.
    """

    id: str = ""
    name: str
    state: str  # alive, suspect, dead, left
    address: str
    port: int
    incarnation: int = 0
    role: str = ""
    since: float = 0.0
    rtt: float | None = None
    health: int | None = None
    reason: str = ""
    by: str = ""
    accusers: tuple[str, ...] = ()
    version: str = ""
    protocols: tuple[int, int] = (0, 0)
    conflict: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberNews:
    """What is held of *member* changed. An empty state: it was, or is, not known."""

    at: float
    id: str
    name: str
    before: str
    after: str
    reason: str
    by: str
    incarnation: int
    address: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UserNews:
    """A user's event; *clock* is Lamport's, so what caused another event has a lower one."""

    at: float
    name: str
    payload: bytes
    clock: int
    by: str


class Neighbourhood(Protocol):
    def members(self) -> Sequence[Member]: ...

    def counters(self) -> Mapping[str, Any]:
        """Plain values by their names; empty while there is no gossip."""
        ...

    def watch(
        self,
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[MemberNews | UserNews]]: ...

    def broadcast(self, name: str, payload: bytes) -> None:
        """Raises ValueError for what is too long, Unavailable where there is no gossip."""
        ...
