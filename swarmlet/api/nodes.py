"""/nodes: list, inspect, update, remove."""

from __future__ import annotations

from swarmlet.api.convert_node import read_node_spec, write_node
from swarmlet.api.exchange import Answer, ApiError, Response, json_response
from swarmlet.api.filters import (
    Filters,
    matches_exactly,
    matches_labels,
    matches_prefix,
    parse_filters,
)
from swarmlet.api.lookup import find_node
from swarmlet.api.rights import Right
from swarmlet.api.router import Call, Route
from swarmlet.model import Node

FILTERS = ("id", "label", "membership", "name", "node.label", "role")


async def list_nodes(call: Call) -> Answer:
    filters = parse_filters(call.request.query, FILTERS)
    view, leader = call.view, call.node.status.node_id
    nodes = [node for node in view.state.nodes.values() if _matches(node, filters)]
    nodes.sort(key=lambda node: (node.facts.hostname, node.id))
    return json_response([write_node(node, view, leader) for node in nodes])


async def inspect_node(call: Call) -> Answer:
    node = find_node(call.view.state, call.params["id"])
    return json_response(write_node(node, call.view, call.node.status.node_id))


async def update_node(call: Call) -> Answer:
    spec = read_node_spec(await call.request.body.json())
    version = call.request.query.number("version", -1)
    if version < 0:
        raise ApiError(400, "version: the version of the node that you changed is missing")
    node = find_node(call.view.state, call.params["id"])
    await call.control.update_node(node.id, spec, version=version)
    return Response(200)


async def remove_node(call: Call) -> Answer:
    node = find_node(call.view.state, call.params["id"])
    await call.control.remove_node(node.id, force=call.request.query.flag("force"))
    return Response(200)


def _matches(node: Node, filters: Filters) -> bool:
    return (
        matches_prefix(filters, "id", node.id)
        and matches_prefix(filters, "name", node.facts.hostname, node.spec.name)
        and matches_labels(filters, "label", node.facts.engine_labels)
        and matches_labels(filters, "node.label", node.spec.labels)
        and matches_exactly(filters, "role", str(node.role))
        # A node that is in the store was accepted; there is no waiting room.
        and matches_exactly(filters, "membership", "accepted")
    )


ROUTES = (
    Route("GET", "/nodes", list_nodes, Right.READ),
    Route("GET", "/nodes/{id}", inspect_node, Right.READ),
    Route("POST", "/nodes/{id}/update", update_node, Right.MANAGE),
    Route("DELETE", "/nodes/{id}", remove_node, Right.MANAGE),
)
