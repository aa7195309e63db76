"""HTTP/1.1 to another node's API over an sl-api/1 stream: one request a stream.

What comes back is data from a peer: any way of breaking HTTP ends in Broken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import h11
import trio

from swarmlet.api.exchange import Body, Headers, RawStream

HEAD_BYTES_MAX = 64 * 1024
RECEIVE_BYTES = 64 * 1024
#: Set on what was handed on, with the id of the node that did it.
FORWARDED = "swarmlet-forwarded"

#: Of one hop only (RFC 9110, 7.6.1); the next hop makes its own.
HOP_HEADERS = {
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    FORWARDED,
}


class Broken(Exception):
    """The other node closed the stream, or did not answer as HTTP does."""


@dataclass(frozen=True, slots=True)
class Head:
    status: int
    headers: Headers
    is_upgraded: bool = False


class Upstream:
    """One request to another node. Used by one task at a time; close it with aclose()."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._wire = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)

    async def request(
        self,
        method: str,
        target: str,
        *,
        headers: Headers = (),
        body: Body | None = None,
        upgrade: bool = False,
    ) -> Head:
        """Send a request and return the head of its answer. Raises Broken."""
        framing = [("Host", "swarmlet")]
        if upgrade:
            framing += [("Connection", "Upgrade"), ("Upgrade", "tcp")]
        # An empty body is sent as none, so that a GET stays a GET.
        first = await body.receive() if body is not None else b""
        if first:
            framing.append(("Transfer-Encoding", "chunked"))
        elif method != "GET":
            framing.append(("Content-Length", "0"))
        listed: Any = [*framing, *headers]
        try:
            await self._send(h11.Request(method=method, target=target, headers=listed))
            while first and body is not None:
                await self._send(h11.Data(data=first))
                first = await body.receive()
            await self._send(h11.EndOfMessage())
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as exc:
            # It may have refused before the end of the body: its answer says why.
            if self._wire.our_state is h11.SEND_BODY:
                raise Broken(f"the stream broke: {exc}") from exc
        return await self._receive_head()

    async def receive(self) -> bytes:
        """The next piece of the answer's body; b"" at its end. Raises Broken."""
        while True:
            event = await self._next_event()
            if isinstance(event, h11.Data):
                if event.data:
                    return bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return b""
            else:
                raise Broken("the answer broke off")

    def raw(self) -> RawStream:
        """The stream behind an answer that ended HTTP (Head.is_upgraded)."""
        leftover, _ = self._wire.trailing_data
        return RawStream(self._stream, leftover)

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)

    async def _receive_head(self) -> Head:
        while True:
            event = await self._next_event()
            if isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    return Head(101, _headers(event), is_upgraded=True)
            elif isinstance(event, h11.Response):
                return Head(event.status_code, _headers(event))
            else:
                raise Broken("no answer came")

    async def _next_event(self) -> Any:
        try:
            while True:
                event = self._wire.next_event()
                if event is not h11.NEED_DATA:
                    return event
                self._wire.receive_data(bytes(await self._stream.receive_some(RECEIVE_BYTES)))
        except h11.RemoteProtocolError as exc:
            raise Broken(f"not HTTP: {exc}") from exc
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as exc:
            raise Broken(f"the stream broke: {exc}") from exc

    async def _send(self, event: h11.Event) -> None:
        data = self._wire.send(event)
        if data:
            await self._stream.send_all(data)


def end_to_end(headers: Headers) -> Headers:
    """Drop what is of one hop only."""
    return tuple((name, value) for name, value in headers if name.lower() not in HOP_HEADERS)


def _headers(event: h11.Response | h11.InformationalResponse) -> Headers:
    return tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers)
