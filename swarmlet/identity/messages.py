"""What joiner, node and manager say to each other over sl-ca/1. wire.py gives them numbers.

Pure. One question, one answer:

    TrustRequest              TrustAnswer
    JoinRequest               Issued, JoinPending (ask again with the same key) or JoinRefused
    RenewRequest              Issued or JoinRefused
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from swarmlet.identity.trust import TrustBundle


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustRequest:
    """Which roots does this cluster have? Asked before anything is trusted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustAnswer:
    cluster: str
    bundle: TrustBundle


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinFacts:
    """What a joiner says about itself; nothing here grants anything."""

    name: str
    address: str  # host:port that other nodes may reach it at
    version: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRequest:
    token: str = field(repr=False)
    csr: bytes = field(repr=False)
    facts: JoinFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewRequest:
    """Asked under the old certificate, for a key that may be new."""

    csr: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate. *chain* is what to present: the leaf, then crosses."""

    node: str
    chain: tuple[bytes, ...] = field(repr=False)
    bundle: TrustBundle = field(repr=False)
    managers: tuple[str, ...] = ()  # host:port
    clock: float = 0.0  # the cluster's time: the node's floor begins here


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinPending:
    """A person has to approve the node first; ask again with the same key."""

    retry_after: float  # seconds
    text: str = ""


class JoinFault(enum.StrEnum):
    TOKEN = "token"
    REQUEST = "request"  # the CSR or a fact is no good
    RIGHTS = "rights"  # renewal without a certificate, or of a node that was removed
    BUSY = "busy"  # too many just now: try again
    UNAVAILABLE = "unavailable"  # no leader, or not a manager any more: try another manager


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRefused:
    fault: JoinFault
    text: str
