"""Who may come in: on a manager the store decides, on a worker the certificate."""

from __future__ import annotations

from collections.abc import Callable

from swarmlet.identity import (
    Admitted,
    CertificateGate,
    ClusterClock,
    Credentials,
    KnownNode,
    NodeCertificate,
    Role,
    StoreGate,
)
from swarmlet.model import NodeId
from swarmlet.state import ClusterState


class NodeAdmission:
    """swarmlet.transport.Admission of this node.

    *state* returns the replicated state on a manager, None on a worker. *feeds* says whether this
    manager is fed by a leader (or leads): only then is a node that the store does not know
    certainly not of the cluster. Before that a manager's certificate has to do, or a manager that
    is far behind could never hear from the one who would tell it.
    """

    def __init__(
        self,
        credentials: Callable[[], Credentials],
        clock: ClusterClock,
        *,
        state: Callable[[], ClusterState | None],
        feeds: Callable[[], bool],
    ) -> None:
        self._by_certificate = CertificateGate(credentials, clock)
        self._by_store = StoreGate(credentials, self._find, clock)
        self._clock = clock
        self._state = state
        self._feeds = feeds

    @property
    def floor(self) -> float:
        return self._clock.floor

    def admit(self, certificate: NodeCertificate) -> Admitted:
        """Return the rights of the caller with *certificate*, or raise Refused."""
        unknown = self._find(certificate.node) is None
        behind = unknown and certificate.role is Role.MANAGER and not self._feeds()
        if self._state() is None or behind:
            return self._by_certificate.admit(certificate)
        return self._by_store.admit(certificate)

    def _find(self, id_: str) -> KnownNode | None:
        state = self._state()
        node = state.nodes.get(NodeId(id_)) if state is not None else None
        if node is None:
            return None
        return KnownNode(role=Role(node.present_role.value), public_keys=node.public_keys)
