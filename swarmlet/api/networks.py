"""/networks: create, list, inspect, remove. All networks here are the swarm's."""

from __future__ import annotations

from typing import Any

from swarmlet.api.convert_network import (
    read_network_spec,
    write_network,
    write_network_services,
)
from swarmlet.api.exchange import Answer, Response, json_response
from swarmlet.api.filters import (
    Filters,
    matches_exactly,
    matches_labels,
    matches_part,
    parse_filters,
    wants_true,
)
from swarmlet.api.lookup import find_network
from swarmlet.api.rights import Right
from swarmlet.api.router import Call, Route
from swarmlet.manager.errors import NotFound
from swarmlet.manager.view import View
from swarmlet.model import Network, NetworkId, Service, TaskState

FILTERS = ("dangling", "driver", "id", "label", "name", "scope", "type")


async def list_networks(call: Call) -> Answer:
    filters = parse_filters(call.request.query, FILTERS)
    view = call.view
    used = _used_networks(view) if "dangling" in filters else frozenset()
    networks = [n for n in view.state.networks.values() if _matches(n, filters, used)]
    networks.sort(key=lambda network: network.spec.name)
    return json_response([write_network(network) for network in networks])


async def inspect_network(call: Call) -> Answer:
    scope = call.request.query.text("scope")
    if scope not in ("", "swarm"):
        raise NotFound("network", f"{call.params['id']} with scope {scope[:20]}")
    view = call.view
    network = find_network(view.state, call.params["id"])
    document = write_network(network)
    if call.request.query.flag("verbose"):
        document["Services"] = _services_on(network, view)
        document["Peers"] = _peers_on(network, view)
    return json_response(document)


async def create_network(call: Call) -> Answer:
    spec = read_network_spec(await call.request.body.json())
    network = await call.control.create_network(spec)
    return json_response({"Id": network.id, "Warning": ""}, 201)


async def remove_network(call: Call) -> Answer:
    network = find_network(call.view.state, call.params["id"])
    await call.control.remove_network(network.id)
    return Response(204)


def _services_on(network: Network, view: View) -> dict[str, Any]:
    found: list[tuple[Service, str]] = [
        (service, vip.address)
        for service in view.state.services.values()
        for vip in service.virtual_addresses
        if vip.network == network.id
    ]
    running: dict[str, list[str]] = {service.id: [] for service, _ in found}
    for task in view.state.tasks.values():
        if task.service in running and view.status_of(task).state is TaskState.RUNNING:
            running[task.service] += [e.address for e in task.endpoints if e.network == network.id]
    return write_network_services(
        [(service.spec.name, vip, running[service.id]) for service, vip in found]
    )


def _peers_on(network: Network, view: View) -> list[dict[str, str]]:
    """The nodes that take part: those with a live task on the network."""
    nodes = {
        task.node
        for task in view.state.tasks.values()
        if task.node and task.outcome is None
        if any(endpoint.network == network.id for endpoint in task.endpoints)
    }
    rows = [view.state.nodes[node] for node in sorted(nodes) if node in view.state.nodes]
    return [{"Name": node.id[:12], "IP": node.facts.address} for node in rows]


def _used_networks(view: View) -> frozenset[NetworkId]:
    of_tasks = {e.network for task in view.state.tasks.values() for e in task.endpoints}
    of_services = {
        NetworkId(attachment.target)
        for service in view.state.services.values()
        for attachment in service.spec.task.networks
    }
    return frozenset(of_tasks | of_services)


def _matches(network: Network, filters: Filters, used: frozenset[NetworkId]) -> bool:
    spec = network.spec
    if "dangling" in filters:
        is_dangling = network.id not in used and not spec.ingress
        if is_dangling is not wants_true(filters, "dangling"):
            return False
    return (
        matches_part(filters, "id", network.id)
        and matches_part(filters, "name", spec.name)
        and matches_exactly(filters, "driver", spec.driver)
        and matches_exactly(filters, "scope", "swarm")
        and matches_exactly(filters, "type", "custom")
        and matches_labels(filters, "label", spec.labels)
    )


ROUTES = (
    Route("GET", "/networks", list_networks, Right.READ),
    Route("POST", "/networks/create", create_network, Right.MANAGE),
    Route("GET", "/networks/{id}", inspect_network, Right.READ),
    Route("DELETE", "/networks/{id}", remove_network, Right.MANAGE),
)
