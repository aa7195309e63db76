"""The zygote's part of a birth: the clone, and what only somebody outside can do for the child.

Stdlib only. `bear` clones the zygote into the namespaces and the cgroup2 that the request names;
the child goes on in child.py. Around the clone it steps into namespaces that the child joins, makes
the file systems that show them, and gives a user namespace its ids and its view of the layers.
Nothing here may block: no path of a user is looked up but those of namespaces.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import marshal
import os
import resource
import socket

from swarmlet.runtime import child, syscalls
from swarmlet.runtime.birth import Container, start_ticks
from swarmlet.runtime.launcher import EXIT_FAILED, Linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: <linux/nsfs.h>
NS_GET_USERNS = 0xB701
#: Bytes of a plan that a child will read (secrets of 8 MiB, with room).
PLAN_BYTES_MAX = 16 << 20
#: Seconds for a helper to clone a child in a user namespace that is there already.
HELPER_TIMEOUT = 5.0


def bear(
    container: Container,
    clone: dict[str, Any],
    cgroup: str,
    plan_fd: int,
    *,
    trees: list[int],
    streams: list[int],
    target_pidfd: int = -1,
    kind: Callable[..., child.Child] = child.Child,
    kept: tuple[int, ...] = (),
) -> None:
    """Clone the zygote; the child runs the plan in *plan_fd* and never returns.

    *clone* is plan.Clone as a JSON value, *trees* are the detached mounts that it names. With a
    *target_pidfd* the child is born in the PID namespace of that process. It is of a *kind* and
    inherits the descriptors *kept* as well.
    """
    cgroup_fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    views: list[int] = []
    users = pidfd = -1
    try:
        if clone["user"]:
            users = _open_users(clone)
            map_trees(clone["trees"], trees, users)
        with BornIn(clone["joins"], target_pidfd):
            write_sysctls(clone["sysctls"])
            for _, fstype, attributes in clone["views"]:
                views.append(syscalls.make_file_system(fstype, attributes))
            if users >= 0:
                pid, pidfd = _clone_within(users, clone["flags"], cgroup_fd)
            else:
                pid, pidfd = syscalls.clone3(clone["flags"], cgroup_fd)
            if pid == 0:
                slots = [entry[0] for entry in (*clone["trees"], *clone["views"])]
                named = dict(zip(slots, trees + views, strict=True))
                _be_born(kind, kept, theirs, plan_fd, streams, named, target_pidfd)
        for name, hard in clone["rlimits"]:
            raise_limit(pid, getattr(resource, name), hard)
        if clone["uid_map"]:
            users = _give_ids(pid, clone)
            map_trees(clone["trees"], trees, users)
            ours.send(child.MAPPED)
    except OSError:
        # A child that is there reads the end of its channel, and ends.
        ours.close()
        if pidfd >= 0:
            os.close(pidfd)
        raise
    finally:
        os.close(cgroup_fd)
        theirs.close()
        for fd in (*views, *([users] if users >= 0 else [])):
            os.close(fd)
    ours.setblocking(False)
    container.pid, container.pidfd, container.channel = pid, pidfd, ours
    container.start_ticks = start_ticks(pid)


#: name of a namespace in a spec: its clone flag, its name in /proc/PID/ns.
NAMESPACES = {
    "pid": (syscalls.CLONE_NEWPID, "pid"),
    "network": (syscalls.CLONE_NEWNET, "net"),
    "ipc": (syscalls.CLONE_NEWIPC, "ipc"),
    "uts": (syscalls.CLONE_NEWUTS, "uts"),
    "cgroup": (syscalls.CLONE_NEWCGROUP, "cgroup"),
}


class BornIn:
    """Have what is cloned meanwhile born in the namespaces *joins*, (name, path) each.

    The zygote has the rights over any, a child in a user namespace only over its own. It steps
    over and back; setns(2) changes the PID namespace of children to come only, so the zygote is
    the parent of a process in a namespace that it is not in itself.
    """

    def __init__(self, joins: list[tuple[str, str]], pidfd: int) -> None:
        self._joins = joins
        self._pidfd = pidfd
        self._own: list[tuple[int, int]] = []

    def __enter__(self) -> None:
        try:
            if self._pidfd >= 0:
                self._step("pid", os.dup(self._pidfd))
            for name, path in self._joins:
                self._step(name, _open_namespace(name, path))
        except BaseException:
            self.__exit__()
            raise

    def _step(self, name: str, fd: int) -> None:
        flag, kind = NAMESPACES[name]
        try:
            self._own.append((flag, os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)))
            syscalls.setns(fd, flag)
        finally:
            os.close(fd)

    def __exit__(self, *_: object) -> None:
        try:
            for flag, own in self._own:
                syscalls.setns(own, flag)
                os.close(own)
        except OSError:
            # A zygote in a container's namespace is worse than none: the next one adopts all.
            os._exit(EXIT_FAILED)


def _open_users(clone: dict[str, Any]) -> int:
    if clone["user"] != "network":
        return _open_namespace("user", clone["user"])
    network = _open_namespace("network", dict(clone["joins"])["network"])
    try:
        return owner_of(network)
    finally:
        os.close(network)


def owner_of(namespace: int) -> int:
    """Return a descriptor of the user namespace that owns *namespace* (ioctl_ns(2))."""
    return fcntl.ioctl(namespace, NS_GET_USERNS)


def make_network(uid_map: str, gid_map: str) -> int:
    """Return a descriptor of a new network namespace, owned by a new user namespace."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        pid, pidfd = syscalls.clone3(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNET)
        if pid == 0:
            ours.close()
            theirs.recv(1)  # until the zygote has what it wants
            os._exit(0)
        os.close(pidfd)
        os.close(_give_ids(pid, {"uid_map": uid_map, "gid_map": gid_map}))
        return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        ours.close()
        theirs.close()


def _open_namespace(name: str, path: str) -> int:
    try:
        # Not to block on a FIFO that somebody gave as a namespace.
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as failure:
        text = f"the {name} namespace {path} is gone; connect the container to it again"
        raise OSError(failure.errno, text, path) from None


def write_sysctls(sysctls: dict[str, str]) -> None:
    for name, value in sysctls.items():
        path = f"/proc/sys/{name.replace('.', '/')}"
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        except OSError as failure:
            failure.filename = path
            raise
        finally:
            os.close(fd)


def map_trees(named: list[tuple[str, str]], trees: list[int], users: int) -> None:
    """Show the owners of each detached tree as the user namespace *users* counts them."""
    for (slot, mapped), fd in zip(named, trees, strict=True):
        if mapped == "no":
            continue
        try:
            syscalls.mount_setattr(
                fd, "", attr_set=syscalls.MOUNT_ATTR_IDMAP, recursive=True, userns_fd=users
            )
        except OSError as failure:
            # EINVAL: a file system that has no such thing; EPERM: it is mapped already.
            if failure.errno not in (errno.EINVAL, errno.EPERM):
                raise
            if mapped == "must":
                text = "the file system cannot map owners; use namespaces.user=host"
                raise OSError(failure.errno, text, slot) from None


def raise_limit(pid: int, limit: int, hard: int) -> None:
    """Let *pid* have *hard* later on: in a user namespace it has no right to more than it has."""
    soft, least = resource.prlimit(pid, limit)
    if least != -1 and (hard < 0 or hard > least):
        # Refused, the child's own step says it, with the limit's name.
        with contextlib.suppress(PermissionError, ValueError):
            resource.prlimit(pid, limit, (soft, hard))


def _give_ids(pid: int, clone: dict[str, Any]) -> int:
    """Write the maps of the new user namespace of *pid* and return its descriptor."""
    for kind in ("uid_map", "gid_map"):
        path = f"/proc/{pid}/{kind}"
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, clone[kind].encode())
        except OSError as failure:
            failure.filename = f"{kind} {clone[kind].strip()}"
            raise
        finally:
            os.close(fd)
    return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)


def _clone_within(users: int, flags: int, cgroup_fd: int) -> tuple[int, int]:
    """Clone a child in the user namespace *users*, which has its other namespaces for its own.

    Whoever enters a user namespace cannot come back, so a helper does, and clones a sibling.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    helper, helper_pidfd = syscalls.clone3(0, cgroup_fd)
    if helper == 0:
        try:
            syscalls.setns(users, syscalls.CLONE_NEWUSER)
            pid, pidfd = syscalls.clone3(flags | syscalls.CLONE_PARENT)
            if pid == 0:
                return 0, -1
            socket.send_fds(theirs, [b"0"], [pidfd])
        except OSError as failure:
            theirs.send(str(failure.errno).encode())
        os._exit(0)
    theirs.close()
    os.close(helper_pidfd)
    ours.settimeout(HELPER_TIMEOUT)
    try:
        code, fds, _, _ = socket.recv_fds(ours, 16, 1, socket.MSG_CMSG_CLOEXEC)
    finally:
        ours.close()
    if not fds:
        number = int(code or errno.ECHILD)
        raise OSError(number, f"entering the user namespace: {os.strerror(number)}")
    return pid_of(fds[0]), fds[0]


def pid_of(pidfd: int) -> int:
    """Return the pid behind *pidfd*, as this process counts."""
    with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
        for line in file:
            if line.startswith(b"Pid:"):
                return int(line[4:])
    raise OSError(errno.ESRCH, "the process is gone")


def _be_born(
    kind: Callable[..., child.Child],
    kept: tuple[int, ...],
    theirs: socket.socket,
    plan_fd: int,
    streams: list[int],
    trees: dict[str, int],
    pidfd: int,
) -> None:
    try:
        # A collection would touch, and so copy, every page that is shared with the zygote.
        gc.disable()
        _close_all_but([theirs.fileno(), plan_fd, pidfd, *streams, *trees.values(), *kept])
        size = min(os.fstat(plan_fd).st_size, PLAN_BYTES_MAX)
        plan = marshal.loads(os.pread(plan_fd, size, 0))
        os.close(plan_fd)
        process = kind(Linux(), theirs, streams=streams, trees=trees, pidfd=pidfd)
        child.run(process, plan)
    finally:
        os._exit(EXIT_FAILED)


def _close_all_but(kept: list[int]) -> None:
    """Close every descriptor above 2 that is not in *kept*: a child sees nothing of the others."""
    first = 3
    for fd in sorted(fd for fd in kept if fd >= first):
        if fd > first:
            syscalls.close_range(first, fd - 1, 0)
        first = fd + 1
    syscalls.close_range(first, 0xFFFFFFFF, 0)
