"""Small random clusters, as one host is told of them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from hypothesis import settings
from hypothesis import strategies as st

from overlay.topology import (
    Attachment,
    Endpoint,
    GatewayPort,
    HostPort,
    Ingress,
    IngressGateway,
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

#: A cluster takes a while to draw, and the machine may be busy.
FEW = settings(max_examples=30, deadline=None)

VTEPS = [IPv4Address(f"10.66.0.{number}") for number in (1, 2, 3)]
INGRESS = NetworkId("ingress")
SUBNETS = {
    INGRESS: IPv4Network("10.0.0.0/24"),
    NetworkId("shop"): IPv4Network("10.1.0.0/24"),
    NetworkId("office"): IPv4Network("10.2.0.0/24"),
}


def address_on(network: NetworkId, number: int) -> IPv4Address:
    return SUBNETS[network][number]


def mac_on(network: NetworkId, number: int) -> str:
    return ":".join(["02", "00", *(f"{byte:02x}" for byte in address_on(network, number).packed)])


def cluster() -> Topology:
    """Three tasks on the ingress network, one on each host; the first host's view."""
    return Topology(
        underlay=Underlay(address=VTEPS[0]),
        gateway=IPv4Network("172.30.0.0/24"),
        networks=(_network(INGRESS),),
        endpoints=tuple(_endpoint(INGRESS, n, vtep) for n, vtep in enumerate(VTEPS, start=10)),
        sandboxes=(_sandbox(10, [INGRESS], has_gateway=True),),
        ingress=_ingress(set(VTEPS)),
    )


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """What the host with the first VTEP is told of up to six tasks on three hosts."""
    networks = draw(st.sets(st.sampled_from(sorted(SUBNETS)), min_size=1))
    hosts = draw(st.lists(st.sampled_from(VTEPS), max_size=6))
    endpoints, sandboxes = [], []
    for number, vtep in enumerate(hosts, start=10):
        attached = sorted(draw(st.sets(st.sampled_from(sorted(networks)))))
        endpoints += [_endpoint(network, number, vtep) for network in attached]
        if attached and draw(st.booleans()):
            # For a moment the store has the address's next owner too.
            endpoints.append(_endpoint(attached[0], number, draw(st.sampled_from(VTEPS)), mac=99))
        if vtep == VTEPS[0]:
            sandboxes.append(_sandbox(number, attached, has_gateway=draw(st.booleans())))
    numbers = st.lists(st.integers(10, 16), max_size=5)
    ports = st.sampled_from((80, 443))
    protocols = st.sampled_from(Protocol)
    ranges = st.sampled_from((None, IPv4Network("192.168.0.0/16"), IPv4Network("10.0.0.7/32")))
    interfaces = st.sampled_from((None, "eth1", "wlan0.5"))
    return Topology(
        underlay=Underlay(address=VTEPS[0]),
        gateway=IPv4Network("172.30.0.0/24"),
        networks=tuple(_network(network) for network in sorted(networks)),
        endpoints=tuple(endpoints),
        sandboxes=tuple(sandboxes),
        virtual_ips=tuple(
            VirtualIp(
                network=network,
                address=address_on(network, 100),
                backends=tuple(address_on(network, n) for n in draw(numbers)),
            )
            for network in [*sorted(networks), *sorted(networks)[:1]]
        ),
        published_ports=tuple(
            PublishedPort(
                protocol=draw(protocols),
                port=draw(ports),
                target_port=80,
                backends=tuple(address_on(INGRESS, n) for n in draw(numbers)),
                within=draw(ranges),
                interface=draw(interfaces),
            )
            for _ in range(draw(st.integers(0, 3)))
        ),
        host_ports=tuple(
            HostPort(protocol=draw(protocols), port=53, sandbox=sandbox.id, target_port=53)
            for sandbox in sandboxes[:1]
        ),
        ingress=_ingress(draw(st.sets(st.sampled_from(VTEPS)))) if INGRESS in networks else None,
        masked=frozenset(draw(st.sets(st.sampled_from(VTEPS)))),
    )


def _endpoint(
    network: NetworkId, number: int, vtep: IPv4Address, mac: int | None = None
) -> Endpoint:
    return Endpoint(
        network=network,
        address=address_on(network, number),
        mac=mac_on(network, number if mac is None else mac),
        vtep=vtep,
    )


def _network(network: NetworkId) -> Network:
    vni = 4096 + sorted(SUBNETS).index(network)
    return Network(id=network, name=network, vni=vni, subnet=SUBNETS[network])


def _sandbox(number: int, attached: list[NetworkId], *, has_gateway: bool) -> Sandbox:
    return Sandbox(
        id=SandboxId(f"task{number}"),
        attachments=tuple(
            Attachment(
                network=network,
                address=address_on(network, number),
                mac=mac_on(network, number),
                interface=f"eth{place}",
            )
            for place, network in enumerate(attached)
        ),
        gateway=GatewayPort(
            address=IPv4Address(f"172.30.0.{number}"), mac=f"06:00:ac:1e:00:{number:02x}"
        )
        if has_gateway
        else None,
    )


def _ingress(vteps: set[IPv4Address]) -> Ingress:
    return Ingress(
        network=INGRESS,
        gateways=tuple(
            IngressGateway(
                address=address_on(INGRESS, 200 + vtep.packed[-1]),
                mac=mac_on(INGRESS, 200 + vtep.packed[-1]),
                vtep=vtep,
            )
            for vtep in sorted(vteps)
        ),
    )
