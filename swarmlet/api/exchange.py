"""One request and its answer, as the router and the resources see them; http.py is the wire.

An answer is one of three:

    Response   a body that is in memory
    Streamed   a body that a function writes chunk by chunk, as long as the client stays
    Upgraded   no HTTP any more: the function gets the bare stream (attach, exec)
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

import trio

from swarmlet.api.fields import parse_timestamp
from swarmlet.model import NodeId, Role
from swarmlet.model.validation import SpecError

#: A body that is read into memory: the largest spec is far below.
JSON_BYTES_MAX = 4 << 20
QUERY_FIELDS_MAX = 100

Headers: TypeAlias = tuple[tuple[str, str], ...]
Send: TypeAlias = Callable[[bytes], Awaitable[None]]


class ApiError(Exception):
    """A refusal with its HTTP status; the text is what the user reads."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Peer:
    """The node at the other end of an mTLS stream, with its effective role."""

    node: NodeId
    role: Role


class Query:
    """The part behind the question mark; of a field given twice the last one counts."""

    def __init__(self, text: str) -> None:
        try:
            pairs = parse_qsl(
                text, keep_blank_values=True, max_num_fields=QUERY_FIELDS_MAX, errors="strict"
            )
        except ValueError:  # too many fields, or no UTF-8
            raise ApiError(400, "the query behind the question mark cannot be read") from None
        self._values = dict(pairs)
        self._pairs = pairs

    def text(self, name: str, default: str = "") -> str:
        return self._values.get(name, default)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self._pairs if key == name]

    def flag(self, name: str, default: bool = False) -> bool:
        """Docker's reading: everything is true but these."""
        value = self._values.get(name)
        if value is None:
            return default
        return value.strip().lower() not in ("", "0", "no", "false", "none")

    def number(self, name: str, default: int) -> int:
        value = self._values.get(name, "")
        if not value:
            return default
        try:
            if len(value) > 19:
                raise ValueError
            return int(value)
        except ValueError:
            raise ApiError(400, f"{name}: {value[:60]!r} is not a whole number") from None

    def moment(self, name: str) -> float:
        """Seconds since 1970; 0 if it was not given."""
        value = self._values.get(name, "")
        try:
            return parse_timestamp(value, name) if value not in ("", "0") else 0.0
        except SpecError as exc:
            raise ApiError(400, str(exc)) from None


class Body:
    """The body of a request, read at most once and never faster than it is wanted."""

    def __init__(self, receive: Callable[[], Awaitable[bytes]]) -> None:
        self.receive = receive  #: the next chunk; b"" at the end, again and again

    @classmethod
    def of(cls, data: bytes) -> Body:
        """A body that was read already, for whoever reads it again."""
        left = [data]

        async def receive() -> bytes:
            return left.pop() if left else b""

        return cls(receive)

    async def read(self, bytes_max: int = JSON_BYTES_MAX) -> bytes:
        chunks, size = [], 0
        while chunk := await self.receive():
            size += len(chunk)
            if size > bytes_max:
                raise ApiError(413, f"the body of the request is over {bytes_max} bytes")
            chunks.append(chunk)
        return b"".join(chunks)

    async def json(self) -> Any:
        """The body as JSON; {} if there is none. Raises ApiError 400."""
        text = await self.read()
        if not text.strip():
            return {}
        try:
            return json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as exc:
            reason = str(exc)[:200] or "nested too deep"
            raise ApiError(400, f"the body of the request is not JSON: {reason}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    method: str
    target: str  # as it was sent, for whoever forwards it
    path: str  # without version and query, not decoded
    version: tuple[int, int]
    query: Query
    headers: Mapping[str, str]  # lower-case names
    body: Body
    peer: Peer | None = None  # None: the node's own socket

    @property
    def wants_upgrade(self) -> bool:
        return "upgrade" in self.headers


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes = b""
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class Streamed:
    """*produce* is cancelled when the client goes away; *close* is called in any case.

    With *reads_body* it reads the request while it answers; then the client's going away shows
    as a body that ends too early.
    """

    status: int
    produce: Callable[[Send], Awaitable[None]]
    headers: Headers = ()
    close: Callable[[], Awaitable[None]] | None = None
    reads_body: bool = False


@dataclass(frozen=True, slots=True)
class Upgraded:
    run: Callable[[RawStream], Awaitable[None]]
    content_type: str = "application/vnd.docker.raw-stream"
    close: Callable[[], Awaitable[None]] | None = None


Answer: TypeAlias = Response | Streamed | Upgraded


class RawStream:
    """A stream that was HTTP before: what came behind the request is read first."""

    def __init__(self, stream: trio.abc.Stream, leftover: bytes) -> None:
        self._stream = stream
        self._leftover = leftover

    async def receive_some(self, bytes_max: int = 65536) -> bytes:
        if self._leftover:
            await trio.lowlevel.checkpoint()
            data, self._leftover = self._leftover[:bytes_max], self._leftover[bytes_max:]
            return data
        return bytes(await self._stream.receive_some(bytes_max))

    async def send_all(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def send_eof(self) -> None:
        """Half-close, where the stream can; over TLS the end is the end of the stream."""
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            await self._stream.send_eof()


def json_response(document: Any, status: int = 200, headers: Headers = ()) -> Response:
    body = json.dumps(document, separators=(",", ":")).encode() + b"\n"
    return Response(status, body, (("Content-Type", "application/json"), *headers))


def error_response(status: int, message: str) -> Response:
    return json_response({"message": message}, status)
