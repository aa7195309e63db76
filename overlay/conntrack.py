"""The kernel's table of connections: find flows by where they were sent, and end them.

Sync; works in the namespace that its socket was opened in. Only flows whose destination was
translated are looked at, so connections that we have nothing to do with never are.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address

from overlay.rtnetlink import Message, NetlinkSocket, attribute, attributes, nested
from overlay.topology import IPAddress

# linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h, nf_conntrack_common.h
_CTNETLINK = 1 << 8
CT_GET, CT_DELETE = _CTNETLINK | 1, _CTNETLINK | 2
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_STATUS, CTA_ID, CTA_STATUS_MASK = 1, 2, 3, 12, 26
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_IP_V4_SRC, CTA_IP_V4_DST = 1, 2
CTA_PROTO_NUM = 1
IPS_DST_NAT = 1 << 5
_NFGENMSG = struct.pack("=BBH", socket.AF_INET, 0, 0)


@dataclass(frozen=True, slots=True)
class Flow:
    """A connection to *asked* that *backend* answers."""

    asked: IPAddress
    backend: IPAddress
    is_datagram: bool


def end_flows(sock: NetlinkSocket, is_over: Callable[[Flow], bool]) -> int:
    """Forget the translated flows that *is_over* says are; return how many.

    The next packet of such a flow is a new connection: for UDP it goes to a backend that lives,
    for TCP it is answered with a reset.

    Raises:
        NetlinkError: the kernel has no table of connections, or would not give it.
    """
    # The kernel filters by status since 5.15; before, it ignores that, and _flow() does.
    status = (IPS_DST_NAT).to_bytes(4, "big")
    wanted = _NFGENMSG + attribute(CTA_STATUS, status) + attribute(CTA_STATUS_MASK, status)
    requests = []
    for body in sock.dump(CT_GET, wanted):
        found = attributes(body[len(_NFGENMSG) :])
        flow = _flow(found)
        if flow and is_over(flow):
            parts = [nested(CTA_TUPLE_ORIG, found[CTA_TUPLE_ORIG])]
            if CTA_ID in found:  # not a later flow with the same ports
                parts.append(attribute(CTA_ID, found[CTA_ID]))
            requests.append(Message(CT_DELETE, 0, _NFGENMSG + b"".join(parts)))
    errors = [error for error in sock.execute(requests) if error]
    for error in errors:
        if error.errno != errno.ENOENT:  # it ended by itself meanwhile
            raise error
    return len(requests) - len(errors)


def _flow(found: dict[int, bytes]) -> Flow | None:
    if not int.from_bytes(found.get(CTA_STATUS, b""), "big") & IPS_DST_NAT:
        return None
    asked = attributes(found[CTA_TUPLE_ORIG])
    answered = attributes(found[CTA_TUPLE_REPLY])
    protocol = attributes(answered[CTA_TUPLE_PROTO])[CTA_PROTO_NUM][0]
    return Flow(
        asked=IPv4Address(attributes(asked[CTA_TUPLE_IP])[CTA_IP_V4_DST]),
        backend=IPv4Address(attributes(answered[CTA_TUPLE_IP])[CTA_IP_V4_SRC]),
        is_datagram=protocol == socket.IPPROTO_UDP,
    )
