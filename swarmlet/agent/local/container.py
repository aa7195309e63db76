"""One container of this host alone, as it is in memory: its record, and what is only observed."""

from __future__ import annotations

import enum
import time
from collections import deque
from dataclasses import dataclass, field

import trio

from swarmlet.agent.health import Health
from swarmlet.agent.local.lifecycle import Streak
from swarmlet.agent.local.records import ContainerRecord
from swarmlet.runtime.sessions import Session
from swarmlet.runtime.state import ContainerState
from swarmlet.waiting import Bell

#: Results of health checks that are kept for `inspect`, as many as Docker keeps.
CHECKS_MAX = 5


class Phase(enum.StrEnum):
    """Docker's words for how a container is."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    REMOVING = "removing"
    EXITED = "exited"

    @property
    def runs(self) -> bool:
        return self in (Phase.RUNNING, Phase.PAUSED)


@dataclass(frozen=True, slots=True)
class Check:
    """One answer of a health check."""

    at: float
    passed: bool
    output: str


@dataclass(slots=True)
class HealthLog:
    status: Health = Health.NONE
    failures: int = 0
    checks: deque[Check] = field(default_factory=lambda: deque(maxlen=CHECKS_MAX))


class Attacher:
    """Somebody who asked for the streams before the container was started."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self.ready = trio.Event()

    def give(self, session: Session | None) -> None:
        """None: the container is gone."""
        self.session = session
        self.ready.set()


@dataclass(slots=True, eq=False)
class Container:
    """Owned by the engine. *lock*: who starts it, removes it, or works in its stopped root."""

    record: ContainerRecord
    lock: trio.Lock = field(default_factory=trio.Lock)
    bell: Bell = field(default_factory=Bell)  # rung at each change
    state: ContainerState | None = None  # the supervisor's, of the present or the last run
    streak: Streak = field(default_factory=Streak)
    restart_at: float = 0.0  # wall clock; 0: no restart is due
    is_up: bool = False  # its network is made
    is_starting: bool = False
    exits: int = 0
    is_gone: bool = False
    error: str = ""
    health: HealthLog = field(default_factory=HealthLog)
    attachers: list[Attacher] = field(default_factory=list)

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def runs(self) -> bool:
        """Whether its process runs, frozen or not."""
        return self.state is not None and self.state.status.running and not self.is_starting

    @property
    def phase(self) -> Phase:
        if self.record.removing:
            return Phase.REMOVING
        if self.runs and self.state is not None:
            return Phase(self.state.status.value)
        if self.restart_at or (self.is_starting and self.streak.restarts):
            return Phase.RESTARTING
        if self.is_up and not self.is_starting and self.state is not None:
            return Phase.RUNNING  # its end is not noted yet, nor what follows
        return Phase.EXITED if self.record.started_at else Phase.CREATED

    @property
    def code(self) -> int:
        """How the last run ended; 0 if none has."""
        return self.record.ended.code if self.record.ended is not None else 0

    @property
    def started_at(self) -> float:
        if self.runs and self.state is not None:
            return self.state.started_at
        return self.record.started_at

    @property
    def pid(self) -> int:
        return self.state.pid if self.runs and self.state is not None else 0

    def seconds_up(self) -> float:
        return max(0.0, time.time() - self.started_at)
