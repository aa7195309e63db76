"""Files in and out of containers: cp, export, diff.

A Trio shell around tarout.py, tarin.py, changes.py and rootfs.py: the work is done in a few threads
of its own, and a pipe lies between them and the client, so a slow client costs a thread that waits
and a few pages. Of a container that does not run the caller holds the lock meanwhile.

Imported when the first of these calls comes: most daemons never need it.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from posixpath import basename, dirname, join, normpath

import trio

from swarmlet.agent.local.changes import Changed, changes_of
from swarmlet.agent.local.errors import Invalid, NoSuch
from swarmlet.agent.local.rootfs import (
    READ_DIRECTORY,
    Live,
    Subject,
    View,
    look,
    open_in,
    parent_of,
    stat_in,
)
from swarmlet.agent.local.tarin import extract
from swarmlet.agent.local.tarout import TarOut, mount_points, write_all

#: Archives in the making at once; each has a thread.
ARCHIVES_MAX = 8
PIPE_BYTES = 64 * 1024
#: Of a container's /etc/passwd: it may be anything.
USERS_BYTES_MAX = 1 << 20
#: Go's os.FileMode: the kind of a file in the upper bits.
_GO_KINDS = (
    (stat.S_ISDIR, 1 << 31),
    (stat.S_ISLNK, 1 << 27),
    (stat.S_ISBLK, 1 << 26),
    (stat.S_ISCHR, 1 << 26 | 1 << 21),
    (stat.S_ISFIFO, 1 << 25),
    (stat.S_ISSOCK, 1 << 24),
)
_GO_BITS = ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20))

_limiter = trio.CapacityLimiter(ARCHIVES_MAX)

Send = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class PathStat:
    name: str
    size: int
    mode: int  # Go's
    mtime: float
    link_target: str

    def json(self) -> bytes:
        moment = datetime.fromtimestamp(self.mtime, UTC).isoformat().replace("+00:00", "Z")
        return json.dumps(
            {
                "name": self.name,
                "size": self.size,
                "mode": self.mode,
                "mtime": moment,
                "linkTarget": self.link_target,
            }
        ).encode()


async def stat_path(subject: Subject, path: str) -> PathStat:
    """Raises NoSuch, OSError."""

    def work(root: int) -> PathStat:
        found, link = stat_in(root, path, follow=_follows(path))
        target = ""
        if link:
            target = normpath(join(dirname(path.rstrip("/")) or "/", link))
        shown = _shown(path)
        return PathStat(shown, found.st_size, go_mode(found.st_mode), found.st_mtime, target)

    return await _in_view(subject, path, work)


def _follows(path: str) -> bool:
    """A path that ends so means the folder, whatever link leads to it."""
    return path.endswith(("/", "/."))


def _shown(path: str) -> str:
    """The name that the archive of *path* begins with: "." for a folder's content (`cp a/. …`)."""
    return "." if path.endswith("/.") or path == "." else basename(normpath(path)) or "/"


def go_mode(mode: int) -> int:
    found = stat.S_IMODE(mode) & 0o777
    found |= next((bits for is_kind, bits in _GO_KINDS if is_kind(mode)), 0)
    for bit, meant in _GO_BITS:
        found |= meant if mode & bit else 0
    return found


async def _in_view(subject: Subject, path: str, work: Callable[[int], PathStat]) -> PathStat:
    try:
        return await trio.to_thread.run_sync(look, subject.view, work, limiter=_limiter)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise NoSuch("path in the container", path) from exc


# Out.


async def send_path(subject: Subject, path: str, send: Send) -> None:
    """Send the archive of *path*, whose entries begin with its last name."""
    shown = _shown(path)

    def work(root: int, write: Callable[[bytes], None]) -> None:
        out = TarOut(write, owners=subject.view.owners)
        if _follows(path):
            folder = open_in(root, path, READ_DIRECTORY)
            try:
                out.add(folder, ".", shown)
            finally:
                os.close(folder)
        else:
            with parent_of(root, path) as (folder, name):
                out.add(folder, name, shown)
        out.finish()

    await _send(subject.view, work, send)


async def send_root(subject: Subject, send: Send) -> None:
    """Send the whole root, without what is mounted in it (`docker export`)."""
    view = subject.view

    def work(root: int, write: Callable[[bytes], None]) -> None:
        skip = mount_points(view.pid) if isinstance(view, Live) else frozenset[str]()
        out = TarOut(write, skip, view.owners)
        folder = open_in(root, "/", READ_DIRECTORY)
        try:
            out.add_children(folder, "")
        finally:
            os.close(folder)
        out.finish()

    await _send(view, work, send)


async def _send(
    view: View, work: Callable[[int, Callable[[bytes], None]], None], send: Send
) -> None:
    """Have *work* write into a pipe in a thread, and send on what comes out of it."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    failures: list[Exception] = []

    def write() -> None:
        try:
            with os.fdopen(writer, "wb", buffering=0):
                look(view, lambda root: work(root, write_all(writer)))
        except BrokenPipeError:
            pass  # nobody wants it any more
        except Exception as exc:
            failures.append(exc)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: trio.to_thread.run_sync(write, limiter=_limiter))
        # Closed when cancelled: then the thread's next write ends it.
        async with trio.lowlevel.FdStream(reader) as stream:
            while data := await stream.receive_some(PIPE_BYTES):
                await send(bytes(data))
    if failures:
        raise failures[0]


# In.


async def receive_path(
    subject: Subject,
    path: str,
    receive: Callable[[], Awaitable[bytes]],
    *,
    keep_kinds: bool,
    user: str = "",
) -> None:
    """Put the archive that *receive* gives piece by piece into the folder *path*.

    *user* is the container's, by name or number, to whom everything shall belong; without one the
    archive's own owners hold.

    Raises:
        NoSuch, Invalid, Forbidden: it cannot go there.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    failures: list[Exception] = []

    def read() -> None:
        def work(root: int) -> None:
            owner = find_user(root, user) if user else None
            owners = subject.view.owners
            extract(root, path, file.read, keep_kinds=keep_kinds, owner=owner, owners=owners)

        try:
            with os.fdopen(reader, "rb", buffering=0) as file:
                look(subject.view, work)
        except Exception as exc:
            failures.append(exc)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: trio.to_thread.run_sync(read, limiter=_limiter))
        async with trio.lowlevel.FdStream(writer) as stream:
            while data := await receive():
                try:
                    await stream.send_all(data)
                except trio.BrokenResourceError:
                    break  # the thread has had enough: it says why
    if failures:
        if isinstance(failures[0], FileNotFoundError):
            raise NoSuch("path in the container", path) from failures[0]
        raise failures[0]


def find_user(root: int, text: str) -> tuple[int, int]:
    """User and group that *text*, `name[:group]` or numbers, means in the container."""
    user, _, group = text.partition(":")
    uid, gid = _find_id(root, "/etc/passwd", user)
    return uid, _find_id(root, "/etc/group", group)[0] if group else gid


def _find_id(root: int, path: str, name: str) -> tuple[int, int]:
    """The id of *name*, and its line's fourth field, which is the group of a user."""
    with suppress(OSError):
        file = open_in(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(file, encoding="utf-8", errors="replace") as lines:
            for line in lines.read(USERS_BYTES_MAX).splitlines():
                parts = line.split(":")
                if len(parts) > 3 and name in (parts[0], parts[2]) and parts[2].isdigit():
                    return int(parts[2]), int(parts[3]) if parts[3].isdigit() else 0
    if name.isdigit():
        return int(name), 0
    raise Invalid(f"the container's {path} has no {name!r}")


# What changed.


async def read_changes(subject: Subject) -> list[Changed]:
    """What differs from the image, each folder before its content."""
    return await trio.to_thread.run_sync(
        changes_of, subject.upper, subject.layers, limiter=_limiter
    )
