"""A process that `run` or `exec` waits for: its signals, its terminal, its exit code. Sync."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from swarmlet.runtime import syscalls

RELAY_BYTES = 64 * 1024
#: Signals that are not for the process: they are about this one.
NOT_FORWARDED = {signal.SIGCHLD, signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGURG}
#: A shell's code of a process that a signal has ended.
SIGNALLED = 128


def wait(pid: int, pidfd: int, master: int = -1) -> int:
    """Forward signals to the child *pid* until it ends; return its code, as a shell shows it."""

    def forward(number: int, _: FrameType | None) -> None:
        if number == signal.SIGWINCH and master >= 0:
            copy_size(0, master)
            return
        with contextlib.suppress(ProcessLookupError):
            syscalls.pidfd_send_signal(pidfd, number)

    for number in signal.valid_signals() - NOT_FORWARDED:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, forward)
    with raw_terminal(master):
        if master >= 0:
            relay(master, pidfd)
        _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return SIGNALLED - code if code < 0 else code


def relay(master: int, pidfd: int) -> None:
    """Copy between the caller's terminal and *master* until the process has ended."""
    poll = select.poll()
    for fd in (0, master, pidfd):
        poll.register(fd, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if master in ready and not _copy(master, 1):
            return
        if 0 in ready and not _copy(0, master):
            poll.unregister(0)
        if pidfd in ready and master not in ready:
            return


def _copy(source: int, target: int) -> bool:
    try:
        data = memoryview(os.read(source, RELAY_BYTES))
    except OSError as failure:
        if failure.errno == errno.EIO:  # the last user of a terminal has closed it
            return False
        raise
    if not data:
        return False
    while data:
        data = data[os.write(target, data) :]
    return True


def copy_size(source: int, target: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.ioctl(target, termios.TIOCSWINSZ, fcntl.ioctl(source, termios.TIOCGWINSZ, bytes(8)))


@contextmanager
def raw_terminal(master: int) -> Iterator[None]:
    """Have what is typed go to the container as it is, if both ends are terminals."""
    if master < 0 or not os.isatty(0):
        yield
        return
    before: list[Any] = termios.tcgetattr(0)
    tty.setraw(0)
    copy_size(0, master)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
