"""Allocator: nothing is given twice, nothing is lost."""

from __future__ import annotations

import dataclasses

import pytest

from swarmlet.manager.allocator import PORT_CHOICE, Allocator, Exhausted
from swarmlet.model import (
    EndpointMode,
    EndpointSpec,
    NetworkSpec,
    PortConfig,
    ServiceSpec,
)
from swarmlet.model.validation import SpecError
from tests.manager.world import World, addresses, on_network, service_spec


def publish(spec: ServiceSpec, *ports: PortConfig) -> ServiceSpec:
    return dataclasses.replace(spec, endpoint=EndpointSpec(ports=ports))


def test_tasks_vips_and_gateway_have_addresses_of_their_own() -> None:
    world = World(3)
    shop = world.add_network("shop")
    web = world.add_service(on_network(service_spec(replicas=10), shop))
    world.tick(5)
    vip = world.state.services[web].virtual_addresses[0].address
    given = [address for _, address in addresses(world.tasks(web))]
    assert len({*given, vip, shop.gateway}) == 12
    macs = {e.mac for task in world.tasks(web) for e in task.endpoints}
    assert len(macs) == 10
    assert all(int(mac[:2], 16) & 0b11 == 0b10 for mac in macs), "local and unicast"


def test_an_address_just_left_is_the_last_to_be_given_again() -> None:
    world = World(1)
    shop = world.add_network("shop")
    web = world.add_service(on_network(service_spec(replicas=1), shop))
    seen: list[str] = []
    for _ in range(30):
        world.tick(400)
        (task,) = world.running(web)
        seen.append(task.endpoints[0].address)
        world.fail(task.id)
    assert len(set(seen)) == 30


def test_a_full_network_says_so_and_its_tasks_wait() -> None:
    world = World(1)
    tiny = world.add_network("tiny", subnet="10.9.0.0/29")  # gateway, VIP: four are left
    web = world.add_service(on_network(service_spec(replicas=6), tiny))
    world.tick(5)
    assert len(world.running(web)) == 4
    with pytest.raises(Exhausted, match=r"network tiny \(10.9.0.0/29\) has no free address"):
        Allocator(world.state, world.rng).address(tiny.id)


def test_networks_do_not_overlap_and_have_a_vni_each() -> None:
    world = World(1)
    rows = [world.add_network(f"net{number}") for number in range(5)]
    assert len({row.subnet for row in rows}) == 5
    assert len({row.vni for row in rows}) == 5
    with pytest.raises(SpecError, match=r"overlaps 10.128.0.0/24 of network net0"):
        world.add_network("mine", subnet="10.128.0.0/22")


def test_a_published_port_belongs_to_one_service() -> None:
    world = World(1)
    world.add_service(publish(service_spec("web"), PortConfig(target=80, published=8080)))
    other = publish(service_spec("api"), PortConfig(target=80, published=8080))
    with pytest.raises(SpecError, match=r"8080/tcp is already published by service web"):
        Allocator(world.state, world.rng).ports(other, None)
    world.remove_service(next(iter(world.state.services)))
    assert Allocator(world.state, world.rng).ports(other, None)[0].published == 8080


def test_a_chosen_port_stays_over_updates() -> None:
    world = World(1)
    world.add_service(publish(service_spec("one"), PortConfig(target=80)))
    two = world.add_service(publish(service_spec("two"), PortConfig(target=80)))
    chosen = world.state.services[two].ports[0].published
    assert chosen == PORT_CHOICE[1]
    world.update(two, publish(service_spec("two", image="b:2"), PortConfig(target=80)))
    assert world.state.services[two].ports[0].published == chosen


def test_a_service_keeps_its_vip_over_updates() -> None:
    world = World(1)
    shop = world.add_network("shop")
    web = world.add_service(on_network(service_spec(), shop))
    before = world.state.services[web].virtual_addresses
    world.update(web, on_network(service_spec(image="b:2"), shop))
    assert world.state.services[web].virtual_addresses == before
    dnsrr = dataclasses.replace(
        on_network(service_spec(), shop), endpoint=EndpointSpec(mode=EndpointMode.DNSRR)
    )
    world.update(web, dnsrr)
    assert world.state.services[web].virtual_addresses == ()


def test_every_node_gets_an_interface_on_the_ingress_network() -> None:
    world = World(3)
    world.add_network("ingress", ingress=True)
    world.look()
    given = [node.ingress for node in world.state.nodes.values()]
    assert len({endpoint.address for endpoint in given if endpoint}) == 3


def test_pools_that_are_used_up_say_what_to_do() -> None:
    world = World(1)
    assert world.state.cluster
    spec = dataclasses.replace(world.state.cluster.spec, pools=("10.1.0.0/24",))
    world.write(dataclasses.replace(world.state.cluster, spec=spec))
    world.add_network("one")
    with pytest.raises(Exhausted, match="no free subnet; give the network one with --subnet"):
        Allocator(world.state, world.rng).subnet(NetworkSpec(name="two"), world.state.cluster)
