"""Events: what `docker events` shows of this host, to whoever listens."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import trio

from swarmlet.agent.local.specs import MARK
from swarmlet.api.backend import Event
from swarmlet.api.convert_containers import TASK_NAME
from swarmlet.runtime.state import ContainerState, Status
from swarmlet.runtime.supervisor import Supervisor

#: Events that wait for one listener; a slower one misses the next.
WAITING_MAX = 256

_ACTIONS = {
    Status.CREATED: "create",
    Status.RUNNING: "start",
    Status.PAUSED: "pause",
    Status.EXITED: "die",
}


class EventBus:
    def __init__(self) -> None:
        self._listeners: set[trio.MemorySendChannel[Event]] = set()

    def publish(self, event: Event) -> None:
        for listener in self._listeners:
            try:
                listener.send_nowait(event)
            except trio.WouldBlock:
                continue  # it does not keep up; it can look at the present state instead

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[trio.MemoryReceiveChannel[Event]]:
        send, receive = trio.open_memory_channel[Event](WAITING_MAX)
        self._listeners.add(send)
        try:
            with send, receive:
                yield receive
        finally:
            self._listeners.discard(send)

    def tell(self, kind: str, action: str, id_: str, attributes: Mapping[str, str]) -> None:
        """Publish that *action* was done to the *kind* of thing *id_*, now."""
        self.publish(Event(type=kind, action=action, id=id_, at=time.time(), attributes=attributes))

    async def follow_tasks(
        self, supervisor: Supervisor, describe: Callable[[str], Mapping[str, str]]
    ) -> None:
        """Publish what happens to the containers of tasks, until cancelled.

        Those run by hand are told of by who runs them (agent/local). *describe* gives name and
        image of a task's container.
        """
        known: dict[str, tuple[Status, Mapping[str, str]]] = {}
        async with supervisor.subscribe() as changes:
            async for container, state in changes:
                before, attributes = known.get(container, (None, {}))
                if state is None:
                    if known.pop(container, None) is not None:
                        self.tell("container", "destroy", container, attributes)
                    continue
                if MARK in state.spec.annotations:
                    continue
                if state.status is before:
                    continue
                attributes = _attributes(state, describe(container) or attributes)
                known[container] = state.status, attributes
                for action in _actions(before, state):
                    more = {"exitCode": str(state.exit.code)} if state.exit is not None else {}
                    self.tell("container", action, container, {**attributes, **more})


def _actions(before: Status | None, state: ContainerState) -> tuple[str, ...]:
    match before, state.status:
        case Status.PAUSED, Status.RUNNING:
            return ("unpause",)
        case _, Status.EXITED if state.exit is not None and state.exit.oom_killed:
            return ("oom", "die")
        case _, status if status in _ACTIONS:
            return (_ACTIONS[status],)
    return ()


def _attributes(state: ContainerState, known: Mapping[str, str]) -> dict[str, str]:
    name = state.spec.annotations.get(TASK_NAME, state.id)
    return {"name": name, **state.spec.annotations, **known}
