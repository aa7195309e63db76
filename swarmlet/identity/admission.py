"""Who may do what: the one place that looks at a peer's certificate.

Pure. TLS has verified the chain and that the peer holds the key, and it has not looked at the
clock: time is policy. A box that boots in 1970, or was off for two years, reaches the managers
and renews by itself; what it may do until then is decided here.

    managers, about who calls               certificate and store together decide
      not in the store, key not the node's  refused
      ended before now - skew               may renew, nothing else
      signed by a retired root              may renew, nothing else
      begins after now + skew               all rights: we issued it, so one of our clocks is odd
    callers, about the manager they reach   only what cannot be forged counts
      not the node they meant               refused
      ended before the floor                refused: an old stolen key must not work
      begins in the future                  accepted: our own clock is behind

The floor is the highest cluster time that this node ever learned from a manager. It only
rises, so the answer "this has ended" stays true whatever the local clock says.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from swarmlet.identity.certificates import NodeCertificate, Role, lesser
from swarmlet.identity.trust import TrustBundle

#: Clocks of one cluster may differ by this much before a date counts.
SKEW = 600.0


class Rights(enum.Enum):
    FULL = "full"
    RENEW_ONLY = "renew-only"


class Reason(enum.StrEnum):
    """Why a peer was refused. Its value travels, so it is only added to."""

    FOREIGN = "foreign"  # another cluster, or a root that we do not know
    UNKNOWN_NODE = "unknown-node"  # never joined, or removed
    REVOKED = "revoked"
    UNKNOWN_KEY = "unknown-key"  # the node exists, with other keys
    ENDED = "ended"  # the certificate's time is over, and this is no place to renew it
    WRONG_NODE = "wrong-node"  # another node answers at that address
    WRONG_ROLE = "wrong-role"
    OFFLINE_TOO_LONG = "offline-too-long"
    NO_CERTIFICATE = "no-certificate"
    NOT_SERVED = "not-served"  # not a protocol of a node of this role
    BUSY = "busy"


class Refused(Exception):
    """A peer has no rights here; the text tells its owner what to do."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownNode:
    """What the store knows of a node, as far as admission goes."""

    role: Role
    public_keys: tuple[bytes, ...]  # SPKI: in use, and asked for by the last renewal
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class Admitted:
    rights: Rights
    role: Role  # the lesser of certificate and store
    skewed: bool = False  # the certificate begins in the future: one of two clocks is odd


def admit(
    certificate: NodeCertificate,
    *,
    now: float,
    floor: float,
    known: KnownNode | None,
    trust: TrustBundle,
    cluster: str,
    renew_within: float | None = None,
) -> Admitted:
    """Return what the caller with *certificate* may do here.

    *known* is the store's record of the node of that name, None if it has none.
    *renew_within* seconds after its end a certificate can no longer renew itself (None: never
    too late).

    Raises:
        Refused: it may do nothing.
    """
    _check_cluster(certificate, cluster)
    node = certificate.node
    retired = not trust.vouches(certificate.der)
    if retired and not trust.vouched(certificate.der):
        raise Refused(
            Reason.FOREIGN,
            f"the root that signed the certificate of node {node} is not known here: either it "
            "is of another cluster, or this node has not yet heard of a new root; try again in a "
            "minute",
        )
    if known is None:
        raise Refused(
            Reason.UNKNOWN_NODE,
            f"node {node} is not a member of this cluster (it was removed, or never joined): run "
            "`swarmlet leave --force` there, then join with a new token",
        )
    if known.revoked:
        raise Refused(
            Reason.REVOKED,
            f"node {node} was shut out of the cluster: run `swarmlet leave --force` there, then "
            "join with a new token",
        )
    if certificate.public_key not in known.public_keys:
        raise Refused(
            Reason.UNKNOWN_KEY,
            f"node {node} shows a key that the cluster does not know: its state is a copy of "
            "another machine's or an old backup; run `swarmlet leave --force` there, then join "
            "with a new token",
        )
    role = lesser(certificate.role, known.role)
    now = max(now, floor)
    if certificate.not_after < now - SKEW:
        _check_offline(certificate, now, renew_within)
        return Admitted(Rights.RENEW_ONLY, role)
    if retired:
        return Admitted(Rights.RENEW_ONLY, role)
    return Admitted(Rights.FULL, role, skewed=certificate.not_before > now + SKEW)


def admit_unlisted(
    certificate: NodeCertificate, *, now: float, floor: float, trust: TrustBundle, cluster: str
) -> Admitted:
    """Return what a caller may do at a node that keeps no list of nodes: a worker.

    The certificate alone decides, so dates count, and there is nothing to renew here.

    Raises:
        Refused: it may do nothing.
    """
    known = KnownNode(role=certificate.role, public_keys=(certificate.public_key,))
    admitted = admit(certificate, now=now, floor=floor, known=known, trust=trust, cluster=cluster)
    if admitted.rights is not Rights.FULL:
        raise ended(certificate.node)
    return admitted


def accept(
    certificate: NodeCertificate,
    *,
    floor: float,
    cluster: str,
    node: str | None = None,
    role: Role = Role.WORKER,
) -> None:
    """Check the node that answered a call; TLS has verified that an active root vouches for it.

    *node* is the one that was meant (None: any), *role* the least it must have.

    Raises:
        Refused: say nothing to it.
    """
    _check_cluster(certificate, cluster)
    if node is not None and certificate.node != node:
        raise Refused(
            Reason.WRONG_NODE,
            f"node {certificate.node} answers there, not {node}: the address has another owner now",
        )
    if certificate.role.rank < role.rank:
        raise Refused(
            Reason.WRONG_ROLE,
            f"node {certificate.node}, which answers there, is a {certificate.role} and no "
            f"{role}: give the address of a {role}",
        )
    if certificate.not_after < floor:
        raise Refused(
            Reason.ENDED,
            f"the certificate of node {certificate.node} ended in the past: if the node is yours, "
            "restart it while a manager is in its reach, so that it renews",
        )


def ended(node: str) -> Refused:
    """Return the refusal of a node whose certificate only lets it renew."""
    return Refused(
        Reason.ENDED,
        f"the certificate of node {node} has ended or its root was retired: it renews by itself "
        "as soon as it reaches a manager",
    )


def keys_after_renewal(*, asked_with: bytes, asked_for: bytes) -> tuple[bytes, ...]:
    """Return the public keys by which the store knows a node after a renewal.

    The key that asked is on the node's disk and works, so it stays until the next renewal has
    been asked for with the new one. Wherever the node stops meanwhile, it wakes with a key that
    is known here.
    """
    return (asked_with,) if asked_with == asked_for else (asked_with, asked_for)


def _check_cluster(certificate: NodeCertificate, cluster: str) -> None:
    if certificate.cluster != cluster:
        raise Refused(
            Reason.FOREIGN,
            f"node {certificate.node} belongs to cluster {certificate.cluster}, this is {cluster}",
        )


def _check_offline(certificate: NodeCertificate, now: float, renew_within: float | None) -> None:
    if renew_within is not None and certificate.not_after + renew_within < now:
        raise Refused(
            Reason.OFFLINE_TOO_LONG,
            f"node {certificate.node} was away for longer than the cluster's policy allows "
            "(ca.max_offline): run `swarmlet node readmit` on a manager, or join it again",
        )
