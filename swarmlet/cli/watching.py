"""Waiting for the swarm to do what was asked: polls the API and shows how far it is.

On a terminal the lines are redrawn in place; in a pipe each piece of news is one line, once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from swarmlet.api.client import Client, ClientError, Refused, Unreachable
from swarmlet.cli.base import Failure
from swarmlet.cli.progress import Convergence, Line, count_failures

if TYPE_CHECKING:
    from rich.live import Live

T = TypeVar("T")

POLL_SECONDS = 0.2
#: A leader may fall in the middle of it; the next one is there long before this.
PATIENCE_SECONDS = 30.0
#: For the tasks of a removed service to stop: their grace, and the rest.
REMOVAL_SECONDS = 120.0


class Screen(AbstractContextManager["Screen"]):
    """Shows lines: redrawn with rich on a terminal, news alone in a pipe, nothing if quiet."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live: Live | None = None
        self._last: dict[str, str] = {}

    def __enter__(self) -> Screen:
        if not self._quiet and sys.stdout.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(highlight=False, markup=False)
            self._live = Live(console=console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, lines: Iterable[Line]) -> None:
        if self._quiet:
            return
        if self._live is not None:
            self._redraw(self._live, list(lines))
            return
        for line in lines:
            if self._last.get(line.key) == line.text:
                continue
            self._last[line.key] = line.text
            if line.is_news:
                print(line, flush=True)

    def _redraw(self, live: Live, lines: list[Line]) -> None:
        from rich.text import Text

        text = Text("\n", no_wrap=True, overflow="ellipsis").join(
            Text(str(line), style="red" if line.is_error else "") for line in lines
        )
        live.update(text, refresh=True)


def watch_service(
    client: Client,
    id_: str,
    name: str,
    *,
    quiet: bool,
    fresh: bool = True,
    wants_rollback: bool = False,
) -> None:
    """Wait until the service has converged. Raises Failure if it will not.

    *fresh*: its tasks are new, so every failure counts; else those of before are forgiven.
    """
    patience = _Patience()
    convergence = Convergence(name, wants_rollback=wants_rollback) if fresh else None
    with Screen(quiet=quiet) as screen:
        try:
            while True:
                looked = patience.ask(lambda: _look(client, id_))
                if looked is None:
                    screen.show([Line("overall progress", "waiting for the leader to answer")])
                else:
                    service, tasks, nodes = looked
                    if convergence is None:
                        convergence = Convergence(name, old_failures=count_failures(tasks))
                    look = convergence.step(service, tasks, nodes, time.monotonic())
                    screen.show(look.lines)
                    if look.error:
                        raise Failure(look.error)
                    if look.done:
                        return
                time.sleep(POLL_SECONDS)  # noqa: TID251
        except KeyboardInterrupt:
            screen.__exit__()
            print("Operation continuing in background.")
            print(f"Use `swarmlet service ps {name}` to check progress.")


def _look(client: Client, id_: str) -> tuple[Any, Any, Any]:
    service = client.get(f"/services/{id_}", insertDefaults=False)
    filters = {"service": {id_: True}, "_up-to-date": {"true": True}}
    return service, client.get("/tasks", filters=filters), client.get("/nodes")


def watch_removal(client: Client, id_: str, name: str, *, quiet: bool) -> None:
    """Wait until no task of a removed service is left to be stopped."""
    filters = {"service": {id_: True}}
    _watch_tasks(
        lambda: client.get("/tasks", filters=filters),
        lambda left: Line(name, f"{left} task{'s' * (left != 1)} still to stop"),
        quiet=quiet,
        advice=f"`swarmlet node ls` shows whether a node is away; service {name} itself is removed",
    )


def watch_drain(client: Client, node: str, name: str, *, quiet: bool) -> None:
    """Wait until no task runs on a drained node any more."""
    filters = {"node": {node: True}}
    _watch_tasks(
        lambda: client.get("/tasks", filters=filters),
        lambda left: Line(name, f"{left} task{'s' * (left != 1)} still to move"),
        quiet=quiet,
        advice=f"`swarmlet node ps {name}` shows what stays, and why",
    )


def _watch_tasks(
    list_tasks: Callable[[], Any], line: Callable[[int], Line], *, quiet: bool, advice: str
) -> None:
    patience = _Patience()
    deadline = time.monotonic() + REMOVAL_SECONDS
    with Screen(quiet=quiet) as screen:
        try:
            while True:
                tasks = patience.ask(list_tasks)
                if tasks is not None:
                    left = sum(_is_alive(task) for task in tasks)
                    if not left:
                        return
                    screen.show([line(left)])
                if time.monotonic() > deadline:
                    raise Failure(f"tasks still run after {REMOVAL_SECONDS:g} s; {advice}")
                time.sleep(POLL_SECONDS)  # noqa: TID251
        except KeyboardInterrupt:
            screen.__exit__()
            print("Operation continuing in background.")


def _is_alive(task: Any) -> bool:
    ended = ("complete", "shutdown", "failed", "rejected", "remove", "orphaned")
    return bool(task.get("NodeID")) and task["Status"]["State"] not in ended


class _Patience:
    """Bears with a cluster that has no leader for a moment."""

    def __init__(self) -> None:
        self._since: float | None = None

    def ask(self, call: Callable[[], T]) -> T | None:
        """Return what *call* returns, None if it has to be tried again. Raises ClientError."""
        try:
            answer = call()
        except ClientError as exc:
            passing = isinstance(exc, Unreachable) or (
                isinstance(exc, Refused) and exc.status == 503
            )
            now = time.monotonic()
            self._since = self._since if self._since is not None else now
            if not passing or now - self._since > PATIENCE_SECONDS:
                raise
            return None
        self._since = None
        return answer
