"""Life of one task on its host: the next operation, from what is wanted and what is there.

Pure. One function decides; the worker (worker.py) performs and looks again. A container that
ends is started again here, on its host, by the service's restart policy, so a crash loop writes
nothing to the log and works with no manager in reach; after LOCAL_ATTEMPTS in a row the task is
given back to the managers, if there are any to be reached.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

from swarmlet.model import Desired, RestartCondition, RestartPolicy, TaskState

#: Restarts of one task on its host, within the window, before the managers decide anew.
LOCAL_ATTEMPTS = 3
LOCAL_WINDOW = 300.0
RESTART_DELAY_MAX = 300.0
#: Seconds from the moment a task is to stop until its signal: load balancers everywhere take it
#: out meanwhile.
DRAIN_SECONDS = 0.5


class Phase(enum.Enum):
    """How far a task has come on this host."""

    NEW = "new"
    PREPARED = "prepared"  # its image is unpacked and its network stands
    CREATED = "created"  # its container waits for the start
    RUNNING = "running"
    EXITED = "exited"
    ENDED = "ended"  # for good; only the managers make another task


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How the container's process ended."""

    code: int | None
    signal: int | None = None
    oom_killed: bool = False
    at: float = 0.0

    @property
    def succeeded(self) -> bool:
        return self.code == 0

    @property
    def text(self) -> str:
        if self.oom_killed:
            return (
                "task: killed by the kernel for want of memory (OOM): it used more than its "
                "memory limit; raise --limit-memory or make it use less"
            )
        if self.code == 0:
            return ""
        return f"task: non-zero exit ({self.code})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """What is known of a task on this host. *attempt* counts the restarts since it is here."""

    phase: Phase = Phase.NEW
    attempt: int = 0
    recent: tuple[float, ...] = ()  # when the restarts of the current window were decided
    exit: Exit | None = None


# Operations: what the worker must do next.


@dataclass(frozen=True, slots=True)
class Prepare:
    """Get the image and the network."""


@dataclass(frozen=True, slots=True)
class Create:
    """Make the container."""


@dataclass(frozen=True, slots=True)
class Start:
    """Let it run."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Take it out of the load balancers, then signal, then kill."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Make a new container at *at*, as attempt number *attempt*."""

    at: float
    attempt: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The task is over on this host."""

    state: TaskState
    error: str = ""


Operation: TypeAlias = Prepare | Create | Start | Stop | Restart | Finish


def next_operation(
    desired: Desired, local: Local, policy: RestartPolicy, *, now: float, connected: bool
) -> Operation | None:
    """Return what to do next; None: wait until something changes."""
    if local.phase is Phase.ENDED:
        return None
    if desired > Desired.RUNNING:
        return Stop() if local.phase is Phase.RUNNING else Finish(TaskState.SHUTDOWN)
    match local.phase:
        case Phase.NEW:
            return Prepare()
        case Phase.PREPARED:
            return Create()
        case Phase.CREATED:
            return Start() if desired is Desired.RUNNING else None
        case Phase.EXITED:
            return _after_exit(local, policy, now, connected)
    return None


def _after_exit(local: Local, policy: RestartPolicy, now: float, connected: bool) -> Operation:
    exited = local.exit
    assert exited is not None, "an exited container has an exit"
    end = TaskState.COMPLETE if exited.succeeded else TaskState.FAILED
    if policy.condition is RestartCondition.NONE:
        return Finish(end, exited.text)
    if policy.condition is RestartCondition.ON_FAILURE and exited.succeeded:
        return Finish(end)
    recent = [at for at in local.recent if now - at < LOCAL_WINDOW]
    most = min(LOCAL_ATTEMPTS, policy.max_attempts or LOCAL_ATTEMPTS)
    if connected and len(recent) >= most:
        return Finish(end, exited.text)
    if policy.max_attempts and len(recent) >= policy.max_attempts:
        return Finish(end, exited.text)
    delay = min(policy.delay * 2 ** min(len(recent), 10), max(policy.delay, RESTART_DELAY_MAX))
    return Restart(exited.at + delay, local.attempt + 1)


def restarted(local: Local, attempt: int, now: float) -> Local:
    """The task after its container was cleared away for another try."""
    recent = (*(at for at in local.recent if now - at < LOCAL_WINDOW), now)
    return Local(phase=Phase.PREPARED, attempt=attempt, recent=recent)
