"""The node's one port, and the way out to those of others."""

from __future__ import annotations

import errno
import itertools
import logging
import typing
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from swarmlet import wire
from swarmlet.codec import BadMessage
from swarmlet.identity import (
    Admitted,
    BadCertificate,
    Credentials,
    NodeCertificate,
    Reason,
    Refused,
    Rights,
    Role,
    accept,
    ended,
)
from swarmlet.transport.dial import TlsStream, dial, keep_alive
from swarmlet.transport.errors import BROKEN, EndOfStream, explain_handshake
from swarmlet.transport.frames import Codec, FrameStream, close
from swarmlet.transport.limits import Census, Complaints, discharge, source_of
from swarmlet.transport.protocols import (
    CONNECT_TIMEOUT,
    HANDSHAKE_TIMEOUT,
    RULES,
    STRANGER_LIFETIME,
    STREAMS_PER_NODE_MAX,
    Peer,
    Protocol,
    format_address,
)
from swarmlet.transport.verdict import encode_verdict, printable

logger = logging.getLogger(__name__)

#: No more files or memory just now: accept again a little later (accept(2)).
_CAPACITY_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_CAPACITY_PAUSE = 0.1
#: What a speaker of plain HTTP is told, in its own language.
_PLAIN_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"This is the port between swarmlet nodes; it speaks TLS to nodes with a certificate only.\n"
    b"The API for people and docker is the Unix socket swarmlet.sock of the host.\n"
)


class Admission(typing.Protocol):
    """Who may come in: the store's answer on a manager, the certificate's on a worker."""

    def admit(self, certificate: NodeCertificate) -> Admitted:
        """Return the rights of the caller with *certificate*, or raise Refused."""

    @property
    def floor(self) -> float:
        """The highest cluster time that this node ever learned."""


@dataclass(frozen=True, slots=True)
class Framed:
    """A handler that speaks in messages. The stream is closed when it returns."""

    handle: Callable[[FrameStream], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Raw:
    """A handler that speaks in bytes: HTTP. The stream is closed when it returns."""

    handle: Callable[[Peer, TlsStream], Awaitable[None]]


Handlers = Mapping[Protocol, Framed | Raw]


@dataclass(frozen=True, slots=True)
class TransportStatistics:
    connections: int
    strangers: int
    admitted: int  # since the start, like what follows
    refused: int
    failed_handshakes: int
    overflows: int


@dataclass(slots=True)
class _Connection:
    peer: Peer
    scope: trio.CancelScope


class Transport:
    """One per node. Frozen credentials are asked for at each connection, so a renewal or a new
    root takes effect with the next one.
    """

    def __init__(
        self,
        credentials: Callable[[], Credentials],
        admission: Admission,
        *,
        codec: Codec = wire,
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
        stranger_lifetime: float = STRANGER_LIFETIME,
    ) -> None:
        self._credentials = credentials
        self._admission = admission
        self._codec = codec
        self._handshake_timeout = handshake_timeout
        self._stranger_lifetime = stranger_lifetime
        self._census = Census()
        self._complaints = Complaints()
        self._connections: dict[int, _Connection] = {}
        self._numbers = itertools.count()
        self._admitted = self._refused = self._failed_handshakes = self._overflows = 0

    def statistics(self) -> TransportStatistics:
        return TransportStatistics(
            connections=self._census.connections,
            strangers=self._census.strangers.total(),
            admitted=self._admitted,
            refused=self._refused,
            failed_handshakes=self._failed_handshakes,
            overflows=self._overflows,
        )

    # The serving side:

    async def serve(
        self,
        listeners: Sequence[trio.SocketListener],
        handlers: Handlers,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve *handlers* until cancelled. A failing connection ends alone; a bug in a handler
        ends the daemon.

        Protocols without a handler are refused, with a text: a worker serves no Raft.
        """
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(self._accept, listener, handlers, nursery)
            task_status.started()

    async def _accept(
        self, listener: trio.SocketListener, handlers: Handlers, nursery: trio.Nursery
    ) -> None:
        async with listener:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as exc:
                    if exc.errno not in _CAPACITY_ERRNOS:
                        raise
                    self._complain("*", "capacity", f"no connection could be accepted: {exc}")
                    await trio.sleep(_CAPACITY_PAUSE)
                    continue
                nursery.start_soon(self._serve_connection, stream, handlers)

    async def _serve_connection(self, tcp: trio.SocketStream, handlers: Handlers) -> None:
        """The boundary of one connection: what the world does to it ends here."""
        try:
            address = _peer_address(tcp)
            source = source_of(address[0])
            if bound := self._census.full(source):
                self._overflows += 1
                self._complain(source, "overflow", f"there are {bound}")
                return
            with _counted(self._census.strangers, source):
                arrival = await self._receive(tcp, address, handlers)
                if arrival is None:
                    return
                peer, stream = arrival
                if peer.node is None:  # and stays a stranger: it came to join
                    with trio.move_on_after(self._stranger_lifetime):
                        await self._handle(handlers[peer.protocol], peer, stream)
                    await close(stream)
                    return
            with _counted(self._census.nodes, peer.node), self._registered(peer):
                await self._handle(handlers[peer.protocol], peer, stream)
        except BROKEN as exc:
            logger.debug("connection lost reason=%s", exc)
        finally:
            await trio.aclose_forcefully(tcp)

    async def _receive(
        self, tcp: trio.SocketStream, address: tuple[str, int], handlers: Handlers
    ) -> tuple[Peer, TlsStream] | None:
        """Shake hands with whoever connected and decide about it. None: it was turned away."""
        keep_alive(tcp)
        context = self._credentials().server_context([str(protocol) for protocol in Protocol])
        stream = TlsStream(tcp, context, server_side=True)
        with trio.move_on_after(self._handshake_timeout):
            if not await self._shake_hands(stream, address):
                return None
            peer = await self._welcome(stream, address, handlers)
            return None if peer is None else (peer, stream)
        self._failed_handshakes += 1
        self._complain(source_of(address[0]), "slow", "took too long for the handshake")
        return None

    async def _shake_hands(self, stream: TlsStream, address: tuple[str, int]) -> bool:
        try:
            await stream.do_handshake()
        except BROKEN as exc:
            kind, words = explain_handshake(exc)
            self._failed_handshakes += 1
            if kind == "hung-up":  # a caller that changed its mind: nothing is wrong
                logger.debug("handshake ended address=%s reason=%s", address, words)
                return False
            self._complain(source_of(address[0]), kind, words)
            if kind == "http":
                await stream.transport_stream.send_all(_PLAIN_HTTP)
            return False
        return True

    async def _welcome(
        self, stream: TlsStream, address: tuple[str, int], handlers: Handlers
    ) -> Peer | None:
        """Decide about a peer and tell it. None: it was refused."""
        source, name = source_of(address[0]), stream.selected_alpn_protocol()
        if name is None:
            self._failed_handshakes += 1
            self._complain(source, "alpn", "speaks TLS, but no protocol of ours")
            await close(stream)
            return None
        try:
            peer = self._peer(Protocol(name), address, stream.getpeercert(True), handlers)
        except Refused as refusal:
            self._refused += 1
            self._complain(source, f"{name} {refusal.reason}", refusal.text)
            await stream.send_all(encode_verdict(refusal.reason, refusal.text))
            await close(stream)
            return None
        await stream.send_all(encode_verdict())
        self._admitted += 1
        return peer

    def _peer(
        self, protocol: Protocol, address: tuple[str, int], der: bytes | None, handlers: Handlers
    ) -> Peer:
        """Return who calls, or raise Refused: the check that precedes every handler."""
        rule = RULES[protocol]
        if protocol not in handlers:
            raise Refused(
                Reason.NOT_SERVED,
                f"this node is a {self._credentials().role} and does not serve {protocol}: ask a "
                f"{rule.served_by}",
            )
        if der is None:
            if rule.caller is None:
                return Peer(protocol=protocol, address=address)
            raise Refused(
                Reason.NO_CERTIFICATE,
                f"{protocol} is for nodes of the cluster: `swarmlet join` makes this host one",
            )
        try:
            certificate = NodeCertificate.from_der_untrusted(der)
        except BadCertificate as exc:
            raise Refused(Reason.FOREIGN, f"the certificate is not that of a node: {exc}") from exc
        admitted = self._admission.admit(certificate)
        if rule.caller is not None:
            if admitted.rights is not Rights.FULL:
                raise ended(certificate.node)
            check_role(protocol, certificate.node, admitted.role)
        if self._census.node_full(certificate.node):
            raise Refused(
                Reason.BUSY,
                f"node {certificate.node} has {STREAMS_PER_NODE_MAX} connections to this node "
                "already: it opens them faster than it closes them",
            )
        return Peer(
            protocol=protocol,
            address=address,
            node=certificate.node,
            role=admitted.role,
            rights=admitted.rights,
            certificate=certificate,
            skewed=admitted.skewed,
        )

    async def _handle(self, handler: Framed | Raw, peer: Peer, stream: TlsStream) -> None:
        """Run *handler*; a nursery of its own may raise groups, so groups are what is caught."""
        try:
            match handler:
                case Framed(handle):
                    await handle(FrameStream(stream, peer, self._codec))
                case Raw(handle_raw):
                    await handle_raw(peer, stream)
        except* BadMessage as failures:
            self._complain(
                source_of(peer.address[0]),
                f"{peer.protocol} message",
                f"sent what is no message: {_first(failures)}",
            )
        except* (EndOfStream, *BROKEN) as failures:
            logger.debug("connection ended peer=%s reason=%s", peer, _first(failures))
        await close(stream)

    @contextmanager
    def _registered(self, peer: Peer) -> Iterator[None]:
        """Let recheck() cut the connection off while the block runs."""
        key = next(self._numbers)
        with trio.CancelScope() as scope:
            self._connections[key] = _Connection(peer, scope)
            try:
                yield
            finally:
                del self._connections[key]

    def recheck(self) -> int:
        """Ask admission again about everyone who is connected, and cut off who lost its rights.

        Call it when nodes were removed or demoted. A certificate that ended meanwhile cuts nobody
        off: the node renews over the connection it has. Returns how many were cut off.
        """
        lost = 0
        for connection in list(self._connections.values()):
            peer = connection.peer
            assert peer.certificate is not None
            try:
                check_role(peer.protocol, peer.certificate.node, self._role_now(peer.certificate))
            except Refused as refusal:
                lost += 1
                connection.scope.cancel()
                logger.info(
                    "node cut off node=%s protocol=%s reason=%s",
                    peer.node,
                    peer.protocol,
                    refusal.reason,
                )
        return lost

    def _role_now(self, certificate: NodeCertificate) -> Role:
        return self._admission.admit(certificate).role

    def _complain(self, source: str, kind: str, text: str) -> None:
        """Tell the log, once for each source and kind in ten minutes: floods are cheap."""
        repeats = self._complaints.news(source, kind, trio.current_time())
        if repeats is not None:
            logger.warning(
                "connection refused source=%s kind=%s repeats=%d: %s",
                source,
                kind,
                repeats,
                printable(text),
            )

    # The calling side:

    async def connect(
        self,
        address: tuple[str, int],
        protocol: Protocol,
        *,
        node: str | None = None,
        within: float = CONNECT_TIMEOUT,
        credentials: Credentials | None = None,
    ) -> FrameStream:
        """Return a stream of messages to *node* (None: any node of the role that serves
        *protocol*) at *address*, once that node has admitted us.

        *credentials* other than the present ones are for a renewal that tries new ones.

        Raises:
            ConnectFailed: Unreachable, WrongPeer or PeerRefused; its text says what to do.
        """
        peer, stream = await self.connect_raw(
            address, protocol, node=node, within=within, credentials=credentials
        )
        return FrameStream(stream, peer, self._codec)

    async def connect_raw(
        self,
        address: tuple[str, int],
        protocol: Protocol,
        *,
        node: str | None = None,
        within: float = CONNECT_TIMEOUT,
        credentials: Credentials | None = None,
    ) -> tuple[Peer, TlsStream]:
        """Return a stream of bytes like connect() returns one of messages."""
        own = credentials or self._credentials()

        def check(certificate: NodeCertificate) -> None:
            accept(
                certificate,
                floor=self._admission.floor,
                cluster=own.cluster,
                node=node,
                role=RULES[protocol].served_by,
            )

        stream, certificate = await dial(
            address, own.client_context(protocol), protocol, check=check, within=within
        )
        peer = Peer(
            protocol=protocol,
            address=address,
            node=certificate.node,
            role=certificate.role,
            rights=Rights.FULL,
            certificate=certificate,
        )
        return peer, stream


def check_role(protocol: Protocol, node: str, role: Role) -> None:
    """Raise Refused if *node* may not call *protocol* with its effective *role*."""
    needed = RULES[protocol].caller
    if needed is not None and role.rank < needed.rank:
        raise Refused(
            Reason.WRONG_ROLE,
            f"{protocol} is for {needed}s and node {node} is a {role}: `swarmlet node promote "
            f"{node}` makes it a {needed} (just promoted, it renews its certificate first)",
        )


async def open_listeners(host: str, port: int) -> list[trio.SocketListener]:
    """Return listeners at *host* (empty: every address) and *port*.

    Raises:
        OSError: the port is taken, or the address is not of this host; the text says so.
    """
    try:
        return await trio.open_tcp_listeners(port, host=host or None)
    except OSError as exc:
        where = format_address((host or "*", port))
        if exc.errno == errno.EADDRINUSE:
            text = f"{where} is in use by another program: stop it, or listen elsewhere (--listen)"
        elif exc.errno == errno.EADDRNOTAVAIL:
            text = f"{where} is no address of this host: give one of its own (--listen)"
        else:
            raise
        raise OSError(exc.errno, text) from exc


@contextmanager
def _counted(counter: Counter[str], key: str) -> Iterator[None]:
    counter[key] += 1
    try:
        yield
    finally:
        discharge(counter, key)


def _peer_address(tcp: trio.SocketStream) -> tuple[str, int]:
    host, port, *_ = tcp.socket.getpeername()
    return host, port


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return one of the errors in *failures*, however deep nurseries have wrapped it."""
    error: BaseException = failures
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
