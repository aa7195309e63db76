"""From a container's output to its log and to whoever is attached.

Stdlib only: the zygote runs it. A `Pump` owns one stream. It reads at most READ_BYTES a turn, so a
flood takes its turn like everyone else. Who is attached gets a copy through a pipe; while a copy
waits for a slow reader the container's output waits too (that is what a terminal does), but only
for STALL_SECONDS: then the reader is cut off, and a container never hangs for want of one.
"""

from __future__ import annotations

import os
import select
import time

from swarmlet.runtime.logfile import LineSplitter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmlet.runtime.journal import JournalLog
    from swarmlet.runtime.logfile import JsonFileLog

    Handler = Callable[[int], None]

#: The capacity of a pipe; one turn empties a full one.
READ_BYTES = 64 * 1024
#: Seconds for which an attached reader may take nothing.
STALL_SECONDS = 10.0
#: Chunks taken after the container's end: a process that it left behind (PID namespace of the
#: host) may write for ever.
FINISH_READS_MAX = 32
#: Readers of one stream at a time.
READERS_MAX = 16


class Poller:
    """epoll, with one handler for each descriptor."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        if fd in self._handlers:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def forget(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def turn(self, timeout: float | None) -> None:
        """Wait for events and handle each; a handler may forget others that are due."""
        for fd, events in self._epoll.poll(timeout):
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(events)


class _Reader:
    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.waiting = b""
        self.since = 0.0


class Pump:
    """Read *fd*, log what comes as *stream*, copy it to the attached readers."""

    def __init__(
        self, poller: Poller, fd: int, stream: str, log: JsonFileLog | JournalLog | None
    ) -> None:
        self.fd = fd
        self.stream = stream
        self._poller = poller
        self._log = log
        self._splitter = LineSplitter()
        self._readers: list[_Reader] = []
        self._ended = False
        os.set_blocking(fd, False)
        self._resume()

    def attach(self, fd: int) -> None:
        """Copy what comes from now on to the pipe *fd*, which this pump closes at the end."""
        if len(self._readers) >= READERS_MAX:
            os.close(fd)
            raise OSError(f"more than {READERS_MAX} readers are attached to {self.stream}")
        os.set_blocking(fd, False)
        self._readers.append(_Reader(fd))

    def finish(self) -> None:
        """Take what is left in the pipe, end the log's last line, let the readers go."""
        for _ in range(FINISH_READS_MAX):
            if not self._read():
                break
        self._ended = True
        self._poller.forget(self.fd)
        if self._log is not None:
            self._log.append(self.stream, self._splitter.finish(), time.time_ns())
        for reader in list(self._readers):
            if not reader.waiting:
                self._drop(reader)

    def close(self) -> None:
        """Let go of everything now."""
        self._poller.forget(self.fd)
        os.close(self.fd)
        for reader in list(self._readers):
            self._drop(reader)

    @property
    def blocked(self) -> bool:
        """Whether a reader has not taken what it was sent."""
        return any(reader.waiting for reader in self._readers)

    def drop_stalled(self, now: float) -> None:
        for reader in list(self._readers):
            if reader.waiting and now - reader.since > STALL_SECONDS:
                self._drop(reader)
        self._resume()

    def _resume(self) -> None:
        if not self._ended and not self.blocked:
            self._poller.watch(self.fd, select.EPOLLIN, self._on_readable)

    def _on_readable(self, events: int) -> None:
        if not self._read() and events & (select.EPOLLHUP | select.EPOLLERR):
            # A terminal whose last user is gone: nothing will come, and HUP would not stop.
            self._poller.forget(self.fd)

    def _read(self) -> bool:
        """Move one chunk; False when there is none."""
        try:
            chunk = os.read(self.fd, READ_BYTES)
        except OSError:  # EAGAIN: empty; EIO: a terminal without a user
            return False
        if not chunk:
            return False
        if self._log is not None:
            self._log.append(self.stream, self._splitter.feed(chunk), time.time_ns())
        for reader in list(self._readers):
            self._send(reader, chunk)
        if self.blocked:
            self._poller.forget(self.fd)
        return True

    def _send(self, reader: _Reader, chunk: bytes) -> None:
        if reader.waiting:
            reader.waiting += chunk
            return
        try:
            sent = os.write(reader.fd, chunk)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(reader)
            return
        reader.waiting = chunk[sent:]
        if reader.waiting:
            reader.since = time.monotonic()
            self._poller.watch(reader.fd, select.EPOLLOUT, lambda _: self._flush(reader))

    def _flush(self, reader: _Reader) -> None:
        try:
            sent = os.write(reader.fd, reader.waiting)
        except BlockingIOError:
            return
        except OSError:
            self._drop(reader)
        else:
            reader.waiting = reader.waiting[sent:]
            reader.since = time.monotonic()
            if not reader.waiting:
                self._poller.forget(reader.fd)
                if self._ended:
                    self._drop(reader)
        self._resume()

    def _drop(self, reader: _Reader) -> None:
        self._poller.forget(reader.fd)
        os.close(reader.fd)
        self._readers.remove(reader)
