"""A whole control plane in one thread: the loops, a log without Raft, and pretended agents.

No clock, no socket, one seed: a run is a function of it.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Sequence

from swarmlet.manager import orchestrator, reaper, scheduler
from swarmlet.manager.allocator import Allocator, nodes_without_ingress
from swarmlet.manager.changes import changes_of, delete_service, new_id, put_spec
from swarmlet.manager.decisions import Decision
from swarmlet.manager.view import View
from swarmlet.model import (
    Availability,
    Cluster,
    ClusterId,
    Connection,
    ContainerTemplate,
    Desired,
    Network,
    NetworkAttachment,
    NetworkId,
    NetworkSpec,
    Node,
    NodeFacts,
    NodeId,
    NodeSpec,
    NodeState,
    Observation,
    Replicated,
    Role,
    Service,
    ServiceId,
    ServiceSpec,
    Task,
    TaskId,
    TaskState,
    TaskTemplate,
    UpdatePhase,
    UpdateStatus,
)
from swarmlet.state import Applied, Change, ClusterState, Draft, apply

TERM = 1
GIB = 1 << 30


def service_spec(name: str = "web", replicas: int = 3, image: str = "busybox:1") -> ServiceSpec:
    task = TaskTemplate(container=ContainerTemplate(image=image))
    return ServiceSpec(name=name, task=task, mode=Replicated(replicas))


def with_task(spec: ServiceSpec, **fields: object) -> ServiceSpec:
    return dataclasses.replace(spec, task=dataclasses.replace(spec.task, **fields))  # type: ignore[arg-type]


def on_network(spec: ServiceSpec, network: Network) -> ServiceSpec:
    return with_task(spec, networks=(NetworkAttachment(target=network.id),))


class World:
    """Everything a leader sees. Agents start a task in *start_ticks* ticks of a second."""

    def __init__(self, nodes: int = 3, *, seed: int = 1, start_ticks: int = 2) -> None:
        self.rng = random.Random(seed)
        self.state = ClusterState()
        self.now = 1_000_000.0
        self.observations: dict[TaskId, Observation] = {}
        self.ready_since: dict[TaskId, float] = {}
        self.explanations: dict[TaskId, str] = {}
        self.silent: set[NodeId] = set()  # nodes that are gone
        self.broken: set[str] = set()  # images whose containers exit at once
        self.changes = 0
        self._start_ticks = start_ticks
        self._age: dict[TaskId, int] = {}
        cluster = Cluster(id=ClusterId("c1"))
        rows = [self._node(f"n{number}") for number in range(1, nodes + 1)]
        self.write(cluster, *rows)

    def _node(self, name: str) -> Node:
        facts = NodeFacts(hostname=name, architecture="amd64", nano_cpus=10**9, memory_bytes=GIB)
        spec = NodeSpec(role=Role.WORKER)
        return Node(id=NodeId(name), spec=spec, facts=facts)

    # What a user or the session server would do.

    def write(self, *rows: Cluster | Node | Service | Network | Task) -> None:
        draft = Draft(self.state)
        for row in rows:
            draft.put(row)
        self.commit(draft.change())

    def commit(self, change: Change) -> bool:
        index = self.state.index + 1
        self.state, verdict = apply(self.state, change, index=index, entry_term=TERM)
        self.changes += 1
        return isinstance(verdict, Applied)

    def add_network(self, name: str, *, ingress: bool = False, subnet: str = "") -> Network:
        spec = NetworkSpec(name=name, ingress=ingress, subnet=subnet)
        allocator = Allocator(self.state, self.rng)
        assert self.state.cluster
        subnet, gateway = allocator.subnet(spec, self.state.cluster)
        id_ = NetworkId(new_id(self.rng))
        row = Network(id=id_, spec=spec, subnet=subnet, gateway=gateway, vni=allocator.vni())
        self.write(row)
        return row

    def add_service(self, spec: ServiceSpec) -> ServiceId:
        allocator = Allocator(self.state, self.rng)
        row = Service(
            id=ServiceId(new_id(self.rng)),
            spec=spec,
            virtual_addresses=allocator.virtual_addresses(spec, None),
            ports=allocator.ports(spec, None),
            created_at=self.now,
        )
        self.write(row)
        return row.id

    def update(self, service: ServiceId, spec: ServiceSpec) -> None:
        draft = Draft(self.state)
        status = UpdateStatus(phase=UpdatePhase.UPDATING, started_at=self.now)
        allocator = Allocator(self.state, self.rng)
        put_spec(draft, self.state.services[service], spec, allocator, self.now, update=status)
        assert self.commit(draft.change())

    def remove_service(self, service: ServiceId) -> None:
        draft = Draft(self.state)
        delete_service(draft, self.state.services[service], self.now)
        assert self.commit(draft.change())

    def edit_node(self, name: str, **fields: object) -> None:
        self.write(dataclasses.replace(self.state.nodes[NodeId(name)], **fields))  # type: ignore[arg-type]

    def drain(self, name: str, availability: Availability = Availability.DRAIN) -> None:
        spec = self.state.nodes[NodeId(name)].spec
        self.edit_node(name, spec=dataclasses.replace(spec, availability=availability))

    def lose(self, name: str) -> None:
        self.silent.add(NodeId(name))
        self.edit_node(name, state=NodeState.DOWN, state_since=self.now)

    def find_again(self, name: str) -> None:
        self.silent.discard(NodeId(name))
        self.edit_node(name, state=NodeState.READY, state_since=self.now)

    # The world turns.

    @property
    def view(self) -> View:
        up = frozenset(self.state.nodes.keys() - self.silent)
        return View(
            state=self.state,
            observations=dict(self.observations),
            connections={
                n: Connection.DISCONNECTED if n in self.silent else Connection.READY
                for n in self.state.nodes
            },
            reported=up,
            acknowledged=dict.fromkeys(up, self.state.index),
            ready_since=dict(self.ready_since),
            explanations=dict(self.explanations),
            now=self.now,
        )

    def tick(self, seconds: int = 1) -> None:
        for _ in range(seconds):
            self.now += 1.0
            self.look()
            self._agents()

    def look(self) -> None:
        """Let every loop look once."""
        self._enact(reaper.reap(self.view))
        self._enact(orchestrator.reconcile(self.view))
        placements, self.explanations = scheduler.schedule(self.view)
        self._enact(placements)
        draft = Draft(self.state)
        allocator = Allocator(self.state, self.rng)
        for node in nodes_without_ingress(self.state):
            assert self.state.ingress
            endpoint = allocator.endpoint(self.state.ingress.id)
            draft.put(dataclasses.replace(node, ingress=endpoint))
        if not draft.is_empty:
            assert self.commit(draft.change(term=TERM))

    def _enact(self, decisions: Sequence[Decision]) -> None:
        for change, _ in changes_of(self.state, decisions, term=TERM, now=self.now, rng=self.rng):
            self.commit(change)

    def _agents(self) -> None:
        for task in list(self.state.tasks.values()):
            if task.node and task.node not in self.silent and task.node in self.state.nodes:
                self._agent(task)
        for id_ in self.observations.keys() - self.state.tasks.keys():
            del self.observations[id_]
            self.ready_since.pop(id_, None)

    def _agent(self, task: Task) -> None:
        seen = self.observations.get(task.id)
        if seen is not None and seen.state.is_terminal:
            return
        template = self.state.template_of(task)
        age = self._age[task.id] = self._age.get(task.id, 0) + 1
        if task.desired > Desired.RUNNING or template is None:
            self.observe(task.id, TaskState.SHUTDOWN)
        elif template.container.image in self.broken and task.desired is Desired.RUNNING:
            self.observe(task.id, TaskState.FAILED, exit_code=1, error="task: non-zero exit (1)")
        elif task.desired is Desired.RUNNING and age > self._start_ticks:
            self.observe(task.id, TaskState.RUNNING, ready=True)
        elif age > 1:
            self.observe(task.id, TaskState.READY)

    def observe(self, task: TaskId, state: TaskState, **fields: object) -> None:
        seen = Observation(state=state, at=self.now, **fields)  # type: ignore[arg-type]
        self.observations[task] = seen
        if seen.ready:
            self.ready_since.setdefault(task, self.now)
        else:
            self.ready_since.pop(task, None)

    def fail(self, task: TaskId) -> None:
        self.observe(task, TaskState.FAILED, exit_code=137, error="task: non-zero exit (137)")

    # What is asked of it.

    def running(self, service: ServiceId | None = None) -> list[Task]:
        return [
            task
            for task in self.state.tasks.values()
            if task.outcome is None
            and task.desired is Desired.RUNNING
            and task.node not in self.silent
            and (service is None or task.service == service)
            and (seen := self.observations.get(task.id)) is not None
            and seen.state is TaskState.RUNNING
        ]

    def nodes_of(self, service: ServiceId) -> list[str]:
        return sorted(task.node for task in self.running(service))

    def images(self, service: ServiceId) -> list[str]:
        templates = (self.state.template_of(task) for task in self.running(service))
        return sorted(t.container.image for t in templates if t)

    def tasks(self, service: ServiceId) -> list[Task]:
        mine = [t for t in self.state.tasks.values() if t.service == service]
        return sorted(mine, key=lambda task: (task.created_at, task.id))


def addresses(tasks: Iterable[Task]) -> list[tuple[str, str]]:
    return [
        (endpoint.network, endpoint.address)
        for task in tasks
        if task.outcome is None
        for endpoint in task.endpoints
    ]
