"""DNS messages (RFC 1035, EDNS of RFC 6891), as far as a stub resolver needs them. Pure.

By hand rather than by dnslib: a 6 KB packet with a chain of compression pointers ends dnslib in a
RecursionError, and an answer takes 65 microseconds there, 5 here. Only the header, the
question and the size in an OPT record are ever read, so no pointer is ever followed: a question
is the first name in its message and has none to point at. dnslib checks us in the tests.

Functions that take bytes from a container or from the network end in _untrusted and raise
BadMessage, nothing else, whatever the bytes are.
"""

from __future__ import annotations

import enum
import ipaddress
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from overlay.names import NameView
from overlay.topology import IPAddress

#: The largest answer over UDP for a client that names no size (RFC 1035 section 4.2.1).
UDP_BYTES_MAX = 512
#: The largest that we send to one that names more: nothing on loopback, but answers are handed on
#: (DNS flag day 2020).
EDNS_BYTES_MAX = 4096
NAME_BYTES_MAX = 255
LABEL_BYTES_MAX = 63
#: Seconds that a client may keep an answer about our names: tasks come and go.
TTL_SECONDS = 5

_HEADER = struct.Struct("!6H")
_QUESTION = struct.Struct("!HH")
_RECORD = struct.Struct("!HHHIH")  # name, kind, class, time to live, length
_OPT = struct.Struct("!BHHIH")  # root, OPT, size, flags, length
#: A pointer to the question's name, which always starts right after the header.
_TO_QUESTION = 0xC000 | _HEADER.size
_QR, _OPCODE, _TC, _RD, _RA = 0x8000, 0x7800, 0x0200, 0x0100, 0x0080
_CLASS_IN = 1
_NIBBLES = frozenset("0123456789abcdef")
_OPT_KIND = 41


class Kind(enum.IntEnum):
    A = 1
    PTR = 12
    AAAA = 28
    ANY = 255


class Rcode(enum.IntEnum):
    NOERROR = 0
    SERVFAIL = 2
    NXDOMAIN = 3
    REFUSED = 5


class BadMessage(Exception):
    """Bytes that are no query, or no answer to what was asked."""


@dataclass(frozen=True, slots=True)
class Query:
    """A question. *name* is in lower case without the last dot; *question* its bytes as sent."""

    id: int
    recursion_desired: bool
    name: str
    kind: int
    question: bytes
    udp_bytes_max: int
    has_opt: bool


def parse_query_untrusted(data: bytes) -> Query:
    """Return the question in *data*.

    Raises:
        BadMessage: there is not just one, or it is not a standard query of the Internet class.
    """
    if len(data) < _HEADER.size:
        raise BadMessage(f"{len(data)} bytes are no header")
    number, flags, questions, answers, authorities, additional = _HEADER.unpack_from(data)
    if flags & (_QR | _OPCODE) or questions != 1 or answers or authorities:
        raise BadMessage(f"flags {flags:#06x} and {questions} questions are no query")
    name, end = _name_untrusted(data, _HEADER.size)
    if len(data) < end + _QUESTION.size:
        raise BadMessage("the question is cut off")
    kind, class_ = _QUESTION.unpack_from(data, end)
    if class_ != _CLASS_IN:
        raise BadMessage(f"class {class_} is not the Internet's")
    end += _QUESTION.size
    size, has_opt = UDP_BYTES_MAX, False
    if additional and len(data) >= end + _OPT.size:
        root, record, size_named, _, _ = _OPT.unpack_from(data, end)
        if (root, record) == (0, _OPT_KIND):
            has_opt = True
            size = min(max(size_named, UDP_BYTES_MAX), EDNS_BYTES_MAX)
    return Query(
        id=number,
        recursion_desired=bool(flags & _RD),
        name=name,
        kind=kind,
        question=data[_HEADER.size : end],
        udp_bytes_max=size,
        has_opt=has_opt,
    )


def answer(query: Query, view: NameView, rng: random.Random) -> bytes | None:
    """Return the answer to *query* from the names in *view*; None if it is not ours to answer.

    Several addresses come in random order, so that clients that take the first spread.
    """
    if query.kind == Kind.PTR:
        address = _reversed_address(query.name)
        if address is None:
            return None
        if name := view.reverse(address):
            return _answer(query, [(Kind.PTR, _encode_name(name))])
        return refusal(query, Rcode.NXDOMAIN) if view.covers(address) else None
    addresses = view.addresses(query.name)
    if addresses is None:
        return None
    records = [
        (Kind.A if address.version == 4 else Kind.AAAA, address.packed)
        for address in rng.sample(addresses, k=len(addresses))
    ]
    # A name that is ours has no addresses of the other family: that is an answer too, else
    # the client would be told by a stranger that there is no such name.
    return _answer(query, [r for r in records if query.kind in (r[0], Kind.ANY)])


def refusal(query: Query, rcode: Rcode) -> bytes:
    return _message(query, rcode, [], flags=0)


def fit(query: Query, reply: bytes) -> bytes:
    """Return *reply*, or where the client cannot take it by UDP the request to ask by TCP."""
    if len(reply) <= query.udp_bytes_max:
        return reply
    return _message(query, Rcode.NOERROR, [], flags=_TC)


def with_id(message: bytes, number: int) -> bytes:
    """Return *message* under another number: each hop has its own."""
    return struct.pack("!H", number) + message[2:]


def check_reply_untrusted(query: Query, number: int, data: bytes) -> int:
    """Return the code of *data*, the reply to *query* when sent as *number*.

    Raises:
        BadMessage: it is no reply to that: late, or forged.
    """
    if len(data) < _HEADER.size:
        raise BadMessage(f"{len(data)} bytes are no header")
    replied, flags, questions, *_ = _HEADER.unpack_from(data)
    if replied != number or not flags & _QR:
        raise BadMessage(f"not the reply to {number}")
    asked = data[_HEADER.size : _HEADER.size + len(query.question)]
    # Some servers leave the question out when they refuse.
    if questions and asked.lower() != query.question.lower():
        raise BadMessage("the reply is to another question")
    code: int = flags & 0xF
    return code


def is_truncated(reply: bytes) -> bool:
    """Whether *reply*, which was checked, asks to be fetched by TCP."""
    return bool(_HEADER.unpack_from(reply)[1] & _TC)


def _answer(query: Query, records: Sequence[tuple[Kind, bytes]]) -> bytes:
    packed = [
        _RECORD.pack(_TO_QUESTION, kind, _CLASS_IN, TTL_SECONDS, len(data)) + data
        for kind, data in records
    ]
    return _message(query, Rcode.NOERROR, packed, flags=0)


def _message(query: Query, rcode: Rcode, records: Sequence[bytes], *, flags: int) -> bytes:
    flags |= _QR | _RA | rcode | (_RD if query.recursion_desired else 0)
    header = _HEADER.pack(query.id, flags, 1, len(records), 0, int(query.has_opt))
    opt = _OPT.pack(0, _OPT_KIND, EDNS_BYTES_MAX, 0, 0) if query.has_opt else b""
    return b"".join((header, query.question, *records, opt))


def _name_untrusted(data: bytes, offset: int) -> tuple[str, int]:
    """Return the name at *offset* and where it ends."""
    labels: list[str] = []
    start = offset
    while True:
        if offset >= len(data):
            raise BadMessage("the name has no end")
        length = data[offset]
        offset += 1
        if length > LABEL_BYTES_MAX:
            raise BadMessage(f"a label of {length} bytes")
        if offset + length - start > NAME_BYTES_MAX:
            raise BadMessage(f"a name of more than {NAME_BYTES_MAX} bytes")
        if length == 0:
            return ".".join(labels), offset
        label = data[offset : offset + length]
        # A dot within a label would read as two labels. No name of ours has one.
        labels.append(label.decode("latin-1").lower().replace(".", "\\."))
        offset += length


def _encode_name(name: str) -> bytes:
    labels = [label.encode("ascii") for label in name.split(".")]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def _reversed_address(name: str) -> IPAddress | None:
    """Return the address that *name* asks the name of, None if it asks for none."""
    labels = name.split(".")
    try:
        match labels[-2:]:
            case ["in-addr", "arpa"] if len(labels) == 6:
                return ipaddress.IPv4Address(".".join(reversed(labels[:4])))
            case ["ip6", "arpa"] if len(labels) == 34 and set(labels[:32]) <= _NIBBLES:
                return ipaddress.IPv6Address(bytes.fromhex("".join(reversed(labels[:32]))))
    except ValueError:
        pass
    return None
