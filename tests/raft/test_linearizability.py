"""The checker itself: histories that are right, and others that are known to be wrong."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.raft.linearizability import (
    APPEND,
    CAS,
    GET,
    PUT,
    History,
    NotLinearizable,
    Operation,
    State,
    Value,
    apply,
    check,
)

INF = float("inf")


def register(*rows: tuple[float, float, str, Value, Value]) -> list[Operation]:
    return [
        Operation("x", kind, argument, called, returned, result)
        for called, returned, kind, argument, result in rows
    ]


GOOD = {
    "nothing": register(),
    "one after the other": register(
        (0, 1, PUT, b"1", None), (2, 3, GET, None, b"1"), (4, 5, PUT, b"2", None)
    ),
    "a read beside a write may see either value": register(
        (0, 1, PUT, b"1", None),
        (2, 9, PUT, b"2", None),
        (3, 4, GET, None, b"1"),
        (5, 6, GET, None, b"2"),
    ),
    "writes beside each other in the order of the reads": register(
        (0, 9, PUT, b"1", None),
        (0, 9, PUT, b"2", None),
        (1, 2, GET, None, b"2"),
        (3, 4, GET, None, b"1"),
    ),
    "a write without an answer that was made": register(
        (0, INF, PUT, b"1", None), (5, 6, GET, None, None), (7, 8, GET, None, b"1")
    ),
    "a write without an answer that was never made": register(
        (0, INF, PUT, b"1", None), (5, 6, GET, None, None)
    ),
    "a write without an answer is why a compare-and-set failed": register(
        (0, 1, PUT, b"1", None),
        (2, INF, PUT, b"2", None),
        (3, 4, CAS, (b"1", b"3"), False),
    ),
    "one of two compare-and-sets is made": register(
        (0, 1, PUT, b"1", None),
        (2, 5, CAS, (b"1", b"2"), True),
        (2, 5, CAS, (b"1", b"3"), False),
        (6, 7, GET, None, b"2"),
    ),
    "appends beside each other": register(
        (0, 5, APPEND, b"a", (b"b",)), (0, 5, APPEND, b"b", ()), (6, 7, GET, None, (b"b", b"a"))
    ),
}

BAD = {
    "a stale read": register(
        (0, 1, PUT, b"1", None), (2, 3, PUT, b"2", None), (4, 5, GET, None, b"1")
    ),
    "a lost write": register((0, 1, PUT, b"1", None), (2, 3, GET, None, None)),
    "a value that nobody wrote": register((0, 1, PUT, b"1", None), (2, 3, GET, None, b"7")),
    "a read from the future": register((0, 1, GET, None, b"1"), (2, 3, PUT, b"1", None)),
    "a value that comes and goes": register(
        (0, 1, PUT, b"1", None),
        (2, 9, PUT, b"2", None),
        (3, 4, GET, None, b"2"),
        (5, 6, GET, None, b"1"),
    ),
    "readers disagree about the order of writes": register(
        (0, 9, PUT, b"1", None),
        (0, 9, PUT, b"2", None),
        (1, 2, GET, None, b"2"),
        (3, 4, GET, None, b"1"),
        (5, 6, GET, None, b"2"),
    ),
    "a write that was refused is seen after all": register(
        (0, 1, PUT, b"1", None), (2, 3, CAS, (b"2", b"3"), False), (4, 5, GET, None, b"3")
    ),
    "both of two compare-and-sets are made": register(
        (0, 1, PUT, b"1", None),
        (2, 5, CAS, (b"1", b"2"), True),
        (2, 5, CAS, (b"1", b"3"), True),
    ),
    "a write without an answer is made twice": register(
        (0, INF, PUT, b"1", None),
        (1, 2, GET, None, b"1"),
        (3, 4, PUT, b"2", None),
        (5, 6, GET, None, b"1"),
    ),
    "an item that was appended twice": register(
        (0, 1, APPEND, b"a", ()), (2, 3, GET, None, (b"a", b"a"))
    ),
    "an item that was lost": register(
        (0, 1, APPEND, b"a", ()), (2, 3, APPEND, b"b", ()), (4, 5, GET, None, (b"b",))
    ),
    "two lists in different orders": register(
        (0, 5, APPEND, b"a", ()),
        (0, 5, APPEND, b"b", ()),
        (6, 7, GET, None, (b"a", b"b")),
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_histories_pass(name: str) -> None:
    check(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_bad_histories_are_found(name: str) -> None:
    with pytest.raises(NotLinearizable):
        check(BAD[name])


def test_keys_are_independent() -> None:
    """Each key has an order of its own; one that has none is named."""
    history = History()
    for key in ("x", "y"):
        history.answer(history.call(key, PUT, b"1"), None)
    history.answer(history.call("y", GET), None)
    with pytest.raises(NotLinearizable, match="key y"):
        history.check()


def test_an_operation_that_was_refused_has_not_happened() -> None:
    history = History()
    history.never(history.call("x", PUT, b"1"))
    history.answer(history.call("x", GET), b"1")
    with pytest.raises(NotLinearizable):
        history.check()


def test_a_hint_spares_the_search_and_is_not_believed_if_wrong() -> None:
    history = register((0, 9, PUT, b"1", None), (0, 9, PUT, b"2", None), (1, 2, GET, None, b"2"))
    for hints in itertools.permutations(range(3)):
        for operation, hint in zip(history, hints, strict=True):
            operation.hint = hint
        check(history)
    history[2].result = b"3"
    with pytest.raises(NotLinearizable):
        check(history)


def test_a_hundred_operations_side_by_side_are_checked_by_their_hints() -> None:
    history = register(*((0, 9, PUT, b"%d" % n, None) for n in range(100)))
    history += register((1, 9, CAS, (b"x", b"y"), False), (10, 11, GET, None, b"7"))
    history[7].called, history[7].hint = 2, 200
    for number, operation in enumerate(history):
        operation.hint = operation.hint or number
    history[-1].hint = 201
    check(history)


def brute_force(operations: Sequence[Operation]) -> bool:
    """Try every order of every choice of those that may not have happened."""
    unknown = [op for op in operations if not op.known]
    known = [op for op in operations if op.known]
    for count in range(len(unknown) + 1):
        for made in itertools.combinations(unknown, count):
            if any(explains(order) for order in itertools.permutations([*known, *made])):
                return True
    return False


def explains(order: Sequence[Operation]) -> bool:
    state: State = None
    for position, operation in enumerate(order):
        if any(later.returned < operation.called for later in order[position:]):
            return False
        result, state = apply(state, operation)
        if operation.known and result != operation.result:
            return False
    return True


VALUES = st.sampled_from([b"1", b"2", b"3"])
RESULTS: dict[str, st.SearchStrategy[Value]] = {
    PUT: st.none(),
    GET: st.none() | VALUES,
    CAS: st.booleans(),
}


@st.composite
def small_histories(draw: st.DrawFn) -> list[Operation]:
    operations = []
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from([PUT, GET, CAS]))
        argument: Value = None
        if kind == PUT:
            argument = draw(VALUES)
        elif kind == CAS:
            argument = (draw(VALUES), draw(VALUES))
        called = draw(st.integers(0, 8))
        returned = draw(st.integers(called + 1, 10) | st.just(INF))
        result = draw(RESULTS[kind])
        operations.append(Operation("x", kind, argument, called, returned, result))
    return operations


@given(small_histories())
def test_it_agrees_with_trying_every_order(operations: list[Operation]) -> None:
    try:
        check(operations)
        found = True
    except NotLinearizable:
        found = False
    assert found == brute_force(operations)


def recorded(rng: random.Random, count: int, clients: int, lost: float) -> list[Operation]:
    """A history of a store that is right: each operation takes effect between its ends."""
    state: State = None
    operations, free_at = [], [0.0] * clients
    for number in range(count):
        client = min(range(clients), key=lambda c: free_at[c])
        called = free_at[client]
        kind = rng.choice([PUT, PUT, GET, CAS])
        argument: Value = None
        if kind == PUT:
            argument = b"%d" % number
        elif kind == CAS:
            argument = (state if rng.random() < 0.5 else b"0", b"%d" % number)
        free_at[client] = called + rng.random() + clients
        operations.append(Operation("x", kind, argument, called, free_at[client]))
    # All take effect at their calls, in that order.
    for operation in sorted(operations, key=lambda op: op.called):
        operation.result, state = apply(state, operation)
        if operation.kind != GET and rng.random() < lost:
            operation.returned = INF
    return operations


def test_thousands_of_operations_by_many_clients_are_checked() -> None:
    check(recorded(random.Random(1), 5_000, 10, lost=0.01))


def test_one_wrong_answer_among_thousands_is_found() -> None:
    operations = recorded(random.Random(2), 3_000, 5, lost=0)
    reads = [op for op in operations if op.kind == GET]
    reads[len(reads) // 2].result = reads[10].result
    with pytest.raises(NotLinearizable):
        check(operations)
