"""What a recovery from a lost quorum makes of the replicated state."""

from __future__ import annotations

from swarmlet.manager.membership import AddLearner, next_change
from swarmlet.manager.rebirth import (
    PAST_EPOCHS_MAX,
    RETIRED_MAX,
    is_reborn,
    rebirth,
    without_retired,
)
from swarmlet.model import (
    Cluster,
    ClusterId,
    Node,
    NodeFacts,
    NodeId,
    NodeSpec,
    NodeState,
    Role,
)
from swarmlet.state import Applied, ClusterState, Draft, apply

A, B, C, W = (NodeId(name) for name in "abcw")


def node(id_: NodeId, role: Role, server: int) -> Node:
    return Node(
        id=id_,
        spec=NodeSpec(role=role),
        facts=NodeFacts(raft_server=server),
        role=role,
        state=NodeState.READY,
    )


def committed(state: ClusterState, draft: Draft) -> ClusterState:
    change = draft.change(term=1, at=1.0)
    after, verdict = apply(state, change, index=state.index + 1, entry_term=1)
    assert isinstance(verdict, Applied), verdict
    return after


def three_managers() -> ClusterState:
    state = ClusterState()
    draft = Draft(state)
    draft.put(Cluster(id=ClusterId("c"), epoch=7))
    for id_, server in ((A, 1), (B, 2), (C, 3)):
        draft.put(node(id_, Role.MANAGER, server))
    draft.put(node(W, Role.WORKER, 0))
    return committed(state, draft)


def test_the_survivor_is_the_only_manager_under_another_epoch() -> None:
    state = three_managers()
    state = committed(state, rebirth(state, own=A, server=11, epoch=8, at=1.0))
    cluster = state.cluster
    assert cluster is not None
    assert (cluster.epoch, cluster.past_epochs) == (8, (7,))
    roles = {id_: (row.role, row.spec.role) for id_, row in state.nodes.items()}
    assert roles[A] == (Role.MANAGER, Role.MANAGER)
    assert {roles[id_] for id_ in (B, C, W)} == {(Role.WORKER, Role.WORKER)}
    assert state.nodes[A].facts.raft_server == 11


def test_it_is_noted_once() -> None:
    state = three_managers()
    assert state.cluster is not None
    assert is_reborn(state.cluster, 0), "a server that was never recovered"
    assert not is_reborn(state.cluster, 8)
    state = committed(state, rebirth(state, own=A, server=11, epoch=8, at=1.0))
    assert state.cluster is not None
    assert is_reborn(state.cluster, 8)
    state = committed(state, rebirth(state, own=A, server=12, epoch=9, at=1.0))
    assert state.cluster is not None
    assert is_reborn(state.cluster, 8), "a recovery before the last one"


def test_a_server_that_was_left_behind_is_never_taken_in_again() -> None:
    """Its log may hold another history, in terms that this cluster has as well."""
    state = three_managers()
    state = committed(state, rebirth(state, own=A, server=11, epoch=8, at=1.0))
    draft = Draft(state)
    draft.put(node(B, Role.MANAGER, 2))  # promoted before its daemon has thrown its log away
    draft.put(node(C, Role.MANAGER, 33))  # promoted with a new log
    state = committed(state, draft)
    cluster = state.cluster
    assert cluster is not None
    assert set(cluster.retired_servers) == {1, 2, 3}
    assert isinstance(next_change(state.nodes, [11], [], own_server=11), AddLearner)
    nodes = without_retired(state.nodes, cluster.retired_servers)
    assert next_change(nodes, [11], [], own_server=11) == AddLearner(C, 33)


def test_what_is_remembered_of_recoveries_is_bounded() -> None:
    state = three_managers()
    for number in range(2 * RETIRED_MAX):
        state = committed(
            state, rebirth(state, own=A, server=100 + number, epoch=100 + number, at=1.0)
        )
    cluster = state.cluster
    assert cluster is not None
    assert len(cluster.retired_servers) == RETIRED_MAX
    assert len(cluster.past_epochs) == PAST_EPOCHS_MAX
    assert 100 + 2 * RETIRED_MAX - 2 in cluster.retired_servers, "the latest are kept"
