"""The nft tables: one in the host's namespace, one in each sandbox. Pure.

A table changes in one transaction, so a packet meets the old rules or the new ones, never
half of each. Every value in a rule is an address, a number, or a name
that topology.py has checked: nothing here needs quoting.

In the host's namespace (connections from outside):

    prerouting, output   a published port of this host is sent to a backend
    forward              only such connections, and answers, reach our interfaces
    input                a port without backends is refused; foreign VXLAN frames are dropped
    postrouting          sandboxes leave under the host's address; loopback clients too

In a sandbox (connections of the task, and those that come in through the mesh):

    output               a virtual IP becomes a backend; the resolver's port 53 becomes ours
    prerouting           the entry host of a connection is remembered in its mark
    output (route)       answers are marked likewise, and routed back to the entry host
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from overlay.balancing import LOCAL_WEIGHT, REMOTE_WEIGHT, Backend, translation
from overlay.naming import MARK_BASE, MARK_MASK, Naming, return_mark, short_digest
from overlay.tables import Chain
from overlay.topology import (
    HostPort,
    IPAddress,
    IPNetwork,
    NetworkId,
    Protocol,
    PublishedPort,
    Sandbox,
    Topology,
)

#: Where a sandbox's programs expect the resolver (Docker's address), and where it listens. A
#: container may bind 0.0.0.0:53 itself (a DNS server does), so 53 must stay free there; ours
#: is above the ephemeral ports, where nothing usual is.
RESOLVER_ADDRESS = "127.0.0.11"
RESOLVER_PORT = 61053
#: Where connections are sent that nobody is there for. Local everywhere, and no backend's.
NOBODY = RESOLVER_ADDRESS
#: IPv4 and TCP headers without options: an MTU less these is the largest segment.
TCP_HEADERS_BYTES = 40


def host_ruleset(topology: Topology, naming: Naming, overlay_mtu_bytes: int) -> tuple[Chain, ...]:
    """Return the table in the host's own namespace."""
    ports = _ports(topology)
    ours = f'{{ "{naming.gateway_link}", "{naming.ingress_link}" }}'
    gateway, ingress = f'"{naming.gateway_link}"', f'"{naming.ingress_link}"'
    clamp = _clamp(overlay_mtu_bytes)
    open_ports = {port.key: f"goto {port.chain}" for port in ports if port.backends}
    closed = [port.key for port in ports if not port.backends]
    local = "fib daddr type local"
    return (
        _REFUSE,
        *(
            Chain(
                port.chain,
                (f"meta l4proto {port.protocol} {translation(port.backends)}",),
            )
            for port in ports
            if port.backends
        ),
        Chain(
            "published",
            (
                *(
                    f"{port.match} goto {port.chain}"
                    for port in ports
                    if port.match and port.backends
                ),
                *_port_map(open_ports),
            ),
        ),
        Chain(
            "prerouting",
            (f"{local} jump published",),
            "type nat hook prerouting priority dstnat",
        ),
        # A local client's flow is remembered before the port refuses it, so it needs a translation
        # that can be recognised and forgotten when there is a backend again.
        _NOBODY,
        Chain(
            "output",
            (
                f"{local} jump published",
                *(
                    f"{local} {port.match} goto nobody"
                    for port in ports
                    if port.match and not port.backends
                ),
                *(f"{local} {rule}" for rule in _port_map(dict.fromkeys(closed, "goto nobody"))),
            ),
            "type nat hook output priority -100",
        ),
        Chain(
            "spoofed",
            # route_localnet lets loopback addresses in on our interfaces, for answers that are
            # translated back to 127.0.0.1. Nothing on the wire may have one (CVE-2020-8558).
            (f"iifname {ours} ip daddr 127.0.0.0/8 drop",),
            "type filter hook prerouting priority raw",
        ),
        Chain(
            "input",
            (
                *_vxlan_guard(topology),
                # Tasks on the ingress network have no business with the host's own services.
                f"iifname {ingress} ct state new drop",
                *(
                    f"{local} {port.match} goto refuse"
                    for port in ports
                    if port.match and not port.backends
                ),
                *(f"{local} {rule}" for rule in _port_map(dict.fromkeys(closed, "goto refuse"))),
            ),
            "type filter hook input priority filter",
        ),
        Chain(
            "forward",
            (
                "ct state established,related accept",
                f"oifname {ours} ct status dnat accept",
                f"oifname {ours} drop",
                f"iifname {ingress} drop",
            ),
            "type filter hook forward priority filter",
        ),
        Chain(
            "clamp",
            (
                f"oifname {ingress} {clamp}",
                f"iifname {ingress} {clamp}",
                # The way out may be narrower than the sandboxes' interfaces (a PPPoE line).
                f"iifname {gateway} {_CLAMP} rt mtu",
            ),
            "type filter hook forward priority mangle",
        ),
        Chain(
            "postrouting",
            (
                # A gateway address means something on this host only.
                f"ip saddr {topology.gateway} oifname != {gateway} masquerade",
                f"ip saddr {topology.gateway} oifname {gateway} ct status dnat masquerade",
                f"ip saddr 127.0.0.0/8 oifname {ours} masquerade",
            ),
            "type nat hook postrouting priority srcnat",
        ),
    )


def virtual_chains(topology: Topology) -> dict[NetworkId, dict[IPAddress, Chain | None]]:
    """Return the chain of every virtual IP, by network; None where no backend lives.

    The same in all sandboxes, so it is made once for all of them.
    """
    # By address: an address can stand for one thing only, whatever the store says.
    chains: dict[NetworkId, dict[IPAddress, Chain | None]] = {n.id: {} for n in topology.networks}
    for vip in sorted(topology.virtual_ips, key=lambda vip: int(vip.address)):
        backends = _live(topology, vip.network, vip.backends, port=None)
        chains[vip.network][vip.address] = (
            Chain(f"vip-{vip.address}", (translation(backends),)) if backends else None
        )
    return chains


def sandbox_ruleset(
    topology: Topology,
    sandbox: Sandbox,
    virtual: Mapping[NetworkId, Mapping[IPAddress, Chain | None]],
    overlay_mtu_bytes: int,
) -> tuple[Chain, ...]:
    """Return the table in the namespace of *sandbox*.

    *virtual* are the virtual_chains(), *overlay_mtu_bytes* that of the ingress network.
    """
    attached = {attachment.network: attachment for attachment in sandbox.attachments}
    vips = {vip: chain for network in attached for vip, chain in virtual[network].items()}
    open_vips = {vip: chain for vip, chain in vips.items() if chain}
    closed_vips = [vip for vip in vips if vip not in open_vips]
    entry: list[Chain] = []
    if topology.ingress and topology.ingress.network in attached:
        interface = attached[topology.ingress.network].interface
        entry = _entry_chains(topology, sandbox, interface, overlay_mtu_bytes)
    return (
        _REFUSE,
        *open_vips.values(),
        Chain(
            "output",
            (
                *_address_map(
                    "ip daddr", {vip: f"goto {chain.name}" for vip, chain in open_vips.items()}
                ),
                *_address_map("ip daddr", dict.fromkeys(closed_vips, "goto nobody")),
                f"ip daddr {RESOLVER_ADDRESS} meta l4proto {{ tcp, udp }} th dport 53 "
                f"dnat ip to {RESOLVER_ADDRESS}:{RESOLVER_PORT}",
            ),
            "type nat hook output priority -100",
        ),
        _NOBODY,
        Chain(
            "refused",
            # Not the refusal itself, which comes back this way.
            _address_map(
                "ct direction original ct original ip daddr",
                dict.fromkeys(closed_vips, "goto refuse"),
            ),
            "type filter hook input priority filter",
        ),
        *entry,
    )


def _entry_chains(
    topology: Topology, sandbox: Sandbox, interface: str, overlay_mtu_bytes: int
) -> list[Chain]:
    """Remember by which host a connection came in, and send the answers back there."""
    assert topology.ingress
    subnet = next(n.subnet for n in topology.networks if n.id == topology.ingress.network)
    marks = {
        gateway.mac: return_mark(gateway.address, subnet)
        for gateway in sorted(topology.ingress.gateways, key=lambda g: int(g.address))
    }
    elements = ", ".join(f"{mac} : {mark:#x}" for mac, mark in marks.items())
    arrived, marked = f'iifname "{interface}"', f"ct mark & {MARK_MASK:#x}"
    clamp = _clamp(overlay_mtu_bytes)
    entries = []
    if marks:
        rule = f"{arrived} ct direction original ct mark set ether saddr map {{ {elements} }}"
        entries.append(rule)
    chains = [
        Chain(
            "entry",
            (
                *entries,
                # TCP takes the segment size from the route to the client, which is the gateway's:
                # that only the mark leads back here it does not know.
                f"{arrived} {clamp}",
            ),
            "type filter hook prerouting priority mangle",
        ),
        Chain(
            "return_path",
            (
                f"ct direction reply {marked} == {MARK_BASE:#x} {clamp}",
                f"ct direction reply {marked} == {MARK_BASE:#x} meta mark set ct mark",
            ),
            "type route hook output priority mangle",
        ),
        Chain(
            "input",
            # Services that share nothing but having a published port must not meet here.
            (f"{arrived} {marked} != {MARK_BASE:#x} drop",),
            "type filter hook input priority filter",
        ),
    ]
    if sandbox.gateway:
        # A UDP server that is bound to no address answers from the address of its route to the
        # client, which is the gateway's (only the mark leads back here, and that comes later). So
        # that is the address it is asked at. Clients on the link itself need no such help.
        wildcard = f"{arrived} meta l4proto udp ip saddr != {subnet} {marked} == {MARK_BASE:#x}"
        chains.append(
            Chain(
                "wildcard",
                (f"{wildcard} dnat ip to {sandbox.gateway.address}",),
                "type nat hook prerouting priority dstnat",
            )
        )
    return chains


@dataclass(frozen=True, slots=True)
class _Port:
    """A published port of either mode, with the backends that live now."""

    protocol: str
    port: int
    backends: tuple[Backend, ...]
    within: IPNetwork | None
    interface: str | None

    @property
    def key(self) -> str:
        """The port in the map of all ports; empty for one that needs a rule of its own."""
        return "" if self.match else f"{self.protocol} . {self.port}"

    @property
    def match(self) -> str:
        """The rule that a restricted port needs; empty for one that is not restricted."""
        parts = [f"ip daddr {self.within}"] if self.within else []
        if self.interface:
            parts.append(f'iifname "{self.interface}"')
        return " ".join([*parts, f"{self.protocol} dport {self.port}"]) if parts else ""

    @property
    def chain(self) -> str:
        name = f"{self.protocol}-{self.port}"
        return f"{name}-{short_digest(self.match)}" if self.match else name


def _ports(topology: Topology) -> list[_Port]:
    """Return the published ports of both modes; those of one key are one port."""
    ports: dict[tuple[Protocol, int, IPNetwork | None, str | None], list[Backend]] = {}
    for published in topology.published_ports:
        ports.setdefault(_where(published), []).extend(_mesh_backends(topology, published))
    gateways = {sandbox.id: sandbox.gateway for sandbox in topology.sandboxes}
    for host_port in topology.host_ports:
        backends = ports.setdefault(_where(host_port), [])
        if gateway := gateways.get(host_port.sandbox):
            backends.append(Backend(gateway.address, host_port.target_port))
    return [
        _Port(protocol.value, port, tuple(backends), within, interface)
        for (protocol, port, within, interface), backends in sorted(
            ports.items(), key=lambda item: (item[0][0].value, item[0][1], str(item[0][2:]))
        )
    ]


def _where(
    published: PublishedPort | HostPort,
) -> tuple[Protocol, int, IPNetwork | None, str | None]:
    return published.protocol, published.port, published.within, published.interface


def _mesh_backends(topology: Topology, published: PublishedPort) -> list[Backend]:
    """Return where the mesh sends *published*; nowhere while this host is not part of it."""
    if topology.ingress is None or topology.own_ingress is None:
        return []
    return _live(topology, topology.ingress.network, published.backends, port=published.target_port)


def _live(
    topology: Topology, network: NetworkId, addresses: Iterable[IPAddress], *, port: int | None
) -> list[Backend]:
    return [
        Backend(
            address,
            port,
            LOCAL_WEIGHT if topology.is_local(network, address) else REMOTE_WEIGHT,
        )
        for address in sorted(set(addresses), key=int)
        if topology.is_live(network, address)
    ]


def _vxlan_guard(topology: Topology) -> tuple[str, ...]:
    """Drop frames for our networks that no host of the cluster sent.

    Only for our own VNIs: another program may use the port for networks of its own. The VNI
    stands in bits 96 to 119 from the start of the UDP header (RFC 7348 section 5).
    """
    numbers = sorted(network.vni for network in topology.networks if network.vni)
    if not numbers:
        return ()
    vnis = ", ".join(map(str, numbers))
    vteps = {endpoint.vtep for endpoint in topology.endpoints}
    if topology.ingress:
        vteps |= {gateway.vtep for gateway in topology.ingress.gateways}
    known = ", ".join(map(str, sorted(vteps | {topology.underlay.address}, key=int)))
    return (
        f"udp dport {topology.underlay.port} @th,96,24 {{ {vnis} }} ip saddr != {{ {known} }} drop",
    )


def _clamp(mtu_bytes: int) -> str:
    """Keep TCP segments of both directions within *mtu_bytes*."""
    return f"{_CLAMP} {mtu_bytes - TCP_HEADERS_BYTES}"


def _port_map(verdicts: Mapping[str, str]) -> tuple[str, ...]:
    elements = [f"{key} : {verdict}" for key, verdict in verdicts.items() if key]
    if not elements:
        return ()
    return (f"meta l4proto . th dport vmap {{ {', '.join(elements)} }}",)


def _address_map(match: str, verdicts: Mapping[IPAddress, str]) -> tuple[str, ...]:
    if not verdicts:
        return ()
    elements = ", ".join(f"{address} : {verdict}" for address, verdict in verdicts.items())
    return (f"{match} vmap {{ {elements} }}",)


_CLAMP = "tcp flags & (syn | rst) == syn tcp option maxseg size set"
_REFUSE = Chain(
    "refuse",
    ("meta l4proto tcp reject with tcp reset", "reject with icmp type port-unreachable"),
)
#: Sent to loopback, to be refused there: refused on the way out, a datagram fails with "operation
#: not permitted" instead of "connection refused".
_NOBODY = Chain("nobody", (f"dnat ip to {NOBODY}",))
