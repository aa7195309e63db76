"""Which ports of this host the cluster uses already. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from swarmlet.agent.assignment import Assignment
from swarmlet.agent.local.networks import Use
from swarmlet.session import Kind, ServiceView, TaskAssignment


def uses_of_assignment(assignment: Assignment) -> Iterator[Use]:
    """The mesh's ports, which every node answers, and those of tasks of this node alone."""
    for service in assignment.all(Kind.SERVICE, ServiceView):
        for port in service.ports:
            yield Use(port.protocol.value, "", port.published, f"service {service.name}")
    for task in assignment.all(Kind.TASK, TaskAssignment):
        for port in task.ports:
            yield Use(port.protocol.value, "", port.published, f"task {task.name}")
