"""How a host becomes a node: the pin, the token, the answer, over real TLS on the loopback."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
import trio

from swarmlet import wire
from swarmlet.identity import (
    CertificateAuthority,
    Credentials,
    Issued,
    JoinFacts,
    JoinFault,
    JoinPending,
    JoinRefused,
    JoinRequest,
    KeyPair,
    KnownNode,
    NodeCertificate,
    Rights,
    Role,
    Token,
    TrustAnswer,
    TrustRequest,
    joining_context,
    keys_after_renewal,
    new_issued_token,
    node_id_of,
    secret_digest,
    standing_token,
    verify_token,
)
from swarmlet.transport import (
    CertificateAuthorityService,
    EnrolmentRefused,
    EnrolmentUnavailable,
    Framed,
    FrameStream,
    Peer,
    PeerRefused,
    Protocol,
    Unreachable,
    WrongPeer,
    enrol,
    fetch_trust,
    renew,
)
from swarmlet.transport.dial import dial
from swarmlet.transport.enrolment import FAILURES_BURST, QUESTIONS_MAX
from tests.identity.makers import NOW, YEAR, Cluster
from tests.transport.makers import Node, manager_of, serving, worker_of

KEY = bytes(range(32))
FACTS = JoinFacts(name="pi-3", address="192.0.2.3:7947", version="0.1.0")


@dataclass
class Record:
    """As the store keeps an issued token."""

    id: str
    role: str
    secret_digest: bytes
    uses_left: int
    expires_at: float = NOW + 3600
    labels: Mapping[str, str] = field(default_factory=dict)


class Registry:
    """A manager's Enrolment over a store in memory."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.generations = {"worker": 1, "manager": 1}
        self.issued: dict[str, Record] = {}
        self.joined: list[tuple[str, JoinFacts, str]] = []
        self.leads = True
        self.approved = True

    @property
    def root(self) -> str:
        return self.cluster.authority.digest

    def token(self, role: Role = Role.WORKER) -> Token:
        return standing_token(self.root, KEY, role, self.generations[role])

    def issue_token(self, *, uses: int = 1) -> Token:
        token = new_issued_token(self.root, random.Random(len(self.issued)).randbytes)
        self.issued[token.id] = Record(token.id, "worker", secret_digest(token), uses)
        return token

    def trust(self) -> TrustAnswer:
        return TrustAnswer(cluster=self.cluster.id, bundle=self.cluster.trust)

    async def join(
        self, token: Token, public_key: bytes, request: JoinRequest, address: str
    ) -> Issued | JoinPending | JoinRefused:
        await trio.lowlevel.checkpoint()
        if not self.leads:
            raise EnrolmentUnavailable("there is no leader just now: try again in a moment")
        node = node_id_of(public_key)
        known = self.cluster.nodes.get(node)
        if known is not None:
            return self._issue(node, known.role, public_key)
        grant = verify_token(
            token,
            roots=self.cluster.trust.digests(),
            key=KEY,
            generations=self.generations,
            find_issued=self.issued.get,
            now=NOW,
        )
        if not self.approved:
            return JoinPending(retry_after=2.0, text="waits for approval")
        if grant.issued:
            self.issued[token.id].uses_left -= 1
        self.cluster.nodes[node] = KnownNode(role=grant.role, public_keys=(public_key,))
        self.joined.append((node, request.facts, address))
        return self._issue(node, grant.role, public_key)

    async def renew(self, certificate: NodeCertificate, public_key: bytes) -> Issued:
        await trio.lowlevel.checkpoint()
        known = self.cluster.nodes[certificate.node]
        keys = keys_after_renewal(asked_with=certificate.public_key, asked_for=public_key)
        self.cluster.nodes[certificate.node] = KnownNode(role=known.role, public_keys=keys)
        return self._issue(certificate.node, known.role, public_key)

    def _issue(self, node: str, role: Role, public_key: bytes) -> Issued:
        der = self.cluster.authority.issue(public_key, node=node, role=role, now=NOW + YEAR)
        return Issued(node=node, chain=(der,), bundle=self.cluster.trust, clock=NOW)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def registry(cluster: Cluster) -> Registry:
    return Registry(cluster)


def door(registry: Registry) -> Mapping[Protocol, Framed]:
    async def serve(stream: FrameStream) -> None:
        await service.serve(stream)

    service = CertificateAuthorityService(registry)
    return {Protocol.CA: Framed(serve), Protocol.SESSION: Framed(serve)}


async def stranger_at(registry: Registry, address: tuple[str, int]) -> FrameStream:
    """A verified connection of somebody without a certificate."""
    context = joining_context(Protocol.CA, registry.cluster.trust)
    stream, _ = await dial(address, context, Protocol.CA, check=lambda c: None, within=5)
    return FrameStream(stream, Peer(protocol=Protocol.CA, address=address), wire)


async def joined(answer: Issued | JoinPending, key: KeyPair, cluster: Cluster) -> Node:
    """The node that came of a join."""
    assert isinstance(answer, Issued)
    return Node(cluster, Credentials(key, answer.chain, answer.bundle))


async def test_host_becomes_a_node(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    manager, key, token = manager_of(registry.cluster), KeyPair.generate(), registry.token()
    async with serving(manager, door(registry)) as address:
        answer = await enrol(address, token, key, FACTS)
        node = await joined(answer, key, registry.cluster)
        assert node.id == key.node_id
        assert node.credentials.role is Role.WORKER
        assert node.credentials.trust == registry.cluster.trust
        await (await node.transport.connect(address, Protocol.SESSION)).aclose()
    assert registry.joined == [(node.id, FACTS, "127.0.0.1")]
    assert f"node joined node={node.id}" in caplog.text
    assert str(token)[-20:] not in caplog.text


async def test_manager_token_makes_a_manager(registry: Registry) -> None:
    manager, key = manager_of(registry.cluster), KeyPair.generate()
    async with serving(manager, door(registry)) as address:
        answer = await enrol(address, registry.token(Role.MANAGER), key, FACTS)
        node = await joined(answer, key, registry.cluster)
    assert node.credentials.role is Role.MANAGER


async def test_join_that_is_asked_again_is_the_same_node(registry: Registry) -> None:
    """The answer was lost: no twin, and no second use of the token."""
    manager, key, token = manager_of(registry.cluster), KeyPair.generate(), registry.issue_token()
    async with serving(manager, door(registry)) as address:
        first = await enrol(address, token, key, FACTS)
        second = await enrol(address, token, key, FACTS)
        assert isinstance(first, Issued)
        assert isinstance(second, Issued)
        assert first.node == second.node
        with pytest.raises(EnrolmentRefused, match="used as often as it may"):
            await enrol(address, token, KeyPair.generate(), FACTS)
    assert len(registry.joined) == 1


async def test_node_that_waits_for_approval_asks_again(registry: Registry) -> None:
    manager, key, token = manager_of(registry.cluster), KeyPair.generate(), registry.token()
    registry.approved = False
    async with serving(manager, door(registry)) as address:
        answer = await enrol(address, token, key, FACTS)
        assert isinstance(answer, JoinPending)
        assert answer.retry_after == 2.0
        registry.approved = True
        await joined(await enrol(address, token, key, FACTS), key, registry.cluster)


async def test_token_of_another_cluster_sends_nothing(registry: Registry) -> None:
    """The pin does not fit, so neither token nor request leaves the joiner."""
    manager = manager_of(registry.cluster)
    foreign = Registry(Cluster())
    questions: list[object] = []

    async def record(stream: FrameStream) -> None:
        async for question in stream:
            questions.append(question)
            await stream.send(registry.trust())

    async with serving(manager, {Protocol.CA: Framed(record)}) as address:
        with pytest.raises(WrongPeer, match="another cluster than the token") as refusal:
            await enrol(address, foreign.token(), KeyPair.generate(), FACTS)
    assert "nothing was sent to it" in str(refusal.value)
    assert questions == [TrustRequest()]


async def test_man_in_the_middle_with_the_true_roots_gets_nothing(registry: Registry) -> None:
    """It hands out our real bundle, but cannot show a certificate that this bundle verifies."""
    impostor = Node(registry.cluster, Cluster().node(Role.MANAGER))
    questions: list[object] = []

    async def record(stream: FrameStream) -> None:
        async for question in stream:
            questions.append(question)
            await stream.send(registry.trust())

    async with serving(impostor, {Protocol.CA: Framed(record)}) as address:
        with pytest.raises(WrongPeer, match="belongs to another cluster"):
            await enrol(address, registry.token(), KeyPair.generate(), FACTS)
    assert questions == [TrustRequest()]


async def test_worker_cannot_pose_as_the_ca(registry: Registry) -> None:
    """A node of the cluster, but no manager: its key may have been stolen at the edge."""
    worker = worker_of(registry.cluster)
    async with serving(worker, door(registry)) as address:
        with pytest.raises(WrongPeer, match="give the address of a manager"):
            await enrol(address, registry.token(), KeyPair.generate(), FACTS)
    assert registry.joined == []


async def test_worker_without_a_ca_refuses(registry: Registry) -> None:
    worker = worker_of(registry.cluster)
    async with serving(worker, {}) as address:
        with pytest.raises(PeerRefused, match="does not serve sl-ca/1: ask a manager"):
            await enrol(address, registry.token(), KeyPair.generate(), FACTS)


@pytest.mark.parametrize(
    ("rotated", "advice"),
    [(True, "the worker token was replaced"), (False, "the cluster knows no such token")],
)
async def test_wrong_token_says_what_to_do(registry: Registry, rotated: bool, advice: str) -> None:
    manager, token = manager_of(registry.cluster), registry.token()
    if rotated:
        registry.generations["worker"] += 1
    else:
        token = standing_token(registry.root, bytes(32), Role.WORKER, 1)
    async with serving(manager, door(registry)) as address:
        with pytest.raises(EnrolmentRefused, match=advice) as refusal:
            await enrol(address, token, KeyPair.generate(), FACTS)
    assert refusal.value.fault is JoinFault.TOKEN
    assert "`swarmlet token worker` on a manager prints" in refusal.value.text


async def test_guessing_tokens_is_slow(registry: Registry) -> None:
    manager = manager_of(registry.cluster)
    wrong = standing_token(registry.root, bytes(32), Role.WORKER, 1)
    async with serving(manager, door(registry)) as address:
        for _ in range(int(FAILURES_BURST)):
            with pytest.raises(EnrolmentRefused) as refusal:
                await enrol(address, wrong, KeyPair.generate(), FACTS)
            assert refusal.value.fault is JoinFault.TOKEN
        with pytest.raises(EnrolmentRefused, match="too many wrong tokens") as refusal:
            await enrol(address, registry.token(), KeyPair.generate(), FACTS)
        assert refusal.value.fault is JoinFault.BUSY


async def test_manager_that_hands_on_is_not_taken_for_a_guesser(registry: Registry) -> None:
    """It has counted the failures of its own callers; the next joiner comes through it too."""
    leader, follower = manager_of(registry.cluster), manager_of(registry.cluster)
    wrong = standing_token(registry.root, bytes(32), Role.WORKER, 1)
    async with serving(leader, door(registry)) as address:
        for _ in range(int(FAILURES_BURST) + 3):
            stream = await follower.transport.connect(address, Protocol.CA)
            async with stream:
                csr = KeyPair.generate().request()
                await stream.send(JoinRequest(token=str(wrong), csr=csr, facts=FACTS))
                answer = await stream.receive()
            assert isinstance(answer, JoinRefused)
            assert answer.fault is JoinFault.TOKEN


async def test_answer_of_the_leader_counts_as_a_failure_where_it_was_asked(
    registry: Registry,
) -> None:
    class Follower(Registry):
        async def join(
            self, token: Token, public_key: bytes, request: JoinRequest, address: str
        ) -> JoinRefused:
            await trio.lowlevel.checkpoint()
            return JoinRefused(fault=JoinFault.TOKEN, text="the leader says no")

    manager, key = manager_of(registry.cluster), KeyPair.generate()
    async with serving(manager, door(Follower(registry.cluster))) as address:
        for _ in range(int(FAILURES_BURST)):
            with pytest.raises(EnrolmentRefused, match="the leader says no"):
                await enrol(address, registry.token(), key, FACTS)
        with pytest.raises(EnrolmentRefused, match="too many wrong tokens"):
            await enrol(address, registry.token(), key, FACTS)


async def test_no_leader_says_try_again(registry: Registry) -> None:
    manager = manager_of(registry.cluster)
    registry.leads = False
    async with serving(manager, door(registry)) as address:
        with pytest.raises(EnrolmentRefused, match="there is no leader") as refusal:
            await enrol(address, registry.token(), KeyPair.generate(), FACTS)
    assert refusal.value.fault is JoinFault.UNAVAILABLE


@pytest.mark.parametrize(
    "facts",
    [
        JoinFacts(name="", address=""),
        JoinFacts(name="x" * 64, address=""),
        JoinFacts(name="a\x1b[2J", address=""),
        JoinFacts(name="a", address="x" * 300),
        JoinFacts(name="a", address="", facts={str(n): "x" for n in range(33)}),
        JoinFacts(name="a", address="", facts={"x": "y" * 300}),
    ],
)
async def test_facts_are_bounded(registry: Registry, facts: JoinFacts) -> None:
    manager = manager_of(registry.cluster)
    async with serving(manager, door(registry)) as address:
        with pytest.raises(EnrolmentRefused, match="--name") as refusal:
            await enrol(address, registry.token(), KeyPair.generate(), facts)
    assert refusal.value.fault is JoinFault.REQUEST
    assert registry.joined == []


async def test_request_of_another_key_is_refused(registry: Registry) -> None:
    """A stranger's public key under one's own signature: no certificate comes of it."""
    manager = manager_of(registry.cluster)
    mine, theirs = KeyPair.generate(), KeyPair.generate()
    forged = mine.request().replace(mine.public_key, theirs.public_key)
    async with serving(manager, door(registry)) as address:
        stream = await stranger_at(registry, address)
        async with stream:
            await stream.send(JoinRequest(token=str(registry.token()), csr=forged, facts=FACTS))
            answer = await stream.receive()
    assert isinstance(answer, JoinRefused)
    assert answer.fault is JoinFault.REQUEST
    assert "not signed with the key" in answer.text


async def test_stranger_cannot_renew(registry: Registry) -> None:
    manager = manager_of(registry.cluster)
    async with serving(manager, door(registry)) as address:
        stream = await stranger_at(registry, address)
        async with stream:
            with pytest.raises(EnrolmentRefused, match="join with a token first") as refusal:
                await renew(stream, KeyPair.generate())
    assert refusal.value.fault is JoinFault.RIGHTS


async def test_certificates_are_issued_at_a_bounded_rate(registry: Registry) -> None:
    """Whoever holds a token may not make the managers sign all day."""
    manager, key = manager_of(registry.cluster), KeyPair.generate()
    request = JoinRequest(token=str(registry.token()), csr=key.request(), facts=FACTS)
    async with serving(manager, door(registry)) as address:
        for _ in range(50):
            stream = await stranger_at(registry, address)
            async with stream:
                for _ in range(QUESTIONS_MAX):
                    await stream.send(request)
                    answer = await stream.receive()
                    if isinstance(answer, JoinRefused):
                        assert answer.fault is JoinFault.BUSY
                        return
    pytest.fail("400 certificates in a row")


async def test_one_connection_asks_a_few_questions_only(registry: Registry) -> None:
    manager = manager_of(registry.cluster)
    async with serving(manager, door(registry)) as address:
        stream = await stranger_at(registry, address)
        async with stream:
            for _ in range(QUESTIONS_MAX):
                await stream.send(TrustRequest())
                assert await stream.receive() == registry.trust()
            assert [message async for message in stream] == []


async def test_answer_that_is_none_is_explained(registry: Registry) -> None:
    manager = manager_of(registry.cluster)

    async def confused(stream: FrameStream) -> None:
        await stream.receive()
        await stream.send(JoinPending(retry_after=1.0))

    async def silent(stream: FrameStream) -> None:
        await stream.receive()

    async with serving(manager, {Protocol.CA: Framed(confused)}) as address:
        with pytest.raises(Unreachable, match="update the older of the two"):
            await fetch_trust(address, registry.root)
    async with serving(manager, {Protocol.CA: Framed(silent)}) as address:
        with pytest.raises(Unreachable, match="hung up before it answered"):
            await fetch_trust(address, registry.root)


async def test_certificate_that_is_of_no_use_is_not_kept(registry: Registry) -> None:
    """A manager that signs the wrong thing is found out before anything is written."""
    key, other = KeyPair.generate(), CertificateAuthority.create(registry.cluster.id, now=NOW)

    class Damaged(Registry):
        def _issue(self, node: str, role: Role, public_key: bytes) -> Issued:
            der = other.issue(public_key, node=node, role=role, now=NOW)
            return Issued(node=node, chain=(der,), bundle=self.cluster.trust)

    manager = manager_of(registry.cluster)
    async with serving(manager, door(Damaged(registry.cluster))) as address:
        with pytest.raises(WrongPeer, match="no root of the cluster signed it"):
            await enrol(address, registry.token(), key, FACTS)


async def test_node_that_was_off_for_two_years_renews_and_is_back(registry: Registry) -> None:
    manager, worker = manager_of(registry.cluster), worker_of(registry.cluster)
    manager.clock = NOW + YEAR
    async with serving(manager, door(registry)) as address:
        with pytest.raises(PeerRefused, match="renews by itself"):
            await worker.transport.connect(address, Protocol.SESSION)
        stream = await worker.transport.connect(address, Protocol.CA)
        async with stream:
            assert stream.peer.rights is Rights.FULL
            key = KeyPair.generate()
            issued = await renew(stream, key)
        worker.credentials = Credentials(key, issued.chain, issued.bundle)
        assert worker.credentials.node == issued.node
        await (await worker.transport.connect(address, Protocol.SESSION)).aclose()
