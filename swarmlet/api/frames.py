"""Docker's framing of two streams in one: [stream, 0, 0, 0, length (4 bytes, big endian)] data.

Pure. Used where a container has no terminal: logs, attach, exec (API: stream format of attach).
"""

from __future__ import annotations

import struct

STDOUT, STDERR = 1, 2
STREAMS = {"stdout": STDOUT, "stderr": STDERR}
HEADER = struct.Struct(">B3xI")
#: A line of a log is below 16 KiB and its details below 1 KiB; more is no log of ours.
FRAME_BYTES_MAX = 1 << 20

MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
RAW = "application/vnd.docker.raw-stream"
#: The API version since which MULTIPLEXED is announced.
MULTIPLEXED_SINCE = (1, 42)


class BadFrame(Exception):
    """Bytes that are no frames."""


def encode_frame(stream: int, data: bytes) -> bytes:
    return HEADER.pack(stream, len(data)) + data


class FrameReader:
    """Cuts frames out of a stream of bytes, however it comes in pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return the frames that are complete now. Raises BadFrame."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= HEADER.size:
            stream, length = HEADER.unpack_from(self._buffer)
            if stream not in (0, STDOUT, STDERR) or length > FRAME_BYTES_MAX:
                raise BadFrame(f"stream {stream}, {length} bytes")
            end = HEADER.size + length
            if len(self._buffer) < end:
                break
            frames.append((stream, bytes(self._buffer[HEADER.size : end])))
            del self._buffer[:end]
        return frames


def content_type(version: tuple[int, int], *, terminal: bool) -> str:
    """What an answer of log lines is called in that version of the API."""
    newest = version == (0, 0)
    return RAW if terminal or not (newest or version >= MULTIPLEXED_SINCE) else MULTIPLEXED
