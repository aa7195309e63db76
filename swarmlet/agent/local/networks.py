"""Networks and ports of the containers of this host alone.

Pure. A container on a network of this host has an address there, chosen at its start and kept while
it runs, and names that the others on it can ask for. Its way out, and the way in for published
ports, is the host's own bridge, as for tasks: that is also the whole of the network `bridge`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from overlay.topology import Attachment as Interface
from overlay.topology import (
    HostPort,
    IPAddress,
    IPNetwork,
    Name,
    Network,
    NetworkId,
    Protocol,
    SandboxId,
)
from swarmlet.agent.local.records import (
    BUILT_IN,
    DEFAULT_NETWORK,
    HOST_NETWORK,
    NO_NETWORK,
    OF_CONTAINER,
    Attachment,
    ContainerRecord,
    LocalNetwork,
    PortRequest,
    PublishedPort,
)
from swarmlet.agent.topology import LocalSandbox, LocalTopology, mac_of

#: Where subnets of new networks come from; Docker's own, less the host's bridge.
POOLS = tuple(ipaddress.ip_network(f"172.{number}.0.0/16") for number in range(18, 31))
#: The kernel's ephemeral ports are left alone: a client of the host may have one.
EPHEMERAL_FIRST, EPHEMERAL_LAST = 49_153, 65_535
#: The interface of the way out, beside those on networks.
WAY_OUT = "gw0"
SHORT_ID = 12
_DNS_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63}){0,3}\Z")


class Taken(ValueError):
    """A port or an address cannot be had; the text says who has it and what to do."""


def has_sandbox(record: ContainerRecord) -> bool:
    """Whether the container has a network of its own that the host must make."""
    mode = record.config.network
    return mode not in (HOST_NETWORK, NO_NETWORK) and not mode.startswith(OF_CONTAINER)


def topology_of(
    records: Iterable[ContainerRecord], networks: Mapping[str, LocalNetwork]
) -> LocalTopology:
    """Return what the host's network must have for *records*, the containers that are up."""
    records = sorted((r for r in records if has_sandbox(r)), key=lambda record: record.id)
    used = {a.network for r in records for a in r.config.attachments if a.network in networks}
    return LocalTopology(
        networks=tuple(
            Network(
                id=NetworkId(network.id),
                name=network.name,
                vni=0,
                subnet=ipaddress.ip_network(network.subnet),
                mtu_bytes=network.mtu or None,
            )
            for network in sorted(networks.values(), key=lambda network: network.id)
            if network.id in used
        ),
        sandboxes=tuple(_sandbox(record, networks) for record in records),
        host_ports=tuple(_host_ports(records)),
        names=tuple(_names(records, networks)),
    )


def _sandbox(record: ContainerRecord, networks: Mapping[str, LocalNetwork]) -> LocalSandbox:
    attached = [a for a in record.config.attachments if a.network in networks and a.address]
    default = next((a for a in record.config.attachments if a.network == DEFAULT_NETWORK), None)
    shut_in = bool(attached) and all(networks[a.network].internal for a in attached)
    interface = ""
    if default is not None:
        interface = default.interface or "eth0"
    elif attached and not shut_in:
        interface = WAY_OUT
    return LocalSandbox(
        id=record.id,
        attachments=tuple(
            Interface(
                network=NetworkId(a.network),
                address=ipaddress.ip_address(a.address),
                mac=a.mac,
                interface=a.interface,
            )
            for a in attached
        ),
        interface=interface,
        mac=default.asked_mac if default is not None else "",
    )


def _host_ports(records: Iterable[ContainerRecord]) -> Iterator[HostPort]:
    for record in records:
        for port in record.ports:
            yield HostPort(
                protocol=Protocol(port.protocol),
                port=port.port,
                sandbox=SandboxId(record.id),
                target_port=port.target,
                within=ipaddress.ip_network(port.address) if port.address else None,
            )


def _names(
    records: Iterable[ContainerRecord], networks: Mapping[str, LocalNetwork]
) -> Iterator[Name]:
    meanings: dict[tuple[str, str], list[IPAddress]] = {}
    own: set[tuple[str, str]] = set()
    for record in records:
        for a in record.config.attachments:
            if a.network not in networks or not a.address:
                continue
            own.add((a.network, record.name))
            for name in names_of(record, a):
                addresses = meanings.setdefault((a.network, name), [])
                addresses.append(ipaddress.ip_address(a.address))
    for (network, name), found in meanings.items():
        if _DNS_NAME.fullmatch(name):
            yield Name(
                network=NetworkId(network),
                name=name,
                addresses=tuple(sorted(set(found), key=int)),
                canonical=(network, name) in own,
            )


def names_of(record: ContainerRecord, attachment: Attachment) -> tuple[str, ...]:
    """What the container is called on a network; the same name may be several containers'."""
    names = (record.name, record.id[:SHORT_ID], *attachment.aliases)
    return tuple(dict.fromkeys(names))


# Addresses.


def attach(
    record: ContainerRecord,
    networks: Mapping[str, LocalNetwork],
    others: Iterable[ContainerRecord],
) -> ContainerRecord:
    """Return *record* with an address, a MAC and an interface on each of its networks.

    What it has it keeps. *others* are all other containers.

    Raises:
        Taken: an address is another's, or a network is full.
    """
    attachments: list[Attachment] = []
    taken: dict[str, set[str]] = {}
    for other in others:
        for a in other.config.attachments:
            taken.setdefault(a.network, set()).update(filter(None, (a.address, a.asked_address)))
    named = [a.interface for a in record.config.attachments if a.interface]
    free = (f"eth{n}" for n in range(1000) if f"eth{n}" not in named)
    for a in record.config.attachments:
        network = networks.get(a.network)
        interface = a.interface or next(free)
        if network is None:
            attachments.append(replace(a, interface=interface))
            continue
        used = taken.get(a.network, set())
        address = a.address or free_address(network, used, a.asked_address)
        mac = a.mac or a.asked_mac or mac_of(ipaddress.ip_address(address))
        attachments.append(replace(a, address=address, mac=mac, interface=interface))
    return record.changed(config=replace(record.config, attachments=tuple(attachments)))


def detach(record: ContainerRecord) -> ContainerRecord:
    """Return *record* without what it had on its networks while it ran, and without ports."""
    attachments = tuple(
        replace(a, address="", mac="", interface="") for a in record.config.attachments
    )
    return record.changed(config=replace(record.config, attachments=attachments), ports=())


def free_address(network: LocalNetwork, used: Collection[str], asked: str = "") -> str:
    subnet = ipaddress.ip_network(network.subnet)
    if asked:
        if asked in used or asked == network.gateway:
            raise Taken(f"address {asked} is taken on network {network.name}: ask for another")
        return asked
    for host in subnet.hosts():
        address = str(host)
        if address not in used and address != network.gateway:
            return address
    raise Taken(f"network {network.name} has no free address left in {network.subnet}")


def check_address(network: LocalNetwork, address: str) -> None:
    """Raises Taken: *address* is none that a container can have on *network*."""
    subnet = ipaddress.ip_network(network.subnet)
    try:
        inside = ipaddress.ip_address(address) in subnet
    except ValueError:
        inside = False
    if not inside:
        raise Taken(f"{address!r} is no address in the subnet {subnet} of network {network.name}")


def free_subnet(taken: Iterable[IPNetwork]) -> IPNetwork:
    """Return a subnet that overlaps none of *taken*. Raises Taken."""
    taken = list(taken)
    for pool in POOLS:
        if not any(pool.version == other.version and pool.overlaps(other) for other in taken):
            return pool
    raise Taken("no subnet is free for another network: remove one, or give --subnet")


# Ports.


@dataclass(frozen=True, slots=True)
class Use:
    """A port of this host that something answers at."""

    protocol: str
    address: str  # "": every address
    port: int
    who: str

    def meets(self, protocol: str, address: str, port: int) -> bool:
        same = (self.protocol, self.port) == (protocol, port)
        return same and ("" in (self.address, address) or self.address == address)


def uses_of(record: ContainerRecord) -> Iterator[Use]:
    for port in record.ports:
        yield Use(port.protocol, port.address, port.port, f"container {record.name}")


def publish(
    record: ContainerRecord,
    uses: Iterable[Use],
    is_free: Callable[[str, str, int], bool],
) -> tuple[PublishedPort, ...]:
    """Return the ports of the host that lead to *record*: those that were asked for.

    *uses* are what else answers on this host; *is_free* asks the kernel about (protocol, address,
    port).

    Raises:
        Taken: a port is in use.
    """
    requests = list(record.config.ports)
    if record.config.publish_all:
        asked = {(r.target, r.protocol) for r in requests}
        for text in record.config.exposed:
            for target, protocol in expand_exposed(text):
                if (target, protocol) not in asked:
                    requests.append(PortRequest(target=target, protocol=protocol))
    taken = list(uses)
    found = []
    for request in requests:
        address = "" if request.address in ("", "0.0.0.0") else request.address
        port = _choose(record, request, address, taken, is_free)
        taken.append(Use(request.protocol, address, port, f"container {record.name}"))
        found.append(
            PublishedPort(
                target=request.target, protocol=request.protocol, address=address, port=port
            )
        )
    return tuple(found)


def _choose(
    record: ContainerRecord,
    request: PortRequest,
    address: str,
    taken: Collection[Use],
    is_free: Callable[[str, str, int], bool],
) -> int:
    first, last = request.first or EPHEMERAL_FIRST, request.last or EPHEMERAL_LAST
    reason = ""
    for port in range(first, last + 1):
        user = next((u.who for u in taken if u.meets(request.protocol, address, port)), "")
        if not user and is_free(request.protocol, address, port):
            return port
        where = f"{address or '0.0.0.0'}:{port}/{request.protocol}"
        reason = f"{where} is used by {user or 'another program of this host'}"
    if first != last:
        reason = f"no port from {first} to {last} is free"
    raise Taken(
        f"port is already allocated: {reason}; publish another one, or stop what has it "
        f"(container {record.name})"
    )


def expand_exposed(text: str) -> Iterator[tuple[int, str]]:
    """Read `80`, `80/udp`, `8000-8010/tcp`. Raises ValueError."""
    ports, _, protocol = text.partition("/")
    first, _, last = ports.partition("-")
    low, high = int(first), int(last or first)
    if not (0 < low <= high <= 65_535 and protocol in ("", "tcp", "udp", "sctp")):
        raise ValueError(f"{text!r} is no port; write for example 80/tcp")
    for port in range(low, high + 1):
        yield port, protocol or "tcp"


def find_network(networks: Mapping[str, LocalNetwork], reference: str) -> LocalNetwork | None:
    """By id, by name, by the beginning of the id. Raises Taken when that is of several."""
    if reference in networks:
        return networks[reference]
    named = [n for n in networks.values() if n.name == reference]
    found = named or [n for n in networks.values() if reference and n.id.startswith(reference)]
    if len(found) > 1:
        raise Taken(f"network {reference} is ambiguous: {len(found)} begin so; give more of the id")
    return found[0] if found else None


def is_built_in(name: str) -> bool:
    return name in BUILT_IN
