"""/tasks: list and inspect."""

from __future__ import annotations

from typing import Any

from swarmlet.api.convert_task import desired_of, task_name, write_task
from swarmlet.api.exchange import Answer, ApiError, json_response
from swarmlet.api.filters import (
    Filters,
    matches_exactly,
    matches_labels,
    matches_prefix,
    parse_filters,
    wants_true,
)
from swarmlet.api.lookup import find_node, find_service, find_task
from swarmlet.api.masking import mask_template
from swarmlet.api.rights import Right
from swarmlet.api.router import Call, Route
from swarmlet.manager.errors import NotFound
from swarmlet.model import Task
from swarmlet.state import ClusterState

FILTERS = ("_up-to-date", "desired-state", "id", "label", "name", "node", "runtime", "service")
DESIRED_STATES = ("accepted", "ready", "remove", "running", "shutdown")


async def list_tasks(call: Call) -> Answer:
    filters = parse_filters(call.request.query, FILTERS)
    for state in filters.get("desired-state", ()):
        if state not in DESIRED_STATES:
            known = ", ".join(DESIRED_STATES)
            raise ApiError(400, f"filters.desired-state: {state[:60]!r} is not one of {known}")
    view = call.view
    filters = _resolve(filters, view.state)
    tasks = [task for task in view.state.tasks.values() if _matches(task, filters, view.state)]
    return json_response([_write(call, task) for task in tasks])


async def inspect_task(call: Call) -> Answer:
    return json_response(_write(call, find_task(call.view.state, call.params["id"])))


def _write(call: Call, task: Task) -> dict[str, Any]:
    view = call.view
    template = view.state.template_of(task)
    if template is not None and call.masked:
        template = mask_template(template)
    return write_task(task, view, template)


def _resolve(filters: Filters, state: ClusterState) -> Filters:
    """Turn names of services and nodes into ids.

    What does not exist may have: the id of a removed service still finds its last tasks.
    """
    resolved = dict(filters)
    for name, find in (("service", find_service), ("node", find_node)):
        if name not in filters:
            continue
        ids: list[str] = []
        for reference in filters[name]:
            try:
                ids.append(find(state, reference).id)
            except NotFound:
                ids.append(reference)
        resolved[name] = tuple(ids)
    return resolved


def _matches(task: Task, filters: Filters, state: ClusterState) -> bool:
    service = state.services.get(task.service)
    if wants_true(filters, "_up-to-date") and (
        service is None or service.spec_version != task.spec_version
    ):
        return False
    name = task_name(task, service)
    container_labels = {}
    if filters.get("label") and (template := state.template_of(task)) is not None:
        container_labels = dict(template.container.labels)
    return (
        matches_exactly(filters, "service", task.service)
        and matches_exactly(filters, "node", task.node)
        and matches_exactly(filters, "desired-state", desired_of(task))
        and matches_prefix(filters, "id", task.id)
        and matches_prefix(filters, "name", name)
        and matches_labels(filters, "label", container_labels)
        and matches_exactly(filters, "runtime", "container")
    )


ROUTES = (
    Route("GET", "/tasks", list_tasks, Right.READ),
    Route("GET", "/tasks/{id}", inspect_task, Right.READ),
)
