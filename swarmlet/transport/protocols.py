"""What is spoken on the one port, by whom, and within which bounds.

Pure. ALPN selects the protocol, the certificate and the store give the caller's role, and this
table says who may speak what to whom.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from swarmlet.identity import NodeCertificate, Rights, Role

#: Not Docker's 7946, so that both can live on one host.
PORT = 7947


class Protocol(enum.StrEnum):
    """A value is the name on the wire (ALPN): a change that old nodes misread gets a new one."""

    RAFT = "sl-raft/1"  # between managers
    SESSION = "sl-session/1"  # node to manager: assignments down, statuses up
    API = "sl-api/1"  # HTTP from node to node
    CA = "sl-ca/1"  # join and renew
    SYNC = "sl-sync/1"  # gossip's anti-entropy, image blobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The bounds of one protocol."""

    caller: Role | None  # the least role of who calls; None: anyone, even without a certificate
    served_by: Role  # the least role of who answers
    frame_bytes_max: int = 1 << 20
    #: Seconds without a byte after which the other side counts as gone. Every protocol but the
    #: API sends heartbeats; the slowest preset (edge) one in 30 s, and three may be lost.
    idle_timeout: float = 120.0


RULES: Mapping[Protocol, Rule] = MappingProxyType(
    {
        Protocol.RAFT: Rule(caller=Role.MANAGER, served_by=Role.MANAGER),
        Protocol.SESSION: Rule(caller=Role.WORKER, served_by=Role.MANAGER),
        Protocol.API: Rule(caller=Role.WORKER, served_by=Role.WORKER),
        Protocol.SYNC: Rule(caller=Role.WORKER, served_by=Role.WORKER),
        # A stranger's frame: a request with its token and facts is below 2 KB, a trust bundle
        # with the most roots that are read about 20 KB.
        Protocol.CA: Rule(
            caller=None, served_by=Role.MANAGER, frame_bytes_max=64 * 1024, idle_timeout=20.0
        ),
    }
)

#: Seconds from the accepted connection to the verdict, TLS handshake included.
HANDSHAKE_TIMEOUT = 10.0
#: Seconds that connect() waits for TCP, TLS and the verdict together.
CONNECT_TIMEOUT = 10.0
#: Seconds for a frame that has begun: 1 MiB over a line of 10 kB/s.
FRAME_TIMEOUT = 120.0
#: Seconds for one write to be taken by the kernel and the peer.
WRITE_TIMEOUT = 60.0
#: Seconds for a farewell to a peer that may not listen any more.
CLOSE_TIMEOUT = 2.0
#: Seconds of a whole connection of somebody without a certificate.
STRANGER_LIFETIME = 60.0

#: Bytes that wait to be written on one stream before senders have to wait as well.
QUEUE_BYTES_MAX = 2 << 20

#: Connections in all: each holds about 35 KB, TLS state included (measured).
CONNECTIONS_MAX = 2048
#: Connections that have not shown a certificate yet, or never will; in all, and from one address
#: (one /64 of IPv6). A site's nodes behind one NAT come back together after a power cut.
STRANGERS_MAX = 256
STRANGERS_PER_ADDRESS_MAX = 64
#: Streams that one admitted node may have open to us.
STREAMS_PER_NODE_MAX = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who is at the other end, as far as its certificate and the store say."""

    protocol: Protocol
    address: tuple[str, int]
    node: str | None = None  # None: it came without a certificate, to join
    role: Role | None = None  # effective: the lesser of certificate and store
    rights: Rights | None = None
    certificate: NodeCertificate | None = None
    skewed: bool = False  # one of our two clocks is odd

    def __str__(self) -> str:
        host = format_address(self.address)
        return f"{self.node}@{host}" if self.node else host


def format_address(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
