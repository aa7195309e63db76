"""What there is in the kernel: one value for each thing that can be there or be missing.

Pure. A resource is a value: everything that distinguishes it is a field, and equal values
are equal kernels. Interface indexes are no fields, they are looked up when applying. MACs
are in lower case. A *namespace* is a file under the run directory, HOST the host's own.

Identity and settings are resources of their own: a Veth that exists with a wrong MTU is the
right Veth with a wrong LinkSettings, and is set right without being torn down under its
container. `key` says what a resource occupies: two values with one key cannot both exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from overlay.tables import Chain
from overlay.topology import IPAddress, IPNetwork

#: The namespace that the daemon itself lives in.
HOST = ""

Key: TypeAlias = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace that a file keeps alive; not *mounted*: a file that keeps nothing."""

    namespace: str
    mounted: bool = True

    @property
    def key(self) -> Key:
        return ("namespace", self.namespace)


@dataclass(frozen=True, slots=True)
class Sysctl:
    """net.*name* of one namespace. *link* names the interface that it is about, if it is."""

    namespace: str
    name: str
    value: str
    link: str = ""

    @property
    def key(self) -> Key:
        return ("sysctl", self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Bridge:
    namespace: str
    name: str

    @property
    def key(self) -> Key:
        return ("link", self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Vxlan:
    """The VTEP of one overlay network (RFC 7348): no learning, ARP answered from neighbours.

    Its UDP socket stays in the host's namespace, whatever namespace it is in.
    """

    namespace: str
    name: str
    vni: int
    local: IPAddress
    port: int
    learning: bool = False
    proxy: bool = True

    @property
    def key(self) -> Key:
        return ("link", self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Veth:
    """A pair of interfaces: *name* here, *peer_name* in *peer_namespace*."""

    namespace: str
    name: str
    peer_namespace: str
    peer_name: str

    @property
    def key(self) -> Key:
        return ("link", self.namespace, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    namespace: str
    name: str
    mac: str
    mtu_bytes: int
    master: str = ""
    up: bool = True

    @property
    def key(self) -> Key:
        return ("settings", self.namespace, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortSettings:
    """How a bridge treats its port *name*.

    *isolated* ports talk to the bridge only, not to each other. *locked* ports accept only
    frames whose source is in the bridge's table (None: the kernel is older than 5.18).
    """

    namespace: str
    name: str
    learning: bool
    flood: bool
    isolated: bool = False
    locked: bool | None = False

    @property
    def key(self) -> Key:
        return ("port", self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    namespace: str
    link: str
    address: IPAddress
    prefix_length: int

    @property
    def key(self) -> Key:
        return ("address", self.namespace, self.link, self.address, self.prefix_length)


@dataclass(frozen=True, slots=True)
class Route:
    """*destination* is reached by *gateway*, which is taken to be on *link*."""

    namespace: str
    table: int
    destination: IPNetwork
    gateway: IPAddress
    link: str

    @property
    def key(self) -> Key:
        return ("route", self.namespace, self.table, self.destination)


@dataclass(frozen=True, slots=True)
class Rule:
    """Packets with *mark* are routed by *table*."""

    namespace: str
    mark: int
    table: int

    @property
    def key(self) -> Key:
        return ("rule", self.namespace, self.mark, self.table)


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """Frames for *mac* leave through the VXLAN device *link* to the VTEP at *remote*."""

    namespace: str
    link: str
    mac: str
    remote: IPAddress

    @property
    def key(self) -> Key:
        return ("fdb", self.namespace, self.link, self.mac)


@dataclass(frozen=True, slots=True)
class PortEntry:
    """Frames for *mac* leave the bridge through its port *link*."""

    namespace: str
    link: str
    mac: str

    @property
    def key(self) -> Key:
        return ("port entry", self.namespace, self.link, self.mac)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """*address* has *mac* on *link*: what ARP would find out."""

    namespace: str
    link: str
    address: IPAddress
    mac: str

    @property
    def key(self) -> Key:
        return ("neighbour", self.namespace, self.link, self.address)


@dataclass(frozen=True, slots=True)
class Ruleset:
    """The nft table *table*, whole."""

    namespace: str
    table: str
    chains: tuple[Chain, ...]

    @property
    def key(self) -> Key:
        return ("ruleset", self.namespace, self.table)


Link: TypeAlias = Bridge | Vxlan | Veth
Resource: TypeAlias = (
    Namespace
    | Sysctl
    | Link
    | LinkSettings
    | PortSettings
    | InterfaceAddress
    | Route
    | Rule
    | FdbEntry
    | PortEntry
    | Neighbour
    | Ruleset
)
#: What must exist before what; deletion goes the other way.
BUILD_ORDER: tuple[type[Resource], ...] = (
    Namespace,
    Sysctl,
    Bridge,
    Vxlan,
    Veth,
    LinkSettings,
    PortSettings,
    InterfaceAddress,
    Route,
    Rule,
    FdbEntry,
    PortEntry,
    Neighbour,
    Ruleset,
)
#: Setting the new value replaces the old one, without a moment in which there is none.
REPLACED_IN_PLACE = (
    Sysctl,
    LinkSettings,
    PortSettings,
    Route,
    FdbEntry,
    Neighbour,
    Ruleset,
)
#: Settings of something else: they have no existence of their own to end.
NEVER_DELETED = (Sysctl, LinkSettings, PortSettings)
