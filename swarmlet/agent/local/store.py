"""Records of this host alone, each in a file of its own.

Sync: call it in a worker thread. A file is magic, version and the record (swarmlet.codec). It is
written to a temporary name, fsynced and renamed, so it is the old one or the new one, whole. Only
the daemon's user can read it: an environment may hold passwords.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TypeVar

from swarmlet.codec import BadMessage, pack, unpack_untrusted
from swarmlet.runtime.hostside import remove_tree

R = TypeVar("R")

MAGIC = b"SWLL"
VERSION = 1
_HEAD = MAGIC + bytes([VERSION])


class DamagedRecord(ValueError):
    """A file is there and cannot be read; the text says what to do."""


def write_record(path: Path, record: object) -> None:
    """Leave *record* at *path*, on the disk for good when this returns. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(_HEAD + pack(record))
        file.flush()
        os.fsync(fd)
    os.replace(fresh, path)
    sync_folder(path.parent)


def read_record(path: Path, cls: type[R]) -> R | None:
    """Return the record at *path*; None if there is none.

    Raises:
        DamagedRecord: it is none of ours, or not whole.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if not data.startswith(MAGIC):
        raise DamagedRecord(f"{path} is no record of swarmlet's: put a copy back, or remove it")
    if not data.startswith(_HEAD):
        raise DamagedRecord(
            f"{path} has format {data[len(MAGIC) : len(_HEAD)].hex()}, this release reads "
            f"{VERSION:02x}: start the newer release again"
        )
    try:
        return unpack_untrusted(cls, data[len(_HEAD) :])
    except BadMessage as exc:
        raise DamagedRecord(f"{path} is damaged ({exc}): put a copy back, or remove it") from exc


def remove_record(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in *folder* durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_all(path: Path) -> None:
    """Remove a file or a folder with all in it, whatever a container made of it. Raises OSError."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        remove_tree(str(path))
