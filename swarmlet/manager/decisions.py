"""What the manager's pure roles decide; manager/loops.py turns decisions into guarded changes.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from swarmlet.model import Desired, NodeId, Object, Outcome, Service, Task, UpdateStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTask:
    """Create a task of *service* in *slot*, or of a global service for *only_node*."""

    service: Service
    slot: int = 0
    only_node: NodeId = NodeId("")
    desired: Desired = Desired.RUNNING
    not_before: float = 0.0
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class SetDesired:
    task: Task
    desired: Desired


@dataclass(frozen=True, slots=True)
class Place:
    task: Task
    node: NodeId


@dataclass(frozen=True, slots=True)
class End:
    """The task ended for good: what its agent reported becomes part of the log."""

    task: Task
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class SetUpdate:
    service: Service
    status: UpdateStatus


@dataclass(frozen=True, slots=True)
class RollBack:
    """Go back to the spec before this one."""

    service: Service
    reason: str


@dataclass(frozen=True, slots=True)
class Forget:
    row: Object


Decision: TypeAlias = NewTask | SetDesired | Place | End | SetUpdate | RollBack | Forget


class Decisions(list[Decision]):
    """Decisions in order, and when to look again though nothing has happened."""

    def __init__(self, decisions: Iterable[Decision] = (), *, wake_at: float | None = None) -> None:
        super().__init__(decisions)
        self.wake_at = wake_at

    def wake(self, at: float) -> None:
        self.wake_at = at if self.wake_at is None else min(at, self.wake_at)

    def add(self, other: Decisions) -> None:
        self.extend(other)
        if other.wake_at is not None:
            self.wake(other.wake_at)
