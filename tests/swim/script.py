"""The language of the golden scripts: one member, what happens to it, what it does.

    member a period=10 ack_timeout=5 ...   the member under test; keys are Config's fields
    alive b c d                            each tells that it is alive, at incarnation 1.0
    tick 10 / pause 100                    time; time that the process slept through
    receive b: ack 1; suspect c 1.0 by b   a packet of b, messages as they are printed
    refused b                              ICMP port unreachable from b's host
    stream-answered 3 b 1.0 / stream-connected 3 / stream-failed 3 [refused or stalled]
    stream-ping 9 a 1.0 suspect            somebody pings us on a stream
    sync b: alive c 1.0; dead d 1.0        records from an exchange with b
    verified b at b / unverified b at b2   the outcome of a verify
    join b / leave / known b c / doubt b / facts text / move a2 / event name text
    configure period=20                    change settings
    table / health / queue                 print what the member holds

Incarnations read boot.number. A name ending in a digit is another address of the same member.
A word `hide gossip` keeps packets that carry only rumours out of the output, `show gossip`
brings them back.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable

from swarmlet.swim.config import Config
from swarmlet.swim.core import Swim
from swarmlet.swim.events import (
    Action,
    Answer,
    Broadcast,
    Changed,
    Configure,
    Conflict,
    Delivered,
    Doubt,
    Event,
    Join,
    Leave,
    LeaveComplete,
    OpenSync,
    Paused,
    Received,
    Refused,
    Refuted,
    Send,
    SetAddress,
    SetFacts,
    SetKnown,
    StreamAnswered,
    StreamConnected,
    StreamFailed,
    StreamPing,
    StreamPinged,
    Synced,
    SyncFailed,
    Tick,
    Verified,
    Verify,
)
from swarmlet.swim.messages import (
    ANYBODY,
    Ack,
    Address,
    Alive,
    Dead,
    Evidence,
    Left,
    MemberId,
    Message,
    Nack,
    Ping,
    PingReq,
    Record,
    Rumour,
    ShortId,
    State,
    Suspect,
    UserEvent,
    short_id,
)

NAMES = "abcdefghijklmnopqrstuvwxyz"
SHORT = {short_id(MemberId(name)): name for name in NAMES}
SHORT[ANYBODY] = "anybody"


def address_of(place: str) -> Address:
    """Return the address called *place*: b is 10.0.0.2, b2 is 10.0.2.2."""
    return f"10.0.{place[1:] or 0}.{NAMES.index(place[0]) + 1}", 7947


def place_of(address: Address) -> str:
    _, _, host, number = address[0].split(".")
    return NAMES[int(number) - 1] + (host if host != "0" else "")


def parse_incarnation(text: str) -> int:
    boot, number = text.split(".")
    return int(boot) << 32 | int(number)


def show_incarnation(incarnation: int) -> str:
    return f"{incarnation >> 32}.{incarnation & 0xFFFFFFFF}"


def short(name: str) -> ShortId:
    return ANYBODY if name == "anybody" else short_id(MemberId(name))


def parse_evidence(words: list[str]) -> Evidence:
    return Evidence[words[0].upper()] if words else Evidence.SILENT


def parse_message(text: str) -> Message:
    kind, *words = text.split()
    match kind, words:
        case "ping" | "ping-req", [sequence, target, *rest]:
            incarnation = parse_incarnation(rest[0]) if rest else 0
            state = State[rest[1].upper()] if len(rest) > 1 else State.ALIVE
            make = Ping if kind == "ping" else PingReq
            return make(int(sequence), short(target), incarnation, state)
        case "ack", [sequence, *rest]:
            return Ack(int(sequence), parse_incarnation(rest[0] if rest else "1.0"))
        case "nack", [sequence, *rest]:
            return Nack(int(sequence), rest == ["refused"])
        case "alive", [name, incarnation, *rest]:
            place, facts = name, b""
            while rest:
                word, value, *rest = rest
                place, facts = (value, facts) if word == "at" else (place, value.encode())
            number = parse_incarnation(incarnation)
            return Alive(MemberId(name), number, address_of(place), facts)
        case "suspect", [name, incarnation, "by", by, *rest]:
            accusers = tuple(short(accuser) for accuser in by.split(","))
            return Suspect(
                short(name), parse_incarnation(incarnation), accusers, parse_evidence(rest)
            )
        case "dead", [name, incarnation, "by", by]:
            return Dead(short(name), parse_incarnation(incarnation), short(by))
        case "left", [name, incarnation]:
            return Left(short(name), parse_incarnation(incarnation))
        case "event", [clock, origin, name, *payload]:
            return UserEvent(int(clock), short(origin), name, " ".join(payload).encode())
    raise ValueError(f"no message: {text}")


def show_message(message: Message) -> str:
    match message:
        case Ping(sequence, target, incarnation, state) | PingReq(
            sequence, target, incarnation, state
        ):
            kind = "ping" if isinstance(message, Ping) else "ping-req"
            held = "" if state is State.ALIVE else f" {state.name.lower()}"
            return f"{kind} {sequence} {SHORT[target]} {show_incarnation(incarnation)}{held}"
        case Ack(sequence, incarnation):
            return f"ack {sequence} {show_incarnation(incarnation)}"
        case Nack(sequence, refused):
            return f"nack {sequence}{' refused' if refused else ''}"
        case Alive(member, incarnation, address, facts):
            place = "" if place_of(address) == member else f" at {place_of(address)}"
            told = f" facts {facts.decode()}" if facts else ""
            return f"alive {member} {show_incarnation(incarnation)}{place}{told}"
        case Suspect(member, incarnation, accusers, evidence):
            by = ",".join(SHORT[accuser] for accuser in accusers)
            tail = f" {evidence.name.lower()}" if evidence else ""
            return f"suspect {SHORT[member]} {show_incarnation(incarnation)} by {by}{tail}"
        case Dead(member, incarnation, by):
            return f"dead {SHORT[member]} {show_incarnation(incarnation)} by {SHORT[by]}"
        case Left(member, incarnation):
            return f"left {SHORT[member]} {show_incarnation(incarnation)}"
        case UserEvent(clock, origin, name, payload):
            return f"event {clock} {SHORT[origin]} {name} {payload.decode()}".rstrip()


def parse_record(text: str) -> Record:
    kind, name, incarnation, *rest = text.split()
    place, age = name, 0
    while rest:
        word, value, *rest = rest
        place, age = (value, age) if word == "at" else (place, int(value))
    number = parse_incarnation(incarnation)
    return Record(MemberId(name), number, State[kind.upper()], address_of(place), b"", age)


#: The papers' protocol: no member looks into a suspicion out of turn but where a script says so.
PLAIN = Config(
    suspicion_mult=4, suspicion_max_factor=6, confirmations=2, confirmers=0, stall_factor=2
)


def parse_config(words: Iterable[str], config: Config) -> Config:
    pairs = (word.split("=") for word in words)
    return dataclasses.replace(config, **{key: int(value) for key, value in pairs})


class Script:
    """Executes commands against one member and returns what it did, in words."""

    def __init__(self) -> None:
        self._core: Swim | None = None
        self._hidden = False

    @property
    def core(self) -> Swim:
        assert self._core is not None, "the script names no member yet"
        return self._core

    def execute(self, line: str) -> list[str]:
        command, _, rest = line.partition(" ")
        words = rest.split()
        match command:
            case "member":
                return self._member(words)
            case "hide" | "show":
                self._hidden = command == "hide"
                return []
            case "table":
                return self._table()
            case "health":
                return [f"{self.core.me.member}: health {self.core.score}"]
            case "queue":
                return [f"{self.core.me.member}: {self.core.rumours} rumours"]
            case "tick":
                return [out for _ in range(int(rest)) for out in self._step(Tick())]
            case "alive":
                return [
                    out
                    for name in words
                    for out in self._step(
                        Received(
                            short(name),
                            address_of(name),
                            (parse_message(f"alive {name} 1.0"),),
                        )
                    )
                ]
        return self._step(self._event(command, rest, words))

    def _member(self, words: list[str]) -> list[str]:
        name, *options = words
        own = {"seed": 0, "boot": 1}
        for option in list(options):
            key, _, value = option.partition("=")
            if key in own:
                own[key] = int(value)
                options.remove(option)
        self._core = Swim(
            member=MemberId(name),
            address=address_of(name),
            facts=b"",
            boot=own["boot"],
            config=parse_config(options, PLAIN),
            rng=random.Random(own["seed"]),
        )
        return []

    def _event(self, command: str, rest: str, words: list[str]) -> Event:
        match command:
            case "pause":
                return Tick(int(rest))
            case "receive":
                place, _, messages = rest.partition(": ")
                return Received(
                    short(place[0]),
                    address_of(place),
                    tuple(parse_message(text) for text in messages.split("; ")),
                )
            case "refused":
                return Refused(address_of(rest))
            case "stream-answered":
                sequence, name, incarnation = words
                record = parse_record(f"alive {name} {incarnation}")
                return StreamAnswered(int(sequence), record)
            case "stream-failed":
                return StreamFailed(int(words[0]), parse_evidence(words[1:]))
            case "stream-connected":
                return StreamConnected(int(rest))
            case "stream-ping":
                ping = parse_message(f"ping {rest}")
                assert isinstance(ping, Ping)
                return StreamPinged(ping)
            case "sync":
                name, _, records = rest.partition(": ")
                parsed = tuple(parse_record(text) for text in records.split("; ") if text)
                return Synced(MemberId(name), parsed)
            case "sync-done":
                return Synced(MemberId(rest), (), final=True)
            case "sync-failed":
                return SyncFailed()
            case "verified" | "unverified":
                name, _, place = words
                return Verified(MemberId(name), address_of(place), command == "verified")
            case "join":
                return Join(tuple(address_of(word) for word in words))
            case "leave":
                return Leave()
            case "known":
                return SetKnown(tuple((MemberId(w), address_of(w)) for w in words))
            case "doubt":
                return Doubt(MemberId(rest))
            case "facts":
                return SetFacts(rest.encode())
            case "move":
                return SetAddress(address_of(rest))
            case "event":
                name, *payload = words
                return Broadcast(name, " ".join(payload).encode())
            case "configure":
                return Configure(parse_config(words, self.core.config))
        raise ValueError(f"no command: {command}")

    def _step(self, event: Event) -> list[str]:
        return [line for action in self.core.step(event) for line in self._show(action)]

    def _show(self, action: Action) -> list[str]:
        me = self.core.me.member
        match action:
            case Send(to, messages):
                if self._hidden and all(isinstance(m, Rumour) for m in messages):
                    return []
                return [f"{me} -> {place_of(to)}: {'; '.join(map(show_message, messages))}"]
            case StreamPing(member, address, ping, ticks):
                return [
                    f"{me} => {place_of(address)}: stream {show_message(ping)} in {ticks} ticks"
                ]
            case Answer(record):
                number = show_incarnation(record.incarnation)
                return [f"{me}: answer {record.state.name.lower()} {record.member} {number}"]
            case OpenSync(member, address):
                return [f"{me} => {place_of(address)}: sync with {member or 'anybody'}"]
            case Verify(member, address):
                return [f"{me} => {place_of(address)}: verify {member}"]
            case Changed(member, before, after, reason, incarnation, address, by):
                states = f"{before.name if before is not None else '-'} -> "
                states += after.name if after is not None else "-"
                place = "" if place_of(address) == member else f" at {place_of(address)}"
                source = f", by {SHORT[by]}" if by else ""
                number = show_incarnation(incarnation)
                return [f"{me}: {member} {states} {number}{place} ({reason.value}{source})"]
            case Refuted(state, incarnation):
                number = show_incarnation(incarnation)
                return [f"{me}: refuted {state.name.lower()} with {number}"]
            case Conflict(member, held, claimed, other):
                rival = f" with {other}" if other else ""
                return [
                    f"{me}: conflict {member} at {place_of(held)} and {place_of(claimed)}{rival}"
                ]
            case Paused(ticks):
                return [f"{me}: paused {ticks}"]
            case Delivered(event):
                return [f"{me}: delivered {show_message(event)}"]
            case LeaveComplete():
                return [f"{me}: leave complete"]

    def _table(self) -> list[str]:
        me = self.core.me.member
        return [
            f"{me}: {held.member} {held.state.name} {show_incarnation(held.incarnation)}"
            + ("" if place_of(held.address) == held.member else f" at {place_of(held.address)}")
            for held in sorted(self.core.table, key=lambda held: held.member)
        ]
