"""Bounded waiting: the one way in which a test waits for the real world."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

import trio

T = TypeVar("T")

#: How often `eventually` looks: often enough for a test, seldom enough for a command line a look.
LOOK_EVERY = 0.1


@overload
async def eventually(
    look: Callable[[], Awaitable[T]],
    *,
    until: Callable[[T], object] = ...,
    within: float = ...,
    every: float = ...,
) -> T: ...
@overload
async def eventually(
    look: Callable[[], T],
    *,
    until: Callable[[T], object] = ...,
    within: float = ...,
    every: float = ...,
) -> T: ...
async def eventually(
    look: Callable[[], object],
    *,
    until: Callable[[T], object] = bool,
    within: float = 30.0,
    every: float = LOOK_EVERY,
) -> object:
    """Return the first value of *look* for which *until* holds.

    An `AssertionError` or `OSError` of either (a `LabError` is an OSError) counts as "not yet".
    Raises `AssertionError` after *within* seconds, with the last thing that was seen: it is
    usually the whole story. A look that hangs is cut off too.
    """
    last = "nothing: the first look did not end"
    with trio.move_on_after(within):
        while True:
            try:
                found = look()
                value: Any = await found if inspect.isawaitable(found) else found
                last = f"{value}"
                if until(value):
                    return value
            except (AssertionError, OSError) as error:
                last = f"{type(error).__name__}: {error}"
            await trio.sleep(every)
    raise AssertionError(f"not within {within:g} s; the last look saw:\n{last}")
