"""Asking the host's own DNS resolvers what is not ours to answer. A Trio shell.

A question is handed on as it came, under a number and from a port of our own, and a reply
is taken only if it is to that number and question (RFC 5452).
"""

from __future__ import annotations

import ipaddress
import random
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import trio

from overlay import dns
from overlay.dns import BadMessage, Query, Rcode
from overlay.topology import IPAddress

Server: TypeAlias = tuple[IPAddress, int]

#: Seconds that one server gets. glibc's clients ask again after five.
SERVER_SECONDS = 2.0
#: As many servers as glibc's (MAXNS in resolv.h).
SERVERS_MAX = 3
MESSAGE_BYTES_MAX = 65535
RESOLV_CONF = Path("/etc/resolv.conf")
#: A resolv.conf of more is not one.
RESOLV_CONF_BYTES_MAX = 65536
DNS_PORT = 53
LENGTH_BYTES = 2


class Upstream:
    """The resolvers that *servers* gives, asked in order.

    Args:
        servers: called for each question, because a laptop changes networks.
        rng: source of message numbers; one that nobody can guess.
    """

    def __init__(self, servers: Callable[[], Sequence[Server]], rng: random.Random) -> None:
        self._servers = servers
        self._rng = rng

    async def ask(self, query: Query, data: bytes, *, by_tcp: bool) -> bytes | None:
        """Return the reply to *data*, which is *query*; None if no server gave one."""
        reply: bytes | None = None
        for server in self._servers()[:SERVERS_MAX]:
            number = self._rng.getrandbits(16)
            message = dns.with_id(data, number)
            try:
                with trio.fail_after(SERVER_SECONDS):
                    ask = _ask_tcp if by_tcp else _ask_udp
                    reply, code = await ask(server, query, number, message)
            except (OSError, trio.TooSlowError, BadMessage):
                continue
            reply = dns.with_id(reply, query.id)
            if code not in (Rcode.SERVFAIL, Rcode.REFUSED):
                break
        return reply


async def _ask_udp(server: Server, query: Query, number: int, message: bytes) -> tuple[bytes, int]:
    with _socket_to(server, trio.socket.SOCK_DGRAM) as sock:
        await sock.connect(_pair(server))
        await sock.send(message)
        while True:
            reply = await sock.recv(MESSAGE_BYTES_MAX)
            try:
                return reply, dns.check_reply_untrusted(query, number, reply)
            except BadMessage:
                continue  # late or forged; the caller's deadline bounds the wait


async def _ask_tcp(server: Server, query: Query, number: int, message: bytes) -> tuple[bytes, int]:
    with _socket_to(server, trio.socket.SOCK_STREAM) as sock:
        await sock.connect(_pair(server))
        stream = trio.SocketStream(sock)
        await send_message(stream, message)
        reply = await receive_message(stream)
        if reply is None:
            raise BadMessage("the connection was closed instead of a reply")
        return reply, dns.check_reply_untrusted(query, number, reply)


async def send_message(stream: trio.abc.SendStream, message: bytes) -> None:
    """Send *message* as TCP carries them: after its length (RFC 1035 section 4.2.2)."""
    await stream.send_all(len(message).to_bytes(LENGTH_BYTES, "big") + message)


async def receive_message(stream: trio.abc.ReceiveStream) -> bytes | None:
    """Return the next message, None if the peer closed before there was a whole one.

    Raises:
        OSError, trio.BrokenResourceError: the connection broke.
    """
    length = await _receive_exactly(stream, LENGTH_BYTES)
    if length is None:
        return None
    return await _receive_exactly(stream, int.from_bytes(length, "big"))


async def _receive_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        part = await stream.receive_some(count - len(data))
        if not part:
            return None
        data += part
    return bytes(data)


def read_resolv_conf(path: Path = RESOLV_CONF) -> list[Server]:
    """Return the name servers of *path*; none if it is missing or names none."""
    try:
        with path.open("rb") as file:
            text = file.read(RESOLV_CONF_BYTES_MAX).decode(errors="replace")
    except OSError:
        return []
    servers: list[Server] = []
    for line in text.splitlines():
        match line.split():
            case ["nameserver", address, *_]:
                try:
                    servers.append((ipaddress.ip_address(address), DNS_PORT))
                except ValueError:
                    continue
    return servers


def _socket_to(server: Server, kind: socket.SocketKind) -> trio.socket.SocketType:
    family = socket.AF_INET if server[0].version == 4 else socket.AF_INET6
    return trio.socket.socket(family, kind)


def _pair(server: Server) -> tuple[str, int]:
    return str(server[0]), server[1]
