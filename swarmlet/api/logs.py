"""Logs of a service: the leader asks every node that had a task of it and merges by time.

One source a task: the supervisor here, or `/swarmlet/tasks/{id}/logs` of its node. Each has a
bounded channel and a timeout, so a node that is away never holds up the rest: it is named on
standard error. Where a task's container is gone or out of reach, what its outcome kept is shown:
the last lines that it wrote, and how it ended.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import trio

from swarmlet.api.convert_containers import TASK_ID
from swarmlet.api.convert_node import node_name
from swarmlet.api.exchange import Answer, ApiError, Send, Streamed
from swarmlet.api.fields import timestamp
from swarmlet.api.frames import STDERR, BadFrame, FrameReader, content_type
from swarmlet.api.logoptions import LogOptions, parse_log_options, write_line, write_query
from swarmlet.api.lookup import find_service, find_task
from swarmlet.api.rights import Right
from swarmlet.api.router import Call, Route
from swarmlet.api.upstream import Broken, Upstream
from swarmlet.manager.errors import ControlError
from swarmlet.manager.view import View
from swarmlet.model import Node, Service, Task, TaskId
from swarmlet.runtime.failures import RuntimeFailure

#: For a node to answer, and for its next line when it is not followed.
NODE_SECONDS = 5.0
#: Lines of a source that wait to be merged.
SOURCE_LINES_MAX = 64
#: Sources at once: the history of a large service is long, and each holds a stream.
SOURCES_MAX = 500
#: While following: so long a line waits for an older one of another source.
ORDER_SECONDS = 0.2
#: While following: how often tasks that are new are looked for.
NEW_TASKS_SECONDS = 1.0

PREFIX = "com.docker.swarm."


@dataclass(frozen=True, slots=True, order=True)
class Line:
    time_text: str
    stream: str = field(compare=False)
    data: bytes = field(compare=False)


class NoContainer(Exception):
    """The node of a task has no container of it: not yet, or not any more."""


class Source:
    """The lines of one task, in their order; *head* is the next that was not merged yet."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.head: Line | None = None
        self.is_over = False
        self.empty_since = float("inf")
        self.sender, self._receiver = trio.open_memory_channel[Line](SOURCE_LINES_MAX)

    def take_ready(self) -> None:
        """Fill the head if a line is here already."""
        try:
            self.head = self._receiver.receive_nowait()
        except trio.WouldBlock:
            self.empty_since = min(self.empty_since, trio.current_time())
        except trio.EndOfChannel:
            self.is_over = True
        else:
            self.empty_since = float("inf")

    async def wait_head(self) -> None:
        """Fill the head, or learn that the source is over."""
        try:
            self.head = await self._receiver.receive()
        except trio.EndOfChannel:
            self.is_over = True
        self.empty_since = float("inf")


class Merge:
    """The lines of many sources by time; used by one task.

    With infinite *patience* a line is given out when no source can have an older one; else when
    the sources that have none have had none for so long.
    """

    def __init__(self, *, patience: float) -> None:
        self._patience = patience
        self._sources: list[Source] = []
        self._more = trio.Event()
        self._closed = False

    def add(self, source: Source) -> None:
        self._sources.append(source)
        self._more.set()

    def close(self) -> None:
        """No source will be added any more."""
        self._closed = True
        self._more.set()

    async def next(self) -> tuple[Source, Line] | None:
        """The oldest line there is; None when all sources are over and none can come."""
        while True:
            for source in self._sources:
                if source.head is None and not source.is_over:
                    source.take_ready()
            self._sources = [s for s in self._sources if s.head is not None or not s.is_over]
            heads = [(s.head, s) for s in self._sources if s.head is not None]
            empty = [s for s in self._sources if s.head is None]
            now = trio.current_time()
            undecided = [s for s in empty if now < s.empty_since + self._patience]
            if not self._sources and self._closed:
                return None
            if not heads:
                await self._wait_any(empty)
            elif undecided:
                await self._wait_all(undecided)
            else:
                line, source = min(heads, key=lambda pair: pair[0])
                source.head = None
                return source, line

    async def _wait_all(self, sources: list[Source]) -> None:
        deadline = max(source.empty_since for source in sources) + self._patience
        with trio.move_on_at(deadline):
            async with trio.open_nursery() as nursery:
                for source in sources:
                    nursery.start_soon(source.wait_head)

    async def _wait_any(self, sources: list[Source]) -> None:
        """Until one of *sources* has a line or is over, or a source is added."""
        async with trio.open_nursery() as nursery:

            async def wait(wait_one: Callable[[], Awaitable[None]]) -> None:
                await wait_one()
                nursery.cancel_scope.cancel()

            for source in sources:
                nursery.start_soon(wait, source.wait_head)
            if not self._closed:
                nursery.start_soon(wait, self._more.wait)
        self._more = trio.Event()


class ServiceLogs:
    """One call for logs, on the leader."""

    def __init__(self, call: Call, options: LogOptions, service: Service | None) -> None:
        self._call = call
        self._options = options
        self._service = service
        self._merge = Merge(patience=ORDER_SECONDS if options.follow else float("inf"))
        self._asked: set[TaskId] = set()
        self._terminal = False

    def is_terminal(self, tasks: Iterable[Task]) -> bool:
        view = self._call.view
        templates = [view.state.template_of(task) for task in tasks]
        if self._service is not None:
            templates.append(self._service.spec.task)
        self._terminal = any(t.container.tty for t in templates if t is not None)
        return self._terminal

    async def produce(self, send: Send, tasks: list[Task]) -> None:
        async with trio.open_nursery() as nursery:
            for task in tasks[:SOURCES_MAX]:
                self._start(nursery, task)
            if self._options.follow and self._service is not None:
                nursery.start_soon(self._watch_for_tasks, nursery)
            else:
                self._merge.close()
            while (merged := await self._merge.next()) is not None:
                source, line = merged
                await self._send(send, source.task, line)
            nursery.cancel_scope.cancel()
        if len(tasks) > SOURCES_MAX:
            text = f"only the newest {SOURCES_MAX} of {len(tasks)} tasks are shown"
            await self._warn(send, tasks[0], text)

    def _start(self, nursery: trio.Nursery, task: Task) -> None:
        self._asked.add(task.id)
        source = Source(task)
        self._merge.add(source)
        nursery.start_soon(self._fill, source)

    async def _watch_for_tasks(self, nursery: trio.Nursery) -> None:
        """Follow also the tasks that come later: replacements, and more replicas."""
        assert self._service is not None
        while True:
            await trio.sleep(NEW_TASKS_SECONDS)
            for task in tasks_of(self._call.view, self._service):
                if task.id not in self._asked and len(self._asked) < SOURCES_MAX:
                    self._start(nursery, task)

    async def _fill(self, source: Source) -> None:
        """Send the lines of one task into its channel, and what went wrong behind them."""
        seen = False
        with source.sender:
            try:
                while True:
                    try:
                        async with aclosing(self._read(source.task)) as lines:
                            async for line in lines:
                                seen = True
                                await source.sender.send(line)
                        if not seen and not self._options.follow:
                            await self._recall(source)
                        return
                    except NoContainer:
                        if not self._may_come(source.task):
                            await self._recall(source)
                            return
                    await trio.sleep(NEW_TASKS_SECONDS)
            except trio.BrokenResourceError:
                return  # nobody merges any more
            except (ControlError, RuntimeFailure, Broken, BadFrame, ApiError) as exc:
                problem = str(exc)
            except trio.TooSlowError:
                problem = f"it did not answer within {NODE_SECONDS:g} seconds"
            if not seen:
                await self._recall(source)
            node = self._call.view.state.nodes.get(source.task.node)
            if node is None:
                problem = "the node was removed from the swarm"
            text = f"warning: the log on {_described(node, source.task)} is not whole: {problem}"
            line = Line(timestamp(time.time()), "stderr", f"{text}\n".encode())
            await source.sender.send(line)

    def _may_come(self, task: Task) -> bool:
        """Whether a follower waits for the container that is not there."""
        current = self._call.view.state.tasks.get(task.id)
        return self._options.follow and current is not None and current.outcome is None

    async def _recall(self, source: Source) -> None:
        """Show what the cluster kept of a task whose container cannot be asked, or says nothing.

        Also of one that was just started again on its node, and had no time to say a word.
        """
        view = self._call.view
        task = view.state.tasks.get(source.task.id)
        if task is None:
            return
        kept_of = view.status_of(task)
        at = timestamp(kept_of.at)
        if self._options.since and kept_of.at < self._options.since:
            return
        kept = list(kept_of.log_tail)
        if self._options.tail is not None:
            kept = kept[max(0, len(kept) - self._options.tail) :]
        if self._options.stdout:
            for text in kept:
                await source.sender.send(Line(at, "stdout", f"{text}\n".encode()))
        if self._options.stderr and kept_of.log_tail:
            code = f" with exit code {kept_of.exit_code}" if kept_of.exit_code is not None else ""
            text = (
                f"note: the container is gone; these were its last lines. It ended{code}: "
                f"{kept_of.error or kept_of.message}"
            )
            await source.sender.send(Line(at, "stderr", f"{text}\n".encode()))

    def _read(self, task: Task) -> AsyncGenerator[Line, None]:
        own = self._call.node.status.node_id
        return self._read_here(task) if task.node == own else self._read_there(task)

    async def _read_here(self, task: Task) -> AsyncGenerator[Line, None]:
        supervisor = self._call.node.supervisor
        states = [
            state
            for state in supervisor.containers.values()
            if state.spec.annotations.get(TASK_ID) == task.id
        ]
        if not states:
            raise NoContainer
        states.sort(key=lambda state: state.created_at)
        for state in states:
            log: Any = supervisor.logs(
                state.id,
                follow=self._options.follow and state is states[-1],
                tail=self._options.tail,
                since=self._options.since_time,
                until=self._options.until_time,
                stdout=self._options.stdout,
                stderr=self._options.stderr,
            )
            async with aclosing(log) as lines:
                async for line in lines:
                    yield Line(line.time_text, line.stream, line.data)

    async def _read_there(self, task: Task) -> AsyncGenerator[Line, None]:
        with trio.fail_after(NODE_SECONDS):
            upstream = Upstream(await self._call.node.dial_api(task.node))
        try:
            with trio.fail_after(NODE_SECONDS):
                target = f"/swarmlet/tasks/{task.id}/logs?{write_query(self._options)}"
                head = await upstream.request("GET", target)
            if head.status == 404:
                raise NoContainer
            if head.status != 200:
                raise ApiError(502, f"it answered with status {head.status}")
            reader = FrameReader()
            patience = float("inf") if self._options.follow else NODE_SECONDS
            while True:
                with trio.fail_after(patience):
                    chunk = await upstream.receive()
                if not chunk:
                    return
                for stream, data in reader.feed(chunk):
                    time_text, _, text = data.partition(b" ")
                    name = "stderr" if stream == STDERR else "stdout"
                    yield Line(time_text.decode("ascii", "replace"), name, text)
        finally:
            with trio.CancelScope(shield=True):
                await upstream.aclose()

    async def _send(self, send: Send, task: Task, line: Line) -> None:
        details = {
            f"{PREFIX}node.id": task.node,
            f"{PREFIX}service.id": task.service,
            f"{PREFIX}task.id": task.id,
        }
        await send(
            write_line(
                self._options,
                line.stream,
                line.time_text,
                line.data,
                details=details,
                terminal=self._terminal,
            )
        )

    async def _warn(self, send: Send, task: Task, text: str) -> None:
        line = Line(timestamp(time.time()), "stderr", f"warning: {text}\n".encode())
        await self._send(send, task, line)


def tasks_of(view: View, service: Service) -> list[Task]:
    """The tasks of *service* that ever had a node, newest first."""
    tasks = [t for t in view.state.tasks.values() if t.service == service.id and t.node]
    return sorted(tasks, key=lambda task: task.created_at, reverse=True)


def _described(node: Node | None, task: Task) -> str:
    name = node_name(node, task.node)
    return f"{name} ({node.facts.address})" if node is not None else name


async def service_logs(call: Call) -> Answer:
    service = find_service(call.view.state, call.params["id"])
    return _answer(call, service, tasks_of(call.view, service))


async def logs_of_task(call: Call) -> Answer:
    task = find_task(call.view.state, call.params["id"])
    return _answer(call, None, [task] if task.node else [])


def _answer(call: Call, service: Service | None, tasks: list[Task]) -> Answer:
    options = parse_log_options(call.request.query)
    logs = ServiceLogs(call, options, service)
    terminal = logs.is_terminal(tasks)
    type_ = content_type(call.request.version, terminal=terminal)

    async def produce(send: Send) -> None:
        await logs.produce(send, tasks)

    return Streamed(200, produce, (("Content-Type", type_),))


ROUTES = (
    Route("GET", "/services/{id}/logs", service_logs, Right.READ),
    Route("GET", "/tasks/{id}/logs", logs_of_task, Right.READ),
)
