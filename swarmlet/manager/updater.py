"""Updater: from an older spec version to the current one, a few places at a time.

Pure. Everything it needs is in the view, so a new leader goes on where the old one stopped: a
place is dirty while its task is of an older version; a new task is good once it has been ready
for *monitor* seconds; its worker then waits *delay* before it takes the next place.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from swarmlet.manager.decisions import Decisions, NewTask, RollBack, SetDesired, SetUpdate
from swarmlet.manager.view import View
from swarmlet.model import (
    Desired,
    FailureAction,
    NodeId,
    PublishMode,
    Service,
    Task,
    TaskState,
    UpdateConfig,
    UpdateOrder,
    UpdatePhase,
    UpdateStatus,
)

UNDER_WAY = {UpdatePhase.UPDATING, UpdatePhase.ROLLBACK_STARTED}


@dataclass(frozen=True, slots=True)
class _PlaceUnderUpdate:
    """A slot, or a node of a global service, with its tasks of both versions."""

    old: list[Task]
    new: list[Task]
    failed: str = ""  # why a new task in this place failed


def advance(view: View, service: Service, tasks: list[Task]) -> Decisions:
    """Return the next steps of *service*'s update; none when there is none."""
    status = service.update
    if status is None or status.phase not in UNDER_WAY:
        return Decisions()
    rolling_back = status.phase is UpdatePhase.ROLLBACK_STARTED
    config = service.spec.rollback if rolling_back else service.spec.update
    order = order_of(service, config)
    places = _places(view, service, tasks)
    decisions = Decisions()
    failures = [place.failed for place in places if place.failed]
    too_many = len(failures) > config.max_failure_ratio * len(places)
    if too_many and config.failure_action is not FailureAction.CONTINUE:
        return _on_failure(service, config, failures[0])
    busy = 0
    dirty: list[_PlaceUnderUpdate] = []
    for place in places:
        if not place.new:
            if place.old:
                dirty.append(place)
            continue
        until = _good_at(view, place.new, config.monitor)
        serves = any(view.is_ready(task) for task in place.new)
        if place.old and (order is UpdateOrder.STOP_FIRST or serves):
            decisions.extend(SetDesired(task, Desired.SHUTDOWN) for task in place.old)
        if until is None:
            busy += not place.failed  # its worker does not wait for what failed
        elif view.now < until + config.delay:
            # The worker that updated this place still watches it, or takes its pause.
            busy += 1
            decisions.wake(until if view.now < until else until + config.delay)
    if not dirty and not decisions and all(_is_good(view, p, config) for p in places):
        phase = UpdatePhase.ROLLBACK_COMPLETED if rolling_back else UpdatePhase.COMPLETED
        message = "rollback completed" if rolling_back else "update completed"
        done = dataclasses.replace(status, phase=phase, completed_at=view.now, message=message)
        return Decisions([SetUpdate(service, done)])
    parallelism = config.parallelism or len(places)
    for place in dirty[: max(0, parallelism - busy)]:
        decisions.add(_replace(service, place.old, order))
    return decisions


def order_of(service: Service, config: UpdateConfig) -> UpdateOrder:
    """Start-first cannot be with a port of the host: the old task still holds it."""
    if any(port.mode is PublishMode.HOST for port in service.spec.endpoint.ports):
        return UpdateOrder.STOP_FIRST
    return config.order


def is_current(service: Service, task: Task) -> bool:
    return task.spec_version == service.spec_version


def _places(view: View, service: Service, tasks: list[Task]) -> list[_PlaceUnderUpdate]:
    failed = _failures(view, service, tasks)
    by_place = {key: _PlaceUnderUpdate([], [], reason) for key, reason in failed.items()}
    for task in tasks:
        if task.outcome is not None or task.desired > Desired.RUNNING:
            continue
        place = by_place.setdefault(task.place, _PlaceUnderUpdate([], []))
        (place.new if is_current(service, task) else place.old).append(task)
    return [by_place[key] for key in sorted(by_place)]


def _good_at(view: View, new: list[Task], monitor: float) -> float | None:
    """When one of *new* has been, or will have been, ready long enough; None if none is ready."""
    times = [
        view.ready_since[task.id] + monitor
        for task in new
        if task.id in view.ready_since and view.is_ready(task)
    ]
    return min(times, default=None)


def _is_good(view: View, place: _PlaceUnderUpdate, config: UpdateConfig) -> bool:
    until = _good_at(view, place.new, config.monitor)
    return bool(place.failed) or (until is not None and view.now >= until)


def _failures(view: View, service: Service, tasks: list[Task]) -> dict[tuple[int, NodeId], str]:
    """The places where a task of this update failed, with the last reason."""
    assert service.update
    failed: dict[tuple[int, NodeId], str] = {}
    for task in tasks:
        if not is_current(service, task) or task.created_at < service.update.started_at:
            continue
        if task.desired >= Desired.REMOVE:  # its place was given up
            continue
        seen = view.status_of(task)
        broke = task.outcome is not None and task.outcome.state in _FAILED
        if broke or (task.outcome is None and seen.attempt and not seen.ready):
            failed[task.place] = f"task {task.id}: {seen.error or seen.message}"
    return failed


_FAILED = {TaskState.FAILED, TaskState.REJECTED, TaskState.COMPLETE}


def _on_failure(service: Service, config: UpdateConfig, reason: str) -> Decisions:
    status = service.update
    assert status
    rolling_back = status.phase is UpdatePhase.ROLLBACK_STARTED
    action = config.failure_action
    if action is FailureAction.ROLLBACK and service.previous_spec and not rolling_back:
        return Decisions([RollBack(service, reason)])
    phase = UpdatePhase.ROLLBACK_PAUSED if rolling_back else UpdatePhase.PAUSED
    what = "rollback" if rolling_back else "update"
    message = f"{what} paused due to failure or early termination of {reason}"
    paused = UpdateStatus(phase=phase, started_at=status.started_at, message=message)
    return Decisions([SetUpdate(service, paused)])


def _replace(service: Service, old: list[Task], order: UpdateOrder) -> Decisions:
    slot, node = old[0].place
    new = NewTask(service=service, slot=slot, only_node=node)
    if order is UpdateOrder.START_FIRST:
        return Decisions([new])
    new = dataclasses.replace(new, desired=Desired.READY)
    return Decisions([*(SetDesired(task, Desired.SHUTDOWN) for task in old), new])
