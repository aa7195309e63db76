"""Placing the entries of a stranger's tar below one directory, as root.

Sync. No path of the tar is ever given to the kernel whole: each directory is opened by its name
from the one above, links are followed by hand and never above the layer's root. (There is no writer
but us in the directory, so nothing moves between the look and the step.)

What OCI's layer format means, in the terms of overlayfs (Documentation/filesystems/overlayfs.rst):

    .wh.NAME        a character device 0/0 called NAME, if a layer below has a NAME to hide
    .wh..wh..opq    the xattr trusted.overlay.opaque=y on the directory (user.overlay.opaque as
                    well: an overlay that is mounted in a user namespace reads that one)

Kept: owners, setuid bits, times to the nanosecond, hard links, fifos, file capabilities and user
xattrs. Left out: device nodes (a container's devices come from its spec, and a node of the host's
disk needs nobody's help to be dangerous) and all other xattrs (trusted.overlay.* could redirect a
directory).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from swarmlet.images.errors import BadLayer, NoSpace
from swarmlet.images.tarstream import DEPTH_MAX, Entry, Kind, Parts, show, split_path

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
#: AUFS kept its own books under this prefix; nothing of them is part of the image.
AUFS = b".wh..wh."
WHITEOUT_DEVICE = os.makedev(0, 0)
OPAQUE_XATTRS = ("trusted.overlay.opaque", "user.overlay.opaque")
#: As the kernel: a chain of more links is a loop.
LINKS_MAX = 40
#: Directories that stay open from entry to entry; a tar goes through few at a time.
OPEN_DIRECTORIES_MAX = 16
#: Entries between two looks at the free space and at whether anybody still wants the layer.
PULSE_ENTRIES = 64
PULSE_BYTES = 16 * 1024 * 1024

#: The kernel's answers to names and links that no file system can hold: the tar's fault.
_BLAME = {
    errno.EEXIST,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.EMLINK,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
}
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
T = TypeVar("T")
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_XATTR = {errno.ENOTSUP, errno.EPERM}


@dataclass(frozen=True, slots=True)
class Limits:
    """What one layer may cost. The disk's reserve is for the daemon's log and for the tasks."""

    layer_bytes_max: int = 64 << 30
    entries_max: int = 2_000_000
    free_bytes_min: int = 128 << 20


class Placer:
    """Makes entries below *target*, an empty directory. Owned by one thread; close it.

    *parents* are the directories of the layers below, topmost first. *pulse* is called often and
    may raise to give up.
    """

    def __init__(
        self,
        target: Path,
        parents: Sequence[Path],
        limits: Limits,
        pulse: Callable[[], None],
    ) -> None:
        self.entries = 0
        self.content_bytes = 0
        self.left_out = 0
        self._parents = parents
        self._limits = limits
        self._pulse = pulse
        self._unpulsed_bytes = PULSE_BYTES
        self._root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._open: dict[Parts, int] = {}
        self._stale = False
        #: Times of directories are set last: every entry below changes them.
        self._times: dict[Parts, int] = {}
        self._devices: set[Parts] = set()

    def close(self) -> None:
        self._close_directories()
        os.close(self._root)

    def place(self, entry: Entry, content: Iterator[memoryview]) -> None:
        """Make what *entry* says; *content* is its bytes."""
        if self.entries % PULSE_ENTRIES == 0 or self._unpulsed_bytes >= PULSE_BYTES:
            self._look_up()
        if self._stale or len(self._open) > OPEN_DIRECTORIES_MAX:
            self._close_directories()
        self.entries += 1
        try:
            self._place(entry, content)
        except OSError as error:
            if error.errno in _FULL:
                raise NoSpace(f"no space left while unpacking {entry.name}") from error
            if error.errno in _BLAME:
                raise BadLayer(f"{entry.name} cannot be made: {error.strerror}") from error
            raise

    def finish(self) -> None:
        """Set the times of the directories, deepest first."""
        for path, mtime_ns in sorted(self._times.items(), key=lambda item: -len(item[0])):
            with contextlib.suppress(BadLayer, FileNotFoundError):  # something took its place
                handle = self._walk(path, create=False)
                os.utime(handle, ns=(mtime_ns, mtime_ns))
                os.close(handle)

    def _look_up(self) -> None:
        self._unpulsed_bytes = 0
        self._pulse()
        disk = os.fstatvfs(self._root)
        if disk.f_bavail * disk.f_frsize < self._limits.free_bytes_min:
            raise NoSpace(
                f"unpacking was stopped with {disk.f_bavail * disk.f_frsize >> 20} MiB left on the"
                f" disk, of which {self._limits.free_bytes_min >> 20} MiB are kept free;"
                " remove images or data and try again"
            )
        if disk.f_files and not disk.f_favail:
            raise NoSpace("unpacking was stopped: the file system has no inode left")

    def _place(self, entry: Entry, content: Iterator[memoryview]) -> None:
        path = entry.path
        if not path:
            if entry.kind is not Kind.DIRECTORY:
                raise BadLayer(f"the layer's root is a {entry.kind.value}, not a directory")
            self._dress(self._root, entry)
            self._times[path] = entry.mtime_ns
            return
        name = path[-1]
        if any(part.startswith(AUFS) for part in path if part != OPAQUE):
            return
        if any(part.startswith(WHITEOUT) for part in path[:-1]):
            raise BadLayer(f"{entry.name} lies inside of a whiteout")
        if name.startswith(WHITEOUT):
            self._hide(path)
            return
        parent = self._directory(path[:-1])
        match entry.kind:
            case Kind.FILE:
                self._make_file(parent, entry, content)
            case Kind.DIRECTORY:
                self._make_directory(parent, path)
                self._dress(self._directory(path), entry)
                self._times[path] = entry.mtime_ns
            case Kind.SYMLINK:
                self._replace(parent, path, lambda: os.symlink(entry.link, name, dir_fd=parent))
                self._dress_special(parent, entry)
            case Kind.FIFO:
                self._replace(parent, path, lambda: os.mkfifo(name, 0o600, dir_fd=parent))
                self._dress_special(parent, entry)
                os.chmod(name, entry.mode, dir_fd=parent)
            case Kind.HARDLINK:
                self._make_hard_link(parent, entry)
            case Kind.DEVICE:
                self.left_out += 1
                self._devices.add(path)

    def _make_file(self, parent: int, entry: Entry, content: Iterator[memoryview]) -> None:
        name = entry.path[-1]
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = self._replace(
            parent, entry.path, lambda: os.open(name, flags, 0o600, dir_fd=parent)
        )
        try:
            for part in content:
                self._unpulsed_bytes += len(part)
                if self._unpulsed_bytes >= PULSE_BYTES:
                    self._look_up()
                while part:
                    part = part[os.write(handle, part) :]
            self.content_bytes += entry.size
            self._dress(handle, entry)
            os.utime(handle, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(handle)

    def _make_directory(self, parent: int, path: Parts) -> None:
        """Have a directory at *path*: the one that is there, or a new one of mode 0700."""
        name = path[-1]
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
            return
        found = os.lstat(name, dir_fd=parent)
        if stat.S_ISDIR(found.st_mode):
            return
        self._remove(parent, path)
        os.mkdir(name, 0o700, dir_fd=parent)
        if is_whiteout(found):
            self._make_opaque(self._directory(path))

    def _make_hard_link(self, parent: int, entry: Entry) -> None:
        target = split_path(entry.link)
        if target in self._devices:
            self.left_out += 1
            self._devices.add(entry.path)
            return
        try:
            source = self._directory(target[:-1], create=False)
            found = os.lstat(target[-1], dir_fd=source) if target else os.fstat(source)
        except FileNotFoundError:
            raise BadLayer(
                f"{entry.name} is a hard link to {show(target)}, which the layer does not hold"
            ) from None
        if stat.S_ISDIR(found.st_mode) or is_whiteout(found):
            raise BadLayer(f"{entry.name} is a hard link to {show(target)}, which is no file")
        if target == entry.path:
            return  # `tar cf - x x` writes the second x so
        if target[: len(entry.path)] == entry.path:
            # The folder would go, and the file in it, before there is a link to it.
            raise BadLayer(f"{entry.name} is a hard link to {show(target)}, which is in it")
        self._replace(
            parent,
            entry.path,
            lambda: os.link(
                target[-1],
                entry.path[-1],
                src_dir_fd=source,
                dst_dir_fd=parent,
                follow_symlinks=False,
            ),
        )

    def _replace(self, parent: int, path: Parts, make: Callable[[], T]) -> T:
        """Call *make*; when something is at *path* already, remove that first."""
        try:
            return make()
        except FileExistsError:
            self._remove(parent, path)
            return make()

    def _remove(self, parent: int, path: Parts) -> None:
        name = path[-1]
        if stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
            shutil.rmtree(name, dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)
        # What is open below or through it is no longer what its path means. The parent is in use
        # until this entry is done, so the rest is closed before the next one.
        self._stale = True
        if (handle := self._open.pop(path, None)) is not None:
            os.close(handle)

    def _dress(self, handle: int, entry: Entry) -> None:
        """Set the owner, then the mode (chown takes setuid off), then what chown takes off too."""
        os.chown(handle, entry.uid, entry.gid)
        os.chmod(handle, entry.mode)
        for key, value in entry.xattrs.items():
            if not keeps_xattr(key):
                continue
            try:
                os.setxattr(handle, key, value)
            except OSError as error:
                if error.errno not in _NO_XATTR:
                    raise

    def _dress_special(self, parent: int, entry: Entry) -> None:
        name = entry.path[-1]
        times = (entry.mtime_ns, entry.mtime_ns)
        os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)

    # Hiding what is below.
    def _hide(self, marker: Parts) -> None:
        """Make what the whiteout file *marker* asks for.

        A whiteout with nothing below to hide is left out: in a directory that is in one layer
        only, overlayfs would show it, and rmdir would find it "not empty" (seen on Linux 6.18).
        """
        if marker[-1] == OPAQUE:
            if self._parents:
                self._make_opaque(self._directory(marker[:-1]))
            return
        path = (*marker[:-1], marker[-1].removeprefix(WHITEOUT))
        if path[-1] in (b"", b".", b".."):
            raise BadLayer(f"{show(marker)} is a whiteout of no name")
        if find_below(self._parents, path) is None:
            return
        parent = self._directory(path[:-1])
        try:
            os.mknod(path[-1], stat.S_IFCHR, WHITEOUT_DEVICE, dir_fd=parent)
        except FileExistsError:
            # A whiteout speaks of the layers below only. Beside a directory of this layer both
            # hold when the directory shows nothing but its own.
            if stat.S_ISDIR(os.lstat(path[-1], dir_fd=parent).st_mode):
                self._make_opaque(self._directory(path))

    def _make_opaque(self, handle: int) -> None:
        for key in OPAQUE_XATTRS:
            try:
                os.setxattr(handle, key, b"y")
            except OSError as error:
                # tmpfs has user xattrs since Linux 6.6 only; the other one has to work.
                if error.errno not in _NO_XATTR or key == OPAQUE_XATTRS[0]:
                    raise

    # Walking.
    def _directory(self, path: Parts, *, create: bool = True) -> int:
        """Return the directory at *path*, open until the next entry at least.

        With *create* missing ones are made; without it FileNotFoundError tells of them.
        """
        if not path:
            return self._root
        found = self._open.get(path)
        if found is None:
            found = self._open[path] = self._walk(path, create)
        return found

    def _walk(self, path: Parts, create: bool) -> int:
        handles = [os.dup(self._root)]
        names: list[bytes] = []
        todo = list(reversed(path))
        links = 0
        try:
            while todo:
                name = todo.pop()
                if name == b"..":
                    if names:
                        names.pop()
                        os.close(handles.pop())
                    continue
                here = (*names, name)
                if len(here) > DEPTH_MAX:
                    raise BadLayer(f"{show(path)} is deeper than {DEPTH_MAX} directories")
                try:
                    handle = os.open(name, _DIRECTORY, dir_fd=handles[-1])
                except FileNotFoundError:
                    if not create:
                        raise
                    handle = self._imply(handles[-1], here)
                except OSError as error:
                    if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                        raise
                    found = os.lstat(name, dir_fd=handles[-1])
                    if stat.S_ISLNK(found.st_mode):
                        links += 1
                        if links > LINKS_MAX:
                            raise BadLayer(f"{show(path)} leads through a loop of links") from None
                        target = os.readlink(name, dir_fd=handles[-1])
                        if target.startswith(b"/"):
                            names.clear()
                            while len(handles) > 1:
                                os.close(handles.pop())
                        steps = [step for step in target.split(b"/") if step not in (b"", b".")]
                        todo.extend(reversed(steps))
                        continue
                    if not (create and is_whiteout(found)):
                        raise BadLayer(
                            f"{show(here)} is no directory, as {show(path)} needs"
                        ) from None
                    os.unlink(name, dir_fd=handles[-1])
                    handle = self._imply(handles[-1], here)
                    self._make_opaque(handle)
                handles.append(handle)
                names.append(name)
            return handles.pop()
        finally:
            for handle in handles:
                os.close(handle)

    def _imply(self, parent: int, path: Parts) -> int:
        """Make the directory *path* that the tar has no entry for; return it open.

        It looks as it does below: otherwise a layer that adds /tmp/x without /tmp, as many
        builders write them, would make /tmp root's alone.
        """
        os.mkdir(path[-1], 0o755, dir_fd=parent)
        handle = os.open(path[-1], _DIRECTORY, dir_fd=parent)
        below = find_below(self._parents, path)
        if below is not None and stat.S_ISDIR(below.st_mode):
            os.chown(handle, below.st_uid, below.st_gid)
            os.chmod(handle, stat.S_IMODE(below.st_mode))
            self._times.setdefault(path, below.st_mtime_ns)
        else:
            os.chmod(handle, 0o755)  # mkdir heeds the umask
        return handle

    def _close_directories(self) -> None:
        for handle in self._open.values():
            os.close(handle)
        self._open.clear()
        self._stale = False


def find_below(parents: Sequence[Path], path: Parts) -> os.stat_result | None:
    """Return what *path* shows in the stack of layers *parents* (topmost first), if anything."""
    for parent in parents:
        handle = os.open(parent, _DIRECTORY)
        hides_lower = False
        try:
            for part in path[:-1]:
                below = os.open(part, _DIRECTORY, dir_fd=handle)
                os.close(handle)
                handle = below
                hides_lower = hides_lower or _is_opaque(handle)
            found = os.lstat(path[-1], dir_fd=handle)
            return None if is_whiteout(found) else found
        except FileNotFoundError:
            if hides_lower:
                return None
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                return None  # a file, a link or a whiteout there hides all that is lower
            raise
        finally:
            os.close(handle)
    return None


def _is_opaque(handle: int) -> bool:
    try:
        return os.getxattr(handle, OPAQUE_XATTRS[0]) == b"y"
    except OSError:
        return False


def is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == WHITEOUT_DEVICE


def keeps_xattr(key: str) -> bool:
    """Whether an image may set this: file capabilities, and what applications call their own."""
    if key == "security.capability":
        return True
    return key.startswith("user.") and not key.startswith("user.overlay.")
