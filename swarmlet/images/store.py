"""The images of this node: stored by digest, named by a table, unpacked once, shared with peers.

Trio. All work on the disk runs in threads, a few at a time; what is in memory is answered at once.
One store owns its folder:

    oci-layout, index.json, blobs/   an OCI image layout, as skopeo reads it (table.py, blobs.py)
    ingest/, layers/                 what is coming, what is unpacked (blobs.py, layers.py)
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Generator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import trio

from swarmlet.images.archive import rechunk, save_archive
from swarmlet.images.blobs import Blobs, holding
from swarmlet.images.catalog import Catalog, ImageRecord, is_pinned
from swarmlet.images.config import ImageConfig
from swarmlet.images.errors import (
    BadLayer,
    BadReference,
    BlobNotFound,
    DigestMismatch,
    ImageError,
    ImageInUse,
    ImageNotFound,
)
from swarmlet.images.intake import Hold, Intake
from swarmlet.images.layers import Layers
from swarmlet.images.manifest import Descriptor, Platform, host_platform
from swarmlet.images.placing import Limits
from swarmlet.images.records import missing_blobs, read_catalog, write_catalog
from swarmlet.images.reference import Digest, Reference, parse_reference
from swarmlet.images.table import ENTRIES_MAX
from swarmlet.images.transfer import BlobSource, BlobStream, Fetcher, Tar, Turns, Workers
from swarmlet.images.unpack import remove_tree

logger = logging.getLogger(__name__)

#: Seconds after an unpacking until the disk is asked to settle it: several layers at once, and the
#: container that waits for them is up by then.
SETTLE_DELAY = 5.0
#: Seconds for which the blobs of a fetch that broke off wait for the next one.
ORPHAN_AGE = 3600.0
#: Seconds that settling may take when the daemon stops.
SETTLE_GRACE = 10.0


@dataclass(frozen=True, slots=True)
class ImageSummary:
    """A row of `image ls`. *unpacked_size* is None before the first container of the image."""

    id: Digest
    digest: Digest
    references: tuple[str, ...]
    size: int
    unpacked_size: int | None
    created_at: float
    labels: dict[str, str]
    platform: Platform
    repositories: tuple[str, ...] = ()  # of all names, those that came with a digest as well


@dataclass(frozen=True, slots=True)
class Removal:
    """What a removal did: names that went, ids of images that went, bytes that came free."""

    untagged: tuple[str, ...] = ()
    deleted: tuple[Digest, ...] = ()
    freed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DiskUsage:
    blob_bytes: int
    layer_bytes: int


class ImageStore:
    """See the module. Call open() first, or start run() and let it settle layers behind you."""

    def __init__(
        self,
        root: Path,
        *,
        platform: Platform | None = None,
        limits: Limits | None = None,
        boot: str | None = None,
    ) -> None:
        """Of a host with *platform* (this one's), in the kernel's *boot* (the one that runs)."""
        limits = limits or Limits()
        self.platform = platform or host_platform(os.uname().machine)
        self._root = root
        self._limits = limits
        self._blobs = Blobs(root, free_bytes_min=limits.free_bytes_min)
        self._layers = Layers(root, limits, boot=boot)
        self._workers = Workers()
        self._fetcher = Fetcher(self._blobs, self._workers)
        self._intake = Intake(self._blobs, self._workers, self._fetcher, self.platform, limits)
        self._unpacking = Turns()
        self._held_chains: Counter[Digest] = Counter()
        self._catalog = Catalog()
        #: Whoever changes the catalog has this, from reading it to having written it.
        self._changing = trio.Lock()
        self._unsettled: trio.Event | None = None

    # Life.
    async def open(self) -> None:
        """Make or find the folders, remove what a crash left, and read the table."""
        await self._workers.run(self._open)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the store, and until cancelled make durable what gets unpacked.

        With this running unpack() returns before the disk has everything, so that a container's
        first start does not wait for an SD card.
        """
        await self.open()
        self._unsettled = trio.Event()
        task_status.started()
        try:
            while True:
                if self._layers.is_settled:
                    await self._unsettled.wait()
                self._unsettled = trio.Event()
                await trio.sleep(SETTLE_DELAY)
                await self._workers.run(self._layers.settle)
        finally:
            self._unsettled = None
            with trio.move_on_after(SETTLE_GRACE, shield=True):
                await trio.to_thread.run_sync(self._layers.settle, abandon_on_cancel=True)

    def _open(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._blobs.recover()
        self._layers.recover()
        self._catalog = read_catalog(self._root, self._blobs, self.platform)
        logger.info("image store opened images=%d", len(self._catalog.images))

    # Asking.
    def images(self) -> tuple[ImageSummary, ...]:
        return tuple(self.summary(image) for image in self._catalog)

    def summary(self, image: ImageRecord) -> ImageSummary:
        layers = [self._layers.find(chain_id) for chain_id in image.chain]
        return ImageSummary(
            image.id,
            image.digest,
            image.references,
            image.size,
            sum(layer.size for layer in layers if layer) if all(layers) else None,
            image.config.created_at,
            dict(image.config.labels),
            image.config.platform,
            tuple(sorted({name.familiar_name for name in image.names})),
        )

    def resolve(self, text: str) -> ImageRecord:
        """Return the image that a name, a digest, an id or its beginning means.

        Raises:
            ImageNotFound, AmbiguousImage, BadReference: With what to do.
        """
        return self._catalog.resolve(text)

    def find(self, digest: Digest) -> ImageRecord:
        """Return the image with this target, manifest or id. Raises ImageNotFound."""
        image = self._catalog.by_digest(digest)
        if image is None:
            raise ImageNotFound(f"{digest} is not on this node; fetch it from a node that has it")
        return image

    def config(self, digest: Digest) -> ImageConfig:
        return self.find(digest).config

    def blobs(self, digest: Digest) -> tuple[Descriptor, ...]:
        """Return all that belongs to an image, its manifest or index first."""
        return self.find(digest).content

    def has(self, digest: Digest) -> bool:
        """Whether the blob *digest* is here."""
        return self._blobs.size(digest) is not None

    def is_complete(self, digest: Digest) -> bool:
        """Whether the image *digest* is here with all that this host needs to run it."""
        image = self._catalog.by_digest(digest)
        return image is not None and not missing_blobs(self._blobs, image)

    def layers(self, digest: Digest) -> tuple[Path, ...]:
        """Return the lower directories of an image, topmost first.

        Raises:
            ImageError: unpack() did not bring them all into being yet.
        """
        found = [self._layers.find(chain_id) for chain_id in self.find(digest).chain]
        paths = [layer.path for layer in found if layer]
        if len(paths) != len(found):
            raise ImageError(f"{digest} is not unpacked; unpack it before it is used")
        return tuple(reversed(paths))

    def disk_usage(self) -> DiskUsage:
        return DiskUsage(self._blobs.total_bytes, self._layers.total_bytes)

    # Bringing in.
    async def import_rootfs(
        self,
        tar: Tar,
        *,
        reference: str | None,
        changes: Sequence[str] = (),
        message: str = "",
        created: datetime | None = None,
    ) -> ImageSummary:
        """Make an image of one layer from a root file system's tar, as `docker import` does.

        Raises:
            BadReference, BadChange: Before a byte is read.
            BadLayer: The tar is none, or is hostile. Nothing is left of it.
        """
        names = (_taggable(reference),) if reference else ()
        async with self._incoming() as hold:
            image = await self._intake.import_rootfs(tar, names, changes, message, created, hold)
            await self._add([image])
        return self.summary(self.find(image.digest))

    async def load(self, tar: Tar) -> tuple[str, ...]:
        """Take in the images of an archive; return their names, or ids where they have none.

        The archive is `docker save`'s or an OCI layout, compressed or not. All of it or nothing.

        Raises:
            BadArchive: What is wrong with it.
        """
        async with self._incoming() as hold:
            images = await self._intake.load(tar, hold)
            await self._add(images)
        return tuple(text for image in images for text in (image.references or (image.id,)))

    async def fetch(
        self, digest: Digest, *sources: BlobSource, reference: str | None = None
    ) -> ImageRecord:
        """Bring the image *digest* from the first of *sources* that has it, blob by blob.

        What is here already is not asked for, and a transfer that broke off goes on, now or later
        and from any source. *reference* is the name it is known by in the cluster; it is stored
        with the digest and moves no tag.

        Raises:
            BlobNotFound: No source has all of it; says why for each.
            NoSpace: It does not fit beside the disk's reserve.
            BadManifest, NoPlatform: It is no image, or none for this host.
        """
        names = (replace(parse_reference(reference), tag=None, digest=digest),) if reference else ()
        with holding(self._blobs) as hold:
            image = await self._intake.fetch(digest, sources, names, hold)
            await self._add([image])
        return self.find(digest)

    async def ingest(self, digest: Digest, size: int, chunks: AsyncIterator[bytes]) -> None:
        """Store one blob. Raises DigestMismatch, NoSpace."""

        @asynccontextmanager
        async def opened(_: int) -> AsyncIterator[BlobStream]:
            yield BlobStream(size, 0, chunks)

        await self._fetcher.ingest(digest, size, opened)

    # Giving out.
    @asynccontextmanager
    async def open_blob(
        self, digest: Digest, *, offset: int = 0, media_type: str | None = None
    ) -> AsyncIterator[BlobStream]:
        """Open a blob for a peer: a store is a BlobSource.

        A blob that is read from its start is verified on the way, and the last bytes of a rotten
        one never leave: DigestMismatch ends the stream, and the blob is gone from here.
        """
        size = self._blobs.size(digest)
        if size is None:
            raise BlobNotFound(f"{digest} is not on this node")
        offset = min(offset, size)
        with self._held([digest]):
            blocks = self._blobs.read_blocks(digest, offset)
            async with aclosing(self._stream(blocks)) as chunks:
                yield BlobStream(size, offset, chunks)

    def save(self, texts: Sequence[str]) -> AsyncGenerator[bytes, None]:
        """Return an archive of the images *texts*, for `docker load`, skopeo and load().

        An image that is asked for by name carries that name alone, one asked for by id none.

        Raises:
            ImageNotFound: At once, before the first byte.
        """
        chosen: dict[Digest, tuple[ImageRecord, list[Reference]]] = {}
        for text in texts:
            image = self.resolve(text)
            _, names = chosen.setdefault(image.digest, (image, []))
            name = _name_in(text, image)
            if name and name not in names:
                names.append(name)
        return self._save(list(chosen.values()))

    async def _save(
        self, chosen: Sequence[tuple[ImageRecord, Sequence[Reference]]]
    ) -> AsyncGenerator[bytes, None]:
        images = []
        for image, names in chosen:
            size = self._blobs.size(image.manifest_digest) or 0
            target = Descriptor(image.manifest_digest, size, image.manifest.media_type)
            images.append((target, image.manifest, names))
        with self._held([blob.digest for image, _ in chosen for blob in image.content]):
            async with aclosing(self._stream(rechunk(save_archive(images, self._blobs)))) as blocks:
                async for block in blocks:
                    yield block

    # Unpacking.
    async def unpack(self, digest: Digest) -> tuple[Path, ...]:
        """Have every layer of an image unpacked; return the lower directories, topmost first.

        Raises:
            BlobNotFound: A layer is missing or was rotten: fetch the image again.
            BadLayer, DigestMismatch, NoSpace: The image cannot be unpacked here.
        """
        image = self.find(digest)
        chain = image.chain
        self._held_chains.update(chain)
        try:
            with self._held([layer.digest for layer in image.manifest.layers]):
                parents: list[Path] = []
                for place, chain_id in enumerate(chain):
                    async with self._unpacking.take(chain_id):
                        if self._layers.find(chain_id) is None:
                            await self._workers.run(
                                partial(self._unpack, image, place, chain_id, tuple(parents))
                            )
                    layer = self._layers.find(chain_id)
                    assert layer is not None, chain_id
                    parents.insert(0, layer.path)
            if self._unsettled is not None:
                self._unsettled.set()
            else:
                await self._workers.run(self._layers.settle)
            return tuple(parents)
        finally:
            self._held_chains.subtract(chain)
            self._held_chains = +self._held_chains

    def _unpack(
        self, image: ImageRecord, place: int, chain_id: Digest, parents: Sequence[Path]
    ) -> None:
        blob = image.manifest.layers[place].digest
        diff_id = image.config.diff_ids[place]
        pulse = trio.from_thread.check_cancelled
        try:
            with self._blobs.open(blob) as source:
                self._layers.unpack(source, chain_id, diff_id, parents, pulse)
        except (BadLayer, DigestMismatch):
            if not self._blobs.verify(blob):
                raise BlobNotFound(f"{blob} was damaged on this node's disk and is gone") from None
            raise

    # Naming and removing.
    async def tag(self, source: str, target: str) -> None:
        """Give the image *source* the name *target*, taking it from the one that had it."""
        name = _taggable(target)
        async with self._changing:
            image = self.resolve(source)
            await self._commit(self._catalog.with_name(image.digest, name))
        logger.info("image tagged reference=%s digest=%s", name.familiar, image.digest)

    async def remove(
        self, text: str, *, force: bool = False, pins: Collection[Digest] = ()
    ) -> Removal:
        """Take a name away, and with its last name the image, as `docker image rm` does.

        *pins* are the images that something on this node or in the cluster's specs needs. With
        *force* a pinned image loses its names only, and an id may stand for all of its names.

        Raises:
            ImageNotFound, ImageInUse: Nothing was done.
        """
        async with self._changing:
            image = self.resolve(text)
            name = _name_in(text, image)
            gone = (name,) if name else image.names
            stays = any(kept.tag and kept not in gone for kept in image.names)
            if name is None and len(image.references) > 1 and not force:
                raise ImageInUse(
                    f"{text} has the names {', '.join(image.references)};"
                    " remove those, or use force to remove all"
                )
            pinned = is_pinned(image, pins)
            if pinned and not stays and not force:
                raise ImageInUse(
                    f"{text} is needed by a container, or by a service's current or previous"
                    " version; remove those first, or use force to take the name away only"
                )
            catalog = self._catalog.without_names(gone)
            deleted = () if stays or pinned else (image,)
            catalog = catalog.without([item.digest for item in deleted])
            await self._commit(catalog)
            freed = await self._discard({blob.digest for item in deleted for blob in item.content})
        untagged = tuple(item.familiar for item in gone)
        return Removal(untagged, tuple(item.id for item in deleted), freed)

    async def collect(self, pins: Collection[Digest], *, tagged_too: bool = False) -> Removal:
        """Remove the images that no pin needs and that have no tag, and all that belongs to none.

        Blobs of images that never came whole are spared for ORPHAN_AGE, to go on with.

        *pins* are digests of targets, manifests or ids: what tasks on this node use, and what
        current and previous specs of the cluster say. With *tagged_too* a tag protects no more
        (`image prune --all`).
        """
        async with self._changing:
            unwanted = self._catalog.unwanted(pins, tagged_too=tagged_too)
            images = [image for image in self._catalog if image.digest in unwanted]
            if images:
                await self._commit(self._catalog.without(unwanted))
            gone = {blob.digest for image in images for blob in image.content}
            orphans = set(self._blobs.digests()) - self._catalog.blobs() - gone
            aged = await self._workers.run(partial(self._blobs.older, orphans, ORPHAN_AGE))
            freed = await self._discard(gone | set(aged))
            await self._workers.run(self._blobs.discard_partials)
        untagged = tuple(text for image in images for text in image.references)
        if images or freed:
            logger.info("images collected images=%d bytes=%d", len(images), freed)
        return Removal(untagged, tuple(image.id for image in images), freed)

    async def _discard(self, candidates: Collection[Digest]) -> int:
        """Drop those blobs, and all layers, that no image of the catalog needs."""
        needed = self._catalog.blobs()
        files, blob_bytes = self._blobs.discard([d for d in candidates if d not in needed])
        folders, layer_bytes = self._layers.discard(self._catalog.chains() | set(self._held_chains))

        def remove() -> None:
            for file in files:
                file.unlink(missing_ok=True)
            for folder in folders:
                remove_tree(folder)

        await self._workers.run(remove)
        return blob_bytes + layer_bytes

    @contextmanager
    def _held(self, digests: Collection[Digest]) -> Iterator[None]:
        with holding(self._blobs) as hold:
            for digest in digests:
                hold(digest)
            yield

    async def _stream(self, blocks: Generator[bytes, None, None]) -> AsyncGenerator[bytes, None]:
        """Take *blocks*, which read the disk, one by one in a thread."""
        try:
            while block := await self._workers.run(partial(next, blocks, b"")):
                yield block
        finally:
            blocks.close()

    @asynccontextmanager
    async def _incoming(self) -> AsyncIterator[Hold]:
        """Hold what comes; at the end throw away what came and became no part of an image."""
        came: list[Digest] = []
        try:
            with holding(self._blobs) as hold_blob:

                def hold(digest: Digest) -> bool:
                    came.append(digest)
                    return hold_blob(digest)

                yield hold
        finally:
            with trio.CancelScope(shield=True):  # a few renames and unlinks
                await self._discard(came)

    # The catalog.
    async def _add(self, images: Sequence[ImageRecord]) -> None:
        async with self._changing:
            catalog = self._catalog
            for image in images:
                catalog = catalog.with_image(image)
            await self._commit(catalog)
        for image in images:
            logger.info("image added digest=%s names=%s", image.digest, ",".join(image.references))

    async def _commit(self, catalog: Catalog) -> None:
        """Write *catalog*, then believe it. The caller has the lock."""
        entries = sum(max(1, len(image.names)) for image in catalog)
        if entries > ENTRIES_MAX:
            raise ImageError(f"the store would have {entries} names; {ENTRIES_MAX} are allowed")
        await self._workers.run(partial(write_catalog, self._root, self._blobs, catalog))
        self._catalog = catalog


def _taggable(text: str) -> Reference:
    name = parse_reference(text)
    if name.digest:
        raise BadReference(f"{text!r}: a name that is given to an image has no digest")
    return name


def _name_in(text: str, image: ImageRecord) -> Reference | None:
    """Return the name of *image* that *text* is; None when *text* is an id or a digest."""
    with suppress(BadReference):
        name = parse_reference(text)
        if name in image.names:
            return name
    return None
