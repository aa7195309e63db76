"""What members say to each other: in sealed datagrams, and in frames of a stream.

Pure. Every message checks itself when it is made and raises ValueError, so that a codec that
builds one from hostile bytes fails there and not inside the state machine. The order of the
unions at the end is part of the protocol: append, never reorder.

Rumours name their subject by eight bytes; only Alive and Record carry the whole name, because
whoever does not know a member cannot use other news of it.
"""

from __future__ import annotations

import enum
import hashlib
import ipaddress
from dataclasses import dataclass
from functools import lru_cache
from typing import NewType, TypeAlias

MemberId = NewType("MemberId", str)
#: First eight bytes of the SHA-256 of a MemberId: what headers and rumours carry.
ShortId = NewType("ShortId", bytes)
#: IP literal and UDP port. Never a host name: a core must not cause a look-up.
Address: TypeAlias = tuple[str, int]

SHORT_ID_BYTES = 8
#: "Whoever you are": the target of a ping that goes to an address, not to a member.
ANYBODY = ShortId(b"")
MEMBER_ID_BYTES_MAX = 64
FACTS_BYTES_MAX = 256
SEQUENCE_MAX = (1 << 32) - 1
#: A boot number fills the high half of an incarnation, refutations the low half.
BOOT_MAX = (1 << 31) - 1
INCARNATION_MAX = (BOOT_MAX << 32) | ((1 << 32) - 1)
#: More accusers than any suspicion timer wants are not worth their bytes.
ACCUSERS_MAX = 8
EVENT_NAME_BYTES_MAX = 32
EVENT_BYTES_MAX = 512
CLOCK_MAX = (1 << 62) - 1
DIGEST_BYTES = 8
#: Records in one frame of an exchange: about 90 KB when each is as large as it may be.
RECORDS_MAX = 256
BUCKETS_MAX = 256


class State(enum.IntEnum):
    """What is held of a member. At equal incarnations the higher state wins."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


class Evidence(enum.IntEnum):
    """What the failed probes of a suspect say beside that nobody answered.

    SILENT: nothing. REFUSED: its host answered that nobody listens there, to two members at
    least; the daemon is gone. STALLED: its host takes connections that nobody serves; the
    daemon is stopped or starved, and may go on.
    """

    SILENT = 0
    REFUSED = 1
    STALLED = 2


@lru_cache(maxsize=1 << 15)
def short_id(member: MemberId) -> ShortId:
    return ShortId(hashlib.sha256(member.encode()).digest()[:SHORT_ID_BYTES])


def first_incarnation(boot: int) -> int:
    """Return the incarnation that a member starts with: it beats all that was said before."""
    return boot << 32


def boot_of(incarnation: int) -> int:
    return incarnation >> 32


@lru_cache(maxsize=1 << 14)
def _usable_host(host: str) -> bool:
    if "%" in host:
        return False  # a scope is another host's interface, and of any length
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        return False
    # A packet to many, sent at a stranger's word, would make this host an amplifier.
    return not (parsed.is_multicast or parsed.is_unspecified or host == "255.255.255.255")


def check_address(address: Address) -> None:
    host, port = address
    if not _usable_host(host):
        raise ValueError(f"{host!r:.60} is no unicast IP address")
    if not 0 < port < 65536:
        raise ValueError(f"port {port} is not in 1 to 65535")


def check_facts(facts: bytes) -> None:
    if len(facts) > FACTS_BYTES_MAX:
        raise ValueError(f"facts of {len(facts)} bytes, at most {FACTS_BYTES_MAX} fit")


def check_member(member: str) -> None:
    if not 0 < len(member.encode(errors="replace")) <= MEMBER_ID_BYTES_MAX:
        raise ValueError(f"a member id of {len(member)} characters")
    if not member.isprintable():
        raise ValueError("a member id that cannot be printed")


def _check_short(member: bytes) -> None:
    if len(member) != SHORT_ID_BYTES:
        raise ValueError(f"a short id of {len(member)} bytes")


def _check_incarnation(incarnation: int) -> None:
    if not 0 <= incarnation <= INCARNATION_MAX:
        raise ValueError(f"incarnation {incarnation} is out of range")


def _check_sequence(sequence: int) -> None:
    if not 0 <= sequence <= SEQUENCE_MAX:
        raise ValueError(f"sequence {sequence} is out of range")


# Questions and answers. A sequence ties an answer to one question of one member.


@dataclass(frozen=True, slots=True)
class Ping:
    """Probe: *target* answers with an Ack of the same sequence, anybody else is silent.

    It also says what the sender holds of the target, so that a suspect can refute at once
    (Lifeguard's buddy system) and a sender with old knowledge is told.
    """

    sequence: int
    target: ShortId
    incarnation: int = 0
    state: State = State.ALIVE

    def __post_init__(self) -> None:
        _check_sequence(self.sequence)
        if self.target != ANYBODY:
            _check_short(self.target)
        _check_incarnation(self.incarnation)


@dataclass(frozen=True, slots=True)
class Ack:
    """Answer of the target, or of a helper who had it from the target."""

    sequence: int
    incarnation: int

    def __post_init__(self) -> None:
        _check_sequence(self.sequence)
        _check_incarnation(self.incarnation)


@dataclass(frozen=True, slots=True)
class PingReq:
    """Please ping *target* for me (SWIM section 3.1).

    Without an address: a helper pings only whom it knows, so nobody can aim it at a stranger.
    """

    sequence: int
    target: ShortId
    incarnation: int
    state: State = State.ALIVE

    def __post_init__(self) -> None:
        _check_sequence(self.sequence)
        _check_short(self.target)
        _check_incarnation(self.incarnation)


@dataclass(frozen=True, slots=True)
class Nack:
    """A helper's "I tried": the asker is well connected (Lifeguard's local health).

    *refused*: the target's host answered that nobody listens there.
    """

    sequence: int
    refused: bool = False

    def __post_init__(self) -> None:
        _check_sequence(self.sequence)


# Rumours.


@dataclass(frozen=True, slots=True)
class Alive:
    member: MemberId
    incarnation: int
    address: Address
    facts: bytes = b""

    def __post_init__(self) -> None:
        check_member(self.member)
        _check_incarnation(self.incarnation)
        check_address(self.address)
        check_facts(self.facts)


@dataclass(frozen=True, slots=True)
class Suspect:
    """*accusers* each found the member unreachable by a probe of their own.

    All of them stand in one rumour, so that a newer rumour replaces an older one without
    losing a confirmation.
    """

    member: ShortId
    incarnation: int
    accusers: tuple[ShortId, ...]
    evidence: Evidence = Evidence.SILENT

    def __post_init__(self) -> None:
        _check_short(self.member)
        _check_incarnation(self.incarnation)
        if not 0 < len(self.accusers) <= ACCUSERS_MAX:
            raise ValueError(f"{len(self.accusers)} accusers")
        for accuser in self.accusers:
            _check_short(accuser)


@dataclass(frozen=True, slots=True)
class Dead:
    member: ShortId
    incarnation: int
    by: ShortId

    def __post_init__(self) -> None:
        _check_short(self.member)
        _check_incarnation(self.incarnation)
        _check_short(self.by)


@dataclass(frozen=True, slots=True)
class Left:
    """The member itself said that it goes."""

    member: ShortId
    incarnation: int

    def __post_init__(self) -> None:
        _check_short(self.member)
        _check_incarnation(self.incarnation)


@dataclass(frozen=True, slots=True)
class UserEvent:
    """A user's small broadcast, delivered at most once, ordered by a Lamport clock."""

    clock: int
    origin: ShortId
    name: str
    payload: bytes = b""

    def __post_init__(self) -> None:
        if not 0 < self.clock <= CLOCK_MAX:
            raise ValueError(f"clock {self.clock} is out of range")
        _check_short(self.origin)
        if not 0 < len(self.name.encode(errors="replace")) <= EVENT_NAME_BYTES_MAX:
            raise ValueError(f"an event name of {len(self.name)} characters")
        if len(self.payload) > EVENT_BYTES_MAX:
            raise ValueError(f"a payload of {len(self.payload)} bytes")


# Anti-entropy, on streams.


@dataclass(frozen=True, slots=True)
class Record:
    """All that a member holds of another. *age*: ticks since it is dead or left, else 0."""

    member: MemberId
    incarnation: int
    state: State
    address: Address
    facts: bytes = b""
    age: int = 0

    def __post_init__(self) -> None:
        check_member(self.member)
        _check_incarnation(self.incarnation)
        check_address(self.address)
        check_facts(self.facts)
        if not 0 <= self.age < 1 << 48:
            raise ValueError(f"age {self.age} is out of range")


@dataclass(frozen=True, slots=True)
class SyncDigest:
    """Opens an exchange: a digest for each bucket of the sender's table (antientropy.py)."""

    sender: Record
    digests: bytes

    def __post_init__(self) -> None:
        count, rest = divmod(len(self.digests), DIGEST_BYTES)
        if rest or not 0 < count <= BUCKETS_MAX or count & (count - 1):
            raise ValueError(f"digests of {len(self.digests)} bytes")


@dataclass(frozen=True, slots=True)
class SyncRecords:
    """Records, and in the answer's first frame the numbers of the buckets that differ."""

    records: tuple[Record, ...]
    buckets: bytes = b""
    more: bool = False

    def __post_init__(self) -> None:
        if len(self.records) > RECORDS_MAX:
            raise ValueError(f"{len(self.records)} records in one frame")
        if len(self.buckets) > BUCKETS_MAX:
            raise ValueError(f"{len(self.buckets)} buckets")


#: In datagrams. Append only.
Rumour: TypeAlias = Alive | Suspect | Dead | Left | UserEvent
Message: TypeAlias = Ping | Ack | PingReq | Nack | Alive | Suspect | Dead | Left | UserEvent
#: In frames of a stream. Append only.
StreamMessage: TypeAlias = Ping | SyncDigest | SyncRecords


def size_of(message: Message) -> int:
    """Return how many bytes *message* takes in a datagram, rather too many than too few.

    Good for any codec that spends at most eight bytes on framing a message, and on a field
    what msgpack does.
    """
    match message:
        case Ping():
            return 8 + 5 + 10 + 9 + 1
        case Ack():
            return 8 + 5 + 9
        case PingReq():
            return 8 + 5 + 10 + 9 + 1
        case Nack():
            return 8 + 5 + 1
        case Alive(member, _, (host, _), facts):
            return 8 + 2 + len(member.encode()) + 9 + 1 + 2 + len(host) + 3 + 3 + len(facts)
        case Suspect(_, _, accusers):
            return 8 + 10 + 9 + 1 + 10 * len(accusers) + 1
        case Dead():
            return 8 + 10 + 9 + 10
        case Left():
            return 8 + 10 + 9
        case UserEvent(_, _, name, payload):
            return 8 + 9 + 10 + 2 + len(name.encode()) + 3 + len(payload)
