"""What /proc and /sys/fs/cgroup say about processes, mounts and cgroups. Sync; never a lock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: ioctl_nsfs(2): a file descriptor of the namespace that owns this one.
NS_GET_PARENT = 0xB702
#: Levels of PID namespaces that the kernel allows (MAX_PID_NS_LEVEL).
PID_NAMESPACES_MAX = 32


@dataclass(frozen=True, slots=True)
class Process:
    pid: int  # as this process sees it
    command: str
    nested: bool  # in a PID namespace below the host's: a container's process

    def __str__(self) -> str:
        return f"process {self.pid} {self.command}"


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def start_time(pid: int) -> int | None:
    """When *pid* began, in clock ticks since boot; None if there is no such process.

    With the pid it names a process for good: pids come back, pairs do not.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # proc_pid_stat(5): field 3 is the state
    return None if fields[0] in "ZX" else int(fields[19])


def command_of(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return b" ".join(words).decode(errors="replace").strip() or "[no command]"
    except OSError:
        return "[gone]"


def children_of(pid: int) -> list[int]:
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def namespace(pid: int, kind: str) -> int | None:
    """The inode number of a namespace: it names the namespace as long as it lives."""
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino
    except OSError:
        return None


def _is_below(pid: int, ancestor: int) -> bool:
    """Whether the PID namespace of *pid* lies below the one with inode *ancestor*."""
    try:
        descriptor = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        for _ in range(PID_NAMESPACES_MAX):
            try:
                parent = fcntl.ioctl(descriptor, NS_GET_PARENT)
            except OSError:  # EPERM: above our own
                return False
            os.close(descriptor)
            descriptor = parent
            if os.fstat(descriptor).st_ino == ancestor:
                return True
        return False
    finally:
        os.close(descriptor)


def processes_in(pid_namespace: int) -> list[Process]:
    """Every process in the PID namespace with this inode and in those below it."""
    mine = namespace(os.getpid(), "pid")
    found = []
    for pid in pids():
        inode = namespace(pid, "pid")
        if inode is None or inode == mine:
            continue
        if inode == pid_namespace or _is_below(pid, pid_namespace):
            found.append(Process(pid, command_of(pid), nested=inode != pid_namespace))
    return found


def environment_has(pid: int, setting: str) -> bool:
    try:
        return setting.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def mounts(pid: int | str = "self") -> list[str]:
    """The mount points that *pid* sees, in the order of mounting."""
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return [line.split(" ")[4].encode().decode("unicode_escape") for line in lines]


# cgroups: version 1, version 2 and the mixture alike are folders below some mounts.


def cgroup_roots() -> list[Path]:
    """Where the cgroup hierarchies of this machine are mounted."""
    roots = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ")[0] in ("cgroup", "cgroup2"):
            roots.append(Path(before.split(" ")[4]))
    return sorted(set(roots))


def cgroups(parent: str) -> Iterator[Path]:
    """Every cgroup below and including *parent* in every hierarchy, children before parents."""
    for root in cgroup_roots():
        for folder, _, _ in os.walk(root / parent, topdown=False):
            yield Path(folder)


def thaw(parent: str) -> None:
    """Let frozen processes below *parent* run: on cgroup v1 a frozen one cannot even be killed."""
    for folder in cgroups(parent):
        for file, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            with contextlib.suppress(OSError):
                (folder / file).write_text(value)


def remove_cgroups(parent: str) -> list[Path]:
    """Remove *parent* and all below it; return what could not be removed yet (EBUSY)."""
    left = []
    for folder in cgroups(parent):
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise
            left.append(folder)
    return left


def in_cgroup(pid: int, parent: str) -> bool:
    """Whether *pid* is in *parent* or below it, in any hierarchy."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return False
    return any(f"{line.split(':', 2)[2]}/".startswith(f"/{parent}/") for line in lines)


def pid_in(pid: int, member: int) -> int:
    """The number that *pid* has in the PID namespace of *member*."""
    return _numbers(pid)[len(_numbers(member)) - 1]


def _numbers(pid: int) -> list[int]:
    """The numbers of *pid* in its PID namespaces, from ours down to its own."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return [int(number) for number in line.split()[1:]]
    raise ProcessLookupError(pid)
