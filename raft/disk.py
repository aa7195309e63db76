"""The one door to the disk: every durable write of a server goes through a DurableDir.

Sync: call it in one worker thread at a time. What holds when a call returns:

    DurableFile.write   nothing yet: a power cut keeps any subset of its 512-byte sectors
    DurableFile.sync    everything written to the file before
    create, publish     the file is whole under its name, or there is none: never a part
    remove, rename      the old name is gone for good

Tests put another implementation in its place, which cuts the power at any operation.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700
LOCK_NAME: Final = "LOCK"
#: Ends the name of a file that is still being made. One left behind by a crash is removed.
DRAFT_SUFFIX: Final = ".tmp"
#: A disk that says so has no room; anything else it says is a failure.
NO_SPACE_ERRNOS: Final = {errno.ENOSPC, errno.EDQUOT}


class DiskFull(OSError):
    """There is no room for a new file. Nothing was changed; it may be tried again later."""


class DirectoryLocked(OSError):
    """Another process uses the directory: two of them would destroy each other's log."""


class DurableFile(Protocol):
    """An existing file of fixed size."""

    def write(self, offset: int, data: bytes) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


class Draft(Protocol):
    """A file that is being made and does not exist under its name yet."""

    def write(self, data: bytes) -> None: ...

    def publish(self) -> None:
        """Give the file its name, durably; an old file of that name is replaced."""

    def discard(self) -> None: ...


class DurableDir(Protocol):
    def names(self) -> list[str]:
        """The files there, sorted, without drafts."""

    def read(self, name: str) -> bytes: ...

    def size(self, name: str) -> int: ...

    def open(self, name: str) -> DurableFile: ...

    def draft(self, name: str) -> Draft: ...

    def remove(self, name: str) -> None: ...

    def rename(self, old: str, new: str) -> None:
        """Durable when it returns; *new* must not exist."""

    def close(self) -> None: ...


def create(directory: DurableDir, name: str, content: Iterable[bytes]) -> None:
    """Make the file *name* from *content*, whole and durable.

    Raises:
        DiskFull: there is no room; nothing is left behind.
    """
    draft = directory.draft(name)
    try:
        for part in content:
            draft.write(part)
        draft.publish()
    except BaseException:
        draft.discard()
        raise


def _no_room(exc: OSError, what: str) -> OSError:
    """Return DiskFull if that is what *exc* means, else *exc* itself."""
    if exc.errno in NO_SPACE_ERRNOS:
        return DiskFull(exc.errno, f"no room on the disk for {what}")
    return exc


class FileOnDisk:
    """A DurableFile of the real disk."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def write(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, offset)
            view, offset = view[written:], offset + written

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class DraftOnDisk:
    """A Draft of the real disk."""

    def __init__(self, directory: Directory, name: str) -> None:
        self._directory = directory
        self._target = directory.path / name
        self._draft = directory.path / f"{name}{DRAFT_SUFFIX}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            self._fd = os.open(self._draft, flags, FILE_MODE)
        except OSError as exc:
            raise _no_room(exc, name) from exc

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as exc:
            raise _no_room(exc, self._target.name) from exc

    def publish(self) -> None:
        try:
            # Some file systems find out only here that there is no room.
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._draft.rename(self._target)
            self._directory.sync()
        except OSError as exc:
            raise _no_room(exc, self._target.name) from exc

    def discard(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._draft.unlink(missing_ok=True)


class Directory:
    """The DurableDir of the real disk; locked against other processes while it is open.

    Raises:
        DirectoryLocked: another process has it open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._lock = os.open(path / LOCK_NAME, flags, FILE_MODE)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(self._lock)
            raise DirectoryLocked(exc.errno, f"{path} is in use by another process") from exc
        for draft in path.glob(f"*{DRAFT_SUFFIX}"):
            draft.unlink()

    def names(self) -> list[str]:
        return sorted(
            entry.name
            for entry in self.path.iterdir()
            if entry.name != LOCK_NAME and not entry.name.endswith(DRAFT_SUFFIX)
        )

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def size(self, name: str) -> int:
        return (self.path / name).stat().st_size

    def open(self, name: str) -> FileOnDisk:
        return FileOnDisk(self.path / name)

    def draft(self, name: str) -> DraftOnDisk:
        return DraftOnDisk(self, name)

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)
        self.sync()

    def rename(self, old: str, new: str) -> None:
        assert not (self.path / new).exists()
        (self.path / old).rename(self.path / new)
        self.sync()

    def sync(self) -> None:
        """Make the names in the directory durable."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
