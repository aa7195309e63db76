"""What the kernel remembers and should forget when the topology changes. Pure.

Tables and maps say where the next connection goes. But the kernel also remembers: a flow keeps
its backend as long as packets come, which for UDP may be for ever (a log sender never changes its
port), and an ARP cache keeps a MAC for half a minute after its owner is another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from overlay.rulesets import NOBODY
from overlay.topology import IPAddress, IPNetwork, NetworkId, Protocol, Sandbox, Topology

_NOBODY = IPv4Address(NOBODY)


@dataclass(frozen=True, slots=True)
class Survivors:
    """Which flows may go on, by the backend that they were sent to.

    *known* addresses exist, *live* ones may get new connections as well. Flows to backends
    outside of *subnets* are not ours to end. *moved* have another MAC than before, or none.
    """

    subnets: frozenset[IPNetwork]
    known: frozenset[IPAddress]
    live: frozenset[IPAddress]
    moved: Mapping[NetworkId, frozenset[IPAddress]] = field(default_factory=dict)
    #: Where a flow may be over: the subnet of what changed. The gateway's is the host's.
    concerned: frozenset[IPNetwork] = frozenset()

    def is_over(self, *, asked: IPAddress, backend: IPAddress, is_datagram: bool) -> bool:
        """Whether the flow to *asked* that *backend* answers has to find another.

        A connection may finish with a backend that is being drained, or whose host is thought
        dead; datagrams have no end that one could wait for.
        """
        if backend == _NOBODY:
            return asked != _NOBODY  # refused, not the resolver's: perhaps somebody is there now
        if not any(backend in subnet for subnet in self.subnets):
            return False
        return backend not in self.known or (is_datagram and backend not in self.live)


def survivors(old: Topology | None, new: Topology) -> Survivors | None:
    """Return what to keep on the way from *old* to *new*; None if there is nothing to forget.

    Without *old* (a daemon that starts) whatever is not wanted now has to go.
    """
    moved: dict[NetworkId, set[IPAddress]] = {}
    if old:
        macs = _macs(new)
        for (network, address), mac in _macs(old).items():
            if macs.get((network, address)) != mac:
                moved.setdefault(network, set()).add(address)
    subnets = _subnets(new) | (_subnets(old) if old else frozenset())
    known, live, concerned = _known(new), _live(new), subnets
    if old:
        changed = (_known(old) - known) | (_live(old) - live)
        changed |= _open_virtual_ips(new) - _open_virtual_ips(old)
        concerned = frozenset(s for s in subnets if any(address in s for address in changed))
        if _open_ports(new) - _open_ports(old):
            concerned |= {new.gateway}  # the host's own clients were refused until now
    if not moved and not concerned:
        return None
    return Survivors(
        subnets=subnets,
        known=known,
        live=live,
        moved={network: frozenset(addresses) for network, addresses in moved.items()},
        concerned=concerned,
    )


def _subnets(topology: Topology) -> frozenset[IPNetwork]:
    return frozenset({topology.gateway, *(network.subnet for network in topology.networks)})


def _macs(topology: Topology) -> dict[tuple[NetworkId, IPAddress], str]:
    macs = {(e.network, e.address): e.mac for e in topology.endpoints}
    macs |= {(a.network, a.address): a.mac for s in topology.sandboxes for a in s.attachments}
    if topology.ingress:
        network = topology.ingress.network
        macs |= {(network, gateway.address): gateway.mac for gateway in topology.ingress.gateways}
    return macs


def _known(topology: Topology) -> frozenset[IPAddress]:
    gateways = {sandbox.gateway.address for sandbox in topology.sandboxes if sandbox.gateway}
    return frozenset({address for _, address in _macs(topology)} | gateways)


def _live(topology: Topology) -> frozenset[IPAddress]:
    pairs = [(vip.network, address) for vip in topology.virtual_ips for address in vip.backends]
    if topology.ingress:
        network = topology.ingress.network
        pairs += [(network, a) for port in topology.published_ports for a in port.backends]
    live = {address for network, address in pairs if topology.is_live(network, address)}
    published = {port.sandbox for port in topology.host_ports}
    for sandbox in topology.sandboxes:
        # In its own namespace the mesh's datagrams are sent on to it (rulesets, "wildcard").
        if sandbox.gateway and (sandbox.id in published or _on_ingress(topology, sandbox)):
            live.add(sandbox.gateway.address)
    return frozenset(live)


def _on_ingress(topology: Topology, sandbox: Sandbox) -> bool:
    ingress = topology.ingress
    return ingress is not None and any(a.network == ingress.network for a in sandbox.attachments)


def _open_virtual_ips(topology: Topology) -> frozenset[IPAddress]:
    return frozenset(
        vip.address
        for vip in topology.virtual_ips
        if any(topology.is_live(vip.network, address) for address in vip.backends)
    )


def _open_ports(topology: Topology) -> frozenset[tuple[Protocol, int, IPNetwork | None]]:
    if topology.ingress is None:
        return frozenset()
    network = topology.ingress.network
    return frozenset(
        (port.protocol, port.port, port.within)
        for port in topology.published_ports
        if any(topology.is_live(network, address) for address in port.backends)
    )
