"""/containers: the containers of this node, and what they wrote."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import Any

from swarmlet.api.backend import LocalNode
from swarmlet.api.convert_containers import TASK_ID, write_container, write_row
from swarmlet.api.convert_local import Around, write_local, write_local_row
from swarmlet.api.exchange import Answer, ApiError, Send, Streamed, json_response
from swarmlet.api.filters import (
    Filters,
    matches_exactly,
    matches_labels,
    matches_part,
    matches_prefix,
    parse_filters,
)
from swarmlet.api.found import Found, all_containers, find_container
from swarmlet.api.frames import content_type
from swarmlet.api.logoptions import LogOptions, parse_log_options, write_line
from swarmlet.api.remote import on_any_node
from swarmlet.api.rights import Right
from swarmlet.api.router import Call, Route
from swarmlet.manager.errors import NotFound
from swarmlet.runtime.state import ContainerState

FILTERS = (
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
)
STATUSES = ("created", "restarting", "running", "removing", "paused", "exited", "dead")


async def list_containers(call: Call) -> Answer:
    query = call.request.query
    filters = parse_filters(query, FILTERS)
    for status in filters.get("status", ()):
        if status not in STATUSES:
            raise ApiError(400, f"invalid filter 'status={status[:40]}'")
    limit = query.number("limit", 0)
    wants_all = query.flag("all") or limit > 0 or bool({"status", "exited"} & set(filters))
    node = call.node
    edges = _Edges(node, filters)
    containers = [
        found
        for found in all_containers(node)
        if (wants_all or found.runs or found.status == "restarting")
        and edges.include(found)
        and _matches(node, found, filters)
    ]
    around = around_of(node)
    sizes = await sizes_of(node, containers) if query.flag("size") else {}
    shown = containers[:limit] if limit > 0 else containers
    return json_response(
        [write_found_row(node, found, around) | sizes.get(found.id, {}) for found in shown]
    )


async def sizes_of(node: LocalNode, containers: list[Found]) -> dict[str, dict[str, int]]:
    """SizeRw and SizeRootFs of containers run by hand."""
    found = {}
    for container in containers:
        if container.local is not None:
            own, image = await node.local.size_of(container.local)
            found[container.id] = {"SizeRw": own, "SizeRootFs": own + image}
    return found


def write_found_row(node: LocalNode, found: Found, around: Around) -> dict[str, Any]:
    if found.local is not None:
        return write_local_row(found.local, bridge_address(node, found), around)
    assert found.state is not None
    return write_row(found.state, found.known, around.now)


async def inspect_container(call: Call) -> Answer:
    found = find_container(call.node, call.params["id"])
    return json_response(await write_found(call, found))


async def write_found(call: Call, found: Found) -> dict[str, Any]:
    execs = call.execs.of_container(found.id)
    if found.local is None:
        assert found.state is not None
        return {**write_container(found.state, found.known), "ExecIDs": execs or None}
    node = call.node
    document = write_local(
        found.local,
        bridge_address(node, found),
        around_of(node),
        log_path=node.local.log_path(found.local),
        execs=execs,
    )
    if call.request.query.flag("size"):
        document |= (await sizes_of(node, [found]))[found.id]
    return document


def around_of(node: LocalNode) -> Around:
    local = node.local
    return Around(
        networks=local.networks.table,
        gateway=local.gateway,
        volumes=str(local.volumes.folder),
        now=time.time(),
    )


def bridge_address(node: LocalNode, found: Found) -> str:
    """The container's address on the host's bridge; "" while it has none."""
    if found.local is None or not found.local.is_up:
        return ""
    return node.local.bridge_address_of(found.local)


async def container_logs(call: Call) -> Answer:
    found = find_container(call.node, call.params["id"])
    options = parse_log_options(call.request.query)
    states = [found.state] if found.state is not None else []
    return _stream_logs(call, states, options, terminal=found.terminal)


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


def container_counts(node: LocalNode) -> dict[str, Any]:
    """Docker's counts of `info`."""
    states = [found.status for found in all_containers(node)]
    running, paused = states.count("running"), states.count("paused")
    return {
        "Containers": len(states),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": len(states) - running - paused,
    }


class _Edges:
    """The filters before= and since=: containers made before or after another one."""

    def __init__(self, node: LocalNode, filters: Filters) -> None:
        self._before = [find_container(node, name) for name in filters.get("before", ())]
        self._since = [find_container(node, name) for name in filters.get("since", ())]

    def include(self, found: Found) -> bool:
        return all(found.created_at < edge.created_at for edge in self._before) and all(
            found.created_at > edge.created_at for edge in self._since
        )


def _matches(node: LocalNode, found: Found, filters: Filters) -> bool:
    if "exited" in filters and (
        found.status != "exited" or str(found.code) not in filters["exited"]
    ):
        return False
    if "network" in filters and not set(_networks(node, found)) & set(filters["network"]):
        return False
    if "volume" in filters and not set(_places(found)) & set(filters["volume"]):
        return False
    for name, published in (("publish", True), ("expose", False)):
        if name in filters and not set(_ports(found, published)) & _port_texts(filters[name]):
            return False
    image = found.image
    digests = (found.local.record.image_id,) if found.local is not None else ()
    return (
        matches_prefix(filters, "id", found.id)
        and matches_part(filters, "name", f"/{found.name}")
        and matches_exactly(filters, "status", found.status)
        and matches_exactly(filters, "health", _health(found))
        and matches_labels(filters, "label", found.labels)
        and matches_prefix(filters, "ancestor", image, image.partition("@")[0], *digests)
        and matches_exactly(filters, "is-task", "true" if found.task else "false")
    )


def _networks(node: LocalNode, found: Found) -> list[str]:
    if found.local is None:
        return list(found.known.networks) if found.known is not None else []
    ids = [a.network for a in found.local.record.config.attachments]
    return [*ids, *(node.local.networks.name_of(id_) for id_ in ids)]


def _places(found: Found) -> list[str]:
    """Names of volumes, and where things are mounted."""
    if found.local is not None:
        points = found.local.record.config.mounts
        return [text for p in points for text in (p.source, p.target) if text]
    assert found.state is not None
    return [text for mount in found.state.spec.mounts for text in (mount.source, mount.target)]


def _ports(found: Found, published: bool) -> list[str]:
    if found.local is None:
        return []
    record = found.local.record
    ports = [f"{port.port}/{port.protocol}" for port in record.ports]
    return ports if published else [*record.config.exposed]


def _port_texts(wanted: tuple[str, ...]) -> set[str]:
    return {text if "/" in text else f"{text}/tcp" for text in wanted}


def _health(found: Found) -> str:
    if found.local is None:
        return "none"
    health = found.local.health.status.value
    return "none" if health == "started" else health


ROUTES = (
    Route("GET", "/containers/json", list_containers, Right.NODE),
    Route("GET", "/containers/{id}/json", on_any_node(inspect_container), Right.NODE),
    Route("GET", "/containers/{id}/logs", on_any_node(container_logs), Right.NODE),
    Route("GET", "/swarmlet/tasks/{id}/logs", task_logs, Right.NODE),
)
