"""What the zygote remembers of each of its children, and of each process that it adopted.

Stdlib only. `Container` is the record; the functions read what the kernel tells of a process.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import struct

from swarmlet.runtime.journal import JournalLog
from swarmlet.runtime.logfile import JsonFileLog
from swarmlet.runtime.pump import Poller, Pump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LIFE_FILE, EXIT_FILE = "life.json", "exit.json"
CREATING, CREATED, RUNNING, EXITED = "creating", "created", "running", "exited"
# <linux/pidfd.h>: PIDFD_GET_INFO with the first 64 bytes of struct pidfd_info.
PIDFD_GET_INFO = 3 << 30 | 64 << 16 | 0xFF << 8 | 11
PIDFD_INFO_EXIT = 8


class Container:
    """One process of a container: its init, or an exec when *exec_id* is not empty."""

    def __init__(self, container_id: str, exec_id: str = "") -> None:
        self.id = container_id
        self.exec_id = exec_id
        self.status = CREATING
        self.pid = 0
        self.pidfd = -1
        self.start_ticks = 0
        self.started_at = 0.0
        self.adopted = False
        self.goes_on = False  # it launches right after its birth
        self.channel: socket.socket | None = None
        self.master = -1
        self.stdin = -1
        self.log: JsonFileLog | JournalLog | None = None
        self.pumps: dict[str, Pump] = {}
        self.folder = ""  # where starts and exits are noted; "" for nowhere
        self.wait_status: int | None = None
        self.exited_at = 0.0
        self.forgotten = False
        self.reply: Reply | None = None  # who waits for "created" or "running"

    @property
    def key(self) -> tuple[str, str]:
        return self.id, self.exec_id

    def facts(self) -> dict[str, Any]:
        """Return what the daemon wants to know, as a JSON value."""
        return {
            "id": self.id,
            "exec": self.exec_id,
            "status": self.status,
            "pid": self.pid,
            "start_ticks": self.start_ticks,
            "started_at": self.started_at,
            "wait_status": self.wait_status,
            "exited_at": self.exited_at,
        }

    def open_streams(
        self,
        poller: Poller,
        request: dict[str, Any],
        compress: Callable[[JsonFileLog], None] | None = None,
    ) -> None:
        """Open the log and the container's FIFOs; both ends of each, so that none is ever alone."""
        self.folder = request["folder"]
        if request["log"]:
            parameters = dict(request["log"])
            if parameters.pop("driver") == "journald":
                self.log = JournalLog(**parameters)
            else:
                compressed = parameters.pop("compress")
                self.log = JsonFileLog(**parameters, compress=compress if compressed else None)
        if request["stdin"]:
            self.stdin = os.open(request["stdin"], os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        if not request["terminal"]:
            for stream in ("stdout", "stderr"):
                fd = os.open(request[stream], os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                self.pumps[stream] = Pump(poller, fd, stream, self.log)

    def take_terminal(self, poller: Poller, master: int) -> None:
        self.master = master
        self.pumps["stdout"] = Pump(poller, os.dup(master), "stdout", self.log)

    def start(self, at: float) -> None:
        """Note that the command runs, on disk as well: if all of us die, the next ones find it."""
        self.status, self.started_at = RUNNING, at
        if self.folder:
            life = {"pid": self.pid, "start_ticks": self.start_ticks, "started_at": at}
            leave(f"{self.folder}/{LIFE_FILE}", life)

    def finish(self, wait_status: int | None, at: float) -> None:
        """Note the exit, take the last output, leave the exit on disk for a later daemon."""
        self.status, self.wait_status, self.exited_at = EXITED, wait_status, at
        for pump in self.pumps.values():
            pump.finish()
        if self.folder:
            leave(f"{self.folder}/{EXIT_FILE}", {"wait_status": wait_status, "at": at})

    def close(self, poller: Poller) -> None:
        """Let go of every descriptor."""
        for pump in self.pumps.values():
            pump.close()
        self.pumps.clear()
        if self.channel is not None:
            poller.forget(self.channel.fileno())
            self.channel.close()
            self.channel = None
        for fd in (self.pidfd, self.master, self.stdin):
            if fd >= 0:
                poller.forget(fd)
                os.close(fd)
        self.pidfd = self.master = self.stdin = -1
        if self.log is not None:
            self.log.close()
            self.log = None


class Reply:
    """A request that is not answered yet: to whom, and with which number."""

    def __init__(self, connection: int, sequence: int) -> None:
        self.connection = connection
        self.sequence = sequence


def start_ticks(pid: int) -> int:
    """Return when *pid* started, in clock ticks since boot: with the pid, its identity."""
    return int(read_stat(pid)[19])


def adopted_status(pid: int, pidfd: int) -> int | None:
    """Return the wait status of a dead process that is not our child; None while unknown.

    A zombie shows it in /proc; after its parent reaped it, kernels from 6.15 tell it by pidfd.
    """
    try:
        fields = read_stat(pid)
        if fields[0] == "Z":
            return int(fields[49])
    except OSError:
        pass
    info = bytearray(64)
    struct.pack_into("Q", info, 0, PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, info, True)
    except OSError:
        return None
    (mask,) = struct.unpack_from("Q", info)
    if mask & PIDFD_INFO_EXIT:
        (status,) = struct.unpack_from("i", info, 60)
        return int(status)
    return None


def is_dead(pidfd: int) -> bool:
    """Whether the process of *pidfd* has ended (pidfd_open(2): it is then readable)."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def read_stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name, which may hold blanks: state first."""
    fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, 4096)
    finally:
        os.close(fd)
    return text[text.rindex(b")") + 2 :].decode().split()


def leave(path: str, value: dict[str, Any]) -> None:
    """Write *value* where the next daemon finds it; a disk that refuses is borne."""
    try:
        fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, json.dumps(value).encode())
        finally:
            os.close(fd)
        os.replace(f"{path}.new", path)
    except OSError:
        pass
