"""What a container changed: its writable layer against the image, for `diff` and `commit`.

Sync: call it in a worker thread. The upper folder of an overlay holds what is new and what is
different, a character device 0/0 for what is gone, and marks folders that hide the ones below
(Documentation/filesystems/overlayfs.rst).
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from swarmlet.agent.local.rootfs import READ_DIRECTORY
from swarmlet.agent.local.tarout import DEPTH_MAX, TarOut, header_of
from swarmlet.images.placing import OPAQUE, WHITEOUT, find_below, is_whiteout

OPAQUE_XATTRS = ("trusted.overlay.opaque", "user.overlay.opaque")
#: More changes than that are no list that anybody reads.
CHANGES_MAX = 200_000
#: What the runtime mounts over: it makes the places, and they are no change of the container's.
RUNTIME_PLACES = (
    "/dev",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/proc",
    "/sys",
)


class Change(enum.IntEnum):
    """Docker's numbers."""

    MODIFIED = 0
    ADDED = 1
    DELETED = 2


@dataclass(frozen=True, slots=True)
class Changed:
    path: str
    change: Change


def changes_of(upper: Path, layers: Sequence[str]) -> list[Changed]:
    """Return what differs from *layers* (base first), each folder before its content."""
    if not upper.is_dir():
        return []  # it never ran
    lower = [Path(layer) for layer in reversed(layers)]
    folder = os.open(upper, READ_DIRECTORY)
    try:
        found = list(islice(_changes(folder, "", lower, 0), CHANGES_MAX))
    finally:
        os.close(folder)
    return _without_idle_folders(found)


def _changes(folder: int, path: str, lower: Sequence[Path], depth: int) -> Iterator[Changed]:
    """What changed in *folder*, which is *path*; by descriptors, since the container may run."""
    for name in sorted(os.listdir(folder)):
        below = f"{path}/{name}"
        try:
            entry = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            continue
        before = find_below(lower, tuple(map(os.fsencode, below[1:].split("/"))))
        if is_whiteout(entry):
            if before is not None:
                yield Changed(below, Change.DELETED)
            continue
        if before is not None:
            yield Changed(below, Change.MODIFIED)
        elif below not in RUNTIME_PLACES:
            yield Changed(below, Change.ADDED)
        if stat.S_ISDIR(entry.st_mode) and depth < DEPTH_MAX:
            try:
                inner = os.open(name, READ_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            except OSError:
                continue  # it has become something else
            try:
                if before is not None and _is_opaque(f"/proc/self/fd/{inner}/."):
                    yield from _hidden(lower, inner, below)
                yield from _changes(inner, below, lower, depth + 1)
            finally:
                os.close(inner)


def _without_idle_folders(found: list[Changed]) -> list[Changed]:
    """Leave out runtime places that only exist, and folders that changed for their sake alone."""
    kept = [c for c in found if not (c.change is Change.MODIFIED and c.path in RUNTIME_PLACES)]
    paths = {change.path for change in kept}
    return [
        change
        for change in kept
        if change.path != "/etc" or any(path.startswith("/etc/") for path in paths)
    ]


def _hidden(lower: Sequence[Path], folder: int, path: str) -> list[Changed]:
    """What the image has in a folder that was made anew."""
    names: set[str] = set()
    for layer in lower:
        place = f"{layer}{path}"
        if os.path.isdir(place) and not os.path.islink(place):
            names.update(os.listdir(place))
    now = set(os.listdir(folder))
    parts = tuple(map(os.fsencode, path[1:].split("/")))
    return [
        Changed(f"{path}/{name}", Change.DELETED)
        for name in sorted(names - now)
        if find_below(lower, (*parts, os.fsencode(name))) is not None
    ]


def _is_opaque(path: str) -> bool:
    for key in OPAQUE_XATTRS:
        try:
            if os.getxattr(path, key, follow_symlinks=False) == b"y":
                return True
        except OSError:
            continue
    return False


class LayerOut(TarOut):
    """Writes the writable layer as a layer of an image: whiteouts in OCI's words."""

    def add_layer(self, upper: Path) -> None:
        folder = os.open(upper, READ_DIRECTORY)
        try:
            self._add_content(folder, "", "", 0)
        finally:
            os.close(folder)

    def _add_content(self, folder: int, shown: str, path: str, depth: int) -> None:
        for name in sorted(os.listdir(folder)):
            try:
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                continue
            below, where = f"{shown}{name}", f"{path}/{name}"
            if where in RUNTIME_PLACES:
                continue
            if is_whiteout(found):
                self._mark(f"{shown}{WHITEOUT.decode()}{name}", found)
            elif stat.S_ISDIR(found.st_mode):
                self._add_own_folder(folder, name, below, where, depth)
            elif not stat.S_ISCHR(found.st_mode) and not stat.S_ISBLK(found.st_mode):
                self.add(folder, name, below)

    def _add_own_folder(self, folder: int, name: str, shown: str, path: str, depth: int) -> None:
        try:
            inner = os.open(name, READ_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
        except OSError:
            return  # it has become something else
        try:
            found = os.fstat(inner)
            entry = header_of(f"{shown}/", found)
            entry.type = b"5"
            self._head(entry, inner)
            if _is_opaque(f"/proc/self/fd/{inner}/."):
                self._mark(f"{shown}/{OPAQUE.decode()}", found)
            if depth < DEPTH_MAX:
                self._add_content(inner, f"{shown}/", path, depth + 1)
        finally:
            os.close(inner)

    def _mark(self, shown: str, found: os.stat_result) -> None:
        entry = header_of(shown, found)
        entry.mode, entry.type = 0o600, b"0"
        self._head(entry)
