"""A new root for the cluster, without a gap and without waiting for nodes that are away.

Pure. The state lies in the store; the leader asks advance() now and then what follows.

    stable      one root signs
    distribute  the new root and its cross go out with the sessions; the old one still signs
    reissue     the new root signs, and chains carry the cross: whoever knows only the old root
                verifies over it. Connected nodes are asked in waves to renew
    retire      all connected nodes have moved; the old root vouches for the rest until the grace
                is over, then for their renewals only (a node back after years renews by that)

With *compromised* the old root is gone as soon as the connected nodes have moved, after ten
minutes at the latest, and leaves neither cross nor retired root: whoever has its key can sign
anything. Nodes that were away then need a new token.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, replace

from swarmlet.identity.certificates import digest_of
from swarmlet.identity.trust import TrustBundle

#: Seconds after which a connected node that has not taken the new bundle is not waited for.
PATIENCE = 600.0
#: Seconds for which the old root still vouches fully for nodes that are away: a certificate's life.
GRACE = 90 * 86400.0
#: Nodes that are asked to renew at once: so many, or a twentieth of all.
WAVE_MIN = 30
WAVE_SHARE = 20


class Phase(enum.StrEnum):
    """The values are stored: never renamed."""

    STABLE = "stable"
    DISTRIBUTE = "distribute"
    REISSUE = "reissue"
    RETIRE = "retire"


class RotationRefused(Exception):
    """The rotation cannot begin now; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """Where the cluster stands. *signing* is the root that signs nodes now."""

    bundle: TrustBundle  # what every node is told to trust
    signing: bytes  # DER
    phase: Phase = Phase.STABLE
    since: float = 0.0
    leaving: bytes = b""  # DER: the root on its way out
    compromised: bool = False

    @property
    def chain_tail(self) -> tuple[bytes, ...]:
        """What a node presents after its own certificate."""
        return self.bundle.crosses


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTrust:
    """What a session tells of a node: the bundle it has, and the root that signed it."""

    node: str
    connected: bool
    bundle_version: int
    issuer: str  # digest of the root


def begin(
    rotation: Rotation, root: bytes, cross: bytes, *, now: float, compromised: bool = False
) -> Rotation:
    """Return the rotation to *root*, which *cross* certifies with the key of the present root.

    Raises:
        RotationRefused: another one is under way.
    """
    if rotation.phase is not Phase.STABLE:
        raise RotationRefused(
            f"a rotation is under way (phase {rotation.phase}): `swarmlet ca` shows how far it is"
        )
    return replace(
        rotation,
        phase=Phase.DISTRIBUTE,
        since=now,
        bundle=rotation.bundle.with_root(root, crosses=(cross,)),
        leaving=rotation.signing,
        compromised=compromised,
    )


def advance(rotation: Rotation, nodes: Iterable[NodeTrust], *, now: float) -> Rotation:
    """Return what follows from *rotation*: itself, or the next phase. Never more than one step.

    Once the phase is REISSUE, the private key of the leaving root has no use any more.
    """
    connected = [node for node in nodes if node.connected]
    waited = now - rotation.since
    match rotation.phase:
        case Phase.DISTRIBUTE:
            have = all(node.bundle_version >= rotation.bundle.version for node in connected)
            if have or waited >= PATIENCE:
                return replace(
                    rotation, phase=Phase.REISSUE, since=now, signing=rotation.bundle.roots[-1]
                )
        case Phase.REISSUE:
            moved = not any(_lags(rotation, node) for node in connected)
            if rotation.compromised and (moved or waited >= PATIENCE):
                return _stable(rotation, now)
            if moved:
                return replace(rotation, phase=Phase.RETIRE, since=now)
        case Phase.RETIRE if waited >= GRACE:
            return _stable(rotation, now)
    return rotation


def wave(rotation: Rotation, nodes: Iterable[NodeTrust]) -> tuple[str, ...]:
    """Return the nodes to ask for a renewal now, by id: all at once would be a storm."""
    if rotation.phase not in (Phase.REISSUE, Phase.RETIRE):
        return ()
    known = list(nodes)
    lagging = sorted(n.node for n in known if n.connected and _lags(rotation, n))
    return tuple(lagging[: max(WAVE_MIN, len(known) // WAVE_SHARE)])


def _lags(rotation: Rotation, node: NodeTrust) -> bool:
    return node.issuer != digest_of(rotation.signing)


def _stable(rotation: Rotation, now: float) -> Rotation:
    return replace(
        rotation,
        phase=Phase.STABLE,
        since=now,
        bundle=rotation.bundle.without_root(rotation.leaving, compromised=rotation.compromised),
        leaving=b"",
        compromised=False,
    )
