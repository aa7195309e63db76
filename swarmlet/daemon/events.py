"""Events: what `docker events` shows of this host, to whoever listens."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from swarmlet.api.backend import Event
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

    async def follow_containers(self, supervisor: Supervisor) -> None:
        """Publish what happens to containers, until cancelled."""
        known: dict[str, Status] = {}
        async with supervisor.subscribe() as changes:
            async for container, state in changes:
                before = known.get(container)
                if state is None:
                    known.pop(container, None)
                    self.publish(_event(container, "destroy", None))
                elif state.status is not before:
                    known[container] = state.status
                    action = _ACTIONS.get(state.status)
                    if action is not None:
                        self.publish(_event(container, action, state))


def _event(container: str, action: str, state: ContainerState | None) -> Event:
    attributes = dict(state.spec.annotations) if state is not None else {}
    if state is not None and state.exit is not None:
        attributes["exitCode"] = str(state.exit.code)
    return Event(
        type="container", action=action, id=container, at=time.time(), attributes=attributes
    )
