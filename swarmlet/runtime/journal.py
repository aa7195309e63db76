"""The log of one container in the system's journal (systemd's Native Journal Protocol).

Stdlib only and sync: the zygote writes with it. A datagram an entry, fields as lines `NAME=value`,
and one with a line's end in it as its length. A journal that is away or full loses entries, as it
would those of any program, and never holds up a container.
"""

from __future__ import annotations

import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SOCKET = "/run/systemd/journal/socket"
#: Of syslog(3): what the two streams count as, as with Docker's driver.
PRIORITIES = {"stdout": 6, "stderr": 3}


class JournalLog:
    """Send entries with *fields* to the journal that listens at *path*."""

    def __init__(self, path: str, fields: Mapping[str, str]) -> None:
        self.dropped = 0
        self._path = path
        self._head = b"".join(field(name, value.encode()) for name, value in fields.items())
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )

    def append(self, stream: str, lines: list[bytes], at_ns: int) -> None:
        """Send *lines*; the journal itself notes when it got them."""
        priority = field("PRIORITY", str(PRIORITIES[stream]).encode())
        for line in lines:
            text = line.removesuffix(b"\n")
            partial = b"" if line.endswith(b"\n") else field("CONTAINER_PARTIAL_MESSAGE", b"true")
            data = self._head + priority + partial + field("MESSAGE", text)
            try:
                self._socket.sendto(data, self._path)
            except OSError:
                self.dropped += 1

    def close(self) -> None:
        self._socket.close()


def field(name: str, value: bytes) -> bytes:
    """Return one field as the journal's protocol has it."""
    if b"\n" in value:
        return name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
    return name.encode() + b"=" + value + b"\n"
