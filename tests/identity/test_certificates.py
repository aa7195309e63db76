"""Keys, requests, certificates, and what OpenSSL and strict readers think of them."""

from __future__ import annotations

import base64
import hashlib
import random
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.identity import (
    BadCertificate,
    BadKey,
    BadRequest,
    CertificateAuthority,
    Credentials,
    KeyPair,
    NodeCertificate,
    Role,
    check_request_untrusted,
    lesser,
    node_id_of,
)
from swarmlet.identity.authority import NODE_LIFETIME_MIN, ROOT_LIFETIME
from swarmlet.identity.keys import CSR_BYTES_MAX, spki_of
from swarmlet.identity.trust import pem_of
from tests.identity.makers import DAY, NOW, Cluster, key_pair


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return Cluster()


def test_node_id_is_the_digest_of_the_public_key() -> None:
    key = key_pair("a")
    digest = hashlib.sha256(key.public_key).digest()[:16]
    assert key.node_id == base64.b32encode(digest).decode().rstrip("=").lower()
    assert len(key.node_id) == 26
    assert node_id_of(key.public_key) == key.node_id


def test_key_pair_survives_pem_and_shows_no_secret() -> None:
    key = key_pair("a")
    again = KeyPair.from_pem_untrusted(key.pem)
    assert again.public_key == key.public_key
    assert again.derive(b"x") == key.derive(b"x") != key.derive(b"y")
    assert repr(key) == "KeyPair()"


def test_key_of_another_kind_is_refused() -> None:
    other = ec.generate_private_key(ec.SECP384R1())
    pem = KeyPair(other).pem
    with pytest.raises(BadKey, match="P-256"):
        KeyPair.from_pem_untrusted(pem)
    with pytest.raises(BadKey):
        KeyPair.from_pem_untrusted(
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
        )


def test_request_proves_its_key() -> None:
    key = key_pair("a")
    assert check_request_untrusted(key.request()) == key.public_key


def test_request_signed_by_another_key_is_refused() -> None:
    """Who asks for a certificate for a stranger's public key does not get it."""
    mine, theirs = key_pair("a").request(), key_pair("b").request()
    my_key, their_key = key_pair("a").public_key, key_pair("b").public_key
    forged = mine.replace(my_key, their_key)
    assert forged != mine
    assert len(their_key) == len(my_key)
    with pytest.raises(BadRequest, match="not signed"):
        check_request_untrusted(forged)
    assert theirs


def test_request_with_a_key_that_we_do_not_take_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = builder.sign(key, hashes.SHA384())
    with pytest.raises(BadRequest, match="neither"):
        check_request_untrusted(csr.public_bytes(Encoding.DER))
    with pytest.raises(BadRequest, match="at most"):
        check_request_untrusted(bytes(CSR_BYTES_MAX + 1))


def test_ed25519_from_a_secure_element_is_taken(cluster: Cluster) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    public_key = check_request_untrusted(builder.sign(key, None).public_bytes(Encoding.DER))
    assert public_key == spki_of(key.public_key())
    der = cluster.authority.issue(public_key, node="a" * 26, role=Role.WORKER, now=NOW)
    assert NodeCertificate.from_der_untrusted(der).public_key == public_key


def test_certificate_says_who_the_node_is(cluster: Cluster) -> None:
    key = key_pair("a")
    certificate = cluster.certificate(key, Role.MANAGER)
    assert certificate.cluster == cluster.id
    assert certificate.node == key.node_id
    assert certificate.role is Role.MANAGER
    assert certificate.public_key == key.public_key
    assert certificate.not_before == NOW - 3600
    assert certificate.not_after == NOW + 90 * DAY
    names = certificate.x509.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [f"{key.node_id}.{cluster.id}.swarmlet"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        f"swarmlet://{cluster.id}/{key.node_id}"
    ]


def test_no_certificate_is_shorter_than_an_hour(cluster: Cluster) -> None:
    certificate = cluster.certificate(key_pair("a"), lifetime=1.0)
    assert certificate.not_after == NOW + NODE_LIFETIME_MIN


def test_root_lasts_twenty_years_and_comes_back_from_pem(cluster: Cluster) -> None:
    authority = cluster.authority
    again = CertificateAuthority.from_pem_untrusted(authority.certificate_pem, authority.key.pem)
    assert again.certificate == authority.certificate
    assert again.digest == hashlib.sha256(authority.certificate).hexdigest()
    end = authority.x509.not_valid_after_utc.timestamp()
    assert end == NOW + ROOT_LIFETIME
    with pytest.raises(BadKey, match="not that of the root"):
        CertificateAuthority.from_pem_untrusted(authority.certificate_pem, key_pair("a").pem)
    with pytest.raises(BadCertificate):
        CertificateAuthority.from_pem_untrusted(b"nothing", authority.key.pem)


def test_a_box_that_boots_in_1970_can_make_a_cluster() -> None:
    authority = CertificateAuthority.create("a" * 26, now=5.0)
    der = authority.issue(key_pair("a").public_key, node="b" * 26, role=Role.WORKER, now=5.0)
    assert NodeCertificate.from_der_untrusted(der).not_before == 5.0 - 3600


def test_openssl_finds_the_chain_strictly_valid(cluster: Cluster, tmp_path: Path) -> None:
    """The checks of Python 3.13's default context (X509_V_FLAG_X509_STRICT), by openssl itself."""
    root, leaf = tmp_path / "root.pem", tmp_path / "leaf.pem"
    root.write_bytes(cluster.authority.certificate_pem)
    leaf.write_bytes(pem_of(cluster.certificate(key_pair("a")).der))
    for purpose in ("sslclient", "sslserver"):
        done = subprocess.run(
            [
                "openssl",
                "verify",
                "-x509_strict",
                "-attime",
                str(int(NOW)),
                "-purpose",
                purpose,
                "-CAfile",
                root,
                leaf,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_root_is_no_node(cluster: Cluster) -> None:
    with pytest.raises(BadCertificate, match="the subject has 0 times"):
        NodeCertificate.from_der_untrusted(cluster.authority.certificate)


def test_credentials_belong_together(cluster: Cluster) -> None:
    certificate = cluster.certificate(key_pair("a"))
    with pytest.raises(BadCertificate, match="another key"):
        Credentials(key_pair("b"), (certificate.der,), cluster.trust)
    shown = repr(Credentials(key_pair("a"), (certificate.der,), cluster.trust))
    assert "BEGIN" not in shown
    assert certificate.node in shown


def test_lesser_role_wins() -> None:
    assert lesser(Role.MANAGER, Role.WORKER) is Role.WORKER
    assert lesser(Role.WORKER, Role.MANAGER) is Role.WORKER
    assert lesser(Role.MANAGER, Role.MANAGER) is Role.MANAGER


@given(st.binary(max_size=600))
def test_noise_is_no_certificate_and_no_request(noise: bytes) -> None:
    with pytest.raises(BadCertificate):
        NodeCertificate.from_der_untrusted(noise)
    with pytest.raises(BadRequest):
        check_request_untrusted(noise)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_certificates_and_requests_raise_only_what_they_say(
    cluster: Cluster, seed: int
) -> None:
    """1,000 mutations a seed of each: nothing but the two named errors comes out."""
    rng = random.Random(seed)
    certificate = cluster.certificate(key_pair("a")).der
    request = key_pair("a").request()
    for _ in range(1000):
        for read, error, body in (
            (NodeCertificate.from_der_untrusted, BadCertificate, mutated(certificate, rng)),
            (check_request_untrusted, BadRequest, mutated(request, rng)),
        ):
            try:
                read(body)
            except error:
                pass
            except Exception as exc:
                raise AssertionError(f"{read.__name__}(bytes.fromhex({body.hex()!r}))") from exc


def mutated(body: bytes, rng: random.Random) -> bytes:
    changed = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed))
        match rng.randrange(4):
            case 0:
                changed[at] = rng.randrange(256)
            case 1:
                changed[at] ^= 1 << rng.randrange(8)
            case 2:
                del changed[at : at + rng.randint(1, 8)]
            case _:
                changed[at:at] = rng.randbytes(rng.randint(1, 4))
        if not changed:
            break
    return bytes(changed)
