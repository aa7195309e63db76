"""Status: what is seen of a thing, as opposed to what is wanted of it.

Pure. Observations live in the memory of the leader, are reported by the agents and are rebuilt
after a leader change; they never enter the log.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class TaskState(enum.IntEnum):
    """Life of a task; it only ever moves forward. Swarm's names and numbers."""

    NEW = 0
    PENDING = 64
    ASSIGNED = 192
    ACCEPTED = 256
    PREPARING = 320
    READY = 384
    STARTING = 448
    RUNNING = 512
    COMPLETE = 576
    SHUTDOWN = 640
    FAILED = 704
    REJECTED = 768
    REMOVE = 800
    ORPHANED = 832

    @property
    def is_terminal(self) -> bool:
        return self > TaskState.RUNNING


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What an agent last said of a task.

    *ready* is what load balancers and updates look at: running, and healthy if it has a health
    check. *attempt* counts local restarts.
    """

    state: TaskState
    at: float = 0.0
    message: str = ""
    error: str = ""
    exit_code: int | None = None
    container: str = ""
    pid: int = 0
    ready: bool = False
    attempt: int = 0
    log_tail: tuple[str, ...] = ()


class Connection(enum.StrEnum):
    """How the leader sees a node's session."""

    UNKNOWN = "unknown"  # a new leader has not heard of it yet
    READY = "ready"
    DISCONNECTED = "disconnected"
