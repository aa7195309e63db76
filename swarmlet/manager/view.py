"""What a manager's loop looks at: the agreed state, and what has been seen, at one moment.

Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from swarmlet.model import (
    Connection,
    Desired,
    NodeId,
    NodeState,
    Observation,
    Task,
    TaskId,
    TaskState,
)
from swarmlet.state import ClusterState


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One consistent look.

    A node in *reported* has told this leader all of its tasks: of such a node a task without an
    observation is missing; of any other node it is unknown, which is not missing.
    """

    state: ClusterState
    observations: Mapping[TaskId, Observation] = field(default_factory=dict)
    connections: Mapping[NodeId, Connection] = field(default_factory=dict)
    reported: frozenset[NodeId] = frozenset()
    #: up to which index a node, in this session, has made its assignment its own
    acknowledged: Mapping[NodeId, int] = field(default_factory=dict)
    #: since when, on this leader's clock, a task has been ready without a break
    ready_since: Mapping[TaskId, float] = field(default_factory=dict)
    #: why the scheduler could not place a task
    explanations: Mapping[TaskId, str] = field(default_factory=dict)
    now: float = 0.0  # wall clock, seconds since 1970
    #: index at which this leader's term began; tasks assigned before it may be unknown
    led_from: int = 0

    def status_of(self, task: Task) -> Observation:
        """What is to be shown of *task*, from its outcome, its agent's report or its placement."""
        if task.outcome is not None:
            outcome = task.outcome
            seen = self.observations.get(task.id)
            return Observation(
                state=outcome.state,
                at=outcome.at,
                message=outcome.message,
                error=outcome.error,
                exit_code=outcome.exit_code,
                container=seen.container if seen else "",
                log_tail=outcome.log_tail,
            )
        if (seen := self.observations.get(task.id)) is not None:
            return seen
        if not task.node:
            explanation = self.explanations.get(task.id, "")
            message = "pending task scheduling"
            return Observation(
                state=TaskState.PENDING, at=task.created_at, message=message, error=explanation
            )
        message = "scheduler assigned task to node"
        return Observation(state=TaskState.ASSIGNED, at=task.updated_at, message=message)

    def is_ready(self, task: Task) -> bool:
        """Whether load balancers may send to *task*.

        Of a node that has not reported to this leader yet, tasks that an earlier leader placed
        stay in: a change of leader takes nothing out of service.
        """
        if task.outcome is not None or not task.node or task.desired > Desired.RUNNING:
            return False
        if not self.is_up(task.node):
            return False
        seen = self.observations.get(task.id)
        if seen is not None:
            return seen.ready
        return task.node not in self.reported and task.version < self.led_from

    def has_acknowledged(self, task: Task) -> bool:
        """Whether the task's node knows the task as it is now, and has told all that it runs."""
        return task.node in self.reported and self.acknowledged.get(task.node, 0) >= task.version

    def is_up(self, node: NodeId) -> bool:
        row = self.state.nodes.get(node)
        return row is not None and row.state is NodeState.READY
