"""What is known of a container, and the file that a daemon leaves for the next one.

`ContainerState` is the frozen picture that the supervisor shows. `state.json` in the container's
state folder is written before each transition of the daemon's, to a temporary name that then
replaces the old one, so it is whole or old, never half; the zygote notes in life.json that the
command was started, in exit.json how it ended. None is fsynced, against the rule for other files:
what they describe ends with the machine's power, and a file that a power cut emptied only says that
its container is to be removed. The contents of secret files are never in them.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from swarmlet.runtime.birth import EXIT_FILE, LIFE_FILE
from swarmlet.runtime.decoding import SpecError
from swarmlet.runtime.spec import ContainerSpec

STATE_FILE = "state.json"
VERSION = 1


class Status(enum.Enum):
    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    EXITED = "exited"
    REMOVING = "removing"

    @property
    def alive(self) -> bool:
        """Whether there is a process."""
        return self in (Status.CREATED, Status.RUNNING, Status.PAUSED)

    @property
    def running(self) -> bool:
        return self in (Status.RUNNING, Status.PAUSED)


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended.

    *code* is what docker shows: the exit code, 128 + *signal* when a signal killed it, 255 when
    nobody saw the end (*lost*: the host rebooted, or the zygote was killed together with it).
    """

    code: int
    signal: int | None = None
    oom_killed: bool = False
    finished_at: float = 0.0
    lost: bool = False

    @classmethod
    def of(cls, wait_status: int | None, finished_at: float, *, oom_killed: bool) -> ExitStatus:
        """Read a wait status of wait(2); None is a lost one."""
        if wait_status is None:
            return cls(255, None, oom_killed, finished_at, lost=True)
        code = os.waitstatus_to_exitcode(wait_status)
        if code < 0:
            return cls(128 - code, -code, oom_killed, finished_at)
        return cls(code, None, oom_killed, finished_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerState:
    """One container as it is now. *spec* has no contents of secret files."""

    id: str
    spec: ContainerSpec
    status: Status
    created_at: float
    pid: int = 0
    start_ticks: int = 0
    started_at: float = 0.0
    exit: ExitStatus | None = None
    boot_id: str = ""

    def changed(self, **changes: Any) -> ContainerState:
        return replace(self, **changes)


def write_state(folder: str, state: ContainerState) -> None:
    """Leave *state* in *folder*, which exists."""
    value: dict[str, Any] = {
        "swarmlet-container": VERSION,
        "id": state.id,
        "status": state.status.value,
        "created_at": state.created_at,
        "pid": state.pid,
        "start_ticks": state.start_ticks,
        "started_at": state.started_at,
        "boot_id": state.boot_id,
        "spec": state.spec.to_json(),
    }
    if state.exit is not None:
        exit_ = state.exit
        value["exit"] = {
            "code": exit_.code,
            "signal": exit_.signal,
            "oom_killed": exit_.oom_killed,
            "finished_at": exit_.finished_at,
            "lost": exit_.lost,
        }
    path = Path(folder, STATE_FILE)
    fresh = path.with_suffix(".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w") as file:
        file.write(json.dumps(value))
    os.replace(fresh, path)


def read_state(folder: str) -> ContainerState | None:
    """Return what was left in *folder*, None when there is nothing whole."""
    try:
        value = json.loads(Path(folder, STATE_FILE).read_bytes())
        if value["swarmlet-container"] != VERSION:
            return None
        if value["status"] == Status.CREATING.value:
            value |= _read_life(folder)
        return ContainerState(
            id=value["id"],
            spec=ContainerSpec.from_json(value["spec"]),
            status=Status(value["status"]),
            created_at=value["created_at"],
            pid=value["pid"],
            start_ticks=value["start_ticks"],
            started_at=value["started_at"],
            exit=ExitStatus(**value["exit"]) if "exit" in value else None,
            boot_id=value["boot_id"],
        )
    except (OSError, ValueError, KeyError, TypeError, SpecError):
        return None


def _read_life(folder: str) -> dict[str, Any]:
    """Return what the zygote left in *folder* when the command was started, if it was."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        value = json.loads(Path(folder, LIFE_FILE).read_bytes())
        return {
            "status": Status.RUNNING.value,
            "pid": int(value["pid"]),
            "start_ticks": int(value["start_ticks"]),
            "started_at": float(value["started_at"]),
        }
    return {}


def read_exit(folder: str) -> tuple[int | None, float] | None:
    """Return (wait status, time) that a zygote left in *folder*, if any."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        value = json.loads(Path(folder, EXIT_FILE).read_bytes())
        return value["wait_status"], float(value["at"])
    return None


def read_boot_id() -> str:
    """Return the kernel's id of this boot: pids mean nothing in another."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
