"""Session: what an agent and the leader say to each other, over one mTLS stream.

Pure: messages and the records that an assignment is made of.

    agent                              leader
    Hello(facts, what runs)     ->
                                <-     Welcome, or Redirect to the leader
                                <-     Assign(full), later Assign(delta) after each change
    Ack(sequence)               ->     the assignment is on this disk
    Status(reports)             ->     batched, and Images when they changed
    Heartbeat                   <->    each way, every *heartbeat* seconds
    Probed                      <->    Probe: is that node there? (the leader asks third parties)

An assignment is a set of items, each a record under a kind and an id; a delta puts and removes
items. A full one is authoritative for removal only if its epoch is the agent's and its index
not below the agent's own: a manager that lost its memory makes nobody delete work.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from swarmlet.model import (
    Desired,
    Endpoint,
    GossipKey,
    NetworkId,
    NodeFacts,
    NodeId,
    Observation,
    PortConfig,
    Role,
    ServiceId,
    TaskId,
    TaskTemplate,
)

PROTOCOL = 1
#: Items in one Assign; a larger assignment comes in several, of which the last says *done*.
ITEMS_MAX = 500
REPORTS_MAX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerView:
    """A manager that an agent may turn to."""

    node: NodeId
    address: str
    port: int
    raft_server: int = 0
    epoch: int = 0  # in Raft's own configuration, of a server that was recovered: the new epoch


@dataclass(frozen=True, slots=True)
class Report:
    task: TaskId
    seen: Observation


@dataclass(frozen=True, slots=True)
class HeldImage:
    """An image that a node holds whole: its digest, and the names it has there."""

    digest: str
    references: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """*complete* reports hold every task that the agent knows of."""

    protocol_min: int
    protocol_max: int
    facts: NodeFacts
    epoch: int = 0
    index: int = 0
    reports: tuple[Report, ...] = ()
    images: tuple[HeldImage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    epoch: int
    term: int
    heartbeat: float
    now: float  # the leader's clock
    managers: tuple[ManagerView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirect:
    """This manager does not lead; *leader* may."""

    reason: str
    leader: ManagerView | None = None
    managers: tuple[ManagerView, ...] = ()


class Kind(enum.StrEnum):
    """Kinds of items. The values are stored and sent: never renamed, never reused."""

    CLUSTER = "cluster"
    NODE = "node"
    NETWORK = "network"
    SERVICE = "service"
    TASK = "task"
    ENDPOINT = "endpoint"
    IMAGE = "image"


@dataclass(frozen=True, slots=True)
class ItemKey:
    kind: Kind
    id: str


@dataclass(frozen=True, slots=True)
class Item:
    kind: Kind
    id: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Assign:
    sequence: int
    epoch: int
    index: int
    full: bool = False
    done: bool = True  # False: more of the same assignment follows
    puts: tuple[Item, ...] = ()
    removes: tuple[ItemKey, ...] = ()
    past_epochs: tuple[int, ...] = ()  # that an operator has ended by a recovery


@dataclass(frozen=True, slots=True)
class Ack:
    sequence: int
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    reports: tuple[Report, ...] = ()
    facts: NodeFacts | None = None  # when they changed


@dataclass(frozen=True, slots=True)
class Images:
    """Every image that this node holds whole."""

    images: tuple[HeldImage, ...] = ()


@dataclass(frozen=True, slots=True)
class Heartbeat:
    now: float = 0.0


@dataclass(frozen=True, slots=True)
class Probe:
    """Say whether *node* can be reached from where you are."""

    number: int
    node: NodeId
    address: str
    port: int


class Reach(enum.StrEnum):
    ALIVE = "alive"
    REFUSED = "refused"  # the host answers, the daemon is gone
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Probed:
    number: int
    reach: Reach


@dataclass(frozen=True, slots=True)
class Farewell:
    """The agent closes this session on purpose and is back within *seconds* (0: for good)."""

    seconds: float = 0.0


# Raft (sl-raft/1): the first frame of a stream; raft's own messages follow.


@dataclass(frozen=True, slots=True, kw_only=True)
class RaftHello:
    """Who speaks on this stream, and where it is reached; *to* is the server that is meant."""

    server: int
    to: int
    address: str
    port: int
    snapshot: bool = False  # one snapshot follows, and its receipt is the answer


@dataclass(frozen=True, slots=True)
class SnapshotReceipt:
    """The snapshot is on disk here; or *error* says why not."""

    error: str = ""


# Blobs of images, from node to node (sl-sync/1): the answer, then the bytes in frames.


@dataclass(frozen=True, slots=True)
class BlobRequest:
    """Send the blob *digest* from *offset* on."""

    digest: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class BlobAnswer:
    """*size* of the whole blob; -1: it is not here, and *error* says why."""

    size: int
    error: str = ""


SessionMessage: TypeAlias = (
    Hello
    | Welcome
    | Redirect
    | Assign
    | Ack
    | Status
    | Images
    | Heartbeat
    | Probe
    | Probed
    | Farewell
    | BlobRequest
    | BlobAnswer
    | RaftHello
    | SnapshotReceipt
)


# Records that an assignment is made of.


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    id: str
    epoch: int
    managers: tuple[ManagerView, ...]
    gossip_keys: tuple[GossipKey, ...]
    gossip_epoch: int
    gossip_preset: str
    data_path_port: int
    heartbeat: float
    images: tuple[str, ...] = ()  # digests that current and previous specs name
    gossip_knobs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """Where a node is, and its host's own interface on the ingress network."""

    id: NodeId
    name: str
    address: str
    port: int
    ingress: Endpoint | None = None
    role: Role = Role.WORKER  # what it is to be now
    underlay_mtu: int = 0  # 0: not known


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkView:
    id: NetworkId
    name: str
    vni: int
    subnet: str
    gateway: str
    ingress: bool = False
    internal: bool = False
    mtu: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceNetwork:
    network: NetworkId
    address: str = ""  # the virtual one; "" with dnsrr
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceView:
    """How a service is found: its name and virtual addresses, and the ports it publishes."""

    id: ServiceId
    name: str
    networks: tuple[ServiceNetwork, ...] = ()
    ports: tuple[PortConfig, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointView:
    """A task on a network. One that is not *ready* has an address, but is sent nothing."""

    task: TaskId
    service: ServiceId
    slot: int
    node: NodeId
    network: NetworkId
    address: str
    mac: str
    ready: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskAssignment:
    id: TaskId
    service: ServiceId
    service_name: str
    slot: int
    spec_version: int
    desired: Desired
    template: TaskTemplate
    endpoints: tuple[Endpoint, ...] = ()
    ports: tuple[PortConfig, ...] = ()  # of the host
    service_labels: Mapping[str, str] = field(default_factory=dict)
    node: NodeId = NodeId("")

    @property
    def name(self) -> str:
        """Docker's name of the task: web.1.<id>, or of a global service web.<node>.<id>."""
        return f"{self.service_name}.{self.slot or self.node}.{self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageView:
    """The nodes that hold the image *digest* whole."""

    digest: str
    nodes: tuple[NodeId, ...] = ()


RECORDS: dict[Kind, type] = {
    Kind.CLUSTER: ClusterView,
    Kind.NODE: NodeView,
    Kind.NETWORK: NetworkView,
    Kind.SERVICE: ServiceView,
    Kind.TASK: TaskAssignment,
    Kind.ENDPOINT: EndpointView,
    Kind.IMAGE: ImageView,
}
