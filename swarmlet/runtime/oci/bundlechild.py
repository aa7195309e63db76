"""The child of a bundle: what it does beside the steps that all containers have.

As child.py: it imports nothing after the fork, and there is one method for each step of steps.py.
"created" is not the end of a conversation with a zygote: whoever makes the container goes away. So
the child waits at a listening socket that it inherited, and `swarmlet-oci start` connects to it:

| from | message | then |
| --- | --- | --- |
| child | `hooks` | namespaces are there: the runtime calls prestart and createRuntime |
| runtime | the state, JSON | the child goes on, and gives it to hooks of its own |
| child | `ready` | birth is done: the maker leaves |
| start | connects, `go` | the child launches |
| child | a failure, or end of file | that step failed; or execve succeeded |
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import select
import shutil
import socket
import stat
import time

from swarmlet.runtime import syscalls
from swarmlet.runtime.child import GO, READY, Child
from swarmlet.runtime.launcher import EXIT_FAILED, LaunchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from swarmlet.runtime.oci.steps import HookCall

HOOKS = b"hooks"
#: Bytes of a state that the runtime passes (annotations are the engine's, and may be long).
STATE_BYTES_MAX = 1 << 18


class HookFailure(OSError):
    """A hook ended badly; the text is for the user."""


class BundleChild(Child):
    """*listener* is where `start` connects; -1 for a process that launches at once.

    Descriptors below *kept_above* are left to the command.
    """

    def __init__(self, *arguments: Any, listener: int, kept_above: int, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.listener = listener
        self.kept_above = kept_above
        self.state = b"{}"

    def synchronize(self) -> None:
        self.channel.send(HOOKS)
        self.state = self.channel.recv(STATE_BYTES_MAX)
        if not self.state:
            os._exit(EXIT_FAILED)

    def call_hooks(self, kind: str, hooks: list[HookCall]) -> None:
        for hook in hooks:
            call_hook(kind, hook, self.state)

    def ensure_node(self, path: str, mode: int, major: int, minor: int, uid: int, gid: int) -> None:
        self.ensure_directory(posixpath.dirname(path), 0o755)
        try:
            self.make_node(path, mode, major, minor, uid, gid)
        except FileExistsError:
            return
        self.kernel.chmod(path, stat.S_IMODE(mode))

    def ensure_link(self, path: str, target: str) -> None:
        try:
            self.make_link(path, target)
        except FileExistsError:
            return

    def mount_copy(self, target: str, flags: int, data: str) -> None:
        flags_of_tmpfs = flags & ~syscalls.MS_RDONLY
        if not os.path.exists(target):
            # Nothing to copy, and no mode to keep: the kernel's own lets all write.
            self.ensure_directory(target, 0o755)
            self.mount("tmpfs", target, "tmpfs", flags, data)
            return
        before = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        found = os.fstat(before)
        self.mount("tmpfs", target, "tmpfs", flags_of_tmpfs, data)
        # By the working directory, since there may be no /proc yet to name a descriptor by.
        os.fchdir(before)
        os.close(before)
        shutil.copytree(".", target, symlinks=True, dirs_exist_ok=True)
        self.kernel.chdir("/")
        if "mode=" not in data:
            self.kernel.chmod(target, stat.S_IMODE(found.st_mode))
        if "uid=" not in data:
            self.kernel.chown(target, found.st_uid, found.st_gid)
        if flags != flags_of_tmpfs:
            self.mount("", target, "", flags | syscalls.MS_REMOUNT, data)

    def check_command(self, args: list[str], env: list[str]) -> None:
        variables = dict(entry.split("=", 1) for entry in env)
        command = args[0]
        path = self._find(command, variables.get("PATH", ""))
        try:
            mode = self.kernel.stat(path).st_mode
        except FileNotFoundError:
            text = f'command "{command}" not found in the image'
            raise LaunchError(errno.ENOENT, text, path) from None
        except OSError:
            return  # what the user of the container may see, root of another may not
        if not (stat.S_ISREG(mode) and self.kernel.access(path, os.X_OK)):
            raise LaunchError(errno.EACCES, f'command "{command}" is not executable', path)

    def wait_for_start(self) -> None:
        self.channel.send(READY)
        with socket.socket(fileno=self.listener) as listener:
            while True:
                channel, _ = listener.accept()
                # A start that was interrupted has said nothing: the next one may.
                if channel.recv(16) == GO:
                    break
                channel.close()
        self.channel.close()
        self.channel = channel


def call_hook(kind: str, hook: HookCall, state: bytes) -> None:
    """Run *hook* with *state* on its standard input; raise HookFailure unless it exits with 0."""
    path, arguments, environment, seconds = hook
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        variables = dict(entry.split("=", 1) for entry in environment)
        actions = [(os.POSIX_SPAWN_DUP2, reader, 0)]
        try:
            pid = os.posix_spawn(path, arguments or (path,), variables, file_actions=actions)
        except OSError as failure:
            text = f"{kind} hook {path}: {failure.strerror}"
            raise HookFailure(failure.errno, text, path) from None
        os.close(reader)
        reader = -1
        with contextlib.suppress(BrokenPipeError):  # it may not want to know
            # A pipe takes it all at once, or the hook reads meanwhile.
            os.write(writer, state)
        os.close(writer)
        writer = -1
        _await(kind, path, pid, seconds)
    finally:
        for fd in (reader, writer):
            if fd >= 0:
                os.close(fd)


def _await(kind: str, path: str, pid: int, seconds: float) -> None:
    pidfd = syscalls.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    deadline = time.monotonic() + seconds
    while not poll.poll((deadline - time.monotonic()) * 1000 if seconds else None):
        if time.monotonic() >= deadline:
            syscalls.pidfd_send_signal(pidfd, 9)
            os.waitpid(pid, 0)
            os.close(pidfd)
            text = f"{kind} hook {path}: took more than {seconds:g} s"
            raise HookFailure(errno.ETIMEDOUT, text, path)
    os.close(pidfd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        how = f"exit {code}" if code > 0 else f"killed by signal {-code}"
        raise HookFailure(errno.EIO, f"{kind} hook {path}: {how}", path)
