"""What follows when a container has ended, and which ones come back with the host.

Pure. Docker's rules (restartmanager.go): the pause before a restart doubles from PAUSE_MIN to
PAUSE_MAX and begins anew after a run of STEADY seconds; `on-failure:3` counts since the last start
by hand; what a person stopped stays stopped until the daemon starts again, and `unless-stopped`
also then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from swarmlet.agent.local.records import Restart, RestartPolicy

PAUSE_MIN, PAUSE_MAX = 0.1, 60.0
#: A run of so many seconds was no crash at the start.
STEADY = 10.0


@dataclass(frozen=True, slots=True)
class Streak:
    """Restarts since the container was last started by hand, and the last pause before one."""

    restarts: int = 0
    pause: float = 0.0


# What follows.


@dataclass(frozen=True, slots=True)
class Again:
    """Start it after *streak*'s pause."""

    streak: Streak


@dataclass(frozen=True, slots=True)
class Rest:
    """Leave it as it is."""


@dataclass(frozen=True, slots=True)
class Remove:
    """Take it away, with its anonymous volumes (--rm)."""


Follows: TypeAlias = Again | Rest | Remove


def after_exit(
    policy: RestartPolicy,
    streak: Streak,
    *,
    code: int,
    ran_seconds: float,
    stopped: bool,
    auto_remove: bool,
) -> Follows:
    """Return what follows the end of a run; *stopped*: somebody ended it by hand."""
    if stopped or not _wants_again(policy, streak.restarts, code):
        return Remove() if auto_remove else Rest()
    steady = ran_seconds >= STEADY or not streak.pause
    pause = PAUSE_MIN if steady else min(2 * streak.pause, PAUSE_MAX)
    return Again(Streak(streak.restarts + 1, pause))


def after_boot(
    policy: RestartPolicy,
    *,
    code: int,
    restarts: int,
    was_running: bool,
    was_started: bool,
    stopped: bool,
    auto_remove: bool,
) -> Follows:
    """Return what becomes of a container that no process is left of when the daemon starts.

    *was_running*: it ran when the host went down, or waited for its next restart.
    """
    if auto_remove and was_started:
        return Remove()
    if not was_started:
        return Rest()
    match policy.name:
        case Restart.ALWAYS:
            return Again(Streak())
        case Restart.UNLESS_STOPPED if not stopped:
            return Again(Streak())
        case Restart.ON_FAILURE if was_running and _wants_again(policy, restarts, code):
            return Again(Streak(restarts + 1, PAUSE_MIN))
    return Rest()


def _wants_again(policy: RestartPolicy, restarts: int, code: int) -> bool:
    match policy.name:
        case Restart.ALWAYS | Restart.UNLESS_STOPPED:
            return True
        case Restart.ON_FAILURE:
            within = not policy.attempts_max or restarts < policy.attempts_max
            return code != 0 and within
    return False
