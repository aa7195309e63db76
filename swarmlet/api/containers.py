"""/containers: the containers of this node, and what they wrote."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from swarmlet.api.backend import LocalNode, TaskContainer
from swarmlet.api.convert_containers import (
    STATES,
    TASK_ID,
    container_labels,
    container_name,
    write_container,
    write_row,
)
from swarmlet.api.exchange import Answer, ApiError, Response, Send, Streamed, json_response
from swarmlet.api.filters import (
    Filters,
    matches_exactly,
    matches_labels,
    matches_part,
    matches_prefix,
    parse_filters,
)
from swarmlet.api.frames import content_type
from swarmlet.api.logoptions import LogOptions, parse_log_options, write_line
from swarmlet.api.rights import Right
from swarmlet.api.router import Call, Route
from swarmlet.manager.errors import Ambiguous, NotFound
from swarmlet.runtime.state import ContainerState, Status

FILTERS = ("ancestor", "exited", "id", "is-task", "label", "name", "network", "status")


async def list_containers(call: Call) -> Answer:
    query = call.request.query
    filters = parse_filters(query, FILTERS)
    limit = query.number("limit", 0)
    wants_all = query.flag("all") or limit > 0 or bool({"status", "exited"} & set(filters))
    known = _known(call.node)
    states = sorted(
        call.node.supervisor.containers.values(), key=lambda s: s.created_at, reverse=True
    )
    rows = [
        write_row(state, known.get(state.id), time.time())
        for state in states
        if (wants_all or state.status.running) and _matches(state, known.get(state.id), filters)
    ]
    return json_response(rows[:limit] if limit > 0 else rows)


async def inspect_container(call: Call) -> Answer:
    state, known = find_container(call.node, call.params["id"])
    return json_response(write_container(state, known))


async def container_logs(call: Call) -> Answer:
    state, _ = find_container(call.node, call.params["id"])
    options = parse_log_options(call.request.query)
    terminal = state.spec.process.terminal
    return _stream_logs(call, [state], options, terminal=terminal)


async def task_logs(call: Call) -> Answer:
    """What the leader asks of the task's node: the logs of all its lives here, in frames."""
    options = parse_log_options(call.request.query)
    task = call.params["id"]
    states = [
        state
        for state in call.node.supervisor.containers.values()
        if state.spec.annotations.get(TASK_ID) == task
    ]
    if not states:
        raise NotFound("container of task", task)
    states.sort(key=lambda state: state.created_at)
    return _stream_logs(call, states, options, terminal=False)


def _stream_logs(
    call: Call, states: list[ContainerState], options: LogOptions, *, terminal: bool
) -> Answer:
    # Opened before the head is sent, so that "no log" can still be an error.
    logs: list[Any] = [
        call.node.supervisor.logs(
            state.id,
            follow=options.follow and state is states[-1],
            tail=options.tail,
            since=options.since_time,
            until=options.until_time,
            stdout=options.stdout,
            stderr=options.stderr,
        )
        for state in states
    ]

    async def produce(send: Send) -> None:
        for log in logs:
            async with aclosing(log) as lines:
                async for line in lines:
                    text = line.time_text, line.data
                    await send(write_line(options, line.stream, *text, terminal=terminal))

    type_ = content_type(call.request.version, terminal=terminal)
    return Streamed(200, produce, (("Content-Type", type_),))


async def kill_container(call: Call) -> Answer:
    state, _ = find_container(call.node, call.params["id"])
    if not state.status.running:
        raise ApiError(409, f"container {call.params['id']} is not running: nothing to signal")
    await call.node.supervisor.kill(state.id, call.request.query.text("signal") or "SIGKILL")
    return Response(204)


async def stop_container(call: Call) -> Answer:
    state, _ = find_container(call.node, call.params["id"])
    if not state.status.running:
        return Response(304)
    seconds = call.request.query.number("t", -1)
    signal = call.request.query.text("signal") or None
    grace = float(seconds) if seconds >= 0 else None
    await call.node.supervisor.stop(state.id, signal=signal, grace=grace)
    return Response(204)


async def wait_container(call: Call) -> Answer:
    state, _ = find_container(call.node, call.params["id"])

    async def produce(send: Send) -> None:
        end = await call.node.supervisor.wait(state.id)
        await send(b'{"StatusCode":%d}\n' % end.code)

    return Streamed(200, produce, (("Content-Type", "application/json"),))


def find_container(node: LocalNode, reference: str) -> tuple[ContainerState, TaskContainer | None]:
    """By id, by name, by the beginning of the id. Raises NotFound, Ambiguous."""
    known = _known(node)
    containers: Mapping[str, ContainerState] = node.supervisor.containers
    if reference in containers:
        return containers[reference], known.get(reference)
    name = reference.removeprefix("/")
    found = [s for s in containers.values() if container_name(s, known.get(s.id)) == name]
    found = found or [s for s in containers.values() if s.id.startswith(reference)]
    if len(found) > 1:
        # A task that was started again here has several; its latest is meant.
        tasks = {state.spec.annotations.get(TASK_ID) for state in found}
        if len(tasks) > 1 or None in tasks:
            raise Ambiguous("container", reference, len(found))
        found = [max(found, key=lambda state: state.created_at)]
    if not found:
        raise NotFound("container", reference)
    return found[0], known.get(found[0].id)


def container_counts(node: LocalNode) -> dict[str, Any]:
    """Docker's counts of `info`."""
    states = [STATES[state.status] for state in node.supervisor.containers.values()]
    running, paused = states.count("running"), states.count("paused")
    return {
        "Containers": len(states),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": len(states) - running - paused,
    }


def _known(node: LocalNode) -> dict[str, TaskContainer]:
    return {known.container: known for known in node.task_containers().values()}


def _matches(state: ContainerState, known: TaskContainer | None, filters: Filters) -> bool:
    if "exited" in filters:
        code = str(state.exit.code) if state.exit is not None else ""
        if state.status is not Status.EXITED or code not in filters["exited"]:
            return False
    if "network" in filters:
        names = set(known.networks) if known is not None else set()
        if not names & set(filters["network"]):
            return False
    image = known.image if known is not None else ""
    is_task = "true" if TASK_ID in state.spec.annotations else "false"
    return (
        matches_prefix(filters, "id", state.id)
        and matches_part(filters, "name", f"/{container_name(state, known)}")
        and matches_exactly(filters, "status", STATES[state.status])
        and matches_labels(filters, "label", container_labels(state, known))
        and matches_prefix(filters, "ancestor", image, image.partition("@")[0])
        and matches_exactly(filters, "is-task", is_task)
    )


ROUTES = (
    Route("GET", "/containers/json", list_containers, Right.NODE),
    Route("GET", "/containers/{id}/json", inspect_container, Right.NODE),
    Route("GET", "/containers/{id}/logs", container_logs, Right.NODE),
    Route("POST", "/containers/{id}/kill", kill_container, Right.NODE),
    Route("POST", "/containers/{id}/stop", stop_container, Right.NODE),
    Route("POST", "/containers/{id}/wait", wait_container, Right.NODE),
    Route("GET", "/swarmlet/tasks/{id}/logs", task_logs, Right.NODE),
)
