"""The steps of a container's life that happen on the host: files and control groups.

Sync: call it in one worker thread. Preparing is idempotent where the kernel is; removing tolerates
what is gone already, so a removal that was cut off is simply done again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import threading
import time
from collections.abc import Callable, Sequence
from typing import assert_never

from swarmlet.runtime import cgroups, syscalls
from swarmlet.runtime.steps import (
    AllowDevices,
    HoldTree,
    HostStep,
    KillCgroup,
    MakeCgroup,
    MakeDirectory,
    MakeFifo,
    MakeHostNode,
    PruneCgroups,
    RemoveCgroup,
    RemoveTree,
    SetLimit,
    WriteText,
)

#: Seconds that killed processes get to leave their group.
EMPTY_TIMEOUT = 10.0
#: Another container's removal may take an empty parent away between two mkdirs.
MKDIR_ATTEMPTS_MAX = 5
#: Loaded device programs that are kept: nearly all containers have the same one, and the kernel
#: takes half a millisecond to verify it.
PROGRAMS_MAX = 16
_programs: dict[bytes, int] = {}
_programs_lock = threading.Lock()


class StepFailure(Exception):
    """A step on the host failed; its cause is the OSError."""

    def __init__(self, step: HostStep, failure: OSError) -> None:
        super().__init__(step, failure)
        self.step = step
        self.failure = failure


def execute(steps: Sequence[HostStep]) -> list[int]:
    """Do *steps* in order; raise StepFailure at the first that the kernel refuses.

    Return a descriptor for each HoldTree, which the caller closes.
    """
    trees: list[int] = []
    for step in steps:
        try:
            _execute(step, trees)
        except OSError as failure:
            for fd in trees:
                os.close(fd)
            raise StepFailure(step, failure) from failure
    return trees


def _execute(step: HostStep, trees: list[int]) -> None:
    match step:
        case MakeDirectory(path, mode):
            make_directory(path, mode)
        case MakeFifo(path, mode):
            os.mkfifo(path)
            os.chmod(path, mode)
        case MakeHostNode():
            _make_node(step)
        case HoldTree():
            trees.append(_hold_tree(step))
        case WriteText(path, text):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            with open(fd, "w") as file:
                os.fchmod(fd, 0o644)
                file.write(text)
        case MakeCgroup():
            _make_cgroup(step)
        case SetLimit(path, value):
            cgroups.write_control(path, value)
        case AllowDevices(cgroup, program):
            _allow_devices(cgroup, program)
        case KillCgroup(path):
            _kill_cgroup(path)
        case RemoveCgroup(path):
            _remove_cgroup(path)
        case PruneCgroups(root, name):
            prune_cgroups(root, name)
        case RemoveTree(path):
            remove_tree(path)
        case _:
            assert_never(step)


def _make_node(step: MakeHostNode) -> None:
    os.mknod(step.path, step.mode, os.makedev(step.major, step.minor))
    os.chown(step.path, step.uid, step.gid)
    os.chmod(step.path, stat.S_IMODE(step.mode))


def _hold_tree(step: HoldTree) -> int:
    flags = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC
    fd = syscalls.open_tree(step.source, flags | (syscalls.AT_RECURSIVE if step.recursive else 0))
    try:
        syscalls.mount_setattr(
            fd,
            "",
            attr_set=step.attributes,
            propagation=step.propagation,
            recursive=step.recursive,
        )
    except BaseException:
        os.close(fd)
        raise
    return fd


def make_directory(path: str, mode: int = 0o700) -> None:
    """Make *path* and its missing parents; an existing folder is left as it is."""
    missing = []
    path = folder = os.path.abspath(path)
    while not os.path.exists(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        os.chmod(folder, mode if folder == path else 0o711)


def _make_cgroup(step: MakeCgroup) -> None:
    for attempt in range(MKDIR_ATTEMPTS_MAX):
        try:
            folder = step.root
            for name in step.name.split("/"):
                if step.controllers:
                    _enable(folder, step.controllers)
                parent, folder = folder, f"{folder}/{name}"
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder)
                for file in step.inherit:
                    if not cgroups.read_control(f"{folder}/{file}").strip():
                        inherited = cgroups.read_control(f"{parent}/{file}")
                        cgroups.write_control(f"{folder}/{file}", inherited)
            return
        except FileNotFoundError:
            if attempt == MKDIR_ATTEMPTS_MAX - 1:
                raise


def _enable(folder: str, controllers: tuple[str, ...]) -> None:
    file = f"{folder}/cgroup.subtree_control"
    missing = set(controllers) - set(cgroups.read_control(file).split())
    if missing:
        cgroups.write_control(file, " ".join(f"+{name}" for name in sorted(missing)))


def _allow_devices(cgroup: str, program: bytes) -> None:
    cgroup_fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _programs_lock:
            if program not in _programs:
                if len(_programs) >= PROGRAMS_MAX:
                    os.close(_programs.pop(next(iter(_programs))))
                _programs[program] = syscalls.bpf_load_device_program(program)
            syscalls.bpf_attach_device_program(_programs[program], cgroup_fd)
    finally:
        os.close(cgroup_fd)


def _kill_cgroup(path: str) -> None:
    try:
        events = os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not _populated(events):
            return
        with open(f"{path}/cgroup.kill", "w") as file:
            file.write("1")
        # A frozen group is killed as well, but whoever joined it later would stay frozen.
        with open(f"{path}/cgroup.freeze", "w") as file:
            file.write("0")
        _wait_empty(path, events)
    finally:
        os.close(events)


def _wait_empty(path: str, events: int) -> None:
    poll = select.poll()
    poll.register(events, select.POLLPRI)
    deadline = time.monotonic() + EMPTY_TIMEOUT
    while _populated(events):
        left = deadline - time.monotonic()
        if left <= 0:
            text = "processes of the container do not die (uninterruptible in the kernel?)"
            raise OSError(errno.EBUSY, text, path)
        poll.poll(left * 1000)


def _populated(events: int) -> bool:
    return b"populated 1" in os.pread(events, 256, 0)


def _remove_cgroup(path: str) -> None:
    """Remove the group and those that the container made below it, deepest first."""
    deadline = time.monotonic() + EMPTY_TIMEOUT
    folders = [folder for folder, _, _ in os.walk(path, topdown=False)]
    for folder in folders:
        while True:
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                pass
            except OSError as failure:
                # v1 shows the last process gone a moment after cgroup2 does.
                if failure.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.001)  # noqa: TID251 (a worker thread)
                continue
            break


def prune_cgroups(root: str, name: str) -> None:
    """Remove the empty groups of the path *name* below *root*, as far up as they are empty."""
    while name:
        try:
            os.rmdir(f"{root}/{name}")
        except OSError:
            return
        name = name.rpartition("/")[0]


def remove_tree(path: str) -> None:
    """Remove the folder *path* with all that is in it; nothing when it is gone.

    A container can make a tree deeper than a path may be long or a program may recurse. So folders
    that are not empty are moved up to the top one by one and emptied there: no recursion, no path
    longer than two names, and no link is followed.
    """
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    serial = 0
    try:
        while names := os.listdir(top):
            for name in names:
                if not _remove_plain(top, name):
                    serial = _empty(top, name, serial)
                    os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(path)


def _remove_plain(folder: int, name: str) -> bool:
    """Remove a file or an empty folder; False for a folder with something in it."""
    mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    remove: Callable[..., None] = os.rmdir if stat.S_ISDIR(mode) else os.unlink
    try:
        remove(name, dir_fd=folder)
    except OSError as failure:
        if failure.errno != errno.ENOTEMPTY:
            raise
        return False
    return True


def _empty(top: int, name: str, serial: int) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    folder = os.open(name, flags, dir_fd=top)
    try:
        for child in os.listdir(folder):
            if not _remove_plain(folder, child):
                # A name that cannot be there already: a name in it is at most 255 bytes.
                serial += 1
                os.rename(child, f".removing-{serial}", src_dir_fd=folder, dst_dir_fd=top)
    finally:
        os.close(folder)
    return serial
