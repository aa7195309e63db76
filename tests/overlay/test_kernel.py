"""Hosts that reach each other's tasks: the real kernel, three hosts. Level 4."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from overlay.topology import (
    HostPort,
    Network,
    NetworkId,
    Protocol,
    PublishedPort,
    SandboxId,
    Topology,
    VirtualIp,
)
from tests.overlay.lab import (
    INGRESS,
    OUTSIDE,
    Host,
    Lab,
    Task,
    answering,
    ask_tcp,
    ask_udp,
    laboratory,
    reconciling,
    topology_of,
)

pytestmark = pytest.mark.level4

SHOP = Network(id=NetworkId("shop"), name="shop", vni=5000, subnet=IPv4Network("10.1.0.0/24"))
OFFICE = Network(id=NetworkId("office"), name="office", vni=5001, subnet=IPv4Network("10.2.0.0/24"))
VIP = IPv4Address("10.1.0.100")
#: web.1 on the first host, web.2 and web.3 on the second, none on the third; desk.1 is apart.
WEB = [
    Task("web1", 0, (INGRESS, SHOP), 11),
    Task("web2", 1, (INGRESS, SHOP), 12),
    Task("web3", 1, (INGRESS, SHOP), 13),
]
DESK = Task("desk1", 0, (OFFICE,), 14)
TASKS = [*WEB, DESK]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with laboratory(tmp_path, hosts=3) as lab:
        yield lab


@pytest.fixture
async def cluster(lab: Lab) -> AsyncIterator[Lab]:
    """All three hosts converged, every task of WEB answering on port 80 with its name."""
    async with reconciling(*lab.hosts):
        for host in lab.hosts:
            await host.reconciler.converge(wanted(lab, host))
        async with AsyncExitStack() as stack:
            for task in WEB:
                await stack.enter_async_context(answering(place(lab, task), task.name, 80))
            yield lab


def wanted(lab: Lab, host: Host, **more: object) -> Topology:
    web = tuple(task.address(SHOP) for task in WEB)
    behind = tuple(task.address(INGRESS) for task in WEB)
    fields: dict[str, object] = {
        "virtual_ips": (VirtualIp(network=SHOP.id, address=VIP, backends=web),),
        "published_ports": tuple(
            PublishedPort(protocol=protocol, port=8080, target_port=80, backends=behind)
            for protocol in Protocol
        ),
    }
    return topology_of(lab, host, TASKS, **fields | more)


def place(lab: Lab, task: Task) -> Path:
    return lab.hosts[task.host].sandbox(task.name)


async def test_tasks_of_one_network_reach_each_other_on_any_host(cluster: Lab) -> None:
    for ask in (ask_tcp, ask_udp):
        for task in WEB[1:]:
            answer = await ask(place(cluster, WEB[0]), task.address(SHOP), 80)
            assert answer == f"{task.name} 10.1.0.11"


async def test_a_virtual_ip_is_every_task_in_turn_and_keeps_the_client(cluster: Lab) -> None:
    """Also the task that asks."""
    for ask in (ask_tcp, ask_udp):
        client = place(cluster, WEB[1])
        answers = Counter([await ask(client, VIP, 80) for _ in range(8)])
        # Two of three are on this host and get two shares each, the third gets one.
        assert set(answers) == {"web1 10.1.0.12", "web2 10.1.0.12", "web3 10.1.0.12"}


async def test_a_published_port_answers_on_every_host_and_keeps_the_client(cluster: Lab) -> None:
    """The third host has no task; the answer comes back by the host that was asked."""
    for ask in (ask_tcp, ask_udp):
        for number in (1, 2, 3):
            answers = {await ask(cluster.client, OUTSIDE[number], 8080) for _ in range(6)}
            assert answers == {f"web{n} {OUTSIDE[100]}" for n in (1, 2, 3)}


async def test_a_published_port_answers_the_host_itself(cluster: Lab) -> None:
    host = cluster.hosts[2]
    for ask in (ask_tcp, ask_udp):
        for address in ("127.0.0.1", host.address):
            answers = {(await ask(host.namespace, address, 8080)).split()[0] for _ in range(6)}
            assert answers == {"web1", "web2", "web3"}


async def test_tasks_leave_the_host_under_its_address(cluster: Lab) -> None:
    async with answering(cluster.client, "outside", 99):
        answer = await ask_tcp(place(cluster, DESK), OUTSIDE[100], 99)
    assert answer == f"outside {OUTSIDE[1]}"


async def test_a_host_port_is_one_task_of_this_host(cluster: Lab) -> None:
    host = cluster.hosts[0]
    port = HostPort(protocol=Protocol.TCP, port=81, sandbox=SandboxId("web1"), target_port=80)
    await host.reconciler.converge(wanted(cluster, host, host_ports=(port,)))
    assert await ask_tcp(cluster.client, OUTSIDE[1], 81) == f"web1 {OUTSIDE[100]}"
    assert (await ask_tcp(host.namespace, "127.0.0.1", 81)).startswith("web1 ")
    # Another task of the same host, by the host's address:
    assert (await ask_tcp(place(cluster, DESK), host.address, 81)).startswith("web1 ")
    with pytest.raises(ConnectionRefusedError):
        await ask_tcp(cluster.client, OUTSIDE[2], 81)
