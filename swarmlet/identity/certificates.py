"""What a node's certificate says, read once and then plain data.

subject  O = cluster id, OU = role, CN = node id
SAN      URI swarmlet://<cluster>/<node>, DNS <node>.<cluster>.swarmlet
"""

from __future__ import annotations

import enum
import hashlib
import warnings
from dataclasses import dataclass, field
from functools import cached_property

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import NameOID

from swarmlet.identity.keys import ID_LENGTH

# cryptography only warns of serial numbers that RFC 5280 forbids. A stranger must not be able to
# write to our stderr, and none of our certificates has one: for us it is a fault.
warnings.filterwarnings(
    "error", message="Parsed a serial number", category=CryptographyDeprecationWarning
)

#: Ours are about 620 bytes.
CERTIFICATE_BYTES_MAX = 16 * 1024


class BadCertificate(ValueError):
    """The bytes are no certificate of the kind that a cluster's CA issues."""


class Role(enum.StrEnum):
    """What a node may do; a manager may do all that a worker may."""

    WORKER = "worker"
    MANAGER = "manager"

    @property
    def rank(self) -> int:
        return 1 if self is Role.MANAGER else 0


def lesser(first: Role, second: Role) -> Role:
    """Return the role with fewer rights: what holds when certificate and store differ."""
    return min(first, second, key=lambda role: role.rank)


def digest_of(certificate: bytes) -> str:
    """Return the SHA-256 of a DER certificate in hex: the name by which roots are known."""
    return hashlib.sha256(certificate).hexdigest()


@dataclass(frozen=True)
class NodeCertificate:
    """A node's certificate. That a CA of ours signed it is for the caller to check."""

    der: bytes = field(repr=False)
    cluster: str
    node: str
    role: Role
    public_key: bytes = field(repr=False)  # SPKI, DER
    not_before: float  # seconds since 1970, like all times here
    not_after: float

    @cached_property
    def x509(self) -> x509.Certificate:
        return x509.load_der_x509_certificate(self.der)

    @property
    def serial(self) -> int:
        return self.x509.serial_number

    @classmethod
    def from_der_untrusted(cls, der: bytes) -> NodeCertificate:
        """Return what *der* says.

        Raises:
            BadCertificate: it is no certificate of a node.
        """
        certificate = load_untrusted(der)
        try:
            public_key = certificate.public_key().public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            return cls(
                der=der,
                cluster=_attribute(certificate.subject, NameOID.ORGANIZATION_NAME),
                node=_attribute(certificate.subject, NameOID.COMMON_NAME),
                role=Role(_attribute(certificate.subject, NameOID.ORGANIZATIONAL_UNIT_NAME)),
                public_key=public_key,
                not_before=certificate.not_valid_before_utc.timestamp(),
                not_after=certificate.not_valid_after_utc.timestamp(),
            ).checked()
        except BadCertificate:
            raise
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            raise BadCertificate(f"not a node's certificate: {exc}") from exc

    def checked(self) -> NodeCertificate:
        for name, value in (("cluster", self.cluster), ("node", self.node)):
            if len(value) != ID_LENGTH or not (value.isascii() and value.isalnum()):
                raise BadCertificate(f"not a node's certificate: {value!r:.60} is no {name} id")
        return self


def load_untrusted(der: bytes) -> x509.Certificate:
    """Return *der* as a certificate of any kind, or raise BadCertificate."""
    if len(der) > CERTIFICATE_BYTES_MAX:
        raise BadCertificate(f"{len(der)} bytes; at most {CERTIFICATE_BYTES_MAX} are read")
    try:
        return x509.load_der_x509_certificate(der)
    except (ValueError, TypeError, x509.InvalidVersion, CryptographyDeprecationWarning) as exc:
        raise BadCertificate(f"not a certificate: {exc}") from exc


def _attribute(name: x509.Name, oid: x509.ObjectIdentifier) -> str:
    values = name.get_attributes_for_oid(oid)
    if len(values) != 1 or not isinstance(values[0].value, str):
        raise BadCertificate(f"the subject has {len(values)} times {oid._name}, not once")
    return values[0].value
