"""Files that are there whole or not at all, whatever stops us.

Sync: call it in a worker thread.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


def write_whole(path: Path, data: bytes) -> None:
    """Put *data* at *path*, durably: after a power cut the old file or the new one is there."""
    temporary = path.with_name(f".{path.name}.new")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(temporary, path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in *path* durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file_system(path: Path) -> None:
    """Make all that was written to the file system of *path* durable (syncfs(2)).

    One call for a tree of ten thousand files, where an fsync for each would rewrite the journal
    ten thousand times.
    """
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(handle) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(handle)


def boot_id() -> str:
    """Return the name of this boot of the kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
