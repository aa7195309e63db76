"""Messages over a byte stream: length-prefixed frames, bounded in every direction.

    frame = length (4 bytes, big endian, 1 to frame_bytes_max) body

Senders from any number of tasks; what waits while a write is under way goes out with the next
write in one piece (a TLS record for each small frame would cost 20 times as much). One receiver.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Protocol

import trio

from swarmlet.codec import BadMessage
from swarmlet.transport.errors import BROKEN, EndOfStream, StreamBroken
from swarmlet.transport.protocols import (
    CLOSE_TIMEOUT,
    FRAME_TIMEOUT,
    QUEUE_BYTES_MAX,
    RULES,
    WRITE_TIMEOUT,
    Peer,
)

HEADER_BYTES = 4
#: One receive takes so much at most: four TLS records.
RECEIVE_BYTES = 64 * 1024
#: Frames that are given out of one receive before other tasks have a turn: about a millisecond.
AT_ONCE_MAX = 32


class Codec(Protocol):
    """Messages as bytes and back: swarmlet.wire is one."""

    def encode(self, message: Any) -> bytes: ...
    def decode_untrusted(self, body: bytes) -> Any: ...


class FrameStream:
    """One connection to *peer*. Whoever has it closes it: `async with stream:`."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        peer: Peer,
        codec: Codec,
        *,
        idle_timeout: float | None = None,
        frame_timeout: float = FRAME_TIMEOUT,
        write_timeout: float = WRITE_TIMEOUT,
    ) -> None:
        rule = RULES[peer.protocol]
        self.peer = peer
        self.idle_timeout = rule.idle_timeout if idle_timeout is None else idle_timeout
        self._stream = stream
        self._codec = codec
        self._frame_bytes_max = rule.frame_bytes_max
        self._frame_timeout = frame_timeout
        self._write_timeout = write_timeout
        self._received = bytearray()
        self._at_once = 0  # frames that were given out since the loop last had a turn
        self._queue: list[bytes] = []
        self._queue_bytes = 0
        self._writing = trio.Lock()
        self._failure: str | None = None  # why nothing can be sent any more
        self._misread: str | None = None  # why nothing can be received any more

    async def send(self, message: Any) -> None:
        """Send *message*; returns when the kernel has it.

        A send that is cancelled half way leaves half a frame on the wire, and so ends the stream.

        Raises:
            StreamBroken: the connection is lost.
        """
        await self.send_bodies([self._codec.encode(message)])

    async def send_many(self, messages: Iterable[Any]) -> None:
        """Send *messages* in order and in one piece."""
        await self.send_bodies([self._codec.encode(message) for message in messages])

    async def send_bodies(self, bodies: Iterable[bytes]) -> None:
        """Send frames with these *bodies* as they are: parts of a snapshot or of an image."""
        pieces: list[bytes] = []
        for body in bodies:
            assert 0 < len(body) <= self._frame_bytes_max, len(body)
            pieces += (len(body).to_bytes(HEADER_BYTES, "big"), body)
        waits = self._queue_bytes >= QUEUE_BYTES_MAX
        if not waits:
            self._enqueue(pieces)
        if self._writing.locked():
            await self._writing.acquire()
        else:
            self._writing.acquire_nowait()  # spares a turn of the loop; send_all takes one
        try:
            if waits:
                self._enqueue(pieces)
            await self._flush()
        finally:
            self._writing.release()

    def _enqueue(self, pieces: list[bytes]) -> None:
        self._queue += pieces
        self._queue_bytes += sum(map(len, pieces))

    async def _flush(self) -> None:
        """Write what waits. Another sender may have taken ours along."""
        if self._failure is None and self._queue:
            batch = b"".join(self._queue)
            self._queue.clear()
            self._queue_bytes = 0
            await self._write(batch)
        if self._failure is not None:
            raise self._broken()

    async def _write(self, batch: bytes) -> None:
        whole = False
        try:
            with trio.move_on_after(self._write_timeout) as scope:
                await self._stream.send_all(batch)
                whole = True
        except BROKEN as exc:
            self._failure = str(exc) or "the peer hung up"
            raise self._broken() from exc
        finally:
            if not whole and self._failure is None:
                self._failure = "a send was cut off half way"
        if scope.cancelled_caught:
            self._failure = f"it took nothing for {self._write_timeout:g} s"

    async def receive(self) -> Any:
        """Return the next message. May be cancelled and called again.

        Raises:
            EndOfStream: the peer closed after its last message.
            StreamBroken: the connection is lost, or nothing came for *idle_timeout*.
            BadMessage: the frame holds no message. The next one may be received still, unless
                the frame was too long: then StreamBroken follows.
        """
        return self._codec.decode_untrusted(await self.receive_body())

    async def receive_body(self) -> bytes:
        """Return the body of the next frame as it is. Raises what receive() raises."""
        if self._misread is not None:
            await trio.lowlevel.checkpoint()
            raise StreamBroken(f"connection to {self.peer} lost: {self._misread}")
        received = self._received
        self._at_once += 1
        while len(received) < HEADER_BYTES:
            await self._fill(self.idle_timeout)
        length = int.from_bytes(received[:HEADER_BYTES], "big")
        if not 0 < length <= self._frame_bytes_max:
            self._misread = "it sent a frame of a forbidden length"
            raise BadMessage(f"a frame of {length} bytes; 1 to {self._frame_bytes_max} are read")
        end = HEADER_BYTES + length
        if len(received) < end:
            deadline = trio.current_time() + self._frame_timeout
            while len(received) < end:
                await self._fill(deadline - trio.current_time())
        if self._at_once:
            await self._yield()
        body = bytes(received[HEADER_BYTES:end])
        del received[:end]
        return body

    async def _yield(self) -> None:
        """Let others run, although the frame is here: always would cost more than the frame."""
        if self._at_once < AT_ONCE_MAX:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            self._at_once = 0
            await trio.lowlevel.checkpoint()

    async def _fill(self, seconds: float) -> None:
        """Receive a few bytes, or raise StreamBroken when *seconds* brought none."""
        chunk: bytes | bytearray | None = None
        try:
            with trio.move_on_after(max(seconds, 0)):
                chunk = await self._stream.receive_some(RECEIVE_BYTES)
        except BROKEN as exc:
            raise StreamBroken(f"connection to {self.peer} lost: {exc}") from exc
        if chunk is None:
            raise StreamBroken(f"connection to {self.peer} lost: it was silent for too long")
        if not chunk:
            if self._received:
                raise StreamBroken(f"connection to {self.peer} lost: it ended within a frame")
            raise EndOfStream(f"{self.peer} closed the connection")
        self._received += chunk
        self._at_once = 0

    def _broken(self) -> StreamBroken:
        return StreamBroken(f"connection to {self.peer} lost: {self._failure}")

    async def aclose(self) -> None:
        """Say farewell and close, within two seconds whatever the peer does."""
        self._failure = self._misread = "it was closed on this side"
        await close(self._stream)

    async def __aenter__(self) -> FrameStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self.receive()
        except EndOfStream:
            raise StopAsyncIteration from None


async def close(stream: trio.abc.AsyncResource) -> None:
    """Close *stream* gracefully if the peer lets us, else at once."""
    with trio.move_on_after(CLOSE_TIMEOUT, shield=True) as scope:
        try:
            await stream.aclose()
        except BROKEN:
            scope.cancel()
    if scope.cancelled_caught or scope.cancel_called:
        await trio.aclose_forcefully(stream)
