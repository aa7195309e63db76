"""Clusters and nodes for the tests of identity and transport: real keys, real signatures."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

from swarmlet.identity import (
    CertificateAuthority,
    Credentials,
    KeyPair,
    KnownNode,
    NodeCertificate,
    Role,
    TrustBundle,
    new_cluster_id,
)

#: A morning in 2026; no test looks at the clock.
NOW = 1_780_000_000.0
DAY = 86400.0
YEAR = 365 * DAY


@cache
def key_pair(name: str) -> KeyPair:
    """A key pair by name: the same key for the same name within a run."""
    return KeyPair.generate()


@dataclass
class Cluster:
    """A cluster's CA and what its store knows of the nodes."""

    authority: CertificateAuthority = field(
        default_factory=lambda: CertificateAuthority.create(new_cluster_id(), now=NOW)
    )
    nodes: dict[str, KnownNode] = field(default_factory=dict)
    trust: TrustBundle = field(init=False)

    def __post_init__(self) -> None:
        self.trust = TrustBundle(roots=(self.authority.certificate,))

    @property
    def id(self) -> str:
        return self.authority.cluster

    def certificate(
        self,
        key: KeyPair,
        role: Role = Role.WORKER,
        *,
        now: float = NOW,
        lifetime: float = 90 * DAY,
    ) -> NodeCertificate:
        der = self.authority.issue(
            key.public_key, node=key.node_id, role=role, now=now, lifetime=lifetime
        )
        return NodeCertificate.from_der_untrusted(der)

    def node(
        self,
        role: Role = Role.WORKER,
        *,
        key: KeyPair | None = None,
        now: float = NOW,
        lifetime: float = 90 * DAY,
        listed: bool = True,
    ) -> Credentials:
        """A node of this cluster, in the store unless it is not to be *listed*."""
        key = key or KeyPair.generate()
        certificate = self.certificate(key, role, now=now, lifetime=lifetime)
        if listed:
            self.nodes[key.node_id] = KnownNode(role=role, public_keys=(key.public_key,))
        return Credentials(key, (certificate.der,), self.trust)
