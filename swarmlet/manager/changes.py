"""Decisions become guarded changes: ids, times and addresses are put in here.

Pure but for the chance it is given. What a decision was computed from guards it: a task that was
changed meanwhile, or a service that was, makes the change a conflict, and the loop looks again.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence

from swarmlet.manager.allocator import Allocator, Exhausted
from swarmlet.manager.decisions import (
    Decision,
    End,
    Forget,
    NewTask,
    Place,
    RollBack,
    SetDesired,
    SetUpdate,
)
from swarmlet.manager.updater import UNDER_WAY
from swarmlet.model import (
    Revision,
    Service,
    ServiceSpec,
    Task,
    TaskId,
    UpdatePhase,
    UpdateStatus,
    revision_id,
)
from swarmlet.state import Change, ClusterState, Draft

#: Decisions in one change: a task is about 300 bytes, and an entry must stay far below its limit.
DECISIONS_MAX = 200
#: How a paused update goes on when its service is updated again.
RESUMED = {
    UpdatePhase.PAUSED: UpdatePhase.UPDATING,
    UpdatePhase.ROLLBACK_PAUSED: UpdatePhase.ROLLBACK_STARTED,
}
ID_CHARACTERS = 25
ID_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


def new_id(rng: random.Random) -> str:
    """25 characters of base 36, as Docker's ids: 129 bits of chance."""
    return "".join(rng.choices(ID_ALPHABET, k=ID_CHARACTERS))


def changes_of(
    state: ClusterState, decisions: Sequence[Decision], *, term: int, now: float, rng: random.Random
) -> Iterator[tuple[Change, list[str]]]:
    """Yield the changes that carry out *decisions*, each with what could not be allocated.

    All are computed from *state*: they touch different objects, so each holds without the others.
    """
    allocator = Allocator(state, rng)
    for start in range(0, len(decisions), DECISIONS_MAX):
        draft = Draft(state)
        refusals: list[str] = []
        for decision in decisions[start : start + DECISIONS_MAX]:
            try:
                _enact(state, draft, decision, allocator, now, rng)
            except Exhausted as exc:
                refusals.append(str(exc))
        if not draft.is_empty or refusals:
            yield draft.change(term=term, at=now), refusals


def _enact(
    state: ClusterState,
    draft: Draft,
    decision: Decision,
    allocator: Allocator,
    now: float,
    rng: random.Random,
) -> None:
    match decision:
        case NewTask():
            _new_task(draft, decision, allocator, now, rng)
        case SetDesired(task, desired):
            _edit(draft, task, now, desired=desired)
        case Place(task, node):
            _edit(draft, task, now, node=node)
        case End(task, outcome):
            _edit(draft, task, now, outcome=outcome)
        case SetUpdate(service, status):
            draft.put(dataclasses.replace(service, update=status, updated_at=now))
        case RollBack(service, reason):
            assert service.previous_spec is not None
            message = f"update rolled back due to failure or early termination of {reason}"
            status = UpdateStatus(
                phase=UpdatePhase.ROLLBACK_STARTED, started_at=now, message=message
            )
            put_spec(draft, service, service.previous_spec, allocator, now, update=status)
        case Forget(row):
            draft.delete(row)


def _edit(draft: Draft, task: Task, now: float, **fields: object) -> None:
    """Write *fields* of *task*, over what this draft has already written of it."""
    current = draft.find(task.table, task.id) or task
    draft.put(dataclasses.replace(current, updated_at=now, **fields))


def _new_task(
    draft: Draft, new: NewTask, allocator: Allocator, now: float, rng: random.Random
) -> None:
    service = new.service
    draft.require(service)
    draft.put(
        Task(
            id=TaskId(new_id(rng)),
            service=service.id,
            spec_version=service.spec_version,
            slot=new.slot,
            only_node=new.only_node,
            desired=new.desired,
            endpoints=allocator.endpoints_of_task(service),
            not_before=new.not_before,
            attempt=new.attempt,
            created_at=now,
            updated_at=now,
        )
    )


def put_spec(
    draft: Draft,
    service: Service,
    spec: ServiceSpec,
    allocator: Allocator,
    now: float,
    *,
    update: UpdateStatus | None,
) -> Service:
    """Give *service* another spec, keeping the template that its tasks were made from.

    *update* is the status of the update that this begins, or resumes if one was paused.

    Raises:
        SpecError: a published port is taken.
        Exhausted: no address is left for a virtual one.
    """
    replaces = spec.task != service.spec.task or spec.endpoint != service.spec.endpoint
    changed = dataclasses.replace(
        service,
        spec=spec,
        previous_spec=service.spec,
        spec_version=service.spec_version + replaces,
        virtual_addresses=allocator.virtual_addresses(spec, service),
        ports=allocator.ports(spec, service),
        update=update if replaces else _continued(service.update, update),
        updated_at=now,
    )
    if replaces:
        draft.put(_revision(service, now))
    draft.put(changed)
    return changed


def _continued(status: UpdateStatus | None, update: UpdateStatus | None) -> UpdateStatus | None:
    """An update under way goes on, a paused one begins again with the failures forgotten.

    Of one that is over nothing is said any more, as in Docker.
    """
    if status is None or status.phase in UNDER_WAY:
        return status
    if update is None or status.phase not in RESUMED:
        return None
    return dataclasses.replace(update, phase=RESUMED[status.phase])


def delete_service(draft: Draft, service: Service, now: float) -> None:
    """Remove *service*; its template stays for as long as its tasks are stopping."""
    draft.put(_revision(service, now))
    draft.delete(service)


def _revision(service: Service, now: float) -> Revision:
    return Revision(
        id=revision_id(service.id, service.spec_version),
        service=service.id,
        spec_version=service.spec_version,
        task=service.spec.task,
        created_at=now,
        updated_at=now,
    )
