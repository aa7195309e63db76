"""Standard streams in the daemon's hands: of an exec, and of a container that is attached to.

A `Session` owns its descriptors: close it with `aclose` or `async with`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import termios
from collections.abc import Awaitable, Callable

import trio

from swarmlet.runtime.state import ExitStatus


class TerminalStream(trio.abc.Stream):
    """The master of a pseudo terminal; that its other side is gone is the end of file."""

    def __init__(self, fd: int) -> None:
        self._stream = trio.lowlevel.FdStream(fd)

    def fileno(self) -> int:
        return self._stream.fileno()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            return bytes(await self._stream.receive_some(max_bytes))
        except trio.BrokenResourceError as failure:
            cause = failure.__cause__
            if isinstance(cause, OSError) and cause.errno == errno.EIO:
                return b""
            raise

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


class Session:
    """Streams of a process in a container.

    With a terminal there is no *stderr*, and *stdin* and *stdout* are what a person types and
    sees. *stdin* is None when the process has none.
    """

    def __init__(
        self,
        *,
        stdin: trio.abc.SendStream | None,
        stdout: trio.abc.ReceiveStream,
        stderr: trio.abc.ReceiveStream | None,
        terminal_fd: int = -1,
        pid: int = 0,
        wait: Callable[[], Awaitable[ExitStatus]],
        end_input: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.pid = pid
        self._terminal_fd = terminal_fd
        self._wait = wait
        self._end_input = end_input

    @property
    def terminal(self) -> bool:
        return self._terminal_fd >= 0

    async def wait(self) -> ExitStatus:
        """Wait for the end of the process; its output may still be in the streams."""
        return await self._wait()

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its size; the process gets SIGWINCH. Nothing without a terminal."""
        if self._terminal_fd >= 0:
            size = struct.pack("HHHH", rows, columns, 0, 0)
            fcntl.ioctl(self._terminal_fd, termios.TIOCSWINSZ, size)

    async def close_stdin(self) -> None:
        """Let the process read the end of its input. A terminal goes on: send it b"\\x04"."""
        if self.stdin is not None and not self.terminal:
            await self.stdin.aclose()
            if self._end_input is not None:
                await self._end_input()

    async def aclose(self) -> None:
        """Let go of the streams; the process goes on."""
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                with trio.CancelScope(shield=True):
                    await stream.aclose()

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class Pipes:
    """Three pipes for a process: *theirs* go to the child, *ours* become streams.

    *open_to_all*: the process may be anyone (the root of a user namespace) and opens /dev/stdout.
    """

    def __init__(self, *, open_to_all: bool = False) -> None:
        self.theirs: list[int] = []
        self.ours: list[int] = []
        try:
            for stream in range(3):
                reader, writer = os.pipe2(os.O_CLOEXEC)
                self.theirs.append(reader if stream == 0 else writer)
                self.ours.append(writer if stream == 0 else reader)
                if open_to_all:
                    os.fchmod(reader, 0o666)
        except OSError:
            close_all(self.theirs + self.ours)
            raise

    def close_theirs(self) -> None:
        close_all(self.theirs)
        self.theirs.clear()

    def close(self) -> None:
        self.close_theirs()
        close_all(self.ours)
        self.ours.clear()

    def streams(self) -> list[trio.lowlevel.FdStream]:
        """Return our ends as streams, which own them from now on."""
        streams = [trio.lowlevel.FdStream(fd) for fd in self.ours]
        self.ours.clear()
        return streams


def close_all(descriptors: list[int]) -> None:
    for fd in descriptors:
        os.close(fd)
