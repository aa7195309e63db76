"""Netlink as the kernel speaks it: messages, attributes, batches, dumps. Nothing of ours.

Sync: every request is answered within the call that sends it (the kernel works in the
sender's own system call), in 10 to 500 microseconds. A socket stays in the network namespace
that its thread was in when it was opened, and may be used from any thread after.

    message   = length:u32 kind:u16 flags:u16 sequence:u32 port:u32 body, padded to 4
    attribute = length:u16 kind:u16 value, padded to 4            (netlink(7), RFC 3549)

Why not pyroute2: measured in the daemon, importing it costs 12 MB of resident memory and 0.12 s;
this whole package costs 1.4 MB. Setting 1,000 endpoints (two entries each) takes it 15 times as
long as here, reading them 8 times, and each of its sockets brings an event loop of another kind.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias

ROUTE = 0
NETFILTER = 12

# linux/netlink.h
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_DUMP_INTR = 0x10
NLM_F_ACK_TLVS = 0x200
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
NLMSGERR_ATTR_MSG = 1
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF
SOL_NETLINK = 270
NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 10, 11, 12

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")

#: Messages in one send. Their answers wait in the socket's receive buffer (200 KB by default,
#: accounted at under 1 KB each), so a batch must not overflow it.
BATCH_MESSAGES_MAX = 100
#: The kernel never makes a dump's part larger (NLMSG_GOODSIZE and its growth, netlink_dump()).
RECEIVE_BYTES = 1 << 18
#: A table that changes while it is dumped makes the dump worthless; it is asked for again.
DUMPS_MAX = 5
#: The kernel answers at once. Waiting longer means that it never will.
ANSWER_SECONDS = 10

Attributes: TypeAlias = dict[int, bytes]


@dataclass(frozen=True, slots=True)
class Message:
    kind: int
    flags: int
    body: bytes


class NetlinkError(OSError):
    """The kernel refused a request; the text is its own, where it gave one."""


class NetlinkSocket:
    """A netlink socket in the namespace of the calling thread."""

    def __init__(self, protocol: int = ROUTE) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
        )
        try:
            self._socket.bind((0, 0))
            self._socket.settimeout(ANSWER_SECONDS)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
            # Filters in dump requests are honoured only so (4.20); before, all is dumped.
            self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        except BaseException:
            self._socket.close()
            raise
        self._sequence = 0
        self._first = 1

    def __enter__(self) -> NetlinkSocket:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def execute(self, messages: Sequence[Message]) -> list[NetlinkError | None]:
        """Do *messages* in order; return for each what the kernel had against it.

        A refused message does not keep those after it from being done.
        """
        outcome: list[NetlinkError | None] = []
        for start in range(0, len(messages), BATCH_MESSAGES_MAX):
            outcome += self._execute_batch(messages[start : start + BATCH_MESSAGES_MAX])
        return outcome

    def request(self, message: Message) -> None:
        """Do one message.

        Raises:
            NetlinkError: the kernel refused it.
        """
        (error,) = self.execute([message])
        if error:
            raise error

    def ask(self, message: Message) -> bytes:
        """Return the body of the one answer to *message*."""
        self._send([message], NLM_F_REQUEST)
        for kind, flags, body in self._receive():
            if kind == NLMSG_ERROR:
                raise _error(body, flags) or NetlinkError(errno.EPROTO, "no answer")
            return body
        raise NetlinkError(errno.EPROTO, "no answer")

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Return the bodies of all objects of a table, as of one moment.

        Raises:
            NetlinkError: refused, or the table never held still.
        """
        for _ in range(DUMPS_MAX):
            found, consistent = self._dump_once(kind, body)
            if consistent:
                return found
        raise NetlinkError(errno.EAGAIN, f"table {kind} changed during {DUMPS_MAX} dumps")

    def _dump_once(self, kind: int, body: bytes) -> tuple[list[bytes], bool]:
        self._send([Message(kind, NLM_F_DUMP, body)], NLM_F_REQUEST)
        found: list[bytes] = []
        consistent = True
        while True:
            for answer, flags, answer_body in self._receive():
                consistent = consistent and not flags & NLM_F_DUMP_INTR
                if answer == NLMSG_DONE:
                    return found, consistent
                if answer == NLMSG_ERROR:
                    raise _error(answer_body, flags) or NetlinkError(errno.EPROTO, "no dump")
                found.append(answer_body)

    def _execute_batch(self, messages: Sequence[Message]) -> list[NetlinkError | None]:
        self._send(messages, NLM_F_REQUEST | NLM_F_ACK)
        outcome: list[NetlinkError | None] = []
        while len(outcome) < len(messages):
            outcome += [
                _error(body, flags) for kind, flags, body in self._receive() if kind == NLMSG_ERROR
            ]
        return outcome

    def _send(self, messages: Sequence[Message], flags: int) -> None:
        parts = []
        self._first = self._sequence + 1
        for message in messages:
            self._sequence += 1
            length = _HEADER.size + len(message.body)
            parts.append(
                _HEADER.pack(length, message.kind, message.flags | flags, self._sequence, 0)
                + message.body
                + bytes(-length & 3)
            )
        self._socket.send(b"".join(parts))

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        data = self._socket.recv(RECEIVE_BYTES)
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
            assert length >= _HEADER.size, "the kernel sent a message without end"
            if sequence >= self._first:  # the rest of an answer that was given up is not ours
                yield kind, flags, data[offset + _HEADER.size : offset + length]
            offset += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length & 3)


def nested(kind: int, *values: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, b"".join(values))


def u8(kind: int, value: int) -> bytes:
    return attribute(kind, bytes([value]))


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes) -> Attributes:
    """Return the attributes in *data* by kind; of several of one kind the last."""
    found: Attributes = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & NLA_TYPE_MASK] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


def number(value: bytes | None) -> int:
    """Return an unsigned attribute of any width, in the machine's order; 0 for a missing one."""
    return int.from_bytes(value or b"", "little" if _LITTLE else "big")


def string(value: bytes | None) -> str:
    return (value or b"").rstrip(b"\0").decode(errors="replace")


_LITTLE = struct.pack("=H", 1) == b"\1\0"


def _error(body: bytes, flags: int) -> NetlinkError | None:
    (negative,) = struct.unpack_from("=i", body)
    if negative == 0:
        return None
    said = ""
    if flags & NLM_F_ACK_TLVS:
        said = string(attributes(body[4 + _HEADER.size :]).get(NLMSGERR_ATTR_MSG))
    return NetlinkError(-negative, said or os.strerror(-negative))
