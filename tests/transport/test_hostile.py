"""What anybody on the network may do to the port: noise, floods, slowness. All on real sockets."""

from __future__ import annotations

import logging
import os
import random
import resource
import socket
import ssl
from contextlib import suppress

import pytest
import trio

from swarmlet.identity import Credentials, TrustRequest, joining_context
from swarmlet.transport import PeerRefused, Protocol, Transport
from swarmlet.transport.dial import dial
from swarmlet.transport.protocols import STRANGERS_PER_ADDRESS_MAX, STREAMS_PER_NODE_MAX
from swarmlet.transport.verdict import encode_verdict, receive_verdict
from tests.identity.makers import Cluster
from tests.transport.makers import Node, eventually, manager_of, serving, worker_of

MESSAGE = TrustRequest()


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def manager(cluster: Cluster) -> Node:
    return manager_of(cluster)


async def still_works(manager: Node, address: tuple[str, int]) -> None:
    """The node has outlived it: nothing is left over, and a node of the cluster gets through."""
    await eventually(lambda: manager.transport.statistics().connections == 0)
    worker = worker_of(manager.cluster)
    stream = await worker.transport.connect(address, Protocol.SESSION)
    async with stream:
        await stream.send(MESSAGE)
        assert await stream.receive() == MESSAGE


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]


def client_hello() -> bytes:
    """The first bytes of a real handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = joining_context(Protocol.CA, None).wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


async def throw(address: tuple[str, int], body: bytes) -> bytes:
    """Send *body* to the port and return all that comes back."""
    stream = await trio.open_tcp_stream(*address)
    async with stream:
        try:
            await stream.send_all(body)
            await stream.send_eof()
            answer = b""
            async for chunk in stream:
                answer += chunk
        except trio.BrokenResourceError:
            return b""
        return answer


async def test_garbage_on_the_port(manager: Node, caplog: pytest.LogCaptureFixture) -> None:
    await throw_garbage(manager, caplog, seed=0, count=300)


@pytest.mark.level3
@pytest.mark.parametrize("seed", range(1, 5))
async def test_much_garbage_on_the_port(
    manager: Node, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    """10,000 connections in all."""
    await throw_garbage(manager, caplog, seed=seed, count=2500)


async def throw_garbage(
    manager: Node, caplog: pytest.LogCaptureFixture, *, seed: int, count: int
) -> None:
    """Noise, mutated handshakes and cut ones, *count* connections in all."""
    rng = random.Random(seed)
    hello = client_hello()
    async with serving(manager) as address:
        for number in range(count):
            match number % 3:
                case 0:
                    body = rng.randbytes(rng.randint(0, 300))
                case 1:
                    changed = bytearray(hello)
                    for _ in range(rng.randint(1, 6)):
                        changed[rng.randrange(len(changed))] = rng.randrange(256)
                    body = bytes(changed)
                case _:
                    body = hello[: rng.randrange(len(hello))]
            await throw(address, body)
        await still_works(manager, address)
    assert manager.transport.statistics().failed_handshakes == count
    # Told once for each kind, not each time.
    lines = refusals(caplog)
    assert any("speaks no TLS" in line for line in lines)
    assert 1 <= len(lines) <= 10
    assert len(set(lines)) == len(lines)


async def test_plain_http_is_answered_in_its_own_language(
    manager: Node, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(manager) as address:
        answer = await throw(address, b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        await still_works(manager, address)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request")
    assert b"it speaks TLS to nodes with a certificate only" in answer
    assert b"swarmlet.sock" in answer
    assert "speaks plain HTTP" in caplog.text


async def test_tls_without_our_protocols(manager: Node, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(manager) as address:
        for alpn in ([], ["h2"], ["sl-session/99"]):
            context = joining_context(Protocol.CA, None)
            context.set_alpn_protocols(alpn)
            tcp = await trio.open_tcp_stream(*address)
            stream = trio.SSLStream(tcp, context)
            assert await stream.receive_some() == b""
            await stream.aclose()
        await still_works(manager, address)
    assert "speaks TLS, but no protocol of ours" in caplog.text
    assert manager.transport.statistics().failed_handshakes == 3


async def test_old_tls_is_not_spoken(manager: Node, caplog: pytest.LogCaptureFixture) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(manager) as address:
        stream = trio.SSLStream(await trio.open_tcp_stream(*address), context)
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        await trio.aclose_forcefully(stream)
        await still_works(manager, address)
    assert "only 1.3 is spoken here" in caplog.text


async def test_slow_handshake_is_cut_off(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Slow loris: a byte of the handshake at a time, or none."""
    manager = impatient(cluster)
    hello = client_hello()
    async with serving(manager) as address:
        silent = await trio.open_tcp_stream(*address)
        slow = await trio.open_tcp_stream(*address)
        await slow.send_all(hello[:50])
        for stream in (silent, slow):
            assert await stream.receive_some() == b""
            await stream.aclose()
        await still_works(manager, address)
    assert "took too long for the handshake" in caplog.text


def impatient(cluster: Cluster) -> Node:
    """A manager that gives strangers very little time."""
    manager = manager_of(cluster)
    manager.transport = Transport(
        lambda: manager.credentials,
        manager.gate,
        handshake_timeout=0.2,
        stranger_lifetime=0.2,
    )
    return manager


async def test_stranger_that_joined_nothing_is_cut_off(cluster: Cluster) -> None:
    manager = impatient(cluster)
    context = joining_context(Protocol.CA, cluster.trust)
    async with serving(manager) as address:
        stream, _ = await dial(
            address, context, Protocol.CA, check=lambda certificate: None, within=5
        )
        assert await stream.receive_some() == b""
        await stream.aclose()
        await still_works(manager, address)


async def test_flood_from_one_address_leaves_room_for_others(
    manager: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond its share an address is hung up on at once; admitted streams do not mind."""
    worker = worker_of(manager.cluster)
    async with serving(manager) as address:
        session = await worker.transport.connect(address, Protocol.SESSION)
        flood = [await trio.open_tcp_stream(*address) for _ in range(STRANGERS_PER_ADDRESS_MAX)]
        await eventually(
            lambda: manager.transport.statistics().strangers == STRANGERS_PER_ADDRESS_MAX
        )
        for _ in range(20):
            assert await throw(address, b"") == b""
        assert manager.transport.statistics().overflows == 20
        # Another address of the same host is not affected,
        other = await other_source(address)
        await eventually(
            lambda: manager.transport.statistics().strangers == STRANGERS_PER_ADDRESS_MAX + 1
        )
        # nor is who was admitted before.
        await session.send(MESSAGE)
        assert await session.receive() == MESSAGE
        await session.aclose()
        for stream in (*flood, other):
            await stream.aclose()
        await still_works(manager, address)
    assert len([line for line in refusals(caplog) if "overflow" in line]) == 1
    assert f"{STRANGERS_PER_ADDRESS_MAX} connections from there" in caplog.text


async def test_node_without_free_files_waits_and_goes_on(
    manager: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """accept(2) with EMFILE: the flood is waited out, and told once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    flood: list[trio.SocketStream] = []
    async with serving(manager) as address:
        used = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 10, hard))
        try:
            with suppress(OSError):  # our own end has no more files either
                while True:
                    flood.append(await trio.open_tcp_stream(*address))
            await eventually(lambda: "no connection could be accepted" in caplog.text)
            for stream in flood:
                await stream.aclose()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await still_works(manager, address)
    assert len([line for line in refusals(caplog) if "kind=capacity" in line]) == 1


async def other_source(address: tuple[str, int]) -> trio.SocketStream:
    sock = trio.socket.socket()
    await sock.bind(("127.0.0.2", 0))
    await sock.connect(address)
    return trio.SocketStream(sock)


async def test_one_node_cannot_take_all_connections(manager: Node) -> None:
    worker, other = worker_of(manager.cluster), worker_of(manager.cluster)
    async with serving(manager) as address:
        streams = [
            await worker.transport.connect(address, Protocol.SESSION)
            for _ in range(STREAMS_PER_NODE_MAX)
        ]
        with pytest.raises(PeerRefused, match="opens them faster than it closes them") as refusal:
            await worker.transport.connect(address, Protocol.SESSION)
        assert refusal.value.reason == "busy"
        await (await other.transport.connect(address, Protocol.SESSION)).aclose()
        for stream in streams:
            await stream.aclose()
        await still_works(manager, address)


@pytest.mark.parametrize("protocol", [p for p in Protocol if p is not Protocol.API])
async def test_admitted_node_that_sends_noise(
    manager: Node, caplog: pytest.LogCaptureFixture, protocol: Protocol
) -> None:
    """Its connection ends and is told of once; it may come again."""
    peer = manager_of(manager.cluster)
    rng = random.Random(protocol)
    async with serving(manager) as address:
        for _ in range(25):
            _, stream = await peer.transport.connect_raw(address, protocol)
            await stream.send_all(rng.randbytes(rng.randint(4, 400)))
            async for _chunk in stream:
                raise AssertionError("noise was answered")
            await stream.aclose()
        await still_works(manager, address)
    assert len([line for line in refusals(caplog) if "sent what is no message" in line]) == 1


async def test_oversized_frame_ends_the_connection(
    manager: Node, caplog: pytest.LogCaptureFixture
) -> None:
    peer = manager_of(manager.cluster)
    async with serving(manager) as address:
        _, stream = await peer.transport.connect_raw(address, Protocol.RAFT)
        await stream.send_all((1 << 20 | 1).to_bytes(4, "big"))
        assert await stream.receive_some() == b""
        await stream.aclose()
        await still_works(manager, address)
    assert "a frame of 1048577 bytes; 1 to 1048576 are read" in caplog.text


async def test_peer_that_vanishes_in_any_state(manager: Node) -> None:
    """A reset after TCP, within TLS, after the verdict, within a frame: nothing is left over."""
    peer = manager_of(manager.cluster)
    async with serving(manager) as address:
        for body in (b"", client_hello()[:80], client_hello()):
            tcp = await trio.open_tcp_stream(*address)
            await tcp.send_all(body)
            reset(tcp)
        for body in (b"", b"\0\0\1\0abc"):
            _, stream = await peer.transport.connect_raw(address, Protocol.RAFT)
            await stream.send_all(body)
            reset(stream.transport_stream)
        await still_works(manager, address)


def reset(stream: trio.SocketStream) -> None:
    """Close so that the peer gets RST (socket(7), SO_LINGER)."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    stream.socket.close()


async def test_refusals_of_a_node_are_told_once(
    manager: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that keeps asking for what it may not have does not fill the log."""
    worker = worker_of(manager.cluster)
    async with serving(manager) as address:
        for _ in range(10):
            with pytest.raises(PeerRefused):
                await worker.transport.connect(address, Protocol.RAFT)
    assert len(refusals(caplog)) == 1
    assert manager.transport.statistics().refused == 10


async def test_no_secret_reaches_the_log(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    manager = manager_of(cluster)
    key: Credentials = manager.credentials
    async with serving(manager) as address:
        await throw(address, b"noise")
        await still_works(manager, address)
    assert "PRIVATE" not in caplog.text
    assert key.key.pem.decode()[40:60] not in caplog.text


async def test_hostile_words_do_not_move_the_cursor(cluster: Cluster) -> None:
    """A verdict ends up on the user's terminal: control characters are taken out."""
    ours, theirs = trio.testing.memory_stream_pair()
    await theirs.send_all(encode_verdict("busy", "\x1b[2Jcleared\r\nname=fake"))
    with pytest.raises(PeerRefused) as refusal:
        await receive_verdict(ours)
    assert str(refusal.value) == "?[2Jcleared??name=fake"
