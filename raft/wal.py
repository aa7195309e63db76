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
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from raft.disk import DurableDir, DurableFile, create
from raft.frames import (
    NONCE_BYTES,
    SALT_BYTES,
    SEGMENT_HEADER_BYTES,
    TAG_BYTES,
    Chain,
    SegmentHeader,
    frame_bytes,
    key_id,
)
from raft.log import ENTRY_OVERHEAD_BYTES
from raft.messages import HardState, ServerId
from raft.records import Write, pack_body
from raft.scan import SEGMENT_NAME, Contents, Reader, Scanned, segment_names

SEGMENT_BYTES: Final = 4 << 20
#: A batch with more data than this becomes several frames, each synced.
FRAME_DATA_BYTES_MAX: Final = 1 << 20
#: The largest entry that fits into a frame whatever else is in it.
ENTRY_BYTES_MAX: Final = 1 << 20
SPARE: Final = "spare"
_CLOSE_BYTES: Final = frame_bytes(0)
_SEGMENT_OVERHEAD_BYTES: Final = SEGMENT_HEADER_BYTES + _CLOSE_BYTES
_ZEROS: Final = bytes(1 << 16)


def segment_name(sequence: int, first_index: int) -> str:
    return f"wal-{sequence:08x}-{first_index:016x}"


def sequence_of(name: str) -> int:
    match = SEGMENT_NAME.fullmatch(name)
    assert match
    return int(match[1], 16)


class WAL:
    """An open log. Made by open(); create() makes the files of a new one.

    *last_index* is the last entry's; segments remember theirs so that compact() knows what is
    needed no more.
    """

    def __init__(
        self, directory: DurableDir, key: bytes, scanned: Scanned, *, segment_bytes: int
    ) -> None:
        self._directory = directory
        self._header = scanned.header
        self._name = scanned.name
        self._key = key
        self._chain = scanned.chain
        self._offset = scanned.offset
        self._segment_bytes = segment_bytes
        self._file: DurableFile = directory.open(scanned.name)
        self._sealed = True
        self._highest = scanned.highest
        self._spare_lock = threading.Lock()
        self._spare = SPARE in directory.names()
        if self._spare and directory.size(SPARE) != segment_bytes:
            directory.remove(SPARE)  # made when segments had another size
            self._spare = False
        self.last_index = scanned.contents.last_index
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
        WAL.rebuild(
            directory, key, cluster=cluster, server=server, state=None, segment_bytes=segment_bytes
        )

    @staticmethod
    def rebuild(
        directory: DurableDir,
        key: bytes,
        *,
        cluster: bytes,
        server: ServerId,
        state: tuple[HardState, Sequence[Write]] | None,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """Begin the log anew, with *state* and nothing else in it, in one step.

        It is the log when this returns; the segments there were before are only in the way, and
        are for the caller to remove. A power cut leaves the old log or the new one.
        """
        names = segment_names(directory)
        sequence = sequence_of(names[-1]) + 1 if names else 1
        header = SegmentHeader(
            segment_bytes,
            cluster,
            server,
            sequence,
            1,
            1,
            bytes(TAG_BYTES),
            os.urandom(SALT_BYTES),
            key_id(key),
        )
        frames: list[bytes] = []
        if state is not None:
            hard_state, writes = state
            chain = Chain(header.cipher(key), number=1, tag=header.previous_tag)
            bodies = (pack_body(hard_state, g) for g in _grouped(writes, FRAME_DATA_BYTES_MAX))
            frames = [chain.data(body, os.urandom(NONCE_BYTES)) for body in bodies]
        used = SEGMENT_HEADER_BYTES + sum(map(len, frames))
        header = replace(header, segment_bytes=max(segment_bytes, used + _CLOSE_BYTES))
        name = segment_name(sequence, 1)
        zeros = _zeros(header.segment_bytes - used)
        create(directory, name, [header.pack(), *frames, *zeros])

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
        scanned = Reader(directory, key).read()
        return cls(directory, key, scanned, segment_bytes=segment_bytes), scanned.contents

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
        if frame_bytes(len(body)) > room:
            self._roll(frame_bytes(len(body)))
        self._write(self._chain.data(body, os.urandom(NONCE_BYTES)))

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

    @property
    def wants_spare(self) -> bool:
        """The current segment is half full, and the next one does not exist yet."""
        return not self._spare and self._offset * 2 >= self._header.segment_bytes

    def prepare(self) -> None:
        """Make the next segment ahead of need, if it is wanted.

        Unlike all else this may run beside append(), in another thread: filling megabytes with
        zeros takes a slow card a second.

        Raises:
            DiskFull: there is no room now. The current segment goes on.
        """
        if self.wants_spare:
            self._make_spare()

    def _roll(self, needed: int) -> None:
        """Go on in a new segment. It is durable before the old one says that it is closed.

        A frame of *needed* bytes fits into it: an entry larger than our segments may come from
        a leader who has larger ones.
        """
        chain = self._chain
        header = replace(
            self._header,
            segment_bytes=max(self._segment_bytes, needed + _SEGMENT_OVERHEAD_BYTES),
            sequence=self._header.sequence + 1,
            first_index=self.last_index + 1,
            frame_number=chain.number,
            previous_tag=chain.tag,
            salt=os.urandom(SALT_BYTES),
        )
        name = segment_name(header.sequence, header.first_index)
        if header.segment_bytes == self._segment_bytes:
            self._make_spare()
            spare = self._directory.open(SPARE)
            spare.write(0, header.pack())
            spare.sync()
            spare.close()
            self._directory.rename(SPARE, name)
            self._spare = False
        else:
            zeros = _zeros(header.segment_bytes - SEGMENT_HEADER_BYTES)
            create(self._directory, name, [header.pack(), *zeros])
        self._file.write(self._offset, chain.close(os.urandom(NONCE_BYTES)))
        self._file.sync()
        self._file.close()
        self._file = self._directory.open(name)
        self._header, self._name = header, name
        self._chain = Chain(header.cipher(self._key), number=chain.number, tag=chain.tag)
        self._offset = SEGMENT_HEADER_BYTES
        self._highest[name] = 0
        self.bytes_written += SEGMENT_HEADER_BYTES + _CLOSE_BYTES

    def _make_spare(self) -> None:
        with self._spare_lock:
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
