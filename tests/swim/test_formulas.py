"""The arithmetic: each formula by a table, each bound at its edge."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.swim.antientropy import bucket_count, bucket_of, differing, fold, frames, record_hash
from swarmlet.swim.awareness import Awareness
from swarmlet.swim.config import (
    DURATIONS,
    EDGE,
    FAST,
    LAN,
    PRESETS,
    WAN,
    Config,
    configure,
    configure_from_text,
    ticks,
)
from swarmlet.swim.dissemination import RUMOURS_MAX, Budget, Queue
from swarmlet.swim.events import Send
from swarmlet.swim.members import MEMBERS_MAX, Member, Table, supersedes
from swarmlet.swim.messages import (
    RECORDS_MAX,
    Address,
    Alive,
    Evidence,
    Left,
    MemberId,
    Nack,
    Ping,
    PingReq,
    Record,
    ShortId,
    State,
    short_id,
)
from swarmlet.swim.probing import (
    DOUBTS_MAX,
    DOUBTS_PER_TICK,
    RELAYS_MAX,
    Prober,
    Relays,
)
from swarmlet.swim.suspicion import Suspicion, suspicion_ticks
from swarmlet.swim.userevents import AT_ONE_CLOCK_MAX, JUMP_MAX, WINDOW, UserEvents

HERE: Address = ("10.0.0.1", 7947)


def member(number: int, state: State = State.ALIVE, incarnation: int = 0) -> Member:
    return Member(MemberId(f"n{number}"), incarnation, state, HERE, b"", 0)


@pytest.mark.parametrize(
    ("confirmations", "wanted", "expected"),
    [
        # Lifeguard's curve from 600 down to 100 ticks, k = 3.
        (0, 3, 600),
        (1, 3, 350),
        (2, 3, 203),
        (3, 3, 100),
        (9, 3, 100),
        # Nobody can confirm: nothing to wait for.
        (0, 0, 100),
        (0, -1, 100),
    ],
)
def test_suspicion_ticks(confirmations: int, wanted: int, expected: int) -> None:
    got = suspicion_ticks(confirmations=confirmations, wanted=wanted, least=100, most=600)
    assert got == expected


@pytest.mark.parametrize(
    ("members", "score", "expected"),
    [
        (1, 0, (20, 240)),
        (10, 0, (20, 240)),
        (20, 0, (26, 312)),
        (100, 0, (40, 480)),
        (10_000, 0, (80, 960)),
        (20, 1, (52, 624)),
        (20, 7, (208, 2498)),
    ],
)
def test_suspicion_bounds(members: int, score: int, expected: tuple[int, int]) -> None:
    assert LAN.suspicion_bounds(members, score) == expected


@pytest.mark.parametrize(
    ("members", "limit"), [(1, 4), (9, 4), (10, 8), (99, 8), (100, 12), (1_000, 16), (10_000, 20)]
)
def test_retransmit_limit(members: int, limit: int) -> None:
    assert LAN.retransmit_limit(members) == limit


@pytest.mark.parametrize(
    ("members", "factor"), [(1, 1), (32, 1), (33, 2), (64, 2), (65, 3), (1_000, 6), (10_000, 10)]
)
def test_sync_period_grows_with_the_group(members: int, factor: int) -> None:
    assert LAN.sync_ticks(members) == factor * LAN.sync_period


@pytest.mark.parametrize(
    ("members", "absent", "factor"), [(3, 1, 1), (100, 1, 1), (1_000, 1, 10), (1_000, 10, 1)]
)
def test_healing_does_not_drown_the_absent(members: int, absent: int, factor: int) -> None:
    assert LAN.heal_ticks(members, absent) == factor * LAN.heal_period


def test_presets_are_what_the_design_says() -> None:
    assert set(PRESETS) == {"lan", "fast", "wan", "edge"}
    table = [
        (preset.probe_period, preset.ack_timeout, preset.gossip_fanout, preset.gossip_period)
        for preset in (LAN, FAST, WAN, EDGE)
    ]
    assert table == [(10, 5, 3, 2), (5, 2, 3, 1), (50, 30, 4, 5), (50, 20, 2, 10)]
    assert (LAN.nack_timeout, FAST.nack_timeout) == (4, 1)
    assert (LAN.pause(), EDGE.pause()) == (20, 100)


def test_configure() -> None:
    assert configure("fast", {"helpers": 5}).helpers == 5
    assert configure("lan", {}) == LAN
    with pytest.raises(ValueError, match="none of the presets lan, fast, wan, edge"):
        configure("lann", {})
    with pytest.raises(ValueError, match="no such knob: helper"):
        configure("lan", {"helper": 5})


def test_knobs_as_people_write_them() -> None:
    knobs = {"probe_period": "1.5s", "ack_timeout": "700ms", "reap_after": "3d", "helpers": "5"}
    assert configure_from_text("lan", knobs) == dataclasses.replace(
        LAN, probe_period=15, ack_timeout=7, reap_after=ticks(3 * 86400), helpers=5
    )
    assert {field.name for field in dataclasses.fields(Config)} > DURATIONS


@pytest.mark.parametrize(
    ("knobs", "complaint"),
    [
        ({"probe_period": "2"}, "probe_period: '2' is no duration; write for example 500ms"),
        ({"probe_period": "-2s"}, "no duration"),
        ({"helpers": "2s"}, "helpers: '2s' is no whole number"),
        ({"helpers": "²"}, "no whole number"),
        ({"speed": "2"}, "no such knob: speed"),
        ({"ack_timeout": "1s"}, "ack_timeout: must be less than probe_period"),
        ({"helpers": "9" * 4000}, "no whole number of at least 0"),
    ],
)
def test_a_knob_that_makes_no_sense_is_refused_by_name(
    knobs: dict[str, str], complaint: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        configure_from_text("lan", knobs)


@pytest.mark.parametrize(
    "knobs",
    [
        {"probe_period": 0},
        {"probe_period": 5, "ack_timeout": 5},
        {"helpers": -1},
        {"gossip_period": 1.5},
        {"gossip_fanout": True},
        {"rate_bytes": 1_999},
        {"reap_after": 1 << 40},
    ],
)
def test_settings_that_cannot_be(knobs: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"^\w+: "):
        configure("lan", knobs)


def test_ticks_are_a_tenth_of_a_second_and_never_none() -> None:
    assert [ticks(s) for s in (0.01, 0.1, 0.25, 1, 60)] == [1, 1, 2, 10, 600]


def test_awareness_keeps_to_its_scale() -> None:
    awareness = Awareness(8)
    awareness.add(-1)
    assert (awareness.score, awareness.stretch(10)) == (0, 10)
    awareness.add(100)
    assert (awareness.score, awareness.stretch(10)) == (7, 80)
    awareness.configure(3)
    assert awareness.score == 2
    awareness.add(-9)
    awareness.distrust()
    assert awareness.score == 2


def test_suspicion_counts_each_accuser_once_and_no_more_than_wanted() -> None:
    accusers = [short_id(MemberId(name)) for name in "abcde"]
    suspicion = Suspicion(accusers[:1], wanted=2, least=10, most=100, now=5)
    assert (suspicion.confirmations, suspicion.deadline(9)) == (0, 105)
    assert not suspicion.add(accusers[:1])
    assert suspicion.add(accusers[1:2])
    assert suspicion.add(accusers[:4])
    assert (suspicion.confirmations, suspicion.deadline(9)) == (2, 15)
    assert not suspicion.add(accusers)


def test_suspicion_waits_for_nobody_who_cannot_come() -> None:
    suspicion = Suspicion([short_id(MemberId("b"))], wanted=3, least=10, most=100, now=0)
    deadlines = [suspicion.deadline(others) for others in (5, 3, 2, 1, 0)]
    assert deadlines == [100, 100, 100, 100, 10]
    suspicion.add([short_id(MemberId("c"))])
    assert [suspicion.deadline(others) for others in (2, 1, 0)] == [55, 43, 10]


def test_suspicion_weighs_evidence_once() -> None:
    suspicion = Suspicion([ShortId(b"12345678")], wanted=0, least=10, most=100, now=0)
    assert (suspicion.evidence, suspicion.deadline(9)) == (Evidence.SILENT, 10)
    assert suspicion.stall(4)
    assert not suspicion.stall(4)
    assert (suspicion.evidence, suspicion.deadline(9)) == (Evidence.STALLED, 40)
    assert suspicion.refuse(20)
    assert not suspicion.refuse(25)
    assert (suspicion.evidence, suspicion.deadline(9)) == (Evidence.REFUSED, 20)
    suspicion.restart(100, least=50, most=500)
    assert suspicion.deadline(9) == 150


@pytest.mark.parametrize("seed", range(20))
def test_news_in_any_order_ends_the_same(seed: int) -> None:
    rng = random.Random(seed)
    news = [(i, state) for i in range(3) for state in State]
    ends = set()
    for _ in range(10):
        rng.shuffle(news)
        held = member(1, State.ALIVE, 0)
        for incarnation, state in news:
            if supersedes(incarnation, state, held):
                held = member(1, state, incarnation)
        ends.add((held.incarnation, held.state))
    assert ends == {(2, State.LEFT)}, f"seed {seed}"


def test_queue_is_bounded_and_drops_what_was_sent_most() -> None:
    queue = Queue()
    shorts = [ShortId(number.to_bytes(8, "big")) for number in range(RUMOURS_MAX + 1)]
    for short in shorts[:RUMOURS_MAX]:
        queue.put(Left(short, 0))
    (spent,) = queue.take(room=100, count=1, limit=10)
    queue.put(Left(shorts[-1], 0))
    assert (len(queue), queue.dropped) == (RUMOURS_MAX, 1)
    assert spent not in queue.take(room=10**9, count=RUMOURS_MAX, limit=10)


def test_queue_fills_the_room_that_a_long_rumour_leaves() -> None:
    queue = Queue()
    short = Left(short_id(MemberId("b")), 0)
    queue.put(short)
    queue.put(Alive(MemberId("a"), 0, HERE, bytes(256)))
    assert queue.take(room=60, count=8, limit=4) == [short]


def test_budget_holds_a_second_and_keeps_half_for_answers() -> None:
    budget = Budget(1_000)
    assert budget.spend(500)
    assert not budget.rumours_allowed
    assert budget.spend(500)
    assert not budget.spend(1)
    budget.tick()
    assert budget.spend(100)
    assert not budget.spend(1)
    for _ in range(100):
        budget.tick()
    assert budget.spend(1_000)
    assert not budget.spend(1)


def test_helpers_run_so_many_pings_at_a_time() -> None:
    table = Table(member(1_000))
    table.put(member(1))
    relays = Relays(table=table, config=LAN, sequences=itertools.count())
    sent = [
        message
        for number in range(RELAYS_MAX + 5)
        for action in relays.ask(HERE, PingReq(number, member(1).short, 0))
        if isinstance(action, Send)
        for message in action.messages
    ]
    assert [type(message) for message in sent] == [Ping] * RELAYS_MAX + [Nack] * 5


def test_doubts_are_bounded_and_taken_in_turn() -> None:
    table = Table(member(0))
    for number in range(1, DOUBTS_MAX + 3):
        table.put(member(number))
    prober = Prober(
        table=table,
        awareness=Awareness(8),
        config=configure("lan", {"probe_period": 10_000, "ack_timeout": 9_000}),
        rng=random.Random(0),
        sequences=itertools.count(),
    )
    for held in table:
        prober.doubt(held.member, State.ALIVE)
    started = 0
    while outcomes := prober.tick():
        assert len(outcomes) <= DOUBTS_PER_TICK
        started += len(outcomes)
    assert started == DOUBTS_MAX


def test_user_events_are_bounded() -> None:
    events = UserEvents()
    origin = short_id(MemberId("b"))
    first = events.create(origin, "x", b"")
    assert not events.witness(first)
    for number in range(2 * WINDOW):
        events.create(origin, "x", number.to_bytes(2, "big"))
    assert not events.witness(first)
    clock = events.clock
    other = UserEvents()
    assert (
        sum(
            other.witness(type(first)(clock, origin, "x", number.to_bytes(2, "big")))
            for number in range(2 * AT_ONE_CLOCK_MAX)
        )
        == AT_ONE_CLOCK_MAX
    )
    # One packet cannot use up all of time.
    assert not other.witness(type(first)(clock + JUMP_MAX + 1, origin, "x"))


@given(st.lists(st.integers(0, 30), max_size=60), st.randoms(use_true_random=False))
def test_table_agrees_with_a_plain_dict(numbers: list[int], rng: random.Random) -> None:
    """Counts, choices and digests after any history are those of the members that are left."""
    me = member(1_000)
    table, plain = Table(me), {me.member: me}
    for number in numbers:
        state = rng.choice(list(State))
        record = member(number, state, rng.randrange(3))
        if record.member in plain and rng.random() < 0.2:
            table.remove(record.member)
            del plain[record.member]
        else:
            table.put(record)
            plain[record.member] = record
    assert {r.member: r for r in table} == plain
    live = [r for r in plain.values() if r.state in (State.ALIVE, State.SUSPECT)]
    assert table.live == len(live)
    assert sorted(table.others()) == sorted(r.member for r in live if r is not me)
    assert sorted(table.dead) == sorted(m for m, r in plain.items() if r.state is State.DEAD)
    chosen = table.sample(rng, 5, lambda record: record.state is State.ALIVE)
    assert len({r.member for r in chosen}) == len(chosen)
    alive = [r for r in live if r is not me and r.state is State.ALIVE]
    assert len(chosen) == min(5, len(alive))
    fresh = Table(me)
    for record in plain.values():
        fresh.put(record)
    assert table.digests(64) == fresh.digests(64)


@given(st.sets(st.integers(0, 200), max_size=50), st.integers(0, 200))
def test_digests_name_just_the_bucket_that_differs(numbers: set[int], changed: int) -> None:
    ours, theirs = Table(member(1_000)), Table(member(1_000))
    for number in numbers:
        ours.put(member(number))
        theirs.put(member(number))
    theirs.put(member(changed, State.DEAD, 1))
    for count in (64, 256):
        buckets = differing(ours.digests(count), theirs.digests(count))
        assert list(buckets) == [bucket_of(short_id(MemberId(f"n{changed}")), count)]
        assert MemberId(f"n{changed}") in {r.member for r in theirs.in_buckets(buckets, count)}


def test_a_suspicion_alone_is_no_difference() -> None:
    parts = (MemberId("a"), 7, HERE, b"f")
    hashes = {state: record_hash(parts[0], parts[1], state, parts[2], parts[3]) for state in State}
    assert hashes[State.ALIVE] == hashes[State.SUSPECT]
    assert len(set(hashes.values())) == 3


def test_buckets_and_frames() -> None:
    assert (bucket_count(4_096), bucket_count(4_097)) == (64, 256)
    assert len(fold([1] * 256, 64)) == 512
    records = [
        Record(MemberId(f"n{number}"), 0, State.ALIVE, HERE) for number in range(RECORDS_MAX + 1)
    ]
    first, last = frames(records, b"\1")
    assert (len(first.records), first.buckets, first.more) == (RECORDS_MAX, b"\1", True)
    assert (len(last.records), last.buckets, last.more) == (1, b"", False)
    (empty,) = frames([])
    assert (empty.records, empty.more) == ((), False)


def test_table_has_room_for_ten_thousand() -> None:
    assert MEMBERS_MAX >= 10_000
    assert Config().suspicion_bounds(MEMBERS_MAX, 0) == (84, 1011)
