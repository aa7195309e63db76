"""Liveness: a blip is not a death, and a death is seen in time."""

from __future__ import annotations

import pytest

from swarmlet.manager.liveness import (
    MASS_HOLD,
    Action,
    Closed,
    Confirm,
    Confirmed,
    Heard,
    HeldBack,
    Listed,
    Liveness,
    LivenessConfig,
    Opened,
    SetNodeState,
    Suspected,
    Tick,
)
from swarmlet.model import Connection, NodeId, NodeState

OWN, A = NodeId("own"), NodeId("a")
CONFIG = LivenessConfig(silent_after=10, down_after=16)


def start(*others: NodeId) -> Liveness:
    core = Liveness(OWN, CONFIG)
    nodes = (OWN, *others)
    core.step(Listed(tuple((node, NodeState.READY) for node in nodes)))
    for node in nodes:
        core.step(Opened(node))
    return core


@pytest.fixture
def core() -> Liveness:
    return start(A)


def tick(core: Liveness, count: int, *, hear: NodeId | None = OWN) -> list[Action]:
    actions: list[Action] = []
    for _ in range(count):
        if hear is not None:
            core.step(Heard(hear))
        actions += core.step(Tick())
    return actions


def test_a_closed_session_is_disconnected_and_confirmed_at_once(core: Liveness) -> None:
    core.step(Closed(A))
    assert core.connections[A] is Connection.DISCONNECTED
    assert tick(core, 1) == [Confirm(A)]


def test_a_silent_session_is_confirmed_after_the_silence(core: Liveness) -> None:
    assert tick(core, 9) == []
    assert tick(core, 1) == [Confirm(A)]
    assert core.connections[A] is Connection.DISCONNECTED


def test_down_needs_a_failed_confirmation_and_the_silence(core: Liveness) -> None:
    core.step(Closed(A))
    assert tick(core, 1) == [Confirm(A)]
    core.step(Confirmed(A, reached=False))
    assert SetNodeState(A, NodeState.DOWN) not in tick(core, 14)
    assert tick(core, 1)[:1] == [SetNodeState(A, NodeState.DOWN)]


def test_a_node_that_anybody_reaches_is_never_down(core: Liveness) -> None:
    core.step(Closed(A))
    for _ in range(100):
        for action in tick(core, 1):
            assert action == Confirm(A)
            core.step(Confirmed(A, reached=True))


def test_a_session_that_opens_again_ends_it_all(core: Liveness) -> None:
    core.step(Closed(A))
    tick(core, 1)
    core.step(Confirmed(A, reached=False))
    tick(core, 10)
    assert core.step(Opened(A)) == []
    core.step(Heard(A))
    assert tick(core, 9) == []
    assert core.connections[A] is Connection.READY


def test_a_node_that_was_down_is_ready_when_its_session_opens(core: Liveness) -> None:
    core.step(Listed(((OWN, NodeState.READY), (A, NodeState.DOWN))))
    core.step(Closed(A))
    assert tick(core, 50) == []
    assert core.step(Opened(A)) == [SetNodeState(A, NodeState.READY)]


def test_a_node_that_is_listed_after_its_session_opened_becomes_ready(core: Liveness) -> None:
    late = NodeId("late")
    core.step(Opened(late))
    listed = ((OWN, NodeState.READY), (A, NodeState.READY), (late, NodeState.DOWN))
    core.step(Listed(listed))
    assert tick(core, 2) == [SetNodeState(late, NodeState.READY)] * 2, "until it is written"
    core.step(Listed((*listed[:2], (late, NodeState.READY))))
    assert tick(core, 1) == []


def test_the_own_node_is_never_down(core: Liveness) -> None:
    core.step(Closed(OWN))
    core.step(Confirmed(OWN, reached=False))
    assert [a for a in tick(core, 60, hear=A) if isinstance(a, SetNodeState)] == []


def test_a_leader_that_slept_accuses_nobody(core: Liveness) -> None:
    tick(core, 9)
    assert core.step(Tick(missed=400)) == []
    assert tick(core, 9) == []


def test_gossips_suspicion_brings_the_confirmation_forward(core: Liveness) -> None:
    assert core.step(Suspected(A)) == [Confirm(A)]
    assert core.step(Suspected(A)) == [], "one at a time"


def test_a_planned_absence_is_not_asked_about(core: Liveness) -> None:
    core.step(Closed(A, planned_ticks=40))
    assert tick(core, 39) == []
    assert tick(core, 1) == [Confirm(A)]


def test_many_that_leave_together_make_the_leader_doubt_itself() -> None:
    others = [NodeId(f"n{number}") for number in range(6)]
    core = start(*others)
    for node in others[:4]:
        core.step(Closed(node))
    first = tick(core, 1)
    assert HeldBack(4) in first
    for node in others[:4]:
        core.step(Confirmed(node, reached=False))
    for _ in range(MASS_HOLD - 2):
        for node in (OWN, *others[4:]):
            core.step(Heard(node))
        assert not [a for a in core.step(Tick()) if isinstance(a, SetNodeState)]
    assert len([a for a in tick(core, 2) if isinstance(a, SetNodeState)]) == 4


def test_a_new_leader_gives_unknown_nodes_time_but_not_for_ever() -> None:
    core = Liveness(OWN, CONFIG)
    core.step(Listed(((OWN, NodeState.READY), (A, NodeState.READY))))
    assert core.connections[A] is Connection.UNKNOWN
    core.step(Opened(OWN))
    assert tick(core, 9) == []
    assert tick(core, 1) == [Confirm(A)]
    core.step(Confirmed(A, reached=False))
    assert tick(core, 6)[-1] == SetNodeState(A, NodeState.DOWN)


def test_a_new_leader_does_not_take_unopened_sessions_for_a_mass_disconnect() -> None:
    others = [NodeId(f"n{number}") for number in range(6)]
    core = Liveness(OWN, CONFIG)
    core.step(Listed(tuple((node, NodeState.READY) for node in (OWN, *others))))
    core.step(Opened(OWN))
    actions = tick(core, 12)
    assert not [action for action in actions if isinstance(action, HeldBack)]
    for node in others[1:]:
        core.step(Opened(node))
    core.step(Confirmed(others[0], reached=False))
    assert SetNodeState(others[0], NodeState.DOWN) in tick(core, 8)
