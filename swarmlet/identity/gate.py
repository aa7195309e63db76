"""admit() with what it needs to know filled in, and the clock that only a manager can advance.

Pure: the wall clock is an argument.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from swarmlet.identity.admission import SKEW, Admitted, KnownNode, admit, admit_unlisted
from swarmlet.identity.certificates import NodeCertificate
from swarmlet.identity.credentials import Credentials


class ClusterClock:
    """The time of the cluster as far as this node knows it.

    *floor* is the highest time that a manager ever told; keep it on disk with other writes.
    """

    def __init__(self, wall: Callable[[], float], floor: float = 0.0) -> None:
        self._wall = wall
        self.floor = floor

    def now(self) -> float:
        """Return the best guess: the local clock, but never earlier than the floor."""
        return max(self._wall(), self.floor)

    def learn(self, at: float, told_by: NodeCertificate) -> None:
        """Raise the floor to *at*, a time that the manager with certificate *told_by* stamped.

        A manager works within the life of its certificate. A time beyond that is its clock's
        fault, and believing it would end the certificates of the whole cluster for good.
        """
        if self.floor < at <= told_by.not_after + SKEW:
            self.floor = at


@dataclass(frozen=True)
class StoreGate:
    """The gate of a manager: certificate and store together decide."""

    credentials: Callable[[], Credentials]
    find: Callable[[str], KnownNode | None]  # the store's record of a node id
    clock: ClusterClock
    renew_within: float | None = None  # ca.max_offline

    @property
    def floor(self) -> float:
        return self.clock.floor

    def admit(self, certificate: NodeCertificate) -> Admitted:
        """Return the rights of the caller with *certificate*, or raise Refused."""
        own = self.credentials()
        return admit(
            certificate,
            now=self.clock.now(),
            floor=self.clock.floor,
            known=self.find(certificate.node),
            trust=own.trust,
            cluster=own.cluster,
            renew_within=self.renew_within,
        )


@dataclass(frozen=True)
class CertificateGate:
    """The gate of a worker, which keeps no list of nodes: the certificate decides."""

    credentials: Callable[[], Credentials]
    clock: ClusterClock

    @property
    def floor(self) -> float:
        return self.clock.floor

    def admit(self, certificate: NodeCertificate) -> Admitted:
        """Return the rights of the caller with *certificate*, or raise Refused."""
        own = self.credentials()
        return admit_unlisted(
            certificate,
            now=self.clock.now(),
            floor=self.clock.floor,
            trust=own.trust,
            cluster=own.cluster,
        )
