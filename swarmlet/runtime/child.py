"""What the child does between clone3 and execve.

It runs in a clone of the single-threaded zygote, so it imports nothing (every module it needs is
loaded before the fork: after pivot_root there is no library to load from), logs nothing and
touches no descriptor of the zygote but its own. One method for each step of steps.py, of the same
name and parameters; the order is the plan's. Every call goes through `kernel`, so that a test can
record it.

The conversation with the zygote, over one SEQPACKET socket (both ends close-on-exec):

| from | message | then |
| --- | --- | --- |
| zygote | `mapped` | the user namespace has its ids: the birth begins (without one, at once) |
| child | `master` with a descriptor | the zygote keeps it: the terminal's other end |
| child | `ready` | birth is done: the container is "created" |
| zygote | `go` | the child launches; end of file instead: it exits |
| child | `{"step": 7, "errno": 2, "text": …, "path": …}` | that step failed: the child exits |
| child | end of file after `go` | execve succeeded: the container is "running" |
"""

from __future__ import annotations

import os
import posixpath
import stat
import struct
import termios

from swarmlet.runtime import syscalls
from swarmlet.runtime.launcher import EXIT_FAILED, Launcher

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing costs the zygote half a megabyte
    from typing import Any

MAPPED, READY, GO, MASTER = b"mapped", b"ready", b"go", b"master"

# <linux/if.h>, <linux/sockios.h>, <asm-generic/ioctls.h>
SIOCSIFFLAGS = 0x8914
IFF_UP_RUNNING = 0x41
TIOCSPTLCK = 0x40045431
TIOCGPTN = 0x80045430


class Child(Launcher):
    """The steps of the birth, from the clone to "created"."""

    # Birth.

    def join_cgroup(self, path: str) -> None:
        # "tasks", not "cgroup.procs": moving one thread, oneself, takes no lock of the whole kernel
        # (kernel/cgroup/cgroup.c, cgroup_procs_write_start), and this process has one thread. The
        # other file took 13 ms at the median on a loaded machine, this one a tenth.
        self._write_file(f"{path}/tasks", b"0")

    def enter_container(self, flags: int) -> None:
        self.kernel.setns(self.pidfd, flags)

    def unshare(self, flags: int) -> None:
        self.kernel.unshare(flags)

    def new_session(self, keyring: bool) -> None:
        self.kernel.setsid()
        if keyring:
            self.kernel.join_session_keyring()

    def open_stdio(self, stdin: str, stdout: str, stderr: str) -> None:
        # Read-write: a FIFO that the container itself can read never breaks with SIGPIPE while
        # the zygote is away, it only fills.
        self.streams = [
            self.kernel.open(stdin or "/dev/null", os.O_RDONLY | os.O_CLOEXEC),
            self.kernel.open(stdout, os.O_RDWR | os.O_CLOEXEC),
            self.kernel.open(stderr, os.O_RDWR | os.O_CLOEXEC),
        ]

    def set_propagation(self, flags: int) -> None:
        self.kernel.mount("", "/", "", flags, "")

    def enter_folder(self, path: str) -> None:
        self.kernel.chdir(path)

    def become_root(self) -> None:
        self.kernel.setgroups([])
        self.kernel.setresgid(0, 0, 0)
        self.kernel.setresuid(0, 0, 0)

    def clone_tree(self, slot: str, source: str, recursive: bool) -> None:
        flags = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC
        flags |= syscalls.AT_RECURSIVE if recursive else 0
        self.trees[slot] = self.kernel.open_tree(source, flags)

    def set_tree(self, slot: str, attributes: int, propagation: int, recursive: bool) -> None:
        self.kernel.mount_setattr(
            self.trees[slot],
            "",
            attr_set=attributes,
            propagation=propagation,
            recursive=recursive,
        )

    def make_tree(self, slot: str, fstype: str, attributes: int) -> None:
        self.trees[slot] = self.kernel.make_file_system(fstype, attributes)

    def place_tree(self, slot: str, target: str) -> None:
        fd = self.trees.pop(slot)
        self.kernel.move_mount(fd, target)
        self.kernel.close(fd)

    def attach_tree(self, slot: str, target: str) -> None:
        fd = self.trees.pop(slot)
        # Links resolve inside the root, also a dangling /etc/resolv.conf.
        target = self.kernel.realpath(target)
        if stat.S_ISDIR(self.kernel.stat(fd).st_mode):
            self.ensure_directory(target, 0o755)
        else:
            self._ensure_file(target)
        self.kernel.move_mount(fd, target)
        self.kernel.close(fd)

    def mount(self, source: str, target: str, fstype: str, flags: int, data: str) -> None:
        self.kernel.mount(source, target, fstype, flags, data)

    def mount_overlay(
        self, layers: list[str], upper: str, work: str, target: str, user_xattrs: bool
    ) -> None:
        # By descriptor: mount(2) takes one page of options, in which 128 layer paths do not fit,
        # and a path may hold the ':' and ',' that overlayfs splits at.
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        folders = [self.kernel.open(path, flags) for path in (upper, work, *reversed(layers))]
        up, at_work, *lowers = [f"/proc/self/fd/{fd}" for fd in folders]
        data = f"lowerdir={':'.join(lowers)},upperdir={up},workdir={at_work}"
        data += ",userxattr" if user_xattrs else ""
        self.kernel.mount("overlay", target, "overlay", 0, data)
        for fd in folders:
            self.kernel.close(fd)

    def pivot_root(self, root: str) -> None:
        self.kernel.chdir(root)
        # pivot_root(2), NOTES: "." twice stacks the old root on the new one, and needs no folder.
        self.kernel.pivot_root(".", ".")
        self.kernel.umount(".", syscalls.MNT_DETACH)
        self.kernel.chdir("/")
        self.kernel.umask(0)

    def ensure_directory(self, path: str, mode: int) -> None:
        try:
            self.kernel.stat(path)
        except FileNotFoundError:
            path = self.kernel.realpath(path)  # through a dangling link
            parent = posixpath.dirname(path)
            if parent != path:
                self.ensure_directory(parent, 0o755)
            try:
                self.kernel.mkdir(path, mode)
            except FileExistsError:
                return
            self.kernel.chmod(path, mode)

    def make_folder(self, path: str, mode: int) -> None:
        self.kernel.mkdir(path, mode)

    def make_node(self, path: str, mode: int, major: int, minor: int, uid: int, gid: int) -> None:
        self.kernel.mknod(path, mode, os.makedev(major, minor))
        if uid or gid:
            self.kernel.chown(path, uid, gid)

    def make_link(self, path: str, target: str) -> None:
        self.kernel.symlink(target, path)

    def write_secret(self, path: str, content: bytes, uid: int, gid: int, mode: int) -> None:
        fd = self.kernel.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        left = memoryview(content)
        while left:
            left = left[self.kernel.write(fd, left) :]
        self.kernel.close(fd)
        self.kernel.chown(path, uid, gid)
        self.kernel.chmod(path, mode)

    def set_sysctl(self, name: str, value: str) -> None:
        self._write_file(f"/proc/sys/{name.replace('.', '/')}", value.encode())

    def set_oom_score(self, value: int) -> None:
        path = "/proc/self/oom_score_adj"
        fd = self.kernel.open(path, os.O_RDONLY | os.O_CLOEXEC)
        current = self.kernel.read(fd, 16)
        self.kernel.close(fd)
        # Lowering needs CAP_SYS_RESOURCE; writing what is there already must not.
        if current.strip() != str(value).encode():
            self._write_file(path, str(value).encode())

    def mask_paths(self, paths: list[str]) -> None:
        for path in paths:
            kind = self._kind(path)
            if kind == stat.S_IFDIR:
                self.kernel.mount("tmpfs", path, "tmpfs", syscalls.MS_RDONLY, "size=4k")
            elif kind:
                self.kernel.mount("/dev/null", path, "", syscalls.MS_BIND, "")

    def make_readonly(self, paths: list[str]) -> None:
        for path in paths:
            if self._kind(path):
                self.kernel.mount(path, path, "", syscalls.MS_BIND | syscalls.MS_REC, "")
                self.kernel.mount_setattr(
                    syscalls.AT_FDCWD,
                    path,
                    attr_set=syscalls.MOUNT_ATTR_RDONLY,
                    recursive=True,
                )

    def make_root_readonly(self) -> None:
        self.kernel.mount_setattr(syscalls.AT_FDCWD, "/", attr_set=syscalls.MOUNT_ATTR_RDONLY)

    def set_hostname(self, name: str) -> None:
        self.kernel.sethostname(name)

    def set_domainname(self, name: str) -> None:
        self.kernel.setdomainname(name)

    def loopback_up(self) -> None:
        request = struct.pack("16sh22x", b"lo", IFF_UP_RUNNING)
        interface = self.kernel.internet_socket()
        self.kernel.ioctl(interface.fileno(), SIOCSIFFLAGS, request)
        interface.close()

    def open_terminal(self, rows: int, columns: int, console: bool) -> None:
        flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
        master = self.kernel.open("/dev/ptmx", flags)
        self.kernel.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
        (number,) = struct.unpack("i", self.kernel.ioctl(master, TIOCGPTN, struct.pack("i", 0)))
        path = f"/dev/pts/{number}"
        self.terminal = self.kernel.open(path, flags)
        size = struct.pack("HHHH", rows, columns, 0, 0)
        self.kernel.ioctl(self.terminal, termios.TIOCSWINSZ, size)
        self.streams = [self.terminal] * 3
        if console:
            self._ensure_file("/dev/console")
            self.kernel.mount(path, "/dev/console", "", syscalls.MS_BIND, "")
        self.kernel.send_fds(self.channel, [MASTER], [master])
        self.kernel.close(master)

    def wait_for_start(self) -> None:
        """Say that the birth is done, and return when the command is to be executed."""
        self.channel.send(READY)
        if self.channel.recv(16) != GO:
            os._exit(EXIT_FAILED)

    # What steps share.

    def _ensure_file(self, path: str) -> None:
        try:
            self.kernel.stat(path)
        except FileNotFoundError:
            self.ensure_directory(posixpath.dirname(path), 0o755)
            self.kernel.close(
                self.kernel.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)
            )

    def _kind(self, path: str) -> int:
        try:
            return stat.S_IFMT(self.kernel.stat(path).st_mode)
        except OSError:
            return 0


def run(child: Child, plan: dict[str, Any]) -> None:
    """Be the child: birth, "ready", wait for "go", launch. Never returns.

    With `plan["wait"]` false (an exec) there is no "go" to wait for, with `plan["mapped"]` false no
    "mapped".
    """
    birth, launch = plan["birth"], plan["launch"]
    if plan["mapped"] and child.channel.recv(16) != MAPPED:
        os._exit(EXIT_FAILED)
    child.perform(birth)
    if plan["wait"]:
        child.wait_for_start()
    child.perform(launch, first=len(birth))
    os._exit(EXIT_FAILED)
