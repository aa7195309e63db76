"""Frames: what a WAL segment is made of, and how a torn write is told from rot.

Pure. A segment is a file of fixed size, zero-filled before its first use:

    header   128 bytes: magic, format, size, cluster, server, sequence, first index, number of
             the first frame, tag of the last frame before, salt, id of the key, CRC
    frames   one after another, each at a multiple of 8 bytes
    zeros

    frame    magic 2, kind 1, 0, body bytes 4, number 8, previous tag 8, CRC of these 4,
             CRC of nonce and body 4 | nonce 12 | body | tag 16 | 0xA5 up to a multiple of 8

A body is sealed with AES-256-GCM under HKDF(key, the segment's salt), with a random nonce and
its frame's header as associated data. (A counter would repeat when a power cut ate a frame and
its number is used again, or when a disk image is restored.) Frames are numbered over all
segments, and each holds the first half of the previous one's tag: a chain that shows when one is
missing. Kinds:

    DATA    records
    CLOSE   no more frames here: the next segment exists
    SEAL    a header alone, written into the free space when all before it is durable. It is not
            synced, and the next frame replaces it. It never crosses the end of a sector, so it
            is there whole or not at all.

A frame is written only after the one before it was synced. So whatever follows a bad frame
proves that it had been good and acknowledged: that is rot, and nothing may be cut off. A last
frame that is bad is the write that a power cut interrupted if one of its sectors was never
written; the space was zero, and sealed bytes are never zero for a whole piece of a sector.

CRC-32 is zlib's, not Castagnoli's: it is the one that the standard library has in C, and whether
a frame is ours is decided by its AEAD tag anyway.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from raft.messages import ServerId

KEY_BYTES: Final = 32
SALT_BYTES: Final = 16
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
SECTOR_BYTES: Final = 512

SEGMENT_MAGIC: Final = b"RAFTWAL\0"
SEGMENT_FORMAT: Final = 1
SEGMENT_HEADER_BYTES: Final = 128
_SEGMENT: Final = struct.Struct("<8sIQ16sQQQQ16s16s8s")

FRAME_MAGIC: Final = 0x5AF7
FRAME_HEADER_BYTES: Final = 32
_FRAME: Final = struct.Struct("<HBBIQ8s")
_CRCS: Final = struct.Struct("<II")
_CRC: Final = struct.Struct("<I")
PADDING: Final = b"\xa5"


class Kind(enum.IntEnum):
    DATA = 1
    CLOSE = 2
    SEAL = 3


class WrongKey(ValueError):
    """The log was sealed with another key than the one given."""


class Verdict(enum.Enum):
    """What the end of a segment is, or the place where it cannot be read on."""

    END = "the log ends here"
    TORN = "a write that was cut short and never acknowledged"
    ROT = "bytes that were good once have changed"


def key_id(key: bytes) -> bytes:
    """Return 8 bytes that name *key* without giving it away."""
    digest = Hash(SHA256())
    digest.update(b"raft key id" + key)
    return digest.finalize()[:8]


def derive_cipher(key: bytes, salt: bytes, purpose: bytes) -> AESGCM:
    """Return the cipher for everything that one *salt* covers."""
    return AESGCM(HKDF(SHA256(), KEY_BYTES, salt, b"raft " + purpose).derive(key))


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    segment_bytes: int
    cluster: bytes
    server: ServerId
    sequence: int
    first_index: int
    frame_number: int
    previous_tag: bytes
    salt: bytes
    key_id: bytes

    def cipher(self, key: bytes) -> AESGCM:
        """Return what seals the frames of this segment."""
        return derive_cipher(key, self.salt, b"wal")

    def pack(self) -> bytes:
        packed = _SEGMENT.pack(
            SEGMENT_MAGIC,
            SEGMENT_FORMAT,
            self.segment_bytes,
            self.cluster,
            self.server,
            self.sequence,
            self.first_index,
            self.frame_number,
            self.previous_tag,
            self.salt,
            self.key_id,
        )
        packed = packed.ljust(SEGMENT_HEADER_BYTES - _CRC.size, b"\0")
        return packed + _CRC.pack(zlib.crc32(packed))

    @property
    def begins(self) -> bool:
        """The log starts here, whatever segments there were before."""
        return self.frame_number == 1 and not any(self.previous_tag)

    @staticmethod
    def unpack(data: bytes) -> SegmentHeader | None:
        """Return the header at the start of *data*; None if it is not one."""
        packed = data[: SEGMENT_HEADER_BYTES - _CRC.size]
        crc = data[len(packed) : SEGMENT_HEADER_BYTES]
        if len(crc) != _CRC.size or _CRC.unpack(crc)[0] != zlib.crc32(packed):
            return None
        magic, version, *fields = _SEGMENT.unpack_from(packed)
        if magic != SEGMENT_MAGIC or version != SEGMENT_FORMAT:
            return None
        return SegmentHeader(*fields)


@dataclass(frozen=True, slots=True)
class Frame:
    kind: Kind
    body: bytes
    end: int  # where the next frame starts


def frame_bytes(body_bytes: int) -> int:
    """Return the size of a frame with a body of that size."""
    return (FRAME_HEADER_BYTES + NONCE_BYTES + body_bytes + TAG_BYTES + 7) // 8 * 8


class Chain:
    """Where a log stands: the cipher, number and previous tag of its next frame."""

    __slots__ = ("_cipher", "number", "tag")

    def __init__(self, cipher: AESGCM, *, number: int, tag: bytes) -> None:
        self._cipher = cipher
        self.number = number
        self.tag = tag

    def data(self, body: bytes, nonce: bytes) -> bytes:
        """Return *body* as the next frame; *nonce* is random."""
        frame, self.tag = self._seal(Kind.DATA, body, nonce)
        self.number += 1
        return frame

    def close(self, nonce: bytes) -> bytes:
        """Return the CLOSE frame for this place; the chain goes on in the next segment."""
        return self._seal(Kind.CLOSE, b"", nonce)[0]

    def _seal(self, kind: Kind, body: bytes, nonce: bytes) -> tuple[bytes, bytes]:
        header = _FRAME.pack(FRAME_MAGIC, kind, 0, len(body), self.number, self.tag[:8])
        sealed = nonce + self._cipher.encrypt(nonce, body, header)
        crcs = _CRCS.pack(zlib.crc32(header), zlib.crc32(sealed[:-TAG_BYTES]))
        frame = header + crcs + sealed
        return frame + PADDING * (-len(frame) % 8), sealed[-TAG_BYTES:]

    def mark(self, offset: int) -> bytes | None:
        """Return the SEAL for *offset*; None where it would cross the end of a sector."""
        if offset % SECTOR_BYTES > SECTOR_BYTES - FRAME_HEADER_BYTES:
            return None
        header = _FRAME.pack(FRAME_MAGIC, Kind.SEAL, 0, 0, self.number, self.tag[:8])
        return header + _CRCS.pack(zlib.crc32(header), 0)

    def read(self, data: bytes, offset: int) -> Frame | None:
        """Return the frame at *offset* and step behind it; None if the right one is not there."""
        head = _read_header(data, offset)
        if head is None or (head.number, head.previous) != (self.number, self.tag[:8]):
            return None
        if head.kind is Kind.SEAL:
            return Frame(head.kind, b"", offset + FRAME_HEADER_BYTES)
        opened = _open(data, offset, head, self._cipher)
        if opened is None:
            return None
        body, tag = opened
        if head.kind is Kind.DATA:
            self.tag = tag
            self.number += 1
        return Frame(head.kind, body, offset + frame_bytes(head.length))


@dataclass(frozen=True, slots=True)
class LooseFrame:
    """A whole frame that was found somewhere."""

    kind: Kind
    number: int
    body: bytes
    end: int


def loose_frames(data: bytes, cipher: AESGCM) -> Iterator[LooseFrame]:
    """Find the frames of a segment that are whole, wherever they stand, in order.

    For a log whose chain is broken.
    """
    magic = FRAME_MAGIC.to_bytes(2, "little")
    found = data.find(magic, SEGMENT_HEADER_BYTES)
    while found >= 0:
        after = found + 1
        head = _read_header(data, found) if found % 8 == 0 else None
        if head is not None and head.kind is Kind.SEAL:
            after = found + FRAME_HEADER_BYTES
            yield LooseFrame(head.kind, head.number, b"", after)
        elif head is not None:
            opened = _open(data, found, head, cipher)
            if opened is not None:
                after = found + frame_bytes(head.length)
                yield LooseFrame(head.kind, head.number, opened[0], after)
        found = data.find(magic, after)


class _Head(NamedTuple):
    kind: Kind
    length: int
    number: int
    previous: bytes
    crc: int


def _open(data: bytes, offset: int, head: _Head, cipher: AESGCM) -> tuple[bytes, bytes] | None:
    """Return body and tag of the frame at *offset*; None if they are not as they were written."""
    start = offset + FRAME_HEADER_BYTES
    end = start + NONCE_BYTES + head.length
    sealed, tag = data[start:end], data[end : end + TAG_BYTES]
    if len(tag) != TAG_BYTES or zlib.crc32(sealed) != head.crc:
        return None
    nonce, body = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
    try:
        return cipher.decrypt(nonce, body + tag, data[offset : offset + _FRAME.size]), tag
    except InvalidTag:
        return None


def _read_header(data: bytes, offset: int) -> _Head | None:
    """Return what the header at *offset* says; None if it is bad."""
    header = data[offset : offset + _FRAME.size]
    crcs = data[offset + _FRAME.size : offset + FRAME_HEADER_BYTES]
    if len(crcs) != _CRCS.size:
        return None
    header_crc, body_crc = _CRCS.unpack(crcs)
    if header_crc != zlib.crc32(header):
        return None
    magic, kind, _, length, number, previous = _FRAME.unpack(header)
    if magic != FRAME_MAGIC or kind not in tuple(Kind):
        return None
    return _Head(Kind(kind), length, number, previous, body_crc)


def judge(data: bytes, offset: int, number: int, *, sealed_to: int = 0) -> Verdict:
    """Say what stands at *offset*, where the frame *number* should be and cannot be read.

    *sealed_to* is where a SEAL at *offset* ends: then frame *number* was never acknowledged.
    """
    used = len(data.rstrip(b"\0"))
    if used <= max(offset, sealed_to):
        return Verdict.END
    if _later_frame(data, offset + 8, used, number):
        return Verdict.ROT
    if sealed_to:
        return Verdict.TORN
    head = _read_header(data, offset)
    if head is not None and head.number == number:
        seal = head.kind is Kind.SEAL
        end = offset + (FRAME_HEADER_BYTES if seal else frame_bytes(head.length))
        end = min(end, len(data))
    else:
        # How long it is cannot be read, but no frame is shorter than this.
        end = max((used + 7) // 8 * 8, offset + frame_bytes(0))
    return Verdict.TORN if _has_unwritten_piece(data, offset, end) else Verdict.ROT


def _later_frame(data: bytes, start: int, end: int, number: int) -> bool:
    """Say if a frame that was written after frame *number* stands in data[start:end]."""
    magic = FRAME_MAGIC.to_bytes(2, "little")
    found = data.find(magic, start, end)
    while found >= 0:
        if found % 8 == 0:
            head = _read_header(data, found)
            if head is not None and head.number > number:
                return True
        found = data.find(magic, found + 1, end)
    return False


def _has_unwritten_piece(data: bytes, start: int, end: int) -> bool:
    """Say if some sector's part of data[start:end] is all zeros."""
    piece = start
    while piece < end:
        sector_end = min((piece // SECTOR_BYTES + 1) * SECTOR_BYTES, end)
        if not any(data[piece:sector_end]):
            return True
        piece = sector_end
    return False
