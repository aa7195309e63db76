"""The two sides of the core's door: events go in, actions come out.

Pure. The shell performs actions in their order; none needs an answer before the next.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

from swarmlet.swim.config import Config
from swarmlet.swim.messages import (
    Address,
    Evidence,
    MemberId,
    Message,
    Ping,
    Record,
    ShortId,
    State,
    UserEvent,
)


# Events: what happened.
@dataclass(frozen=True, slots=True)
class Tick:
    """One tick passed for this process.

    A process that was paused gets one Tick, not a burst. *missed* counts the ticks it
    slept through: evidence about this host, never about its peers. The receive queue is
    drained before it.
    """

    missed: int = 0


@dataclass(frozen=True, slots=True)
class Received:
    """A datagram of *sender*, sealed with the group's key, came from *source*."""

    sender: ShortId
    source: Address
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """The host at *address* answered that nobody listens there (ICMP port unreachable)."""

    address: Address


@dataclass(frozen=True, slots=True)
class StreamAnswered:
    """The target of StreamPing answered on the stream, with the record of itself."""

    sequence: int
    record: Record


@dataclass(frozen=True, slots=True)
class StreamConnected:
    """The host took the connection of StreamPing. That proves its kernel alive, no more."""

    sequence: int


@dataclass(frozen=True, slots=True)
class StreamFailed:
    """STALLED: the connection was taken, and then nothing came until the time was up."""

    sequence: int
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class StreamPinged:
    """Somebody pings us on a stream; answered with one Answer, if the ping is for us."""

    ping: Ping


@dataclass(frozen=True, slots=True)
class Synced:
    """An exchange brought *records* from *peer*. *final*: it was ours and is over."""

    peer: MemberId | None
    records: tuple[Record, ...]
    final: bool = False


@dataclass(frozen=True, slots=True)
class SyncFailed:
    """An exchange that we opened ended without success."""


@dataclass(frozen=True, slots=True)
class Verified:
    """Answers Verify: whether *member* proved at *address* that it is itself."""

    member: MemberId
    address: Address
    genuine: bool


@dataclass(frozen=True, slots=True)
class Join:
    """Contact the members at *addresses*, whoever they are, until one answers."""

    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Leave:
    """Tell everybody that this member goes; LeaveComplete says when that is done."""


@dataclass(frozen=True, slots=True)
class SetKnown:
    """All the members that the store knows, alive or not."""

    members: tuple[tuple[MemberId, Address], ...]


@dataclass(frozen=True, slots=True)
class SetFacts:
    facts: bytes


@dataclass(frozen=True, slots=True)
class SetAddress:
    """This member has a new address (DHCP)."""

    address: Address


@dataclass(frozen=True, slots=True)
class Configure:
    config: Config


@dataclass(frozen=True, slots=True)
class Doubt:
    """Somebody outside has a reason to think that *member* is gone, or back: ask it now."""

    member: MemberId


@dataclass(frozen=True, slots=True)
class Broadcast:
    """A user's event for every member."""

    name: str
    payload: bytes


Event: TypeAlias = (
    Tick
    | Received
    | Refused
    | StreamAnswered
    | StreamConnected
    | StreamFailed
    | StreamPinged
    | Synced
    | SyncFailed
    | Verified
    | Join
    | Leave
    | SetKnown
    | SetFacts
    | SetAddress
    | Configure
    | Doubt
    | Broadcast
)


# Actions: what the shell must do.
@dataclass(frozen=True, slots=True)
class Send:
    """One datagram. May be lost."""

    to: Address
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class StreamPing:
    """Ping *member* on a stream, for *ticks* at most.

    Ends with StreamAnswered or StreamFailed; StreamConnected may come before.
    """

    member: MemberId
    address: Address
    ping: Ping
    ticks: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to the StreamPinged of this step."""

    record: Record


@dataclass(frozen=True, slots=True)
class OpenSync:
    """Exchange tables with *member* at *address*; None: with whomever is there.

    Ends with a final Synced or with SyncFailed, always.
    """

    member: MemberId | None
    address: Address


@dataclass(frozen=True, slots=True)
class Verify:
    """Find out by its certificate whether *member* is at *address*; report Verified."""

    member: MemberId
    address: Address


class Reason(enum.Enum):
    """Why a member's state changed, as this member came to know it."""

    JOINED = "joined"
    UNANSWERED = "probe unanswered"
    REFUSED = "connection refused"
    STALLED = "connected, but nobody serves"
    ACCUSED = "accused by others"
    REFUTED = "refuted"
    TIMEOUT = "suspicion timed out"
    TOLD = "told by others"
    CONFIRMED = "told by others, own probe failed"
    RETURNED = "came back"
    RESTARTED = "restarted"
    UPDATED = "new address or facts"
    LEFT = "left"
    REAPED = "forgotten"


@dataclass(frozen=True, slots=True)
class Changed:
    """What this member holds of *member* changed. None: it was, or is, not in the table.

    *by*: who said so first, where somebody did.
    """

    member: MemberId
    before: State | None
    after: State | None
    reason: Reason
    incarnation: int
    address: Address
    by: ShortId | None = None


@dataclass(frozen=True, slots=True)
class Refuted:
    """Others held this member for *state*; it told them that it lives."""

    state: State
    incarnation: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two that say they are *member* are alive at different addresses.

    The node's identity was copied, or, with *other*, two names have one short id. The
    first address stands until an operator removes one of the two.
    """

    member: MemberId
    held: Address
    claimed: Address
    other: MemberId | None = None


@dataclass(frozen=True, slots=True)
class Paused:
    """This process slept so many ticks; nothing that it missed is held against others."""

    ticks: int


@dataclass(frozen=True, slots=True)
class Delivered:
    """A user's event, for the first and only time."""

    event: UserEvent


@dataclass(frozen=True, slots=True)
class LeaveComplete:
    pass


Action: TypeAlias = (
    Send
    | StreamPing
    | Answer
    | OpenSync
    | Verify
    | Changed
    | Refuted
    | Conflict
    | Paused
    | Delivered
    | LeaveComplete
)
