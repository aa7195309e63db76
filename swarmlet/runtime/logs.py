"""Reading the json-file logs of containers, also while they are written and rotated.

The zygote writes (logfile.py), the daemon only reads, so the file is the interface: a follower
waits on inotify for the container's state folder and finds its place again after a rotation: by the
inode of the file that it holds open, or by how it began if that was compressed (compressing.py).
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import BinaryIO, cast

import trio

from swarmlet.runtime import syscalls
from swarmlet.runtime.birth import EXIT_FILE

#: Bytes read from a log file at a time.
READ_BYTES = 64 * 1024
#: A line of a log file: 16 KiB of text, each byte at most six in JSON, and the rest.
ENTRY_BYTES_MAX = 128 * 1024
#: Of a file, to know it again by.
HEAD_BYTES = 256
#: Numbers that a rotated file may have (spec: log.files_max is 100 at most).
FILES_MAX = 1000
_MASK = (
    syscalls.IN_MODIFY
    | syscalls.IN_CREATE
    | syscalls.IN_MOVED_FROM
    | syscalls.IN_MOVED_TO
    | syscalls.IN_DELETE_SELF
)


@dataclass(frozen=True, slots=True)
class LogLine:
    """One entry: *data* ends with b"\\n" unless the line was cut or unended."""

    stream: str
    time: datetime
    time_text: str  # as in the file, with nanoseconds
    data: bytes


async def read_logs(
    path: str,
    *,
    follow: bool = False,
    tail: int | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    stdout: bool = True,
    stderr: bool = True,
    ended: Callable[[], bool] = lambda: True,
) -> AsyncGenerator[LogLine, None]:
    """Yield the entries of the log at *path*, oldest first.

    With *follow*, go on until *ended* says that the container writes no more; *tail* counts
    entries of both streams, as Docker does.
    """
    wanted = {name for name, on in (("stdout", stdout), ("stderr", stderr)) if on}
    reader = _Reader(path)
    watch = -1
    try:
        if follow:
            # Before the first read: what is written after it wakes us.
            watch = syscalls.inotify(os.path.dirname(path), _MASK)
        lines = await trio.to_thread.run_sync(reader.start, tail)
        while True:
            for raw in lines:
                line = parse_entry(raw)
                if line is None or line.stream not in wanted:
                    continue
                if since is not None and line.time < since:
                    continue
                if until is not None and line.time > until:
                    return
                yield line
            # The order matters: what is written before the end is read after it was seen.
            over = not follow or ended() or _has_exited(path)
            lines = await trio.to_thread.run_sync(reader.read)
            if lines:
                continue
            if over:
                return
            await trio.lowlevel.wait_readable(watch)
            with contextlib.suppress(BlockingIOError):
                os.read(watch, 64 * 1024)
    finally:
        reader.close()
        if watch >= 0:
            os.close(watch)


def _has_exited(path: str) -> bool:
    """Whether the zygote has left the exit status, or the whole folder is gone."""
    folder = os.path.dirname(path)
    return not os.path.exists(path) or os.path.exists(f"{folder}/{EXIT_FILE}")


def parse_entry(raw: bytes) -> LogLine | None:
    """Return the entry in one line of the file; None for a torn one."""
    try:
        entry = json.loads(raw)
        text = entry["time"]
        return LogLine(entry["stream"], parse_time(text), text, entry["log"].encode())
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def parse_time(text: str) -> datetime:
    """Read RFC 3339 with any number of decimals (Python knows microseconds)."""
    found = re.fullmatch(r"(.*?)(\.\d+)?(Z|[+-]\d\d:\d\d)", text)
    if found is None:
        raise ValueError(f"{text!r} is no time of RFC 3339")
    zone = "+00:00" if found[3] == "Z" else found[3]
    decimals = (found[2] or ".0")[:7].ljust(7, "0")
    return datetime.fromisoformat(f"{found[1]}{decimals}{zone}").astimezone(UTC)


class _File:
    """One file of a set, open for reading: plain, or compressed."""

    def __init__(self, path: str) -> None:
        self._compressed = path.endswith(".gz")
        opener = gzip.open if self._compressed else open
        self.stream = cast(BinaryIO, opener(path, "rb"))
        self._head = head_of(path) if self._compressed else b""

    def last_lines(self, count: int) -> list[bytes]:
        """Return the last *count* lines, and be at the end of them."""
        if not self._compressed:
            return last_lines(self.stream, count)
        lines = deque((line.rstrip(b"\n") for line in self.stream), maxlen=count)
        return list(lines)

    def place_in(self, paths: Sequence[str]) -> int:
        """Return which of *paths* is this file now, -1 for none."""
        fd = self.stream.fileno()
        head = self._head or os.pread(fd, HEAD_BYTES, 0)
        own = os.fstat(fd).st_ino
        for index, path in enumerate(paths):
            with contextlib.suppress(OSError, EOFError):
                if path.endswith(".gz"):
                    if head and head_of(path).startswith(head):
                        return index
                # Open here, so its number can be no other's.
                elif not self._compressed and os.stat(path).st_ino == own:
                    return index
        return -1

    @property
    def started_over(self) -> bool:
        """Whether it was cut to nothing, as the only file of a set is."""
        return not self._compressed and os.fstat(self.stream.fileno()).st_size < self.stream.tell()


def head_of(path: str) -> bytes:
    """Return how the compressed file at *path* begins: the time of its first entry is in it."""
    with gzip.open(path, "rb") as file:
        return file.read(HEAD_BYTES)


class _Reader:
    """A place in a set of rotated files. Sync: one call at a time, in a worker thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: _File | None = None
        self._rest = b""

    def start(self, tail: int | None) -> list[bytes]:
        """Return what is there now, or the last *tail* entries of it."""
        if tail is None:
            files = self._existing()
            self._file = self._open(files[0]) if files else None
            return self.read()
        lines: list[bytes] = []
        for path in reversed(self._existing()):
            file = self._open(path)
            if file is None:
                continue
            older = file.last_lines(tail - len(lines))
            lines = older + lines
            if self._file is None:
                self._file = file  # the newest: reading goes on after what was taken from it
            else:
                file.stream.close()
            if len(lines) >= tail:
                break
        return lines

    def read(self) -> list[bytes]:
        """Return the next whole lines, none when there are none yet."""
        while True:
            if self._file is None:
                self._file = self._open(self._path)
                if self._file is None:
                    return []
            chunk = self._file.stream.read(READ_BYTES)
            if chunk:
                *lines, self._rest = (self._rest + chunk).split(b"\n")
                if len(self._rest) > ENTRY_BYTES_MAX:
                    self._rest = b""  # no entry of ours
                if lines:
                    return lines
            elif not self._next_file():
                return []

    def close(self) -> None:
        if self._file is not None:
            self._file.stream.close()

    def _existing(self) -> list[str]:
        """Return the files of the set, oldest first."""
        rotated = []
        for number in range(1, FILES_MAX):
            names = (f"{self._path}.{number}", f"{self._path}.{number}.gz")
            found = next((name for name in names if os.path.exists(name)), None)
            if found is None:
                break
            rotated.append(found)
        return [*reversed(rotated), *([self._path] if os.path.exists(self._path) else [])]

    def _next_file(self) -> bool:
        """Step to the file after the one at hand, when that was rotated; False at the newest."""
        assert self._file is not None
        files = self._existing()
        place = self._file.place_in(files)
        if files and place == len(files) - 1:
            # files_max of 1 starts over in the same file.
            if self._file.started_over:
                self._file.stream.seek(0)
                return True
            return False
        if not files:
            return False
        # Rotated away altogether: the oldest is the next that there is.
        fresh = self._open(files[place + 1])
        if fresh is None:
            return False
        self._file.stream.close()
        self._file, self._rest = fresh, b""
        return True

    @staticmethod
    def _open(path: str) -> _File | None:
        try:
            return _File(path)
        except FileNotFoundError:
            return None


def last_lines(file: BinaryIO, count: int) -> list[bytes]:
    """Return the last *count* whole lines, oldest first, and leave *file* after them."""
    start = end = file.seek(0, os.SEEK_END)
    text = b""
    while start > 0 and text.count(b"\n") <= count:
        step = min(READ_BYTES, start)
        start -= step
        file.seek(start)
        text = file.read(step) + text
    *lines, unended = text.split(b"\n")
    file.seek(end - len(unended))
    return lines[-count:] if count > 0 else []
