"""Hosts that reach each other's tasks: the real kernel, three hosts. Level 4."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest
import trio

from overlay.topology import HostPort, Protocol, PublishedPort, SandboxId, Topology
from tests.overlay.lab import (
    INGRESS,
    OUTSIDE,
    PATIENCE,
    Host,
    Lab,
    Task,
    answering,
    ask_tcp,
    ask_udp,
    run_in,
    socket_in,
)
from tests.overlay.shop import DESK, SHOP, VIP, WEB, place, wanted

pytestmark = pytest.mark.level4


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


async def test_a_port_may_be_published_on_some_addresses_only(cluster: Lab) -> None:
    host = cluster.hosts[2]
    behind = tuple(task.address(INGRESS) for task in WEB)

    def port(number: int, **restriction: object) -> PublishedPort:
        return PublishedPort(
            protocol=Protocol.TCP,
            port=number,
            target_port=80,
            backends=behind,
            **restriction,  # type: ignore[arg-type]
        )

    ports = (
        port(8081, within=IPv4Network(f"{OUTSIDE[3]}/32")),
        port(8082, within=IPv4Network("10.66.0.0/16")),
        port(8083, interface="eth1"),
        port(8084, interface="eth0"),
    )
    await host.reconciler.converge(wanted(cluster, host, published_ports=ports))
    for number in (8081, 8083):
        assert (await ask_tcp(cluster.client, OUTSIDE[3], number)).endswith(str(OUTSIDE[100]))
    for number in (8082, 8084):
        with pytest.raises(ConnectionRefusedError):
            await ask_tcp(cluster.client, OUTSIDE[3], number)
    assert await ask_tcp(host.namespace, host.address, 8082)
    assert await ask_tcp(cluster.hosts[0].namespace, host.address, 8084)


async def test_hosts_thought_dead_get_no_connections_until_they_are_not(cluster: Lab) -> None:
    host, other = cluster.hosts[0], cluster.hosts[1]
    client = place(cluster, WEB[0])
    await host.reconciler.converge(wanted(cluster, host, masked=frozenset({other.address})))
    for ask in (ask_tcp, ask_udp):
        assert {(await ask(client, VIP, 80)).split()[0] for _ in range(5)} == {"web1"}
        answers = {(await ask(cluster.client, OUTSIDE[1], 8080)).split()[0] for _ in range(5)}
        assert answers == {"web1"}
    # Thought dead is not gone: what is known to be there is still reached.
    assert (await ask_tcp(client, WEB[1].address(SHOP), 80)).startswith("web2")
    await host.reconciler.converge(wanted(cluster, host))
    assert {(await ask_tcp(client, VIP, 80)).split()[0] for _ in range(8)} == {
        "web1",
        "web2",
        "web3",
    }


async def test_without_backends_clients_are_refused_at_once(cluster: Lab) -> None:
    """Also when the host itself listens on the port."""
    host = cluster.hosts[2]
    empty = wanted(cluster, host).published_ports
    empty = tuple(replace(port, backends=()) for port in empty)
    await host.reconciler.converge(wanted(cluster, host, published_ports=empty))
    async with answering(host.namespace, "the host itself", 8080):
        for ask in (ask_tcp, ask_udp):
            with pytest.raises(ConnectionRefusedError):
                await ask(cluster.client, OUTSIDE[3], 8080)
            with pytest.raises(ConnectionRefusedError):
                await ask(host.namespace, "127.0.0.1", 8080)

    host = cluster.hosts[0]
    vips = tuple(replace(vip, backends=()) for vip in wanted(cluster, host).virtual_ips)
    await host.reconciler.converge(wanted(cluster, host, virtual_ips=vips))
    for ask in (ask_tcp, ask_udp):
        with pytest.raises(ConnectionRefusedError):
            await ask(place(cluster, WEB[0]), VIP, 80)


async def test_a_closed_port_of_a_task_is_refused_through_the_mesh(cluster: Lab) -> None:
    """The refusal, too, comes back by the host that was asked."""
    host = cluster.hosts[2]
    closed = tuple(replace(p, target_port=9) for p in wanted(cluster, host).published_ports)
    await host.reconciler.converge(wanted(cluster, host, published_ports=closed))
    for ask in (ask_tcp, ask_udp):
        with pytest.raises(ConnectionRefusedError):
            await ask(cluster.client, OUTSIDE[3], 8080)


async def test_a_task_that_leaves_its_network_is_gone_for_all(cluster: Lab) -> None:
    for host in cluster.hosts:
        topology = wanted(cluster, host)
        left = tuple(s for s in topology.sandboxes if s.id != "web3")
        endpoints = tuple(e for e in topology.endpoints if e.address.packed[-1] != 13)
        await host.reconciler.converge(replace(topology, sandboxes=left, endpoints=endpoints))
    client = place(cluster, WEB[0])
    assert {(await ask_tcp(client, VIP, 80)).split()[0] for _ in range(6)} == {"web1", "web2"}
    assert not cluster.hosts[1].sandbox("web3").exists()
    assert "10.1.0.13" not in run_in(
        cluster.hosts[0].sandbox(f"overlay@{SHOP.id}"), "ip", "neigh", "show", "nud", "permanent"
    )


async def test_datagrams_move_on_when_their_backend_leaves(cluster: Lab) -> None:
    """A sender that never changes its port would keep the backend for ever."""
    clients = [
        (place(cluster, WEB[0]), VIP, 80),  # by the virtual IP
        (cluster.client, OUTSIDE[1], 8080),  # by the mesh
        (cluster.hosts[0].namespace, "127.0.0.1", 8080),
    ]
    host = cluster.hosts[0]
    for client, address, port in clients:
        await host.reconciler.converge(wanted(cluster, host))
        async with conversation(client, address, port) as ask:
            first = await ask()
            assert await ask() == first
            left = [task for task in WEB if task.name != first]
            await host.reconciler.converge(serving(cluster, host, left))
            second = await ask()
            assert second != first
            assert await ask() == second, "a flow that may go on is left alone"
        # What was refused meanwhile is served as soon as somebody is there.
        async with conversation(client, address, port) as ask:
            await host.reconciler.converge(serving(cluster, host, []))
            with pytest.raises(ConnectionRefusedError):
                await ask()
            await host.reconciler.converge(serving(cluster, host, left))
            assert await ask() in [task.name for task in left]


async def test_a_connection_outlives_the_draining_of_its_backend_but_not_its_end(
    cluster: Lab,
) -> None:
    host, client = cluster.hosts[0], place(cluster, WEB[0])
    only = [WEB[1]]
    await host.reconciler.converge(serving(cluster, host, only))
    listener = trio.socket.from_stdlib_socket(socket_in(place(cluster, WEB[1]), socket.SOCK_STREAM))
    with listener, trio.fail_after(PATIENCE):
        await listener.bind(("", 7000))
        listener.listen()
        sock = trio.socket.from_stdlib_socket(socket_in(client, socket.SOCK_STREAM))
        with sock:
            await sock.connect((str(VIP), 7000))
            connection, _ = await listener.accept()
            with connection:
                await host.reconciler.converge(serving(cluster, host, [WEB[2]]))
                await sock.send(b"still here")
                assert await connection.recv(100) == b"still here"
                # The task is gone from the cluster, and with it its address.
                topology = serving(cluster, host, [WEB[2]])
                endpoints = tuple(
                    e for e in topology.endpoints if e.address.packed[-1] != WEB[1].number
                )
                await host.reconciler.converge(replace(topology, endpoints=endpoints))
                await sock.send(b"anybody?")
                with pytest.raises(ConnectionResetError):
                    await sock.recv(100)


async def test_an_address_with_another_mac_is_reached_at_once(cluster: Lab) -> None:
    """The ARP caches of tasks and host forget the one before."""
    host, client = cluster.hosts[1], place(cluster, WEB[1])
    assert await ask_tcp(client, WEB[2].address(SHOP), 80)
    before = run_in(client, "ip", "neigh", "show", str(WEB[2].address(SHOP)))
    topology = wanted(cluster, host)
    sandboxes = tuple(
        replace(
            sandbox,
            attachments=tuple(
                replace(a, mac="02:77" + a.mac[5:]) if sandbox.id == "web3" else a
                for a in sandbox.attachments
            ),
        )
        for sandbox in topology.sandboxes
    )
    endpoints = tuple(
        replace(e, mac="02:77" + e.mac[5:]) if e.address.packed[-1] == WEB[2].number else e
        for e in topology.endpoints
    )
    await host.reconciler.converge(replace(topology, sandboxes=sandboxes, endpoints=endpoints))
    assert await ask_tcp(client, WEB[2].address(SHOP), 80, seconds=2) == "web3 10.1.0.12"
    assert run_in(client, "ip", "neigh", "show", str(WEB[2].address(SHOP))) != before


def serving(lab: Lab, host: Host, tasks: list[Task]) -> Topology:
    """The cluster in which only *tasks* are ready, so that only they get connections."""
    topology = wanted(lab, host)
    vips = tuple(
        replace(vip, backends=tuple(task.address(SHOP) for task in tasks))
        for vip in topology.virtual_ips
    )
    ports = tuple(
        replace(port, backends=tuple(task.address(INGRESS) for task in tasks))
        for port in topology.published_ports
    )
    return replace(topology, virtual_ips=vips, published_ports=ports)


@asynccontextmanager
async def conversation(
    namespace: Path, address: object, port: int
) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """Ask by UDP again and again from one port; the answer is the name of the task."""
    sock = trio.socket.from_stdlib_socket(socket_in(namespace, socket.SOCK_DGRAM))
    with sock:
        await sock.connect((str(address), port))

        async def ask() -> str:
            with trio.fail_after(PATIENCE):
                await sock.send(b"?")
                return (await sock.recv(1000)).decode().split()[0]

        yield ask
