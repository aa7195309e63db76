"""Disks that lose power: a DurableDir in memory that keeps what a real one must keep.

A write that was not synced survives a power cut by sectors of 512 bytes, any subset of them; a
draft that was not published is gone. Operations are counted, so that a test can cut the power
before any one of them.
"""

from __future__ import annotations

import errno
import itertools
import random
from collections.abc import Iterator

from raft.disk import DiskFull
from raft.frames import SECTOR_BYTES


class PowerCut(BaseException):
    """The machine is off. Not an Exception: nothing may handle it."""


class MemoryFile:
    """What is durable of a file, and the sectors written since the last sync."""

    def __init__(self, disk: MemoryDisk, content: bytes) -> None:
        self._disk = disk
        self.durable = bytearray(content)
        self.current = bytearray(content)

    def write(self, offset: int, data: bytes) -> None:
        self._disk.operate(self)
        assert offset + len(data) <= len(self.current), "the file may not grow"
        self.current[offset : offset + len(data)] = data
        self._disk.bytes_written += len(data)

    def sync(self) -> None:
        self._disk.operate(self)
        self._disk.syncs += 1
        if self._disk.broken:
            raise OSError(errno.EIO, "the disk failed")
        self.durable[:] = self.current

    def close(self) -> None:
        pass

    def unsynced_sectors(self) -> list[int]:
        return [
            start
            for start in range(0, len(self.current), SECTOR_BYTES)
            if self.current[start : start + SECTOR_BYTES]
            != self.durable[start : start + SECTOR_BYTES]
        ]

    def surviving(self, sectors: tuple[int, ...]) -> bytes:
        """The content after a power cut that only *sectors* of what was unsynced survived."""
        content = bytearray(self.durable)
        for start in sectors:
            content[start : start + SECTOR_BYTES] = self.current[start : start + SECTOR_BYTES]
        return bytes(content)


class MemoryDraft:
    def __init__(self, disk: MemoryDisk, name: str) -> None:
        self._disk = disk
        self._name = name
        self._content = bytearray()

    def write(self, data: bytes) -> None:
        self._disk.operate(None)
        if self._disk.full:
            raise DiskFull(errno.ENOSPC, f"no room on the disk for {self._name}")
        self._content += data
        self._disk.bytes_written += len(data)

    def publish(self) -> None:
        self._disk.operate(None)
        if self._disk.full:
            raise DiskFull(errno.ENOSPC, f"no room on the disk for {self._name}")
        self._disk.files[self._name] = MemoryFile(self._disk, bytes(self._content))

    def discard(self) -> None:
        pass


class MemoryDisk:
    """A DurableDir in memory.

    Args:
        files: what is on it.
        cut_at: the power is cut before the operation of this number; None: never.
    """

    def __init__(self, files: dict[str, bytes] | None = None, *, cut_at: int | None = None) -> None:
        self.files = {name: MemoryFile(self, content) for name, content in (files or {}).items()}
        self.cut_at = cut_at
        self.operations = 0
        self.syncs = 0
        self.bytes_written = 0
        self.full = False
        self.broken = False

    def operate(self, _: MemoryFile | None) -> None:
        if self.operations == self.cut_at:
            raise PowerCut
        self.operations += 1

    def names(self) -> list[str]:
        return sorted(self.files)

    def read(self, name: str) -> bytes:
        return bytes(self.files[name].current)

    def size(self, name: str) -> int:
        return len(self.files[name].current)

    def open(self, name: str) -> MemoryFile:
        return self.files[name]

    def draft(self, name: str) -> MemoryDraft:
        return MemoryDraft(self, name)

    def remove(self, name: str) -> None:
        self.operate(None)
        self.files.pop(name, None)

    def rename(self, old: str, new: str) -> None:
        self.operate(None)
        assert new not in self.files
        self.files[new] = self.files.pop(old)

    def close(self) -> None:
        pass

    # After the power cut.
    def survivors(self) -> Iterator[dict[str, bytes]]:
        """Every state that the disk may be found in: the product of what each file may hold."""
        choices = []
        for name, file in self.files.items():
            sectors = file.unsynced_sectors()
            subsets = itertools.chain.from_iterable(
                itertools.combinations(sectors, size) for size in range(len(sectors) + 1)
            )
            choices.append([(name, file.surviving(subset)) for subset in subsets])
        for combination in itertools.product(*choices):
            yield dict(combination)

    def survivor(self, rng: random.Random) -> dict[str, bytes]:
        """One of the states that the disk may be found in."""
        found = {}
        for name, file in self.files.items():
            sectors = tuple(s for s in file.unsynced_sectors() if rng.random() < 0.5)
            found[name] = file.surviving(sectors)
        return found
