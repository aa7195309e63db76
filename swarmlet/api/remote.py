"""Containers of tasks on other nodes, through any manager's socket.

A manager that has no container of a name asks the leader which task's it is, and hands the call to
the node of that task. So `docker exec web.1` works wherever web.1 runs. Workers answer for their
own containers only: what runs elsewhere is no business of theirs.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import trio

from swarmlet.agent.local.errors import NoSuch
from swarmlet.api.backend import LocalState
from swarmlet.api.convert_task import task_name
from swarmlet.api.exchange import Answer, ApiError, Response, json_response
from swarmlet.api.found import find_container
from swarmlet.api.proxy import forward
from swarmlet.api.rights import Right
from swarmlet.api.router import Call, Handler, Route
from swarmlet.api.upstream import FORWARDED, Broken, Upstream
from swarmlet.manager.errors import Ambiguous, ControlError, NotFound
from swarmlet.manager.view import View
from swarmlet.model import NodeId, Role, Task, TaskState

#: For the leader to say where a container is.
LOOKUP_SECONDS = 5.0
LOOKUP_BYTES_MAX = 64 * 1024
#: So much of an id is no chance.
PREFIX_MIN = 4


def on_any_node(handler: Handler) -> Handler:
    """*handler* for a container of this node, or the same on the node that has it."""

    async def handle(call: Call) -> Answer:
        reference = call.params["id"]
        try:
            find_container(call.node, reference)
        except NoSuch:
            place = await _ask_where(call, reference)
            if place is None:
                raise
            return await _hand_over(call, *place)
        return await handler(call)

    return handle


async def _hand_over(call: Call, node: NodeId, container: str) -> Answer:
    request = call.request
    parts = request.path.split("/")
    assert parts[1] == "containers"
    parts[2] = quote(container, safe="")
    _, separator, query = request.target.partition("?")
    version = "/v{}.{}".format(*request.version) if request.version != (0, 0) else ""
    target = f"{version}{'/'.join(parts)}{separator}{query}"
    answer = await forward(request, call.node, to=node, target=target)
    if parts[-1] == "exec" and isinstance(answer, Response) and answer.status == 201:
        call.execs.remember(str(json.loads(answer.body)["Id"]), node)
    return answer


async def _ask_where(call: Call, reference: str) -> tuple[NodeId, str] | None:
    """Node and id of a task's container; None if it is no task's, or this node may not ask."""
    here = call.node.status
    is_own = call.request.peer is None and FORWARDED not in call.request.headers
    if not (is_own and here.state is LocalState.ACTIVE and here.role is Role.MANAGER):
        return None
    if call.node.control is not None:
        document = _find(call.node.control.view, reference)
    else:
        document = await _ask_leader(call, reference)
    if document is None or document["Node"] == here.node_id:
        return None
    return NodeId(document["Node"]), document["Container"]


async def _ask_leader(call: Call, reference: str) -> dict[str, str] | None:
    with trio.move_on_after(LOOKUP_SECONDS):
        try:
            upstream = Upstream(await call.node.dial_api(None))
        except (ControlError, OSError):
            return None
        try:
            target = f"/swarmlet/containers/{quote(reference, safe='')}"
            head = await upstream.request("GET", target)
            text = b""
            while chunk := await upstream.receive():
                text += chunk
                if len(text) > LOOKUP_BYTES_MAX:
                    return None
            document: Any = json.loads(text)
        except (Broken, ValueError):
            return None
        finally:
            await upstream.aclose()
        if head.status == 400:
            raise ApiError(400, str(document.get("message", "")))
        if head.status == 200 and isinstance(document, dict):
            return {name: str(document.get(name, "")) for name in ("Node", "Container")}
    return None


async def where_is(call: Call) -> Answer:
    """What a manager asks the leader: the node and the id of a task's container."""
    document = _find(call.view, call.params["id"])
    if document is None:
        raise NotFound("container", call.params["id"])
    return json_response(document)


def _find(view: View, reference: str) -> dict[str, str] | None:
    """By its id, its name (web.1.<task>, web.1), the task's id, or the beginning of an id."""
    reference = reference.removeprefix("/")
    exact: list[tuple[Task, str]] = []
    begins: list[tuple[Task, str]] = []
    for task in view.state.tasks.values():
        seen = view.status_of(task)
        if not task.node or not seen.container:
            continue
        service = view.state.services.get(task.service)
        short = f"{service.spec.name}.{task.slot}" if service is not None and task.slot else ""
        is_current = reference == short and seen.state is TaskState.RUNNING
        if is_current or reference in (seen.container, task.id, task_name(task, service)):
            exact.append((task, seen.container))
        elif len(reference) >= PREFIX_MIN and seen.container.startswith(reference):
            begins.append((task, seen.container))
    found = exact or begins
    if len(found) > 1:
        raise Ambiguous("container", reference, len(found))
    return {"Node": found[0][0].node, "Container": found[0][1]} if found else None


ROUTES = (Route("GET", "/swarmlet/containers/{id}", where_is, Right.READ),)
