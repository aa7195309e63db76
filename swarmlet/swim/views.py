"""What Gossip shows to the rest of the daemon: frozen values."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from swarmlet.swim.events import Conflict, Reason
from swarmlet.swim.messages import Address, MemberId, State


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberView:
    """What this member holds of one member, itself included.

    Attributes:
        since: seconds it has been in this state, as far as is known here.
        rtt: smoothed round trip time in seconds; None before the first answer.
        reason: why it is in this state.
        by: who said so first; None when nobody did or he is unknown.
        accusers: who suspects it.
    """

    state: State
    incarnation: int
    address: Address
    facts: bytes
    since: float
    rtt: float | None
    reason: Reason | None = None
    by: MemberId | None = None
    accusers: tuple[MemberId, ...] = ()

    @property
    def alive(self) -> bool:
        """Not declared dead, and not gone; a suspect counts as alive (SWIM section 4.2)."""
        return self.state in (State.ALIVE, State.SUSPECT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One change of what is held of *member*. None: it was, or is, not known."""

    member: MemberId
    before: State | None
    after: State | None
    reason: Reason
    incarnation: int
    address: Address
    by: MemberId | None = None


class Reachability(enum.Enum):
    """The outcome of one ping. Only ALIVE proves anything; a firewall can refuse."""

    ALIVE = "alive"
    REFUSED = "refused"
    SILENT = "silent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Counters since the start, and the present lengths of what can grow."""

    members: Mapping[State, int]
    health: int
    rumours_queued: int
    rumours_dropped: int
    suspicions: int
    streams_open: int
    packets_sent: int
    packets_received: int
    bytes_sent: int
    bytes_received: int
    send_errors: int
    #: Packets that the budget of bytes kept back.
    held_back: int
    #: Received packets that were not taken, by the reason (sealing.BadPacket.kind).
    rejected: Mapping[str, int]
    refusals: int
    syncs: int
    syncs_failed: int
    refutations: int
    pauses: int
    ticks_missed: int
    #: Transitions that a slow subscriber did not get.
    transitions_lost: int
    #: Members whose identity runs twice, by the latest evidence.
    conflicts: tuple[Conflict, ...]
