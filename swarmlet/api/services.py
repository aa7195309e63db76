"""/services: create, list, inspect, update, remove. Their logs are in logs.py."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any

from swarmlet.api.convert_service import read_service_spec, write_service
from swarmlet.api.exchange import Answer, ApiError, Response, json_response
from swarmlet.api.filters import (
    Filters,
    matches_exactly,
    matches_labels,
    matches_prefix,
    parse_filters,
)
from swarmlet.api.lookup import find_service
from swarmlet.api.masking import mask_service
from swarmlet.api.rights import Right
from swarmlet.api.router import Call, Route
from swarmlet.manager.errors import SpecError
from swarmlet.manager.view import View
from swarmlet.model import Desired, Global, Replicated, Service, Task, TaskState
from swarmlet.state import by_service

FILTERS = ("id", "label", "mode", "name", "runtime")
#: The client's own id of a request: sent again after a failure, it is not carried out twice.
REQUEST_HEADER = "swarmlet-request"
REQUEST_CHARACTERS_MAX = 64


async def list_services(call: Call) -> Answer:
    filters = parse_filters(call.request.query, FILTERS)
    view = call.view
    services = [s for s in view.state.services.values() if _matches(s, filters)]
    services.sort(key=lambda service: service.spec.name)
    with_status = call.request.query.flag("status")
    tasks = by_service(view.state.tasks.values()) if with_status else {}
    documents = []
    for service in services:
        document = _write(call, service)
        if with_status:
            document["ServiceStatus"] = service_status(service, tasks.get(service.id, ()), view)
        documents.append(document)
    return json_response(documents)


async def create_service(call: Call) -> Answer:
    _refuse_credentials(call)
    body = await call.request.body.json()
    if isinstance(body, dict) and not body.get("Name"):
        body["Name"] = f"service-{secrets.token_hex(3)}"
    spec = read_service_spec(body)
    request = call.request.headers.get(REQUEST_HEADER, "")[:REQUEST_CHARACTERS_MAX]
    service = await call.control.create_service(spec, request=request)
    return json_response({"ID": service.id, "Warnings": None}, 201)


async def inspect_service(call: Call) -> Answer:
    return json_response(_write(call, find_service(call.view.state, call.params["id"])))


async def update_service(call: Call) -> Answer:
    _refuse_credentials(call)
    query = call.request.query
    body = await call.request.body.json()
    service = find_service(call.view.state, call.params["id"])
    version = query.number("version", -1)
    if version < 0:
        raise ApiError(400, "version: the version of the service that you changed is missing")
    rollback = query.text("rollback")
    if rollback not in ("", "previous"):
        raise ApiError(400, f"rollback: {rollback[:60]!r} is not 'previous'")
    if rollback:
        if service.previous_spec is None:
            raise ApiError(
                400,
                f"service {service.spec.name} was never updated: there is nothing to go back to",
            )
        spec = service.previous_spec
    else:
        spec = read_service_spec(body, service.spec)
        if spec.name != service.spec.name:
            raise SpecError("Name", "a service cannot be renamed; create one with the new name")
    await call.control.update_service(service.id, spec, version=version, rollback=bool(rollback))
    return json_response({"Warnings": None})


async def remove_service(call: Call) -> Answer:
    service = find_service(call.view.state, call.params["id"])
    await call.control.remove_service(service.id)
    return Response(200)


def _refuse_credentials(call: Call) -> None:
    """`--with-registry-auth`: the nodes could not use them yet, so they are not taken."""
    header = call.request.headers.get("x-registry-auth", "")
    if not header:
        return
    from swarmlet.images.registry import decode_credentials_untrusted

    if decode_credentials_untrusted(header) is not None:
        raise ApiError(
            501,
            "X-Registry-Auth: handing registry credentials to the nodes is not built yet; leave "
            "out --with-registry-auth, and pull or load the image on one node beforehand",
        )


def service_status(service: Service, tasks: Iterable[Task], view: View) -> dict[str, int]:
    """How many tasks run and how many should: only those that are still wanted count.

    (Docker also counts what runs on a lost node and what is being replaced, hence its "4/3".)
    """
    wanted = [t for t in tasks if t.desired <= Desired.RUNNING and t.outcome is None]
    running = {
        (task.slot, task.node if not task.slot else "")
        for task in wanted
        if task.node and view.is_up(task.node) and view.status_of(task).state is TaskState.RUNNING
    }
    match service.spec.mode:
        case Replicated(replicas):
            desired = replicas
        case Global():
            desired = len({task.node for task in wanted})
    return {"RunningTasks": len(running), "DesiredTasks": desired, "CompletedTasks": 0}


def _write(call: Call, service: Service) -> dict[str, Any]:
    return write_service(mask_service(service) if call.masked else service)


def _matches(service: Service, filters: Filters) -> bool:
    spec = service.spec
    mode = "global" if isinstance(spec.mode, Global) else "replicated"
    return (
        matches_prefix(filters, "id", service.id)
        and matches_prefix(filters, "name", spec.name)
        and matches_labels(filters, "label", spec.labels)
        and matches_exactly(filters, "mode", mode)
        and matches_exactly(filters, "runtime", "container")
    )


ROUTES = (
    Route("GET", "/services", list_services, Right.READ),
    Route("POST", "/services/create", create_service, Right.MANAGE),
    Route("GET", "/services/{id}", inspect_service, Right.READ),
    Route("POST", "/services/{id}/update", update_service, Right.MANAGE),
    Route("DELETE", "/services/{id}", remove_service, Right.MANAGE),
)
