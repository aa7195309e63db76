"""From the topology to the kernel objects that it asks for. Pure.

On one host, with one network 'shop' and one task on it:

    host's namespace        overlay@shop                      the task's namespace
    eth0      the underlay  vx0       VXLAN, UDP in the host's    lo
                            br0
                            p-<task>  ------------------------  eth0  in 'shop'
                            gateway@
    swl-gw    ------------  host
              NAT           br0
                            p-<task>  ------------------------  gw0   default route

and, for published ports, `swl-ingress` in the host's namespace, on the bridge of the ingress
network. The bridges have namespaces of their own, so that in the host's there are two interfaces
of ours, however many tasks, and nobody's bridge-nf-call-iptables, firewall or udev rule
concerns itself with our frames.

Nothing learns and nothing floods. A frame for a local MAC leaves through the port that the
bridge's static table names. Any other unicast frame goes to vx0 only (no other port floods),
and vx0 knows the VTEP of the MAC or drops it. ARP requests reach the local ports and vx0, which
answers them itself for every endpoint elsewhere; none crosses the underlay.
"""

from __future__ import annotations

from collections.abc import Iterator

from overlay import naming
from overlay.naming import Naming
from overlay.resources import (
    HOST,
    Bridge,
    FdbEntry,
    InterfaceAddress,
    LinkSettings,
    Namespace,
    Neighbour,
    PortEntry,
    PortSettings,
    Resource,
    Route,
    Rule,
    Ruleset,
    Sysctl,
    Veth,
    Vxlan,
)
from overlay.rulesets import host_ruleset, sandbox_ruleset, virtual_chains
from overlay.topology import (
    VXLAN_OVERHEAD_BYTES,
    IPAddress,
    Network,
    NetworkId,
    Sandbox,
    Topology,
)

#: The routing table that everyone uses (RT_TABLE_MAIN).
MAIN_TABLE = 254
#: rp_filter that accepts an answer by another interface than the question came from: the client
#: of a published port is reached through the gateway, and asks through the ingress network.
LOOSE = "2"


def desired(topology: Topology, names: Naming, underlay_mtu_bytes: int) -> frozenset[Resource]:
    """Return everything that must exist on this host, and nothing else of ours may."""
    builder = _Builder(topology, names, underlay_mtu_bytes)
    return frozenset(builder.resources())


def overlay_mtu_bytes(underlay_mtu_bytes: int, network: Network | None = None) -> int:
    """Return the MTU of an overlay network: what fits into the underlay, or less if asked."""
    stays_here = network is not None and not network.vni
    fits = underlay_mtu_bytes - (0 if stays_here else VXLAN_OVERHEAD_BYTES)
    if network is None or network.mtu_bytes is None:
        return fits
    return min(fits, network.mtu_bytes)


class _Builder:
    def __init__(self, topology: Topology, names: Naming, underlay_mtu_bytes: int) -> None:
        self._topology = topology
        self._names = names
        self._underlay_mtu_bytes = underlay_mtu_bytes
        self._networks = {network.id: network for network in topology.networks}
        self._virtual = virtual_chains(topology)
        ingress = self._networks[topology.ingress.network] if topology.ingress else None
        self._ingress_mtu_bytes = overlay_mtu_bytes(underlay_mtu_bytes, ingress)
        # One endpoint an address: where the store has two for a moment, the later one is right,
        # and two entries of one key would never converge.
        self._macs: dict[NetworkId, dict[IPAddress, str]] = {n.id: {} for n in topology.networks}
        for endpoint in topology.endpoints:
            self._macs[endpoint.network][endpoint.address] = endpoint.mac
        if topology.ingress:
            # A host's ingress address is an endpoint like a task's.
            gateways = {gateway.address: gateway.mac for gateway in topology.ingress.gateways}
            self._macs[topology.ingress.network] |= gateways

    def resources(self) -> Iterator[Resource]:
        yield from self._host()
        for network in self._topology.networks:
            yield from self._network(network)
        for sandbox in self._topology.sandboxes:
            yield from self._sandbox(sandbox)

    def _host(self) -> Iterator[Resource]:
        topology, names = self._topology, self._names
        ingress = self._networks[topology.ingress.network] if topology.ingress else None
        mtu_bytes = self._ingress_mtu_bytes
        yield Sysctl(HOST, "ipv4/ip_forward", "1")
        yield Ruleset(HOST, names.table, host_ruleset(topology, names, mtu_bytes))
        yield from self._bridge(naming.GATEWAY_NAMESPACE, self._underlay_mtu_bytes)
        mac = naming.derived_mac(HOST, names.gateway_link)
        yield from self._own_link(
            naming.GATEWAY_NAMESPACE, names.gateway_link, mac, self._underlay_mtu_bytes
        )
        yield InterfaceAddress(
            HOST, names.gateway_link, topology.gateway_address, topology.gateway.prefixlen
        )
        own = topology.own_ingress
        if ingress and own:
            overlay = naming.overlay_namespace(ingress.id)
            yield from self._own_link(overlay, names.ingress_link, own.mac, mtu_bytes)
            yield InterfaceAddress(HOST, names.ingress_link, own.address, ingress.subnet.prefixlen)

    def _network(self, network: Network) -> Iterator[Resource]:
        namespace = naming.overlay_namespace(network.id)
        mtu_bytes = overlay_mtu_bytes(self._underlay_mtu_bytes, network)
        underlay = self._topology.underlay
        yield from self._bridge(namespace, mtu_bytes)
        if not network.vni:
            return  # a network of this host alone: a bridge, and nothing that leaves it
        yield Vxlan(namespace, naming.VXLAN, network.vni, underlay.address, underlay.port)
        yield _settings(namespace, naming.VXLAN, mtu_bytes, naming.BRIDGE)
        yield PortSettings(
            namespace=namespace, name=naming.VXLAN, learning=False, flood=True, locked=False
        )
        remote: dict[str, IPAddress] = {}
        for address, mac in self._macs[network.id].items():
            # vtep_of has the last word: an endpoint that moved here is not elsewhere as well.
            vtep = self._topology.vtep_of[network.id, address]
            if vtep != underlay.address:
                remote[mac] = vtep
                yield Neighbour(namespace, naming.VXLAN, address, mac)
        for mac, vtep in remote.items():
            yield FdbEntry(namespace, naming.VXLAN, mac, vtep)

    def _sandbox(self, sandbox: Sandbox) -> Iterator[Resource]:
        topology, namespace = self._topology, str(sandbox.id)
        port = naming.sandbox_port(sandbox.id)
        yield Namespace(namespace)
        yield Sysctl(namespace, "ipv4/conf/all/rp_filter", "0")
        yield LinkSettings(namespace=namespace, name="lo", mac="00:00:00:00:00:00", mtu_bytes=65536)
        for attachment in sandbox.attachments:
            network, interface = self._networks[attachment.network], attachment.interface
            yield from _pair(
                naming.overlay_namespace(network.id),
                port,
                namespace,
                interface,
                attachment.mac,
                overlay_mtu_bytes(self._underlay_mtu_bytes, network),
            )
            length = network.subnet.prefixlen
            yield InterfaceAddress(namespace, interface, attachment.address, length)
            if topology.ingress and network.id == topology.ingress.network:
                yield from self._return_paths(namespace, interface, network)
        if gateway := sandbox.gateway:
            yield from _pair(
                naming.GATEWAY_NAMESPACE,
                port,
                namespace,
                gateway.interface,
                gateway.mac,
                self._underlay_mtu_bytes,
                isolated=True,
            )
            # A host route only: other tasks on the bridge are not on the link for it, since the
            # bridge isolates its ports; whatever it may reach there goes through the host.
            length = gateway.address.max_prefixlen
            yield InterfaceAddress(namespace, gateway.interface, gateway.address, length)
            everything = topology.gateway.supernet(new_prefix=0)
            by = topology.gateway_address
            yield Route(namespace, MAIN_TABLE, everything, by, gateway.interface)
        mtu_bytes = self._ingress_mtu_bytes
        chains = sandbox_ruleset(topology, sandbox, self._virtual, mtu_bytes)
        yield Ruleset(namespace, self._names.table, chains)

    def _bridge(self, namespace: str, mtu_bytes: int) -> Iterator[Resource]:
        yield Namespace(namespace)
        # Bridged frames are no business of anybody's IP rules, and a bridge needs no address.
        yield Sysctl(namespace, "bridge/bridge-nf-call-iptables", "0")
        yield Sysctl(namespace, "ipv6/conf/all/disable_ipv6", "1")
        yield Sysctl(namespace, "ipv6/conf/default/disable_ipv6", "1")
        yield Bridge(namespace, naming.BRIDGE)
        yield _settings(namespace, naming.BRIDGE, mtu_bytes)

    def _own_link(self, bridge: str, link: str, mac: str, mtu_bytes: int) -> Iterator[Resource]:
        """The host's own interface on the bridge in the namespace *bridge*."""
        yield from _pair(bridge, naming.HOST_PORT, HOST, link, mac, mtu_bytes)
        # Published ports answer 127.0.0.1 too, and the answers come back by this link.
        yield _sysctl_of(HOST, link, "ipv4", "route_localnet", "1")

    def _return_paths(self, namespace: str, interface: str, network: Network) -> Iterator[Resource]:
        """Answers go back through the host that the connection came in by, whichever it was."""
        assert self._topology.ingress
        everything = network.subnet.supernet(new_prefix=0)
        for gateway in self._topology.ingress.gateways:
            mark = naming.return_mark(gateway.address, network.subnet)
            yield Rule(namespace, mark, mark)
            yield Route(namespace, mark, everything, gateway.address, interface)


def _pair(
    bridge: str,
    port: str,
    namespace: str,
    interface: str,
    mac: str,
    mtu_bytes: int,
    *,
    isolated: bool = False,
) -> Iterator[Resource]:
    """A veth from the bridge in the namespace *bridge* to *interface* in *namespace*."""
    yield Veth(bridge, port, namespace, interface)
    yield _settings(bridge, port, mtu_bytes, naming.BRIDGE)
    yield LinkSettings(namespace=namespace, name=interface, mac=mac, mtu_bytes=mtu_bytes)
    yield _sysctl_of(namespace, interface, "ipv4", "rp_filter", LOOSE)
    yield _sysctl_of(namespace, interface, "ipv6", "disable_ipv6", "1")
    # Locked with its own MAC in the table: no task can speak as another one, or as an entry
    # host of the mesh, although it may open packet sockets.
    yield PortSettings(
        namespace=bridge, name=port, learning=False, flood=False, isolated=isolated, locked=True
    )
    yield PortEntry(bridge, port, mac)


def _settings(namespace: str, name: str, mtu_bytes: int, master: str = "") -> LinkSettings:
    """The settings of an interface that nobody speaks to: its MAC only has to stay the same."""
    mac = naming.derived_mac(namespace, name)
    return LinkSettings(namespace=namespace, name=name, mac=mac, mtu_bytes=mtu_bytes, master=master)


def _sysctl_of(namespace: str, link: str, family: str, name: str, value: str) -> Sysctl:
    return Sysctl(namespace, f"{family}/conf/{link}/{name}", value, link)
