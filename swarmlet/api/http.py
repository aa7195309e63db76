"""HTTP/1.1 for the API: h11 over any Trio stream, and the Unix socket that the clients use.

One connection is one loop: read a request's head, hand it to *respond*, send the answer, again.
Everything that comes from outside is bounded: the size and age of a head, the age of a body's
next piece, of an idle connection and of a send that nobody reads, and the number of connections.

Whatever the bytes are, a connection ends in an HTTP error or in being closed, and nothing else
notices (tests/api/test_http_fuzz.py).
"""

from __future__ import annotations

import errno
import grp
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import h11
import trio

from swarmlet.api.exchange import (
    Answer,
    ApiError,
    Body,
    Headers,
    Peer,
    Query,
    RawStream,
    Request,
    Response,
    Streamed,
    Upgraded,
    error_response,
)

logger = logging.getLogger(__name__)

Respond: TypeAlias = Callable[[Request], Awaitable[Answer]]

#: Request line and headers together.
HEAD_BYTES_MAX = 64 * 1024
#: From the first byte of a head to its last.
HEAD_SECONDS = 10.0
#: Between two requests on a connection that is kept.
IDLE_SECONDS = 300.0
#: For the next piece of a body.
BODY_SECONDS = 60.0
#: For one send: a pager may sleep on `logs -f`, but not for ever.
SEND_SECONDS = 3600.0
#: The same for another node, which reads at once or is gone.
PEER_SEND_SECONDS = 30.0
#: What is left of a body that nobody read: so much is read away, more closes the connection.
DRAIN_BYTES_MAX = 64 * 1024
#: Requests that may wait in the buffer while an answer is streamed.
PIPELINED_BYTES_MAX = 64 * 1024
RECEIVE_BYTES = 64 * 1024
CONNECTIONS_MAX = 256
#: For telling a client that there are too many, and for letting go of what an answer held.
CLOSE_SECONDS = 5.0

#: h11 has the state, but does not list it among its public names.
MIGHT_SWITCH_PROTOCOL = vars(h11)["MIGHT_SWITCH_PROTOCOL"]

#: The world's ways to end a connection.
GONE = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)
#: accept() failed for want of something that others may give back (trio does the same).
ACCEPT_RETRY_ERRNOS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
ACCEPT_RETRY_SECONDS = 0.1

SOCKET_MODE = 0o660
#: The first of these groups that exists may use the socket beside root.
SOCKET_GROUPS = ("swarmlet", "docker")


async def serve_stream(
    stream: trio.abc.Stream, respond: Respond, *, peer: Peer | None = None
) -> None:
    """Serve one connection until one of its ends closes it; then the stream is closed.

    *peer* is the node at its other end, as its certificate says; None for the own socket.
    """
    connection = _Connection(stream, respond, peer)
    try:
        await connection.serve()
    except* GONE:
        pass
    except* trio.TooSlowError:
        logger.debug("connection closed reason=too-slow peer=%s", peer)
    finally:
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await stream.aclose()


async def serve_unix(
    path: Path,
    respond: Respond,
    *,
    task_status: trio.TaskStatus[Path] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve clients on the Unix socket *path* until cancelled. Raises OSError if it cannot."""
    listener = trio.SocketListener(_bind(path))
    count = 0

    async def serve_one(stream: trio.SocketStream) -> None:
        nonlocal count
        count += 1
        try:
            await serve_stream(stream, respond)
        finally:
            count -= 1

    try:
        async with listener, trio.open_nursery() as nursery:
            task_status.started(path)
            while True:
                try:
                    stream = await listener.accept()
                except OSError as exc:
                    if exc.errno not in ACCEPT_RETRY_ERRNOS:
                        raise
                    logger.warning("accept failed path=%s reason=%s", path, exc)
                    await trio.sleep(ACCEPT_RETRY_SECONDS)
                    continue
                serve = serve_one if count < CONNECTIONS_MAX else _turn_away
                nursery.start_soon(serve, stream)
    finally:
        _remove(path)


async def _turn_away(stream: trio.SocketStream) -> None:
    text = f"more than {CONNECTIONS_MAX} clients are connected; try again when some have left"
    answer = error_response(503, text)
    head = f"HTTP/1.1 503 Busy\r\nContent-Length: {len(answer.body)}\r\nConnection: close\r\n\r\n"
    try:
        with trio.move_on_after(CLOSE_SECONDS):
            await stream.send_all(head.encode() + answer.body)
    except GONE:
        pass
    finally:
        await trio.aclose_forcefully(stream)


def _bind(path: Path) -> trio.socket.SocketType:
    """Make the socket, for root and one group; a socket that nobody serves is replaced."""
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise OSError(
                    errno.EADDRINUSE,
                    "another daemon serves this socket; stop it, or start this one with "
                    "another --run-dir",
                    str(path),
                )
    elif path.exists():
        raise OSError(errno.EEXIST, "is in the way of the API's socket; remove it", str(path))
    # Of mode 0600 from its birth: chmod alone would leave a moment for anybody.
    before = os.umask(stat.S_IXUSR | stat.S_IRWXG | stat.S_IRWXO)
    try:
        bound = socket.socket(socket.AF_UNIX)
        try:
            bound.bind(str(path))
        except OSError:
            bound.close()
            raise
    finally:
        os.umask(before)
    if (group := _socket_group()) is not None:
        os.chown(path, -1, group)
    path.chmod(SOCKET_MODE)
    bound.listen(128)
    return trio.socket.from_stdlib_socket(bound)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _socket_group() -> int | None:
    for name in SOCKET_GROUPS:
        try:
            return grp.getgrnam(name).gr_gid
        except KeyError:
            continue
    return None


class _Connection:
    """The loop's state; owned by the one task that runs serve()."""

    def __init__(self, stream: trio.abc.Stream, respond: Respond, peer: Peer | None) -> None:
        self._stream = stream
        self._respond = respond
        self._peer = peer
        self._send_seconds = SEND_SECONDS if peer is None else PEER_SEND_SECONDS
        self._wire = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        self._began = False  # some bytes of a head are here
        self._body_is_late = False

    async def serve(self) -> None:
        while True:
            try:
                head = await self._receive_head()
                if head is None:
                    return
                request = self._build(head)
            except ApiError as exc:
                await self._refuse(exc.status, str(exc))
                return
            except h11.RemoteProtocolError as exc:
                await self._refuse(exc.error_status_hint, str(exc))
                return
            except trio.TooSlowError:
                if self._began:
                    await self._refuse(408, "the request took too long to arrive")
                return
            answer = await self._respond(request)
            try:
                going_on = await self._answer(request, answer)
            finally:
                if not isinstance(answer, Response) and answer.close is not None:
                    with trio.move_on_after(CLOSE_SECONDS, shield=True):
                        await answer.close()
            if not going_on:
                return

    # Receiving.

    async def _receive_head(self) -> h11.Request | None:
        """The next request's head; None when the client has closed the connection."""
        self._began = False
        with trio.fail_after(IDLE_SECONDS) as scope:
            while True:
                event = self._wire.next_event()
                if event is h11.NEED_DATA:
                    data = await self._stream.receive_some(RECEIVE_BYTES)
                    if not self._began and data:
                        self._began = True
                        scope.deadline = trio.current_time() + HEAD_SECONDS
                    self._wire.receive_data(bytes(data))
                elif isinstance(event, h11.Request):
                    return event
                else:  # ConnectionClosed, or PAUSED when it cannot go on
                    return None

    def _build(self, head: h11.Request) -> Request:
        target = head.target.decode("latin-1")
        path, _, query = target.partition("?")
        version, path = split_version(path)
        return Request(
            method=head.method.decode("ascii"),
            target=target,
            path=path,
            version=version,
            query=Query(query),
            headers={name.decode("ascii"): v.decode("latin-1") for name, v in head.headers},
            body=Body(self._receive_body),
            peer=self._peer,
        )

    async def _receive_body(self) -> bytes:
        if self._wire.their_state is not h11.SEND_BODY:
            await trio.lowlevel.checkpoint()
            return b""
        try:
            with trio.fail_after(BODY_SECONDS):
                while True:
                    event = self._wire.next_event()
                    if event is h11.NEED_DATA:
                        await self._invite_body()
                        data = await self._stream.receive_some(RECEIVE_BYTES)
                        self._wire.receive_data(bytes(data))
                    elif isinstance(event, h11.Data):
                        if event.data:
                            return bytes(event.data)
                    else:
                        await trio.lowlevel.checkpoint()
                        return b""
        except h11.RemoteProtocolError as exc:
            raise ApiError(exc.error_status_hint, f"broken request: {exc}") from None
        except trio.TooSlowError:
            self._body_is_late = True
            raise ApiError(408, "the body of the request took too long to arrive") from None

    async def _invite_body(self) -> None:
        if self._wire.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))

    async def _drain(self) -> bool:
        """Read away what is left of the body; False if it is too much or broken."""
        if self._wire.they_are_waiting_for_100_continue or self._body_is_late:
            return False  # it was never sent, and will not be
        size = 0
        while self._wire.their_state is h11.SEND_BODY:
            try:
                size += len(await self._receive_body())
            except ApiError:
                return False
            if size > DRAIN_BYTES_MAX:
                return False
        return True

    # Sending.

    async def _answer(self, request: Request, answer: Answer) -> bool:
        """Send *answer*; return whether another request may follow."""
        match answer:
            case Response():
                await self._send_whole(request, answer)
            case Streamed():
                if not await self._send_streamed(request, answer):
                    return False
            case Upgraded():
                await self._hand_over(request, answer)
                return False
        if not await self._drain():
            return False
        if self._wire.our_state is h11.DONE and self._wire.their_state is h11.DONE:
            self._wire.start_next_cycle()
            return True
        return False

    async def _send_whole(self, request: Request, answer: Response) -> None:
        bare = answer.status in (204, 304)
        length = () if bare else (("Content-Length", str(len(answer.body))),)
        await self._send_head(answer.status, (*answer.headers, *length))
        if answer.body and not bare and request.method != "HEAD":
            await self._send(h11.Data(data=answer.body))
        await self._send(h11.EndOfMessage())

    async def _send_streamed(self, request: Request, answer: Streamed) -> bool:
        """Return False when the client is gone, or the body broke off."""
        await self._send_head(answer.status, answer.headers)
        if request.method == "HEAD":
            await self._send(h11.EndOfMessage())
            return True
        complete = False

        async def send(chunk: bytes) -> None:
            if chunk:
                await self._send(h11.Data(data=chunk))

        async with trio.open_nursery() as nursery:
            if not answer.reads_body:
                nursery.start_soon(self._watch, nursery.cancel_scope)
            try:
                await answer.produce(send)
                complete = True
            except ApiError as exc:
                # The head is out: all that is left is to break off, which the client notices.
                logger.warning("answer broken off path=%s reason=%s", request.path, exc)
            nursery.cancel_scope.cancel()
        if complete:
            await self._send(h11.EndOfMessage())
        return complete

    async def _watch(self, scope: trio.CancelScope) -> None:
        """Cancel *scope* when the client goes away in the middle of a streamed answer."""
        if not await self._drain():
            scope.cancel()
            return
        size = 0
        while size <= PIPELINED_BYTES_MAX:
            try:
                data = await self._stream.receive_some(RECEIVE_BYTES)
            except GONE:
                data = b""
            self._wire.receive_data(bytes(data))
            if not data:
                scope.cancel()
                return
            size += len(data)
        await trio.sleep_forever()

    async def _hand_over(self, request: Request, answer: Upgraded) -> None:
        if not await self._drain():
            await self._refuse(413, "the body of the request is too long")
            return
        type_ = ("Content-Type", answer.content_type)
        if self._wire.their_state is MIGHT_SWITCH_PROTOCOL:
            headers = [type_, ("Connection", "Upgrade"), ("Upgrade", "tcp")]
            await self._send(h11.InformationalResponse(status_code=101, headers=headers))
        else:
            # As Docker does for clients that ask for no upgrade; h11 knows no such answer.
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {answer.content_type}\r\n\r\n"
            await self._send_bytes(head.encode())
        leftover, _ = self._wire.trailing_data
        try:
            await answer.run(RawStream(self._stream, leftover))
        except ApiError as exc:
            logger.warning("stream broken off path=%s reason=%s", request.path, exc)

    async def _refuse(self, status: int, message: str) -> None:
        """Answer what was no request, as far as HTTP still allows an answer."""
        if self._wire.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        answer = error_response(status, message)
        headers = (*answer.headers, ("Content-Length", str(len(answer.body))))
        await self._send_head(status, (*headers, ("Connection", "close")))
        await self._send(h11.Data(data=answer.body))
        await self._send(h11.EndOfMessage())

    async def _send_head(self, status: int, headers: Headers) -> None:
        head: Any = list(headers)
        await self._send(h11.Response(status_code=status, headers=head))

    async def _send(self, event: h11.Event) -> None:
        data = self._wire.send(event)
        if data:
            await self._send_bytes(data)

    async def _send_bytes(self, data: bytes) -> None:
        with trio.fail_after(self._send_seconds):
            await self._stream.send_all(data)


def split_version(path: str) -> tuple[tuple[int, int], str]:
    """Split `/v1.41/info` into (1, 41) and `/info`; (0, 0) if no version is there."""
    if not path.startswith("/v"):
        return (0, 0), path
    head, slash, rest = path[2:].partition("/")
    major, dot, minor = head.partition(".")
    numbers = dot and slash and major.isascii() and minor.isascii()
    if not (numbers and major.isdigit() and minor.isdigit() and len(head) <= 8):
        return (0, 0), path
    return (int(major), int(minor)), f"/{rest}"
