"""The log of one container in Docker's json-file format, rotated and bounded.

Stdlib only and sync: the zygote writes with it. A line of the file is

    {"log":"text\\n","stream":"stdout","time":"2026-01-02T03:04:05.123456789Z"}

A line of output longer than LINE_BYTES_MAX is cut into entries without "\\n", as Docker does.
Files are `<path>`, `<path>.1` (older), … up to *files_max*; older ones may be compressed, as
`<path>.1.gz`, by a child of the zygote (compressing.py), for the zygote itself must not be busy for
so long. Nothing is fsynced: a log is not worth the wear of an SD card. A disk that refuses a write
loses the entry, not the container.
"""

from __future__ import annotations

import os
import time
from json.encoder import encode_basestring

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Docker's own bound (daemon/logger/copier.go).
LINE_BYTES_MAX = 16 * 1024
#: Bytes gathered before a write, so that a flood costs few of them.
BATCH_BYTES = 64 * 1024


class JsonFileLog:
    """Append entries to *path*; keep at most *files_max* files of about *file_bytes_max*.

    *compress* is called with this log after each rotation, when there is something to compress.
    """

    def __init__(
        self,
        path: str,
        file_bytes_max: int,
        files_max: int,
        compress: Callable[[JsonFileLog], None] | None = None,
    ) -> None:
        self.path = path
        self.file_bytes_max = file_bytes_max
        self.files_max = files_max
        self._compress = compress
        self.dropped = 0  # entries that the disk refused
        self._fd = self._open()
        self._size = os.fstat(self._fd).st_size
        # A write that was cut off by a crash left a line without its end: do not glue to it.
        self._torn = self._size > 0 and not self._ends_with_newline()

    def append(self, stream: str, lines: list[bytes], at_ns: int) -> None:
        """Write *lines* as entries of *stream* at *at_ns*, Unix time in nanoseconds."""
        tail = f',"stream":"{stream}","time":"{timestamp(at_ns)}"}}\n'
        batch: list[str] = []
        size = 0
        for line in lines:
            entry = f'{{"log":{encode_basestring(line.decode(errors="replace"))}{tail}'
            batch.append(entry)
            size += len(entry)
            if size >= BATCH_BYTES:
                self._write(batch)
                batch, size = [], 0
        if batch:
            self._write(batch)

    def close(self) -> None:
        os.close(self._fd)

    def _write(self, batch: list[str]) -> None:
        data = "".join(batch).encode()
        if self._torn:
            data = b"\n" + data
        try:
            written = os.write(self._fd, data)
        except OSError:
            self.dropped += len(batch)
            return
        self._torn = written < len(data)
        self._size += written
        if self._size >= self.file_bytes_max:
            self._rotate()

    def _rotate(self) -> None:
        try:
            if self.files_max == 1:
                os.ftruncate(self._fd, 0)
            else:
                for number in range(self.files_max - 1, 0, -1):
                    self._shift(number)
                fd = self._open()
                os.close(self._fd)
                self._fd = fd
                if self._compress is not None:
                    self._compress(self)
        except OSError:
            # No room for a new file: start over in this one rather than grow for ever.
            os.ftruncate(self._fd, 0)
        self._size = os.fstat(self._fd).st_size
        self._torn = False

    def _shift(self, number: int) -> None:
        """Make the file before *number* the one of that number, which goes."""
        newer = self.path if number == 1 else f"{self.path}.{number - 1}"
        older = f"{self.path}.{number}"
        for suffix, other in (("", ".gz"), (".gz", "")):
            if os.path.exists(newer + suffix):
                os.replace(newer + suffix, older + suffix)
                if os.path.exists(older + other):
                    os.unlink(older + other)

    def _open(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _ends_with_newline(self) -> bool:
        return os.pread(self._fd, 1, self._size - 1) == b"\n"


class LineSplitter:
    """Cut a stream of bytes into lines of at most LINE_BYTES_MAX; the rest waits for its end."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that *chunk* completes, each with its "\\n" or cut at the bound."""
        lines = _split(self._rest + chunk)
        self._rest = b""
        if lines and not lines[-1].endswith(b"\n"):
            self._rest = lines.pop()
        if len(self._rest) > LINE_BYTES_MAX or any(len(line) > LINE_BYTES_MAX for line in lines):
            lines = [piece for line in lines for piece in _pieces(line)]
            *cut, self._rest = _pieces(self._rest) if self._rest else [b""]
            lines += cut
        return lines

    def finish(self) -> list[bytes]:
        """Return the last, unended line, if any: the stream is over."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


def timestamp(at_ns: int) -> str:
    """Return Unix time *at_ns* in nanoseconds as RFC 3339, always with nine decimals."""
    seconds, nanoseconds = divmod(at_ns, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanoseconds:09d}Z"


def _split(data: bytes) -> list[bytes]:
    lines = [line + b"\n" for line in data.split(b"\n")]
    last = lines.pop()[:-1]
    return [*lines, last] if last else lines


def _pieces(line: bytes) -> Iterator[bytes]:
    """Cut *line* at the bound, never inside a character of UTF-8."""
    while len(line) > LINE_BYTES_MAX:
        end = LINE_BYTES_MAX
        while end > LINE_BYTES_MAX - 3 and line[end] & 0xC0 == 0x80:
            end -= 1
        yield line[:end]
        line = line[end:]
    yield line
