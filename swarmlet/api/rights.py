"""Who may call what, and where it is answered: the one place that decides.

Pure. Every route names its Right; decide() says whether this node answers a call of it, hands
it to the leader, or refuses it with what to do instead.

              own socket            from a manager     from a worker
    PUBLIC    answered              answered           answered
    HOST      answered              refused            refused
    NODE      answered              answered           refused
    BOTH      answered              answered           answered
    READ      leader (or worker)    by the leader      by the leader, masked
    MANAGE    leader, on managers   by the leader      refused

BOTH is of things that this node and the cluster have (networks): the handler answers for this
node's to its own socket only, and asks again, with the right of the cluster's half, for the rest.

Calls come from other nodes over mTLS with a role that is the least of certificate and store.
They are answered or refused and never handed on: so no call can go in circles.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

from swarmlet.api.backend import LocalState, LocalStatus
from swarmlet.api.exchange import Peer
from swarmlet.model import Role


class Right(enum.Enum):
    PUBLIC = "public"  # says nothing that matters: ping, version
    HOST = "host"  # changes what this node is: init, join, leave
    NODE = "node"  # this node's own things: containers, images, members
    BOTH = "both"  # this node's and the cluster's: the handler decides again for each half
    READ = "read"  # looks at the cluster
    MANAGE = "manage"  # changes the cluster, or shows its secrets


@dataclass(frozen=True, slots=True)
class Serve:
    """Answer here. *masked*: without the values of environment variables and the like."""

    masked: bool = False


@dataclass(frozen=True, slots=True)
class Forward:
    """Hand it to the leader as it is."""


@dataclass(frozen=True, slots=True)
class Refuse:
    status: int
    message: str


Decision: TypeAlias = Serve | Forward | Refuse


def decide(
    right: Right, here: LocalStatus, peer: Peer | None, *, forwarded: bool = False
) -> Decision:
    """Say what becomes of a call that needs *right*; *forwarded*: another node handed it on."""
    if right in (Right.PUBLIC, Right.BOTH):
        return Serve()
    if right is Right.HOST:
        if peer is None:
            return Serve()
        return Refuse(403, "this can be asked on the node itself only")
    if right is Right.NODE:
        if peer is None or peer.role is Role.MANAGER:
            return Serve()
        return Refuse(403, f"node {peer.node} is a worker; only managers may ask this of a node")
    if peer is not None:
        return _decide_for_peer(right, here, peer)
    return _decide_for_client(right, here, forwarded=forwarded)


def _decide_for_peer(right: Right, here: LocalStatus, peer: Peer) -> Decision:
    if right is Right.MANAGE and peer.role is not Role.MANAGER:
        return Refuse(403, f"node {peer.node} is a worker; a worker may look, not change")
    if not here.is_leader:
        return Refuse(503, "this node does not lead the swarm now; try again in a moment")
    return Serve(masked=peer.role is not Role.MANAGER)


def _decide_for_client(right: Right, here: LocalStatus, *, forwarded: bool) -> Decision:
    match here.state:
        case LocalState.INACTIVE:
            return Refuse(
                503,
                "This node is not a swarm manager. Use `swarmlet init` to make a new swarm here, "
                "or `swarmlet join` to bring this node into one, and try again.",
            )
        case LocalState.ERROR:
            return Refuse(503, f"This node cannot take part in its swarm: {here.error}")
        case LocalState.PENDING:
            reason = f" ({here.error})" if here.error else ""
            return Refuse(
                503,
                f"This node has not reached a manager of its swarm yet{reason}; "
                "see `swarmlet members`, and try again in a moment.",
            )
        case LocalState.ACTIVE:
            pass
    if here.is_leader:
        return Serve()
    if right is Right.MANAGE and here.role is not Role.MANAGER:
        return Refuse(
            503,
            "This node is not a swarm manager. Worker nodes can't be used to view or modify "
            f"cluster state. Run this on a manager: {managers_of(here)}.",
        )
    if forwarded:
        return Refuse(508, "this call was handed on once already; see `swarmlet node ls`")
    return Forward()


def managers_of(here: LocalStatus) -> str:
    """`h1 (10.0.0.1), h2 (10.0.0.2)`"""
    known = [f"{m.name} ({m.address})" if m.name else m.address for m in here.managers]
    return ", ".join(known) or "none is known here, see `swarmlet members`"
