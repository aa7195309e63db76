"""A tar stream into a folder of a container: `cp` from outside.

Sync: call it in a worker thread. The archive is a stranger's, and so is the container that it goes
into: names climb nowhere (tarstream.py), and folders on the way are opened by the kernel below the
container's root (rootfs.py), whatever links stand there.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress

from swarmlet.agent.local.errors import Forbidden, Invalid
from swarmlet.agent.local.owners import HOST_OWNERS, Owners
from swarmlet.agent.local.rootfs import (
    PATH_DIRECTORY,
    keeps_xattr,
    make_folders,
    open_in,
    parent_of,
)
from swarmlet.images.compression import decompress
from swarmlet.images.errors import BadLayer
from swarmlet.images.tarstream import Blocks, Entry, Kind, TarReader, split_path

#: Members of one archive.
ENTRIES_MAX = 2_000_000
#: Folders whose times are remembered until all is in them; those of more are the copy's own.
FOLDERS_MAX = 20_000
#: What the place says no with, and what the archive asks for in vain.
REFUSALS = (errno.EROFS, errno.EPERM, errno.EACCES, errno.EOVERFLOW)
IMPOSSIBLE = (errno.ENOTEMPTY, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENAMETOOLONG)


def extract(
    root: int,
    path: str,
    read: Callable[[int], bytes],
    *,
    keep_kinds: bool,
    owner: tuple[int, int] | None = None,
    owners: Owners = HOST_OWNERS,
) -> None:
    """Put what *read* gives into the folder *path* below *root*.

    With *keep_kinds* a folder never takes the place of a file, nor a file a folder's. *owner* is
    the container's user and group for every file; without it the archive's own hold.

    Raises:
        Invalid: the archive is none, or *path* is no folder.
        Forbidden: the place cannot be written to.
    """
    try:
        folder = open_in(root, path, PATH_DIRECTORY)
    except NotADirectoryError:
        raise Invalid("extraction point is not a directory") from None
    os.close(folder)
    chunks = decompress(read)
    try:
        _Extractor(root, path.rstrip("/"), keep_kinds, owner, owners).run(chunks)
    except BadLayer as exc:
        raise Invalid(f"the archive cannot be read: {exc}") from exc
    except OSError as exc:
        if exc.errno in REFUSALS:
            raise Forbidden(f"the place cannot be written to: {exc.strerror}") from exc
        if exc.errno in IMPOSSIBLE:
            raise Invalid(
                f"the archive does not fit there: {exc.filename}: {exc.strerror}"
            ) from exc
        raise
    finally:
        chunks.close()


class _Extractor:
    def __init__(
        self,
        root: int,
        base: str,
        keep_kinds: bool,
        owner: tuple[int, int] | None,
        owners: Owners,
    ) -> None:
        self._root = root
        self._base = base
        self._keep_kinds = keep_kinds
        self._owner = owner
        self._owners = owners
        #: Times of folders are set when nothing is put into them any more.
        self._folders: list[tuple[str, Entry]] = []

    def run(self, chunks: Iterator[bytes]) -> None:
        reader = TarReader(Blocks(lambda: next(chunks, b"")), entries_max=ENTRIES_MAX)
        for entry in reader:
            if entry.path:
                self._place(entry, reader)
        for path, entry in reversed(self._folders):
            with suppress(OSError), parent_of(self._root, path) as (folder, name):
                times = (entry.mtime_ns, entry.mtime_ns)
                os.utime(name, ns=times, dir_fd=folder, follow_symlinks=False)
        for _ in chunks:
            pass  # padding behind the archive's end

    def _place(self, entry: Entry, reader: TarReader) -> None:
        path = f"{self._base}/{_text(entry.path)}"
        try:
            self._place_at(path, entry, reader)
        except FileNotFoundError:
            make_folders(self._root, path.rpartition("/")[0])
            self._place_at(path, entry, reader)

    def _place_at(self, path: str, entry: Entry, reader: TarReader) -> None:
        with parent_of(self._root, path) as (folder, name):
            if entry.kind is Kind.DIRECTORY:
                self._make_folder(folder, name, path, entry)
                return
            self._make_room(folder, name, entry)
            match entry.kind:
                case Kind.FILE:
                    self._make_file(folder, name, entry, reader)
                case Kind.SYMLINK:
                    os.symlink(os.fsdecode(entry.link), name, dir_fd=folder)
                    self._dress(folder, name, entry)
                case Kind.HARDLINK:
                    self._make_link(folder, name, entry)
                case Kind.FIFO:
                    os.mkfifo(name, 0o600, dir_fd=folder)
                    self._dress(folder, name, entry)
                case Kind.DEVICE:
                    raise Invalid(f"{entry.name}: device nodes are given with --device, not copied")

    def _make_folder(self, folder: int, name: str, path: str, entry: Entry) -> None:
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            os.mkdir(name, 0o700, dir_fd=folder)
        else:
            if not stat.S_ISDIR(found.st_mode):
                if self._keep_kinds:
                    raise Invalid(f"cannot overwrite non-directory {path!r} with directory")
                os.unlink(name, dir_fd=folder)
                os.mkdir(name, 0o700, dir_fd=folder)
        self._dress(folder, name, entry)
        if len(self._folders) < FOLDERS_MAX:
            self._folders.append((path, entry))

    def _make_room(self, folder: int, name: str, entry: Entry) -> None:
        with suppress(FileNotFoundError):
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                os.unlink(name, dir_fd=folder)
            elif self._keep_kinds:
                raise Invalid(f"cannot overwrite directory {entry.name!r} with non-directory")
            else:
                os.rmdir(name, dir_fd=folder)

    def _make_file(self, folder: int, name: str, entry: Entry, reader: TarReader) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(name, flags, 0o600, dir_fd=folder)
        try:
            for part in reader.content():
                while part:
                    part = part[os.write(file, part) :]
            os.fchown(file, *self._owner_of(entry))
            os.fchmod(file, entry.mode & 0o7777)
            for key, value in entry.xattrs.items():
                if keeps_xattr(key):
                    with suppress(OSError):
                        os.setxattr(file, key, value)
            os.utime(file, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(file)

    def _make_link(self, folder: int, name: str, entry: Entry) -> None:
        target = f"{self._base}/{_text(split_path(entry.link))}"
        with parent_of(self._root, target) as (other, target_name):
            os.link(target_name, name, src_dir_fd=other, dst_dir_fd=folder, follow_symlinks=False)

    def _owner_of(self, entry: Entry) -> tuple[int, int]:
        """The host's numbers of who shall have it."""
        uid, gid = self._owner or (entry.uid, entry.gid)
        return self._owners.outside(uid), self._owners.outside(gid)

    def _dress(self, folder: int, name: str, entry: Entry) -> None:
        os.chown(name, *self._owner_of(entry), dir_fd=folder, follow_symlinks=False)
        if entry.kind is not Kind.SYMLINK:
            # Not through a link that took the name meanwhile: fchmodat(2) follows.
            file = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                os.chmod(f"/proc/self/fd/{file}", entry.mode & 0o7777)
            finally:
                os.close(file)
        times = (entry.mtime_ns, entry.mtime_ns)
        os.utime(name, ns=times, dir_fd=folder, follow_symlinks=False)


def _text(parts: tuple[bytes, ...]) -> str:
    return os.fsdecode(b"/".join(parts))
