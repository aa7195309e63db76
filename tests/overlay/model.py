"""A kernel as a set: what operations do to it, with what goes along when something is deleted."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import strategies as st

from overlay.desired import desired
from overlay.naming import Naming
from overlay.plan import Create, Delete, Operation
from overlay.resources import (
    HOST,
    NEVER_DELETED,
    Bridge,
    LinkSettings,
    Namespace,
    PortSettings,
    Resource,
    Veth,
    Vxlan,
)
from overlay.topology import Topology
from tests.overlay import clusters

LINKS = (Bridge, Vxlan, Veth)
NAMES = Naming("swl")


def apply(operations: Iterable[Operation], kernel: frozenset[Resource]) -> frozenset[Resource]:
    state = set(kernel)
    for operation in operations:
        resource = operation.resource
        match operation:
            case Create():
                if _Ground(state).carries(resource):
                    state = {other for other in state if other.key != resource.key} | {resource}
            case Delete():
                assert not isinstance(resource, NEVER_DELETED)
                state.discard(resource)
                state = _standing(state)
    return frozenset(state)


def settled(kernel: frozenset[Resource], wanted: frozenset[Resource]) -> bool:
    """Whether a read of *kernel* gives *wanted*: settings are read where they are wanted."""
    keys = {resource.key for resource in wanted}
    return wanted == {
        resource
        for resource in kernel
        if not isinstance(resource, NEVER_DELETED) or resource.key in keys
    }


def _standing(state: set[Resource]) -> set[Resource]:
    """Return *state* without what has nothing to stand on."""
    while True:
        ground = _Ground(state)
        left = {resource for resource in state if ground.carries(resource)}
        if left == state:
            return state
        state = left


class _Ground:
    """The namespaces and the ends of links that other things stand on."""

    def __init__(self, state: set[Resource]) -> None:
        self.spaces = {HOST}
        self.spaces |= {r.namespace for r in state if isinstance(r, Namespace) and r.mounted}
        self.ends = {(space, "lo") for space in self.spaces}
        for link in state:
            if isinstance(link, LINKS):
                self.ends.add((link.namespace, link.name))
            if isinstance(link, Veth):
                self.ends.add((link.peer_namespace, link.peer_name))

    def carries(self, resource: Resource) -> bool:
        if isinstance(resource, Namespace):
            return True
        if isinstance(resource, Veth) and resource.peer_namespace not in self.spaces:
            return False
        settings = isinstance(resource, (LinkSettings, PortSettings))
        link = resource.name if settings else getattr(resource, "link", "")
        return resource.namespace in self.spaces and (
            not link or (resource.namespace, link) in self.ends
        )


def wanted(topology: Topology) -> frozenset[Resource]:
    return desired(topology, NAMES, 1500)


@st.composite
def kernels(draw: st.DrawFn) -> frozenset[Resource]:
    """A kernel that some cluster wanted once, of which pieces are missing."""
    whole = sorted(wanted(draw(clusters.topologies())), key=repr)
    missing = draw(st.sets(st.integers(0, len(whole) - 1), max_size=10))
    return frozenset(_standing({r for place, r in enumerate(whole) if place not in missing}))
