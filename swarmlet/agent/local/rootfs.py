"""A container's root file system, from outside of it, without ever leaving it.

Sync: a view is opened in a thread of its own, which dies with it. Of a running container the view
is the root of its own mount namespace, volumes included, by /proc/<pid>/root. That of a stopped one
is mounted as the runtime would, in a mount namespace that only the thread is in and that ends with
it: no mount of ours can be seen or left anywhere.

Paths are resolved by the kernel below the root (openat2(2), RESOLVE_IN_ROOT): a link of the
container's, however it is made or swapped meanwhile, never leads to a file of the host's
(CVE-2018-15664, CVE-2019-14271: nothing is executed or loaded from the container either).
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from overlay.netns import run_in_thread
from swarmlet.agent.local.owners import HOST_OWNERS, Owners

T = TypeVar("T")

# asm-generic/unistd.h; linux/openat2.h; linux/sched.h; linux/mount.h
SYS_OPENAT2 = 437
RESOLVE_IN_ROOT = 0x10
RESOLVE_NO_XDEV = 0x01
CLONE_NEWNS = 0x00020000
#: linux/prctl.h, linux/securebits.h: a change of user takes no capability away.
PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP = 28, 0x4
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x1, 0x20, 0x1000, 0x4000, 0x40000
PATH_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
READ_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
#: openat2(2): EAGAIN when a rename raced with a "..".
RACES_MAX = 16
COPY_BYTES = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Live:
    """The root of a running container, whose users are *owners*."""

    pid: int
    start_ticks: int
    owners: Owners = HOST_OWNERS


@dataclass(frozen=True, slots=True)
class Bind:
    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """The root of a container that does not run: *layers*, base first, below *upper*.

    Without *upper* it is the image alone, and read-only. *place* is an empty folder to mount at.
    """

    layers: tuple[str, ...]
    place: str
    upper: str = ""
    binds: tuple[Bind, ...] = ()

    @property
    def owners(self) -> Owners:
        return HOST_OWNERS  # on the disk every container's count from 0


View: TypeAlias = Live | Stored


@dataclass(frozen=True, slots=True)
class Subject:
    """A container as far as its files are concerned."""

    view: View
    upper: Path
    layers: tuple[str, ...]  # base first


def look(view: View, work: Callable[[int], T]) -> T:
    """Run *work* with a descriptor of the root of *view*. Blocks.

    Raises:
        OSError: the container is gone, or what *work* raised.
    """
    if isinstance(view, Stored):
        return run_in_thread(lambda: _look_stored(view, work))
    if view.owners.are_hosts:
        return _look_live(view, work)
    return run_in_thread(lambda: _look_as_root_of(view, work))


def _look_live(view: Live, work: Callable[[int], T]) -> T:
    root = _open_live(view)
    try:
        return work(root)
    finally:
        os.close(root)


def _look_as_root_of(view: Live, work: Callable[[int], T]) -> T:
    """In a thread that ends with this call: what it makes is the container's root's.

    Files of nobody whom the container knows could not be made at all (EOVERFLOW).
    """
    bits = ctypes.c_ulong(SECBIT_NO_SETUID_FIXUP)
    _check(_libc.prctl(PR_SET_SECUREBITS, bits, 0, 0, 0), "prctl")
    # Of this thread alone, by the system call's nature. They return the old id and no error.
    _libc.setfsgid(view.owners.first)
    _libc.setfsuid(view.owners.first)
    return _look_live(view, work)


def _open_live(view: Live) -> int:
    try:
        root = os.open(f"/proc/{view.pid}/root", PATH_DIRECTORY)
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, "the container has just stopped") from None
    # The pid may be another's by now: what was opened is the container's only if it is not.
    if _start_ticks(view.pid) != view.start_ticks:
        os.close(root)
        raise ProcessLookupError(errno.ESRCH, "the container has just stopped")
    return root


def _start_ticks(pid: int) -> int:
    """When the process began (proc_pid_stat(5), field 22); 0 if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[19])


def _look_stored(view: Stored, work: Callable[[int], T]) -> T:
    """In a thread that ends with this call, and its mount namespace with it."""
    _check(_libc.unshare(CLONE_NEWNS), "unshare")
    _mount(None, "/", None, MS_REC | MS_PRIVATE, None)
    _mount_root(view)
    root = os.open(view.place, PATH_DIRECTORY)
    try:
        for bind in view.binds:
            _bind(root, bind)
        return work(root)
    finally:
        os.close(root)


def _mount_root(view: Stored) -> None:
    # By descriptor: mount(2) takes one page of options, and a path may hold ':' and ','.
    folders = [os.open(layer, PATH_DIRECTORY) for layer in reversed(view.layers)]
    try:
        lower = ":".join(f"/proc/self/fd/{fd}" for fd in folders)
        if view.upper:
            for path in (view.upper, f"{view.upper}.work"):
                os.makedirs(path, mode=0o755, exist_ok=True)
                folders.append(os.open(path, PATH_DIRECTORY))
            upper, at_work = (f"/proc/self/fd/{fd}" for fd in folders[-2:])
            _mount_overlay(view.place, f"lowerdir={lower},upperdir={upper},workdir={at_work}")
        elif len(folders) == 1:
            # overlayfs wants two; one layer is the root as it is.
            _mount(f"/proc/self/fd/{folders[0]}", view.place, None, MS_BIND, None)
            _mount(None, view.place, None, MS_BIND | MS_REMOUNT | MS_RDONLY, None)
        else:
            _mount_overlay(view.place, f"lowerdir={lower}")
    finally:
        for fd in folders:
            os.close(fd)


def _mount_overlay(place: str, options: str) -> None:
    _mount("overlay", place, "overlay", 0, options)


def _bind(root: int, bind: Bind) -> None:
    try:
        target = open_in(root, bind.target, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        make_folders(root, bind.target)
        target = open_in(root, bind.target, os.O_PATH | os.O_CLOEXEC)
    try:
        path = f"/proc/self/fd/{target}"
        _mount(bind.source, path, None, MS_BIND | MS_REC, None)
    finally:
        os.close(target)
    if bind.read_only:
        with _opened(root, bind.target, os.O_PATH | os.O_CLOEXEC) as target:
            flags = MS_BIND | MS_REMOUNT | MS_RDONLY
            _mount(None, f"/proc/self/fd/{target}", None, flags, None)


# Paths below the root.


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def open_in(root: int, path: str, flags: int, mode: int = 0) -> int:
    """Open *path* as a process would whose root is *root*; the caller closes it. Raises OSError."""
    how = _OpenHow(flags, mode, RESOLVE_IN_ROOT)
    name = os.fsencode(path) or b"."
    for _ in range(RACES_MAX):
        fd = _libc.syscall(SYS_OPENAT2, root, name, ctypes.byref(how), ctypes.sizeof(how))
        if fd >= 0:
            return int(fd)
        code = ctypes.get_errno()
        if code != errno.EAGAIN:
            raise OSError(code, os.strerror(code), path)
    raise OSError(errno.EAGAIN, "the path is being moved about", path)


@contextmanager
def _opened(root: int, path: str, flags: int) -> Iterator[int]:
    fd = open_in(root, path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def parent_of(root: int, path: str) -> Iterator[tuple[int, str]]:
    """Give the folder that *path* is in, its links followed, and the last name as it stands."""
    clean = "/" + "/".join(part for part in path.split("/") if part not in ("", "."))
    head, _, name = clean.rpartition("/")
    if name == "..":
        head, name = clean, "."
    with _opened(root, head or "/", PATH_DIRECTORY) as folder:
        yield folder, name or "."


def make_folders(root: int, path: str, mode: int = 0o755) -> None:
    """Make the folder *path* and those above it that are missing."""
    made = ""
    for part in filter(None, path.split("/")):
        made = f"{made}/{part}"
        try:
            os.close(open_in(root, made, PATH_DIRECTORY))
        except FileNotFoundError:
            with parent_of(root, made) as (folder, name), suppress(FileExistsError):
                os.mkdir(name, mode, dir_fd=folder)


def stat_in(root: int, path: str, *, follow: bool = False) -> tuple[os.stat_result, str]:
    """Return what *path* is, its last link not followed, and where a link leads to."""
    flags = os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    with _opened(root, path, flags) as fd:
        found = os.fstat(fd)
        target = os.readlink("", dir_fd=fd) if stat.S_ISLNK(found.st_mode) else ""
        return found, target


# Copying what an image has at a volume's place.


def fill_volume(view: View, path: str, data: Path) -> None:
    """Copy what is at *path* of *view* into the empty folder *data*, with owners and modes.

    Nothing is done when *data* has something in it, or *path* is no folder. Raises OSError.
    """
    if any(data.iterdir()):
        return

    def copy(root: int) -> None:
        try:
            source = open_in(root, path, READ_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            target = os.open(data, READ_DIRECTORY)
            try:
                _copy_tree(source, target)
            except BaseException:
                # All of it or nothing: the next start tries again with an empty volume.
                for entry in list(data.iterdir()):
                    if entry.is_dir() and not entry.is_symlink():
                        shutil.rmtree(entry, ignore_errors=True)
                    else:
                        entry.unlink(missing_ok=True)
                raise
            finally:
                os.close(target)
        finally:
            os.close(source)

    look(view, copy)


def _copy_tree(source: int, target: int) -> None:
    for entry in os.scandir(source):
        found = entry.stat(follow_symlinks=False)
        name, mode = entry.name, found.st_mode
        if stat.S_ISDIR(mode):
            os.mkdir(name, 0o700, dir_fd=target)
            inner = os.open(name, READ_DIRECTORY | os.O_NOFOLLOW, dir_fd=source)
            try:
                outer = os.open(name, READ_DIRECTORY | os.O_NOFOLLOW, dir_fd=target)
                try:
                    _copy_tree(inner, outer)
                finally:
                    os.close(outer)
            finally:
                os.close(inner)
        elif stat.S_ISREG(mode):
            _copy_file(source, target, name)
        elif stat.S_ISLNK(mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        elif stat.S_ISFIFO(mode):
            os.mkfifo(name, 0o600, dir_fd=target)
        else:
            continue  # sockets and devices are nothing that a volume begins with
        _dress(target, name, found)
    found = os.fstat(source)
    os.fchown(target, found.st_uid, found.st_gid)
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def _copy_file(source: int, target: int, name: str) -> None:
    reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        writer = os.open(name, flags, 0o600, dir_fd=target)
        try:
            while os.sendfile(writer, reader, None, COPY_BYTES):
                pass
            found = os.fstat(reader)
            os.fchown(writer, found.st_uid, found.st_gid)
            os.fchmod(writer, stat.S_IMODE(found.st_mode))
            # Last: a change of owner takes file capabilities away.
            for key in os.listxattr(reader):
                if keeps_xattr(key):
                    os.setxattr(writer, key, os.getxattr(reader, key))
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def keeps_xattr(key: str) -> bool:
    """Whether an extended attribute is the file's own, and not overlayfs's books."""
    return key == "security.capability" or (
        key.startswith("user.") and not key.startswith("user.overlay.")
    )


def _dress(folder: int, name: str, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        return  # its own copying did
    if not stat.S_ISREG(found.st_mode):
        os.chown(name, found.st_uid, found.st_gid, dir_fd=folder, follow_symlinks=False)
    if stat.S_ISFIFO(found.st_mode):
        os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=folder)
    times = (found.st_atime_ns, found.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=folder, follow_symlinks=False)


def _mount(
    source: str | None, target: str, fstype: str | None, flags: int, data: str | None
) -> None:
    parts = [None if part is None else os.fsencode(part) for part in (source, target, fstype)]
    text = None if data is None else data.encode()
    _check(_libc.mount(*parts, ctypes.c_ulong(flags), text), f"mount {target}")


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
