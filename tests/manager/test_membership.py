"""Who votes: one safe step after the other, and an odd number of voters at rest."""

from __future__ import annotations

import dataclasses

import pytest

from swarmlet.manager.membership import (
    AddLearner,
    Demote,
    MembershipChange,
    Promote,
    Remove,
    SetRole,
    next_change,
    voters_wanted,
)
from swarmlet.model import Node, NodeFacts, NodeId, NodeSpec, NodeState, Role

OWN = 1


def manager(server: int, **fields: object) -> Node:
    node = Node(
        id=NodeId(f"n{server}"),
        spec=NodeSpec(role=Role.MANAGER),
        facts=NodeFacts(raft_server=server),
        role=Role.MANAGER,
    )
    return dataclasses.replace(node, **fields)  # type: ignore[arg-type]


def decide(
    nodes: list[Node],
    voters: set[int],
    learners: set[int] = frozenset(),  # type: ignore[assignment]
) -> MembershipChange | None:
    return next_change({n.id: n for n in nodes}, voters, learners, own_server=OWN)


@pytest.mark.parametrize(
    ("managers", "voters"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (6, 5), (7, 7), (9, 7)]
)
def test_the_number_of_voters_is_odd_and_seven_at_most(managers: int, voters: int) -> None:
    assert voters_wanted(managers) == voters


def test_a_manager_joins_as_a_learner_and_then_votes() -> None:
    nodes = [manager(1), manager(2, role=Role.WORKER), manager(3)]
    assert decide(nodes, {1}, {3}) == AddLearner(NodeId("n2"), 2)
    assert decide(nodes, {1}, {2, 3}) == SetRole(NodeId("n2"), Role.MANAGER)
    nodes = [manager(1), manager(2), manager(3)]
    assert decide(nodes, {1}, {2, 3}) == Promote(NodeId("n2"), 2)
    assert decide(nodes, {1, 2}, {3}) == Promote(NodeId("n3"), 3)
    assert decide(nodes, {1, 2, 3}) is None


def test_a_second_manager_is_a_standby_without_a_vote() -> None:
    assert decide([manager(1), manager(2)], {1}, {2}) is None
    assert decide([manager(1), manager(2)], {1, 2}) == Demote(2)


def test_a_manager_that_is_down_is_not_promoted() -> None:
    nodes = [manager(1), manager(2, state=NodeState.DOWN), manager(3)]
    assert decide(nodes, {1}, {2, 3}) == Promote(NodeId("n3"), 3)


def test_a_demoted_manager_is_removed_and_the_leader_goes_last() -> None:
    worker = NodeSpec(role=Role.WORKER)
    nodes = [manager(1, spec=worker), manager(2, spec=worker), manager(3)]
    assert decide(nodes, {1, 2, 3}) == Remove(2)
    assert decide([nodes[0], nodes[2]], {1, 3}) == Remove(1)
    gone = manager(2, spec=worker)
    assert decide([manager(1), gone], {1}) == SetRole(NodeId("n2"), Role.WORKER)


def test_a_standby_votes_before_a_voter_is_removed() -> None:
    leaving = manager(1, spec=NodeSpec(role=Role.WORKER))
    assert decide([leaving, manager(2)], {1}, {2}) == Promote(NodeId("n2"), 2)
    assert decide([leaving, manager(2)], {1, 2}) == Remove(1)
    nodes = [manager(1), manager(2), manager(3, spec=NodeSpec(role=Role.WORKER)), manager(4)]
    assert decide(nodes, {1, 2, 3}, {4}) == Promote(NodeId("n4"), 4)
    assert decide(nodes, {1, 2, 3, 4}) == Remove(3)
    # Nobody can take the vote over: it is kept until somebody can.
    assert decide([leaving, manager(2, state=NodeState.DOWN)], {1}, {2}) is None


def test_a_log_that_a_node_has_lost_is_replaced_by_its_new_one() -> None:
    reborn = manager(9, id=NodeId("n2"))
    assert decide([manager(1), reborn, manager(3)], {1, 2, 3}) == AddLearner(NodeId("n2"), 9)
    assert decide([manager(1), reborn, manager(3)], {1, 2, 3}, {9}) == Remove(2)


def test_the_last_server_is_never_removed() -> None:
    assert decide([manager(1, spec=NodeSpec(role=Role.WORKER))], {1}) is None
