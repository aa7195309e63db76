"""A source of blobs that a test fills, with the faults of real ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import trio

from swarmlet.images.errors import BlobNotFound
from swarmlet.images.reference import Digest
from swarmlet.images.transfer import BlobStream


@dataclass
class Shelf:
    """What is not on it is not found; what *breaks_after* some bytes does so once."""

    blobs: dict[Digest, bytes]
    breaks_after: dict[Digest, int] = field(default_factory=dict)
    breaks_with: Exception = field(default_factory=lambda: trio.BrokenResourceError("the cable"))
    asked: list[tuple[Digest, int]] = field(default_factory=list)

    @asynccontextmanager
    async def open_blob(
        self, digest: Digest, *, offset: int = 0, media_type: str | None = None
    ) -> AsyncIterator[BlobStream]:
        self.asked.append((digest, offset))
        if digest not in self.blobs:
            raise BlobNotFound(f"{digest} is not on the shelf")
        data = self.blobs[digest]
        async with aclosing(self._chunks(digest, data[offset:])) as chunks:
            yield BlobStream(len(data), offset, chunks)

    async def _chunks(self, digest: Digest, data: bytes) -> AsyncIterator[bytes]:
        limit = self.breaks_after.pop(digest, None)
        yield data[:limit]
        if limit is not None:
            raise self.breaks_with
