"""Counters against floods: what they let through, and that they do not grow themselves."""

from __future__ import annotations

import ipaddress
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.transport.limits import (
    ADDRESSES_MAX,
    COMPLAINT_PERIOD,
    COMPLAINTS_MAX,
    Buckets,
    Census,
    Complaints,
    TokenBucket,
    discharge,
    source_of,
)
from swarmlet.transport.protocols import (
    CONNECTIONS_MAX,
    STRANGERS_MAX,
    STRANGERS_PER_ADDRESS_MAX,
    STREAMS_PER_NODE_MAX,
)


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("?", "?"),
    ],
)
def test_source_is_what_one_owner_has_few_of(host: str, source: str) -> None:
    assert source_of(host) == source


def test_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(rate=2, burst=3, level=3, filled_at=0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(0.4)
    assert bucket.take(0.5)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]


@given(st.lists(st.floats(0, 1), max_size=60))
def test_bucket_never_gives_more_than_burst_and_rate(pauses: list[float]) -> None:
    bucket, now, taken = TokenBucket(rate=2, burst=3, level=3, filled_at=0.0), 0.0, 0
    for pause in pauses:
        now += pause
        taken += bucket.take(now)
    assert taken <= 3 + 2 * now + 1e-6


def test_buckets_are_per_source_and_bounded() -> None:
    buckets = Buckets(rate=0, burst=1)
    assert buckets.of("192.0.2.1", 0.0).take(0.0)
    assert not buckets.of("192.0.2.1", 0.0).take(0.0)
    assert buckets.of("192.0.2.2", 0.0).take(0.0)
    for number in range(ADDRESSES_MAX * 2):
        buckets.of(str(ipaddress.ip_address(number)), 0.0)
    assert len(buckets) == ADDRESSES_MAX


def test_census_has_a_bound_for_an_address_for_strangers_and_for_all() -> None:
    census = Census()
    assert census.full("a") is None
    census.strangers["a"] = STRANGERS_PER_ADDRESS_MAX
    assert "from there" in str(census.full("a"))
    assert census.full("b") is None
    census.strangers["b"] = STRANGERS_MAX - STRANGERS_PER_ADDRESS_MAX
    assert "not admitted" in str(census.full("c"))
    census.strangers.clear()
    census.nodes["n"] = CONNECTIONS_MAX
    assert "in all" in str(census.full("c"))
    assert census.node_full("n")
    assert not census.node_full("m")
    assert STREAMS_PER_NODE_MAX < CONNECTIONS_MAX


def test_who_left_leaves_nothing_behind() -> None:
    counter = Counter({"a": 2})
    discharge(counter, "a")
    assert counter == {"a": 1}
    discharge(counter, "a")
    assert "a" not in counter


def test_complaint_is_told_once_a_period_with_a_count() -> None:
    complaints = Complaints()
    assert complaints.news("a", "not-tls", 0.0) == 0
    assert [complaints.news("a", "not-tls", float(second)) for second in range(1, 9)] == [None] * 8
    assert complaints.news("a", "http", 9.0) == 0
    assert complaints.news("b", "not-tls", 9.0) == 0
    assert complaints.news("a", "not-tls", COMPLAINT_PERIOD) == 8
    assert complaints.news("a", "not-tls", COMPLAINT_PERIOD + 1) is None


def test_supply_of_addresses_does_not_fill_the_log() -> None:
    complaints = Complaints()
    told = [complaints.news(f"host-{number}", "not-tls", 0.0) for number in range(5000)]
    assert sum(news is not None for news in told) <= COMPLAINTS_MAX + 1
    # They are forgotten in time, one by one.
    late = [complaints.news(f"new-{n}", "http", COMPLAINT_PERIOD + n) for n in range(10)]
    assert late == [0] * 10
    assert len(complaints._told) <= COMPLAINTS_MAX + 1
