"""What a node is told: all that it needs, nothing that it does not, and only what changed."""

from __future__ import annotations

import dataclasses

from swarmlet.codec import unpack_untrusted
from swarmlet.manager.assignments import Assignments, difference
from swarmlet.model import EndpointSpec, NodeId, PortConfig
from swarmlet.session import (
    RECORDS,
    ClusterView,
    EndpointView,
    ImageView,
    ItemKey,
    Kind,
    ServiceView,
    TaskAssignment,
)
from tests.manager.world import World, on_network, service_spec

DIGEST = "sha256:" + "ab" * 32


def settled() -> World:
    world = World(3)
    shop = world.add_network("shop")
    world.add_network("ingress", ingress=True)
    image = f"busybox:1@{DIGEST}"
    world.add_service(on_network(service_spec("web", replicas=2, image=image), shop))
    published = EndpointSpec(ports=(PortConfig(target=80, published=8080),))
    front = dataclasses.replace(service_spec("front", replicas=1), endpoint=published)
    world.add_service(front)
    world.tick(8)
    return world


def told(world: World, node: str) -> dict[ItemKey, object]:
    holders = {DIGEST: frozenset({NodeId("n1")})}
    items = Assignments(world.view, holders).of(NodeId(node))
    return {key: unpack_untrusted(RECORDS[key.kind], body) for key, body in items.items()}


def of_kind(records: dict[ItemKey, object], kind: Kind) -> list[object]:
    return [record for key, record in records.items() if key.kind is kind]


def web_nodes(world: World) -> list[str]:
    """The two nodes that run a task of web."""
    (web,) = [s for s in world.state.services.values() if s.spec.name == "web"]
    return world.nodes_of(web.id)


def test_a_node_is_told_of_its_own_tasks_only() -> None:
    world = settled()
    for name in world.state.nodes:
        tasks = of_kind(told(world, name), Kind.TASK)
        assert all(isinstance(task, TaskAssignment) and task.node == name for task in tasks)
    everywhere = [t for n in world.state.nodes for t in of_kind(told(world, n), Kind.TASK)]
    assert len(everywhere) == 3


def test_a_node_is_told_of_everybody_on_the_networks_it_is_on() -> None:
    world = settled()
    (web,) = [s for s in world.state.services.values() if s.spec.name == "web"]
    on_shop = {task.node for task in world.tasks(web.id)}
    for name in world.state.nodes:
        records = told(world, name)
        endpoints = [e for e in of_kind(records, Kind.ENDPOINT) if isinstance(e, EndpointView)]
        mine = [e for e in endpoints if e.service == web.id]
        assert len(mine) == (2 if name in on_shop else 0)
        assert all(endpoint.ready for endpoint in mine)
        # Published ports are everybody's.
        services = [s for s in of_kind(records, Kind.SERVICE) if isinstance(s, ServiceView)]
        assert [p.published for s in services for p in s.ports] == [8080]


def test_a_task_that_is_to_stop_leaves_the_load_balancers_first() -> None:
    world = settled()
    drained, other = web_nodes(world)
    world.drain(drained)
    world.look()
    endpoints = of_kind(told(world, other), Kind.ENDPOINT)
    ready = {e.node: e.ready for e in endpoints if isinstance(e, EndpointView)}
    assert ready[NodeId(drained)] is False
    assert ready[NodeId(other)] is True


def test_a_node_is_told_where_its_images_are_and_what_nobody_may_collect() -> None:
    world = settled()
    (web,) = [s for s in world.state.services.values() if s.spec.name == "web"]
    node = world.tasks(web.id)[0].node
    records = told(world, node)
    assert of_kind(records, Kind.IMAGE) == [ImageView(digest=DIGEST, nodes=(NodeId("n1"),))]
    (cluster,) = of_kind(records, Kind.CLUSTER)
    assert isinstance(cluster, ClusterView)
    assert cluster.images == (DIGEST,)
    # After an update the image before is kept: a roll-back would need it.
    shop = next(n for n in world.state.networks.values() if n.spec.name == "shop")
    world.update(web.id, on_network(service_spec("web", image="busybox:2@sha256:cd"), shop))
    (cluster,) = of_kind(told(world, node), Kind.CLUSTER)
    assert isinstance(cluster, ClusterView)
    assert cluster.images == (DIGEST, "sha256:cd")


def test_a_difference_leads_from_one_assignment_to_the_other() -> None:
    world = settled()
    drained, other = web_nodes(world)
    before = Assignments(world.view, {}).of(NodeId(other))
    world.drain(drained)
    world.tick(5)
    after = Assignments(world.view, {}).of(NodeId(other))
    puts, removes = difference(before, after)
    assert {**{k: v for k, v in before.items() if k not in removes}, **puts} == after
    assert puts
    assert removes
    assert difference(after, after) == ({}, [])
