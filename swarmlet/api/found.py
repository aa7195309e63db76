"""The containers of this node in one view: tasks' and those run by hand."""

from __future__ import annotations

from dataclasses import dataclass

from swarmlet.agent.local.container import Container
from swarmlet.agent.local.errors import NoSuch
from swarmlet.agent.local.specs import MARK
from swarmlet.api.backend import LocalNode, TaskContainer
from swarmlet.api.convert_containers import STATES, TASK_ID, container_labels, container_name
from swarmlet.manager.errors import Ambiguous
from swarmlet.runtime.state import ContainerState


@dataclass(frozen=True, slots=True)
class Found:
    """*state* is the supervisor's, which a container that was never started has none of; *local*
    is there for one that was run by hand, *known* for a task's."""

    id: str
    name: str
    state: ContainerState | None
    known: TaskContainer | None = None
    local: Container | None = None

    @property
    def runs(self) -> bool:
        if self.local is not None:
            return self.local.runs
        return self.state is not None and self.state.status.running

    @property
    def status(self) -> str:
        """Docker's word for how it is."""
        if self.local is not None:
            return str(self.local.phase)
        assert self.state is not None
        return STATES[self.state.status]

    @property
    def created_at(self) -> float:
        if self.local is not None:
            return self.local.record.created_at
        assert self.state is not None
        return self.state.created_at

    @property
    def image(self) -> str:
        if self.local is not None:
            return self.local.record.config.image
        return self.known.image if self.known is not None else ""

    @property
    def labels(self) -> dict[str, str]:
        if self.local is not None:
            return dict(self.local.record.config.labels)
        assert self.state is not None
        return container_labels(self.state, self.known)

    @property
    def task(self) -> str:
        """The task that it is a life of; "" for one that is none."""
        return self.state.spec.annotations.get(TASK_ID, "") if self.state is not None else ""

    @property
    def terminal(self) -> bool:
        if self.local is not None:
            return self.local.record.config.tty
        return self.state is not None and self.state.spec.process.terminal

    @property
    def code(self) -> int | None:
        """How it ended; None while it runs, or if it never did."""
        if self.local is not None:
            ended = self.local.record.ended
            return ended.code if ended is not None and not self.runs else None
        end = self.state.exit if self.state is not None else None
        return end.code if end is not None else None


def all_containers(node: LocalNode) -> list[Found]:
    """Newest first."""
    known = {known.container: known for known in node.task_containers().values()}
    found = [Found(c.id, c.name, c.state, local=c) for c in list(node.local.containers.values())]
    for state in node.supervisor.containers.values():
        if MARK not in state.spec.annotations:
            task = known.get(state.id)
            found.append(Found(state.id, container_name(state, task), state, known=task))
    return sorted(found, key=lambda container: container.created_at, reverse=True)


def find_container(node: LocalNode, reference: str) -> Found:
    """By id, by name, by the beginning of the id. Raises NoSuch, Ambiguous."""
    everything = all_containers(node)
    name = reference.removeprefix("/")
    for matches in (
        [c for c in everything if c.id == reference],
        [c for c in everything if c.name == name],
        [c for c in everything if reference and c.id.startswith(reference)],
    ):
        if len(matches) > 1:
            # A task that was started again here has several; its latest is meant.
            tasks = {container.task for container in matches}
            if len(tasks) > 1 or "" in tasks:
                raise Ambiguous("container", reference, len(matches))
        if matches:
            return matches[0]
    raise NoSuch("container", reference)
