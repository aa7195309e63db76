"""What the kernel has to forget when the cluster changes. Level 1."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from overlay.retirement import survivors
from overlay.topology import Protocol, PublishedPort, Topology, VirtualIp
from tests.overlay.clusters import INGRESS, SUBNETS, VTEPS, address_on, cluster

VIP = address_on(INGRESS, 100)
#: On our host, on the second, on the third.
HERE, SECOND, THIRD = (address_on(INGRESS, number) for number in (10, 11, 12))
NOBODY = IPv4Address("127.0.0.11")


def with_backends(*backends: IPv4Address, topology: Topology | None = None) -> Topology:
    vip = VirtualIp(network=INGRESS, address=VIP, backends=backends)
    return replace(topology or cluster(), virtual_ips=(vip,))


@pytest.mark.parametrize(
    "new",
    [
        with_backends(HERE, SECOND),
        with_backends(HERE, SECOND, THIRD),  # one more takes nothing from anybody
    ],
)
def test_nothing_is_looked_for_while_nobody_leaves(new: Topology) -> None:
    assert survivors(with_backends(HERE, SECOND), new) is None


def test_datagrams_leave_a_backend_that_leaves_and_connections_stay() -> None:
    keep = survivors(with_backends(HERE, SECOND), with_backends(HERE))
    assert keep is not None
    assert keep.is_over(asked=VIP, backend=SECOND, is_datagram=True)
    assert not keep.is_over(asked=VIP, backend=SECOND, is_datagram=False)
    assert not keep.is_over(asked=VIP, backend=HERE, is_datagram=True)
    assert keep.concerned == {SUBNETS[INGRESS]}


def test_a_host_thought_dead_keeps_its_connections() -> None:
    """It may only be slow, and its tasks are still there if it is not dead."""
    old = with_backends(HERE, SECOND)
    keep = survivors(old, replace(old, masked=frozenset({VTEPS[1]})))
    assert keep is not None
    assert keep.is_over(asked=VIP, backend=SECOND, is_datagram=True)
    assert not keep.is_over(asked=VIP, backend=SECOND, is_datagram=False)


def test_no_flow_survives_its_endpoint() -> None:
    old = with_backends(HERE, SECOND)
    gone = tuple(e for e in old.endpoints if e.address != SECOND)
    keep = survivors(old, with_backends(HERE, topology=replace(cluster(), endpoints=gone)))
    assert keep is not None
    assert keep.is_over(asked=VIP, backend=SECOND, is_datagram=False)
    assert keep.moved == {INGRESS: {SECOND}}


def test_an_address_with_another_mac_has_moved() -> None:
    old = with_backends(HERE)
    other = tuple(
        replace(e, mac="02:00:00:00:00:99") if e.address == THIRD else e for e in old.endpoints
    )
    keep = survivors(old, replace(old, endpoints=other))
    assert keep is not None
    assert keep.moved == {INGRESS: {THIRD}}
    assert keep.concerned == frozenset()


def test_who_was_refused_is_let_in_when_somebody_is_there() -> None:
    keep = survivors(with_backends(), with_backends(HERE))
    assert keep is not None
    assert keep.is_over(asked=VIP, backend=NOBODY, is_datagram=True)
    assert not keep.is_over(asked=NOBODY, backend=NOBODY, is_datagram=True), "the resolver's own"


def test_a_port_that_opens_concerns_the_host_s_own_clients() -> None:
    port = PublishedPort(protocol=Protocol.UDP, port=53, target_port=53, backends=())
    closed = replace(with_backends(HERE), published_ports=(port,))
    opened = replace(closed, published_ports=(replace(port, backends=(HERE,)),))
    keep = survivors(closed, opened)
    assert keep is not None
    assert closed.gateway in keep.concerned


def test_flows_of_others_are_never_over() -> None:
    keep = survivors(None, with_backends(HERE))
    assert keep is not None
    stranger = IPv4Address("172.17.0.2")
    assert not keep.is_over(asked=IPv4Address("10.66.0.1"), backend=stranger, is_datagram=True)


def test_a_daemon_that_starts_ends_whatever_is_not_wanted() -> None:
    keep = survivors(None, with_backends(HERE))
    assert keep is not None
    assert keep.is_over(asked=VIP, backend=SECOND, is_datagram=True)
    assert not keep.is_over(asked=VIP, backend=SECOND, is_datagram=False)
    assert keep.is_over(asked=VIP, backend=address_on(INGRESS, 77), is_datagram=False)
