"""The resolver in real namespaces, with a real upstream on loopback. Level 4."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

import dnslib
import pytest
import trio

from overlay import Resolver, views
from overlay.resolver import WAITING_PER_SANDBOX_MAX
from overlay.topology import Name, SandboxId
from overlay.upstream import read_resolv_conf, receive_message, send_message
from tests.overlay.lab import (
    Lab,
    Task,
    answering,
    ask_udp,
    laboratory,
    reconciling,
    socket_in,
    topology_of,
)
from tests.overlay.shop import OFFICE, SHOP
from tests.overlay.test_names import mutations

pytestmark = pytest.mark.level4

ADDRESS, PORT = "127.0.0.11", 53
LOOPBACK = IPv4Address("127.0.0.1")
A, B = Task("a", 0, (SHOP,), 11), Task("b", 0, (OFFICE,), 12)
PACKETS = 10_000
PATIENCE = 10.0
PORTS_TRIED_MAX = 20


@dataclass
class Upstream:
    """A name server on loopback: example.org is 192.0.2.1; slow.* is never answered."""

    port: int = 0
    asked: list[str] = field(default_factory=list)
    forge: bool = False
    slow: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(0))

    def reply(self, packet: bytes) -> bytes | None:
        try:
            record = dnslib.DNSRecord.parse(packet)
        except dnslib.DNSError:
            return None
        name = str(record.q.qname)
        self.asked.append(name)
        if name.startswith("slow."):
            self.slow.release()
            return None
        reply = record.reply()
        if name.startswith("big."):
            for number in range(60):
                reply.add_answer(*dnslib.RR.fromZone(f"{name} 60 A 192.0.2.{number}"))
        elif name == "example.org.":
            reply.add_answer(*dnslib.RR.fromZone("example.org 60 A 192.0.2.1"))
        else:
            reply.header.rcode = 3
        return bytes(reply.pack())

    async def serve_udp(self, sock: trio.socket.SocketType) -> None:
        while True:
            packet, client = await sock.recvfrom(4096)
            if self.forge:
                await sock.sendto(bytes([packet[0] ^ 1]) + packet[1:], client)
            reply = self.reply(packet)
            if reply and len(reply) > 512:
                short = dnslib.DNSRecord.parse(packet).reply()
                short.header.tc = 1
                reply = bytes(short.pack())
            if reply:
                await sock.sendto(reply, client)

    async def serve_tcp(self, stream: trio.SocketStream) -> None:
        async with stream:
            while packet := await receive_message(stream):
                if reply := self.reply(packet):
                    await send_message(stream, reply)


async def bound_twice() -> tuple[trio.socket.SocketType, list[trio.SocketListener]]:
    """Return a UDP socket and a TCP listener on one port of loopback that both were free."""
    for _ in range(PORTS_TRIED_MAX):
        udp = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        await udp.bind((str(LOOPBACK), 0))
        try:
            return udp, await trio.open_tcp_listeners(udp.getsockname()[1], host=str(LOOPBACK))
        except OSError as exc:
            udp.close()
            if exc.errno != errno.EADDRINUSE:  # by somebody else's TCP
                raise
    raise AssertionError("no port is free for both")


@asynccontextmanager
async def running_upstream() -> AsyncIterator[Upstream]:
    udp, listeners = await bound_twice()
    upstream = Upstream(port=udp.getsockname()[1])
    with udp:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upstream.serve_udp, udp)
            nursery.start_soon(trio.serve_listeners, upstream.serve_tcp, listeners)
            yield upstream
            nursery.cancel_scope.cancel()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with laboratory(tmp_path, hosts=1) as lab:
        yield lab


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with running_upstream() as upstream:
        yield upstream


@pytest.fixture
async def resolver(lab: Lab, upstream: Upstream) -> AsyncIterator[Resolver]:
    """The resolver of one host with the tasks a (in shop) and b (in office)."""
    (host,) = lab.hosts
    names = (
        Name(network=SHOP.id, name="web", addresses=(IPv4Address("10.1.0.100"),), canonical=True),
        Name(network=OFFICE.id, name="desk", addresses=(IPv4Address("10.2.0.12"),)),
    )
    topology = topology_of(lab, host, [A, B], names=names)
    resolver = Resolver(
        run_dir=host.run_dir,
        upstreams=lambda: [(LOOPBACK, upstream.port)],
        rng=random.Random(1),
    )
    async with reconciling(host), trio.open_nursery() as nursery:
        await host.reconciler.converge(topology)
        await nursery.start(resolver.run)
        resolver.update(views(topology))
        with trio.fail_after(PATIENCE):
            await resolver.wait_serving([SandboxId("a"), SandboxId("b")])
        yield resolver
        nursery.cancel_scope.cancel()


async def ask(namespace: Path, name: str, kind: str = "A", *, by_tcp: bool = False) -> str:
    """Return the answer as 'rcode addresses', with +tc where it is cut off."""
    packet = dnslib.DNSRecord.question(name, kind).pack()
    sock_kind = socket.SOCK_STREAM if by_tcp else socket.SOCK_DGRAM
    with trio.fail_after(PATIENCE):
        sock = trio.socket.from_stdlib_socket(socket_in(namespace, sock_kind))
        with sock:
            await sock.connect((ADDRESS, PORT))
            if by_tcp:
                stream = trio.SocketStream(sock)
                await send_message(stream, packet)
                reply = await receive_message(stream)
                assert reply is not None, "the resolver closed the connection"
            else:
                await sock.send(packet)
                reply = await sock.recv(65535)
    record = dnslib.DNSRecord.parse(reply)
    assert reply[:2] == packet[:2]
    rcode = dnslib.RCODE[record.header.rcode] + ("+tc" if record.header.tc else "")
    return " ".join([rcode, *sorted(str(answer.rdata) for answer in record.rr)])


@pytest.mark.parametrize("by_tcp", [False, True])
async def test_each_sandbox_knows_the_names_of_its_networks(
    lab: Lab, resolver: Resolver, upstream: Upstream, by_tcp: bool
) -> None:
    a, b = (lab.hosts[0].sandbox(task.name) for task in (A, B))
    assert await ask(a, "web", by_tcp=by_tcp) == "NOERROR 10.1.0.100"
    assert await ask(b, "desk", by_tcp=by_tcp) == "NOERROR 10.2.0.12"
    assert upstream.asked == []
    assert await ask(b, "web", by_tcp=by_tcp) == "NXDOMAIN"


async def test_other_names_are_asked_of_the_host_s_resolvers(
    lab: Lab, resolver: Resolver, upstream: Upstream
) -> None:
    a = lab.hosts[0].sandbox("a")
    assert await ask(a, "example.org") == "NOERROR 192.0.2.1"
    assert await ask(a, "example.org", by_tcp=True) == "NOERROR 192.0.2.1"
    assert await ask(a, "nowhere.example") == "NXDOMAIN"
    assert resolver.statistics().forwarded == 3


async def test_a_long_answer_is_cut_off_by_udp_and_whole_by_tcp(
    lab: Lab, resolver: Resolver
) -> None:
    a = lab.hosts[0].sandbox("a")
    assert await ask(a, "big.example") == "NOERROR+tc"
    assert len((await ask(a, "big.example", by_tcp=True)).split()) == 61


async def test_a_forged_reply_is_not_taken(
    lab: Lab, resolver: Resolver, upstream: Upstream
) -> None:
    upstream.forge = True
    assert await ask(lab.hosts[0].sandbox("a"), "example.org") == "NOERROR 192.0.2.1"


async def test_without_an_upstream_the_client_is_told_at_once(lab: Lab, upstream: Upstream) -> None:
    """A name of ours works on a host that is cut off from the world."""
    (host,) = lab.hosts
    name = Name(network=SHOP.id, name="web", addresses=(IPv4Address("10.1.0.100"),))
    topology = topology_of(lab, host, [A], names=(name,))
    resolver = Resolver(run_dir=host.run_dir, upstreams=list)
    async with reconciling(host), trio.open_nursery() as nursery:
        await host.reconciler.converge(topology)
        await nursery.start(resolver.run)
        resolver.update(views(topology))
        await resolver.wait_serving([SandboxId("a")])
        assert await ask(host.sandbox("a"), "example.org") == "SERVFAIL"
        assert await ask(host.sandbox("a"), "web") == "NOERROR 10.1.0.100"
        nursery.cancel_scope.cancel()


async def test_questions_that_nobody_answers_do_not_pile_up(
    lab: Lab, resolver: Resolver, upstream: Upstream
) -> None:
    a = lab.hosts[0].sandbox("a")
    packet = dnslib.DNSRecord.question("slow.example").pack()
    sock = trio.socket.from_stdlib_socket(socket_in(a, socket.SOCK_DGRAM))
    with sock:
        await sock.connect((ADDRESS, PORT))
        for _ in range(WAITING_PER_SANDBOX_MAX):
            await sock.send(packet)
        with trio.fail_after(PATIENCE):
            for _ in range(WAITING_PER_SANDBOX_MAX):
                await upstream.slow.acquire()
    assert await ask(a, "example.org") == "SERVFAIL", "one too many"
    assert await ask(a, "web") == "NOERROR 10.1.0.100", "our own names need no waiting"
    assert await ask(lab.hosts[0].sandbox("b"), "example.org") == "NOERROR 192.0.2.1"
    assert resolver.statistics().waiting >= WAITING_PER_SANDBOX_MAX


async def test_a_task_may_serve_dns_itself(lab: Lab, resolver: Resolver) -> None:
    """Port 53 is free in the sandbox, although the resolver answers there."""
    a = lab.hosts[0].sandbox("a")
    async with answering(a, "own", 53):
        assert (await ask_udp(a, "10.1.0.11", 53)).startswith("own ")
        assert await ask(a, "web") == "NOERROR 10.1.0.100"


async def test_hostile_packets_are_survived(
    lab: Lab, resolver: Resolver, upstream: Upstream
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    a = lab.hosts[0].sandbox("a")
    sock = trio.socket.from_stdlib_socket(socket_in(a, socket.SOCK_DGRAM))
    with sock:
        await sock.connect((ADDRESS, PORT))
        for packet in mutations(rng, PACKETS):
            await sock.send(packet)
    for _ in range(50):
        await _pour(a, rng.randbytes(rng.randrange(1, 3000)))
    counts = resolver.statistics()
    assert counts.malformed
    assert await ask(a, "web") == "NOERROR 10.1.0.100"
    assert await ask(a, "web", by_tcp=True) == "NOERROR 10.1.0.100"


async def _pour(namespace: Path, noise: bytes) -> None:
    """Send *noise* by TCP, say that this was all, and wait until the resolver hangs up."""
    with trio.fail_after(PATIENCE):
        sock = trio.socket.from_stdlib_socket(socket_in(namespace, socket.SOCK_STREAM))
        with sock:
            await sock.connect((ADDRESS, PORT))
            stream = trio.SocketStream(sock)
            try:
                await stream.send_all(noise)
                await stream.send_eof()
                while await stream.receive_some(65536):
                    pass
            except trio.BrokenResourceError:
                pass


async def test_a_namespace_that_was_made_anew_is_served_anew(lab: Lab, resolver: Resolver) -> None:
    (host,) = lab.hosts
    topology = topology_of(lab, host, [A], names=())
    await host.reconciler.converge(topology_of(lab, host, []))
    resolver.update({})
    await host.reconciler.converge(topology)
    resolver.update(views(topology))
    with trio.fail_after(PATIENCE):
        await resolver.wait_serving([SandboxId("a")])
    assert await ask(host.sandbox("a"), "example.org") == "NOERROR 192.0.2.1"


def test_resolv_conf_is_read_as_far_as_it_makes_sense(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_bytes(
        b"# nameserver 1.1.1.1\nnameserver 10.0.0.1\nnameserver nonsense\noptions ndots:0\n"
        b"nameserver\nnameserver fd00::1\n\xff\xfe\n"
    )
    found = read_resolv_conf(path)
    assert [(str(address), port) for address, port in found] == [("10.0.0.1", 53), ("fd00::1", 53)]
    assert read_resolv_conf(tmp_path / "missing") == []
