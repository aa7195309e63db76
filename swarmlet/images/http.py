"""A small HTTP/1.1 client for registries: h11 over Trio, with TLS, keep-alive and redirects.

Imported with registry.py only, when a registry is needed. Every wait has a limit, every body that
is read whole has one too. A failure of the network or of the protocol is a RegistryUnavailable,
which trying again may cure; a certificate that does not hold is a RegistryError, which nothing
cures.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit

import h11
import trio

from swarmlet.images.errors import RegistryError, RegistryUnavailable

#: Seconds for a connection with its TLS handshake, and for each next piece of an answer.
CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 30.0
REDIRECTS_MAX = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: Connections that wait for another request, in all.
IDLE_MAX = 4
RECEIVE_BYTES = 64 * 1024
#: Bytes of an answer's head. Redirects to object stores carry signatures of some KiB.
HEAD_BYTES_MAX = 64 * 1024

#: What the world may do to a connection.
FAULTS = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError)


_HOST = re.compile(r"[A-Za-z0-9._:-]+")


@dataclass(frozen=True, slots=True)
class Origin:
    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = {"http": 80, "https": 443}[self.scheme]
        return f"{self.scheme}://{host}" + ("" if self.port == default else f":{self.port}")


def split_url(url: str) -> tuple[Origin, str]:
    """Return where *url* leads and what to ask for there. Raises RegistryError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise RegistryError(f"{url[:200]!r} is no address") from None
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host):
        raise RegistryError(f"{url[:200]!r} is no address of a web server")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not target.isascii() or not target.isprintable() or " " in target:
        raise RegistryError(f"{url[:200]!r} is no address")
    default = 80 if parts.scheme == "http" else 443
    return Origin(parts.scheme, host, port or default), target


@dataclass(slots=True)
class Response:
    """An answer whose body is still to be read."""

    status: int
    headers: Mapping[str, str]
    url: str
    chunks: AsyncGenerator[bytes, None]

    async def read(self, bytes_max: int) -> bytes:
        """Return the whole body. Raises RegistryError when it is longer than *bytes_max*."""
        data = b""
        async for chunk in self.chunks:
            data += chunk
            if len(data) > bytes_max:
                raise RegistryError(f"{self.url} answered with more than {bytes_max} bytes")
        return data


@dataclass(slots=True)
class _Connection:
    origin: Origin
    stream: trio.abc.Stream
    is_used: bool = False
    protocol: h11.Connection = field(
        default_factory=lambda: h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
    )


class HttpClient:
    """Owned by one user at a time. *tls* gives the context for a host."""

    def __init__(self, tls: Callable[[Origin], ssl.SSLContext]) -> None:
        self._tls = tls
        self._idle: list[_Connection] = []

    async def aclose(self) -> None:
        while self._idle:
            await trio.aclose_forcefully(self._idle.pop().stream)

    @asynccontextmanager
    async def request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes = b""
    ) -> AsyncIterator[Response]:
        """Ask for *url*, through redirects, and give the answer while the `with` lasts.

        Credentials do not follow a redirect to another origin, and no redirect leaves TLS.
        """
        sent = dict(headers)
        for _ in range(REDIRECTS_MAX + 1):
            origin, target = split_url(url)
            connection, response = await self._ask(method, origin, target, sent, body, url)
            async with self._kept(connection), aclosing(response.chunks):
                if response.status not in REDIRECTS or "location" not in response.headers:
                    yield response
                    return
            url = urljoin(url, response.headers["location"])
            following, _ = split_url(url)
            if origin.scheme == "https" and following.scheme != "https":
                raise RegistryError(f"{origin} redirects to {following}, which has no TLS")
            if following != origin:
                sent.pop("authorization", None)
        raise RegistryError(f"{url[:200]} is behind more than {REDIRECTS_MAX} redirects")

    async def _ask(
        self,
        method: str,
        origin: Origin,
        target: str,
        headers: Mapping[str, str],
        body: bytes,
        url: str,
    ) -> tuple[_Connection, Response]:
        while True:
            connection = await self._connect(origin)
            was_used = connection.is_used
            try:
                return connection, await _exchange(connection, method, target, headers, body, url)
            except BaseException as error:
                await trio.aclose_forcefully(connection.stream)
                if was_used and isinstance(error, FAULTS):
                    continue  # the server had closed it while it was idle
                if isinstance(error, (*FAULTS, trio.TooSlowError)):
                    raise RegistryUnavailable(f"{origin} did not answer: {_why(error)}") from error
                raise

    async def _connect(self, origin: Origin) -> _Connection:
        for connection in self._idle:
            if connection.origin == origin:
                self._idle.remove(connection)
                return connection
        try:
            with trio.fail_after(CONNECT_TIMEOUT):
                stream: trio.abc.Stream = await trio.open_tcp_stream(origin.host, origin.port)
                if origin.scheme == "https":
                    stream = await self._secure(stream, origin)
        except (*FAULTS, trio.TooSlowError) as error:
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                raise RegistryError(
                    f"the certificate of {origin} does not hold: {error.__cause__.verify_message};"
                    f" put its CA into the certificates' folder, or name it as an insecure registry"
                ) from error
            raise RegistryUnavailable(f"{origin} cannot be reached: {_why(error)}") from error
        return _Connection(origin, stream)

    async def _secure(self, stream: trio.abc.Stream, origin: Origin) -> trio.abc.Stream:
        try:
            secured = trio.SSLStream(
                stream, self._tls(origin), server_hostname=origin.host, https_compatible=True
            )
            await secured.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return secured

    @asynccontextmanager
    async def _kept(self, connection: _Connection) -> AsyncIterator[None]:
        """Keep the connection for the next request when this one was finished, or close it."""
        try:
            yield
        finally:
            protocol = connection.protocol
            if protocol.their_state is h11.SEND_BODY and protocol.our_state is h11.DONE:
                # The answer to HEAD is over, but nobody asked for its end.
                with suppress(h11.RemoteProtocolError):
                    protocol.next_event()
            if protocol.our_state is protocol.their_state is h11.DONE and (
                len(self._idle) < IDLE_MAX
            ):
                protocol.start_next_cycle()
                connection.is_used = True
                self._idle.append(connection)
            else:
                await trio.aclose_forcefully(connection.stream)


async def _exchange(
    connection: _Connection,
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: bytes,
    url: str,
) -> Response:
    """Send a request and receive the head of its answer."""
    sent = {"host": str(connection.origin).partition("://")[2], "user-agent": "swarmlet"}
    sent |= headers
    if body:
        sent["content-length"] = str(len(body))
    protocol, stream = connection.protocol, connection.stream
    request = h11.Request(method=method, target=target, headers=list(sent.items()))
    data = protocol.send(request) or b""
    if body:
        data += protocol.send(h11.Data(body)) or b""
    data += protocol.send(h11.EndOfMessage()) or b""
    with trio.fail_after(READ_TIMEOUT):
        await stream.send_all(data)
        event = await _next_event(connection)
        while isinstance(event, h11.InformationalResponse):
            event = await _next_event(connection)
    if not isinstance(event, h11.Response):
        raise h11.RemoteProtocolError("it closed the connection")
    received = {
        name.decode("ascii"): value.decode("latin-1") for name, value in event.headers.raw_items()
    }
    lowered = {name.lower(): value for name, value in received.items()}
    return Response(event.status_code, lowered, url, _body(connection))


async def _body(connection: _Connection) -> AsyncGenerator[bytes, None]:
    while True:
        try:
            with trio.fail_after(READ_TIMEOUT):
                event = await _next_event(connection)
        except (*FAULTS, trio.TooSlowError) as error:
            raise RegistryUnavailable(f"{connection.origin} broke off: {_why(error)}") from error
        if isinstance(event, h11.Data):
            yield bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return
        else:
            raise RegistryUnavailable(f"{connection.origin} broke off")


async def _next_event(connection: _Connection) -> object:
    while (event := connection.protocol.next_event()) is h11.NEED_DATA:
        data = await connection.stream.receive_some(RECEIVE_BYTES)
        connection.protocol.receive_data(bytes(data))
    return event


def _why(error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return "it took too long"
    return str(error.__cause__ or error) or type(error).__name__
