"""A node's key, certificate chain and trust, and the TLS contexts made of them.

Every context speaks TLS 1.3 only, checks chains strictly and without the clock (admission.py
decides about time), and never resumes: a session ticket would outlive a revocation, and a full
handshake costs 3 ms.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from swarmlet.identity.certificates import BadCertificate, NodeCertificate, Role
from swarmlet.identity.keys import KeyPair
from swarmlet.identity.trust import TrustBundle, pem_of

#: X509_V_FLAG_NO_CHECK_TIME (openssl/x509_vfy.h); the ssl module has no name for it.
NO_CHECK_TIME = 0x200000


@dataclass(frozen=True, eq=False)
class Credentials:
    """Frozen: a renewal or a new bundle makes new credentials, and streams keep the old ones."""

    key: KeyPair
    chain: tuple[bytes, ...] = field(repr=False)  # DER: the leaf, then crosses
    trust: TrustBundle = field(repr=False)
    certificate: NodeCertificate = field(init=False)
    _contexts: dict[tuple[str, ...], ssl.SSLContext] = field(
        init=False, repr=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        certificate = NodeCertificate.from_der_untrusted(self.chain[0])
        if certificate.public_key != self.key.public_key:
            raise BadCertificate("the certificate is for another key than the one on disk")
        object.__setattr__(self, "certificate", certificate)

    @property
    def node(self) -> str:
        return self.certificate.node

    @property
    def cluster(self) -> str:
        return self.certificate.cluster

    @property
    def role(self) -> Role:
        return self.certificate.role

    def with_trust(self, trust: TrustBundle) -> Credentials:
        """Return the same node under another bundle: a root came or went."""
        return Credentials(self.key, self.chain, trust)

    def server_context(self, alpn: Sequence[str]) -> ssl.SSLContext:
        """Return the context of our port. A caller may come without a certificate, to join;
        one that comes with a certificate must have it from a root of ours, active or retired.
        """

        def make() -> ssl.SSLContext:
            context = _context(ssl.PROTOCOL_TLS_SERVER)
            context.verify_mode = ssl.CERT_OPTIONAL
            context.num_tickets = 0
            self._equip(context, (*self.trust.roots, *self.trust.retired))
            return context

        return self._cached(("server", *alpn), make)

    def client_context(self, alpn: str) -> ssl.SSLContext:
        """Return the context to call others with: only an active root vouches for them."""

        def make() -> ssl.SSLContext:
            context = _context(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False  # the node id counts, see admission.accept
            self._equip(context, self.trust.roots)
            return context

        return self._cached(("client", alpn), make)

    def _equip(self, context: ssl.SSLContext, roots: Sequence[bytes]) -> None:
        context.load_verify_locations(cadata=b"".join(roots))
        text = self.key.pem + b"".join(pem_of(der) for der in self.chain)
        with _memory_file(text) as path:
            context.load_cert_chain(path)

    def _cached(self, names: tuple[str, ...], make: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        context = self._contexts.get(names)
        if context is None:
            context = self._contexts[names] = make()
            context.set_alpn_protocols(list(names[1:]))
        return context


def joining_context(alpn: str, trust: TrustBundle | None) -> ssl.SSLContext:
    """Return the context of a node without an identity: with *trust* it verifies the other side,
    without it verifies nothing, and nothing that comes over it may be believed unchecked.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if trust is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(cadata=b"".join(trust.roots))
    context.set_alpn_protocols([alpn])
    return context


def _context(kind: int) -> ssl.SSLContext:
    context = ssl.SSLContext(kind)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The default of 3.13 on every version, so that a certificate is good on all or on none.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    context.verify_flags = ssl.VerifyFlags(context.verify_flags | NO_CHECK_TIME)
    return context


@contextmanager
def _memory_file(text: bytes) -> Iterator[str]:
    """Yield a path to *text* that is never on a disk: the ssl module loads keys only by path."""
    fd = os.memfd_create("swarmlet-identity", os.MFD_CLOEXEC)
    try:
        os.write(fd, text)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
