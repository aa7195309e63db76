"""Observations: what agents have told this leader, in memory only.

Lost with the leader and rebuilt from the full reports that every agent sends to the next one.
One owner: the session server writes, the loops take a View.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from swarmlet.manager.view import View
from swarmlet.model import Connection, NodeId, Observation, TaskId
from swarmlet.session import HeldImage, Report
from swarmlet.state import ClusterState
from swarmlet.waiting import Bell


class Observations:
    def __init__(self) -> None:
        self._bell = Bell()
        self._seen: dict[TaskId, Observation] = {}
        self._node_of: dict[TaskId, NodeId] = {}
        self._ready_since: dict[TaskId, float] = {}
        self._reported: set[NodeId] = set()
        self._acknowledged: dict[NodeId, int] = {}
        self._images: dict[NodeId, tuple[HeldImage, ...]] = {}
        self._connections: Mapping[NodeId, Connection] = {}
        self._explanations: Mapping[TaskId, str] = {}

    def report(
        self, node: NodeId, reports: Iterable[Report], *, complete: bool, now: float
    ) -> None:
        """Take what *node* says of its tasks; *complete*: it has no others."""
        reports = list(reports)
        if complete:
            named = {report.task for report in reports}
            for task in [t for t, owner in self._node_of.items() if owner == node]:
                if task not in named:
                    self._forget(task)
            self._reported.add(node)
        for report in reports:
            seen = report.seen
            known = self._seen.get(report.task)
            if known is not None and known.state > seen.state:
                if known.state.is_terminal:
                    continue
                # States only grow: a host that rebooted starts a running task again, not ready.
                seen = dataclasses.replace(seen, state=known.state)
            self._seen[report.task] = seen
            self._node_of[report.task] = node
            if seen.ready:
                self._ready_since.setdefault(report.task, now)
            else:
                self._ready_since.pop(report.task, None)
        self._bell.ring()

    def acknowledge(self, node: NodeId, index: int) -> None:
        if index > self._acknowledged.get(node, 0):
            self._acknowledged[node] = index
            self._bell.ring()

    def hold_images(self, node: NodeId, images: Iterable[HeldImage]) -> None:
        self._images[node] = tuple(images)
        self._bell.ring()

    def leave(self, node: NodeId) -> None:
        """The node's session ended; what it said last stays, for it is the last that is known."""
        self._acknowledged.pop(node, None)
        self._images.pop(node, None)
        self._bell.ring()

    def set_connections(self, connections: Mapping[NodeId, Connection]) -> None:
        if connections != self._connections:
            self._connections = connections
            self._bell.ring()

    def explain(self, explanations: Mapping[TaskId, str]) -> None:
        """Keep why tasks could not be placed. Wakes nobody: a loop that looked said it."""
        self._explanations = explanations

    def forget_unknown(self, state: ClusterState) -> None:
        """Drop what was said of tasks and nodes that the state does not have any more."""
        for task in self._seen.keys() - state.tasks.keys():
            self._forget(task)
        for node in self._reported - state.nodes.keys():
            self._reported.discard(node)
            self._acknowledged.pop(node, None)
            self._images.pop(node, None)

    @property
    def holders(self) -> dict[str, frozenset[NodeId]]:
        """The nodes that hold an image whole, by its digest."""
        holders: dict[str, set[NodeId]] = {}
        for node, images in self._images.items():
            for image in images:
                holders.setdefault(image.digest, set()).add(node)
        return {digest: frozenset(nodes) for digest, nodes in holders.items()}

    def digests_named(self, reference: str) -> dict[str, list[NodeId]]:
        """The digests that *reference* means on the nodes that have it."""
        found: dict[str, list[NodeId]] = {}
        for node, images in sorted(self._images.items()):
            for image in images:
                if reference in image.references:
                    found.setdefault(image.digest, []).append(node)
        return found

    def view(self, state: ClusterState, *, now: float, led_from: int) -> View:
        return View(
            state=state,
            observations=dict(self._seen),
            connections=self._connections,
            reported=frozenset(self._reported),
            acknowledged=dict(self._acknowledged),
            ready_since=dict(self._ready_since),
            explanations=self._explanations,
            now=now,
            led_from=led_from,
        )

    @property
    def changes(self) -> int:
        """Grows with each change, so that a loop knows whether to look again."""
        return self._bell.rung

    async def wait_beyond(self, changes: int) -> None:
        await self._bell.wait_beyond(changes)

    def _forget(self, task: TaskId) -> None:
        self._seen.pop(task, None)
        self._node_of.pop(task, None)
        self._ready_since.pop(task, None)
