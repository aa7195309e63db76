"""From the assignment to what this host's network must be (overlay.Topology).

Pure. Backends are the tasks that are ready; a task that is not has an address, names of its own
and a place in the forwarding tables, but nothing is sent to it.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from overlay.topology import (
    Attachment,
    Endpoint,
    GatewayPort,
    HostPort,
    Ingress,
    IngressGateway,
    IPAddress,
    IPNetwork,
    Name,
    Network,
    NetworkId,
    Protocol,
    PublishedPort,
    Sandbox,
    SandboxId,
    Topology,
    Underlay,
    VirtualIp,
)
from swarmlet.agent.assignment import Assignment
from swarmlet.model import NodeId, PortConfig, ServiceId
from swarmlet.session import (
    ClusterView,
    EndpointView,
    Kind,
    NetworkView,
    NodeView,
    ServiceView,
    TaskAssignment,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSandbox:
    """The network of a container that is no task. *interface* is its way out; "": it has none."""

    id: str
    attachments: tuple[Attachment, ...] = ()
    interface: str = "eth0"
    mac: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTopology:
    """What this host's own containers need beside the assignment."""

    networks: tuple[Network, ...] = ()
    sandboxes: tuple[LocalSandbox, ...] = ()
    host_ports: tuple[HostPort, ...] = ()
    names: tuple[Name, ...] = ()


NOTHING_LOCAL = LocalTopology()


def build(
    assignment: Assignment,
    *,
    own: NodeId,
    address: str,
    gateway: IPNetwork,
    gateways: Mapping[str, int],
    sandboxes: Collection[str],
    masked: Iterable[NodeId],
    local: LocalTopology = NOTHING_LOCAL,
) -> Topology:
    """Return the topology of this host.

    *address* is this host's own on the underlay; *sandboxes* the tasks that have a network now,
    each with its place on the bridge *gateway* in *gateways*, as the sandboxes of *local* have;
    *masked* the nodes that gossip thinks dead. On a host that is in no cluster the assignment is
    empty.
    """
    nodes = {node.id: node for node in assignment.all(Kind.NODE, NodeView)}
    vteps = {id_: ip(node.address) for id_, node in nodes.items() if node.address}
    vteps[own] = ip(address)
    networks = {network.id: network for network in assignment.all(Kind.NETWORK, NetworkView)}
    endpoints = [
        e
        for e in assignment.all(Kind.ENDPOINT, EndpointView)
        if e.network in networks and e.node in vteps
    ]
    services = list(assignment.all(Kind.SERVICE, ServiceView))
    tasks = [t for t in assignment.all(Kind.TASK, TaskAssignment) if t.id in sandboxes]
    ready = _ready(endpoints)
    return Topology(
        underlay=Underlay(
            address=vteps[own],
            port=_data_path_port(assignment),
            # A packet that is too large for one host's underlay is too large for all.
            mtu_bytes=min((n.underlay_mtu for n in nodes.values() if n.underlay_mtu), default=None),
        ),
        gateway=gateway,
        networks=tuple(
            Network(
                id=NetworkId(network.id),
                name=network.name,
                vni=network.vni,
                subnet=ipaddress.ip_network(network.subnet),
                mtu_bytes=network.mtu or None,
            )
            for network in networks.values()
        )
        + local.networks,
        endpoints=tuple(
            Endpoint(
                network=NetworkId(endpoint.network),
                address=ip(endpoint.address),
                mac=endpoint.mac,
                vtep=vteps[endpoint.node],
            )
            for endpoint in endpoints
        ),
        sandboxes=(
            *(_sandbox(t, networks, gateway, gateways[t.id]) for t in tasks),
            *(_local_sandbox(s, gateway[gateways[s.id]]) for s in local.sandboxes),
        ),
        virtual_ips=tuple(_virtual_ips(services, networks, ready)),
        published_ports=tuple(_published_ports(services, networks, ready)),
        host_ports=(*_host_ports(tasks), *local.host_ports),
        ingress=_ingress(nodes.values(), networks, vteps),
        names=(*_names(services, networks, endpoints, ready), *local.names),
        masked=frozenset(vteps[node] for node in masked if node in vteps and node != own),
    )


def ip(text: str) -> IPAddress:
    return ipaddress.ip_address(text)


def _data_path_port(assignment: Assignment) -> int:
    cluster = next(assignment.all(Kind.CLUSTER, ClusterView), None)
    return cluster.data_path_port if cluster is not None else 4789


_Networks: TypeAlias = Mapping[Any, NetworkView]
#: Addresses of the ready tasks by service and network.
_Ready: TypeAlias = Mapping[tuple[ServiceId, str], list[IPAddress]]


def _ready(endpoints: Iterable[EndpointView]) -> _Ready:
    ready: dict[tuple[ServiceId, str], list[IPAddress]] = {}
    for endpoint in endpoints:
        if endpoint.ready:
            key = (endpoint.service, str(endpoint.network))
            ready.setdefault(key, []).append(ip(endpoint.address))
    for addresses in ready.values():
        addresses.sort(key=int)  # the same order on every host and at every look
    return ready


def _sandbox(
    task: TaskAssignment,
    networks: _Networks,
    gateway: IPNetwork,
    offset: int,
) -> Sandbox:
    # The ingress last: eth0 is the network that the user thinks of.
    attached = sorted(
        (e for e in task.endpoints if e.network in networks),
        key=lambda endpoint: networks[endpoint.network].ingress,
    )
    attachments = tuple(
        Attachment(
            network=NetworkId(endpoint.network),
            address=ip(endpoint.address),
            mac=endpoint.mac,
            interface=f"eth{position}",
        )
        for position, endpoint in enumerate(attached)
    )
    user = [networks[e.network] for e in attached if not networks[e.network].ingress]
    shut_in = bool(user) and all(network.internal for network in user)
    port = None
    if not shut_in:
        port = GatewayPort(
            address=gateway[offset],
            mac=mac_of(gateway[offset]),
            interface=f"eth{len(attachments)}",
        )
    return Sandbox(id=SandboxId(task.id), attachments=attachments, gateway=port)


def _local_sandbox(sandbox: LocalSandbox, place: IPAddress) -> Sandbox:
    port = None
    if sandbox.interface:
        mac = sandbox.mac or mac_of(place)
        port = GatewayPort(address=place, mac=mac, interface=sandbox.interface)
    return Sandbox(id=SandboxId(sandbox.id), attachments=sandbox.attachments, gateway=port)


def mac_of(address: IPAddress) -> str:
    """A MAC for a bridge that only this host has.

    Made from the address, so that who has it next is found by those who remember the last one: the
    host's neighbour table outlives a container by minutes.
    """
    digest = hashlib.sha256(str(address).encode()).digest()
    return "02:" + ":".join(f"{octet:02x}" for octet in digest[:5])


def _virtual_ips(
    services: Iterable[ServiceView],
    networks: _Networks,
    ready: _Ready,
) -> Iterable[VirtualIp]:
    for service in services:
        for entry in service.networks:
            if entry.address and entry.network in networks:
                yield VirtualIp(
                    network=NetworkId(entry.network),
                    address=ip(entry.address),
                    backends=tuple(ready.get((service.id, str(entry.network)), ())),
                )


def _published_ports(
    services: Iterable[ServiceView], networks: _Networks, ready: _Ready
) -> Iterable[PublishedPort]:
    ingress = next((str(n.id) for n in networks.values() if n.ingress), None)
    if ingress is None:
        return
    for service in services:
        for port in service.ports:
            yield PublishedPort(
                protocol=Protocol(port.protocol.value),
                port=port.published,
                target_port=port.target,
                backends=tuple(ready.get((service.id, ingress), ())),
                within=_within(port),
                interface=port.iface or None,
            )


def _host_ports(tasks: Iterable[TaskAssignment]) -> Iterable[HostPort]:
    for task in tasks:
        for port in task.ports:
            yield HostPort(
                protocol=Protocol(port.protocol.value),
                port=port.published,
                sandbox=SandboxId(task.id),
                target_port=port.target,
                within=_within(port),
                interface=port.iface or None,
            )


def _within(port: PortConfig) -> IPNetwork | None:
    return ipaddress.ip_network(port.ip) if port.ip else None


def _ingress(
    nodes: Iterable[NodeView],
    networks: _Networks,
    vteps: Mapping[NodeId, IPAddress],
) -> Ingress | None:
    network = next((n for n in networks.values() if n.ingress), None)
    if network is None:
        return None
    gateways = tuple(
        IngressGateway(address=ip(node.ingress.address), mac=node.ingress.mac, vtep=vteps[node.id])
        for node in nodes
        if node.ingress is not None and node.ingress.network == network.id and node.id in vteps
    )
    return Ingress(network=NetworkId(network.id), gateways=gateways)


def _names(
    services: Iterable[ServiceView],
    networks: _Networks,
    endpoints: Iterable[EndpointView],
    ready: _Ready,
) -> Iterable[Name]:
    names = {service.id: service.name for service in services}
    for service in services:
        for entry in service.networks:
            if entry.network not in networks:
                continue
            network = NetworkId(entry.network)
            tasks = tuple(ready.get((service.id, str(entry.network)), ()))
            meaning = (ip(entry.address),) if entry.address else tasks
            for name in (service.name, *entry.aliases):
                yield Name(
                    network=network,
                    name=name,
                    addresses=meaning,
                    canonical=bool(entry.address) and name == service.name,
                )
            yield Name(network=network, name=f"tasks.{service.name}", addresses=tasks)
    for endpoint in endpoints:
        if endpoint.service in names and not networks[endpoint.network].ingress:
            place = endpoint.slot or endpoint.node
            yield Name(
                network=NetworkId(endpoint.network),
                name=f"{names[endpoint.service]}.{place}.{endpoint.task}",
                addresses=(ip(endpoint.address),),
                canonical=True,
            )


def give_gateways(
    gateway: IPNetwork, known: Mapping[str, int], wanted: Collection[str]
) -> dict[str, int]:
    """Return a place on the host-local bridge for each sandbox: kept, or the next free one.

    Raises:
        ValueError: the bridge's subnet is full.
    """
    given = {sandbox: offset for sandbox, offset in known.items() if sandbox in wanted}
    taken = set(given.values())
    free = (n for n in range(2, gateway.num_addresses - 1) if n not in taken)
    for sandbox in sorted(wanted):
        if sandbox not in given:
            try:
                given[sandbox] = next(free)
            except StopIteration:
                raise ValueError(
                    f"the host's gateway network {gateway} has no free address: set a larger "
                    "gateway_subnet in the configuration"
                ) from None
    return given
