"""Objects: what the managers agree on, one record a thing, kept by Raft.

Pure. Every object has an *id*, the Raft index of its last change as *version* (set by apply, never
by a writer) and the wall-clock times of its creation and last change (set by the writer: apply
reads no clock). In the log are specs, assignments with their addresses, and the outcomes that
later decisions need; running statuses are observations (status.py) and never are.

These records are stored and sent (swarmlet.codec): fields are append-only.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NewType, TypeAlias

from swarmlet.model.specs import (
    ClusterSpec,
    NetworkSpec,
    NodeSpec,
    PortConfig,
    Role,
    ServiceSpec,
    TaskTemplate,
)
from swarmlet.model.status import TaskState

ClusterId = NewType("ClusterId", str)
NodeId = NewType("NodeId", str)
ServiceId = NewType("ServiceId", str)
TaskId = NewType("TaskId", str)
NetworkId = NewType("NetworkId", str)


class Table(enum.StrEnum):
    """The tables of the state. The values are part of the log: never renamed, never reused."""

    CLUSTER = "cluster"
    NODE = "node"
    SERVICE = "service"
    REVISION = "revision"
    TASK = "task"
    NETWORK = "network"
    JOIN_TOKEN = "join_token"
    REQUEST = "request"


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipKey:
    """Group key of one epoch (DISTRIBUTED B2)."""

    epoch: int
    key: bytes
    made_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The one record that says what this cluster is; its id is the cluster's."""

    table: ClassVar[Table] = Table.CLUSTER

    id: ClusterId
    spec: ClusterSpec = ClusterSpec()
    ca_certificate: bytes = b""  # DER
    ca_key: bytes = b""  # PEM; the log and the snapshots are sealed
    token_key: bytes = b""  # standing join tokens are derived from it
    token_generation: Mapping[str, int] = field(default_factory=dict)  # role -> generation
    gossip_keys: tuple[GossipKey, ...] = ()  # previous, current, next; at most three
    gossip_epoch: int = 0  # the epoch to send with
    epoch: int = 0  # random; another one after a recovery from a lost quorum
    data_path_port: int = 4789
    version: int = 0
    created_at: float = 0.0
    updated_at: float = 0.0
    gossip_step_at: float = 0.0  # when the latest step of a change of keys was made
    gossip_revoked: int = 0  # keys of epochs below it are known to somebody who was removed
    #: Epochs that ended with a recovery: what was good under them is good under this one.
    past_epochs: tuple[int, ...] = ()
    #: Raft servers that a recovery left behind: their logs may hold another history.
    retired_servers: tuple[int, ...] = ()


class NodeState(enum.StrEnum):
    """The coarse decision about a node; DISCONNECTED lies between and is only observed."""

    READY = "ready"
    DOWN = "down"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What a node says of itself when its session opens, and when it changes."""

    hostname: str = ""
    os: str = "linux"
    architecture: str = ""  # as in OCI images: amd64, arm64, arm
    nano_cpus: int = 0
    memory_bytes: int = 0
    engine_version: str = ""
    engine_labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""  # where other nodes reach it
    port: int = 0  # TCP and UDP
    raft_server: int = 0  # 63 bits; 0: no Raft server here
    protocol_min: int = 1
    protocol_max: int = 1
    underlay_mtu: int = 0  # of the interface that has *address*; 0: not measured yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An address on one network."""

    network: NetworkId
    address: str = ""
    mac: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    table: ClassVar[Table] = Table.NODE

    id: NodeId
    spec: NodeSpec
    facts: NodeFacts = NodeFacts()
    public_keys: tuple[bytes, ...] = ()  # SPKI, current first, then one pending renewal
    state: NodeState = NodeState.READY
    state_since: float = 0.0
    role: Role = Role.WORKER  # what its certificate and Raft say; spec.role is what is wanted
    ingress: Endpoint | None = None  # the host's own interface on the ingress network
    version: int = 0
    created_at: float = 0.0
    updated_at: float = 0.0

    @property
    def present_role(self) -> Role:
        """What it may do now: a manager that was demoted votes until Raft has let it go."""
        return Role.MANAGER if Role.MANAGER in (self.spec.role, self.role) else Role.WORKER


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualAddress:
    network: NetworkId
    address: str


class UpdatePhase(enum.StrEnum):
    """Docker's names of the states of an update."""

    UPDATING = "updating"
    PAUSED = "paused"
    COMPLETED = "completed"
    ROLLBACK_STARTED = "rollback_started"
    ROLLBACK_PAUSED = "rollback_paused"
    ROLLBACK_COMPLETED = "rollback_completed"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateStatus:
    phase: UpdatePhase
    started_at: float = 0.0
    completed_at: float = 0.0
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """*spec_version* grows when the task template changes: tasks of an older one are replaced."""

    table: ClassVar[Table] = Table.SERVICE

    id: ServiceId
    spec: ServiceSpec
    spec_version: int = 1
    previous_spec: ServiceSpec | None = None
    virtual_addresses: tuple[VirtualAddress, ...] = ()
    ports: tuple[PortConfig, ...] = ()  # spec.endpoint.ports with every published port chosen
    update: UpdateStatus | None = None
    version: int = 0
    created_at: float = 0.0
    updated_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """The task template of one spec version, kept while a task refers to it."""

    table: ClassVar[Table] = Table.REVISION

    id: str  # revision_id(service, spec_version)
    service: ServiceId
    spec_version: int
    task: TaskTemplate
    version: int = 0
    created_at: float = 0.0
    updated_at: float = 0.0


def revision_id(service: ServiceId, spec_version: int) -> str:
    return f"{service}.{spec_version}"


class Desired(enum.IntEnum):
    """What the managers want of a task; it only grows. Docker's numbers."""

    READY = 384  # prepared, but not started yet
    RUNNING = 512
    SHUTDOWN = 640
    REMOVE = 800


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a task ended, for good."""

    state: TaskState  # a terminal one
    at: float
    message: str = ""
    error: str = ""
    exit_code: int | None = None
    log_tail: tuple[str, ...] = ()  # last lines it wrote, at most LOG_TAIL_LINES


LOG_TAIL_LINES = 10
LOG_TAIL_LINE_CHARACTERS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One life of a replica. A restart elsewhere is another task in the same slot."""

    table: ClassVar[Table] = Table.TASK

    id: TaskId
    service: ServiceId
    spec_version: int
    slot: int = 0  # 0: of a global service
    node: NodeId = NodeId("")  # "": not placed yet
    desired: Desired = Desired.RUNNING
    endpoints: tuple[Endpoint, ...] = ()
    outcome: Outcome | None = None
    not_before: float = 0.0  # the leader's clock: a replacement waits out the restart delay
    attempt: int = 0  # how many tasks of this spec version failed in the place before
    only_node: NodeId = NodeId("")  # of a global service: the one node that it is for
    version: int = 0
    created_at: float = 0.0
    updated_at: float = 0.0

    @property
    def place(self) -> tuple[int, NodeId]:
        """What the task fills: a slot, or the node of a global service."""
        return self.slot, self.only_node


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    table: ClassVar[Table] = Table.NETWORK

    id: NetworkId
    spec: NetworkSpec
    subnet: str
    gateway: str
    vni: int
    version: int = 0
    created_at: float = 0.0
    updated_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinToken:
    """An issued token: only the digest of its secret is known here."""

    table: ClassVar[Table] = Table.JOIN_TOKEN

    id: str
    role: Role
    secret_digest: bytes
    expires_at: float
    uses_left: int
    labels: Mapping[str, str] = field(default_factory=dict)
    version: int = 0
    created_at: float = 0.0
    updated_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request that was carried out: the same id again is not carried out twice."""

    table: ClassVar[Table] = Table.REQUEST

    id: str
    version: int = 0
    created_at: float = 0.0
    updated_at: float = 0.0


Object: TypeAlias = Cluster | Node | Service | Revision | Task | Network | JoinToken | Request
