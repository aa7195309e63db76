"""Who may connect to whom, over real TLS on the loopback, and what everybody is told."""

from __future__ import annotations

import logging
import re
import ssl
from dataclasses import replace
from functools import partial

import pytest
import trio

from swarmlet.identity import (
    CertificateAuthority,
    Credentials,
    KeyPair,
    KnownNode,
    NodeCertificate,
    Rights,
    Role,
    TrustRequest,
    joining_context,
)
from swarmlet.transport import (
    ConnectFailed,
    EndOfStream,
    Framed,
    FrameStream,
    Peer,
    PeerRefused,
    Protocol,
    Raw,
    StreamBroken,
    Transport,
    Unreachable,
    WrongPeer,
    open_listeners,
)
from swarmlet.transport.dial import dial
from swarmlet.transport.protocols import RULES
from tests.identity.makers import DAY, NOW, YEAR, Cluster
from tests.transport.makers import ECHO, Node, echo, eventually, manager_of, serving, worker_of

MESSAGE = TrustRequest()
FRAMED = [p for p in Protocol if isinstance(ECHO[p], Framed)]


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


async def talk(stream: FrameStream) -> None:
    async with stream:
        await stream.send(MESSAGE)
        assert await stream.receive() == MESSAGE


async def refusal_of(
    caller: Node, address: tuple[str, int], protocol: Protocol, node: str | None = None
) -> ConnectFailed:
    with pytest.raises(ConnectFailed) as refusal:
        await caller.transport.connect(address, protocol, node=node)
    return refusal.value


# Those who are welcome:


@pytest.mark.parametrize("protocol", FRAMED)
async def test_managers_speak_every_protocol(cluster: Cluster, protocol: Protocol) -> None:
    first, second = manager_of(cluster), manager_of(cluster)
    async with serving(first) as address:
        stream = await second.transport.connect(address, protocol, node=first.id)
        assert stream.peer.node == first.id
        await talk(stream)
        await eventually(lambda: first.transport.statistics().connections == 0)
    assert first.transport.statistics().admitted == 1


async def test_handler_knows_its_peer(cluster: Cluster) -> None:
    manager, worker = manager_of(cluster), worker_of(cluster)
    peers: list[Peer] = []

    async def note(stream: FrameStream) -> None:
        peers.append(stream.peer)
        await echo(stream)

    async with serving(manager, {Protocol.SESSION: Framed(note)}) as address:
        await talk(await worker.transport.connect(address, Protocol.SESSION))
    (peer,) = peers
    assert (peer.node, peer.role, peer.rights) == (worker.id, Role.WORKER, Rights.FULL)
    assert peer.protocol is Protocol.SESSION
    assert peer.certificate == worker.credentials.certificate
    assert str(peer).startswith(f"{worker.id}@127.0.0.1:")


async def test_bytes_go_both_ways_on_a_raw_stream(cluster: Cluster) -> None:
    """A worker serves the API to a manager: logs and exec go straight to the node."""
    worker, manager = worker_of(cluster), manager_of(cluster)
    async with serving(worker) as address:
        peer, stream = await manager.transport.connect_raw(address, Protocol.API, node=worker.id)
        assert (peer.node, peer.role) == (worker.id, Role.WORKER)
        await stream.send_all(b"GET /_ping HTTP/1.1\r\n\r\n")
        assert await stream.receive_some() == b"GET /_ping HTTP/1.1\r\n\r\n"
        await stream.aclose()


async def test_tls_is_1_3_and_mutual(cluster: Cluster) -> None:
    manager, worker = manager_of(cluster), worker_of(cluster)
    async with serving(manager) as address:
        _, stream = await worker.transport.connect_raw(address, Protocol.API)
        assert stream.version() == "TLSv1.3"
        await stream.aclose()


# Those who are not, each with what it is told:


async def test_worker_on_a_managers_protocol(cluster: Cluster) -> None:
    manager, worker = manager_of(cluster), worker_of(cluster)
    async with serving(manager) as address:
        refusal = await refusal_of(worker, address, Protocol.RAFT)
    assert isinstance(refusal, PeerRefused)
    assert refusal.reason == "wrong-role"
    assert "sl-raft/1 is for managers" in str(refusal)
    assert f"swarmlet node promote {worker.id}" in str(refusal)


async def test_demoted_manager_is_refused_at_once(cluster: Cluster) -> None:
    manager, demoted = manager_of(cluster), manager_of(cluster)
    cluster.nodes[demoted.id] = replace(cluster.nodes[demoted.id], role=Role.WORKER)
    async with serving(manager) as address:
        refusal = await refusal_of(demoted, address, Protocol.RAFT)
        assert "is a worker" in str(refusal)
        await talk(await demoted.transport.connect(address, Protocol.SESSION))


async def test_removed_node(cluster: Cluster) -> None:
    manager, worker = manager_of(cluster), worker_of(cluster)
    del cluster.nodes[worker.id]
    async with serving(manager) as address:
        for protocol in (Protocol.SESSION, Protocol.CA):
            refusal = await refusal_of(worker, address, protocol)
            assert isinstance(refusal, PeerRefused)
            assert refusal.reason == "unknown-node"
            assert "join with a new token" in str(refusal)


async def test_revoked_node(cluster: Cluster) -> None:
    manager, worker = manager_of(cluster), worker_of(cluster)
    cluster.nodes[worker.id] = replace(cluster.nodes[worker.id], revoked=True)
    async with serving(manager) as address:
        refusal = await refusal_of(worker, address, Protocol.SESSION)
    assert isinstance(refusal, PeerRefused)
    assert refusal.reason == "revoked"


async def test_copied_state_shows_an_unknown_key(cluster: Cluster) -> None:
    manager, worker = manager_of(cluster), worker_of(cluster)
    other = KeyPair.generate().public_key
    cluster.nodes[worker.id] = KnownNode(role=Role.WORKER, public_keys=(other,))
    async with serving(manager) as address:
        refusal = await refusal_of(worker, address, Protocol.SESSION)
    assert "a copy of another machine's or an old backup" in str(refusal)


async def test_node_of_another_cluster(cluster: Cluster) -> None:
    """The caller does not trust who answers, so it says nothing at all."""
    manager, stranger = manager_of(cluster), worker_of(Cluster())
    async with serving(manager) as address:
        refusal = await refusal_of(stranger, address, Protocol.SESSION)
    assert isinstance(refusal, WrongPeer)
    assert "belongs to another cluster" in str(refusal)


async def test_certificate_of_a_foreign_ca(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """It trusts our root, and shows a certificate of its own making."""
    manager = manager_of(cluster)
    key = KeyPair.generate()
    impostor = CertificateAuthority.create(cluster.id, now=NOW)
    der = impostor.issue(key.public_key, node=key.node_id, role=Role.MANAGER, now=NOW)
    forged = Node(cluster, Credentials(key, (der,), cluster.trust))
    async with serving(manager) as address:
        refusal = await refusal_of(forged, address, Protocol.RAFT)
        await eventually(lambda: manager.transport.statistics().failed_handshakes == 1)
    assert isinstance(refusal, PeerRefused)
    assert refusal.reason == "foreign"
    assert "does not trust the root that signed it" in str(refusal)
    assert "join again with a new token" in str(refusal)
    assert "shows a certificate of another cluster" in caplog.text


async def test_server_with_a_certificate_of_a_foreign_ca(cluster: Cluster) -> None:
    key = KeyPair.generate()
    impostor = CertificateAuthority.create(cluster.id, now=NOW)
    der = impostor.issue(key.public_key, node=key.node_id, role=Role.MANAGER, now=NOW)
    forged = Node(cluster, Credentials(key, (der,), cluster.trust))
    worker = worker_of(cluster)
    async with serving(forged) as address:
        refusal = await refusal_of(worker, address, Protocol.SESSION)
    assert isinstance(refusal, WrongPeer)
    assert "another cluster" in str(refusal)


async def test_another_node_at_the_address(cluster: Cluster) -> None:
    manager, other, caller = manager_of(cluster), manager_of(cluster), worker_of(cluster)
    async with serving(manager) as address:
        refusal = await refusal_of(caller, address, Protocol.SESSION, node=other.id)
    assert isinstance(refusal, WrongPeer)
    assert f"node {manager.id} answers there, not {other.id}" in str(refusal)


async def test_worker_where_a_manager_was_meant(cluster: Cluster) -> None:
    worker, caller = worker_of(cluster), worker_of(cluster)
    async with serving(worker) as address:
        refusal = await refusal_of(caller, address, Protocol.SESSION)
    assert isinstance(refusal, WrongPeer)
    assert "give the address of a manager" in str(refusal)


async def test_protocol_without_a_handler(cluster: Cluster) -> None:
    manager, caller = manager_of(cluster), manager_of(cluster)
    async with serving(manager, {Protocol.CA: Framed(echo)}) as address:
        refusal = await refusal_of(caller, address, Protocol.RAFT)
    assert isinstance(refusal, PeerRefused)
    assert refusal.reason == "not-served"


@pytest.mark.parametrize("protocol", Protocol)
async def test_caller_without_a_certificate_may_only_join(
    cluster: Cluster, protocol: Protocol
) -> None:
    manager = manager_of(cluster)
    context = joining_context(protocol, cluster.trust)
    call = partial(dial, context=context, protocol=protocol, check=lambda c: None, within=5)
    async with serving(manager) as address:
        if RULES[protocol].caller is None:
            stream, _ = await call(address)
            await stream.aclose()
        else:
            with pytest.raises(PeerRefused, match="`swarmlet join` makes this host one"):
                await call(address)


# Time:


async def test_ended_certificate_may_renew_and_nothing_else(cluster: Cluster) -> None:
    manager, worker = manager_of(cluster), worker_of(cluster)
    manager.clock = NOW + 2 * YEAR  # the worker was off for two years
    peers: list[Peer] = []

    async def note(stream: FrameStream) -> None:
        peers.append(stream.peer)
        await echo(stream)

    async with serving(manager, {**ECHO, Protocol.CA: Framed(note)}) as address:
        for protocol in (Protocol.SESSION, Protocol.API, Protocol.SYNC):
            refusal = await refusal_of(worker, address, protocol)
            assert isinstance(refusal, PeerRefused)
            assert refusal.reason == "ended"
            assert "renews by itself" in str(refusal)
        await talk(await worker.transport.connect(address, Protocol.CA))
    assert [peer.rights for peer in peers] == [Rights.RENEW_ONLY]


async def test_box_that_boots_in_1970_gets_to_its_manager(cluster: Cluster) -> None:
    manager, worker = manager_of(cluster), worker_of(cluster)
    worker.clock = 0.0
    async with serving(manager) as address:
        await talk(await worker.transport.connect(address, Protocol.SESSION))


async def test_manager_that_boots_in_1970_admits_and_says_so(cluster: Cluster) -> None:
    manager, worker = manager_of(cluster), worker_of(cluster)
    manager.clock = 0.0
    peers: list[Peer] = []

    async def note(stream: FrameStream) -> None:
        peers.append(stream.peer)

    async with serving(manager, {Protocol.SESSION: Framed(note)}) as address:
        stream = await worker.transport.connect(address, Protocol.SESSION)
        with pytest.raises(EndOfStream):
            await stream.receive()
        await stream.aclose()
    assert [peer.skewed for peer in peers] == [True]


async def test_old_stolen_key_of_a_manager_fools_nobody(cluster: Cluster) -> None:
    """The floor is known time; the local clock counts for nothing here."""
    stolen = Node(cluster, cluster.node(Role.MANAGER, lifetime=DAY))
    worker = worker_of(cluster)
    async with serving(stolen) as address:
        worker.clock = NOW + YEAR
        await talk(await worker.transport.connect(address, Protocol.SESSION))
        worker.gate.clock.learn(NOW + 30 * DAY, manager_of(cluster).credentials.certificate)
        refusal = await refusal_of(worker, address, Protocol.SESSION)
    assert isinstance(refusal, WrongPeer)
    assert "ended in the past" in str(refusal)


async def test_faulty_clock_cannot_end_all_certificates(cluster: Cluster) -> None:
    worker, manager = worker_of(cluster), manager_of(cluster)
    worker.gate.clock.learn(NOW + 73 * YEAR, manager.credentials.certificate)
    assert worker.gate.clock.floor == 0.0


async def test_roots_change_without_a_gap(cluster: Cluster) -> None:
    """R1 only, R2 only or both: leaf and cross verify for everybody (B1, reissue)."""
    successor = CertificateAuthority.create(cluster.id, now=NOW)
    cross = cluster.authority.cross_sign(successor.certificate, now=NOW)
    both = cluster.trust.with_root(successor.certificate, crosses=(cross,))
    new_only = both.without_root(cluster.authority.certificate, compromised=False)
    key = KeyPair.generate()
    der = successor.issue(key.public_key, node=key.node_id, role=Role.MANAGER, now=NOW)
    cluster.nodes[key.node_id] = KnownNode(role=Role.MANAGER, public_keys=(key.public_key,))
    renewed = Credentials(key, (der, cross), both)
    assert NodeCertificate.from_der_untrusted(der).node == key.node_id

    async def meet(manager: Node, caller: Node) -> None:
        async with serving(manager) as address:
            await talk(await caller.transport.connect(address, Protocol.SESSION))

    old = worker_of(cluster)  # trusts R1, certificate of R1
    await meet(Node(cluster, renewed), old)
    middle = worker_of(cluster)
    middle.credentials = replace_trust(middle.credentials, new_only.roots)
    await meet(Node(cluster, renewed), middle)
    # After R1 was retired its node may renew still.
    retired = Node(cluster, Credentials(key, (der, cross), new_only))
    async with serving(retired) as address:
        refusal = await refusal_of(old, address, Protocol.SESSION)
        assert "its root was retired" in str(refusal)
        await talk(await old.transport.connect(address, Protocol.CA))


def replace_trust(credentials: Credentials, roots: tuple[bytes, ...]) -> Credentials:
    return Credentials(credentials.key, credentials.chain, replace(credentials.trust, roots=roots))


# What is cut off while it runs:


async def test_removed_node_is_cut_off(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    manager, removed, kept = manager_of(cluster), worker_of(cluster), worker_of(cluster)
    async with serving(manager) as address:
        gone = await removed.transport.connect(address, Protocol.SESSION)
        stays = await kept.transport.connect(address, Protocol.SESSION)
        del cluster.nodes[removed.id]
        assert manager.transport.recheck() == 1
        with pytest.raises((StreamBroken, EndOfStream)):
            await gone.receive()
        await talk(stays)
        await gone.aclose()
    assert f"node cut off node={removed.id}" in caplog.text


async def test_demoted_manager_is_cut_off_raft_and_keeps_its_session(cluster: Cluster) -> None:
    manager, demoted = manager_of(cluster), manager_of(cluster)
    async with serving(manager) as address:
        raft = await demoted.transport.connect(address, Protocol.RAFT)
        session = await demoted.transport.connect(address, Protocol.SESSION)
        cluster.nodes[demoted.id] = replace(cluster.nodes[demoted.id], role=Role.WORKER)
        assert manager.transport.recheck() == 1
        with pytest.raises((StreamBroken, EndOfStream)):
            await raft.receive()
        await talk(session)
        await raft.aclose()


async def test_certificate_that_ends_cuts_nobody_off(cluster: Cluster) -> None:
    manager, worker = manager_of(cluster), worker_of(cluster)
    async with serving(manager) as address:
        session = await worker.transport.connect(address, Protocol.SESSION)
        manager.clock = NOW + YEAR
        assert manager.transport.recheck() == 0
        await talk(session)


# Addresses where no swarmlet is:


async def test_nothing_listens(cluster: Cluster) -> None:
    worker = worker_of(cluster)
    (listener,) = await open_listeners("127.0.0.1", 0)
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    refusal = await refusal_of(worker, ("127.0.0.1", port), Protocol.SESSION)
    assert isinstance(refusal, Unreachable)
    assert f"nothing listens at 127.0.0.1:{port}" in str(refusal)
    assert "that the swarmlet daemon runs there" in str(refusal)


async def test_name_without_an_address(cluster: Cluster) -> None:
    refusal = await refusal_of(worker_of(cluster), ("no-such.invalid", 7947), Protocol.SESSION)
    assert "the name no-such.invalid has no address" in str(refusal)


async def test_silent_address(cluster: Cluster) -> None:
    """A firewall that drops, or a machine that hangs: it accepts and says nothing."""
    (listener,) = await open_listeners("127.0.0.1", 0)
    host, port = listener.socket.getsockname()
    async with listener:
        with pytest.raises(Unreachable, match=r"no answer from .* within 0\.05 s"):
            await worker_of(cluster).transport.connect((host, port), Protocol.SESSION, within=0.05)


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad\r\n\r\n"])
async def test_another_program_at_the_address(cluster: Cluster, greeting: bytes) -> None:
    async def other_program(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(greeting)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await open_listeners("127.0.0.1", 0)
        address = listeners[0].socket.getsockname()
        nursery.start_soon(trio.serve_listeners, other_program, listeners)
        refusal = await refusal_of(worker_of(cluster), address, Protocol.SESSION)
        nursery.cancel_scope.cancel()
    assert isinstance(refusal, Unreachable)
    assert "is not swarmlet: check the address and the port" in str(refusal)


async def test_https_server_at_the_address(cluster: Cluster) -> None:
    """TLS with a certificate that is nobody's, and without our protocols."""
    stranger = Cluster().node(Role.MANAGER)

    async def https(stream: trio.SocketStream) -> None:
        context = stranger.server_context(["h2"])
        tls = trio.SSLStream(stream, context, server_side=True)
        try:
            await tls.do_handshake()
        except trio.BrokenResourceError:
            await trio.aclose_forcefully(tls)

    async with trio.open_nursery() as nursery:
        listeners = await open_listeners("127.0.0.1", 0)
        address = listeners[0].socket.getsockname()
        nursery.start_soon(trio.serve_listeners, https, listeners)
        refusal = await refusal_of(worker_of(cluster), address, Protocol.SESSION)
        nursery.cancel_scope.cancel()
    assert "belongs to another cluster" in str(refusal)


async def test_swarmlet_that_speaks_other_protocols_only(cluster: Cluster) -> None:
    """A release with which we share no version: TLS is fine, the protocol is not known."""
    manager, worker = manager_of(cluster), worker_of(cluster)
    context = worker.credentials.client_context("sl-session/99")
    async with serving(manager) as address:
        with pytest.raises(Unreachable, match="a swarmlet of another version"):
            await dial(address, context, Protocol.SESSION, check=lambda c: None, within=5)


async def test_port_in_use_is_named() -> None:
    (listener,) = await open_listeners("127.0.0.1", 0)
    port = listener.socket.getsockname()[1]
    async with listener:
        with pytest.raises(OSError, match=re.escape(f"127.0.0.1:{port} is in use by another")):
            await open_listeners("127.0.0.1", port)
    with pytest.raises(OSError, match="is no address of this host"):
        await open_listeners("192.0.2.1", port)


async def test_bug_in_a_handler_is_not_hidden(cluster: Cluster) -> None:
    manager, worker = manager_of(cluster), worker_of(cluster)

    async def buggy(stream: FrameStream) -> None:
        raise KeyError("a bug")

    with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
        async with serving(manager, {Protocol.SESSION: Framed(buggy)}) as address:
            stream = await worker.transport.connect(address, Protocol.SESSION)
            async with stream:
                await trio.sleep_forever()


async def test_failing_handler_ends_its_connection_alone(cluster: Cluster) -> None:
    manager, worker = manager_of(cluster), worker_of(cluster)

    async def failing(stream: FrameStream) -> None:
        async with trio.open_nursery():
            raise OSError("the disk is full")

    handlers = {Protocol.SESSION: Framed(failing), Protocol.API: ECHO[Protocol.API]}
    async with serving(manager, handlers) as address:
        async with await worker.transport.connect(address, Protocol.SESSION) as stream:
            with pytest.raises(EndOfStream):
                await stream.receive()
        _, raw = await worker.transport.connect_raw(address, Protocol.API)
        await raw.aclose()


def test_every_protocol_has_its_rule() -> None:
    assert set(RULES) == set(Protocol) == set(ECHO)
    assert isinstance(ECHO[Protocol.API], Raw)
    assert ssl.HAS_TLSv1_3
    assert Transport
