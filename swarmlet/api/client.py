"""A synchronous client of the API for the command line: HTTP over the daemon's Unix socket.

Sync, one connection a call. Imports the standard library alone, and http.client only when a
call is made: `swarmlet --help` needs neither.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

if TYPE_CHECKING:
    import http.client

DEFAULT_HOST = "unix:///run/swarmlet/swarmlet.sock"
API_PREFIX = "/v1.50"
CONNECT_SECONDS = 5.0
#: For an answer: a change waits until the managers agree, a join for its certificate.
ANSWER_SECONDS = 120.0
CHUNK_BYTES = 64 * 1024


class ClientError(Exception):
    """What the user reads: one line that says what, why and what to do."""


class Unreachable(ClientError):
    """No daemon answers at the address."""


class Refused(ClientError):
    """The daemon said no."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """Calls the API at *host*, `unix:///path` or a path. Values of *query* that are None are left
    out, True is 1, a dict or list becomes JSON, a tuple is given item by item."""

    def __init__(self, host: str = DEFAULT_HOST) -> None:
        self.host = host
        self.path = socket_path(host)

    def get(self, path: str, **query: Any) -> Any:
        return self.call("GET", path, query=query)

    def post(self, path: str, document: Any = None, **query: Any) -> Any:
        return self.call("POST", path, document, query=query)

    def delete(self, path: str, **query: Any) -> Any:
        return self.call("DELETE", path, query=query)

    def call(
        self,
        method: str,
        path: str,
        document: Any = None,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Return the answer's JSON, or None if it has no body. Raises ClientError."""
        body = None if document is None else json.dumps(document).encode()
        sent = {"Content-Type": "application/json", **(headers or {})}
        connection, answer = self._ask(method, path, body, query, sent, ANSWER_SECONDS)
        import http.client

        try:
            text = answer.read()
        except (OSError, http.client.HTTPException) as exc:
            raise Unreachable(f"the daemon's answer broke off ({exc!r}); try again") from None
        finally:
            connection.close()
        if not text.strip():
            return None
        try:
            return json.loads(text)
        except ValueError:
            raise ClientError(f"{self.host} does not answer as a swarmlet daemon does") from None

    def stream(
        self,
        method: str,
        path: str,
        *,
        body: IO[bytes] | bytes | None = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[bytes]:
        """Send *body*, and yield what comes back as it comes. Raises ClientError.

        The call is made before the first piece is asked for, so a refusal raises here.
        """
        connection, answer = self._ask(method, path, body, query, dict(headers or {}), None)
        return _pieces(connection, answer)

    def head(self, target: str, /, **query: Any) -> Mapping[str, str]:
        """Return the headers of the answer, which has no body. Raises ClientError."""
        connection, answer = self._ask("HEAD", target, None, query, {}, ANSWER_SECONDS)
        connection.close()
        return dict(answer.headers)

    def upgrade(
        self, path: str, document: Any = None, *, query: Mapping[str, Any] | None = None
    ) -> tuple[socket.socket, bytes]:
        """POST, and return the connection, which is a bare stream then, and what came of it yet.

        Raises ClientError.
        """
        body = b"" if document is None else json.dumps(document).encode()
        target = API_PREFIX + quote(path, safe="/:@") + _encode_query(query or {})
        head = (
            f"POST {target} HTTP/1.1\r\nHost: swarmlet\r\nConnection: Upgrade\r\n"
            f"Upgrade: tcp\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        connection = self._connect(ANSWER_SECONDS)
        received = b""
        try:
            connection.sendall(head.encode() + body)
            while b"\r\n\r\n" not in received:
                piece = connection.recv(CHUNK_BYTES)
                if not piece or len(received) > CHUNK_BYTES:
                    raise Unreachable(f"the daemon at {self.host} gave no answer; see its log")
                received += piece
            answer, _, rest = received.partition(b"\r\n\r\n")
            status = int(answer.split(b" ", 2)[1])
            if status != 101:
                raise Refused(status, _message(_rest_of(connection, answer, rest), status))
        except BaseException as exc:
            connection.close()
            if isinstance(exc, OSError | ValueError | IndexError):
                text = f"the daemon at {self.host} closed the connection ({exc!r})"
                raise Unreachable(f"{text}; see its log, and try again") from None
            raise
        connection.settimeout(None)
        return connection, rest

    def _ask(
        self,
        method: str,
        path: str,
        body: IO[bytes] | bytes | None,
        query: Mapping[str, Any] | None,
        headers: Mapping[str, str],
        seconds: float | None,
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        import http.client

        connection = http.client.HTTPConnection("swarmlet")
        connection.sock = self._connect(seconds)
        target = API_PREFIX + quote(path, safe="/:@") + _encode_query(query or {})
        chunked = body is not None and not isinstance(body, bytes)
        if chunked:
            headers = {**headers, "Transfer-Encoding": "chunked"}
        try:
            # It may refuse before the end of the body; its answer says why.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, target, body, dict(headers), encode_chunked=chunked)
            answer = connection.getresponse()
            if answer.status >= 400:
                raise Refused(answer.status, _message(answer.read(), answer.status))
        except BaseException as exc:
            connection.close()
            if isinstance(exc, TimeoutError):
                text = f"the daemon at {self.host} did not answer within {seconds:g} seconds"
                raise Unreachable(f"{text}; see its log, and `swarmlet info`") from None
            if isinstance(exc, OSError | http.client.HTTPException):
                text = f"the daemon at {self.host} closed the connection ({exc!r})"
                raise Unreachable(f"{text}; see its log, and try again") from None
            raise
        return connection, answer

    def _connect(self, seconds: float | None) -> socket.socket:
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connected.settimeout(CONNECT_SECONDS)
        try:
            connected.connect(self.path)
        except OSError as exc:
            connected.close()
            raise Unreachable(_unreachable(self.host, exc)) from None
        connected.settimeout(seconds)
        return connected


def socket_path(host: str) -> str:
    """Return the path of the socket that *host* names. Raises ClientError."""
    scheme, separator, rest = host.partition("://")
    if not separator:
        if host.startswith("/"):
            return host
        raise ClientError(f"host {host!r} is no address; write unix:///path/to/swarmlet.sock")
    if scheme != "unix" or not rest.startswith("/"):
        raise ClientError(
            f"host {host!r}: only unix:///path can be reached; run swarmlet on the node itself, "
            "for example over ssh"
        )
    return rest


def _unreachable(host: str, exc: OSError) -> str:
    if isinstance(exc, PermissionError):
        return f"no permission to use {host}; run this as root, or as a member of its group"
    if isinstance(exc, FileNotFoundError | ConnectionRefusedError):
        return (
            f"no daemon at {host}; start it with `swarmlet daemon` (or `systemctl start "
            "swarmlet`), or name another with --host"
        )
    return f"the daemon at {host} cannot be reached: {exc.strerror or exc}"


def _rest_of(connection: socket.socket, head: bytes, body: bytes) -> bytes:
    """The body of an answer that is no upgrade, as far as it comes."""
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            length = min(int(value), CHUNK_BYTES)
    while len(body) < length and (piece := connection.recv(CHUNK_BYTES)):
        body += piece
    return body


def _pieces(
    connection: http.client.HTTPConnection, answer: http.client.HTTPResponse
) -> Iterator[bytes]:
    import http.client

    try:
        while piece := answer.read1(CHUNK_BYTES):
            yield piece
    except (OSError, http.client.HTTPException) as exc:
        raise Unreachable(f"the daemon's answer broke off ({exc!r}); see its log") from None
    finally:
        connection.close()


def _encode_query(query: Mapping[str, Any]) -> str:
    given = {name: _encode_value(value) for name, value in query.items() if value is not None}
    return f"?{urlencode(given, doseq=True)}" if given else ""


def _encode_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_encode_value(item) for item in value]
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, dict | list):
        return json.dumps(value)
    return str(value)


def _message(text: bytes, status: int) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return f"the daemon answered with status {status} and no reason; see its log"
