"""Renewal against a real manager: in time, over crashes, and when nobody answers."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from swarmlet.identity import (
    Credentials,
    Issued,
    JoinFault,
    KnownNode,
    NodeCertificate,
    Role,
    Vault,
)
from swarmlet.transport import EnrolmentRefused, EnrolmentUnavailable, Protocol
from swarmlet.transport.renewal import (
    RETRY_MAX,
    RETRY_MIN,
    ManagerAddress,
    Renewer,
    due_at,
    retry_pause,
)
from tests.identity.makers import NOW, YEAR, Cluster
from tests.transport.makers import Node, manager_of, serving
from tests.transport.test_enrolment import Registry, door


class Machine:
    """A node with its vault, as a daemon would hold it."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.vault = Vault(folder)
        key = self.vault.pending_key()
        chain = (cluster.certificate(key).der,)
        cluster.nodes[key.node_id] = KnownNode(role=Role.WORKER, public_keys=(key.public_key,))
        self.vault.store_pending(chain, cluster.trust)
        self.node = Node(cluster, self.vault.promote_pending())
        self.wall = NOW
        self.adopted: list[Credentials] = []
        self.managers: list[ManagerAddress] = []
        self.renewer = self.start()

    @property
    def current(self) -> Credentials:
        return self.node.credentials

    def start(self) -> Renewer:
        """What a new life of the daemon begins with."""
        loaded = self.vault.load()
        assert loaded is not None
        self.node.credentials = loaded
        self.renewer = Renewer(
            self.vault,
            self.node.transport,
            credentials=lambda: self.node.credentials,
            adopt=self._adopt,
            managers=lambda: self.managers,
            now=lambda: self.wall,
            rng=random.Random(0),
        )
        return self.renewer

    def _adopt(self, credentials: Credentials) -> None:
        self.node.credentials = credentials
        self.adopted.append(credentials)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def registry(cluster: Cluster) -> Registry:
    return Registry(cluster)


@pytest.fixture
def machine(cluster: Cluster, tmp_path: Path) -> Machine:
    return Machine(cluster, tmp_path / "identity")


def test_renewals_spread_over_a_third_of_the_life(cluster: Cluster) -> None:
    shares = []
    for _ in range(200):
        certificate = cluster.node().certificate
        life = certificate.not_after - certificate.not_before
        shares.append((due_at(certificate) - certificate.not_before) / life)
        assert due_at(certificate) == due_at(NodeCertificate.from_der_untrusted(certificate.der))
    assert 0.5 <= min(shares) < 0.56
    assert 0.74 < max(shares) <= 0.8


async def test_node_renews_with_a_new_key(
    registry: Registry, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    manager, first = manager_of(registry.cluster), machine.current
    async with serving(manager, door(registry)) as address:
        machine.managers = [ManagerAddress(address, manager.id)]
        assert await machine.renewer.renew_once()
    assert machine.current.node == first.node
    assert machine.current.key.public_key != first.key.public_key
    assert machine.current.certificate.not_after > first.certificate.not_after
    stored = machine.vault.load()
    assert stored is not None
    assert stored.certificate == machine.current.certificate
    assert machine.vault.load_pending() is None
    assert f"certificate renewed node={first.node} role=worker" in caplog.text


async def test_promoted_node_hurries_to_its_new_certificate(
    registry: Registry, machine: Machine
) -> None:
    manager = manager_of(registry.cluster)
    known = registry.cluster.nodes[machine.current.node]
    registry.cluster.nodes[machine.current.node] = KnownNode(
        role=Role.MANAGER, public_keys=known.public_keys
    )
    renewed = trio.Event()
    adopt = machine._adopt

    def note(credentials: Credentials) -> None:
        adopt(credentials)
        renewed.set()

    machine.renewer._adopt = note
    async with serving(manager, door(registry)) as address, trio.open_nursery() as nursery:
        machine.managers = [ManagerAddress(address)]
        await nursery.start(machine.renewer.run)
        machine.renewer.hurry()
        with trio.fail_after(10):
            await renewed.wait()
        nursery.cancel_scope.cancel()
    assert machine.current.role is Role.MANAGER


async def test_node_that_was_off_past_its_end_renews_at_start(
    registry: Registry, machine: Machine
) -> None:
    manager = manager_of(registry.cluster)
    manager.clock = machine.wall = NOW + YEAR
    async with serving(manager, door(registry)) as address, trio.open_nursery() as nursery:
        machine.managers = [ManagerAddress(address)]
        await nursery.start(machine.renewer.run)
        with trio.fail_after(10):
            while not machine.adopted:  # noqa: ASYNC110  the renewer tells nobody else
                await trio.sleep(0.01)
        stream = await machine.node.transport.connect(address, Protocol.SESSION)
        await stream.aclose()
        nursery.cancel_scope.cancel()


class Crash(BaseException):
    """The daemon ends here."""


@contextmanager
def crash_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> Iterator[None]:
    def crash(*args: object, **kwargs: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, crash)
        with pytest.raises(Crash):
            yield


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Vault, "pending_key"),  # before anything
        (Renewer, "_ask"),  # the key is on disk
        (Vault, "store_pending"),  # signed, the store knows the new key, the answer is lost
        (Renewer, "_works"),  # kept, not tried
        (Vault, "promote_pending"),  # tried, not promoted
    ],
)
async def test_renewal_goes_on_where_a_crash_left_it(
    registry: Registry,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
) -> None:
    manager, first = manager_of(registry.cluster), machine.current
    async with serving(manager, door(registry)) as address:
        machine.managers = [ManagerAddress(address)]
        with crash_at(monkeypatch, owner, name):
            await machine.renewer.renew_once()
        renewer = machine.start()
        # Whatever happened, the node is let in with what its disk says,
        stream = await machine.node.transport.connect(address, Protocol.SESSION)
        await stream.aclose()
        # and the renewal can be finished.
        assert await renewer.renew_once()
        stream = await machine.node.transport.connect(address, Protocol.SESSION)
        await stream.aclose()
    assert machine.current.node == first.node
    assert machine.current.key.public_key != first.key.public_key


async def test_certificate_that_a_manager_does_not_know_yet_is_not_used(
    registry: Registry, machine: Machine
) -> None:
    """A follower that is behind refuses the new key: the old one stays in use until it works."""
    manager, first = manager_of(registry.cluster), machine.current
    renew = registry.renew

    async def forgetful(certificate: NodeCertificate, public_key: bytes) -> Issued:
        known = registry.cluster.nodes[certificate.node]
        issued = await renew(certificate, public_key)
        registry.cluster.nodes[certificate.node] = known
        return issued

    registry.renew = forgetful  # type: ignore[method-assign]
    async with serving(manager, door(registry)) as address:
        machine.managers = [ManagerAddress(address)]
        assert not await machine.renewer.renew_once()
        assert machine.current is first
        assert "not admitted yet" in machine.renewer.status().last_failure
        registry.renew = renew  # type: ignore[method-assign]
        assert await machine.renewer.renew_once()
    assert machine.renewer.status().failures == 0


async def test_other_managers_are_asked_when_one_cannot(
    registry: Registry, machine: Machine
) -> None:
    class Leaderless(Registry):
        async def renew(self, certificate: NodeCertificate, public_key: bytes) -> Issued:
            await trio.lowlevel.checkpoint()
            raise EnrolmentUnavailable("no leader")

    first, second = manager_of(registry.cluster), manager_of(registry.cluster)
    async with (
        serving(first, door(Leaderless(registry.cluster))) as behind,
        serving(second, door(registry)) as leader,
    ):
        machine.managers = [
            ManagerAddress(("127.0.0.1", 1)),
            ManagerAddress(behind),
            ManagerAddress(leader),
        ]
        assert await machine.renewer.renew_once()


async def test_refusal_for_good_is_not_asked_around(
    registry: Registry, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    class Strict(Registry):
        async def renew(self, certificate: NodeCertificate, public_key: bytes) -> Issued:
            await trio.lowlevel.checkpoint()
            asked.append(certificate.node)
            raise EnrolmentRefused(JoinFault.RIGHTS, "join it again")

    manager = manager_of(registry.cluster)
    async with serving(manager, door(Strict(registry.cluster))) as address:
        machine.managers = [ManagerAddress(address), ManagerAddress(address)]
        assert not await machine.renewer.renew_once()
    assert len(asked) == 1
    assert "join it again" in caplog.text
    assert "renewal failed" in caplog.text


async def test_node_that_knows_no_manager_says_so(machine: Machine) -> None:
    assert not await machine.renewer.renew_once()
    assert machine.renewer.status().last_failure == "no manager is known"
    assert machine.renewer.status().failures == 1


def test_tries_become_rarer_and_never_cease() -> None:
    rng = random.Random(0)
    pauses = [retry_pause(failures, rng) for failures in range(1, 5000)]
    assert RETRY_MIN <= pauses[0] <= RETRY_MIN * 1.5
    assert pauses[:3] == sorted(pauses[:3])
    assert min(pauses[6:]) >= RETRY_MAX
    assert max(pauses) <= RETRY_MAX * 1.5
