"""Reading a log back: frame by frame, until it ends, or shows that it was damaged.

Sync: call it in a worker thread. A torn last write is cut off here, the one thing that reading
changes. Of a damaged log the rest is looked at too: if its end is there, then so are the last
term and vote, and the other servers may make it whole (boot.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from raft.disk import DurableDir
from raft.frames import (
    FRAME_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    Chain,
    Kind,
    SegmentHeader,
    Verdict,
    WrongKey,
    judge,
    key_id,
    loose_frames,
)
from raft.messages import Entry, HardState, ServerId, SnapshotMeta
from raft.records import BadRecord, Write, unpack_body

SEGMENT_NAME: Final = re.compile(r"wal-([0-9a-f]{8})-([0-9a-f]{16})")


class LogMissing(Exception):
    """The directory holds no log: this server does not exist, or its disk was emptied."""


class LogDamaged(Exception):
    """The log cannot be trusted from some place on; nothing on disk was changed.

    *contents* is what was read before that place. *tail* is the hard state at the end of the
    log, if the end is there: nothing after it was lost. None: the server may have forgotten a
    vote, and must never give one again.
    """

    def __init__(self, what: str, contents: Contents, tail: HardState | None = None) -> None:
        super().__init__(what)
        self.contents = contents
        self.tail = tail


@dataclass(slots=True)
class Contents:
    """What a log holds. *entries* run without a gap; what is before them is in a snapshot."""

    cluster: bytes
    server: ServerId
    hard_state: HardState = field(default_factory=HardState)
    snapshot: SnapshotMeta | None = None
    entries: list[Entry] = field(default_factory=list)
    #: What was cut off from the end, for the log: an interrupted write, never acknowledged.
    torn: str | None = None

    @property
    def last_index(self) -> int:
        if self.entries:
            return self.entries[-1].index
        return self.snapshot.index if self.snapshot else 0

    def add(self, write: Write) -> None:
        if write.snapshot is not None:
            self.snapshot = write.snapshot
            self.entries = []
        if write.entries:
            first = write.entries[0].index
            if self.entries and first <= self.entries[-1].index:
                del self.entries[max(0, first - self.entries[0].index) :]
            self.entries.extend(write.entries)


def segment_names(directory: DurableDir) -> list[str]:
    """The segments there, in the order in which they were written."""
    return [name for name in directory.names() if SEGMENT_NAME.fullmatch(name)]


def current_segments(directory: DurableDir) -> list[str]:
    """The segments of the log as it is now: from the last one on that begins a log anew."""
    names = segment_names(directory)
    for position in range(len(names) - 1, 0, -1):
        header = SegmentHeader.unpack(directory.read(names[position])[:SEGMENT_HEADER_BYTES])
        if header is not None and header.begins:
            return names[position:]
    return names


@dataclass(frozen=True, slots=True)
class Scanned:
    """A log that was read to its end, and the place where it goes on."""

    contents: Contents
    header: SegmentHeader  # of the last segment
    name: str
    chain: Chain
    offset: int
    highest: dict[str, int]  # segment -> the highest index that was written to it


class Reader:
    """Reads a log back, segment by segment."""

    def __init__(self, directory: DurableDir, key: bytes) -> None:
        self._directory = directory
        self._key = key
        self._contents = Contents(b"", ServerId(0))
        self._highest: dict[str, int] = {}

    def read(self) -> Scanned:
        """Raises: LogMissing, LogDamaged, WrongKey."""
        names = current_segments(self._directory)
        if not names:
            raise LogMissing("there is no log here")
        chain, header, offset = None, None, 0
        for position in range(len(names)):
            chain, header, offset = self._read_segment(names[position:], header, chain)
        assert chain is not None
        assert header is not None
        return Scanned(self._contents, header, names[-1], chain, offset, self._highest)

    def _damaged(self, rest: list[str], offset: int, number: int, what: str) -> LogDamaged:
        """Describe damage at *offset* of the first segment of *rest*, in frame *number*."""
        contents = self._contents
        term = contents.entries[-1].term if contents.entries else 0
        tail = _tail_state(self._directory, self._key, rest, number)
        return LogDamaged(
            f"{rest[0]} at byte {offset}: {what}; the log can be read up to entry "
            f"{contents.last_index} of term {term}"
            + ("" if tail else ", and its end is lost or damaged: votes may be forgotten"),
            contents,
            tail,
        )

    def _read_segment(
        self, rest: list[str], before: SegmentHeader | None, chain: Chain | None
    ) -> tuple[Chain, SegmentHeader, int]:
        name, last = rest[0], len(rest) == 1
        data = self._directory.read(name)
        header = self._read_header(rest, data, before, chain)
        cipher = header.cipher(self._key)
        chain = Chain(cipher, number=header.frame_number, tag=header.previous_tag)
        offset = SEGMENT_HEADER_BYTES
        self._highest[name] = 0
        while True:
            frame = chain.read(data, offset)
            if frame is None or frame.kind is Kind.SEAL:
                if last:
                    self._end(rest, data, offset, chain, sealed=frame is not None)
                # Else: if the next segment goes on with this frame's number, nothing was lost
                # here; what stands here is a CLOSE that was cut short, or was never written.
                return chain, header, offset
            if frame.kind is Kind.CLOSE:
                if last:
                    what = "the segments behind it are missing"
                    raise self._damaged(rest, offset, chain.number, what)
                return chain, header, offset
            if frame.kind is Kind.DATA:
                self._take(rest, offset, chain.number, frame.body)
            offset = frame.end

    def _read_header(
        self, rest: list[str], data: bytes, before: SegmentHeader | None, chain: Chain | None
    ) -> SegmentHeader:
        number = chain.number if chain else 0
        header = SegmentHeader.unpack(data)
        if header is None:
            raise self._damaged(rest, 0, number, "its header has rotted")
        if header.key_id != key_id(self._key):
            raise WrongKey(f"{rest[0]} was sealed with another key than the one given")
        contents = self._contents
        if before is None:
            contents.cluster, contents.server = header.cluster, header.server
        else:
            assert chain is not None
            follows = (
                header.sequence == before.sequence + 1
                and header.previous_tag == chain.tag
                and header.frame_number == chain.number
                and (header.cluster, header.server) == (contents.cluster, contents.server)
            )
            if not follows:
                what = "it does not continue the segment before it"
                raise self._damaged(rest, 0, number, what)
        if len(data) != header.segment_bytes:
            raise self._damaged(rest, len(data), number, f"it is {len(data)} bytes long")
        return header

    def _take(self, rest: list[str], offset: int, number: int, body: bytes) -> None:
        contents = self._contents
        hard_state, writes = unpack_body(body)
        for write in writes:
            expected = contents.last_index + 1
            if write.entries and contents.entries and write.entries[0].index > expected:
                what = f"entries before {write.entries[0].index} are missing"
                raise self._damaged(rest, offset, number, what)
            contents.add(write)
            self._highest[rest[0]] = max(self._highest[rest[0]], contents.last_index)
        contents.hard_state = hard_state

    def _end(
        self, rest: list[str], data: bytes, offset: int, chain: Chain, *, sealed: bool
    ) -> None:
        """Decide what it means that no frame stands at *offset* of the last segment."""
        sealed_to = offset + FRAME_HEADER_BYTES if sealed else 0
        verdict = judge(data, offset, chain.number, sealed_to=sealed_to)
        if verdict is Verdict.END:
            return
        if verdict is Verdict.ROT:
            what = "bytes that were good once have changed"
            raise self._damaged(rest, offset, chain.number, what)
        used = len(data.rstrip(b"\0"))
        self._contents.torn = (
            f"{rest[0]} at byte {offset}: {used - offset} bytes of a write that a power cut "
            "interrupted, never acknowledged"
        )
        file = self._directory.open(rest[0])
        file.write(offset, bytes(used - offset))
        file.sync()
        file.close()


def _tail_state(
    directory: DurableDir, key: bytes, names: list[str], damaged: int
) -> HardState | None:
    """Return the hard state of the log's last frame, if it is whole and behind the damage.

    *names* are the segments from the damaged one on, *damaged* the number of the frame there.
    """
    state: HardState | None = None
    last_kind, last_number, end = Kind.DATA, damaged, 0
    data = b""
    for name in names:
        data = directory.read(name)
        header = SegmentHeader.unpack(data)
        if header is None:
            return None  # the salt is in it
        for frame in loose_frames(data, header.cipher(key)):
            last_kind, end = frame.kind, frame.end
            if frame.kind is not Kind.DATA:
                continue
            last_number = frame.number
            if frame.number > damaged:
                try:
                    state, _ = unpack_body(frame.body)
                except BadRecord:
                    return None
    if state is None or last_kind is Kind.CLOSE:
        return None
    # What stands behind the last good frame must be free space, or a write that was cut short.
    return state if judge(data, end, last_number + 1) is not Verdict.ROT else None
