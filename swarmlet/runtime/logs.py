"""Reading the json-file logs of containers, also while they are written and rotated.

The zygote writes (logfile.py), the daemon only reads, so the file is the interface: a follower
waits on inotify for the container's state folder and finds its place again by inode after a
rotation.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import BinaryIO

import trio

from swarmlet.runtime import syscalls
from swarmlet.runtime.birth import EXIT_FILE

#: Bytes read from a log file at a time.
READ_BYTES = 64 * 1024
#: A line of a log file: 16 KiB of text, each byte at most six in JSON, and the rest.
ENTRY_BYTES_MAX = 128 * 1024
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


class _Reader:
    """A place in a set of rotated files. Sync: one call at a time, in a worker thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: BinaryIO | None = None
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
            older = last_lines(file, tail - len(lines))
            lines = older + lines
            if self._file is None:
                self._file = file  # the newest: reading goes on after what was taken from it
            else:
                file.close()
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
            chunk = self._file.read(READ_BYTES)
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
            self._file.close()

    def _existing(self) -> list[str]:
        """Return the files of the set, oldest first."""
        numbers = range(1, 1000)
        rotated = []
        for number in numbers:
            if not os.path.exists(f"{self._path}.{number}"):
                break
            rotated.append(f"{self._path}.{number}")
        return [*reversed(rotated), *([self._path] if os.path.exists(self._path) else [])]

    def _next_file(self) -> bool:
        """Step to the file after the one at hand, when that was rotated; False at the newest."""
        assert self._file is not None
        here = os.fstat(self._file.fileno())
        files = self._existing()
        inodes = [os.stat(file).st_ino for file in files if os.path.exists(file)]
        if files and here.st_ino == inodes[-1]:
            # files_max of 1 starts over in the same file.
            if here.st_size < self._file.tell():
                self._file.seek(0)
                return True
            return False
        if not files:
            return False
        # Rotated away altogether: the oldest is the next that there is.
        after = inodes.index(here.st_ino) + 1 if here.st_ino in inodes else 0
        fresh = self._open(files[after])
        if fresh is None:
            return False
        self._file.close()
        self._file, self._rest = fresh, b""
        return True

    @staticmethod
    def _open(path: str) -> BinaryIO | None:
        try:
            return open(path, "rb")
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
