"""Compress a rotated log in a process of its own, and put the result in its place.

Stdlib only. The zygote clones a child for each file, reaps it, and only then renames: so of the
files' names one thread decides, also when the log was rotated again meanwhile. What is made is one
gzip member (RFC 1952). A reader that is in the middle of the file finds its place in it again by
how it begins (logs.py): the number of an inode is soon another file's.
"""

from __future__ import annotations

import os
import zlib

from swarmlet.runtime import syscalls
from swarmlet.runtime.logfile import JsonFileLog

CHUNK_BYTES = 256 * 1024
#: gzip's own default is 6; 3 costs half as much for a tenth more.
LEVEL = 3
#: What `nice` a child has: logs may wait.
NICENESS = 10


class Compressions:
    """The files that are being compressed, by the pid of the child that does."""

    def __init__(self) -> None:
        self._running: dict[int, tuple[JsonFileLog, int]] = {}

    def start(self, log: JsonFileLog) -> None:
        """Compress the oldest plain file of *log* but the one that is written; one at a time."""
        if any(other is log for other, _ in self._running.values()):
            return  # with its end comes the next
        paths = (f"{log.path}.{number}" for number in range(log.files_max - 1, 0, -1))
        oldest = next((path for path in paths if os.path.exists(path)), "")
        if not oldest:
            return
        try:
            source = os.open(oldest, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            pid, pidfd = syscalls.clone3(0)
        except OSError:
            os.close(source)  # no process is to be had: the file stays as it is
            return
        if pid == 0:
            _compress(source, f"{log.path}.new")
        os.close(pidfd)
        # Kept open: its inode is this file's as long as it is, also when it was rotated away.
        self._running[pid] = (log, source)

    def finish(self, pid: int, wait_status: int) -> bool:
        """Put what *pid* has made in its place, and go on; False if that was no compression."""
        found = self._running.pop(pid, None)
        if found is None:
            return False
        log, source = found
        made = f"{log.path}.new"
        place = _place(log, os.fstat(source).st_ino) if wait_status == 0 else ""
        os.close(source)
        try:
            if place:
                os.replace(made, f"{place}.gz")
                os.unlink(place)
            else:
                os.unlink(made)  # failed, or the file was rotated away
        except FileNotFoundError:
            return True  # the container was removed
        if wait_status == 0:
            self.start(log)
        return True


def _place(log: JsonFileLog, inode: int) -> str:
    for number in range(1, log.files_max):
        path = f"{log.path}.{number}"
        if os.path.exists(path) and os.stat(path).st_ino == inode:
            return path
    return ""


def _compress(source: int, target: str) -> None:
    """Be the child: write *target*, and end. Never returns."""
    try:
        os.nice(NICENESS)
        out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        write_member(source, out)
        os._exit(0)
    finally:
        os._exit(1)


def write_member(source: int, out: int) -> None:
    """Write what *source* holds to *out* as one gzip member."""
    deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)  # with gzip's header
    while chunk := os.read(source, CHUNK_BYTES):
        _write(out, deflate.compress(chunk))
    _write(out, deflate.flush())


def _write(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
