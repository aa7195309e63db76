"""A whole group in one thread: no clock, no socket, one seed.

A run is a function of (seed, faults), so every failure replays. Within a tick all cores tick,
then packets are delivered until none is due, so a round trip is shorter than a tick, as in a
LAN; delays are drawn in whole ticks on top.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from swarmlet.swim.config import OVERHEAD_BYTES, PAYLOAD_BYTES_MAX, Config
from swarmlet.swim.core import Swim
from swarmlet.swim.events import (
    Action,
    Answer,
    Changed,
    Event,
    LeaveComplete,
    OpenSync,
    Received,
    Refused,
    Refuted,
    Send,
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
    Address,
    Alive,
    Evidence,
    MemberId,
    Message,
    Record,
    State,
    short_id,
    size_of,
)

#: Flights of TCP's and TLS's handshakes and of the ping itself: all must get through in time.
STREAM_FLIGHTS = 6
#: Packets that wait for a process that sleeps: a receive buffer of 212,992 bytes.
RECEIVE_QUEUE_MAX = 256
DELIVERIES_PER_TICK_MAX = 5_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    loss: float = 0.0  # probability that a packet never arrives
    duplication: float = 0.0  # probability that it arrives twice
    delay_ticks_max: int = 0  # a packet arrives 0 to so many ticks later


@dataclass(slots=True)
class Node:
    name: MemberId
    address: Address
    core: Swim
    boot: int = 1
    up: bool = True
    #: While down: whether its host answers that nobody listens.
    refuses: bool = False
    slept: int = 0
    asleep: bool = False
    inbox: list[Received] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Verdict:
    """*observer* changed its mind about *subject* at *tick*."""

    tick: int
    observer: MemberId
    subject: MemberId
    before: State | None
    after: State | None
    healthy: bool  # the subject was up, awake and not cut off


Delivery: TypeAlias = tuple[Node, Event]


class World:
    def __init__(
        self,
        count: int,
        *,
        seed: int,
        config: Config,
        faults: Faults | None = None,
        bursts: bool = False,
    ) -> None:
        """Args: *bursts*: who slept sees all ticks at once and its packets only then, as a
        program does whose timers are deadlines.
        """
        self.rng = random.Random(seed)
        self.config = config
        self.faults = faults or Faults()
        self.bursts = bursts
        self.now = 0
        self.nodes: dict[MemberId, Node] = {}
        self.by_address: dict[Address, Node] = {}
        self.cut: set[tuple[MemberId, MemberId]] = set()
        self.verdicts: list[Verdict] = []
        self.refutations = 0
        self.packets = 0
        self.bytes_sent: Counter[MemberId] = Counter()
        self.largest = 0
        self.incarnations: dict[MemberId, int] = {}
        self.complaints: list[str] = []
        self._due: defaultdict[int, list[Delivery]] = defaultdict(list)
        for number in range(count):
            self.add(number)

    # Building.

    def add(self, number: int) -> Node:
        name = MemberId(f"n{number}")
        address = (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255 or 254}", 7947 + number)
        node = Node(name, address, self._core(name, address, 1))
        self.nodes[name] = node
        self.by_address[address] = node
        return node

    def _core(self, name: MemberId, address: Address, boot: int) -> Swim:
        return Swim(
            member=name,
            address=address,
            facts=b"",
            boot=boot,
            config=self.config,
            rng=random.Random(self.rng.random()),
            sequence=self.rng.randrange(1 << 31),
        )

    def acquaint(self) -> None:
        """Let everybody know everybody, as if all had joined long ago."""
        records = [Record(n.name, n.core.me.incarnation, State.ALIVE, n.address) for n in self.up()]
        for node in self.up():
            for action in node.core.step(Synced(None, tuple(records))):
                assert isinstance(action, Changed)
        # The news is old: nobody has it to tell.
        for node in self.up():
            node.core._queue.clear()

    # Faults.

    def up(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.up]

    def crash(self, node: Node, *, refuses: bool = False) -> None:
        node.up = False
        node.refuses = refuses
        node.inbox.clear()

    def restart(self, node: Node) -> None:
        node.boot += 1
        node.up = True
        node.asleep = False
        node.slept = 0
        node.core = self._core(node.name, node.address, node.boot)

    def pause(self, node: Node) -> None:
        node.asleep = True
        node.slept = 0

    def resume(self, node: Node) -> None:
        node.asleep = False

    def partition(self, *sides: Iterable[Node]) -> None:
        """Cut every link between different *sides*."""
        groups = [[node.name for node in side] for side in sides]
        for side in groups:
            for other in groups:
                if side is not other:
                    self.cut |= {(a, b) for a in side for b in other}

    def heal(self) -> None:
        self.cut.clear()

    def reaches(self, a: Node, b: Node) -> bool:
        return (a.name, b.name) not in self.cut

    def connected(self, a: Node, b: Node) -> bool:
        return self.reaches(a, b) and self.reaches(b, a)

    # Running.

    def run(self, ticks: int) -> None:
        for _ in range(ticks):
            self.tick()

    def run_until(self, condition: Callable[[], bool], ticks_max: int) -> int:
        """Run until *condition* holds; return the ticks that it took, or fail."""
        start = self.now
        while not condition():
            assert self.now - start < ticks_max, f"not within {ticks_max} ticks"
            self.tick()
        return self.now - start

    def tick(self) -> None:
        self.now += 1
        for node in list(self.nodes.values()):
            if not node.up:
                continue
            if node.asleep:
                node.slept += 1
                continue
            missed, node.slept = node.slept, 0
            inbox, node.inbox = node.inbox, []
            if self.bursts:
                for _ in range(missed):
                    self.step(node, Tick())
                missed = 0
            for received in inbox:
                self.step(node, received)
            self.step(node, Tick(missed))
        deliveries = 0
        while self._due[self.now]:
            batch = self._due.pop(self.now)
            self.rng.shuffle(batch)
            for node, event in batch:
                deliveries += 1
                assert deliveries < DELIVERIES_PER_TICK_MAX, "packets beget packets"
                self._deliver(node, event)
        del self._due[self.now]

    def _deliver(self, node: Node, event: Event) -> None:
        if not node.up:
            return
        if node.asleep:
            if isinstance(event, Received):
                if len(node.inbox) < RECEIVE_QUEUE_MAX:
                    node.inbox.append(event)
            else:
                self._due[self.now + 1].append((node, event))
            return
        self.step(node, event)

    def step(self, node: Node, event: Event) -> list[Record]:
        answers = []
        quiet = node.core.quiet_ticks() > 1 and event == Tick()
        actions = node.core.step(event)
        if quiet and actions:
            self.complaints.append(f"{self.now}: {node.name} would have overslept {actions[0]}")
        for action in actions:
            if isinstance(action, Answer):
                answers.append(action.record)
            else:
                self._perform(node, action)
        return answers

    def _perform(self, node: Node, action: Action) -> None:
        match action:
            case Send(to, messages):
                self._transmit(node, to, messages)
            case StreamPing():
                self._stream_ping(node, action)
            case OpenSync():
                self._sync(node, action)
            case Verify(member, address):
                peer = self.by_address.get(address)
                genuine = peer is not None and peer.name == member and self._stream(node, peer)
                self._later(node, Verified(member, address, genuine), 1)
            case Changed(member, before, after):
                self.verdicts.append(
                    Verdict(self.now, node.name, member, before, after, self.healthy(member))
                )
            case Refuted():
                self.refutations += 1
            case LeaveComplete():
                self.crash(node)
            case _:
                pass

    def healthy(self, name: MemberId) -> bool:
        node = self.nodes[name]
        return node.up and not node.asleep and not any(name in link for link in self.cut)

    def _later(self, node: Node, event: Event, ticks: int = 0) -> None:
        self._due[self.now + ticks].append((node, event))

    def _transmit(self, sender: Node, to: Address, messages: tuple[Message, ...]) -> None:
        size = sum(map(size_of, messages))
        self.packets += 1
        self.bytes_sent[sender.name] += size + OVERHEAD_BYTES
        self.largest = max(self.largest, size)
        self._check(sender, messages, size)
        receiver = self.by_address.get(to)
        if receiver is None or not self.reaches(sender, receiver):
            return
        if not receiver.up:
            if receiver.refuses and self._survives() and self.reaches(receiver, sender):
                self._later(sender, Refused(to))
            return
        received = Received(short_id(sender.name), sender.address, messages)
        for _ in range(1 + (self.rng.random() < self.faults.duplication)):
            if self._survives():
                self._later(receiver, received, self.rng.randint(0, self.faults.delay_ticks_max))

    def _survives(self) -> bool:
        return self.faults.loss == 0 or self.rng.random() >= self.faults.loss

    def _check(self, sender: Node, messages: tuple[Message, ...], size: int) -> None:
        """What holds of every packet, whatever happens."""
        if size > PAYLOAD_BYTES_MAX:
            self.complaints.append(f"{self.now}: a payload of {size} bytes")
        for message in messages:
            if isinstance(message, Alive):
                highest = self.incarnations.get(message.member, 0)
                if message.member == sender.name:
                    if message.incarnation < highest:
                        self.complaints.append(f"{self.now}: {sender.name} went back")
                    self.incarnations[message.member] = message.incarnation
                elif message.incarnation > max(
                    highest, self.nodes[message.member].core.me.incarnation
                ):
                    self.complaints.append(f"{self.now}: {sender.name} invented a life")

    # Streams.

    def _stream(self, caller: Node, peer: Node) -> bool:
        """Return whether a conversation comes about."""
        return (
            peer.up
            and not peer.asleep
            and self.connected(caller, peer)
            and self.rng.random() < (1 - self.faults.loss) ** STREAM_FLIGHTS
        )

    def _stream_ping(self, node: Node, action: StreamPing) -> None:
        peer = self.by_address.get(action.address)
        sequence = action.ping.sequence
        if peer is not None and self._stream(node, peer):
            for record in self.step(peer, StreamPinged(action.ping)):
                self._later(node, StreamAnswered(sequence, record))
            return
        refused = peer is not None and not peer.up and peer.refuses and self.connected(node, peer)
        if refused:
            self._later(node, StreamFailed(sequence, Evidence.REFUSED))
            return
        # A sleeping process' kernel completes the handshake of TCP: three flights.
        asleep = peer is not None and peer.up and peer.asleep and self.connected(node, peer)
        if asleep and self.rng.random() < (1 - self.faults.loss) ** 3:
            self._later(node, StreamConnected(sequence))
            self._later(node, StreamFailed(sequence, Evidence.STALLED), action.ticks)
        else:
            self._later(node, StreamFailed(sequence, Evidence.SILENT), action.ticks)

    def _sync(self, node: Node, action: OpenSync) -> None:
        peer = self.by_address.get(action.address)
        if peer is None or peer is node or not self._stream(node, peer):
            self._later(node, SyncFailed(), 20)
            return
        digest = node.core.sync_digest()
        self.step(peer, Synced(node.name, (digest.sender,)))
        buckets = b""
        for frame in peer.core.sync_answer(digest):
            buckets = buckets or frame.buckets
            self._later(node, Synced(peer.name, frame.records))
        if buckets:
            for frame in node.core.sync_rest(digest, buckets):
                self.step(peer, Synced(node.name, frame.records))
        self._later(node, Synced(peer.name, (), final=True))

    # What the group holds.

    def state(self, observer: Node, subject: Node) -> State | None:
        held = observer.core.table.get(subject.name)
        return None if held is None else held.state

    def all_hold(self, subject: Node, *states: State | None) -> bool:
        return all(self.state(node, subject) in states for node in self.up() if node is not subject)

    def agreed(self) -> bool:
        """All that are up hold each other for alive, at the same incarnation."""
        up = self.up()
        return all(
            (held := node.core.table.get(other.name)) is not None
            and (held.state, held.incarnation) == (State.ALIVE, other.core.me.incarnation)
            for node in up
            for other in up
        )

    def deaths(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.after is State.DEAD]

    def false_deaths(self) -> list[Verdict]:
        return [verdict for verdict in self.deaths() if verdict.healthy]
