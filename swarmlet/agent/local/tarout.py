"""Files of a container as a tar stream: for `cp`, `export` and `commit`.

Sync: call it in a worker thread. Every file is opened by its name in the folder that it is in,
links not followed, so what a running container moves about meanwhile leads nowhere else. A file
that shrinks while it is read is filled up with zeros; one that goes away is left out.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from swarmlet.agent.local.owners import HOST_OWNERS, Owners
from swarmlet.agent.local.rootfs import READ_DIRECTORY, keeps_xattr

COPY_BYTES = 256 * 1024
#: As the kernel: names are no longer.
DEPTH_MAX = 256

Write = Callable[[bytes], None]


@dataclass(slots=True)
class TarOut:
    """Writes one archive. *skip* are folders, from the root, of which only the name is wanted."""

    write: Write
    skip: frozenset[str] = frozenset()
    owners: Owners = HOST_OWNERS
    _links: dict[tuple[int, int], str] = field(default_factory=dict)

    def add(self, folder: int, name: str, shown: str, path: str = "") -> None:
        """Add *name* in *folder*, and all below it, as *shown*; *path* is where it is, for skip."""
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return
        self._add(folder, name, shown, path, found, 0)

    def add_children(self, folder: int, shown: str, path: str = "") -> None:
        """Add everything in *folder*, without a name of its own."""
        for name in sorted(os.listdir(folder)):
            prefix = f"{shown}/" if shown else ""
            self.add(folder, name, f"{prefix}{name}", f"{path}/{name}")

    def finish(self) -> None:
        self.write(bytes(2 * tarfile.BLOCKSIZE))

    def _add(
        self, folder: int, name: str, shown: str, path: str, found: os.stat_result, depth: int
    ) -> None:
        mode = found.st_mode
        entry = header_of(shown, found, self.owners)
        if stat.S_ISDIR(mode):
            self._add_folder(folder, name, shown, path, entry, depth)
        elif stat.S_ISREG(mode):
            self._add_file(folder, name, shown, entry, found)
        elif stat.S_ISLNK(mode):
            with suppress(OSError):
                entry.linkname = os.readlink(name, dir_fd=folder)
                entry.type = tarfile.SYMTYPE
                self._head(entry)
        elif stat.S_ISFIFO(mode):
            entry.type = tarfile.FIFOTYPE
            self._head(entry)
        elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            entry.type = tarfile.CHRTYPE if stat.S_ISCHR(mode) else tarfile.BLKTYPE
            entry.devmajor, entry.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
            self._head(entry)
        # A socket means nothing in an archive.

    def _add_folder(
        self, folder: int, name: str, shown: str, path: str, entry: tarfile.TarInfo, depth: int
    ) -> None:
        entry.type, entry.name = tarfile.DIRTYPE, f"{shown.rstrip('/')}/"
        try:
            inner = os.open(name, READ_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
        except OSError:
            return  # it has become something else
        try:
            self._head(entry, inner)
            if path in self.skip or depth >= DEPTH_MAX:
                return
            for child in sorted(os.listdir(inner)):
                with suppress(FileNotFoundError):
                    found = os.stat(child, dir_fd=inner, follow_symlinks=False)
                    below = f"{shown.rstrip('/')}/{child}"
                    self._add(inner, child, below, f"{path}/{child}", found, depth + 1)
        finally:
            os.close(inner)

    def _add_file(
        self, folder: int, name: str, shown: str, entry: tarfile.TarInfo, found: os.stat_result
    ) -> None:
        key = (found.st_dev, found.st_ino)
        if found.st_nlink > 1 and key in self._links:
            entry.type, entry.linkname = tarfile.LNKTYPE, self._links[key]
            self._head(entry)
            return
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.open(name, flags, dir_fd=folder)
        except OSError:
            return
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                return  # swapped meanwhile
            entry.size = found.st_size
            self._head(entry, file)
            self._copy(file, found.st_size)
        finally:
            os.close(file)
        if found.st_nlink > 1:
            self._links[key] = shown

    def _copy(self, file: int, size: int) -> None:
        left = size
        while left:
            data = os.read(file, min(left, COPY_BYTES))
            if not data:
                data = bytes(min(left, COPY_BYTES))
            self.write(data)
            left -= len(data)
        self.write(bytes(-size % tarfile.BLOCKSIZE))

    def _head(self, entry: tarfile.TarInfo, file: int = -1) -> None:
        if file >= 0:
            entry.pax_headers = _xattrs(file)
        self.write(entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))


def header_of(shown: str, found: os.stat_result, owners: Owners = HOST_OWNERS) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(shown)
    entry.mode = stat.S_IMODE(found.st_mode)
    entry.uid, entry.gid = owners.inside(found.st_uid), owners.inside(found.st_gid)
    entry.mtime = found.st_mtime_ns // 1_000_000_000
    entry.size = 0
    return entry


def _xattrs(file: int) -> dict[str, str]:
    found = {}
    with suppress(OSError):
        for key in os.listxattr(file):
            if keeps_xattr(key):
                value = os.getxattr(file, key).decode("utf-8", "surrogateescape")
                found[f"SCHILY.xattr.{key}"] = value
    return found


def mount_points(pid: int) -> frozenset[str]:
    """Where something is mounted in the root of the process *pid* (proc_pid_mountinfo(5))."""
    found = set()
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            point = line.split(" ")[4]
            found.add(_unescape(point))
    return frozenset(found - {"/"})


def _unescape(text: str) -> str:
    for escape, meant in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(escape, meant)
    return text


def write_all(fd: int) -> Write:
    """Return what writes whole chunks to the descriptor *fd*, which is blocking."""

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    return write
