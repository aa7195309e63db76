"""Orchestrator: the tasks that the services want and the tasks that there are.

Pure and complete: it looks at the whole view, not at what changed, so a lost event, a new leader
and a restart are all the same case.

A replicated service owns slots; a slot holds at most one task that is meant to run, except while
an update starts the new one first or while a lost node's task has a replacement coming up. A
global service has one task a node, with the node in the place of the slot.

A node that is DOWN is not told anything, and its tasks stay wanted until a replacement is ready:
a node that comes back before that keeps them, and the replacement goes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from swarmlet.manager.decisions import Decisions, NewTask, SetDesired
from swarmlet.manager.placement import may_keep, may_start
from swarmlet.manager.updater import UNDER_WAY, advance
from swarmlet.manager.view import View
from swarmlet.model import (
    Desired,
    Global,
    NodeState,
    OfflinePolicy,
    Replicated,
    RestartCondition,
    RestartPolicy,
    Service,
    Task,
    TaskState,
    UpdateOrder,
)
from swarmlet.state import by_service

#: Longest wait before a failing task is tried again, unless its own delay is longer.
RESTART_DELAY_MAX = 300.0
#: Seconds after which a task has held: what makes it fail then is no loop to slow down.
HELD_AFTER = 300.0
#: Times that a task is tried again at once when a node rejected it: another one may take it.
TRIES_ELSEWHERE = 2
#: How long a replacement waits for the old task of its slot to stop, beyond its grace.
OLD_TASK_TIMEOUT = 60.0


def reconcile(view: View) -> Decisions:
    """Return what is missing between the services asked for and their tasks."""
    decisions = Decisions()
    groups = by_service(view.state.tasks.values())
    for service in view.state.services.values():
        tasks = groups.pop(service.id, [])
        match service.spec.mode:
            case Replicated(replicas):
                decisions.add(_replicated(view, service, tasks, replicas))
            case Global():
                decisions.add(_global(view, service, tasks))
        decisions.add(_promote(view, service, tasks))
        decisions.add(advance(view, service, tasks))
    for orphans in groups.values():  # the service was removed
        decisions.extend(_retire(orphans, Desired.REMOVE))
    return decisions


def is_wanted(task: Task) -> bool:
    return task.outcome is None and task.desired <= Desired.RUNNING


def _retire(tasks: Iterable[Task], desired: Desired) -> list[SetDesired]:
    return [SetDesired(task, desired) for task in tasks if task.desired < desired]


def _replicated(view: View, service: Service, tasks: list[Task], replicas: int) -> Decisions:
    decisions = Decisions()
    slots: dict[int, list[Task]] = {}
    for task in tasks:
        if task.desired < Desired.REMOVE:
            slots.setdefault(task.slot, []).append(task)
    for slot in _surplus(view, slots, replicas):
        decisions.extend(_retire(slots.pop(slot), Desired.REMOVE))
    number = 0
    while len(slots) < replicas:
        number += 1
        slots.setdefault(number, [])
    for slot in sorted(slots):
        decisions.add(_fill(view, service, slots[slot], NewTask(service=service, slot=slot)))
    return decisions


def _surplus(view: View, slots: dict[int, list[Task]], replicas: int) -> list[int]:
    """The slots to give up: first those that do not run, then the fullest nodes' highest."""
    count = len(slots) - replicas
    if count <= 0:
        return []
    current = {slot: next(filter(is_wanted, tasks), None) for slot, tasks in slots.items()}
    load: dict[str, int] = {}
    for task in current.values():
        if task is not None:
            load[task.node] = load.get(task.node, 0) + 1
    victims: list[int] = []
    left = sorted(slots, reverse=True)
    for _ in range(count):

        def rank(slot: int) -> tuple[bool, int, int]:
            task = current[slot]
            serves = task is not None and view.is_ready(task) and view.is_up(task.node)
            return (not serves, load.get(task.node, 0) if task else 0, slot)

        slot = max(left, key=rank)
        left.remove(slot)
        victims.append(slot)
        if task := current[slot]:
            load[task.node] -= 1
    return victims


def _global(view: View, service: Service, tasks: list[Task]) -> Decisions:
    decisions = Decisions()
    template = service.spec.task
    on_node: dict[str, list[Task]] = {}
    for task in tasks:
        if task.desired < Desired.REMOVE:
            on_node.setdefault(task.only_node, []).append(task)
    for node in view.state.nodes.values():
        mine = on_node.pop(node.id, [])
        if not may_keep(template, node):
            decisions.extend(_retire(filter(is_wanted, mine), Desired.SHUTDOWN))
        elif any(map(is_wanted, mine)) or may_start(template, node):
            decisions.add(_fill(view, service, mine, NewTask(service=service, only_node=node.id)))
    for gone in on_node.values():
        decisions.extend(_retire(gone, Desired.REMOVE))
    return decisions


@dataclass(frozen=True, slots=True)
class _Lost:
    """Why a task cannot go on where it is."""

    told: bool  # its node is there to be told to stop it


def _lost(view: View, service: Service, task: Task) -> _Lost | None:
    if not task.node:
        return None
    node = view.state.nodes.get(task.node)
    if node is None:
        return _Lost(told=False)
    template = view.state.template_of(task) or service.spec.task
    if not may_keep(template, node):
        return _Lost(told=True)
    if node.state is NodeState.DOWN and isinstance(service.spec.mode, Replicated):
        overdue = view.now - node.state_since >= service.spec.replace_after
        if service.spec.offline is OfflinePolicy.KEEP and overdue:
            return _Lost(told=False)
    return None


def _fill(view: View, service: Service, tasks: list[Task], new: NewTask) -> Decisions:
    """See that one place (a slot, or a node of a global service) has its one task."""
    decisions = Decisions()
    wanted = [task for task in tasks if is_wanted(task)]
    lost = {task.id: lost for task in wanted if (lost := _lost(view, service, task))}
    good = sorted((t for t in wanted if t.id not in lost), key=lambda t: _preference(view, t))
    left = [task for task in wanted if task.id in lost]
    if good:
        updating = service.update is not None and service.update.phase in UNDER_WAY
        versions = {task.spec_version for task in good}
        if len(versions) == 1 or not updating:  # else the update decides
            decisions.extend(_retire(good[1:], Desired.SHUTDOWN))
        if view.is_ready(good[0]):
            decisions.extend(_retire(left, Desired.SHUTDOWN))
        decisions.add(_wait_for_replacing(view, service, good))
        return decisions
    if left:
        if any(lost[task.id].told for task in left):
            start_first = service.spec.update.order is UpdateOrder.START_FIRST
            if not start_first:
                decisions.extend(_retire(left, Desired.SHUTDOWN))
            desired = Desired.RUNNING if start_first else Desired.READY
        else:
            desired = Desired.RUNNING
        decisions.append(dataclasses.replace(new, desired=desired))
        return decisions
    decisions.add(_start_again(view, service, tasks, new))
    return decisions


def _preference(view: View, task: Task) -> tuple[bool, bool, float, str]:
    """The task to keep of several: one that serves, then the one that was there first."""
    serves = view.is_ready(task) and (not task.node or view.is_up(task.node))
    return (not serves, not task.node, task.created_at, task.id)


def _wait_for_replacing(view: View, service: Service, good: list[Task]) -> Decisions:
    """Wake up when a DOWN node's tasks fall due for replacement."""
    decisions = Decisions()
    for task in good:
        node = view.state.nodes.get(task.node)
        if node is not None and node.state is NodeState.DOWN and service.spec.replace_after:
            decisions.wake(node.state_since + service.spec.replace_after)
    return decisions


def _start_again(view: View, service: Service, tasks: list[Task], new: NewTask) -> Decisions:
    """A place without a task that is meant to run: the first one, or one after an end."""
    ended = sorted((t for t in tasks if t.outcome), key=lambda t: (t.created_at, t.id))
    if not ended:
        return Decisions([new])
    last = ended[-1]
    assert last.outcome
    current = last.spec_version == service.spec_version
    orphaned = last.outcome.state is TaskState.ORPHANED  # its node failed, not the task
    if last.desired > Desired.RUNNING or orphaned or not current:
        return Decisions([dataclasses.replace(new, desired=Desired.READY)])
    policy = service.spec.task.restart
    failed = last.outcome.state is not TaskState.COMPLETE
    if policy.condition is RestartCondition.NONE:
        return Decisions()
    if policy.condition is RestartCondition.ON_FAILURE and not failed:
        return Decisions()
    attempt = last.attempt + 1
    held = last.updated_at - last.created_at
    if policy.window and held > policy.window:
        attempt = 1  # it held long enough: the count begins anew
    if policy.max_attempts and attempt > policy.max_attempts:
        return Decisions()
    rejected = last.outcome.state is TaskState.REJECTED
    tries = 1 if held > HELD_AFTER and not rejected else attempt
    not_before = last.updated_at + _delay(policy, tries - TRIES_ELSEWHERE * rejected)
    if rejected and view.now < not_before:
        # The next one would be made READY while it waits, and rejected as fast.
        decisions = Decisions()
        decisions.wake(not_before)
        return decisions
    again = dataclasses.replace(new, desired=Desired.READY, not_before=not_before, attempt=attempt)
    return Decisions([again])


def _delay(policy: RestartPolicy, tries: int) -> float:
    """Seconds until the next of so many tries, longer each time."""
    if tries < 1:
        return 0.0
    delay = policy.delay * 2.0 ** min(tries - 1, 10)
    return min(delay, max(policy.delay, RESTART_DELAY_MAX))


def _promote(view: View, service: Service, tasks: list[Task]) -> Decisions:
    """Let tasks that were only to get READY run, once their delay and predecessor are over."""
    decisions = Decisions()
    patience = OLD_TASK_TIMEOUT + service.spec.task.container.stop_grace
    for task in tasks:
        if task.outcome is not None or task.desired is not Desired.READY:
            continue
        if task.not_before > view.now:
            decisions.wake(task.not_before)
            continue
        stopping = [
            old
            for old in tasks
            if old.place == task.place
            and old.outcome is None
            and old.desired > Desired.RUNNING
            and view.is_up(old.node)
        ]
        until = max((old.updated_at + patience for old in stopping), default=view.now)
        if until <= view.now:
            decisions.append(SetDesired(task, Desired.RUNNING))
        else:
            decisions.wake(until)
    return decisions
