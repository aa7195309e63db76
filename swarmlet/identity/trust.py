"""Which roots a node trusts: one usually, several while a rotation is under way.

Pure. A bundle holds *roots* (they vouch for nodes), *crosses* (a newer root's key signed by an
older root: the bridge for those that only know the older one) and *retired* roots (their nodes
may come back and renew, nothing else).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from swarmlet.identity.certificates import BadCertificate, digest_of, load_untrusted

#: A rotation leaves one cross and one retired root behind; this is a rotation a year for ever.
CERTIFICATES_MAX = 32
#: Answers about signatures that are remembered: 0.3 ms each to find out, about 1 KB to keep.
SIGNATURES_MAX = 512


class UntrustedBundle(ValueError):
    """The offered roots do not lead back to the one that the token names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustBundle:
    """The roots of one cluster, all DER. *version* grows with every change."""

    roots: tuple[bytes, ...]
    crosses: tuple[bytes, ...] = ()
    retired: tuple[bytes, ...] = ()
    version: int = 1

    def digests(self) -> frozenset[str]:
        """Return the digests of the roots that a join token may name."""
        return frozenset(digest_of(root) for root in (*self.roots, *self.retired))

    def vouches(self, certificate: bytes) -> bool:
        """Whether an active root signed *certificate* itself."""
        return _signed_by(certificate, self.roots)

    def vouched(self, certificate: bytes) -> bool:
        """Whether a root that has been retired signed *certificate* itself."""
        return _signed_by(certificate, self.retired)

    def with_root(self, root: bytes, *, crosses: tuple[bytes, ...] = ()) -> TrustBundle:
        """Return the bundle that trusts *root* as well."""
        return replace(
            self,
            roots=(*self.roots, root),
            crosses=(*self.crosses, *crosses),
            version=self.version + 1,
        )

    def without_root(self, root: bytes, *, compromised: bool) -> TrustBundle:
        """Return the bundle in which *root* vouches for nobody any more.

        It stays as a retired root, unless it is *compromised*: then its crosses go too, for
        whoever has its key could have signed anything.
        """
        roots = tuple(other for other in self.roots if other != root)
        assert root in self.roots
        assert roots, "somebody has to vouch"
        crosses = self.crosses
        if compromised:
            crosses = tuple(cross for cross in crosses if not _signed_by(cross, (root,)))
        return TrustBundle(
            roots=roots,
            crosses=crosses,
            retired=self.retired if compromised else (*self.retired, root),
            version=self.version + 1,
        )


def pinned_untrusted(bundle: TrustBundle, pin: str) -> TrustBundle:
    """Return *bundle* if the root with digest *pin* (hex) vouches for all of it.

    A root is accepted if it is the pinned one or if a cross certificate, signed by an accepted
    root, carries its key. A bundle with one stranger in it is refused whole.

    Raises:
        UntrustedBundle: it does not lead back to the pin.
    """
    offered = (*bundle.roots, *bundle.retired)
    if len(offered) + len(bundle.crosses) > CERTIFICATES_MAX:
        raise UntrustedBundle(f"more than {CERTIFICATES_MAX} certificates")
    try:
        certificates = {der: load_untrusted(der) for der in (*offered, *bundle.crosses)}
        accepted = [der for der in offered if digest_of(der) == pin]
        if not bundle.roots or not accepted:
            raise UntrustedBundle("the pinned root is not among the roots offered")
        for root in offered:
            if not _verifies(certificates[root], certificates[root]):
                raise UntrustedBundle("one of the roots has not signed itself")
        for known in accepted:  # grows while it is walked: trust is transitive
            accepted += [
                root
                for root in offered
                if root not in accepted
                and _is_bridged(certificates[known], certificates[root], bundle, certificates)
            ]
    except BadCertificate as exc:
        raise UntrustedBundle(str(exc)) from exc
    if strangers := [root for root in offered if root not in accepted]:
        raise UntrustedBundle(
            f"the pinned root does not vouch for the root {digest_of(strangers[0])[:16]}"
        )
    return bundle


def _is_bridged(
    known: x509.Certificate,
    root: x509.Certificate,
    bundle: TrustBundle,
    certificates: dict[bytes, x509.Certificate],
) -> bool:
    return any(
        certificates[cross].subject == root.subject
        and certificates[cross].public_key() == root.public_key()
        and _verifies(certificates[cross], known)
        for cross in bundle.crosses
    )


@lru_cache(maxsize=SIGNATURES_MAX)
def _signed_by(certificate: bytes, roots: tuple[bytes, ...]) -> bool:
    """Remembered, for the same nodes are checked at each connection and each recheck."""
    leaf = load_untrusted(certificate)
    return any(_verifies(leaf, load_untrusted(root)) for root in roots)


def _verifies(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):  # other name, other kind of key, other key
        return False
    return True


# The form on disk: a comment before each certificate says what it is.

_ROLES = ("root", "cross", "retired")


def to_pem(bundle: TrustBundle) -> bytes:
    """Return *bundle* as text that any tool for certificates reads."""
    parts = [f"# version {bundle.version}\n".encode()]
    for role, group in zip(_ROLES, (bundle.roots, bundle.crosses, bundle.retired), strict=True):
        parts += [f"# {role}\n".encode() + pem_of(der) for der in group]
    return b"".join(parts)


def from_pem_untrusted(text: bytes) -> TrustBundle:
    """Return the bundle in *text*, or raise BadCertificate."""
    groups: dict[str, list[bytes]] = {role: [] for role in _ROLES}
    version = 0
    for comment, pem in _blocks(text):
        match comment.split():
            case ["#", "version", number, "#", role] if number.isdecimal() and role in groups:
                version = int(number)
            case ["#", role] if role in groups:
                pass
            case _:
                raise BadCertificate(f"not a trust bundle: {comment!r:.60}")
        groups[role].append(der_of(pem))
    if not version or not groups["root"]:
        raise BadCertificate("not a trust bundle: it has no root")
    return TrustBundle(
        roots=tuple(groups["root"]),
        crosses=tuple(groups["cross"]),
        retired=tuple(groups["retired"]),
        version=version,
    )


_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def _blocks(text: bytes) -> Iterator[tuple[str, bytes]]:
    try:
        rest = text.decode("ascii")
    except UnicodeDecodeError as exc:
        raise BadCertificate("not a trust bundle: not text") from exc
    while _BEGIN in rest:
        comment, _, rest = rest.partition(_BEGIN)
        body, _, rest = rest.partition(_END)
        yield comment, f"{_BEGIN}{body}{_END}\n".encode()


def pem_of(der: bytes) -> bytes:
    return load_untrusted(der).public_bytes(Encoding.PEM)


def der_of(pem: bytes) -> bytes:
    """Return the DER of the one certificate in *pem*, or raise BadCertificate."""
    try:
        return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    except (ValueError, x509.InvalidVersion) as exc:
        raise BadCertificate(f"not a certificate: {exc}") from exc
