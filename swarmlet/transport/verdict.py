"""The server's first words on every connection: come in, or why not.

    verdict = length (2 bytes, big endian) text
    text    = nothing: admitted, the protocol begins
            | reason, space, what to do (UTF-8)

It stands below all protocols and codecs, so that any version understands any other's refusal.
TLS alone could only hang up: under 1.3 a client has finished its handshake before the server
has looked at its certificate.
"""

from __future__ import annotations

import trio

from swarmlet.codec import BadMessage
from swarmlet.transport.errors import PeerRefused

TEXT_BYTES_MAX = 1024


def encode_verdict(reason: str = "", text: str = "") -> bytes:
    """Return the bytes that admit a peer, or that refuse it for *reason*."""
    body = f"{reason} {text}".encode()[:TEXT_BYTES_MAX] if reason else b""
    return len(body).to_bytes(2, "big") + body


async def receive_verdict(stream: trio.abc.ReceiveStream) -> None:
    """Read the verdict and not a byte more. Returns when we are admitted.

    Raises:
        PeerRefused: with the peer's own words.
        BadMessage: the peer sent no verdict.
        trio.BrokenResourceError: it hung up.
    """
    length = int.from_bytes(await _receive_exactly(stream, 2), "big")
    if not length:
        return
    if length > TEXT_BYTES_MAX:
        raise BadMessage(f"a verdict of {length} bytes; at most {TEXT_BYTES_MAX} are read")
    reason, _, text = (
        (await _receive_exactly(stream, length)).decode("utf-8", "replace").partition(" ")
    )
    raise PeerRefused(reason, printable(text))


async def _receive_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    received = b""
    while len(received) < count:
        chunk = await stream.receive_some(count - len(received))
        if not chunk:
            raise trio.BrokenResourceError("the peer hung up")
        received += chunk
    return received


def printable(text: str) -> str:
    """A text from outside ends up on a terminal: it must not move its cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)
