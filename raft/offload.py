"""Running what blocks, so that the Trio thread never does."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, Protocol, TypeVar

import outcome
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


class OneThread:
    """An Offload to a thread of its own, for what must be quick: calls come one after another.

    A call costs a third of what it costs with Threads, which makes a hand-over of everything
    that a task of Trio has. It is not to be cancelled while it runs.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()

        def call() -> None:
            result = outcome.capture(function, *args, **kwargs)
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(trio.lowlevel.reschedule, task, result)

        self._calls.put(call)
        result: T = await trio.lowlevel.wait_task_rescheduled(_not_cancellable)
        return result

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def close(self) -> None:
        """End the thread, after what it was given."""
        self._calls.put(None)


def _not_cancellable(_: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


class Inline:
    """An Offload that runs functions on the spot: for disks in memory, which do not block."""

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        await trio.lowlevel.checkpoint()
        return function(*args, **kwargs)

    def close(self) -> None:
        """There is nothing to end."""
