"""Key pairs, node ids and certificate requests: what a node can say about itself alone."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import NameOID

#: A request of ours is about 230 bytes; a key of another kind stays below this too.
CSR_BYTES_MAX = 4096
ID_BYTES = 16
ID_LENGTH = 26  # 128 bits in base32


class BadKey(ValueError):
    """The bytes are no private key of a node: the identity on disk is damaged."""


class BadRequest(ValueError):
    """The bytes are no certificate request that a node of ours would send."""


def base32(value: bytes) -> str:
    """Return *value* in lower-case base32 without padding (RFC 4648 section 6)."""
    return base64.b32encode(value).decode().rstrip("=").lower()


def node_id_of(public_key: bytes) -> str:
    """Return the id of the node whose first public key (SPKI, DER) is *public_key*."""
    return base32(hashlib.sha256(public_key).digest()[:ID_BYTES])


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An ECDSA P-256 key pair: secure elements, TPMs and every TLS library have that curve."""

    private_key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> KeyPair:
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pem_untrusted(cls, pem: bytes) -> KeyPair:
        """Return the key pair in *pem* (PKCS #8).

        Raises:
            BadKey: it is none, or not of P-256.
        """
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            raise BadKey(f"not a private key: {exc}") from exc
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
            raise BadKey("a private key, but not an ECDSA key of P-256")
        return cls(key)

    @property
    def pem(self) -> bytes:
        return self.private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    @property
    def public_key(self) -> bytes:
        """The public key as DER of its SubjectPublicKeyInfo: the form the store keeps."""
        return spki_of(self.private_key.public_key())

    @property
    def node_id(self) -> str:
        """The id of the node whose first key this is."""
        return node_id_of(self.public_key)

    def request(self) -> bytes:
        """Return a certificate request (DER), signed: the proof that the key is ours.

        Its subject is only a courtesy to who reads it: the CA decides every field.
        """
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.node_id)])
        builder = x509.CertificateSigningRequestBuilder().subject_name(name)
        csr = builder.sign(self.private_key, hashes.SHA256())
        return csr.public_bytes(serialization.Encoding.DER)

    def derive(self, purpose: bytes) -> bytes:
        """Return 32 bytes that only the holder of the private key can compute, for *purpose*."""
        secret = self.private_key.private_numbers().private_value.to_bytes(32, "big")
        return HKDF(hashes.SHA256(), 32, salt=None, info=b"swarmlet 1 " + purpose).derive(secret)


def spki_of(key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def public_key_untrusted(spki: bytes) -> ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey:
    """Return the key in *spki* (DER).

    Raises:
        BadRequest: it is no key, or of a kind that no node uses.
    """
    try:
        key = serialization.load_der_public_key(spki)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise BadRequest(f"not a public key: {exc}") from exc
    return _accepted(key)


def _accepted(key: object) -> ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey:
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1":
        return key
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    raise BadRequest("the key is neither ECDSA P-256 nor Ed25519")


def check_request_untrusted(csr: bytes) -> bytes:
    """Return the public key (SPKI, DER) that the sender of *csr* proved to hold.

    Raises:
        BadRequest: not a request, a key that we do not take, or a wrong signature.
    """
    if len(csr) > CSR_BYTES_MAX:
        raise BadRequest(f"a request of {len(csr)} bytes; at most {CSR_BYTES_MAX} are read")
    try:
        request = x509.load_der_x509_csr(csr)
        public_key = _accepted(request.public_key())
        valid = request.is_signature_valid
    except BadRequest:
        raise
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as exc:
        raise BadRequest(f"not a certificate request: {exc}") from exc
    if not valid:
        raise BadRequest("the request is not signed with the key that it asks for")
    return spki_of(public_key)
