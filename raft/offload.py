"""Running what blocks, so that the Trio thread never does."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

import trio

P = ParamSpec("P")
T = TypeVar("T")


class Offload(Protocol):
    """Runs a blocking function elsewhere and returns what it returns."""

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...


class Threads:
    """An Offload to worker threads, with room of its own.

    Trio's default limit is shared by everything in the process: a dozen slow downloads there
    must not keep the log from being written.
    """

    def __init__(self, threads_max: int) -> None:
        self._limiter = trio.CapacityLimiter(threads_max)

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        def call() -> T:
            return function(*args, **kwargs)

        return await trio.to_thread.run_sync(call, limiter=self._limiter)


class Inline:
    """An Offload that runs functions on the spot: for disks in memory, which do not block."""

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        await trio.lowlevel.checkpoint()
        return function(*args, **kwargs)
