"""/networks: this host's own (bridge) and the swarm's (overlay), in one list.

What names a network of this host is answered here; the rest goes to the leader. So a host in no
swarm, or one whose managers are away, has its own networks all the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import trio

from swarmlet.agent.local.errors import NoSuch
from swarmlet.agent.local.records import BUILT_IN
from swarmlet.api.backend import LocalNode, LocalState
from swarmlet.api.convert_create import read_endpoint
from swarmlet.api.convert_local_network import (
    read_local_network,
    write_built_in,
    write_local_network,
)
from swarmlet.api.convert_network import (
    read_network_spec,
    write_network,
    write_network_services,
)
from swarmlet.api.exchange import Answer, ApiError, Body, Response, json_response
from swarmlet.api.fields import Fields
from swarmlet.api.filters import (
    Filters,
    matches_exactly,
    matches_labels,
    matches_part,
    parse_filters,
    wants_true,
)
from swarmlet.api.found import find_container
from swarmlet.api.lookup import find_network
from swarmlet.api.prunefilters import PRUNE_FILTERS, may_prune
from swarmlet.api.rights import Right
from swarmlet.api.router import Call, Route, answer_as
from swarmlet.api.upstream import Broken, Upstream
from swarmlet.manager.errors import ControlError, NotFound
from swarmlet.manager.view import View
from swarmlet.model import Network, NetworkId, Role, Service, TaskState

FILTERS = ("dangling", "driver", "id", "label", "name", "scope", "type")
#: For the leader's networks, in a list that is good without them.
LEADER_SECONDS = 5.0
LEADER_BYTES_MAX = 16 << 20


async def list_networks(call: Call) -> Answer:
    if call.request.peer is not None:
        return await answer_as(call, Right.READ, _list_of_cluster)
    filters = parse_filters(call.request.query, FILTERS)
    rows = [row for row in _local_rows(call.node) if _row_matches(row, filters, call.node)]
    if call.node.status.state is LocalState.ACTIVE:
        rows += await _rows_of_cluster(call)
    rows.sort(key=lambda row: str(row["Name"]))
    return json_response(rows)


async def _list_of_cluster(call: Call) -> Answer:
    filters = parse_filters(call.request.query, FILTERS)
    view = call.view
    used = _used_networks(view) if "dangling" in filters else frozenset()
    networks = [n for n in view.state.networks.values() if _matches(n, filters, used)]
    networks.sort(key=lambda network: network.spec.name)
    return json_response([write_network(network) for network in networks])


async def _rows_of_cluster(call: Call) -> list[dict[str, Any]]:
    """The swarm's networks; none when no leader can be asked just now."""
    node = call.node
    if node.control is not None:
        answer = await _list_of_cluster(call)
        assert isinstance(answer, Response)
        found: list[dict[str, Any]] = json.loads(answer.body)
        return found
    with trio.move_on_after(LEADER_SECONDS):
        try:
            upstream = Upstream(await node.dial_api(None))
        except (ControlError, OSError):
            return []
        try:
            _, _, query = call.request.target.partition("?")
            head = await upstream.request("GET", f"/networks?{query}")
            text = b""
            while (chunk := await upstream.receive()) and len(text) < LEADER_BYTES_MAX:
                text += chunk
            document = json.loads(text)
        except (Broken, ValueError):
            return []
        finally:
            await upstream.aclose()
        if head.status == 200 and isinstance(document, list):
            return document
    return []


def _local_rows(node: LocalNode) -> list[dict[str, Any]]:
    rows = [write_built_in(name) for name in BUILT_IN]
    return rows + [write_local_network(network) for network in node.local.networks.table.values()]


def _row_matches(row: Mapping[str, Any], filters: Filters, node: LocalNode) -> bool:
    if "dangling" in filters:
        unused = row["Name"] not in BUILT_IN and not node.local.networks.users(row["Id"])
        if unused is not wants_true(filters, "dangling"):
            return False
    return (
        matches_part(filters, "id", row["Id"])
        and matches_part(filters, "name", row["Name"])
        and matches_exactly(filters, "driver", row["Driver"])
        and matches_exactly(filters, "scope", "local")
        and matches_exactly(filters, "type", "builtin" if row["Name"] in BUILT_IN else "custom")
        and matches_labels(filters, "label", row["Labels"])
    )


async def inspect_network(call: Call) -> Answer:
    name, scope = call.params["id"], call.request.query.text("scope")
    if scope not in ("", "local", "swarm"):
        raise NotFound("network", f"{name} with scope {scope[:20]}")
    if call.request.peer is None and scope != "swarm":
        if (document := _inspect_local(call.node, name)) is not None:
            return json_response(document)
        if scope == "local" or call.node.status.state is LocalState.INACTIVE:
            raise NotFound("network", name)
    return await answer_as(call, Right.READ, _inspect_of_cluster)


def _inspect_local(node: LocalNode, name: str) -> dict[str, Any] | None:
    if name in BUILT_IN:
        return {**write_built_in(name), "Containers": _containers_on(node, name)}
    try:
        network = node.local.networks.find(name)
    except NoSuch:
        return None
    return {
        **write_local_network(network),
        "Containers": _containers_on(node, network.id),
    }


def _containers_on(node: LocalNode, network: str) -> dict[str, Any]:
    """The containers that have an address on a network of this host now."""
    found = {}
    prefix = node.local.gateway.prefixlen
    if network not in BUILT_IN:
        prefix = int(node.local.networks.table[network].subnet.partition("/")[2])
    for container in node.local.containers.values():
        for attachment in container.record.config.attachments:
            if attachment.network != network or not container.is_up:
                continue
            address = attachment.address or node.local.bridge_address_of(container)
            found[container.id] = {
                "Name": container.name,
                "EndpointID": container.id,
                "MacAddress": attachment.mac,
                "IPv4Address": f"{address}/{prefix}" if address else "",
                "IPv6Address": "",
            }
    return found


async def _inspect_of_cluster(call: Call) -> Answer:
    view = call.view
    network = find_network(view.state, call.params["id"])
    document = write_network(network)
    if call.request.query.flag("verbose"):
        document["Services"] = _services_on(network, view)
        document["Peers"] = _peers_on(network, view)
    return json_response(document)


async def create_network(call: Call) -> Answer:
    text = await call.request.body.read()
    again = replace(call.request, body=Body.of(text))
    body = await Body.of(text).json()
    call = replace(call, request=again)
    asked = read_local_network(body) if call.request.peer is None else None
    if asked is None:
        return await answer_as(call, Right.MANAGE, _create_in_cluster)
    network = await call.node.local.networks.create(
        asked.name,
        subnet=asked.subnet,
        gateway=asked.gateway,
        internal=asked.internal,
        labels=asked.labels,
        options=asked.options,
        mtu=asked.mtu,
    )
    return json_response({"Id": network.id, "Warning": ""}, 201)


async def _create_in_cluster(call: Call) -> Answer:
    spec = read_network_spec(await call.request.body.json())
    network = await call.control.create_network(spec)
    return json_response({"Id": network.id, "Warning": ""}, 201)


async def remove_network(call: Call) -> Answer:
    name = call.params["id"]
    if call.request.peer is None:
        try:
            await call.node.local.networks.remove(name)
            return Response(204)
        except NoSuch:
            if call.node.status.state is LocalState.INACTIVE:
                raise NotFound("network", name) from None
    return await answer_as(call, Right.MANAGE, _remove_from_cluster)


async def _remove_from_cluster(call: Call) -> Answer:
    network = find_network(call.view.state, call.params["id"])
    await call.control.remove_network(network.id)
    return Response(204)


async def connect_network(call: Call) -> Answer:
    fields = Fields(await call.request.body.json())
    reference = fields.text("Container")
    endpoint = fields.child("EndpointConfig") or Fields({}, "EndpointConfig")
    fields.done()
    asked = read_endpoint(call.params["id"], endpoint)
    found = find_container(call.node, reference)
    if found.local is None:
        raise ApiError(
            409,
            f"container {found.name} is a task of a service: `docker service update "
            "--network-add` connects a service's tasks",
        )
    await call.node.local.connect(found.local, call.params["id"], asked)
    return Response(200)


async def disconnect_network(call: Call) -> Answer:
    fields = Fields(await call.request.body.json())
    reference = fields.text("Container")
    fields.ignore("Force")  # nothing of a container stays connected when it is gone
    fields.done()
    found = find_container(call.node, reference)
    if found.local is None:
        raise ApiError(
            409,
            f"container {found.name} is a task of a service: `docker service update "
            "--network-rm` disconnects a service's tasks",
        )
    await call.node.local.disconnect(found.local, call.params["id"])
    return Response(200)


async def prune_networks(call: Call) -> Answer:
    """Remove what no container, and of the swarm's what no service and task uses."""
    if call.request.peer is not None:
        return await answer_as(call, Right.MANAGE, _prune_cluster)
    filters = parse_filters(call.request.query, PRUNE_FILTERS)
    local = call.node.local.networks
    removed = []
    for network in list(local.table.values()):
        if not local.users(network.id) and may_prune(filters, network.labels, network.created_at):
            await local.remove(network.id)
            removed.append(network.name)
    here = call.node.status
    if here.state is LocalState.ACTIVE and here.role is Role.MANAGER:
        answer = await answer_as(call, Right.MANAGE, _prune_cluster)
        if isinstance(answer, Response) and answer.status == 200:
            removed += json.loads(answer.body)["NetworksDeleted"] or []
    return json_response({"NetworksDeleted": removed or None})


async def _prune_cluster(call: Call) -> Answer:
    filters = parse_filters(call.request.query, PRUNE_FILTERS)
    view = call.view
    used = _used_networks(view)
    removed = []
    for network in view.state.networks.values():
        spec = network.spec
        if network.id in used or spec.ingress:
            continue
        if may_prune(filters, spec.labels, network.created_at):
            await call.control.remove_network(network.id)
            removed.append(spec.name)
    return json_response({"NetworksDeleted": removed or None})


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
    Route("GET", "/networks", list_networks, Right.BOTH),
    Route("POST", "/networks/create", create_network, Right.BOTH),
    Route("POST", "/networks/prune", prune_networks, Right.BOTH),
    Route("POST", "/networks/{id}/connect", connect_network, Right.NODE),
    Route("POST", "/networks/{id}/disconnect", disconnect_network, Right.NODE),
    Route("GET", "/networks/{id}", inspect_network, Right.BOTH),
    Route("DELETE", "/networks/{id}", remove_network, Right.BOTH),
)
