"""The calling side of a connection: TCP, TLS, who answered, and its verdict."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress

import trio

from swarmlet.codec import BadMessage
from swarmlet.identity import BadCertificate, NodeCertificate, Refused
from swarmlet.transport.errors import (
    BROKEN,
    ConnectFailed,
    Unreachable,
    WrongPeer,
    explain_silence,
    explain_tcp,
    explain_timeout,
    explain_tls,
)
from swarmlet.transport.protocols import Protocol, format_address
from swarmlet.transport.verdict import receive_verdict

TlsStream = trio.SSLStream[trio.SocketStream]

#: A peer whose machine lost power says nothing: the kernel asks after 30 s, and gives up after a
#: minute; data that nobody acknowledges are given up after a minute too (tcp(7)).
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000),
)


def keep_alive(stream: trio.SocketStream) -> None:
    """Let the kernel find out that a silent peer is gone."""
    with suppress(OSError):  # the peer may have hung up already
        for level, option, value in _KEEPALIVE:
            stream.setsockopt(level, option, value)


async def dial(
    address: tuple[str, int],
    context: ssl.SSLContext,
    protocol: Protocol,
    *,
    check: Callable[[NodeCertificate], None],
    within: float,
) -> tuple[TlsStream, NodeCertificate]:
    """Connect to *address* and return the stream once its owner has admitted us.

    *check* looks at the certificate that answered, before anything is said to its owner, and
    raises Refused to hang up.

    Raises:
        ConnectFailed: or one of its kinds; nothing is left open.
    """
    with trio.move_on_after(within):
        return await _dial(address, context, protocol, check)
    raise explain_timeout(address, within)


async def _dial(
    address: tuple[str, int],
    context: ssl.SSLContext,
    protocol: Protocol,
    check: Callable[[NodeCertificate], None],
) -> tuple[TlsStream, NodeCertificate]:
    try:
        tcp = await trio.open_tcp_stream(*address)
    except OSError as exc:
        raise explain_tcp(address, exc) from exc
    keep_alive(tcp)
    stream = TlsStream(tcp, context)
    try:
        await _shake_hands(stream, address)
        certificate = _identify(stream, address, protocol, check)
        await _wait_admitted(stream, address)
    except BaseException:
        # Nothing is owed to who is not, or not yet, a peer: no farewell.
        await trio.aclose_forcefully(stream)
        raise
    return stream, certificate


async def _shake_hands(stream: TlsStream, address: tuple[str, int]) -> None:
    try:
        await stream.do_handshake()
    except BROKEN as exc:
        raise explain_tls(address, exc) from exc


def _identify(
    stream: TlsStream,
    address: tuple[str, int],
    protocol: Protocol,
    check: Callable[[NodeCertificate], None],
) -> NodeCertificate:
    where = format_address(address)
    if stream.selected_alpn_protocol() != protocol:
        raise Unreachable(
            f"what answers at {where} does not speak {protocol}: it is another program, or a "
            "swarmlet of another version"
        )
    der = stream.getpeercert(True)
    try:
        certificate = NodeCertificate.from_der_untrusted(der or b"")
        check(certificate)
    except BadCertificate as exc:
        raise WrongPeer(f"what answers at {where} is no swarmlet node: {exc}") from exc
    except Refused as exc:
        raise WrongPeer(f"{where}: {exc.text}") from exc
    return certificate


async def _wait_admitted(stream: TlsStream, address: tuple[str, int]) -> None:
    try:
        await receive_verdict(stream)
    except BadMessage as exc:
        raise Unreachable(
            f"what answers at {format_address(address)} is no swarmlet of this kind: {exc}"
        ) from exc
    except ConnectFailed:  # its own words; an OSError too, so it goes first
        raise
    except BROKEN as exc:
        raise explain_silence(address, exc) from exc
