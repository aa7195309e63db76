"""A layer, compressed or not, becomes a directory that overlayfs can use as a lower one.

Sync: call it in a worker thread. The work is placing.py's; here is the stream, which is counted
against the limit and summed for the diff id while it passes.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from swarmlet.images.compression import decompress
from swarmlet.images.errors import BadLayer
from swarmlet.images.placing import PULSE_ENTRIES, Limits, Placer
from swarmlet.images.reference import Digest
from swarmlet.images.tarstream import Blocks, Kind, TarReader


class Readable(Protocol):
    """As much of a file as is needed here."""

    def read(self, count: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What was unpacked: *diff_id* is the digest of the plain tar, *left_out* counts devices."""

    diff_id: Digest
    entries: int
    size: int
    left_out: int


def unpack_layer(
    source: Readable,
    target: Path,
    parents: Sequence[Path],
    limits: Limits,
    pulse: Callable[[], None] = lambda: None,
) -> LayerFacts:
    """Unpack the layer *source*, compressed or not, into the empty directory *target*.

    *parents* are the directories of the layers below, topmost first. *pulse* is called often and
    may raise to give up. The caller compares the diff id, and removes *target* after a failure.

    Raises:
        BadLayer: The tar is broken, hostile or too large.
        NoSpace: Going on would eat the disk's reserve.
    """
    with (
        _plain_stream(source, limits) as stream,
        contextlib.closing(Placer(target, parents, limits, pulse)) as unpacker,
    ):
        reader = TarReader(stream.blocks, entries_max=limits.entries_max)
        for entry in reader:
            unpacker.place(entry, reader.content())
        unpacker.finish()
        stream.drain()
        return LayerFacts(
            stream.digest, unpacker.entries, unpacker.content_bytes, unpacker.left_out
        )


def check_layer(
    source: Readable, limits: Limits, pulse: Callable[[], None] = lambda: None
) -> LayerFacts:
    """Read the layer *source* to its end without making anything; raises as unpack_layer does."""
    entries = size = devices = 0
    with _plain_stream(source, limits) as stream:
        for entry in TarReader(stream.blocks, entries_max=limits.entries_max):
            if entries % PULSE_ENTRIES == 0:
                pulse()
            entries += 1
            size += entry.size
            devices += entry.kind is Kind.DEVICE
        stream.drain()
    return LayerFacts(stream.digest, entries, size, devices)


def remove_tree(path: Path) -> None:
    """Remove the directory *path*, which may be gone already."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


class _PlainStream:
    """The layer without its compression: counted, and summed for the diff id."""

    def __init__(self, chunks: Generator[bytes, None, None], bytes_max: int) -> None:
        self.blocks = Blocks(self._refill)
        self._chunks = chunks
        self._bytes_left = self._bytes_max = bytes_max
        self._sum = hashlib.sha256()

    @property
    def digest(self) -> Digest:
        return Digest(f"sha256:{self._sum.hexdigest()}")

    def _refill(self) -> bytes:
        block = next(self._chunks, b"")
        self._bytes_left -= len(block)
        if self._bytes_left < 0:
            raise BadLayer(f"the layer is larger than {self._bytes_max} bytes when unpacked")
        self._sum.update(block)
        return block

    def drain(self) -> None:
        """Read what follows the archive's end: tar pads to a tape's block, and it is summed too."""
        while self._refill():
            pass


@contextlib.contextmanager
def _plain_stream(source: Readable, limits: Limits) -> Iterator[_PlainStream]:
    chunks = decompress(source.read)
    try:
        yield _PlainStream(chunks, limits.layer_bytes_max)
    finally:
        chunks.close()
