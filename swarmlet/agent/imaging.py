"""Images on this host: the one that a task needs, from the nodes that have it.

A shell. The assignment says which nodes hold an image whole; its blobs come from them over mTLS,
and each is believed only if its digest fits.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import trio

from swarmlet.agent.assignment import Assignment
from swarmlet.codec import BadMessage
from swarmlet.images.config import ImageConfig
from swarmlet.images.errors import BlobNotFound, ImageError, ImageNotFound
from swarmlet.images.reference import Digest, parse_reference
from swarmlet.images.store import ImageStore
from swarmlet.images.transfer import BlobSource, BlobStream
from swarmlet.model import NodeId
from swarmlet.session import BlobAnswer, BlobRequest, ImageView, Kind, NodeView
from swarmlet.transport import FrameStream

logger = logging.getLogger(__name__)

#: Bytes of a blob in one frame.
CHUNK_BYTES = 256 * 1024
#: How long, and how often, a node looks for somebody who has the image: the word that another
#: node holds it may still be on its way.
FETCH_ATTEMPTS = 4
FETCH_PAUSE = 1.5
#: Seconds that a registry has for a whole image; what came stays, and the next try goes on.
REGISTRY_PATIENCE = 600.0

#: Opens a stream of sl-sync/1 to a node.
Dial = Callable[[NodeView], Awaitable[FrameStream]]


@dataclass(frozen=True, slots=True)
class UnpackedImage:
    digest: str
    config: ImageConfig
    layers: tuple[str, ...]  # base first


class PeerSource:
    """Another node as a source of blobs."""

    def __init__(self, node: NodeView, dial: Dial) -> None:
        self._node = node
        self._dial = dial

    def __str__(self) -> str:
        return f"node {self._node.name}"

    @asynccontextmanager
    async def open_blob(
        self, digest: Digest, *, offset: int = 0, media_type: str | None = None
    ) -> AsyncIterator[BlobStream]:
        stream = await self._dial(self._node)
        async with stream:
            await stream.send(BlobRequest(digest, offset))
            try:
                answer = await stream.receive()
            except BadMessage as exc:
                raise BlobNotFound(f"node {self._node.name}: {exc}") from exc
            if not isinstance(answer, BlobAnswer) or answer.size < 0:
                error = answer.error if isinstance(answer, BlobAnswer) else "it answered nonsense"
                raise BlobNotFound(f"node {self._node.name}: {error}")
            yield BlobStream(answer.size, offset, _chunks(stream, answer.size - offset))


async def _chunks(stream: FrameStream, left: int) -> AsyncIterator[bytes]:
    while left > 0:
        chunk = await stream.receive_body()
        left -= len(chunk)
        yield chunk


async def serve_blob(store: ImageStore, stream: FrameStream, request: BlobRequest) -> None:
    """Send the blob that a peer asked for. Whoever may ask is the transport's decision."""
    try:
        async with store.open_blob(Digest(request.digest), offset=request.offset) as blob:
            assert blob.size is not None, "our own store knows the size of what it has"
            await stream.send(BlobAnswer(blob.size))
            async for chunk in blob.chunks:
                for start in range(0, len(chunk), CHUNK_BYTES):
                    await stream.send_bodies([chunk[start : start + CHUNK_BYTES]])
    except ImageError as exc:
        await stream.send(BlobAnswer(-1, str(exc)))


class Images:
    """Brings in what tasks need; two tasks that need the same image wait for one transfer."""

    def __init__(self, store: ImageStore, own: NodeId, dial: Dial) -> None:
        self.store = store
        self._own = own
        self._dial = dial
        self._assignment = Assignment()
        self._fetching: dict[str, trio.Lock] = {}

    def assign(self, assignment: Assignment) -> None:
        self._assignment = assignment

    async def ensure(self, image: str) -> UnpackedImage:
        """Return *image* ("name:tag@digest", or a name that this node knows), ready to run.

        Raises:
            ImageError: it is not to be had; the text says what was tried and what to do.
        """
        name, _, digest = image.partition("@")
        if not digest:
            digest = self.store.resolve(name).digest
        if not self._is_here(digest):
            async with self._fetching.setdefault(digest, trio.Lock()):
                if not self._is_here(digest):
                    await self._fetch(name, digest)
            self._fetching.pop(digest, None)
        layers = await self.store.unpack(Digest(digest))
        paths = tuple(str(path) for path in reversed(layers))
        return UnpackedImage(digest, self.store.config(Digest(digest)), paths)

    def _is_here(self, digest: str) -> bool:
        return self.store.is_complete(Digest(digest))

    async def _fetch(self, name: str, digest: str) -> None:
        """Bring the image from another node, or else from its registry."""
        failures: list[str] = []
        for attempt in range(FETCH_ATTEMPTS):
            if attempt:
                await trio.sleep(FETCH_PAUSE)
            try:
                await self._fetch_once(name, digest)
            except (ImageError, OSError) as exc:
                failures.append(str(exc))
                continue
            return
        raise ImageNotFound(
            f"image {name} is not on this node and could not be fetched ({failures[-1]}): load it "
            "on any node of the cluster"
        )

    async def _fetch_once(self, name: str, digest: str) -> None:
        sources = self._sources(digest)
        if sources:
            with suppress(BlobNotFound):
                await self.store.fetch(Digest(digest), *sources, reference=name)
                return
        # Imported late: most nodes at the edge never speak to a registry.
        from swarmlet.images.registry import Registry

        reference = parse_reference(f"{name}@{digest}")
        with trio.move_on_after(REGISTRY_PATIENCE):
            async with Registry(reference) as registry:
                await self.store.fetch(Digest(digest), registry, reference=name)
            return
        raise ImageNotFound(f"the registry of {name} did not answer in {REGISTRY_PATIENCE:g} s")

    def _sources(self, digest: str) -> list[BlobSource]:
        holders = self._assignment.find(Kind.IMAGE, digest, ImageView)
        if holders is None:
            return []
        nodes = (self._assignment.find(Kind.NODE, node, NodeView) for node in holders.nodes)
        return [
            PeerSource(node, self._dial)
            for node in nodes
            if node is not None and node.id != self._own and node.address
        ]
