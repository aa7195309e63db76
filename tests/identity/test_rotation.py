"""The rotation of the root: no node that was ever in is ever cut off by it."""

from __future__ import annotations

import random
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from swarmlet.identity import (
    CertificateAuthority,
    NodeCertificate,
    Role,
    TrustBundle,
    UntrustedBundle,
    pinned_untrusted,
)
from swarmlet.identity.certificates import digest_of
from swarmlet.identity.rotation import (
    GRACE,
    PATIENCE,
    WAVE_MIN,
    NodeTrust,
    Phase,
    Rotation,
    RotationRefused,
    advance,
    begin,
    wave,
)
from swarmlet.identity.trust import pem_of
from tests.identity.makers import DAY, NOW, Cluster, key_pair

CLUSTER = Cluster()
R1 = CLUSTER.authority
R2 = CertificateAuthority.create(CLUSTER.id, now=NOW)
CROSS = R1.cross_sign(R2.certificate, now=NOW)
START = Rotation(bundle=CLUSTER.trust, signing=R1.certificate)


def node(name: str = "a", *, version: int, issuer: str, connected: bool = True) -> NodeTrust:
    return NodeTrust(node=name, connected=connected, bundle_version=version, issuer=issuer)


OLD = node(version=1, issuer=R1.digest)
TOLD = node(version=2, issuer=R1.digest)
MOVED = node(version=2, issuer=R2.digest)
AWAY = node("b", version=1, issuer=R1.digest, connected=False)


def begun(*, compromised: bool = False) -> Rotation:
    return begin(START, R2.certificate, CROSS, now=NOW, compromised=compromised)


def test_new_root_is_known_before_it_signs() -> None:
    rotation = begun()
    assert rotation.phase is Phase.DISTRIBUTE
    assert rotation.signing == R1.certificate
    assert rotation.bundle.roots == (R1.certificate, R2.certificate)
    assert advance(rotation, [OLD, AWAY], now=NOW + 1) == rotation
    told = advance(rotation, [TOLD, AWAY], now=NOW + 1)
    assert (told.phase, told.signing) == (Phase.REISSUE, R2.certificate)
    assert told.chain_tail == (CROSS,)


def test_node_that_does_not_take_the_bundle_is_not_waited_for() -> None:
    assert advance(begun(), [OLD], now=NOW + PATIENCE - 1).phase is Phase.DISTRIBUTE
    assert advance(begun(), [OLD], now=NOW + PATIENCE).phase is Phase.REISSUE


def test_node_that_is_away_holds_nothing_up() -> None:
    """swarmkit waits for all nodes to report, so one laptop blocks the rotation."""
    reissue = advance(begun(), [TOLD, AWAY], now=NOW)
    assert advance(reissue, [TOLD, AWAY], now=NOW + DAY).phase is Phase.REISSUE
    retire = advance(reissue, [MOVED, AWAY], now=NOW + DAY)
    assert retire.phase is Phase.RETIRE
    assert advance(retire, [MOVED, AWAY], now=NOW + DAY + GRACE - 1) == retire
    stable = advance(retire, [MOVED, AWAY], now=NOW + DAY + GRACE)
    assert stable.phase is Phase.STABLE
    assert stable.bundle.roots == (R2.certificate,)
    assert stable.bundle.retired == (R1.certificate,)
    assert advance(stable, [MOVED, AWAY], now=NOW + 10 * GRACE) == stable


def test_compromised_root_leaves_no_trace() -> None:
    rotation = begun(compromised=True)
    reissue = advance(rotation, [TOLD], now=NOW)
    assert advance(reissue, [TOLD], now=NOW + 1) == reissue
    for gone in (
        advance(reissue, [MOVED], now=NOW + 1),
        advance(reissue, [TOLD], now=NOW + PATIENCE),
    ):
        assert gone.phase is Phase.STABLE
        assert (gone.bundle.roots, gone.bundle.retired) == ((R2.certificate,), ())
        assert gone.bundle.crosses == ()
        with pytest.raises(UntrustedBundle):
            pinned_untrusted(gone.bundle, R1.digest)


def test_one_rotation_at_a_time() -> None:
    with pytest.raises(RotationRefused, match="phase distribute"):
        begin(begun(), R2.certificate, CROSS, now=NOW)


def test_renewals_come_in_waves() -> None:
    reissue = advance(begun(), [], now=NOW)
    nodes = [node(f"{n:04}", version=2, issuer=R1.digest) for n in range(1000)]
    assert wave(begun(), nodes) == ()
    first = wave(reissue, nodes)
    assert first == tuple(f"{n:04}" for n in range(50))
    assert len(wave(reissue, nodes[:100])) == WAVE_MIN
    assert wave(reissue, [MOVED, AWAY]) == ()
    after = [replace(n, issuer=R2.digest) if n.node in first else n for n in nodes]
    assert wave(reissue, after)[0] == "0050"


def test_openssl_finds_the_way_over_two_crosses(tmp_path: Path) -> None:
    """A node that knows only the first root meets a manager of the third."""
    third = CertificateAuthority.create(CLUSTER.id, now=NOW)
    second_cross = R2.cross_sign(third.certificate, now=NOW)
    key = key_pair("a")
    leaf = third.issue(key.public_key, node=key.node_id, role=Role.MANAGER, now=NOW)
    files = {"root": (R1.certificate,), "chain": (CROSS, second_cross), "leaf": (leaf,)}
    for name, certificates in files.items():
        (tmp_path / name).write_bytes(b"".join(pem_of(der) for der in certificates))
    done = subprocess.run(
        [
            *("openssl", "verify", "-x509_strict", "-attime", str(int(NOW))),
            *("-CAfile", "root", "-untrusted", "chain", "leaf"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def authority_of(root: bytes, authorities: list[CertificateAuthority]) -> CertificateAuthority:
    return next(a for a in authorities if a.certificate == root)


def verifies(bundle: TrustBundle, chain: tuple[bytes, ...]) -> bool:
    """Whether a node that trusts *bundle*'s roots verifies *chain*: leaf, then crosses."""
    leaf, *crosses = chain
    if bundle.vouches(leaf):
        return True
    return any(
        TrustBundle(roots=(cross,)).vouches(leaf) and verifies(bundle, (cross, *rest))
        for at, cross in enumerate(crosses)
        for rest in [tuple(crosses[:at] + crosses[at + 1 :])]
    )


@pytest.mark.parametrize("seed", range(3))
def test_nobody_is_ever_cut_off(seed: int) -> None:
    """Three rotations under nodes that come and go: whatever a node last heard, it verifies who
    serves now, its own certificate still lets it renew, and its old token still pins the cluster.
    """
    rng = random.Random(seed)
    authorities = [R1]
    rotation, now = START, NOW
    held: dict[str, tuple[TrustBundle, bytes]] = {}

    def certify(name: str) -> bytes:
        signer = authority_of(rotation.signing, authorities)
        key = key_pair(name)
        return signer.issue(key.public_key, node=key.node_id, role=certified.role, now=now)

    certified = NodeCertificate.from_der_untrusted(CLUSTER.certificate(key_pair("role")).der)
    for name in "abcdef":
        held[name] = (rotation.bundle, certify(name))
    rotations = 0
    while rotations < 3 or rotation.phase is not Phase.STABLE:
        now += rng.choice([1.0, 300.0, DAY, 20 * DAY])
        connected = {name for name in held if rng.random() < 0.6}
        if rotation.phase is Phase.STABLE:
            successor = CertificateAuthority.create(CLUSTER.id, now=NOW)
            signer = authority_of(rotation.signing, authorities)
            cross = signer.cross_sign(successor.certificate, now=NOW)
            rotation = begin(rotation, successor.certificate, cross, now=now)
            authorities.append(successor)
            rotations += 1
        # Managers serve with a certificate of the root that signs, and its chain.
        manager = (certify("manager"), *rotation.chain_tail)
        for name, (bundle, certificate) in held.items():
            replay = f"seed={seed} node={name} phase={rotation.phase}"
            assert verifies(bundle, manager), replay
            current = rotation.bundle
            assert current.vouches(certificate) or current.vouched(certificate), replay
        for name in connected:
            held[name] = (rotation.bundle, held[name][1])
        asked = wave(rotation, trusts(held, connected, authorities))
        for name in asked:
            if rng.random() < 0.8:
                held[name] = (rotation.bundle, certify(name))
        rotation = advance(rotation, trusts(held, connected, authorities), now=now)
        assert pinned_untrusted(rotation.bundle, R1.digest) == rotation.bundle
    assert len(rotation.bundle.retired) == 3
    assert rotation.signing == authorities[-1].certificate


def trusts(
    held: dict[str, tuple[TrustBundle, bytes]],
    connected: set[str],
    authorities: list[CertificateAuthority],
) -> list[NodeTrust]:
    return [
        NodeTrust(
            node=name,
            connected=name in connected,
            bundle_version=bundle.version,
            issuer=next(
                digest_of(a.certificate)
                for a in authorities
                if TrustBundle(roots=(a.certificate,)).vouches(certificate)
            ),
        )
        for name, (bundle, certificate) in held.items()
    ]
