"""A terminal, or pipes, joined with the streams of a container's process.

Sync, one loop: what is typed goes to the daemon, what the process writes comes out, until the
stream ends or the keys that detach are typed. Nothing waits for a slow reader longer than it must:
what the daemon does not take yet is held back, and so is the reading of more.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from swarmlet.cli.base import Failure
from swarmlet.cli.frames import STDERR
from swarmlet.cli.parsing import parse_keys

READ_BYTES = 64 * 1024
HEAD_BYTES = 8
#: Signals that go to the container instead of ending the client (--sig-proxy).
PROXIED = ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2")


class Detached(Exception):
    """The keys that let go of the container were typed."""


class Duplex:
    """Owns the connection; run() returns at the stream's end. *framed*: without a terminal."""

    def __init__(
        self,
        connection: socket.socket,
        leftover: bytes,
        *,
        framed: bool,
        stdin: bool,
        keys: str = "",
    ) -> None:
        self._connection = connection
        self._framed = framed
        self._keys = KeyScan(parse_keys(keys)) if stdin and not framed else None
        self._stdin = sys.stdin.fileno() if stdin else -1
        self._unsent = bytearray()
        self._received = bytearray()
        self._ending = False
        self._leftover = leftover

    def run(self) -> None:
        """Raises Detached."""
        self._connection.setblocking(False)
        with self._connection, selectors.PollSelector() as selector:
            selector.register(self._connection, selectors.EVENT_READ)
            if self._stdin >= 0:
                selector.register(self._stdin, selectors.EVENT_READ)
            self._write_out(self._leftover)
            while True:
                for key, events in selector.select():
                    if key.fd == self._stdin:
                        self._read_in(selector)
                        continue
                    if events & selectors.EVENT_READ and not self._read_out():
                        return
                self._flush(selector)

    def _read_in(self, selector: selectors.BaseSelector) -> None:
        try:
            data = os.read(self._stdin, READ_BYTES)
        except OSError:
            data = b""  # the terminal is gone
        if data and self._keys is not None:
            data = self._keys.feed(data)
            if self._keys.found:
                # What was typed before the keys is the container's still.
                self._connection.setblocking(True)
                with suppress(OSError):
                    self._connection.sendall(self._unsent + data)
                raise Detached
        elif not data:
            selector.unregister(self._stdin)
            self._stdin = -1
            self._ending = True
        self._unsent += data

    def _read_out(self) -> bool:
        try:
            data = self._connection.recv(READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._write_out(data)
        return bool(data)

    def _flush(self, selector: selectors.BaseSelector) -> None:
        with suppress(BlockingIOError):
            try:
                while self._unsent:
                    del self._unsent[: self._connection.send(self._unsent)]
            except (BrokenPipeError, ConnectionResetError):
                self._unsent.clear()  # it reads no more; what it wrote is still to come
        if self._ending and not self._unsent:
            self._ending = False
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_WR)
        read, write = selectors.EVENT_READ, selectors.EVENT_WRITE
        selector.modify(self._connection, read | write if self._unsent else read)
        if self._stdin >= 0:
            wanted = len(self._unsent) < READ_BYTES
            is_watched = self._stdin in selector.get_map()
            if wanted and not is_watched:
                selector.register(self._stdin, read)
            elif is_watched and not wanted:
                selector.unregister(self._stdin)

    def _write_out(self, data: bytes) -> None:
        if not self._framed:
            _write(sys.stdout.fileno(), data)
            return
        self._received += data
        while len(self._received) >= HEAD_BYTES:
            size = int.from_bytes(self._received[4:HEAD_BYTES], "big")
            if len(self._received) < HEAD_BYTES + size:
                return
            out = sys.stderr if self._received[0] == STDERR else sys.stdout
            _write(out.fileno(), bytes(self._received[HEAD_BYTES : HEAD_BYTES + size]))
            del self._received[: HEAD_BYTES + size]


class KeyScan:
    """Finds a sequence of keys in what is typed, and holds back what may be its beginning."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""
        self.found = False

    def feed(self, data: bytes) -> bytes:
        """Return what is to be sent."""
        out = bytearray()
        for byte in data:
            self._held += bytes((byte,))
            while self._held and not self._keys.startswith(self._held):
                out.append(self._held[0])
                self._held = self._held[1:]
            if self._held == self._keys:
                self.found = True
                break
        return bytes(out)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


@contextmanager
def raw_terminal(resize: Callable[[int, int], Any]) -> Iterator[None]:
    """Every key is the container's, and so is the window's size; afterwards all is as it was."""
    import termios
    import tty

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def tell(*_: object) -> None:
        with suppress(Exception):  # a size that did not arrive is no reason to end
            size = os.get_terminal_size(sys.stdout.fileno())
            resize(size.lines, size.columns)

    previous = signal.signal(signal.SIGWINCH, tell)
    try:
        tty.setraw(fd, termios.TCSANOW)  # what was typed already is the container's
        tell()
        yield
    finally:
        signal.signal(signal.SIGWINCH, previous)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextmanager
def proxied_signals(send: Callable[[str], Any]) -> Iterator[None]:
    """Signals to this process go to the container's."""

    def tell(number: int, _: object) -> None:
        with suppress(Exception):  # it has ended: that is what is waited for
            send(signal.Signals(number).name)

    names = [signal.Signals[f"SIG{name}"] for name in PROXIED]
    previous = {number: signal.signal(number, tell) for number in names}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def check_terminal(wants_tty: bool, wants_stdin: bool) -> None:
    """Raises Failure: keys cannot come from a pipe."""
    if wants_tty and wants_stdin and not sys.stdin.isatty():
        raise Failure("the input device is not a TTY: leave out -t, or type at a terminal")
