"""Waiting for the first of several things, and for a value that changes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import trio


async def wait_any(waits: Iterable[Callable[[], Awaitable[object]]]) -> None:
    """Return as soon as one of *waits* does; the others are cancelled."""
    async with trio.open_nursery() as nursery:

        async def wait(one: Callable[[], Awaitable[object]]) -> None:
            await one()
            nursery.cancel_scope.cancel()

        for one in waits:
            nursery.start_soon(wait, one)


class Bell:
    """Wakes whoever waits. *rung* counts, so that a ring between look and wait is not lost."""

    def __init__(self) -> None:
        self.rung = 0
        self._event = trio.Event()

    def ring(self) -> None:
        self.rung += 1
        self._event.set()
        self._event = trio.Event()

    async def wait_beyond(self, rung: int) -> None:
        """Return once it has been rung more often than *rung* times."""
        if self.rung > rung:
            await trio.lowlevel.checkpoint()
        while self.rung <= rung:
            await self._event.wait()
