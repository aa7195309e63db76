"""Images on their way in: from a root file system, from an archive, from sources of blobs.

Trio. Each way ends with records whose blobs are all here and held; the store then names them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from swarmlet.images.archive import Loaded, import_layer, load_archive
from swarmlet.images.blobs import Blobs
from swarmlet.images.catalog import ImageRecord
from swarmlet.images.changes import apply_changes
from swarmlet.images.config import History, ImageConfig, encode_config
from swarmlet.images.errors import BadArchive, BadManifest, BlobNotFound, NoPlatform
from swarmlet.images.manifest import (
    OCI_CONFIG,
    Descriptor,
    Index,
    Manifest,
    Platform,
    decode_manifest_untrusted,
    encode_manifest,
    select_platform,
)
from swarmlet.images.placing import Limits
from swarmlet.images.records import missing_blobs, read_image
from swarmlet.images.reference import Digest, Reference, digest_of
from swarmlet.images.transfer import BlobSource, Fetcher, Tar, Workers

logger = logging.getLogger(__name__)

Hold = Callable[[Digest], bool]
"""Blobs.hold, with somebody who releases: True says that the blob is here."""


@dataclass(frozen=True, slots=True)
class Intake:
    blobs: Blobs
    workers: Workers
    fetcher: Fetcher
    platform: Platform
    limits: Limits

    async def import_rootfs(
        self,
        tar: Tar,
        names: Sequence[Reference],
        changes: Sequence[str],
        message: str,
        created: datetime | None,
        hold: Hold,
    ) -> ImageRecord:
        plain = ImageConfig(self.platform.architecture, variant=self.platform.variant)
        config = apply_changes(plain, changes)
        layer, facts = await self.workers.run_with_tar(
            tar, lambda source, pulse: import_layer(source, self.blobs, hold, self.limits, pulse)
        )
        moment = (created or datetime.now(UTC)).isoformat().replace("+00:00", "Z")
        history = History(created=moment, comment=message or "Imported from a root file system")
        config = replace(config, created=moment, diff_ids=(facts.diff_id,), history=(history,))
        return await self.workers.run(
            partial(self._put_image, encode_config(config), layer, names, hold)
        )

    def _put_image(
        self, config: bytes, layer: Descriptor, names: Sequence[Reference], hold: Hold
    ) -> ImageRecord:
        hold(digest_of(config))
        described = Descriptor(self.blobs.put(config), len(config), OCI_CONFIG)
        manifest = encode_manifest(Manifest(described, (layer,)))
        hold(digest_of(manifest))
        return read_image(self.blobs, self.blobs.put(manifest), names, self.platform)

    async def load(self, tar: Tar, hold: Hold) -> list[ImageRecord]:
        loaded = await self.workers.run_with_tar(
            tar, lambda source, pulse: load_archive(source, self.blobs, hold, pulse)
        )
        return await self.workers.run(partial(self._read_loaded, loaded))

    def _read_loaded(self, loaded: Iterable[Loaded]) -> list[ImageRecord]:
        images = []
        for item in loaded:
            try:
                image = read_image(self.blobs, item.target.digest, item.names, self.platform)
            except (BadManifest, BlobNotFound, NoPlatform) as error:
                raise BadArchive(f"the archive does not hold a whole image: {error}") from error
            if absent := missing_blobs(self.blobs, image):
                raise BadArchive(f"the archive lacks {absent[0].digest}, which its image needs")
            images.append(image)
        if not images:
            raise BadArchive("the archive holds no image")
        return images

    async def fetch(
        self, digest: Digest, sources: Sequence[BlobSource], names: Sequence[Reference], hold: Hold
    ) -> ImageRecord:
        asked = list(sources)
        manifest = await self._fetch_manifest(digest, asked, hold)
        content = {blob.digest: blob for blob in (manifest.config, *manifest.layers)}
        missing = [blob for blob in content.values() if not hold(blob.digest)]
        wanted = sum(blob.size for blob in missing)
        await self.workers.run(partial(self.blobs.check_space, wanted))
        for blob in missing:
            await self.fetcher.fetch(blob, asked)
        image = await self.workers.run(
            partial(read_image, self.blobs, digest, names, self.platform)
        )
        if absent := missing_blobs(self.blobs, image):
            raise BadManifest(
                f"{absent[0].digest} has not the {absent[0].size} bytes that the manifest gives it"
            )
        logger.info("image fetched digest=%s blobs=%d bytes=%d", digest, len(missing), wanted)
        return image

    async def _fetch_manifest(
        self, digest: Digest, asked: list[BlobSource], hold: Hold
    ) -> Manifest:
        hold(digest)
        decoded = decode_manifest_untrusted(await self.fetcher.fetch_document(digest, None, asked))
        if isinstance(decoded, Manifest):
            return decoded
        entry = select_platform(decoded, self.platform)
        hold(entry.digest)
        data = await self.fetcher.fetch_document(entry.digest, entry.media_type, asked)
        inner = decode_manifest_untrusted(data, entry.media_type)
        if isinstance(inner, Index):
            raise BadManifest(f"{entry.digest} is an index inside of an index")
        return inner
