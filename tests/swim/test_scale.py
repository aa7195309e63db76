"""A slice of `scripts/gossip-scale` with fixed seeds: the stories hold, the tables are tables."""

from __future__ import annotations

import dataclasses
import random

import pytest

from scripts.gossip_scale import STORIES, cell, kept_in, plot, table
from swarmlet.swim.config import LAN
from swarmlet.swim.members import Member, Table
from swarmlet.swim.messages import MemberId, State
from tests.seeds import run_seed
from tests.swim import scale
from tests.swim.scale import Found, Shared, SharedTable


def member(number: int) -> Member:
    address = (f"10.0.{number >> 8}.{number & 255}", 7947)
    return Member(MemberId(f"n{number}"), 1 << 32, State.ALIVE, address, b"", 0)


def test_a_shared_table_holds_what_a_table_holds() -> None:
    rng = random.Random(run_seed())
    members = [member(number) for number in range(40)]
    own = members[0]
    plain = Table(own)
    for other in members[1:]:
        plain.put(other)
    shared = SharedTable(Shared(members), own.member, random.Random(1))
    for _ in range(500):
        held = plain.get(rng.choice(members[1:]).member)
        assert held is not None
        changed = dataclasses.replace(
            held, incarnation=held.incarnation + rng.randrange(2), state=rng.choice(list(State))
        )
        plain.put(changed)
        shared.put(changed)
        one = rng.choice(members)
        assert plain.get(one.member) == shared.get(one.member) == shared.find(one.short)
        assert plain.at(one.address) == shared.at(one.address)
        assert (len(plain), plain.live, set(plain.dead)) == (
            len(shared),
            shared.live,
            set(shared.dead),
        )
        assert set(plain.others()) == set(shared.others())
        assert plain.digests(64) == shared.digests(64)
        buckets = bytes(rng.sample(range(64), 9))
        assert set(plain.in_buckets(buckets, 64)) == set(shared.in_buckets(buckets, 64))
        live = shared.sample(rng, 3, lambda record: record.state is State.SUSPECT)
        assert all(r.state is State.SUSPECT and r.member != own.member for r in live)


@pytest.mark.level3
@pytest.mark.parametrize(("size", "loss"), [(10, 0.3), (60, 0.1), (150, 0.0)])
def test_a_crash_is_seen_by_all_and_costs_what_it_should(size: int, loss: float) -> None:
    found = scale.crash(size, 1, loss=loss)
    assert not found.complaints
    assert found.figures["idle bytes a second"] < (LAN.rate_bytes if loss else 400)
    least, most = LAN.suspicion_bounds(size, 0)
    assert found.figures["all know"] - found.figures["suspected"] < most / 10 + 5
    if not loss:
        assert round(found.figures["first verdict"] - found.figures["suspected"], 1) >= least / 10


@pytest.mark.level3
def test_bad_weather_buries_nobody_who_is_awake() -> None:
    found = scale.weather(40, 1, seconds=30)
    assert not found.complaints
    assert found.figures["members falsely buried"] == 0


@pytest.mark.level3
def test_half_of_a_group_leaves_at_once_and_nobody_dies() -> None:
    assert not scale.leave(100, 1, 50).complaints


@pytest.mark.level3
def test_two_halves_become_one_again() -> None:
    assert not scale.partition(30, 1).complaints


def test_what_was_found_becomes_a_table_and_a_plot() -> None:
    def found(size: int, seconds: float) -> Found:
        names = ("suspected", "first verdict", "all know")
        return Found(size, 1, dict.fromkeys(names, seconds))

    results = {(0, 10): [found(10, 4.0), found(10, 6.0)], (0, 100): [found(100, 8.5)]}
    text = table(results)
    assert text.splitlines()[0] == "| | 10 | 100 |"
    assert f"| {STORIES[0].title}: all know | 5 | 8.5 |" in text
    assert cell([], "all know") == ""
    drawing = plot(results)
    assert drawing.startswith("<svg ")
    assert drawing.count("<circle") == 9
    assert kept_in(None) == {}
