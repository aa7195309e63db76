"""The write-ahead log of one server: entries and hard states, sealed, in segments of fixed size.

Sync: one worker thread at a time. A batch is one frame, one write and one sync (frames.py has
the format), and what append() returned from is on disk. Files:

    wal-<sequence>-<first index>   the segments, in order; one is written, the others only read
    spare                          zeros, made ahead, that become the next segment

Opening reads everything back. A torn last write is cut off and reported; bytes that have
changed, or segments that are missing, raise LogDamaged, and nothing is touched.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from raft.disk import DurableDir, DurableFile, create
from raft.frames import (
    FRAME_HEADER_BYTES,
    SALT_BYTES,
    SEGMENT_HEADER_BYTES,
    TAG_BYTES,
    Chain,
    Kind,
    SegmentHeader,
    Verdict,
    WrongKey,
    frame_bytes,
    judge,
    key_id,
)
from raft.log import ENTRY_OVERHEAD_BYTES
from raft.messages import Entry, HardState, ServerId, SnapshotMeta
from raft.records import Write, pack_body, unpack_body

SEGMENT_BYTES: Final = 4 << 20
#: A batch with more data than this becomes several frames, each synced.
FRAME_DATA_BYTES_MAX: Final = 1 << 20
#: The largest entry that fits into a frame whatever else is in it.
ENTRY_BYTES_MAX: Final = 1 << 20
SPARE: Final = "spare"
SEGMENT_NAME: Final = re.compile(r"wal-([0-9a-f]{8})-([0-9a-f]{16})")
_CLOSE_BYTES: Final = frame_bytes(0)
_START_BYTES: Final = SEGMENT_HEADER_BYTES + frame_bytes(SALT_BYTES)
_SEGMENT_OVERHEAD_BYTES: Final = _START_BYTES + _CLOSE_BYTES
_ZEROS: Final = bytes(1 << 16)


class LogMissing(Exception):
    """The directory holds no log: this server does not exist, or its disk was emptied."""


class LogDamaged(Exception):
    """The log cannot be trusted from some place on; nothing on disk was changed.

    *contents* is what was read before that place.
    """

    def __init__(self, what: str, contents: Contents) -> None:
        super().__init__(what)
        self.contents = contents


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


def segment_name(sequence: int, first_index: int) -> str:
    return f"wal-{sequence:08x}-{first_index:016x}"


def _sequence_of(name: str) -> int:
    match = SEGMENT_NAME.fullmatch(name)
    assert match
    return int(match[1], 16)


def segment_names(directory: DurableDir) -> list[str]:
    return [name for name in directory.names() if SEGMENT_NAME.fullmatch(name)]


class WAL:
    """An open log. Made by open(); create() makes the files of a new one.

    *last_index* is the last entry's; segments remember theirs so that compact() knows what is
    needed no more.
    """

    def __init__(
        self,
        directory: DurableDir,
        key: bytes,
        header: SegmentHeader,
        name: str,
        chain: Chain,
        *,
        offset: int,
        segment_bytes: int,
    ) -> None:
        self._directory = directory
        self._key = key
        self._header = header
        self._name = name
        self._chain = chain
        self._offset = offset
        self._segment_bytes = segment_bytes
        self._file: DurableFile = directory.open(name)
        self._sealed = True
        self._highest: dict[str, int] = {name: 0}
        self._spare = SPARE in directory.names()
        if self._spare and directory.size(SPARE) != segment_bytes:
            directory.remove(SPARE)  # made when segments had another size
            self._spare = False
        self.last_index = 0
        self.bytes_written = 0

    @staticmethod
    def create(
        directory: DurableDir,
        key: bytes,
        *,
        cluster: bytes,
        server: ServerId,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """Make the empty log of a new *server*; it exists when this returns."""
        assert not segment_names(directory), "there is a log already"
        header = SegmentHeader(
            segment_bytes, cluster, server, 1, 1, 1, bytes(TAG_BYTES), key_id(key)
        )
        chain = Chain(key, number=1, tag=header.previous_tag)
        _create_segment(directory, header, chain)

    @classmethod
    def open(
        cls, directory: DurableDir, key: bytes, *, segment_bytes: int = SEGMENT_BYTES
    ) -> tuple[WAL, Contents]:
        """Read the log back and make it ready for writing. Nothing is written before append().

        Raises:
            LogMissing: there is none.
            LogDamaged: it has rotted or lost a part.
            WrongKey: *key* is not the one it was sealed with.
        """
        return _Reader(directory, key).read(cls, segment_bytes)

    def append(self, hard_state: HardState, writes: Sequence[Write]) -> None:
        """Put *hard_state* and *writes* on disk; when this returns they are durable.

        Raises:
            DiskFull: there was no room for another segment; nothing of the current frame was
                written, and the whole call may be repeated.
            OSError: the disk failed. What is on it is unknown: this process must not go on.
        """
        data_max = min(FRAME_DATA_BYTES_MAX, self._segment_bytes // 4)
        for group in _grouped(writes, data_max):
            self._append_frame(pack_body(hard_state, group))
            for write in group:
                self._note(write)

    def _note(self, write: Write) -> None:
        if write.snapshot is not None:
            self.last_index = write.snapshot.index
        if write.entries:
            self.last_index = write.entries[-1].index
        highest = self._highest
        highest[self._name] = max(highest[self._name], self.last_index)

    def _append_frame(self, body: bytes) -> None:
        room = self._header.segment_bytes - self._offset - _CLOSE_BYTES
        salt = 0 if self._chain.salted else frame_bytes(SALT_BYTES)
        if frame_bytes(len(body)) + salt > room:
            self._roll(frame_bytes(len(body)))
        elif salt:
            # Synced alone, so that a frame behind it always proves it whole.
            self._write(self._chain.salt(os.urandom(SALT_BYTES)))
        self._write(self._chain.data(body))

    def _write(self, frame: bytes) -> None:
        end = self._offset + len(frame)
        assert end + _CLOSE_BYTES <= self._header.segment_bytes, "a frame larger than a segment"
        self._file.write(self._offset, frame)
        self._file.sync()
        self._offset = end
        self._sealed = False
        self.bytes_written += len(frame)

    def seal(self) -> None:
        """Mark that everything is durable; for idle moments. Not synced, and made only once."""
        if self._sealed:
            return
        self._sealed = True
        mark = self._chain.mark(self._offset)
        if mark is not None:
            self._file.write(self._offset, mark)
            self.bytes_written += len(mark)

    def prepare(self) -> None:
        """Make the next segment ahead of need, when the current one is half full.

        Raises:
            DiskFull: there is no room now. The current segment goes on.
        """
        if self._offset * 2 >= self._header.segment_bytes:
            self._make_spare()

    def _roll(self, needed: int) -> None:
        """Go on in a new segment. It is durable before the old one says that it is closed.

        A frame of *needed* bytes fits into it: an entry larger than our segments may come from
        a leader who has larger ones.
        """
        chain = self._chain.copy()
        header = replace(
            self._header,
            segment_bytes=max(self._segment_bytes, needed + _SEGMENT_OVERHEAD_BYTES),
            sequence=self._header.sequence + 1,
            first_index=self.last_index + 1,
            frame_number=chain.number,
            previous_tag=chain.tag,
        )
        if header.segment_bytes == self._segment_bytes:
            self._make_spare()
            start = _start_of(header, chain)
            spare = self._directory.open(SPARE)
            spare.write(0, start)
            spare.sync()
            spare.close()
            name = segment_name(header.sequence, header.first_index)
            self._directory.rename(SPARE, name)
            self._spare = False
        else:
            name = _create_segment(self._directory, header, chain)
        if self._chain.salted:
            self._file.write(self._offset, self._chain.close())
            self._file.sync()
        self._file.close()
        self._file = self._directory.open(name)
        self._header, self._name, self._chain = header, name, chain
        self._offset = _START_BYTES
        self._highest[name] = 0
        self.bytes_written += _START_BYTES + _CLOSE_BYTES

    def _make_spare(self) -> None:
        if not self._spare:
            create(self._directory, SPARE, _zeros(self._segment_bytes))
            self._spare = True

    def compact(self, index: int) -> None:
        """Remove the segments that hold nothing above *index*, which a snapshot covers."""
        for name in sorted(self._highest):
            if name == self._name or self._highest[name] > index:
                return
            self._directory.remove(name)
            del self._highest[name]

    @property
    def segments(self) -> int:
        return len(self._highest)

    def close(self) -> None:
        self._file.close()


def _grouped(writes: Sequence[Write], data_max: int) -> Iterator[list[Write]]:
    """Cut *writes* into groups of *data_max* bytes, a frame each; at least one group."""
    group: list[Write] = []
    size = 0
    for write in writes:
        if write.snapshot is not None:
            group.append(Write(snapshot=write.snapshot))
        start = 0
        for position, entry in enumerate(write.entries):
            assert len(entry.data) <= ENTRY_BYTES_MAX
            entry_bytes = len(entry.data) + ENTRY_OVERHEAD_BYTES
            if size and size + entry_bytes > data_max:
                group.append(Write(write.entries[start:position]))
                yield group
                group, size, start = [], 0, position
            size += entry_bytes
        if write.entries:
            group.append(Write(write.entries[start:]))
    yield group


def _zeros(size: int) -> Iterator[bytes]:
    while size > 0:
        yield _ZEROS[:size]
        size -= len(_ZEROS)


def _start_of(header: SegmentHeader, chain: Chain) -> bytes:
    return header.pack() + chain.salt(os.urandom(SALT_BYTES))


def _create_segment(directory: DurableDir, header: SegmentHeader, chain: Chain) -> str:
    start = _start_of(header, chain)
    name = segment_name(header.sequence, header.first_index)
    create(directory, name, [start, *_zeros(header.segment_bytes - len(start))])
    return name


class _Reader:
    """Reads a log back, segment by segment."""

    def __init__(self, directory: DurableDir, key: bytes) -> None:
        self._directory = directory
        self._key = key
        self._contents = Contents(b"", ServerId(0))
        self._highest: dict[str, int] = {}

    def read(self, cls: type[WAL], segment_bytes: int) -> tuple[WAL, Contents]:
        names = segment_names(self._directory)
        if not names:
            raise LogMissing("there is no log here")
        chain, header, offset = None, None, 0
        for position, name in enumerate(names):
            last = position == len(names) - 1
            chain, header, offset = self._read_segment(name, header, chain, last=last)
        assert chain is not None
        assert header is not None
        # Fresh salt, fresh key: the numbers of frames that a power cut ate may be used again.
        wal = cls(
            self._directory,
            self._key,
            header,
            names[-1],
            chain.copy(),
            offset=offset,
            segment_bytes=segment_bytes,
        )
        wal._highest = self._highest
        wal.last_index = self._contents.last_index
        return wal, self._contents

    def _damaged(self, name: str, offset: int, what: str) -> LogDamaged:
        contents = self._contents
        return LogDamaged(
            f"{name} at byte {offset}: {what}; the log can be read up to entry "
            f"{contents.last_index} of term {contents.entries[-1].term if contents.entries else 0}",
            contents,
        )

    def _read_segment(
        self, name: str, before: SegmentHeader | None, chain: Chain | None, *, last: bool
    ) -> tuple[Chain, SegmentHeader, int]:
        data = self._directory.read(name)
        header = self._read_header(name, data, before, chain)
        chain = Chain(self._key, number=header.frame_number, tag=header.previous_tag)
        offset = SEGMENT_HEADER_BYTES
        self._highest[name] = 0
        while True:
            frame = chain.read(data, offset)
            if frame is None or frame.kind is Kind.SEAL:
                self._end_segment(name, data, offset, chain, sealed=frame is not None, last=last)
                return chain, header, offset
            if frame.kind is Kind.CLOSE:
                if last:
                    raise self._damaged(name, offset, "the segments behind it are missing")
                return chain, header, offset
            if frame.kind is Kind.DATA:
                self._take(name, frame.body)
            offset = frame.end

    def _read_header(
        self, name: str, data: bytes, before: SegmentHeader | None, chain: Chain | None
    ) -> SegmentHeader:
        header = SegmentHeader.unpack(data)
        if header is None:
            raise self._damaged(name, 0, "its header has rotted")
        if header.key_id != key_id(self._key):
            raise WrongKey(f"{name} was sealed with another key than the one given")
        if len(data) != header.segment_bytes:
            raise self._damaged(name, len(data), f"it is {len(data)} bytes long")
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
                raise self._damaged(name, 0, "it does not continue the segment before it")
        return header

    def _take(self, name: str, body: bytes) -> None:
        hard_state, writes = unpack_body(body)
        self._contents.hard_state = hard_state
        for write in writes:
            expected = self._contents.last_index + 1
            if write.entries and self._contents.entries and write.entries[0].index > expected:
                raise self._damaged(name, 0, f"entries before {write.entries[0].index} are missing")
            self._contents.add(write)
            self._highest[name] = max(self._highest[name], self._contents.last_index)

    def _end_segment(
        self, name: str, data: bytes, offset: int, chain: Chain, *, sealed: bool, last: bool
    ) -> None:
        """Decide what it means that no frame stands at *offset*."""
        if not last:
            # If the next segment goes on with this frame's number, nothing was lost here: what
            # stands here is a CLOSE that was cut short, or was never written.
            return
        sealed_to = offset + FRAME_HEADER_BYTES if sealed else 0
        verdict = judge(data, offset, chain.number, sealed_to=sealed_to)
        if verdict is Verdict.END:
            return
        if verdict is Verdict.ROT:
            raise self._damaged(name, offset, "bytes that were good once have changed")
        used = len(data.rstrip(b"\0"))
        self._contents.torn = (
            f"{name} at byte {offset}: {used - offset} bytes of a write that a power cut "
            "interrupted, never acknowledged"
        )
        file = self._directory.open(name)
        file.write(offset, bytes(used - offset))
        file.sync()
        file.close()
