"""Network namespaces: made, kept by a file, entered by a thread, removed.

    <run directory>/netns/<name>     a bind mount of the namespace (nsfs), as `ip netns` does

The directory is ours alone, so every file in it is. A namespace lives as long as its file is
mounted, a process or thread is in it, or a socket of it is open.

A thread that has entered a namespace is not given back to any pool: work there is done in a
thread that dies with it. Python 3.11 has no os.setns, hence ctypes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# linux/sched.h, linux/mount.h, sys/mount.h, linux/magic.h
CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MNT_DETACH = 0x2
NSFS_MAGIC = 0x6E736673

_libc = ctypes.CDLL(None, use_errno=True)


def run_in_thread(work: Callable[[], T]) -> T:
    """Run *work* in a thread of its own, which may change its namespace as it likes.

    Blocks; from Trio, call it through to_thread.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            outcome.append(work())
        except BaseException as exc:
            failure.append(exc)

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def run_in_netns(path: Path, work: Callable[[], T]) -> T:
    """Run *work* in the network namespace at *path*. Blocks.

    Raises:
        OSError: the namespace cannot be entered, or what *work* raised.
    """

    def enter_and_work() -> T:
        enter(path)
        return work()

    return run_in_thread(enter_and_work)


def enter(path: Path) -> None:
    """Move the calling thread, for the rest of its life, into the namespace at *path*.

    Raises:
        OSError: there is no namespace at *path*, or no right to enter it.
    """
    with open(path, "rb") as namespace:
        enter_descriptor(namespace.fileno(), str(path))


def enter_descriptor(descriptor: int, name: str) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) < 0:
        raise _failure("setns", name)


def enter_new() -> None:
    """Move the calling thread into a namespace that nobody else has; it dies with the thread."""
    if _libc.unshare(CLONE_NEWNET) < 0:
        raise _failure("unshare", "network namespace")


def create(path: Path, descriptor: int | None = None) -> None:
    """Make a namespace and keep it at *path*. What is there of an earlier try is replaced.

    With a *descriptor* it is that namespace, which somebody else made. Moves the calling thread
    into it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.touch(mode=0o600, exist_ok=False)
    if descriptor is None:
        enter_new()
    else:
        enter_descriptor(descriptor, str(path))
    own = f"/proc/self/task/{threading.get_native_id()}/ns/net".encode()
    if _libc.mount(own, os.fsencode(path), b"none", MS_BIND, None) < 0:
        raise _failure("mount", str(path))


def remove(path: Path) -> None:
    """Let go of the namespace at *path*; no error if there is none.

    It ends when nothing else keeps it. Lazily unmounted, because somebody may just be reading
    it; unlinking frees it in mount namespaces that hold a copy of the mount (since 3.18).
    """
    while _libc.umount2(os.fsencode(path), MNT_DETACH) == 0:
        pass
    if ctypes.get_errno() not in (errno.EINVAL, errno.ENOENT):
        raise _failure("umount", str(path))
    with suppress(FileNotFoundError):
        path.unlink()


def listing(directory: Path) -> dict[str, bool]:
    """Return the files in *directory*, and whether each keeps a namespace (a crash's does not)."""
    try:
        entries = sorted(directory.iterdir())
    except FileNotFoundError:
        return {}
    return {entry.name: _filesystem(entry) == NSFS_MAGIC for entry in entries}


class _Statfs(ctypes.Structure):
    _fields_ = (("f_type", ctypes.c_long), ("rest", ctypes.c_char * 256))


def _filesystem(path: Path) -> int:
    buffer = _Statfs()
    if _libc.statfs(os.fsencode(path), ctypes.byref(buffer)) < 0:
        return 0
    return int(buffer.f_type)


def _failure(call: str, subject: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{call}: {os.strerror(code)}", subject)
