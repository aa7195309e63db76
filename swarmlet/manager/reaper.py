"""Reaper: what ended becomes part of the log, and what nobody needs any more is forgotten.

Pure.
"""

from __future__ import annotations

from swarmlet.manager.decisions import Decisions, End, Forget
from swarmlet.manager.view import View
from swarmlet.model import Desired, NodeId, Outcome, ServiceId, Table, Task, TaskState, revision_id

#: How long a repeated request is recognised.
REQUEST_LIFE = 900.0


def reap(view: View) -> Decisions:
    decisions = Decisions()
    state = view.state
    history: dict[tuple[ServiceId, tuple[int, NodeId]], list[Task]] = {}
    for task in state.tasks.values():
        outcome = _ended(view, task)
        if outcome is not None:
            decisions.append(End(task, outcome))
        elif task.outcome is None:
            if not task.node and task.desired > Desired.RUNNING:
                decisions.append(Forget(task))  # it never was anywhere
        elif task.desired >= Desired.REMOVE:
            decisions.append(Forget(task))
        else:
            history.setdefault((task.service, task.place), []).append(task)
    most = state.cluster.spec.task_history if state.cluster else 0
    for ended in history.values():
        ended.sort(key=lambda task: (task.created_at, task.id))
        # The last one stays in any case: restarts are counted from it.
        decisions.extend(Forget(task) for task in ended[: max(0, len(ended) - max(most, 1))])
    decisions.add(_revisions(view))
    for request in state.rows(Table.REQUEST).values():
        if view.now - request.created_at > REQUEST_LIFE:
            decisions.append(Forget(request))
        else:
            decisions.wake(request.created_at + REQUEST_LIFE + 1.0)
    return decisions


def _ended(view: View, task: Task) -> Outcome | None:
    """What ended a task that the log still takes for alive."""
    if task.outcome is not None:
        return None
    seen = view.observations.get(task.id)
    if seen is not None and seen.state.is_terminal:
        return Outcome(
            state=seen.state,
            at=seen.at,
            message=seen.message,
            error=seen.error,
            exit_code=seen.exit_code,
            log_tail=seen.log_tail,
        )
    if task.node and task.node not in view.state.nodes:
        message = "its node was removed from the cluster"
        return Outcome(state=TaskState.ORPHANED, at=view.now, message=message)
    if task.desired > Desired.RUNNING and seen is None and view.has_acknowledged(task):
        message = "stopped before it was started"
        return Outcome(state=TaskState.SHUTDOWN, at=view.now, message=message)
    return None


def _revisions(view: View) -> Decisions:
    """Task templates of versions that no task and no service speaks of."""
    needed = {revision_id(task.service, task.spec_version) for task in view.state.tasks.values()}
    return Decisions(
        Forget(revision) for id_, revision in view.state.revisions.items() if id_ not in needed
    )
