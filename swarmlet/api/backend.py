"""What the API asks of the daemon: Protocols that the composition fulfils.

Control is the leader's: it changes the cluster, and exists on no other node. LocalNode is the
daemon itself and is always there, in a swarm or out of it. Both raise ControlError or SpecError
(swarmlet.manager.errors) with a text that a user can act on; every other exception is a bug.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from swarmlet.api.neighbours import Neighbourhood
from swarmlet.api.raftstate import Recovery
from swarmlet.manager.view import View
from swarmlet.model import (
    Availability,
    Cluster,
    ClusterId,
    ClusterSpec,
    Network,
    NetworkId,
    NetworkSpec,
    Node,
    NodeId,
    NodeSpec,
    Role,
    Service,
    ServiceId,
    ServiceSpec,
    TaskId,
)

if TYPE_CHECKING:
    import trio

    from swarmlet.agent.local.engine import Engine
    from swarmlet.images.store import ImageStore
    from swarmlet.runtime.supervisor import Supervisor


NO_NODE = NodeId("")
NO_CLUSTER = ClusterId("")
DEFAULT_SPEC = ClusterSpec()


class LocalState(enum.StrEnum):
    """Docker's words for how a node stands to a swarm."""

    INACTIVE = "inactive"
    PENDING = "pending"  # it joins, or looks for its managers
    ACTIVE = "active"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerAddress:
    node: NodeId
    address: str
    port: int
    name: str = ""

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalStatus:
    """What this daemon is, at this moment."""

    state: LocalState
    name: str  # the host's
    version: str  # swarmlet's
    node_id: NodeId = NO_NODE
    cluster_id: ClusterId = NO_CLUSTER
    role: Role = Role.WORKER
    is_leader: bool = False
    leader: NodeId | None = None
    managers: tuple[ManagerAddress, ...] = ()
    address: str = ""  # where other nodes reach this one
    error: str = ""
    state_dir: str = ""
    cgroup_version: int = 2
    labels: Mapping[str, str] = field(default_factory=dict)  # of the engine

    @property
    def in_swarm(self) -> bool:
        return self.state is not LocalState.INACTIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class InitRequest:
    """Empty means: as the daemon was started."""

    advertise: str = ""
    listen: str = ""
    data_path_port: int = 0
    availability: Availability = Availability.ACTIVE
    spec: ClusterSpec = DEFAULT_SPEC

    @property
    def pools(self) -> tuple[str, ...]:
        return self.spec.pools

    @property
    def subnet_bits(self) -> int:
        return self.spec.subnet_bits


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRequest:
    addresses: tuple[str, ...]  # "host" or "host:port" of managers, tried in this order
    token: str
    advertise: str = ""
    listen: str = ""
    availability: Availability = Availability.ACTIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskContainer:
    """Which container is a task's, and what Docker's clients are told of it."""

    container: str  # the supervisor's id
    name: str  # web.1.<task id>
    image: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    networks: Mapping[str, str] = field(default_factory=dict)  # network name -> address
    health: str = ""  # starting, healthy or unhealthy; "" without a health check
    restarts: int = 0  # on this node


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of `docker events`."""

    type: str  # container, service, node, network, image
    action: str
    id: str
    at: float
    attributes: Mapping[str, str] = field(default_factory=dict)
    scope: str = "local"


class Control(Protocol):
    """What only the leader can do."""

    @property
    def view(self) -> View: ...

    async def create_service(self, spec: ServiceSpec, *, request: str = "") -> Service: ...

    async def update_service(
        self, service: ServiceId, spec: ServiceSpec, *, version: int, rollback: bool = False
    ) -> Service:
        """With *rollback* the service returns to its previous spec and *spec* is not looked at."""
        ...

    async def remove_service(self, service: ServiceId) -> None: ...

    async def create_network(self, spec: NetworkSpec) -> Network: ...

    async def remove_network(self, network: NetworkId) -> None: ...

    async def update_node(self, node: NodeId, spec: NodeSpec, *, version: int) -> Node: ...

    async def remove_node(self, node: NodeId, *, force: bool) -> None: ...

    async def update_cluster(
        self,
        spec: ClusterSpec,
        *,
        version: int,
        rotate: frozenset[Role] = frozenset(),
        gossip_key: bool = False,
    ) -> Cluster:
        """Change the settings, make new join tokens of *rotate*, have another gossip key."""
        ...

    def token(self, role: Role) -> str:
        """The standing join token of *role*."""
        ...

    async def create_token(
        self, role: Role, *, ttl: float, uses: int, labels: Mapping[str, str]
    ) -> str: ...


class LocalNode(Protocol):
    @property
    def status(self) -> LocalStatus: ...

    @property
    def control(self) -> Control | None:
        """None unless this node leads."""
        ...

    async def init(self, request: InitRequest) -> NodeId: ...

    async def join(self, request: JoinRequest) -> NodeId: ...

    async def leave(self, *, force: bool) -> None: ...

    async def dial_api(self, node: NodeId | None) -> trio.abc.Stream:
        """Open an sl-api/1 stream to *node*, or to the leader. Raises Unavailable."""
        ...

    @property
    def images(self) -> ImageStore: ...

    @property
    def supervisor(self) -> Supervisor: ...

    @property
    def local(self) -> Engine:
        """The containers run by hand on this host."""
        ...

    def start_soon(self, act: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Have *act* done in the background; it raises nothing but bugs."""
        ...

    def task_containers(self) -> Mapping[TaskId, TaskContainer]: ...

    @property
    def neighbourhood(self) -> Neighbourhood: ...

    @property
    def recovery(self) -> Recovery: ...

    def subscribe_events(self) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Event]]: ...
