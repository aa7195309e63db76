"""Frozen values: what a dataclass promises, without its cost at each import."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest

from swarmlet.runtime.values import changed, field, named_value, value


@value
class Point:
    x: int
    y: int = 2


@named_value
class Box:
    corner: Point
    labels: Mapping[str, str] = field(default_factory=dict)


def test_values_are_equal_by_their_fields_and_frozen() -> None:
    assert Point(1) == Point(x=1, y=2) == Point(1, 2)
    assert Point(1) != Point(2)
    assert hash(Point(1)) == hash(Point(1, 2))
    assert repr(Point(1)) == "Point(x=1, y=2)"
    assert Box(corner=Point(1)).labels is not Box(corner=Point(1)).labels
    with pytest.raises(AttributeError, match="frozen"):
        Point(1).x = 3  # type: ignore[misc]
    with pytest.raises(AttributeError, match="frozen"):
        del Point(1).x
    match Point(3, 4):
        case Point(x, y):
            assert (x, y) == (3, 4)


def test_fields_that_are_wrong_are_named() -> None:
    for call, said in (
        (lambda: Point(), "x is missing"),  # type: ignore[call-arg]
        (lambda: Point(1, z=2), "no z"),  # type: ignore[call-arg]
        (lambda: Point(1, 2, 3), "2 values at most"),  # type: ignore[call-arg]
        (lambda: Point(1, x=2), "x is given twice"),  # type: ignore[misc]
        (lambda: Box(Point(1)), "positional"),  # type: ignore[misc]
    ):
        with pytest.raises(TypeError, match=said):
            call()


def test_dataclasses_functions_know_them() -> None:
    box = Box(corner=Point(1), labels={"a": "b"})
    assert dataclasses.is_dataclass(box)
    assert dataclasses.asdict(box) == {"corner": {"x": 1, "y": 2}, "labels": {"a": "b"}}
    assert dataclasses.replace(box, corner=Point(5)).corner == changed(Point(1), x=5)
    assert [f.name for f in dataclasses.fields(Box)] == ["corner", "labels"]
    assert dataclasses.fields(Box)[1].default_factory is dict
    assert dataclasses.fields(Point)[0].default is dataclasses.MISSING
