"""Whole groups under faults, from a seed.

Checkers look at packets and at what members announce, never into the cores, but for the last
question: whether all tables agree.

    completeness    every crash is known to all within a bound
    accuracy        nobody who is up, awake and reachable is declared dead
    convergence     after healing, all tables agree
    incarnations    a member's never go back, and nobody else makes one up
    packets         none is larger than it may be, and all together stay in budget

A failing test names its seed; World(..., seed=...) replays it.
"""

from __future__ import annotations

import dataclasses
import random

import pytest

from swarmlet.swim.config import EDGE, FAST, LAN, WAN, Config, ticks
from swarmlet.swim.events import Join, Leave, SetKnown
from swarmlet.swim.messages import State
from tests.swim.world import Faults, Node, World

pytestmark = pytest.mark.level3

#: Seconds between the silence of a member and the last observer's verdict: the slowest of a few
#: hundred simulated runs took three quarters of it.
LATEST = {"lan": 12.0, "fast": 8.0, "wan": 70.0, "edge": 90.0}


def started(count: int, seed: int, config: Config = LAN, faults: Faults | None = None) -> World:
    world = World(count, seed=seed, config=config, faults=faults)
    world.acquaint()
    world.run(30)
    return world


def check(world: World) -> None:
    """What holds at the end of every run."""
    assert not world.complaints, world.complaints[:5]
    seconds = world.now / 10
    budget = world.config.rate_bytes * (seconds + 1)
    loudest = max(world.bytes_sent.values(), default=0)
    assert loudest <= budget, f"{loudest} bytes in {seconds} s"


@pytest.mark.parametrize(
    ("name", "config"), [("lan", LAN), ("fast", FAST), ("wan", WAN), ("edge", EDGE)]
)
@pytest.mark.parametrize("seed", range(3))
def test_silent_member_is_dead_for_all(name: str, config: Config, seed: int) -> None:
    world = started(12, seed, config)
    victim = world.rng.choice(world.up())
    world.crash(victim)
    world.run_until(lambda: world.all_hold(victim, State.DEAD), ticks(LATEST[name]))
    assert not world.false_deaths()
    check(world)


@pytest.mark.parametrize("count", [2, 3, 20])
@pytest.mark.parametrize("seed", range(3))
def test_killed_member_is_dead_for_all_in_seconds(count: int, seed: int) -> None:
    world = started(count, seed)
    victim = world.rng.choice(world.up())
    world.crash(victim, refuses=True)
    world.run_until(lambda: world.all_hold(victim, State.DEAD), ticks(5))
    assert not world.false_deaths()
    check(world)


@pytest.mark.parametrize("seed", range(2))
def test_crash_is_seen_through_loss(seed: int) -> None:
    world = started(20, seed, faults=Faults(loss=0.2, duplication=0.1, delay_ticks_max=1))
    victim = world.rng.choice(world.up())
    world.crash(victim)
    world.run_until(lambda: world.all_hold(victim, State.DEAD), ticks(30))
    check(world)


def test_many_crashes_at_once_are_all_seen() -> None:
    world = started(40, seed=1)
    victims = world.rng.sample(world.up(), 15)
    for victim in victims:
        world.crash(victim)
    world.run_until(lambda: all(world.all_hold(v, State.DEAD) for v in victims), ticks(60))
    assert not world.false_deaths()
    check(world)


@pytest.mark.parametrize("seed", range(2))
def test_loss_accuses_nobody_for_good(seed: int) -> None:
    """A fifth of all packets lost, repeated, late or out of order, for two minutes."""
    faults = Faults(loss=0.2, duplication=0.1, delay_ticks_max=2)
    world = started(20, seed, faults=faults)
    world.run(ticks(120))
    assert not world.false_deaths()
    assert world.refutations > 0, "nobody was even suspected: this tests nothing"
    world.faults = Faults()
    world.run_until(world.agreed, ticks(60))
    check(world)


@pytest.mark.parametrize(("sleepers", "seconds"), [(8, 5), (16, 3), (8, 16)])
def test_pauses_make_nobody_accuse_the_healthy(sleepers: int, seconds: int) -> None:
    """SIGSTOP for a while, again and again: the others stay alive for all, whoever slept."""
    world = started(40, seed=sleepers)
    chosen = world.rng.sample(world.up(), sleepers)
    for _ in range(60 // (seconds + 1)):
        for node in chosen:
            world.pause(node)
        world.run(ticks(seconds))
        for node in chosen:
            world.resume(node)
        world.run(ticks(1))
    slept = {node.name for node in chosen}
    assert not [verdict for verdict in world.deaths() if verdict.subject not in slept]
    if seconds <= 5:
        assert not world.deaths(), "their hosts answered: they were stalled, not dead"
    world.run_until(world.agreed, ticks(120))
    check(world)


def test_plain_swim_would_fail_that() -> None:
    """The test above bites: without Lifeguard, and with timers that are deadlines, it fails."""
    plain = dataclasses.replace(
        LAN, suspicion_mult=4, suspicion_max_factor=1, confirmations=0, awareness_max=1,
        stall_factor=1, pause_least=1 << 30,
    )  # fmt: skip
    world = World(40, seed=8, config=plain, bursts=True)
    world.acquaint()
    chosen = world.rng.sample(world.up(), 8)
    for _ in range(3):
        for node in chosen:
            world.pause(node)
        world.run(ticks(8))
        for node in chosen:
            world.resume(node)
        world.run(ticks(1))
    slept = {node.name for node in chosen}
    assert [verdict for verdict in world.deaths() if verdict.subject not in slept]


@pytest.mark.parametrize("sizes", [(1, 9), (10, 10)])
@pytest.mark.parametrize("seed", range(2))
def test_islands_become_one_again(sizes: tuple[int, int], seed: int) -> None:
    """An hour would be no different from three minutes: nobody is forgotten."""
    world = started(sum(sizes), seed)
    nodes = world.up()
    world.rng.shuffle(nodes)
    one, other = nodes[: sizes[0]], nodes[sizes[0] :]
    world.partition(one, other)
    world.run_until(
        lambda: all(
            world.state(a, b) is State.DEAD and world.state(b, a) is State.DEAD
            for a in one
            for b in other
        ),
        ticks(300),
    )
    world.run(ticks(30))
    world.heal()
    healed_at = world.now
    world.run_until(world.agreed, ticks(90))
    late = [v for v in world.false_deaths() if v.tick > healed_at]
    assert not late, f"buried the living after the cut: {late[:3]}"
    check(world)


@pytest.mark.parametrize("seed", range(3))
def test_one_way_cut_buries_nobody(seed: int) -> None:
    """One member does not hear one other: helpers and streams carry the answers."""
    world = started(10, seed)
    deaf, mute = world.rng.sample(world.up(), 2)
    world.cut.add((mute.name, deaf.name))
    world.run(ticks(120))
    assert not world.deaths()
    world.heal()
    world.run_until(world.agreed, ticks(60))
    check(world)


@pytest.mark.parametrize("seed", range(2))
def test_join_of_all_at_once(seed: int) -> None:
    """The tail of a lost rumour: serf needed 33 s for one of four."""
    world = World(20, seed=seed, config=LAN, faults=Faults(loss=0.05))
    first, *others = world.up()
    for node in others:
        world.step(node, Join((first.address,)))
    took = world.run_until(world.agreed, ticks(15))
    assert took > 0
    check(world)


def test_seeds_are_not_needed_when_the_store_knows() -> None:
    world = World(6, seed=3, config=LAN)
    known = SetKnown(tuple((node.name, node.address) for node in world.up()))
    for node in world.up():
        world.step(node, known)
    world.run_until(world.agreed, ticks(60))
    check(world)


def test_half_leaves_at_once() -> None:
    world = started(40, seed=5)
    leavers = world.rng.sample(world.up(), 20)
    for node in leavers:
        world.step(node, Leave())
    world.run_until(lambda: all(world.all_hold(n, State.LEFT) for n in leavers), ticks(20))
    assert not world.deaths(), "a farewell is no death"
    check(world)


@pytest.mark.parametrize("seed", range(4))
def test_churn_ends_in_agreement(seed: int) -> None:
    """Crashes, restarts, pauses, cuts, loss and leavers in any order; then peace."""
    rng = random.Random(seed)
    faults = Faults(
        loss=rng.choice([0, 0.05, 0.2]),
        duplication=rng.choice([0, 0.1]),
        delay_ticks_max=rng.choice([0, 1, 3]),
    )
    world = started(16, seed, rng.choice([LAN, FAST]), faults)
    for _ in range(30):
        disturb(world, rng)
        world.run(rng.randrange(1, 60))
    world.heal()
    world.faults = Faults()
    for node in world.nodes.values():
        world.resume(node)
        if not node.up:
            revive(world, node, rng)
    world.run_until(world.agreed, ticks(180))
    check(world)


def disturb(world: World, rng: random.Random) -> None:
    node = rng.choice(list(world.nodes.values()))
    match rng.randrange(7):
        case 0 if node.up and len(world.up()) > 4:
            world.crash(node, refuses=rng.random() < 0.5)
        case 1 if not node.up:
            revive(world, node, rng)
        case 2:
            world.pause(node)
        case 3:
            world.resume(node)
        case 4:
            other = rng.choice(list(world.nodes.values()))
            world.cut.add((node.name, other.name))
        case 5:
            world.heal()
        case 6 if node.up and not node.asleep and len(world.up()) > 4:
            world.step(node, Leave())
        case _:
            pass


def revive(world: World, node: Node, rng: random.Random) -> None:
    others = world.up()
    world.restart(node)
    world.step(node, Join((rng.choice(others).address,)))


def test_restart_is_never_taken_for_the_dead() -> None:
    world = started(8, seed=2)
    node = world.rng.choice(world.up())
    for _ in range(5):
        world.crash(node, refuses=True)
        world.run(world.rng.randrange(1, 60))
        world.restart(node)
        seed = next(other for other in world.up() if other is not node)
        world.step(node, Join((seed.address,)))
        world.run_until(lambda: world.all_hold(node, State.ALIVE), ticks(10))
    check(world)


def test_idle_group_is_quiet_and_needs_the_same_at_any_size() -> None:
    """Two packets a second each, probe and answer, and exchanges on the stream."""
    rates = []
    for count in (5, 40):
        world = started(count, seed=1)
        world.run(ticks(60))
        world.bytes_sent.clear()
        world.run(ticks(60))
        rates.append(max(world.bytes_sent.values()) / 60)
        check(world)
    assert max(rates) < 400
    assert rates[1] < rates[0] * 1.5


def test_same_seed_same_run() -> None:
    def history() -> tuple[object, ...]:
        world = started(10, seed=9, faults=Faults(loss=0.2, delay_ticks_max=1))
        world.crash(world.rng.choice(world.up()))
        world.run(ticks(30))
        return world.packets, world.verdicts, dict(world.bytes_sent)

    assert history() == history()
