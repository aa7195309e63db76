"""What a recovery from a lost quorum changes in the replicated state.

Pure. The survivor's log is the cluster's from here on, under another epoch. The other managers'
logs may hold another history, so their servers are never taken in again: those nodes are workers
now, keep their tasks, throw their logs away when they hear of it, and may be promoted anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from swarmlet.model import Cluster, Node, NodeId, Role
from swarmlet.state import ClusterState, Draft

#: Of these the latest are kept: seven voters and some learners for each of several recoveries.
RETIRED_MAX = 64
PAST_EPOCHS_MAX = 16


def is_reborn(cluster: Cluster, epoch: int) -> bool:
    """Whether the state has taken note of the recovery that began *epoch*; 0 is none."""
    return not epoch or epoch == cluster.epoch or epoch in cluster.past_epochs


def rebirth(state: ClusterState, *, own: NodeId, server: int, epoch: int, at: float) -> Draft:
    """Return what makes *own*, as Raft's *server*, the only manager, and begins *epoch*."""
    cluster = state.cluster
    assert cluster is not None
    draft = Draft(state)
    known = {node.facts.raft_server for node in state.nodes.values()}
    retired = [*cluster.retired_servers, *sorted(known - {0, server, *cluster.retired_servers})]
    draft.put(
        dataclasses.replace(
            cluster,
            epoch=epoch,
            past_epochs=(*cluster.past_epochs, cluster.epoch)[-PAST_EPOCHS_MAX:],
            retired_servers=tuple(retired[-RETIRED_MAX:]),
            updated_at=at,
        )
    )
    for node in state.nodes.values():
        if node.id == own:
            role, number = Role.MANAGER, server
        elif Role.MANAGER in (node.role, node.spec.role):
            role, number = Role.WORKER, 0
        else:
            continue
        draft.put(
            dataclasses.replace(
                node,
                spec=dataclasses.replace(node.spec, role=role),
                facts=dataclasses.replace(node.facts, raft_server=number),
                role=role,
                updated_at=at,
            )
        )
    return draft


def without_retired(
    nodes: Mapping[NodeId, Node], retired: Collection[int]
) -> Mapping[NodeId, Node]:
    """Return *nodes*; those that still speak of a retired server have none."""
    if not retired:
        return nodes
    return {
        id_: dataclasses.replace(node, facts=dataclasses.replace(node.facts, raft_server=0))
        if node.facts.raft_server in retired
        else node
        for id_, node in nodes.items()
    }
