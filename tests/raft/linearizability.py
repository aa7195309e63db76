"""Is there an order in which operations that took time could each have taken effect at once?

The search of Wing and Gong with Lowe's memory ("Testing for linearizability", 2017): operations
are put into an order one by one, each only before anything that began after its end; a set of
operations that led to a state before need not be tried again. A history is linearizable if its
part on each key is (P-compositionality: Herlihy and Wing's locality), so keys are searched
one by one, which is what makes thousands of operations a matter of milliseconds.

An operation whose outcome is not known may have taken effect at any time after its call, or never:
it ends after all others, and whatever it answers is right. Pure.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

PUT: Final = "put"  # value -> None
GET: Final = "get"  # -> the value
CAS: Final = "cas"  # (expected, value) -> whether it was made
APPEND: Final = "append"  # item -> the list before

#: The value of a register, the items of a list; None: nothing was ever written.
State: TypeAlias = bytes | tuple[bytes, ...] | None
#: What an operation was given, and what it answered.
Value: TypeAlias = State | tuple[State, State] | bool

#: Stands for the values that nobody has seen.
UNSEEN: Final = b"\0unseen"
#: Steps of a search for one key after which it is given up.
STEPS_MAX: Final = 2_000_000


class NotLinearizable(AssertionError):
    """No order explains what was answered."""


class Undecided(Exception):
    """The search took too many steps."""


@dataclass(eq=False, slots=True)
class Operation:
    """What a client asked, from its call to its return, on a clock that all clients share."""

    key: str
    kind: str
    argument: Value
    called: float
    returned: float = math.inf  # it stays so if the outcome is not known
    result: Value = None
    #: Where in the order somebody who could see says that it took effect: tried first.
    hint: float | None = None

    @property
    def known(self) -> bool:
        return self.returned < math.inf

    def __str__(self) -> str:
        end = f"{self.returned:.3f}" if self.known else "?"
        argument = "" if self.argument is None else repr(self.argument)
        result = repr(self.result) if self.known else "?"
        return f"[{self.called:.3f}, {end}] {self.kind} {self.key} {argument} -> {result}"


@dataclass(slots=True)
class History:
    """Operations as they happen. Without a clock of one's own, the order of events is the time."""

    operations: list[Operation] = field(default_factory=list)
    _clock: itertools.count[int] = field(default_factory=itertools.count)

    def call(
        self, key: str, kind: str, argument: Value = None, *, at: float | None = None
    ) -> Operation:
        operation = Operation(key, kind, argument, next(self._clock) if at is None else at)
        self.operations.append(operation)
        return operation

    def answer(self, operation: Operation, result: Value, *, at: float | None = None) -> None:
        """Note that *operation* took effect, and what it answered."""
        operation.returned = next(self._clock) if at is None else at
        operation.result = result

    def never(self, operation: Operation) -> None:
        """Note that *operation* was refused for good: as if nobody had ever asked."""
        self.operations.remove(operation)

    def check(self) -> None:
        check(self.operations)


def apply(state: State, operation: Operation) -> tuple[Value, State]:
    """Return what *operation* answers in *state*, and the state after it."""
    argument = operation.argument
    match operation.kind:
        case "put":
            assert not isinstance(argument, bool)
            return None, argument  # type: ignore[return-value]
        case "cas":
            assert isinstance(argument, tuple)
            expected, value = argument
            if state == expected:
                return True, value
            return False, state
        case "append":
            assert isinstance(argument, bytes)
            assert not isinstance(state, bytes)
            items = state or ()
            return items, (*items, argument)
    assert operation.kind == GET, operation.kind
    return state, state


def check(operations: Iterable[Operation]) -> None:
    """Raise NotLinearizable, with the operations that do not fit, or Undecided."""
    keys: dict[str, list[Operation]] = {}
    for operation in operations:
        keys.setdefault(operation.key, []).append(operation)
    for key in sorted(keys):
        if not _is_explained_by_hints(keys[key]):
            _check_key(key, _relevant(keys[key]))


def _is_explained_by_hints(operations: Sequence[Operation]) -> bool:
    """Say if the order of the hints is one that explains everything.

    Open loops leave dozens of operations side by side, whose orders are too many to try. Whether
    an order is right can be seen at once, wherever it comes from; only where none was given, or
    it does not do, is there a search.
    """
    hinted = [(op.hint, op.called, op) for op in operations if op.hint is not None]
    if any(op.known and op.hint is None for op in operations):
        return False
    state: State = None
    called = -math.inf
    for _, _, operation in sorted(hinted, key=lambda entry: entry[:2]):
        result, state = apply(state, operation)
        called = max(called, operation.called)
        if operation.returned < called or (operation.known and result != operation.result):
            return False
    return True


def _relevant(operations: Sequence[Operation]) -> list[Operation]:
    """Leave out what cannot matter: operations of unknown outcome that nobody has seen.

    Each doubles the orders to try. A write whose value appears in no answer may as well have
    never happened, unless a compare-and-set failed, for which it could be the reason; then it does
    not matter which of them it was. Values are unique, or else more is kept than need be.
    """
    seen: set[Value] = set()
    for op in operations:
        if op.known:
            seen.update(op.result if isinstance(op.result, tuple) else (op.result,))
        if op.kind == CAS:
            assert isinstance(op.argument, tuple)
            seen.add(op.argument[0])
    failed = any(op.kind == CAS and op.known and not op.result for op in operations)
    kept = []
    for op in operations:
        if op.known or (op.kind != GET and _written(op) in seen):
            kept.append(op)
        elif failed and op.kind == PUT:
            kept.append(replace(op, argument=UNSEEN))
        elif failed and op.kind == CAS:
            kept.append(op)
    return kept


def _written(operation: Operation) -> Value:
    argument = operation.argument
    return argument[1] if operation.kind == CAS and isinstance(argument, tuple) else argument


class _Event:
    """A call or a return, in a list from which operations are lifted and put back."""

    __slots__ = ("after", "before", "number", "operation", "returns")

    def __init__(self, operation: Operation | None, number: int) -> None:
        self.operation = operation
        self.number = number
        self.returns: _Event | None = None  # of a call: its return
        self.before: _Event = self
        self.after: _Event | None = None


def _events(operations: Sequence[Operation]) -> _Event:
    """Return what stands before the first event; calls come before returns of the same time."""
    stamped: list[tuple[float, int, int, _Event]] = []
    for number, operation in enumerate(operations):
        call, returns = _Event(operation, number), _Event(operation, number)
        call.returns = returns
        stamped += [(operation.called, 0, number, call), (operation.returned, 1, number, returns)]
    head = last = _Event(None, -1)
    for _, _, _, event in sorted(stamped, key=lambda entry: entry[:3]):
        last.after, event.before = event, last
        last = event
    return head


def _lift(call: _Event) -> None:
    returns = call.returns
    assert returns is not None
    for event in (call, returns):
        event.before.after = event.after
        if event.after is not None:
            event.after.before = event.before


def _put_back(call: _Event) -> None:
    returns = call.returns
    assert returns is not None
    for event in (returns, call):
        event.before.after = event
        if event.after is not None:
            event.after.before = event


def _check_key(key: str, operations: Sequence[Operation]) -> None:
    head = _events(operations)
    earlier = _alike_before(operations)
    left = sum(operation.known for operation in operations)
    state: State = None
    done, best = 0, (len(operations) + 1, 0)
    tried = {(done, state)}
    order: list[tuple[_Event, State]] = []
    event = head.after
    for _ in range(STEPS_MAX):
        if not left:
            return  # what else there is may never have happened
        assert event is not None
        operation = event.operation
        assert operation is not None
        if event.returns is not None:
            result, after = apply(state, operation)
            if operation.known:
                fits = result == operation.result
            else:  # without an effect it may as well be left out
                fits = after != state and not earlier[event.number] & ~done
            with_it = done | 1 << event.number
            if fits and (with_it, after) not in tried:
                tried.add((with_it, after))
                order.append((event, state))
                state, done = after, with_it
                left -= operation.known
                best = min(best, (left, done))
                _lift(event)
                event = head.after
            else:
                event = event.after
        elif order:
            # It has returned, so it must have taken effect by now: something before was wrong.
            event, state = order.pop()
            assert event.operation is not None
            done &= ~(1 << event.number)
            left += event.operation.known
            _put_back(event)
            event = event.after
        else:
            raise NotLinearizable(_explain(key, operations, best[1]))
    raise Undecided(f"key {key}: {len(operations)} operations take more than {STEPS_MAX} steps")


def _alike_before(operations: Sequence[Operation]) -> list[int]:
    """For each write of a value that nobody has seen: those like it that were called before.

    They take effect in this order or not at all: any other is the same with other names.
    """
    alike = [
        (operation.called, number)
        for number, operation in enumerate(operations)
        if not operation.known and operation.argument == UNSEEN
    ]
    before, masks = 0, [0] * len(operations)
    for _, number in sorted(alike):
        masks[number] = before
        before |= 1 << number
    return masks


def _explain(key: str, operations: Sequence[Operation], done: int) -> str:
    """Show what the longest order that was found leaves out."""
    left = [op for number, op in enumerate(operations) if not done >> number & 1 and op.known]
    shown = sorted(left, key=lambda op: op.returned)[:8]
    lines = "".join(f"\n  {operation}" for operation in shown)
    return (
        f"key {key}: no order explains all {len(operations)} operations; the longest leaves out "
        f"{len(left)}, of which first{lines}"
    )
