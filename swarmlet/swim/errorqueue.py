"""Refused datagrams, as the kernel reports them: ip(7) IP_RECVERR, ipv6(7) IPV6_RECVERR.

A UDP socket that is not connected hears of ICMP errors only by its error queue. Who can guess
our ports can forge such an error, so the core takes it for evidence and asks others.
"""

from __future__ import annotations

import errno
import socket
import struct

from swarmlet.swim.messages import Address

# linux/in.h, linux/in6.h, linux/errqueue.h
IP_RECVERR = 11
IPV6_RECVERR = 25
MSG_ERRQUEUE = 0x2000
SO_EE_ORIGIN_ICMP = 2
SO_EE_ORIGIN_ICMP6 = 3
#: struct sock_extended_err up to the fields we read: errno 4, origin 1, type 1, code 1, pad 1.
_EXTENDED_ERR = struct.Struct("=IBBBx")

_OPTIONS = {
    socket.AF_INET: (socket.IPPROTO_IP, IP_RECVERR),
    socket.AF_INET6: (socket.IPPROTO_IPV6, IPV6_RECVERR),
}
#: Reports read at a time; the kernel bounds its queue by the receive buffer.
REPORTS_MAX = 64


def enable_refusals(sock: socket.socket) -> None:
    level, option = _OPTIONS[socket.AddressFamily(sock.family)]
    sock.setsockopt(level, option, 1)


def read_refusals(sock: socket.socket) -> list[Address]:
    """Empty the error queue and return where datagrams of ours were refused. Never blocks."""
    refused: list[Address] = []
    for _ in range(REPORTS_MAX):
        try:
            _, ancillary, _, address = sock.recvmsg(0, 512, MSG_ERRQUEUE | socket.MSG_DONTWAIT)
        except OSError:  # it is empty, or the error itself was pending and is cleared now
            break
        for level, kind, data in ancillary:
            if (level, kind) not in _OPTIONS.values() or len(data) < _EXTENDED_ERR.size:
                continue
            code, origin, _, _ = _EXTENDED_ERR.unpack(data[: _EXTENDED_ERR.size])
            by_network = origin in (SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6)
            if by_network and code == errno.ECONNREFUSED:
                refused.append((address[0], address[1]))
    return refused
