"""Plans: from any kernel to the wanted one, whatever happens on the way. Level 1."""

from __future__ import annotations

from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from overlay.plan import Create, Delete, plan
from overlay.resources import (
    HOST,
    Bridge,
    FdbEntry,
    LinkSettings,
    Namespace,
    Resource,
    Veth,
    Vxlan,
)
from overlay.topology import Topology
from tests.overlay import model
from tests.overlay.clusters import FEW, topologies

VTEP = IPv4Address("10.66.0.1")


@FEW
@given(topologies())
def test_nothing_is_planned_when_all_is_as_wanted(topology: Topology) -> None:
    assert plan(model.wanted(topology), model.wanted(topology)) == []


@FEW
@given(topologies())
def test_no_two_wanted_resources_occupy_the_same_place(topology: Topology) -> None:
    wanted = model.wanted(topology)
    assert len({resource.key for resource in wanted}) == len(wanted)


@FEW
@given(topologies(), model.kernels())
def test_every_kernel_becomes_the_wanted_one(
    topology: Topology, kernel: frozenset[Resource]
) -> None:
    assert model.settled(_heal(topology, kernel), model.wanted(topology))


@FEW
@given(topologies(), model.kernels(), st.data())
def test_a_plan_that_was_interrupted_is_no_obstacle(
    topology: Topology, kernel: frozenset[Resource], data: st.DataObject
) -> None:
    operations = plan(model.wanted(topology), kernel)
    stop = data.draw(st.integers(0, len(operations)))
    halfway = model.apply(operations[:stop], kernel)
    assert model.settled(_heal(topology, halfway), model.wanted(topology))


@FEW
@given(topologies(), model.kernels())
def test_what_stands_on_something_comes_after_it(
    topology: Topology, kernel: frozenset[Resource]
) -> None:
    made = [
        operation.resource
        for operation in plan(model.wanted(topology), kernel)
        if isinstance(operation, Create)
    ]
    links = {
        (link.namespace, link.name): place
        for place, link in enumerate(made)
        if isinstance(link, (Bridge, Vxlan, Veth))
    }
    spaces = {r.namespace: place for place, r in enumerate(made) if isinstance(r, Namespace)}
    for place, resource in enumerate(made):
        assert spaces.get(resource.namespace, -1) <= place
        if isinstance(resource, LinkSettings) and resource.master:
            assert links.get((resource.namespace, resource.master), -1) < place
        if link := getattr(resource, "link", ""):
            assert links.get((resource.namespace, link), -1) < place


def test_a_changed_entry_is_replaced_in_one_step() -> None:
    """No packet finds the table without the entry."""
    old = FdbEntry("overlay@n", "vx0", "02:00:00:00:00:01", IPv4Address("10.66.0.2"))
    new = FdbEntry("overlay@n", "vx0", "02:00:00:00:00:01", IPv4Address("10.66.0.3"))
    assert plan(frozenset({new}), frozenset({old})) == [Create(new)]


def test_a_second_remote_of_a_mac_is_deleted() -> None:
    right = FdbEntry("overlay@n", "vx0", "02:00:00:00:00:01", IPv4Address("10.66.0.2"))
    wrong = FdbEntry("overlay@n", "vx0", "02:00:00:00:00:01", IPv4Address("10.66.0.3"))
    assert plan(frozenset({right}), frozenset({right, wrong})) == [Delete(wrong)]


def test_another_vni_is_another_device() -> None:
    old = Vxlan("overlay@n", "vx0", 1, VTEP, 4789)
    new = Vxlan("overlay@n", "vx0", 2, VTEP, 4789)
    assert plan(frozenset({new}), frozenset({old})) == [Delete(old), Create(new)]


def test_what_goes_with_its_namespace_is_not_deleted_by_itself() -> None:
    """Links are: a VNI is free for its next user only when its device is gone."""
    space, device = Namespace("overlay@n"), Vxlan("overlay@n", "vx0", 1, VTEP, 4789)
    entry = FdbEntry("overlay@n", "vx0", "02:00:00:00:00:01", VTEP)
    assert plan(frozenset(), frozenset({space, device, entry})) == [Delete(device), Delete(space)]


def test_a_file_that_keeps_no_namespace_is_removed_first() -> None:
    leftover, space = Namespace("task", mounted=False), Namespace("task")
    assert plan(frozenset({space}), frozenset({leftover})) == [Delete(leftover), Create(space)]


def test_settings_that_nobody_wants_are_left_alone() -> None:
    settings = LinkSettings(namespace=HOST, name="eth0", mac="02:00:00:00:00:01", mtu_bytes=1500)
    assert plan(frozenset(), frozenset({settings})) == []


def _heal(topology: Topology, kernel: frozenset[Resource]) -> frozenset[Resource]:
    """Look and apply twice: the second look finds what went with a link made anew."""
    for _ in range(2):
        kernel = model.apply(plan(model.wanted(topology), kernel), kernel)
    return kernel
