"""The cluster's certificate authority: makes roots, signs nodes, signs its own successor.

Sync, and about a third of a millisecond a signature. Whoever holds the private key of a root
is the cluster: it lies in the sealed log, and never in a plain file.
"""

from __future__ import annotations

import datetime
import secrets
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from swarmlet.identity.certificates import BadCertificate, Role, digest_of, load_untrusted
from swarmlet.identity.keys import ID_BYTES, BadKey, KeyPair, base32, public_key_untrusted

DAY = 86400.0
#: A root that ends takes the cluster with it; rotation, not its end, is what replaces one.
ROOT_LIFETIME = 20 * 365 * DAY
NODE_LIFETIME = 90 * DAY
#: For boxes that are off for long: fewer renewals, and an end that a season does not reach.
NODE_LIFETIME_EDGE = 400 * DAY
#: Below an hour a node could not renew in time over a slow link.
NODE_LIFETIME_MIN = 3600.0
#: A certificate begins this much earlier than now, for readers whose clock is behind.
BACKDATE = 3600.0


def new_cluster_id() -> str:
    """Return a new cluster's id: 16 random bytes, written like a node id."""
    return base32(secrets.token_bytes(ID_BYTES))


@dataclass(frozen=True)
class CertificateAuthority:
    """A root with its private key."""

    certificate: bytes  # DER
    key: KeyPair = field(repr=False)

    @classmethod
    def create(cls, cluster: str, *, now: float) -> CertificateAuthority:
        """Make the root of *cluster*, valid for twenty years."""
        key = KeyPair.generate()
        name = _root_name(cluster, key.public_key)
        certificate = _sign(
            key,
            subject=name,
            issuer=name,
            issuer_certificate=None,
            public_key=key.private_key.public_key(),
            now=now,
            lifetime=ROOT_LIFETIME,
            extensions=_AUTHORITY,
        )
        return cls(certificate, key)

    @classmethod
    def from_pem_untrusted(cls, certificate: bytes, key: bytes) -> CertificateAuthority:
        """Return the authority whose certificate and private key stand in two PEM texts.

        Raises:
            BadCertificate, BadKey: either is damaged, or they do not belong together.
        """
        try:
            der = x509.load_pem_x509_certificate(certificate).public_bytes(
                serialization.Encoding.DER
            )
        except (ValueError, x509.InvalidVersion) as exc:
            raise BadCertificate(f"not a root certificate: {exc}") from exc
        authority = cls(der, KeyPair.from_pem_untrusted(key))
        if authority.x509.public_key() != authority.key.private_key.public_key():
            raise BadKey("the private key is not that of the root certificate")
        return authority

    @property
    def x509(self) -> x509.Certificate:
        return load_untrusted(self.certificate)

    @property
    def certificate_pem(self) -> bytes:
        return self.x509.public_bytes(serialization.Encoding.PEM)

    @property
    def digest(self) -> str:
        return digest_of(self.certificate)

    @property
    def cluster(self) -> str:
        value = self.x509.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value
        assert isinstance(value, str)
        return value

    def issue(
        self,
        public_key: bytes,
        *,
        node: str,
        role: Role,
        now: float,
        lifetime: float = NODE_LIFETIME,
    ) -> bytes:
        """Return a certificate (DER) for *node*, whose key (SPKI) is *public_key*.

        The caller has seen that the node holds the key (check_request_untrusted) and may have
        the role. *lifetime* below an hour becomes an hour.
        """
        cluster = self.cluster
        names = [
            x509.UniformResourceIdentifier(f"swarmlet://{cluster}/{node}"),
            x509.DNSName(f"{node}.{cluster}.swarmlet"),
        ]
        return _sign(
            self.key,
            subject=_name(cluster, role, node),
            issuer=self.x509.subject,
            issuer_certificate=self.x509,
            public_key=public_key_untrusted(public_key),
            now=now,
            lifetime=max(lifetime, NODE_LIFETIME_MIN),
            extensions=[*_NODE, (x509.SubjectAlternativeName(names), False)],
        )

    def cross_sign(self, root: bytes, *, now: float) -> bytes:
        """Return *root*'s name and key under our signature: who trusts us may trust it.

        The cross certificate ends with *root*, so that it never outlives its meaning.
        """
        theirs = load_untrusted(root)
        public_key = theirs.public_key()
        assert isinstance(public_key, ec.EllipticCurvePublicKey)
        return _sign(
            self.key,
            subject=theirs.subject,
            issuer=self.x509.subject,
            issuer_certificate=self.x509,
            public_key=public_key,
            now=now,
            lifetime=theirs.not_valid_after_utc.timestamp() - now,
            extensions=_AUTHORITY,
        )


#: Strict readers (X509_V_FLAG_X509_STRICT, set by Python 3.13's default context) want each of
#: these, with exactly these marked critical (RFC 5280 sections 4.2.1.3 and 4.2.1.9).
_AUTHORITY: list[tuple[x509.ExtensionType, bool]] = [
    (x509.BasicConstraints(ca=True, path_length=None), True),
    (
        x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        ),
        True,
    ),
]
_NODE: list[tuple[x509.ExtensionType, bool]] = [
    (x509.BasicConstraints(ca=False, path_length=None), True),
    (
        x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=False,
            crl_sign=False,
            encipher_only=False,
            decipher_only=False,
        ),
        True,
    ),
    (
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
        False,
    ),
]


def _sign(
    key: KeyPair,
    *,
    subject: x509.Name,
    issuer: x509.Name,
    issuer_certificate: x509.Certificate | None,
    public_key: ec.EllipticCurvePublicKey | object,
    now: float,
    lifetime: float,
    extensions: list[tuple[x509.ExtensionType, bool]],
) -> bytes:
    assert lifetime > 0, lifetime
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)  # type: ignore[arg-type]
        .serial_number(x509.random_serial_number())
        .not_valid_before(_time(now - BACKDATE))
        .not_valid_after(_time(now + lifetime))
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(public_key),  # type: ignore[arg-type]
            critical=False,
        )
    )
    if issuer_certificate is not None:
        ski = issuer_certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        aki = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski.value)
        builder = builder.add_extension(aki, critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    certificate = builder.sign(key.private_key, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.DER)


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)


def _root_name(cluster: str, public_key: bytes) -> x509.Name:
    """Return the name of a root: two roots of one cluster differ in it, so chains are unique."""
    key_id = x509.SubjectKeyIdentifier.from_public_key(
        public_key_untrusted(public_key)
    ).digest.hex()[:16]
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster),
            x509.NameAttribute(NameOID.COMMON_NAME, f"swarmlet root {key_id}"),
        ]
    )


def _name(cluster: str, role: Role, node: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, str(role)),
            x509.NameAttribute(NameOID.COMMON_NAME, node),
        ]
    )
