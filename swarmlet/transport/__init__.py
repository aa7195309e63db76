"""The one port of a node: TLS 1.3, certificates on both sides, ALPN selects the protocol.

The problem: every byte between two hosts, Raft, sessions, the API, joins and blobs, crosses
networks that belong to nobody. So there is one listener, one handshake, one place that decides
who may speak what, and a bound on all that a stranger can make us hold.

The life of a connection:

1. TCP. Counted as a stranger's, by address; beyond the bounds it is closed at once.
2. TLS 1.3, within ten seconds together with the next two steps. The chain is verified against
   the cluster's roots and without the clock (identity). A certificate is asked for; only sl-ca/1
   goes on without one, for who joins has none yet.
3. The certificate and the store give role and rights (Admission); the table of protocols says
   what they suffice for. Then the verdict: two zero bytes, or a reason and a text that the
   other side raises as PeerRefused and its user reads.
4. The protocol: messages in frames (Framed, FrameStream) or bytes (Raw). The handler runs in a
   task of its own; what the world does to the connection ends with it.
5. recheck() cuts off, at once, who lost its rights since.

The caller's side mirrors it: dial, verify the chain, check that the node that answers is the one
that was meant (accept), wait for the verdict. connect() returns when we are in.

What holds:

- No handler sees a byte of a peer that was not admitted to its protocol.
- An address is a hint: who answers there is known by its key, or nothing is said to it.
- Bounded: connections (all, strangers, by address, by node), handshake, verdict, frames, silence,
  writes, farewells, questions and failures at the CA, log lines about strangers.
- Errors are for people: each ConnectFailed says what is wrong and what to do.

enrolment.py is the door of sl-ca/1 from both sides, renewal.py the node's next certificate.

Where we differ: swarmkit and k3s speak HTTP/2 with gRPC here. One stream for each purpose and
frames of our own need neither, and a refusal has words instead of a closed connection.

Left out: session resumption (it saves 1 ms and would outlive a removal), plain text of any kind.
"""

from swarmlet.transport.endpoint import (
    Admission,
    Framed,
    Handlers,
    Raw,
    Transport,
    TransportStatistics,
    open_listeners,
)
from swarmlet.transport.enrolment import (
    CertificateAuthorityService,
    Enrolment,
    EnrolmentRefused,
    EnrolmentUnavailable,
    enrol,
    fetch_trust,
    renew,
)
from swarmlet.transport.errors import (
    ConnectFailed,
    EndOfStream,
    PeerRefused,
    StreamBroken,
    Unreachable,
    WrongPeer,
)
from swarmlet.transport.frames import Codec, FrameStream
from swarmlet.transport.protocols import PORT, RULES, Peer, Protocol
from swarmlet.transport.renewal import ManagerAddress, RenewalStatus, Renewer

__all__ = [
    "PORT",
    "RULES",
    "Admission",
    "CertificateAuthorityService",
    "Codec",
    "ConnectFailed",
    "EndOfStream",
    "Enrolment",
    "EnrolmentRefused",
    "EnrolmentUnavailable",
    "FrameStream",
    "Framed",
    "Handlers",
    "ManagerAddress",
    "Peer",
    "PeerRefused",
    "Protocol",
    "Raw",
    "RenewalStatus",
    "Renewer",
    "StreamBroken",
    "Transport",
    "TransportStatistics",
    "Unreachable",
    "WrongPeer",
    "enrol",
    "fetch_trust",
    "open_listeners",
    "renew",
]
