"""Docker's frames of log lines, and how they are shown. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from urllib.parse import unquote

HEADER = struct.Struct(">B3xI")
STDERR = 2


def read_frames(pieces: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Cut (stream, line) out of the pieces of an answer, as they come."""
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        while len(buffer) >= HEADER.size:
            stream, length = HEADER.unpack_from(buffer)
            end = HEADER.size + length
            if len(buffer) < end:
                break
            yield stream, bytes(buffer[HEADER.size : end])
            del buffer[:end]


def split_details(line: bytes, *, timestamps: bool) -> tuple[str, dict[str, str], bytes]:
    """Split a line with details into its time, the details and the text."""
    time_text = b""
    if timestamps:
        time_text, _, line = line.partition(b" ")
    details, _, text = line.partition(b" ")
    pairs = (pair.partition("=") for pair in details.decode("utf-8", "replace").split(",") if pair)
    return time_text.decode("ascii", "replace"), {unquote(k): unquote(v) for k, _, v in pairs}, text
