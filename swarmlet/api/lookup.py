"""Finding what a user names: by whole id, by name, by the beginning of the id; in this order.

Pure. Raises NotFound or Ambiguous.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from swarmlet.manager.errors import Ambiguous, NotFound
from swarmlet.model import Network, Node, Service, Task
from swarmlet.state import ClusterState

R = TypeVar("R")


def find_service(state: ClusterState, reference: str) -> Service:
    return _find(state.services, "service", reference, lambda service: [service.spec.name])


def find_network(state: ClusterState, reference: str) -> Network:
    return _find(state.networks, "network", reference, lambda network: [network.spec.name])


def find_node(state: ClusterState, reference: str) -> Node:
    return _find(state.nodes, "node", reference, lambda node: [node.facts.hostname, node.spec.name])


def find_task(state: ClusterState, reference: str) -> Task:
    return _find(state.tasks, "task", reference, lambda task: [])


def _find(
    rows: Mapping[Any, R], kind: str, reference: str, names_of: Callable[[R], list[str]]
) -> R:
    if not reference:
        raise NotFound(kind, '""')
    if (row := rows.get(reference)) is not None:
        return row
    named = [row for row in rows.values() if reference in names_of(row)]
    found = named or [row for id_, row in rows.items() if id_.startswith(reference)]
    if not found:
        raise NotFound(kind, reference)
    if len(found) > 1:
        raise Ambiguous(kind, reference, len(found))
    return found[0]
