"""Who votes: from the managers that there should be to one change of Raft's configuration.

Pure. A manager joins as a learner and votes once it has caught up; the number of voters is odd
wherever it can be, for a fourth voter only adds a way to lose the quorum. The others stay
learners: hot standbys.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from swarmlet.model import Node, NodeId, NodeState, Role

VOTERS_MAX = 7


@dataclass(frozen=True, slots=True)
class AddLearner:
    node: NodeId
    server: int


@dataclass(frozen=True, slots=True)
class Promote:
    node: NodeId
    server: int


@dataclass(frozen=True, slots=True)
class Demote:
    """One voter too many: *server* stays as a learner."""

    server: int


@dataclass(frozen=True, slots=True)
class Remove:
    """*server* is no manager any more, or a log that its node has lost."""

    server: int


@dataclass(frozen=True, slots=True)
class SetRole:
    """Say in the store what the configuration says."""

    node: NodeId
    role: Role


MembershipChange: TypeAlias = AddLearner | Promote | Demote | Remove | SetRole


def voters_wanted(managers: int) -> int:
    """The largest odd number that the managers allow, and seven at most."""
    return min(VOTERS_MAX, managers if managers % 2 else max(1, managers - 1))


def next_change(
    nodes: Mapping[NodeId, Node],
    voters: Collection[int],
    learners: Collection[int],
    *,
    own_server: int,
) -> MembershipChange | None:
    """Return the one thing to do next, or None if all is as it should be."""
    managers = {
        node.facts.raft_server: node
        for _, node in sorted(nodes.items())
        if node.spec.role is Role.MANAGER and node.facts.raft_server
    }
    members = {*voters, *learners}
    for node in nodes.values():
        role = Role.MANAGER if node.facts.raft_server in members else Role.WORKER
        if role is not node.role and (role is Role.MANAGER or node.spec.role is Role.WORKER):
            return SetRole(node.id, role)
    for server, node in managers.items():
        if server not in members and node.state is NodeState.READY:
            return AddLearner(node.id, server)
    wanted = voters_wanted(len(managers))
    ready = (s for s in sorted(learners) if s in managers and managers[s].state is NodeState.READY)
    standby = next(ready, None)
    alive = {node.facts.raft_server for node in nodes.values() if node.state is NodeState.READY}
    leaving = sorted(members - managers.keys())
    # This leader goes last: its removal hands leadership over.
    for server in sorted(leaving, key=lambda server: server == own_server):
        rest = len({*voters} - {server})
        # A voter that answers is replaced first. One that does not only makes the quorum larger.
        first = server in voters and (server in alive or not rest)
        if first and rest < wanted and standby is not None:
            return Promote(managers[standby].id, standby)
        if rest:
            return Remove(server)
    if len(voters) < wanted and standby is not None:
        return Promote(managers[standby].id, standby)
    if len(voters) > wanted:
        return Demote(max(server for server in voters if server != own_server))
    return None
