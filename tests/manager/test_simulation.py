"""The control plane under random users and failing nodes: laws that hold at every step.

A run is a function of its seed; a failure prints it.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter

import pytest

from swarmlet.model import (
    Availability,
    Desired,
    Global,
    NodeId,
    NodeState,
    PortConfig,
    PublishMode,
    Replicated,
    Resources,
    ServiceId,
    UpdateConfig,
    UpdateOrder,
)
from swarmlet.model.specs import EndpointSpec
from swarmlet.state import decode_snapshot_untrusted, encode_snapshot
from tests.manager.world import World, addresses, on_network, service_spec, with_task
from tests.seeds import fresh

SEEDS = [*range(20), *fresh("cluster", 10)]


def check_laws(world: World) -> None:
    given = addresses(world.state.tasks.values())
    vips = [
        (v.network, v.address) for s in world.state.services.values() for v in s.virtual_addresses
    ]
    repeated = [address for address, count in Counter([*given, *vips]).items() if count > 1]
    assert not repeated, f"given twice: {repeated}"
    reserved: Counter[str] = Counter()
    for task in world.state.tasks.values():
        template = world.state.template_of(task)
        assert template or task.desired >= Desired.REMOVE, "a task without its spec"
        if task.outcome is None and task.node and template:
            reserved[task.node] += template.reservations.memory_bytes
    for node, total in reserved.items():
        row = world.state.nodes[NodeId(node)]
        assert total <= row.facts.memory_bytes, f"{node} is promised {total}"
    ports = [
        (port.published, port.protocol)
        for service in world.state.services.values()
        for port in service.ports
        if port.mode is PublishMode.INGRESS
    ]
    assert len(ports) == len(set(ports))


def act(world: World, number: int) -> None:
    rng = world.rng
    names = sorted(world.state.nodes)
    services = sorted(world.state.services)
    match rng.choice(
        ("create", "scale", "image", "remove", "lose", "find", "drain", "fail", "turn")
    ):
        case "create" if len(services) < 5:
            spec = service_spec(f"s{number}", replicas=rng.randint(0, 6))
            order = rng.choice(list(UpdateOrder))
            spec = dataclasses.replace(spec, update=UpdateConfig(monitor=2.0, order=order))
            if rng.random() < 0.2:
                spec = dataclasses.replace(spec, mode=Global())
            if rng.random() < 0.5:
                spec = on_network(spec, next(iter(world.state.networks.values())))
            if rng.random() < 0.5:
                spec = dataclasses.replace(
                    spec, endpoint=EndpointSpec(ports=(PortConfig(target=80),))
                )
            if rng.random() < 0.3:
                spec = with_task(spec, reservations=Resources(memory_bytes=200 << 20))
            world.add_service(spec)
        case "scale" if services:
            row = world.state.services[rng.choice(services)]
            if isinstance(row.spec.mode, Replicated):
                mode = Replicated(rng.randint(0, 8))
                world.update(row.id, dataclasses.replace(row.spec, mode=mode))
        case "image" if services:
            row = world.state.services[rng.choice(services)]
            container = dataclasses.replace(row.spec.task.container, image=f"busybox:{number}")
            world.update(row.id, with_task(row.spec, container=container))
        case "remove" if services:
            world.remove_service(rng.choice(services))
        case "lose" if len(world.silent) < len(names) - 1:
            world.lose(rng.choice([n for n in names if n not in world.silent]))
        case "find" if world.silent:
            world.find_again(rng.choice(sorted(world.silent)))
        case "drain":
            world.drain(rng.choice(names), rng.choice(list(Availability)))
        case "fail" if running := world.running():
            world.fail(rng.choice(sorted(running, key=lambda t: t.id)).id)
        case "turn":  # a new leader: what was only in memory is gone
            world.ready_since = dict.fromkeys(world.ready_since, world.now)
            world.state = decode_snapshot_untrusted(encode_snapshot(world.state))


def settle(world: World) -> None:
    for name in sorted(world.silent):
        world.find_again(name)
    for name in sorted(world.state.nodes):
        world.drain(name, Availability.ACTIVE)
    world.tick(400)


def is_as_wanted(world: World, service: ServiceId) -> bool:
    row = world.state.services[service]
    running = world.running(service)
    current = all(task.spec_version == row.spec_version for task in running)
    match row.spec.mode:
        case Replicated(replicas):
            return current and len(running) == replicas == len({t.slot for t in running})
        case Global():
            return current and sorted(t.node for t in running) == sorted(world.state.nodes)


@pytest.mark.level3
@pytest.mark.parametrize("seed", SEEDS)
def test_laws_hold_and_the_cluster_comes_to_rest(seed: int) -> None:
    world = World(4, seed=seed)
    world.add_network("shop")
    world.add_network("ingress", ingress=True)
    for number in range(60):
        act(world, number)
        for _ in range(world.rng.randint(0, 6)):
            world.tick()
            check_laws(world)
    settle(world)
    for service in world.state.services:
        full = [t for t in world.tasks(service) if not t.node and t.outcome is None]
        paused = world.state.services[service].update
        assert is_as_wanted(world, service) or full or paused, (seed, service)
    assert all(node.state is NodeState.READY for node in world.state.nodes.values())
    before = world.changes
    world.tick(1000)
    assert world.changes == before, f"seed {seed}: a settled cluster wrote"


def test_the_same_seed_gives_the_same_run() -> None:
    def run(seed: int) -> bytes:
        world = World(3, seed=seed)
        world.add_network("shop")
        for number in range(40):
            act(world, number)
            world.tick(2)
        return encode_snapshot(world.state)

    assert run(7) == run(7)
    assert run(7) != run(8), os.environ.get("PYTHONHASHSEED", "")
