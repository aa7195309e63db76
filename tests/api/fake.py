"""A daemon for the API's tests: the real state, view and apply(), and an instant orchestrator.

Fake is a cluster of three nodes: h1 leads, h2 is a manager that follows, h3 is a worker. Every
change is a guarded change through apply(), as the real one's; tasks run at once where they are
placed. The nodes reach each other through memory streams served by the real HTTP server.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trio
import trio.testing

from swarmlet.agent.assignment import Assignment
from swarmlet.agent.local.engine import Engine
from swarmlet.api.backend import (
    Event,
    InitRequest,
    JoinRequest,
    LocalState,
    LocalStatus,
    ManagerAddress,
    TaskContainer,
)
from swarmlet.api.convert_task import task_name
from swarmlet.api.exchange import Peer
from swarmlet.api.http import serve_stream
from swarmlet.api.router import Route, Router
from swarmlet.api.server import ROUTES
from swarmlet.images.store import ImageStore
from swarmlet.manager.errors import Conflicting, NotFound, OutOfSequence, Unavailable
from swarmlet.manager.view import View
from swarmlet.model import (
    Cluster,
    ClusterId,
    ClusterSpec,
    Connection,
    Desired,
    Endpoint,
    Global,
    Network,
    NetworkId,
    NetworkSpec,
    Node,
    NodeFacts,
    NodeId,
    NodeSpec,
    NodeState,
    Observation,
    Outcome,
    Replicated,
    Revision,
    Role,
    Service,
    ServiceId,
    ServiceSpec,
    Task,
    TaskId,
    TaskState,
    UpdatePhase,
    UpdateStatus,
    VirtualAddress,
    revision_id,
)
from swarmlet.model.validation import check_network_spec, check_node, check_service
from swarmlet.runtime.logfile import JsonFileLog
from swarmlet.runtime.logs import read_logs
from swarmlet.runtime.spec import ContainerSpec, Process, Root
from swarmlet.runtime.state import ContainerState, ExitStatus, Status
from swarmlet.state import Applied, ClusterState, Draft, apply

NOW = 1_700_000_000.0
H1, H2, H3 = (NodeId(f"{name}{'0' * 22}{name}") for name in ("1a", "2b", "3c"))
NAMES = {H1: "h1", H2: "h2", H3: "h3"}


class FakeCluster:
    """The agreed state and what was observed; it is also the leader's Control."""

    def __init__(self) -> None:
        self.state = ClusterState()
        self.observations: dict[TaskId, Observation] = {}
        self.explanations: dict[TaskId, str] = {}
        self.requests: list[str] = []
        #: images that no node has: their tasks are rejected
        self.bad_images: set[str] = set()
        self.generation = {Role.WORKER: 1, Role.MANAGER: 1}
        self._ids = itertools.count(1)
        draft = Draft(self.state)
        draft.put(
            Cluster(
                id=ClusterId("c" * 25),
                ca_certificate=b"-----BEGIN CERTIFICATE-----\n",
                ca_key=b"the CA's key",
                token_key=b"the key of the tokens",
                created_at=NOW,
            )
        )
        for number, (id_, name) in enumerate(NAMES.items(), 1):
            role = Role.WORKER if id_ == H3 else Role.MANAGER
            facts = NodeFacts(
                hostname=name,
                architecture="amd64",
                nano_cpus=4_000_000_000,
                memory_bytes=8 << 30,
                engine_version="0.1.0",
                address=f"10.0.0.{number}",
                port=2377,
            )
            draft.put(
                Node(id=id_, spec=NodeSpec(role=role), role=role, facts=facts, created_at=NOW)
            )
        self.commit(draft)
        self.add_network(NetworkSpec(name="ingress", ingress=True))

    def new_id(self) -> str:
        return f"{next(self._ids):x}".ljust(25, "z")

    def commit(self, draft: Draft) -> None:
        index = self.state.index + 1
        self.state, verdict = apply(self.state, draft.change(at=NOW), index=index, entry_term=1)
        assert isinstance(verdict, Applied), verdict

    def add_network(self, spec: NetworkSpec) -> Network:
        number = len(self.state.networks)
        network = Network(
            id=NetworkId(self.new_id()),
            spec=spec,
            subnet=spec.subnet or f"10.128.{number}.0/24",
            gateway=spec.gateway or f"10.128.{number}.1",
            vni=4096 + number,
            created_at=NOW,
        )
        draft = Draft(self.state)
        draft.put(network)
        self.commit(draft)
        found = self.state.networks[network.id]
        return found

    # Control.

    @property
    def view(self) -> View:
        nodes = self.state.nodes
        return View(
            state=self.state,
            observations=dict(self.observations),
            connections=dict.fromkeys(nodes, Connection.READY),
            reported=frozenset(nodes),
            explanations=dict(self.explanations),
            now=NOW,
        )

    async def create_service(self, spec: ServiceSpec, *, request: str = "") -> Service:
        check_service(spec)
        self.requests.append(request)
        spec = self._resolve(spec)
        if any(s.spec.name == spec.name for s in self.state.services.values()):
            raise Conflicting(f"service {spec.name} exists already; choose another name")
        ports = tuple(
            dataclasses.replace(port, published=port.published or 30000 + n)
            for n, port in enumerate(spec.endpoint.ports)
        )
        vips = tuple(
            VirtualAddress(network=NetworkId(a.target), address="10.128.1.2")
            for a in spec.task.networks
        )
        service = Service(
            id=ServiceId(self.new_id()),
            spec=spec,
            ports=ports,
            virtual_addresses=vips,
            created_at=NOW,
            updated_at=NOW,
        )
        draft = Draft(self.state)
        draft.put(service)
        self.commit(draft)
        self.settle()
        return self.state.services[service.id]

    async def update_service(
        self, service: ServiceId, spec: ServiceSpec, *, version: int, rollback: bool = False
    ) -> Service:
        row = self.state.services[service]
        if row.version != version:
            raise OutOfSequence("service", version, row.version)
        check_service(spec)
        spec = row.previous_spec if rollback and row.previous_spec else self._resolve(spec)
        changed = spec.task != row.spec.task
        draft = Draft(self.state)
        if changed:
            draft.put(
                Revision(
                    id=revision_id(row.id, row.spec_version),
                    service=row.id,
                    spec_version=row.spec_version,
                    task=row.spec.task,
                )
            )
        phase = UpdatePhase.ROLLBACK_COMPLETED if rollback else UpdatePhase.COMPLETED
        status = UpdateStatus(phase=phase, started_at=NOW, completed_at=NOW, message="done")
        draft.put(
            dataclasses.replace(
                row,
                spec=spec,
                previous_spec=row.spec,
                spec_version=row.spec_version + changed,
                update=status if changed else None,
                ports=spec.endpoint.ports,
            )
        )
        self.commit(draft)
        self.settle()
        return self.state.services[service]

    async def remove_service(self, service: ServiceId) -> None:
        draft = Draft(self.state)
        draft.delete(self.state.services[service])
        for task in self.state.tasks.values():
            if task.service == service:
                draft.delete(task)
        self.commit(draft)

    async def create_network(self, spec: NetworkSpec) -> Network:
        check_network_spec(spec)
        if any(n.spec.name == spec.name for n in self.state.networks.values()):
            raise Conflicting(f"network {spec.name} exists already; choose another name")
        return self.add_network(spec)

    async def remove_network(self, network: NetworkId) -> None:
        users = [
            s.spec.name
            for s in self.state.services.values()
            if network in [a.target for a in s.spec.task.networks]
        ]
        if users:
            raise Conflicting(f"network is in use by service {users[0]}; remove that first")
        draft = Draft(self.state)
        draft.delete(self.state.networks[network])
        self.commit(draft)

    async def update_node(self, node: NodeId, spec: NodeSpec, *, version: int) -> Node:
        check_node(spec)
        row = self.state.nodes[node]
        if row.version != version:
            raise OutOfSequence("node", version, row.version)
        draft = Draft(self.state)
        draft.put(dataclasses.replace(row, spec=spec, role=spec.role))
        self.commit(draft)
        self.settle()
        return self.state.nodes[node]

    async def remove_node(self, node: NodeId, *, force: bool) -> None:
        row = self.state.nodes[node]
        if row.state is not NodeState.DOWN and not force:
            raise Conflicting(f"node {row.facts.hostname} is not down; use --force")
        draft = Draft(self.state)
        draft.delete(row)
        self.commit(draft)

    async def update_cluster(
        self, spec: ClusterSpec, *, version: int, rotate: frozenset[Role], gossip_key: bool = False
    ) -> Cluster:
        row = self.state.cluster
        assert row is not None
        if row.version != version:
            raise OutOfSequence("swarm", version, row.version)
        for role in rotate:
            self.generation[role] += 1
        draft = Draft(self.state)
        draft.put(dataclasses.replace(row, spec=spec))
        self.commit(draft)
        assert self.state.cluster is not None
        return self.state.cluster

    def token(self, role: Role) -> str:
        return f"SWL1-digest-{role}-{self.generation[role]}"

    async def create_token(
        self, role: Role, *, ttl: float, uses: int, labels: Mapping[str, str]
    ) -> str:
        return f"SWL1-digest-{role}-{ttl:g}-{uses}-{','.join(labels)}"

    # The instant orchestrator.

    def settle(self) -> None:
        for service in self.state.services.values():
            self._settle(service)

    def _settle(self, service: Service) -> None:
        ready = [
            n.id
            for n in self.state.nodes.values()
            if n.state is NodeState.READY and n.spec.availability == "active"
        ]
        live = [
            t
            for t in self.state.tasks.values()
            if t.service == service.id and t.outcome is None and t.spec_version
        ]
        wanted: list[tuple[int, NodeId]] = []
        match service.spec.mode:
            case Replicated(replicas):
                places = itertools.cycle(ready or [NodeId("")])
                wanted = [(slot, next(places)) for slot in range(1, replicas + 1)]
            case Global():
                wanted = [(0, node) for node in ready]
        draft = Draft(self.state)
        kept = set()
        for task in live:
            good = task.spec_version == service.spec_version and task.node in ready
            key = (task.slot, task.node if not task.slot else "")
            if good and key in {(s, n if not s else "") for s, n in wanted}:
                kept.add(key)
                continue
            outcome = Outcome(state=TaskState.SHUTDOWN, at=NOW, message="shutdown")
            draft.put(dataclasses.replace(task, desired=Desired.SHUTDOWN, outcome=outcome))
        for slot, node in wanted:
            if (slot, node if not slot else "") not in kept:
                self._start(draft, service, slot, node)
        self.commit(draft)

    def _start(self, draft: Draft, service: Service, slot: int, node: NodeId) -> None:
        task = Task(
            id=TaskId(self.new_id()),
            service=service.id,
            spec_version=service.spec_version,
            slot=slot,
            node=node,
            created_at=NOW + len(self.state.tasks) / 1000,
            endpoints=tuple(
                Endpoint(network=NetworkId(a.target), address=f"10.128.1.{10 + slot}")
                for a in service.spec.task.networks
            ),
        )
        image = service.spec.task.container.image
        if not node:
            self.explanations[task.id] = "no suitable node (3 nodes not available)"
        elif image.partition("@")[0] in self.bad_images:
            outcome = Outcome(state=TaskState.REJECTED, at=NOW, error=f"no such image: {image}")
            task = dataclasses.replace(task, outcome=outcome, desired=Desired.SHUTDOWN)
        else:
            self.observations[task.id] = Observation(
                state=TaskState.RUNNING,
                at=NOW,
                message="started",
                container=f"c-{task.id}",
                pid=1234,
                ready=True,
            )
        draft.put(task)

    def _resolve(self, spec: ServiceSpec) -> ServiceSpec:
        """Names of networks become ids."""
        attachments = []
        for attachment in spec.task.networks:
            found = [
                n for n in self.state.networks.values() if attachment.target in (n.id, n.spec.name)
            ]
            if not found:
                raise NotFound("network", attachment.target)
            attachments.append(dataclasses.replace(attachment, target=found[0].id))
        task = dataclasses.replace(spec.task, networks=tuple(attachments))
        return dataclasses.replace(spec, task=task)

    def end_task(self, task: TaskId, outcome: Outcome) -> None:
        draft = Draft(self.state)
        draft.put(dataclasses.replace(self.state.tasks[task], outcome=outcome))
        self.commit(draft)

    def set_down(self, node: NodeId) -> None:
        draft = Draft(self.state)
        draft.put(dataclasses.replace(self.state.nodes[node], state=NodeState.DOWN))
        self.commit(draft)


def status_of(id_: NodeId, *, active: bool = True) -> LocalStatus:
    role = Role.WORKER if id_ == H3 else Role.MANAGER
    number = list(NAMES).index(id_) + 1
    return LocalStatus(
        state=LocalState.ACTIVE if active else LocalState.INACTIVE,
        name=NAMES[id_],
        version="0.1.0",
        node_id=id_ if active else NodeId(""),
        cluster_id=ClusterId("c" * 25) if active else ClusterId(""),
        role=role,
        is_leader=active and id_ == H1,
        leader=H1 if active else None,
        managers=(
            ManagerAddress(node=H1, address="10.0.0.1", port=2377, name="h1"),
            ManagerAddress(node=H2, address="10.0.0.2", port=2377, name="h2"),
        )
        if active
        else (),
        address=f"10.0.0.{number}",
    )


class FakeSupervisor:
    """The part of the real one that the API uses: real states, and real logs in real files."""

    def __init__(self, folder: Path) -> None:
        self._folder = self.state_dir = folder
        self.containers: dict[str, ContainerState] = {}
        self.killed: list[tuple[str, str]] = []
        self.ended: dict[str, trio.Event] = {}

    def add(self, task: str, name: str, **changes: Any) -> ContainerState:
        spec = ContainerSpec(
            process=Process(args=("httpd", "-f")),
            root=Root(layers=("/nowhere",)),
            annotations={
                "com.docker.swarm.task.id": task,
                "com.docker.swarm.task.name": name,
            },
        )
        id_ = f"{task}.0"
        state = ContainerState(
            id=id_,
            spec=spec,
            status=Status.RUNNING,
            created_at=NOW,
            started_at=NOW,
            pid=4321,
        )
        self.containers[id_] = state.changed(**changes)
        self.ended[id_] = trio.Event()
        (self._folder / id_).mkdir(parents=True)
        (self._folder / id_ / "log.json").touch()
        return self.containers[id_]

    def write(self, id_: str, line: str, *, at: float, stream: str = "stdout") -> None:
        log = JsonFileLog(str(self._folder / id_ / "log.json"), 1 << 20, 2)
        log.append(stream, [f"{line}\n".encode()], round(at * 1e9))
        log.close()

    def end(self, id_: str, code: int) -> None:
        end = ExitStatus(code, finished_at=NOW)
        self.containers[id_] = self.containers[id_].changed(status=Status.EXITED, exit=end)
        self.ended[id_].set()

    def logs(self, id_: str, **options: Any) -> Any:
        ended = self.ended[id_].is_set
        return read_logs(str(self._folder / id_ / "log.json"), ended=ended, **options)

    async def kill(self, id_: str, signal: str) -> None:
        await trio.lowlevel.checkpoint()
        self.killed.append((id_, signal))

    async def stop(self, id_: str, *, signal: str | None, grace: float | None) -> None:
        await trio.lowlevel.checkpoint()
        self.killed.append((id_, f"stop {signal} {grace}"))

    async def wait(self, id_: str) -> ExitStatus:
        await self.ended[id_].wait()
        end = self.containers[id_].exit
        assert end is not None
        return end


def engine_of(folder: Path, supervisor: Any, images: ImageStore) -> Engine:
    """The real engine of a host on which nothing was run by hand."""
    gateway = ip_network("172.31.192.0/20")
    network: Any = SimpleNamespace(gateway=gateway, assignment=Assignment(), path_of=str)
    return Engine(
        supervisor=supervisor,
        images=images,
        network=network,
        state_dir=folder,
        host_name="h",
        publish=lambda *_: None,
        rng=random.Random(1),
    )


class FakeNode:
    """One daemon of the cluster, or one that is in no swarm yet."""

    def __init__(self, fake: Fake, id_: NodeId, *, active: bool = True) -> None:
        self._fake = fake
        self.images: Any = ImageStore(fake.folder / NAMES[id_] / "images")
        self.supervisor: Any = FakeSupervisor(fake.folder / NAMES[id_] / "logs")
        self.local: Any = engine_of(fake.folder / NAMES[id_], self.supervisor, self.images)
        self.left: list[bool] = []
        self.joined: list[JoinRequest] = []
        self.initialised: list[InitRequest] = []
        self.containers: dict[TaskId, TaskContainer] = {}
        self.status = status_of(id_, active=active)

    @property
    def control(self) -> FakeCluster | None:
        return self._fake.cluster if self.status.is_leader else None

    async def init(self, request: InitRequest) -> NodeId:
        self.initialised.append(request)
        self.status = status_of(H1)
        return self.status.node_id

    async def join(self, request: JoinRequest) -> NodeId:
        if not request.token.startswith("SWL1-"):
            raise Unavailable("the token is not one of swarmlet's (SWL1-...); copy it whole")
        self.joined.append(request)
        self.status = status_of(H3)
        return self.status.node_id

    async def leave(self, *, force: bool) -> None:
        if self.status.role is Role.MANAGER and not force:
            raise Unavailable("this node is a manager; add --force to leave all the same")
        self.left.append(force)
        self.status = status_of(self.status.node_id, active=False)

    async def dial_api(self, node: NodeId | None) -> trio.abc.HalfCloseableStream:
        await trio.lowlevel.checkpoint()
        target = H1 if node is None else node
        if target in self._fake.unreachable:
            raise Unavailable(f"node {NAMES[target]} cannot be reached")
        mine, theirs = trio.testing.memory_stream_pair()
        if target in self._fake.silent:
            self._fake.unserved.append(theirs)
            return mine
        peer = Peer(self.status.node_id, self.status.role)
        router = self._fake.router(target)
        self._fake.dialled.append(mine)
        assert self._fake.nursery is not None
        self._fake.nursery.start_soon(
            lambda: serve_stream(theirs, router.respond, peer=peer), name=f"api of {target}"
        )
        return mine

    def start_soon(self, act: Callable[..., Awaitable[None]], *arguments: object) -> None:
        assert self._fake.nursery is not None
        self._fake.nursery.start_soon(act, *arguments)

    def task_containers(self) -> Mapping[TaskId, TaskContainer]:
        return self.containers

    @asynccontextmanager
    async def subscribe_events(self) -> AsyncIterator[trio.MemoryReceiveChannel[Event]]:
        sender, receiver = trio.open_memory_channel[Event](16)
        self._fake.listeners.append(sender)
        async with receiver:
            yield receiver


class Fake:
    """*folder* holds the real image stores and log files of the nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cluster = FakeCluster()
        self.nursery: trio.Nursery | None = None
        #: routes of a test's own, on every node
        self.more_routes: tuple[Route, ...] = ()
        self.unreachable: set[NodeId] = set()
        #: nodes that take a connection and say nothing
        self.silent: set[NodeId] = set()
        self.unserved: list[trio.abc.Stream] = []
        self.dialled: list[trio.abc.Stream] = []
        self.listeners: list[trio.MemorySendChannel[Event]] = []
        self._routers: dict[NodeId, Router] = {}
        self.nodes = {id_: FakeNode(self, id_) for id_ in NAMES}

    def router(self, node: NodeId) -> Router:
        """The node's one router: it remembers execs from call to call."""
        if node not in self._routers:
            self._routers[node] = Router(self.nodes[node], (*ROUTES, *self.more_routes))
        return self._routers[node]

    async def open(self) -> None:
        for node in self.nodes.values():
            await node.images.open()

    def run_containers(self) -> None:
        """Give every task that runs a container on its node."""
        for task in self.cluster.state.tasks.values():
            if not task.node:
                continue
            node = self.nodes[task.node]
            service = self.cluster.state.services.get(task.service)
            name = task_name(task, service)
            state = node.supervisor.add(task.id, name)
            image = service.spec.task.container.image if service is not None else ""
            node.containers[task.id] = TaskContainer(container=state.id, name=name, image=image)
