"""Who may come in: on a manager the store decides, on a worker the certificate."""

from __future__ import annotations

import time
from collections.abc import Callable

from swarmlet.identity import (
    Admitted,
    Credentials,
    KnownNode,
    NodeCertificate,
    Role,
    admit,
    admit_unlisted,
)
from swarmlet.model import Node, NodeId
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
        *,
        state: Callable[[], ClusterState | None],
        feeds: Callable[[], bool],
        floor: Callable[[], float],
    ) -> None:
        self._credentials = credentials
        self._state = state
        self._feeds = feeds
        self._floor = floor

    @property
    def floor(self) -> float:
        return self._floor()

    def admit(self, certificate: NodeCertificate) -> Admitted:
        """Return the rights of the caller with *certificate*, or raise Refused."""
        own = self._credentials()
        state = self._state()
        known = self._known(state, certificate) if state is not None else None
        behind = known is None and certificate.role is Role.MANAGER and not self._feeds()
        if state is None or behind:
            return admit_unlisted(
                certificate, now=time.time(), floor=self.floor, trust=own.trust, cluster=own.cluster
            )
        return admit(
            certificate,
            now=time.time(),
            floor=self.floor,
            known=known,
            trust=own.trust,
            cluster=own.cluster,
        )

    def _known(self, state: ClusterState, certificate: NodeCertificate) -> KnownNode | None:
        node: Node | None = state.nodes.get(NodeId(certificate.node))
        if node is None:
            return None
        return KnownNode(role=Role(node.spec.role.value), public_keys=node.public_keys)
