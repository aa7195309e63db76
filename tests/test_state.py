"""The replicated state: guards, the one apply, snapshots."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.codec import BadMessage, pack, unpack_untrusted
from swarmlet.model import (
    ContainerTemplate,
    Network,
    NetworkId,
    NetworkSpec,
    Node,
    NodeId,
    NodeSpec,
    Role,
    Service,
    ServiceId,
    ServiceSpec,
    Table,
    Task,
    TaskId,
    TaskTemplate,
)
from swarmlet.state import (
    Applied,
    Change,
    ClusterState,
    Conflict,
    Draft,
    Put,
    Verdict,
    apply,
    decode_snapshot_untrusted,
    encode_snapshot,
)


def node(name: str, **fields: object) -> Node:
    return dataclasses.replace(Node(id=NodeId(name), spec=NodeSpec(role=Role.WORKER)), **fields)  # type: ignore[arg-type]


def perform(state: ClusterState, change: Change, term: int = 1) -> tuple[ClusterState, Verdict]:
    return apply(state, change, index=state.index + 1, entry_term=term)


def put(state: ClusterState, *rows: Node) -> ClusterState:
    draft = Draft(state)
    for row in rows:
        draft.put(row)
    state, verdict = perform(state, draft.change())
    assert isinstance(verdict, Applied)
    return state


def test_a_put_object_carries_the_index_as_its_version() -> None:
    state = put(ClusterState(index=41), node("a"))
    assert state.nodes[NodeId("a")].version == 42


def test_the_second_of_two_writers_who_saw_the_same_version_conflicts() -> None:
    state = put(ClusterState(), node("a"))
    first, second = Draft(state), Draft(state)
    first.put(node("a", created_at=1.0))
    second.put(node("a", created_at=2.0))
    state, verdict = perform(state, first.change())
    assert verdict == Applied(2)
    state, verdict = perform(state, second.change())
    assert verdict == Conflict("node a is at version 2, not 1")
    assert state.nodes[NodeId("a")].created_at == 1.0
    assert state.index == 3


def test_of_a_conflicting_change_nothing_is_done() -> None:
    state = put(ClusterState(), node("a"))
    draft = Draft(state)
    draft.put(node("b"))
    draft.require(node("a"))
    state = put(state, node("a", created_at=5.0))
    state, verdict = perform(state, draft.change())
    assert isinstance(verdict, Conflict)
    assert NodeId("b") not in state.nodes


def test_creating_what_exists_conflicts() -> None:
    draft = Draft(ClusterState())
    draft.put(node("a"))
    state = put(ClusterState(), node("a"))
    _, verdict = perform(state, draft.change())
    assert isinstance(verdict, Conflict)


def test_a_deleted_object_is_gone_and_may_come_again() -> None:
    state = put(ClusterState(), node("a"))
    draft = Draft(state)
    draft.delete(state.nodes[NodeId("a")])
    state, _ = perform(state, draft.change())
    assert state.nodes == {}
    assert put(state, node("a")).nodes[NodeId("a")].version == 3


def test_late_work_of_an_earlier_leadership_does_nothing() -> None:
    draft = Draft(ClusterState())
    draft.put(node("a"))
    state, verdict = perform(ClusterState(), draft.change(term=3), term=4)
    assert verdict == Conflict("computed in term 3, not 4")
    assert state.nodes == {}


def test_a_repeated_request_is_answered_as_done_and_done_once() -> None:
    draft = Draft(ClusterState())
    draft.put(node("a"))
    change = draft.change(request="r1", at=9.0)
    state, first = perform(ClusterState(), change)
    again, second = perform(state, change)
    assert first == second == Applied(1)
    assert again.nodes == state.nodes
    assert again.rows(Table.REQUEST)["r1"].created_at == 9.0


def test_an_unreadable_record_is_refused_alike_everywhere() -> None:
    _, verdict = perform(ClusterState(), Change(puts=(Put(Table.NODE, "a", b"\xc1"),)))
    assert isinstance(verdict, Conflict)
    _, verdict = perform(ClusterState(), Change(puts=(Put(Table.NODE, "a", pack(node("b"))),)))
    assert isinstance(verdict, Conflict)


def test_apply_leaves_the_state_it_was_given_as_it_was() -> None:
    before = put(ClusterState(), node("a"))
    put(before, node("b"))
    assert list(before.nodes) == ["a"]


def test_a_snapshot_holds_the_whole_state() -> None:
    state = put(ClusterState(), node("a"), node("b"))
    draft = Draft(state)
    template = TaskTemplate(container=ContainerTemplate(image="busybox"))
    draft.put(Service(id=ServiceId("s"), spec=ServiceSpec(name="web", task=template)))
    draft.put(Task(id=TaskId("t"), service=ServiceId("s"), spec_version=1))
    network = NetworkSpec(name="shop")
    draft.put(Network(id=NetworkId("n"), spec=network, subnet="10.0.0.0/24", gateway="", vni=9))
    state, _ = perform(state, draft.change())
    assert decode_snapshot_untrusted(encode_snapshot(state)) == state
    assert state.template_of(state.tasks[TaskId("t")]) == template


@given(st.binary(max_size=200))
def test_a_hostile_snapshot_raises_only_bad_message(data: bytes) -> None:
    with pytest.raises(BadMessage):
        decode_snapshot_untrusted(data)


names = st.sampled_from("abc")


@given(st.lists(st.tuples(names, st.booleans(), st.integers(0, 3)), max_size=30))
def test_the_same_log_gives_the_same_state_whoever_decodes_it(
    steps: list[tuple[str, bool, int]],
) -> None:
    """Writers with old views included: what conflicts on one manager conflicts on all."""
    one = other = ClusterState()
    views = [one]
    for name, delete, age in steps:
        view = views[max(0, len(views) - 1 - age)]
        draft = Draft(view)
        if delete and (row := view.nodes.get(NodeId(name))):
            draft.delete(row)
        else:
            draft.put(node(name))
        change = draft.change()
        one, verdict = perform(one, change)
        other, same = perform(other, unpack_untrusted(Change, pack(change)))
        assert verdict == same
        views.append(one)
    assert one == other
