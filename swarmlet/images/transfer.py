"""Blobs on their way between stores: from a peer, from a registry, into a file.

Trio. A source is anything that opens a blob at an offset. What comes is believed only when its
digest is right, a transfer that breaks off goes on where it stopped, also from another source, and
one that stalls is given up.
"""

from __future__ import annotations

import io
import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

import trio

from swarmlet.images.blobs import BLOCK_BYTES, Blobs
from swarmlet.images.document import DOCUMENT_BYTES_MAX
from swarmlet.images.errors import BlobNotFound, DigestMismatch, ImageError, NoSpace
from swarmlet.images.manifest import Descriptor
from swarmlet.images.reference import Digest, digest_of
from swarmlet.images.unpack import Readable

logger = logging.getLogger(__name__)

T = TypeVar("T")
Tar: TypeAlias = Path | AsyncIterable[bytes]
"""An archive: a file, or what a client sends."""

#: Seconds without a byte after which a source is given up.
STALL = 30.0
#: Worker threads of all image work together; the daemon has other work for its threads.
WORKERS_MAX = 4

#: What a source may do to us. Everything else is a bug of ours.
SOURCE_FAULTS = (
    OSError,
    EOFError,
    ImageError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.TooSlowError,
)


@dataclass(frozen=True, slots=True)
class BlobStream:
    """A blob that is coming: its whole *size* if that is known, and its bytes from *offset* on."""

    size: int | None
    offset: int
    chunks: AsyncIterator[bytes]


class BlobSource(Protocol):
    """Who may have blobs: an ImageStore, a peer, a registry."""

    def open_blob(
        self, digest: Digest, *, offset: int = 0, media_type: str | None = None
    ) -> AbstractAsyncContextManager[BlobStream]:
        """Open a blob at *offset*, or at 0 when the source can do no better.

        *media_type* is what the manifest says; registries keep manifests apart from blobs.
        Raises BlobNotFound when another source may have it, and what SOURCE_FAULTS lists when
        this source is of no more use, plainly and not in a group.
        """
        ...


class Workers:
    """Runs blocking functions in threads, a bounded number at a time."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(WORKERS_MAX)

    async def run(self, function: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(function, limiter=self._limiter)

    async def run_with_tar(
        self, tar: Tar, function: Callable[[Readable, Callable[[], None]], T]
    ) -> T:
        """Run *function* on a file or on a stream, with a `pulse` that ends it when cancelled.

        A stream that can be closed is closed, also when not all of it was read.
        """
        pulse = trio.from_thread.check_cancelled
        if not isinstance(tar, Path):
            try:
                return await self.run(partial(function, Feed(tar), pulse))
            finally:
                if isinstance(tar, AsyncGenerator):
                    await tar.aclose()

        def read_file(path: Path) -> T:
            with open(path, "rb", buffering=0) as file:
                return function(file, pulse)

        return await self.run(partial(read_file, tar))


class Feed:
    """An asynchronous stream as a file, for a worker thread."""

    def __init__(self, chunks: AsyncIterable[bytes]) -> None:
        self._chunks = aiter(chunks)
        self._rest = b""

    def read(self, count: int, /) -> bytes:
        if not self._rest:
            self._rest = trio.from_thread.run(self._next)
        found, self._rest = self._rest[:count], self._rest[count:]
        return found

    async def _next(self) -> bytes:
        async for chunk in self._chunks:
            if chunk:
                return chunk
        return b""


class Turns:
    """One at a time for each key. Nobody keeps a lock that no one waits for."""

    def __init__(self) -> None:
        self._locks: dict[str, trio.Lock] = {}

    @asynccontextmanager
    async def take(self, key: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault(key, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            statistics = lock.statistics()
            if not statistics.locked and statistics.tasks_waiting == 0:
                self._locks.pop(key, None)


class Fetcher:
    """Brings what is missing into a blob store."""

    def __init__(self, blobs: Blobs, workers: Workers) -> None:
        self._blobs = blobs
        self._workers = workers
        self._turns = Turns()

    async def fetch(self, blob: Descriptor, sources: list[BlobSource]) -> None:
        """Store *blob*, unless it is here, from the first of *sources* that gives it.

        Raises:
            BlobNotFound: No source gave it; says why for each.
            NoSpace: It does not fit.
        """

        def ask(source: BlobSource) -> Awaitable[None]:
            def opened(offset: int) -> AbstractAsyncContextManager[BlobStream]:
                return source.open_blob(blob.digest, offset=offset, media_type=blob.media_type)

            return self.ingest(blob.digest, blob.size, opened)

        if self._blobs.size(blob.digest) is None:
            await self._ask_each(blob.digest, sources, ask)

    async def fetch_document(
        self, digest: Digest, media_type: str | None, sources: list[BlobSource]
    ) -> bytes:
        """Return a manifest or an index whose size nobody knows yet, and store it."""
        if self._blobs.size(digest) is None:
            await self._ask_each(digest, sources, partial(self._read_document, digest, media_type))
        return await self._workers.run(partial(self._blobs.read, digest, DOCUMENT_BYTES_MAX))

    async def ingest(
        self,
        digest: Digest,
        size: int,
        opened: Callable[[int], AbstractAsyncContextManager[BlobStream]],
    ) -> None:
        """Store the blob that *opened* gives at an offset, unless it is here.

        Raises:
            DigestMismatch: The bytes are others; nothing of them is kept.
            NoSpace: It does not fit.
            Any of SOURCE_FAULTS: It broke off; the beginning is kept to go on from.
        """
        async with self._turns.take(digest):
            if self._blobs.size(digest) is not None:
                return
            with await self._workers.run(partial(self._blobs.write, digest, size)) as writer:
                async with opened(writer.offset) as stream:
                    if stream.size not in (None, size):
                        raise DigestMismatch(f"{digest} has {size} bytes, not {stream.size}")
                    if stream.offset != writer.offset:
                        writer.restart()
                    async with aclosing(_blocks(stream.chunks)) as blocks:
                        async for block in blocks:
                            await self._workers.run(partial(writer.write, block))
                await self._workers.run(writer.commit)

    async def _read_document(
        self, digest: Digest, media_type: str | None, source: BlobSource
    ) -> None:
        data = b""
        async with (
            source.open_blob(digest, media_type=media_type) as stream,
            aclosing(_blocks(stream.chunks)) as blocks,
        ):
            async for block in blocks:
                data += block
                if len(data) > DOCUMENT_BYTES_MAX:
                    raise DigestMismatch(f"{digest} is too long for a manifest")
        if digest_of(data) != digest:
            raise DigestMismatch(f"{digest} was wanted, but the bytes are {digest_of(data)}")
        await self._workers.run(partial(self._blobs.put, data))

    async def _ask_each(
        self,
        digest: Digest,
        sources: list[BlobSource],
        ask: Callable[[BlobSource], Awaitable[None]],
    ) -> None:
        """Ask in turn until one gives. A source that fails is taken out of *sources*, so that the
        next blob does not wait for it again; one that just lacks this blob stays.
        """
        reasons = []
        for source in tuple(sources):
            try:
                return await ask(source)
            except NoSpace:
                raise
            except BlobNotFound as error:
                reasons.append(str(error))
            except SOURCE_FAULTS as error:
                reasons.append(str(error) or type(error).__name__)
                sources.remove(source)
                logger.warning("image source failed digest=%s reason=%s", digest, reasons[-1])
        why = "; ".join(reasons) or "there is nobody (left) to ask"
        raise BlobNotFound(f"{digest} could not be had: {why}")


async def _blocks(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Join chunks to blocks that are worth a thread; give up on a stream that stalls.

    What came before a failure comes out before the failure does.
    """
    buffer = io.BytesIO()
    failure = None
    while True:
        try:
            with trio.fail_after(STALL):
                chunk = await anext(chunks, None)
        except Exception as error:
            failure = error
            break
        if chunk is None:
            break
        buffer.write(chunk)
        if buffer.tell() >= BLOCK_BYTES:
            yield buffer.getvalue()
            buffer = io.BytesIO()
    if buffer.tell():
        yield buffer.getvalue()
    if failure is not None:
        raise failure
