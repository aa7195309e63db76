"""The codec: what goes in comes out, and hostile bytes raise BadMessage and nothing else."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NewType

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.codec import BadMessage, pack, unpack_untrusted

NodeId = NewType("NodeId", str)


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 7


@dataclass(frozen=True, slots=True)
class Dot:
    x: int
    y: float = 0.0


@dataclass(frozen=True, slots=True)
class Line:
    points: tuple[Dot, ...]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Everything:
    node: NodeId
    flag: bool
    data: bytes
    colour: Colour
    level: Level
    shape: Dot | Line
    maybe: Dot | None = None
    pair: tuple[str, int] = ("", 0)
    labels: Mapping[str, str] = field(default_factory=dict)
    lines: Mapping[str, Line] = field(default_factory=dict)
    number: int | None = None


dots = st.builds(Dot, st.integers(-(1 << 63), (1 << 63) - 1), st.floats(allow_nan=False))
lines = st.builds(Line, st.lists(dots, max_size=4).map(tuple), st.text(max_size=8))
everything = st.builds(
    Everything,
    node=st.text(max_size=8),
    flag=st.booleans(),
    data=st.binary(max_size=16),
    colour=st.sampled_from(Colour),
    level=st.sampled_from(Level),
    shape=dots | lines,
    maybe=st.none() | dots,
    pair=st.tuples(st.text(max_size=4), st.integers(0, 1 << 32)),
    labels=st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=4),
    lines=st.dictionaries(st.text(max_size=4), lines, max_size=3),
    number=st.none() | st.integers(-5, 5),
)


@given(everything)
def test_round_trip(record: Everything) -> None:
    assert unpack_untrusted(Everything, pack(record)) == record


@given(st.binary(max_size=64))
def test_any_bytes_raise_only_bad_message(body: bytes) -> None:
    with contextlib.suppress(BadMessage):
        unpack_untrusted(Everything, body)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=24,
)


@given(plain)
def test_any_msgpack_raises_only_bad_message(value: object) -> None:
    with contextlib.suppress(BadMessage):
        unpack_untrusted(Everything, msgpack.packb(value))


@given(everything, st.data())
def test_mutated_record_is_refused_or_still_a_record(
    record: Everything, data: st.DataObject
) -> None:
    body = bytearray(pack(record))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadMessage):
        assert isinstance(unpack_untrusted(Everything, bytes(body)), Everything)


def test_trailing_defaults_cost_no_bytes() -> None:
    assert msgpack.unpackb(pack(Line((Dot(1), Dot(2, 3.0))))) == [[[1], [2, 3.0]]]


def test_surplus_fields_of_a_newer_peer_are_ignored() -> None:
    assert unpack_untrusted(Dot, msgpack.packb([1, 2.0, "new"])) == Dot(1, 2.0)


def test_missing_fields_of_an_older_peer_take_their_defaults() -> None:
    assert unpack_untrusted(Dot, msgpack.packb([1])) == Dot(1)
    with pytest.raises(BadMessage, match="Dot has 0 of 1 fields"):
        unpack_untrusted(Dot, msgpack.packb([]))


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ([[["a"]]], "Line.points: Dot.x: a str, not int"),
        ([[[True]]], "Line.points: Dot.x: a bool, not int"),
        ([[], 5], "Line.name: a int, not str"),
        ({}, "Line is a dict, not an array"),
    ],
)
def test_the_complaint_names_the_path(value: object, complaint: str) -> None:
    with pytest.raises(BadMessage, match=f"^{complaint}$"):
        unpack_untrusted(Line, msgpack.packb(value))


def test_deep_nesting_is_bad_and_not_a_crash() -> None:
    with pytest.raises(BadMessage):
        unpack_untrusted(Line, b"\x91" * 100_000)
