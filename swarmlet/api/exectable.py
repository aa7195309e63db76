"""The execs of this daemon: what was created, what runs, how it ended. See execs.py."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarmlet.api.exchange import ApiError
from swarmlet.manager.errors import NotFound
from swarmlet.model import NodeId

if TYPE_CHECKING:
    from swarmlet.runtime.sessions import Session
    from swarmlet.runtime.spec import Process
    from swarmlet.runtime.state import ExitStatus

#: Remembered at once, ended ones included; the oldest is forgotten for the next.
EXECS_MAX = 256


@dataclass(slots=True)
class Exec:
    """One process of `docker exec`; changed by the calls that start and end it."""

    id: str
    container: str
    process: Process
    with_stdin: bool
    keys: bytes = b""
    privileged: bool = False
    session: Session | None = None
    exit: ExitStatus | None = None
    was_started: bool = False
    is_detached: bool = False


class ExecTable:
    """The execs of this daemon; of a restarted one nothing is left, as with Docker's."""

    def __init__(self) -> None:
        self._execs: dict[str, Exec] = {}
        self._elsewhere: dict[str, NodeId] = {}

    def add(
        self,
        container: str,
        process: Process,
        *,
        with_stdin: bool,
        keys: bytes = b"",
        privileged: bool = False,
    ) -> Exec:
        while len(self._execs) >= EXECS_MAX:
            idle = [e.id for e in self._execs.values() if e.session is None]
            if not idle:
                raise ApiError(503, f"{EXECS_MAX} execs run at once; end one of them first")
            del self._execs[idle[0]]
        exec_ = Exec(secrets.token_hex(32), container, process, with_stdin, keys, privileged)
        self._execs[exec_.id] = exec_
        return exec_

    def find(self, id_: str) -> Exec:
        exec_ = self._execs.get(id_)
        if exec_ is None:
            raise NotFound("exec", id_)
        return exec_

    def of_container(self, container: str) -> list[str]:
        """Ids of the execs that run in *container*."""
        return [e.id for e in self._execs.values() if e.container == container and e.session]

    def remember(self, id_: str, node: NodeId) -> None:
        """The exec *id_* was made on *node*, by way of this one."""
        while len(self._elsewhere) >= EXECS_MAX:
            del self._elsewhere[next(iter(self._elsewhere))]
        self._elsewhere[id_] = node

    def node_of(self, id_: str) -> NodeId | None:
        return self._elsewhere.get(id_)
