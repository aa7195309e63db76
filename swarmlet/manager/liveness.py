"""Liveness: from sessions, silence and gossip's suspicions to READY and DOWN.

Pure. One machine on the leader for all nodes; time is ticks of TICK_SECONDS. A closed session is
DISCONNECTED, not DOWN: that follows only when a confirmation (the leader and other nodes tried
to reach it, DISTRIBUTED B2) failed and nobody has heard from the node for *down_after* ticks.

    session open, heartbeats come                    READY
    closed, or silent for *silent_after* ticks       DISCONNECTED, and Confirm is asked
    confirmed unreachable, *down_after* ticks old     DOWN
    session opens again                              READY at once

Guards: this leader's own node is never DOWN; ticks that this process slept through count for
nobody; if many nodes go away together the leader suspects itself and holds back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias, assert_never

from swarmlet.model import Connection, NodeId, NodeState

TICK_SECONDS = 0.25

#: Ticks between the end of one confirmation and the next of a node that stays away.
CONFIRM_AGAIN = 4
#: Mass disconnect: more than this part of the nodes, and at least so many, within the window.
MASS_PART = 0.4
MASS_NODES_MIN = 4
MASS_WINDOW = round(30 / TICK_SECONDS)
MASS_HOLD = round(60 / TICK_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class LivenessConfig:
    """In ticks. *silent_after*: 1.25 heartbeats; *down_after* counts from the last sign of life."""

    silent_after: int = round(2.5 / TICK_SECONDS)
    down_after: int = round(4 / TICK_SECONDS)


# Events: what happened.


@dataclass(frozen=True, slots=True)
class Tick:
    missed: int = 0


@dataclass(frozen=True, slots=True)
class Opened:
    node: NodeId


@dataclass(frozen=True, slots=True)
class Closed:
    """The session ended; *planned_ticks*: how long it said that it would be away."""

    node: NodeId
    planned_ticks: int = 0


@dataclass(frozen=True, slots=True)
class Heard:
    node: NodeId


@dataclass(frozen=True, slots=True)
class Suspected:
    """Gossip doubts *node*: evidence, not a verdict."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A confirmation ended."""

    node: NodeId
    reached: bool


@dataclass(frozen=True, slots=True)
class Listed:
    """The store's nodes and what it says of each."""

    nodes: tuple[tuple[NodeId, NodeState], ...]


Event: TypeAlias = Tick | Opened | Closed | Heard | Suspected | Confirmed | Listed


# Actions: what the shell must do.


@dataclass(frozen=True, slots=True)
class Confirm:
    """Try to reach *node* from here and from three other nodes; answer with Confirmed."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class SetNodeState:
    node: NodeId
    state: NodeState


@dataclass(frozen=True, slots=True)
class HeldBack:
    """So many nodes went away at once that this leader doubts itself instead."""

    nodes: int


Action: TypeAlias = Confirm | SetNodeState | HeldBack


@dataclass(slots=True)
class _Watch:
    """One node, as this leader sees it."""

    state: NodeState
    open: bool = False
    known: bool = False  # a session or a confirmation has said something since we lead
    served: bool = False  # it had a session with this leader
    heard: int = 0  # tick of the last sign of life
    left: int | None = None  # tick at which the session closed or the node fell silent
    confirming: bool = False
    next_confirm: int = 0
    unreachable: bool = False
    planned_until: int = 0


class Liveness:
    """Watches the nodes of the cluster, from the moment that this node leads."""

    def __init__(self, own: NodeId, config: LivenessConfig) -> None:
        assert config.silent_after > 0
        assert config.down_after > 0
        self._own = own
        self._config = config
        self._now = 0
        self._nodes: dict[NodeId, _Watch] = {}
        self._hold_until = 0

    @property
    def connections(self) -> dict[NodeId, Connection]:
        return {node: self._connection(watch) for node, watch in self._nodes.items()}

    def step(self, event: Event) -> list[Action]:
        match event:
            case Tick(missed):
                return self._tick(missed)
            case Opened(node):
                return self._opened(self._watch(node), node)
            case Closed(node, planned_ticks):
                return self._closed(self._watch(node), planned_ticks)
            case Heard(node):
                watch = self._watch(node)
                watch.heard, watch.unreachable = self._now, False
                return []
            case Suspected(node):
                return self._confirm(self._watch(node), node)
            case Confirmed(node, reached):
                return self._confirmed(self._watch(node), reached)
            case Listed(nodes):
                return self._listed(nodes)
            case _:
                assert_never(event)

    def _watch(self, node: NodeId) -> _Watch:
        watch = self._nodes.get(node)
        if watch is None:
            watch = self._nodes[node] = _Watch(NodeState.READY, heard=self._now)
        return watch

    def _connection(self, watch: _Watch) -> Connection:
        if watch.open and watch.left is None:
            return Connection.READY
        return Connection.DISCONNECTED if watch.known else Connection.UNKNOWN

    def _listed(self, nodes: Iterable[tuple[NodeId, NodeState]]) -> list[Action]:
        rows = dict(nodes)
        for gone in self._nodes.keys() - rows.keys():
            del self._nodes[gone]
        for node, state in rows.items():
            self._watch(node).state = state
        return []

    def _opened(self, watch: _Watch, node: NodeId) -> list[Action]:
        watch.open = watch.known = watch.served = True
        watch.heard, watch.left = self._now, None
        watch.unreachable, watch.planned_until = False, 0
        if watch.state is NodeState.DOWN:
            return [SetNodeState(node, NodeState.READY)]
        return []

    def _closed(self, watch: _Watch, planned_ticks: int) -> list[Action]:
        watch.open, watch.known = False, True
        watch.left = self._now
        watch.next_confirm = self._now
        watch.planned_until = self._now + planned_ticks
        return []

    def _confirm(self, watch: _Watch, node: NodeId) -> list[Action]:
        if watch.confirming or node == self._own or watch.state is NodeState.DOWN:
            return []
        watch.confirming = True
        return [Confirm(node)]

    def _confirmed(self, watch: _Watch, reached: bool) -> list[Action]:
        watch.confirming = False
        watch.next_confirm = self._now + CONFIRM_AGAIN
        if reached:
            watch.heard, watch.unreachable = self._now, False
        else:
            watch.unreachable, watch.known = True, True
        return []

    def _tick(self, missed: int) -> list[Action]:
        self._now += 1
        if missed:
            # We slept: what we did not hear says nothing about others.
            for watch in self._nodes.values():
                watch.heard, watch.unreachable = self._now, False
            return []
        actions = self._mass_disconnect()
        for node, watch in sorted(self._nodes.items()):
            actions += self._look_at(node, watch)
        return actions

    def _look_at(self, node: NodeId, watch: _Watch) -> list[Action]:
        silent = self._now - watch.heard
        if silent >= self._config.silent_after and watch.left is None:
            watch.left = watch.heard
        elif watch.open and silent < self._config.silent_after:
            watch.left = None
        if watch.left is None and not watch.unreachable:
            # Looked at again and again: a node that joined is listed after its session opened,
            # and what was asked for may not have been written.
            is_back = watch.open and watch.state is NodeState.DOWN
            return [SetNodeState(node, NodeState.READY)] if is_back else []
        if watch.state is NodeState.DOWN or node == self._own or self._now < watch.planned_until:
            return []
        if watch.unreachable and silent >= self._config.down_after:
            if self._now < self._hold_until:
                return []
            return [SetNodeState(node, NodeState.DOWN)]
        if self._now >= watch.next_confirm:
            return self._confirm(watch, node)
        return []

    def _mass_disconnect(self) -> list[Action]:
        recent = self._now - MASS_WINDOW
        # Of nodes that never had a session here a new leader knows nothing, good or bad.
        gone = [
            watch
            for watch in self._nodes.values()
            if watch.served and watch.left is not None and watch.left > recent
        ]
        many = len(gone) >= MASS_NODES_MIN and len(gone) > MASS_PART * len(self._nodes)
        if not many or self._now < self._hold_until:
            return []
        self._hold_until = self._now + MASS_HOLD
        return [HeldBack(len(gone))]
