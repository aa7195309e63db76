"""Groups of up to 10,000 simulated members, and what is asked of every run.

The cores are the real ones. Tables are shared: what nobody has heard news of is held once for all,
so a member costs what it differs in. A simulated member draws the first ROUND members of its round
of probes only, for no run gets further.

Checkers, by name:
    completeness    every crash is known to every live member within the run
    accuracy        verdicts on members that were up, awake and not cut off, per member-hour
    convergence     after healing all tables agree
    incarnations    a member's never go back, and nobody else makes one up
    bounds          no packet above its size, no member above its rate
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from swarmlet.swim.antientropy import bucket_of, record_hash
from swarmlet.swim.config import LAN, OVERHEAD_BYTES, Config, ticks
from swarmlet.swim.events import Answer, Event, Leave, OpenSync, Synced, SyncFailed
from swarmlet.swim.members import LIVE, Member, Table
from swarmlet.swim.messages import (
    BUCKETS_MAX,
    Address,
    MemberId,
    Record,
    ShortId,
    State,
)
from tests.swim.world import Faults, Node, World

#: Probes of a run: two a second at the most, for minutes.
ROUND = 400
#: Bytes of a record in an exchange beside those that its rumour has.
TLS_BYTES = 1_500  # a resumed handshake, both ways; counted to the caller


class Shared:
    """What all members held when the run began."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.order = [m.member for m in members]
        self.members = {m.member: m for m in members}
        self.by_short = {m.short: m.member for m in members}
        self.by_address = {m.address: m.member for m in members}
        self.buckets = [0] * BUCKETS_MAX
        self.in_bucket: defaultdict[int, list[MemberId]] = defaultdict(list)
        for m in members:
            bucket = bucket_of(m.short)
            self.in_bucket[bucket].append(m.member)
            self.buckets[bucket] ^= record_hash(
                m.member, m.incarnation, m.state, m.address, m.facts
            )


class SharedTable(Table):
    """A table that stores its differences from *shared*. Nobody joins, nobody moves."""

    def __init__(self, shared: Shared, own: MemberId, rng: random.Random) -> None:
        self._shared = shared
        self._own = own
        self._rng = rng
        self._changed: dict[MemberId, Member] = {}
        self._gone: set[MemberId] = set()
        self._dead: dict[MemberId, None] = {}
        self._buckets = list(shared.buckets)

    def __len__(self) -> int:
        return len(self._shared.order)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._changed.values())  # whoever looks at all looks for those that are gone

    @property
    def live(self) -> int:
        return len(self._shared.order) - len(self._gone)

    @property
    def dead(self) -> Collection[MemberId]:
        return self._dead.keys()

    def get(self, member: MemberId) -> Member | None:
        return self._changed.get(member) or self._shared.members.get(member)

    def find(self, short: ShortId) -> Member | None:
        member = self._shared.by_short.get(short)
        return None if member is None else self.get(member)

    def at(self, address: Address) -> Member | None:
        member = self._shared.by_address.get(address)
        return None if member is None else self.get(member)

    def collides(self, member: MemberId) -> MemberId | None:
        return None

    def put(self, record: Member) -> None:
        member = record.member
        before = self.get(member)
        assert before is not None, "nobody joins a shared table"
        self._toggle(before)
        self._toggle(record)
        self._changed[member] = record
        if record.state is State.DEAD:
            self._dead[member] = None
        else:
            self._dead.pop(member, None)
        if record.state in LIVE:
            self._gone.discard(member)
        else:
            self._gone.add(member)

    def remove(self, member: MemberId) -> None:
        raise AssertionError("no run is long enough to forget somebody")

    def in_buckets(self, buckets: bytes, count: int) -> list[Member]:
        width = BUCKETS_MAX // count
        found = (
            self.get(member)
            for bucket in buckets
            for inner in range(bucket * width, (bucket + 1) * width)
            for member in self._shared.in_bucket[inner]
        )
        return [member for member in found if member is not None]

    def others(self) -> list[MemberId]:
        order = self._shared.order
        drawn = self._rng.sample(order, min(ROUND, len(order)))
        return [member for member in drawn if member != self._own and member not in self._gone]

    def sample(
        self, rng: random.Random, count: int, accept: Callable[[Member], bool]
    ) -> list[Member]:
        chosen: list[Member] = []
        order = self._shared.order
        for _ in range(20 * count):
            member = order[rng.randrange(len(order))]
            if member == self._own or member in self._gone:
                continue
            record = self.get(member)
            assert record is not None
            if record not in chosen and accept(record):
                chosen.append(record)
                if len(chosen) == count:
                    break
        return chosen


class ScaleWorld(World):
    """Everybody knows everybody. Exchanges are counted in bytes, too."""

    def __init__(
        self, count: int, *, seed: int, config: Config = LAN, faults: Faults | None = None
    ) -> None:
        super().__init__(count, seed=seed, config=config, faults=faults)
        shared = Shared([node.core._membership.own for node in self.nodes.values()])
        for node in self.nodes.values():
            table = SharedTable(shared, node.name, random.Random(self.rng.random()))
            core = node.core
            core._membership.table = table
            for part in (core._prober, core._relays, core._contacts):
                part._table = table
            core._queue.clear()

    def step(self, node: Node, event: Event) -> list[Record]:
        answers = []
        for action in node.core.step(event):
            if isinstance(action, Answer):
                answers.append(action.record)
            else:
                self._perform(node, action)
        return answers

    def _sync(self, node: Node, action: OpenSync) -> None:
        peer = self.by_address.get(action.address)
        if peer is None or peer is node or not self._stream(node, peer):
            self._later(node, SyncFailed(), 20)
            return
        digest = node.core.sync_digest()
        self.bytes_sent[node.name] += TLS_BYTES + len(digest.digests)
        self.step(peer, Synced(node.name, (digest.sender,)))
        buckets = b""
        for frame in peer.core.sync_answer(digest):
            buckets = buckets or frame.buckets
            self.bytes_sent[peer.name] += _size(frame.records)
            self._later(node, Synced(peer.name, frame.records))
        if buckets:
            for frame in node.core.sync_rest(digest, buckets):
                self.bytes_sent[node.name] += _size(frame.records)
                self.step(peer, Synced(node.name, frame.records))
        self._later(node, Synced(peer.name, (), final=True))


def _size(records: Sequence[Record]) -> int:
    return OVERHEAD_BYTES + sum(30 + len(r.member) + len(r.facts) for r in records)


@dataclass
class Found:
    """What one run showed; seconds unless the name says otherwise."""

    members: int
    seed: int
    figures: dict[str, float] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)


def crash(count: int, seed: int, *, config: Config = LAN, loss: float = 0.0) -> Found:
    """One falls silent: completeness, and how its death goes round."""
    world = ScaleWorld(count, seed=seed, config=config, faults=Faults(loss=loss))
    found = Found(count, seed)
    world.run(ticks(20))
    _note_bytes(world, found, "idle bytes a second")
    world.bytes_sent.clear()
    victim = world.rng.choice(world.up())
    world.crash(victim)
    began = world.now
    world.run_until(lambda: world.all_hold(victim, State.DEAD), ticks(180))
    died = sorted(
        (v.tick - began) / 10
        for v in world.deaths()
        if v.subject == victim.name and v.tick >= began
    )
    suspected = min(
        v.tick
        for v in world.verdicts
        if v.subject == victim.name and v.after is State.SUSPECT and v.tick >= began
    )
    found.figures |= {
        "suspected": (suspected - began) / 10,
        "first verdict": died[0],
        "half know": died[len(died) // 2],
        "99 % know": died[int(len(died) * 0.99)],
        "all know": died[-1],
        "dissemination to 99 %": died[int(len(died) * 0.99)] - died[0],
    }
    _check(world, found)
    return found


def weather(count: int, seed: int, *, loss: float = 0.1, seconds: int = 60) -> Found:
    """Lost packets, and one of twenty members stopped for 5 s again and again: accuracy."""
    world = ScaleWorld(count, seed=seed, faults=Faults(loss=loss, delay_ticks_max=1))
    found = Found(count, seed)
    slow = world.rng.sample(world.up(), max(1, count // 20))
    for _ in range(max(1, seconds // 6)):
        for node in slow:
            world.pause(node)
        world.run(ticks(5))
        for node in slow:
            world.resume(node)
        world.run(ticks(1))
    names = {node.name for node in slow}
    hours = count * world.now / 36_000
    false = [v for v in world.false_deaths() if v.subject not in names]
    found.figures["false verdicts a member-hour"] = len(false) / count / hours
    found.figures["members falsely buried"] = len({v.subject for v in false})
    _check(world, found)
    return found


def leave(count: int, seed: int, leavers: int) -> Found:
    """Many say farewell at once: it is nobody's death."""
    world = ScaleWorld(count, seed=seed)
    found = Found(count, seed)
    world.run(ticks(5))
    gone = world.rng.sample(world.up(), leavers)
    began = world.now
    for node in gone:
        world.step(node, Leave())
    world.run_until(lambda: all(world.all_hold(n, State.LEFT) for n in gone), ticks(120))
    found.figures["all know that they left"] = (world.now - began) / 10
    if world.deaths():
        found.complaints.append(f"{len(world.deaths())} deaths")
    _check(world, found)
    return found


def partition(count: int, seed: int) -> Found:
    """Cut in two until each side has buried the other, then healed: convergence."""
    world = ScaleWorld(count, seed=seed)
    found = Found(count, seed)
    world.run(ticks(5))
    nodes = world.up()
    world.rng.shuffle(nodes)
    sides = nodes[: count // 2], nodes[count // 2 :]
    world.partition(*sides)
    world.run_until(
        lambda: all(world.state(a, b) is State.DEAD for a, b in zip(*sides, strict=False)),
        ticks(600),
    )
    world.run(ticks(30))
    world.heal()
    began = world.now
    world.run_until(world.agreed, ticks(300))
    found.figures["converged after the cut"] = (world.now - began) / 10
    _check(world, found)
    return found


def _note_bytes(world: World, found: Found, name: str) -> None:
    found.figures[name] = sum(world.bytes_sent.values()) / len(world.nodes) / (world.now / 10)


def _check(world: World, found: Found) -> None:
    found.complaints += world.complaints[:5]
    budget = world.config.rate_bytes
    seconds = world.now / 10 + 1
    for name, sent in world.bytes_sent.items():
        if sent > budget * seconds * 2:  # exchanges are not in the budget of packets
            found.complaints.append(f"{name} sent {sent} bytes in {seconds} s")
            break
