"""A small key-value store on a Replica, and how its clients speak to it.

For real processes (node.py): the bench and the chaos use the same. Pure.

    frame     length (4 bytes, big endian) body
    request   msgpack [operation, key, argument...]
    answer    msgpack [status, value]
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any, Final

import msgpack

from raft.records import PACK_BYTES

LENGTH: Final = struct.Struct(">I")

# Operations.
PUT: Final = 1  # key value -> None
GET: Final = 2  # key -> value, linearizable
CAS: Final = 3  # key expected value -> whether it was made
APPEND: Final = 4  # key item -> the list before
SNAPSHOT: Final = 8  # -> None, once the server has taken one
STATUS: Final = 9  # -> a map of what the server says of itself

# Statuses.
OK: Final = 0  # it is done, and the value is the result
NEVER: Final = 1  # it was not done and never will be; the value is the number of who leads, or 0
MAYBE: Final = 2  # it may have been done, or may be yet

Value = bytes | list[bytes] | None


def frame(fields: list[Any]) -> bytes:
    body: bytes = msgpack.packb(fields, buf_size=PACK_BYTES)
    return LENGTH.pack(len(body)) + body


class Store:
    """The state machine."""

    def __init__(self) -> None:
        self.values: dict[bytes, Any] = {}

    def apply(self, index: int, position: int, term: int, command: bytes) -> object:
        operation, key, *arguments = msgpack.unpackb(command)
        values = self.values
        if operation == PUT:
            (values[key],) = arguments
        elif operation == CAS:
            expected, value = arguments
            if values.get(key) != expected:
                return False
            values[key] = value
            return True
        elif operation == APPEND:
            before = values.get(key, [])
            values[key] = [*before, *arguments]
            return before
        return None

    def snapshot(self) -> Callable[[], bytes]:
        values = dict(self.values)

        def encode() -> bytes:
            data: bytes = msgpack.packb(values)
            return data

        return encode

    def digest(self) -> int:
        """A number that two stores share if they hold the same."""
        items = sorted(self.values.items())
        return zlib.crc32(msgpack.packb(items))

    def restore(self, index: int, data: bytes) -> None:
        self.values = msgpack.unpackb(data, strict_map_key=False, max_map_len=1 << 31)
