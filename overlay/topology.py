"""What one host is told of the network: the input of everything else in this package.

Pure. A Topology is complete: what it does not name must not exist on this host. All
values are checked when they are made, because ids become file names and texts become
nft rules. A topology comes from the cluster's store; this is the door it comes in by.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NewType, TypeAlias

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPNetwork: TypeAlias = IPv4Network | IPv6Network

NetworkId = NewType("NetworkId", str)
SandboxId = NewType("SandboxId", str)

#: The IANA port of VXLAN. Docker and flannel may use it too: VNIs keep them apart.
VXLAN_PORT = 4789
#: What VXLAN adds to a frame: IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14.
VXLAN_OVERHEAD_BYTES = 50
#: The least MTU that every IPv4 host must accept (RFC 791).
MTU_BYTES_MIN = 576
VNI_MAX = (1 << 24) - 1
PORT_MAX = 65535
#: A name and its network's, with a dot between, fit into the 253 characters of a DNS name.
NAME_LENGTH_MAX = 126

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
#: As the kernel's dev_valid_name(), minus what would need quoting in a rule.
_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}")


class Protocol(enum.Enum):
    """Transport of a published port, in nft's words."""

    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Underlay:
    """How this host reaches the others.

    *mtu_bytes* is the least underlay MTU that is known of any host of the cluster; the
    reconciler lowers it to what it measures on this host's own interface.
    """

    address: IPAddress
    port: int = VXLAN_PORT
    mtu_bytes: int | None = None

    def __post_init__(self) -> None:
        _check_port(self.port)
        if self.mtu_bytes is not None and self.mtu_bytes < MTU_BYTES_MIN + VXLAN_OVERHEAD_BYTES:
            raise ValueError(f"an underlay MTU of {self.mtu_bytes} leaves no room for VXLAN")


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """An overlay network that this host takes part in; with VNI 0 one of this host alone.

    *mtu_bytes* is the user's own choice; the measured value bounds it.
    """

    id: NetworkId
    name: str
    vni: int
    subnet: IPNetwork
    mtu_bytes: int | None = None

    def __post_init__(self) -> None:
        _check_id(self.id)
        _check_name(self.name)
        if not 0 <= self.vni <= VNI_MAX:
            raise ValueError(f"network {self.name}: {self.vni} is no VNI (1 to {VNI_MAX}; 0: none)")
        if self.mtu_bytes is not None and self.mtu_bytes < MTU_BYTES_MIN:
            raise ValueError(f"network {self.name}: MTU {self.mtu_bytes} is under {MTU_BYTES_MIN}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An address on an overlay network and the host that it lives on (its VTEP)."""

    network: NetworkId
    address: IPAddress
    mac: str
    vtep: IPAddress

    def __post_init__(self) -> None:
        _check_mac(self.mac)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A sandbox's interface on an overlay network."""

    network: NetworkId
    address: IPAddress
    mac: str
    interface: str = "eth0"

    def __post_init__(self) -> None:
        _check_mac(self.mac)
        _check_interface(self.interface)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayPort:
    """A sandbox's interface on the host-local gateway subnet: its way to the outside."""

    address: IPAddress
    mac: str
    interface: str = "gw0"

    def __post_init__(self) -> None:
        _check_mac(self.mac)
        _check_interface(self.interface)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """The network namespace of one local task."""

    id: SandboxId
    attachments: tuple[Attachment, ...] = ()
    gateway: GatewayPort | None = None

    def __post_init__(self) -> None:
        _check_id(self.id)
        names = [attachment.interface for attachment in self.attachments]
        if self.gateway:
            names.append(self.gateway.interface)
        if len(set(names)) < len(names):
            raise ValueError(f"sandbox {self.id} has two interfaces of one name: {names}")
        networks = [attachment.network for attachment in self.attachments]
        if len(set(networks)) < len(networks):
            raise ValueError(f"sandbox {self.id} is twice on one network: {networks}")


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualIp:
    """An address that stands for *backends* on its network (all protocols, all ports).

    A backend that is no endpoint of the network is not reachable and is left out.
    """

    network: NetworkId
    address: IPAddress
    backends: tuple[IPAddress, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedPort:
    """A port that every host answers: the routing mesh.

    *backends* are addresses on the ingress network. *within* restricts the port to host
    addresses in that range, *interface* to what arrives on that interface.
    """

    protocol: Protocol
    port: int
    target_port: int
    backends: tuple[IPAddress, ...]
    within: IPNetwork | None = None
    interface: str | None = None

    def __post_init__(self) -> None:
        _check_port(self.port)
        _check_port(self.target_port)
        if self.interface is not None:
            _check_interface(self.interface)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPort:
    """A port of this host alone, for one local sandbox (mode=host)."""

    protocol: Protocol
    port: int
    sandbox: SandboxId
    target_port: int
    within: IPNetwork | None = None
    interface: str | None = None

    def __post_init__(self) -> None:
        _check_port(self.port)
        _check_port(self.target_port)
        if self.interface is not None:
            _check_interface(self.interface)


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressGateway:
    """The address that one host has on the ingress network; replies return through it."""

    address: IPAddress
    mac: str
    vtep: IPAddress

    def __post_init__(self) -> None:
        _check_mac(self.mac)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingress:
    """The network that carries published ports, and every host's address on it."""

    network: NetworkId
    gateways: tuple[IngressGateway, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """What *name* means on *network*.

    A *canonical* name is also the answer to the reverse question for its addresses.
    """

    network: NetworkId
    name: str
    addresses: tuple[IPAddress, ...]
    canonical: bool = False

    def __post_init__(self) -> None:
        _check_name(self.name)


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Everything that this host's network must be, now.

    *gateway* is the subnet between this host and its sandboxes; the host has its first
    address. *masked* holds the VTEPs of hosts that are thought dead: their backends leave
    every map and every name at once, and come back when the VTEP is unmasked. This host's
    own VTEP is never masked.
    """

    underlay: Underlay
    gateway: IPNetwork
    networks: tuple[Network, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    sandboxes: tuple[Sandbox, ...] = ()
    virtual_ips: tuple[VirtualIp, ...] = ()
    published_ports: tuple[PublishedPort, ...] = ()
    host_ports: tuple[HostPort, ...] = ()
    ingress: Ingress | None = None
    names: tuple[Name, ...] = ()
    masked: frozenset[IPAddress] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        known = {network.id for network in self.networks}
        named = [
            *(endpoint.network for endpoint in self.endpoints),
            *(a.network for sandbox in self.sandboxes for a in sandbox.attachments),
            *(vip.network for vip in self.virtual_ips),
            *(name.network for name in self.names),
        ]
        if self.ingress:
            named.append(self.ingress.network)
        if unknown := sorted(set(named) - known):
            raise ValueError(f"networks {unknown} are used but not in the topology")
        for what, values in (
            ("network id", [network.id for network in self.networks]),
            ("VNI", [network.vni for network in self.networks if network.vni]),
            ("sandbox id", [sandbox.id for sandbox in self.sandboxes]),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"a {what} stands twice in the topology: {sorted(values)}")

    @property
    def gateway_address(self) -> IPAddress:
        """This host's own address on the gateway subnet."""
        return self.gateway[1]

    @cached_property
    def own_ingress(self) -> IngressGateway | None:
        """This host's own address on the ingress network, if it has one."""
        gateways = self.ingress.gateways if self.ingress else ()
        return next((g for g in gateways if g.vtep == self.underlay.address), None)

    @cached_property
    def vtep_of(self) -> Mapping[tuple[NetworkId, IPAddress], IPAddress]:
        """The host of every address that is known, by network and address.

        Where the endpoint table and this host's own sandboxes disagree, the sandbox is right:
        it is here.
        """
        table = {(e.network, e.address): e.vtep for e in self.endpoints}
        if self.ingress:
            for gateway in self.ingress.gateways:
                table[self.ingress.network, gateway.address] = gateway.vtep
        for sandbox in self.sandboxes:
            for attachment in sandbox.attachments:
                table[attachment.network, attachment.address] = self.underlay.address
        return table

    def is_local(self, network: NetworkId, address: IPAddress) -> bool:
        return self.vtep_of.get((network, address)) == self.underlay.address

    def is_live(self, network: NetworkId, address: IPAddress) -> bool:
        """Whether *address* is known and lives on a host that nobody thinks dead."""
        vtep = self.vtep_of.get((network, address))
        return vtep is not None and (vtep == self.underlay.address or vtep not in self.masked)


def _check_id(value: str) -> None:
    if not _ID.fullmatch(value):
        raise ValueError(f"{value!r} cannot be an id: it becomes a file name")


def _check_name(value: str) -> None:
    if len(value) > NAME_LENGTH_MAX or not _NAME.fullmatch(value):
        raise ValueError(f"{value!r} cannot be asked for in DNS")


def _check_mac(value: str) -> None:
    if not _MAC.fullmatch(value):
        raise ValueError(f"{value!r} is no MAC address in lower case with colons")
    if int(value[:2], 16) & 1:
        raise ValueError(f"{value!r} is a group address: no interface can have it")


def _check_interface(value: str) -> None:
    if not _INTERFACE.fullmatch(value) or value in (".", ".."):
        raise ValueError(f"{value!r} is no name of an interface")


def _check_port(value: int) -> None:
    if not 0 < value <= PORT_MAX:
        raise ValueError(f"{value} is no port (1 to {PORT_MAX})")
