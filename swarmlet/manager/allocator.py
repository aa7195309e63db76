"""Allocator: subnets, VNIs, addresses and published ports that nobody else has.

Pure but for the chance that it is given (MAC addresses). What is taken is read from the state;
an address goes to the task in the change that creates the task. All of it runs on the leader,
one change after the other (manager/loops.py), so two changes cannot take the same thing.

Addresses are given next-fit, so that one which a task left is the last to be used again: other
hosts may still hold it in their neighbour tables. A MAC is random, not derived from the
address, so that the same address again is not the same neighbour again (moby#52661).
"""

from __future__ import annotations

import ipaddress
import itertools
import random
from collections.abc import Iterable

from swarmlet.model import (
    Cluster,
    Endpoint,
    EndpointMode,
    Network,
    NetworkId,
    NetworkSpec,
    Node,
    PortConfig,
    PublishMode,
    Service,
    ServiceSpec,
    VirtualAddress,
)
from swarmlet.model.validation import SpecError
from swarmlet.state import ClusterState

VNI_MIN, VNI_MAX = 4097, (1 << 24) - 1
PORT_CHOICE = range(30_000, 32_768)
INGRESS_NAME = "ingress"


class Exhausted(Exception):
    """No address, subnet, VNI or port is left; the text says of what."""


class Allocator:
    """One allocation after the other against *state*; what it gave it does not give again."""

    def __init__(self, state: ClusterState, rng: random.Random) -> None:
        self._state = state
        self._rng = rng
        self._addresses: dict[NetworkId, set[str]] = {}
        self._cursor: dict[NetworkId, int] = {}
        self._macs: set[str] | None = None
        self._ports = {
            (port.published, port.protocol): service.spec.name
            for service in state.services.values()
            for port in service.ports
            if port.mode is PublishMode.INGRESS
        }
        self._networks = list(state.networks.values())

    def endpoints_of_task(self, service: Service) -> tuple[Endpoint, ...]:
        """An endpoint on each network of the service, and on ingress if it publishes there."""
        targets = [NetworkId(a.target) for a in service.spec.task.networks]
        ingress = self._state.ingress
        if ingress is not None and any(p.mode is PublishMode.INGRESS for p in service.ports):
            targets.append(ingress.id)
        return tuple(self.endpoint(target) for target in targets)

    def endpoint(self, network: NetworkId) -> Endpoint:
        return Endpoint(network=network, address=self.address(network), mac=self._mac())

    def address(self, network: NetworkId) -> str:
        """Raises Exhausted."""
        row = self._state.networks[network]
        taken = self._taken(row)
        subnet = ipaddress.ip_network(row.subnet)
        size = subnet.num_addresses
        for step in range(1, size):
            offset = (self._cursor[network] + step) % size
            if offset in (0, size - 1):  # the network's own address, and broadcast
                continue
            address = str(subnet[offset])
            if address not in taken:
                taken.add(address)
                self._cursor[network] = offset
                return address
        name = row.spec.name
        raise Exhausted(
            f"network {name} ({row.subnet}) has no free address; "
            "remove tasks from it or make a network with a larger --subnet"
        )

    def virtual_addresses(
        self, spec: ServiceSpec, old: Service | None
    ) -> tuple[VirtualAddress, ...]:
        """One for each network of *spec*; networks that *old* had keep theirs."""
        if spec.endpoint.mode is not EndpointMode.VIP:
            return ()
        kept = {v.network: v for v in old.virtual_addresses} if old else {}
        targets = [NetworkId(attachment.target) for attachment in spec.task.networks]
        return tuple(
            kept.get(t) or VirtualAddress(network=t, address=self.address(t)) for t in targets
        )

    def ports(self, spec: ServiceSpec, old: Service | None) -> tuple[PortConfig, ...]:
        """*spec*'s ports with every published one chosen; a chosen one stays what it was.

        Raises:
            SpecError: another service publishes the same port.
        """
        for port in old.ports if old else ():
            self._ports.pop((port.published, port.protocol), None)
        kept = {(p.target, p.protocol, p.mode): p.published for p in (old.ports if old else ())}
        chosen: list[PortConfig] = []
        for position, port in enumerate(spec.endpoint.ports):
            published = port.published
            if port.mode is PublishMode.INGRESS:
                published = published or kept.get((port.target, port.protocol, port.mode), 0)
                owner = self._ports.get((published, port.protocol))
                if owner is not None and port.published:
                    raise SpecError(
                        f"endpoint_spec.ports[{position}].published_port",
                        f"{published}/{port.protocol} is already published by service {owner}; "
                        "choose another port or remove that one",
                    )
                if not published or owner is not None:
                    published = self._free_port(port)
                self._ports[(published, port.protocol)] = spec.name
            elif not published:
                published = port.target
            chosen.append(_published(port, published))
        return tuple(chosen)

    def subnet(self, spec: NetworkSpec, cluster: Cluster) -> tuple[str, str]:
        """The subnet and the gateway of a new network.

        Raises:
            SpecError: the subnet that was asked for overlaps another network's.
            Exhausted: the pools are used up.
        """
        taken = [(ipaddress.ip_network(n.subnet), n.spec.name) for n in self._networks]
        if spec.subnet:
            wanted = ipaddress.ip_network(spec.subnet)
            for other, name in taken:
                if wanted.version == other.version and wanted.overlaps(other):
                    raise SpecError(
                        "ipam.config[0].subnet", f"{wanted} overlaps {other} of network {name}"
                    )
            return str(wanted), spec.gateway or str(wanted[1])
        for pool in cluster.spec.pools:
            for subnet in ipaddress.ip_network(pool).subnets(new_prefix=cluster.spec.subnet_bits):
                if not any(subnet.overlaps(other) for other, _ in taken):
                    return str(subnet), str(subnet[1])
        raise Exhausted(
            f"the address pools ({', '.join(cluster.spec.pools)}) have no free subnet; "
            "give the network one with --subnet"
        )

    def vni(self) -> int:
        taken = {network.vni for network in self._networks}
        after = max(taken, default=VNI_MIN - 1)
        for vni in itertools.chain(range(after + 1, VNI_MAX + 1), range(VNI_MIN, after)):
            if vni not in taken:
                return vni
        raise Exhausted("all VNIs are in use")

    def network(self, network: Network) -> None:
        """Count *network*, made in the same change, as taken."""
        self._networks.append(network)
        self._state = ClusterState(
            self._state.index,
            {
                **self._state.tables,
                network.table: {**self._state.rows(network.table), network.id: network},
            },
        )

    def _taken(self, network: Network) -> set[str]:
        taken = self._addresses.get(network.id)
        if taken is not None:
            return taken
        taken = {network.gateway}
        newest: tuple[float, int] = (0.0, 0)
        for created_at, endpoint, live in _endpoints(self._state):
            if endpoint.network == network.id:
                if live:
                    taken.add(endpoint.address)
                newest = max(newest, (created_at, int(ipaddress.ip_address(endpoint.address))))
        for service in self._state.services.values():
            taken |= {v.address for v in service.virtual_addresses if v.network == network.id}
        subnet = ipaddress.ip_network(network.subnet)
        first = int(subnet.network_address)
        cursor = max(0, newest[1] - first)
        self._addresses[network.id] = taken
        self._cursor[network.id] = cursor
        return taken

    def _mac(self) -> str:
        if self._macs is None:
            self._macs = {endpoint.mac for _, endpoint, _ in _endpoints(self._state)}
        while True:
            # Locally administered, unicast: x2, x6, xA or xE in the first octet.
            mac = "02:" + ":".join(f"{self._rng.randrange(256):02x}" for _ in range(5))
            if mac not in self._macs:
                self._macs.add(mac)
                return mac

    def _free_port(self, port: PortConfig) -> int:
        for candidate in PORT_CHOICE:
            if (candidate, port.protocol) not in self._ports:
                return candidate
        raise Exhausted(
            f"ports {PORT_CHOICE.start} to {PORT_CHOICE.stop - 1} are all published; name one"
        )


def _endpoints(state: ClusterState) -> Iterable[tuple[float, Endpoint, bool]]:
    """Every endpoint that the state holds: its object's age, and whether that is alive."""
    for task in state.tasks.values():
        for endpoint in task.endpoints:
            yield task.created_at, endpoint, task.outcome is None
    for node in state.nodes.values():
        if node.ingress is not None:
            yield node.created_at, node.ingress, True


def _published(port: PortConfig, published: int) -> PortConfig:
    return PortConfig(
        target=port.target,
        published=published,
        protocol=port.protocol,
        mode=port.mode,
        name=port.name,
        ip=port.ip,
        iface=port.iface,
    )


def nodes_without_ingress(state: ClusterState) -> list[Node]:
    """Nodes that need an interface on the ingress network to carry published ports."""
    if state.ingress is None:
        return []
    return [node for _, node in sorted(state.nodes.items()) if node.ingress is None]
