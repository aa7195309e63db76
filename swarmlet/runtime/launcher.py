"""The last steps before execve, the same for a container and an exec, and the kernel they ask.

Stdlib only, and nothing is imported late: it runs in a clone of the zygote (child.py says what that
means). `Launcher` has the steps of `Plan.launch`; child.py adds those of the birth.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import posixpath
import resource
import signal
import socket
import stat
import struct
import termios

from swarmlet.runtime import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing costs the zygote half a megabyte
    from typing import Any

#: Bytes of /etc/passwd or /etc/group that are read: the image wrote them.
ACCOUNTS_BYTES_MAX = 1 << 20
#: Of them in one read: a larger buffer would be mapped and unmapped each time.
READ_BYTES = 32 << 10
#: Groups that a user may be in (NGROUPS_MAX is 65536; nobody has that many).
GROUPS_MAX = 1024
#: The exit code of a child that failed before execve; shells use it for "not found".
EXIT_FAILED = 127

#: What an init waits for. SIGKILL and SIGSTOP cannot be, and the kernel leaves them out.
ALL_SIGNALS = frozenset(range(1, signal.NSIG)) - {32, 33}  # the C library's own

#: <linux/elf.h> EM_…
ELF_MACHINES = {
    3: "i386",
    8: "mips",
    21: "ppc64",
    22: "s390x",
    40: "arm",
    62: "x86_64",
    183: "aarch64",
    243: "riscv64",
    258: "loongarch64",
}


class LaunchError(OSError):
    """The command cannot be run; the text is for the user."""


class Linux:
    """The calls that steps need. In tests a recorder takes its place."""

    open = staticmethod(os.open)
    close = staticmethod(os.close)
    write = staticmethod(os.write)
    read = staticmethod(os.read)
    stat = staticmethod(os.stat)
    mkdir = staticmethod(os.mkdir)
    mknod = staticmethod(os.mknod)
    symlink = staticmethod(os.symlink)
    chmod = staticmethod(os.chmod)
    chown = staticmethod(os.chown)
    fchown = staticmethod(os.fchown)
    chdir = staticmethod(os.chdir)
    getcwd = staticmethod(os.getcwd)
    umask = staticmethod(os.umask)
    setsid = staticmethod(os.setsid)
    dup2 = staticmethod(os.dup2)
    setgroups = staticmethod(os.setgroups)
    setresgid = staticmethod(os.setresgid)
    setresuid = staticmethod(os.setresuid)
    access = staticmethod(os.access)
    execve = staticmethod(os.execve)
    fork = staticmethod(os.fork)  # noqa: TID251 (a child of the zygote, which has one thread)
    getpid = staticmethod(os.getpid)
    setpgid = staticmethod(os.setpgid)
    tcsetpgrp = staticmethod(os.tcsetpgrp)
    pthread_sigmask = staticmethod(signal.pthread_sigmask)
    setrlimit = staticmethod(resource.setrlimit)
    send_fds = staticmethod(socket.send_fds)
    unshare = staticmethod(syscalls.unshare)
    setns = staticmethod(syscalls.setns)
    mount = staticmethod(syscalls.mount)
    umount = staticmethod(syscalls.umount)
    pivot_root = staticmethod(syscalls.pivot_root)
    open_tree = staticmethod(syscalls.open_tree)
    move_mount = staticmethod(syscalls.move_mount)
    mount_setattr = staticmethod(syscalls.mount_setattr)
    make_file_system = staticmethod(syscalls.make_file_system)
    sethostname = staticmethod(syscalls.sethostname)
    setdomainname = staticmethod(syscalls.setdomainname)
    prctl = staticmethod(syscalls.prctl)
    capset = staticmethod(syscalls.capset)
    load_seccomp = staticmethod(syscalls.load_seccomp)
    join_session_keyring = staticmethod(syscalls.join_session_keyring)
    close_range = staticmethod(syscalls.close_range)

    @staticmethod
    def realpath(path: str) -> str:
        return posixpath.realpath(path)

    @staticmethod
    def ioctl(fd: int, request: int, argument: bytes) -> bytes:
        return fcntl.ioctl(fd, request, argument)

    @staticmethod
    def take_terminal(fd: int) -> None:
        fcntl.ioctl(fd, termios.TIOCSCTTY, 0)

    @staticmethod
    def internet_socket() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)


class Launcher:
    """The state that steps of one birth share. *pidfd* is the container to enter, for an exec."""

    def __init__(
        self,
        kernel: Linux,
        channel: socket.socket,
        *,
        streams: list[int] | None = None,
        trees: dict[str, int] | None = None,
        pidfd: int = -1,
    ) -> None:
        self.kernel = kernel
        self.channel = channel
        self.pidfd = pidfd
        self.streams = streams or []  # descriptors for 0, 1, 2
        self.terminal = -1  # the slave, when there is a terminal
        self.trees = trees or {}  # detached mounts, by slot
        self.uid = self.gid = 0
        self.groups: list[int] = []
        self.home = "/"
        self.kept_above = 3  # from this descriptor on nothing is left to the command

    def perform(self, steps: list[Any], *, first: int = 0) -> None:
        """Do *steps* in order; a failure is reported with its index and ends the process."""
        for index, (name, parameters) in enumerate(steps, first):
            try:
                getattr(self, name)(**parameters)
            except OSError as failure:
                path = failure.filename if isinstance(failure.filename, str) else ""
                text = failure.strerror or os.strerror(failure.errno or 0)
                self.report(index, failure.errno or 0, text, path)
            except BaseException as bug:
                self.report(index, 0, f"{type(bug).__name__}: {bug}", "")

    def report(self, step: int, code: int, text: str, path: str) -> None:
        message = {"step": step, "errno": code, "text": text[:2048], "path": path[:1024]}
        self.channel.send(json.dumps(message).encode())
        os._exit(EXIT_FAILED)

    # Launch.

    def set_rlimit(self, type: str, soft: int, hard: int) -> None:  # noqa: A002
        try:
            self.kernel.setrlimit(getattr(resource, type), (soft, hard))
        except (ValueError, PermissionError) as failure:
            # CPython: "not allowed to raise maximum limit" is a ValueError.
            raise OSError(errno.EPERM, f"setrlimit {type} {soft}:{hard}: {failure}") from None

    def resolve_user(self, user: str, group: str, additional_groups: list[str]) -> None:
        accounts = self._accounts("/etc/passwd", 7)
        groups = self._accounts("/etc/group", 4)
        self._resolve_identity(user, accounts)
        if group:
            self.gid = self._resolve_group(group, groups)
        else:
            # As initgroups(3): the groups that name the user as a member.
            names = {entry[0] for entry in accounts if entry[2] == str(self.uid)}
            members = (entry for entry in groups if names & set(entry[3].split(",")))
            self.groups = [int(entry[2]) for entry in members if entry[2].isdecimal()]
        self.groups += [self._resolve_group(name, groups) for name in additional_groups]
        self.groups = list(dict.fromkeys(self.groups))[:GROUPS_MAX]

    def take_stdio(self) -> None:
        for fd in dict.fromkeys(self.streams[1:] if self.terminal < 0 else self.streams):
            if self.terminal < 0 and stat.S_ISCHR(self.kernel.stat(fd).st_mode):
                continue  # the host's /dev/null or a terminal of the caller's is not the user's
            # So that the user may open /dev/stdout again; a file or socket given by an exec's
            # caller may refuse, and then that is the caller's own wish.
            try:
                self.kernel.fchown(fd, self.uid, -1 if self.terminal >= 0 else self.gid)
            except OSError as failure:
                if failure.errno not in (errno.EPERM, errno.EROFS, errno.EINVAL):
                    raise
        if self.terminal >= 0:
            self.kernel.take_terminal(self.terminal)
        for number, fd in enumerate(self.streams):
            self.kernel.dup2(fd, number, inheritable=True)

    def change_directory(self, path: str) -> None:
        self.kernel.chdir(path)
        # CVE-2024-21626: a working directory that is outside of the root has no path here.
        if not self.kernel.getcwd().startswith("/"):
            raise OSError(errno.EACCES, "the working directory lies outside of the root", path)

    def drop_bounding(self, keep: int, last: int) -> None:
        for number in range(last + 1):
            if not keep >> number & 1:
                self.kernel.prctl(syscalls.PR_CAPBSET_DROP, number)

    def become_user(self, umask: int) -> None:
        self.kernel.umask(umask)
        # Capabilities are taken away by set_capabilities, not by the change of user.
        self.kernel.prctl(syscalls.PR_SET_KEEPCAPS, 1)
        self.kernel.setgroups(self.groups)
        self.kernel.setresgid(self.gid, self.gid, self.gid)
        self.kernel.setresuid(self.uid, self.uid, self.uid)

    def set_capabilities(
        self, effective: int, permitted: int, inheritable: int, ambient: list[int]
    ) -> None:
        self.kernel.capset(effective, permitted, inheritable)
        self.kernel.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
        for number in ambient:
            self.kernel.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, number)

    def set_no_new_privileges(self) -> None:
        self.kernel.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)

    def load_seccomp(self, program: bytes) -> None:
        self.kernel.load_seccomp(program)

    def become_init(self) -> None:
        # Blocked before the fork: none is lost, and the init takes each when it waits for one.
        self.kernel.pthread_sigmask(signal.SIG_SETMASK, ALL_SIGNALS)
        pid = self.kernel.fork()
        if pid:
            be_init(pid)
        if self.terminal >= 0:
            # A terminal's ^C is for the command, which else would get it twice.
            self.kernel.setpgid(0, 0)
            self.kernel.tcsetpgrp(self.terminal, self.kernel.getpid())
        self.kernel.pthread_sigmask(signal.SIG_SETMASK, ())

    def execute(self, args: list[str], env: list[str]) -> None:
        variables = dict(entry.split("=", 1) for entry in env)
        variables.setdefault("HOME", self.home)
        command = args[0]
        path = self._find(command, variables.get("PATH", ""))
        # CVE-2024-21626 and whatever comes next: nothing of the zygote's is open after execve.
        self.kernel.close_range(self.kept_above, 0xFFFFFFFF, syscalls.CLOSE_RANGE_CLOEXEC)
        try:
            self.kernel.execve(path, args, variables)
        except OSError as failure:
            text = _explain(self.kernel, command, path, failure.errno or 0)
            raise LaunchError(failure.errno, text, path) from None

    # What steps share.

    def _write_file(self, path: str, value: bytes) -> None:
        fd = self.kernel.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            self.kernel.write(fd, value)
        except OSError as failure:
            failure.filename = path
            raise
        self.kernel.close(fd)

    def _accounts(self, path: str, fields: int) -> list[list[str]]:
        """Return the lines of an account file of the image, split; none when it has none."""
        try:
            fd = self.kernel.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return []
        try:
            if not stat.S_ISREG(self.kernel.stat(fd).st_mode):
                return []
            text = b""
            while len(text) < ACCOUNTS_BYTES_MAX and (chunk := self.kernel.read(fd, READ_BYTES)):
                text += chunk
        finally:
            self.kernel.close(fd)
        lines = (line.split(":") for line in text.decode(errors="replace").splitlines())
        return [line for line in lines if len(line) == fields]

    def _resolve_identity(self, user: str, accounts: list[list[str]]) -> None:
        entry = next((line for line in accounts if line[0] == user), None)
        if entry is None and user.isdecimal():
            entry = next((line for line in accounts if line[2] == user), None)
            if entry is None:
                self.uid = int(user)
                return
        if entry is None or not (entry[2].isdecimal() and entry[3].isdecimal()):
            raise LaunchError(errno.ENOENT, f'user "{user}" not found in the image', "/etc/passwd")
        self.uid, self.gid, self.home = int(entry[2]), int(entry[3]), entry[5] or "/"

    def _resolve_group(self, group: str, groups: list[list[str]]) -> int:
        entry = next((line for line in groups if line[0] == group), None)
        if entry is not None and entry[2].isdecimal():
            return int(entry[2])
        if group.isdecimal():
            return int(group)
        raise LaunchError(errno.ENOENT, f'group "{group}" not found in the image', "/etc/group")

    def _find(self, command: str, search: str) -> str:
        """Return the path of *command*, as execvp(3) would find it."""
        if "/" in command:
            return command
        denied = False
        for folder in search.split(":"):
            path = posixpath.join(folder or ".", command)
            try:
                mode = self.kernel.stat(path).st_mode
            except OSError:
                continue
            if stat.S_ISREG(mode) and self.kernel.access(path, os.X_OK):
                return path
            denied = True
        if denied:
            text = f'command "{command}" is in the image, but this user may not execute it'
            raise LaunchError(errno.EACCES, text, command)
        raise LaunchError(errno.ENOENT, f'command "{command}" not found in the image', command)


def be_init(command: int) -> None:
    """Be the first process of a container until *command* has ended. Never returns.

    As tini and catatonit: a signal that this process gets is the command's, and what has lost its
    parent in the container is reaped here.
    """
    try:
        # The channel among them: the end of file says that the command was executed.
        syscalls.close_range(3, 0xFFFFFFFF, 0)
        syscalls.set_process_name("init")
        while True:
            number = signal.sigwait(ALL_SIGNALS)
            if number != signal.SIGCHLD:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(command, number)
                continue
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == command:
                    code = os.waitstatus_to_exitcode(status)
                    # A signal's name does not outlive an init: a shell's code tells it.
                    os._exit(128 - code if code < 0 else code)
                if pid == 0:
                    break
    finally:
        os._exit(EXIT_FAILED)


def _explain(kernel: Linux, command: str, path: str, code: int) -> str:
    """Say why execve(2) refused *path*, from what the file itself shows."""
    try:
        fd = kernel.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        head = kernel.read(fd, 256)
        kernel.close(fd)
    except OSError:
        head = b""
    if code == errno.ENOENT:
        if head.startswith(b"#!"):
            interpreter = head[2:].split(b"\n")[0].split()[:1]
            name = interpreter[0].decode(errors="replace") if interpreter else ""
            return f'command "{command}" needs {name}, which is not in the image'
        if head.startswith(b"\x7fELF"):
            return f'command "{command}" needs a dynamic loader that is not in the image'
        return f'command "{command}" not found in the image'
    if code == errno.ENOEXEC:
        if head.startswith(b"\x7fELF") and len(head) >= 20:
            # elf(5): e_machine is at byte 18, in the byte order that byte 5 tells.
            (number,) = struct.unpack_from(">H" if head[5] == 2 else "<H", head, 18)
            built_for, here = ELF_MACHINES.get(number, f"machine {number}"), os.uname().machine
            if built_for != here:
                return f'command "{command}" is built for {built_for}, this host is {here}'
        return f'command "{command}" is no program that this kernel can execute (no #! line?)'
    if code == errno.EACCES:
        return f'command "{command}" is not executable, or this user may not execute it'
    return f'command "{command}" cannot be executed: {os.strerror(code)}'
