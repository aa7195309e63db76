"""Scheduler: a node for each task that has none, or the reason why there is none.

Pure. Filters first, the cheapest before the others, each counting whom it refused; then the
spread over the placement preferences; then the least loaded node. The refusals become the text a
user reads in `service ps`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from swarmlet.manager.decisions import Decisions, Place
from swarmlet.manager.placement import attribute, unmet_constraint
from swarmlet.manager.view import View
from swarmlet.model import (
    Availability,
    Connection,
    Node,
    NodeId,
    NodeState,
    PublishMode,
    Service,
    ServiceId,
    Task,
    TaskId,
    TaskState,
    TaskTemplate,
)

#: Failures of a service on a node that make the node the last choice (swarmkit's numbers).
FAILURES_MAX = 5
FAILURES_WINDOW = 300.0


#: (port, protocol) on the host itself
HostPort: TypeAlias = tuple[int, str]


@dataclass(slots=True)
class _Load:
    """What is on one node already; grows while tasks are placed."""

    node: Node
    tasks: int = 0
    memory_bytes: int = 0
    nano_cpus: int = 0
    services: Counter[ServiceId] = field(default_factory=Counter)
    failures: Counter[ServiceId] = field(default_factory=Counter)
    host_ports: set[HostPort] = field(default_factory=set)

    def take(self, service: ServiceId, template: TaskTemplate, ports: set[HostPort]) -> None:
        self.tasks += 1
        self.memory_bytes += template.reservations.memory_bytes
        self.nano_cpus += template.reservations.nano_cpus
        self.services[service] += 1
        self.host_ports |= ports


def host_ports(service: Service) -> set[HostPort]:
    return {
        (port.published, port.protocol.value)
        for port in service.spec.endpoint.ports
        if port.mode is PublishMode.HOST and port.published
    }


def schedule(view: View) -> tuple[Decisions, dict[TaskId, str]]:
    """Return the placements that can be made, and for the other tasks why they cannot."""
    decisions = Decisions()
    explanations: dict[TaskId, str] = {}
    waiting = [t for t in view.state.tasks.values() if not t.node and _is_live(t)]
    if not waiting:
        return decisions, explanations
    loads = _loads(view)
    for task in sorted(waiting, key=lambda t: (t.created_at, t.id)):
        service = view.state.services.get(task.service)
        template = view.state.template_of(task)
        if service is None or template is None:
            continue  # its service is gone: the orchestrator retires it
        refused: Counter[str] = Counter()
        fitting = [
            load
            for load in loads.values()
            if task.only_node in ("", load.node.id)
            and not _refuse(view, load, service, template, refused)
        ]
        if not fitting:
            explanations[task.id] = _explain(refused)
            continue
        chosen = _choose(fitting, service, template)
        chosen.take(service.id, template, host_ports(service))
        decisions.append(Place(task, chosen.node.id))
    return decisions, explanations


def _is_live(task: Task) -> bool:
    return task.outcome is None and task.desired <= TaskState.RUNNING


def _loads(view: View) -> dict[NodeId, _Load]:
    loads = {id_: _Load(node) for id_, node in sorted(view.state.nodes.items())}
    for task in view.state.tasks.values():
        load = loads.get(task.node)
        if load is None:
            continue
        if task.outcome is None:
            template = view.state.template_of(task)
            if template is not None:
                load.take(task.service, template, _ports_held(view, task))
        elif (
            task.outcome.state in (TaskState.FAILED, TaskState.REJECTED)
            and view.now - task.updated_at < FAILURES_WINDOW
        ):
            load.failures[task.service] += 1
    return loads


def _ports_held(view: View, task: Task) -> set[HostPort]:
    service = view.state.services.get(task.service)
    return host_ports(service) if service is not None else set()


def _refuse(
    view: View, load: _Load, service: Service, template: TaskTemplate, refused: Counter[str]
) -> bool:
    """Whether this node cannot take the task; counts why."""
    reason = _refusal(view, load, service, template)
    if reason is not None:
        refused[reason] += 1
    return reason is not None


def _refusal(view: View, load: _Load, service: Service, template: TaskTemplate) -> str | None:
    node = load.node
    if node.state is NodeState.DOWN:
        return "down"
    if view.connections.get(node.id) is Connection.DISCONNECTED:
        return "disconnected"
    if node.spec.availability is not Availability.ACTIVE:
        return f"availability {node.spec.availability}"
    unmet = unmet_constraint(template, node)
    if unmet is not None:
        return f"constraint {unmet.text}"
    reserved = template.reservations
    if reserved.nano_cpus and load.nano_cpus + reserved.nano_cpus > node.facts.nano_cpus:
        return "insufficient cpu"
    if reserved.memory_bytes:
        free = node.facts.memory_bytes - load.memory_bytes
        if reserved.memory_bytes > free:
            return "insufficient memory"
    if load.host_ports & host_ports(service):
        return "host port in use"
    most = template.placement.max_replicas_per_node
    if most and load.services[service.id] >= most:
        return "max replicas per node"
    return None


def _explain(refused: Counter[str]) -> str:
    if not refused:
        return "no suitable node: the cluster has none"
    reasons = ", ".join(
        f"{reason} on {count} node{'s' if count > 1 else ''}"
        for reason, count in sorted(refused.items(), key=lambda item: (-item[1], item[0]))
    )
    return f"no suitable node ({reasons})"


def _choose(fitting: list[_Load], service: Service, template: TaskTemplate) -> _Load:
    for preference in template.placement.spread:
        fitting = _least_served_branch(fitting, service.id, preference)
    return min(fitting, key=lambda load: _rank(load, service.id))


def _least_served_branch(loads: Iterable[_Load], service: ServiceId, key: str) -> list[_Load]:
    """The nodes of that value of *key* which has the fewest tasks of the service."""
    branches: dict[str, list[_Load]] = {}
    for load in loads:
        branches.setdefault(attribute(load.node, key) or "", []).append(load)

    def rank(value: str) -> tuple[int, str]:
        return sum(load.services[service] for load in branches[value]), value

    return branches[min(branches, key=rank)]


def _rank(load: _Load, service: ServiceId) -> tuple[bool, int, float, int, str]:
    facts = load.node.facts
    memory = load.memory_bytes / facts.memory_bytes if facts.memory_bytes else 0.0
    cpus = load.nano_cpus / facts.nano_cpus if facts.nano_cpus else 0.0
    return (
        load.failures[service] >= FAILURES_MAX,
        load.services[service],
        max(memory, cpus),
        load.tasks,
        load.node.id,
    )
