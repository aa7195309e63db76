"""Reading images out of the blob store, and the catalog of all of them from the disk and back.

Sync: call it in a worker thread.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from swarmlet.images.blobs import Blobs
from swarmlet.images.catalog import Catalog, ImageRecord
from swarmlet.images.config import ImageConfig, decode_config_untrusted
from swarmlet.images.document import DOCUMENT_BYTES_MAX
from swarmlet.images.errors import BadManifest, BadReference, BlobNotFound, ImageError, NoPlatform
from swarmlet.images.files import write_whole
from swarmlet.images.manifest import (
    MANIFESTS,
    Descriptor,
    Index,
    Manifest,
    Platform,
    decode_manifest_untrusted,
    rank,
)
from swarmlet.images.reference import Digest, Reference
from swarmlet.images.table import LAYOUT, decode_table, encode_table

logger = logging.getLogger(__name__)

#: Behind every platform that the host can run.
LAST = 1_000


def read_image(
    blobs: Blobs, digest: Digest, names: Sequence[Reference], host: Platform
) -> ImageRecord:
    """Return the image *digest* as *host* uses it.

    Of an index all platforms that are here count as content, for the nodes that run those; where
    none of them is the host's, the first stands for the image.

    Raises:
        BlobNotFound: Its manifest or its configuration is not here; layers may be missing.
        BadManifest: They do not fit together.
        NoPlatform: It is an index, and no image of it is here.
    """
    data = blobs.read(digest, DOCUMENT_BYTES_MAX)
    decoded = decode_manifest_untrusted(data)
    target = Descriptor(digest, len(data), decoded.media_type)
    if isinstance(decoded, Manifest):
        config = read_config(blobs, decoded)
        content = (target, decoded.config, *decoded.layers)
        return ImageRecord(target, digest, decoded, config, _unique(content), tuple(names))
    return _read_index(blobs, target, decoded, names, host)


def _read_index(
    blobs: Blobs, target: Descriptor, index: Index, names: Sequence[Reference], host: Platform
) -> ImageRecord:
    found: list[tuple[tuple[int, bool], Descriptor, Manifest, ImageConfig]] = []
    for entry in index.manifests:
        if entry.media_type not in MANIFESTS or blobs.size(entry.digest) is None:
            continue
        manifest = decode_manifest_untrusted(
            blobs.read(entry.digest, DOCUMENT_BYTES_MAX), entry.media_type
        )
        if not isinstance(manifest, Manifest):
            raise BadManifest(f"{entry.digest} is an index inside of an index")
        try:
            config = read_config(blobs, manifest)
        except BlobNotFound:
            continue
        place = rank(host, entry.platform or config.platform)
        lacks = any(blobs.size(layer.digest) is None for layer in manifest.layers)
        found.append(((LAST if place is None else place, lacks), entry, manifest, config))
    if not found:
        raise NoPlatform(f"{target.digest} is an index, but no image of it is here")
    content = [target]
    best = min(found, key=lambda item: item[0])
    for item in found:
        (_, lacks), entry, manifest, _ = item
        if item is best or not lacks:
            content += [entry, manifest.config, *manifest.layers]
    _, entry, manifest, config = best
    return ImageRecord(target, entry.digest, manifest, config, _unique(content), tuple(names))


def read_config(blobs: Blobs, manifest: Manifest) -> ImageConfig:
    """Return the configuration that *manifest* names, checked against it."""
    config = decode_config_untrusted(blobs.read(manifest.config.digest, DOCUMENT_BYTES_MAX))
    if len(config.diff_ids) != len(manifest.layers):
        raise BadManifest(
            f"rootfs.diff_ids: {len(config.diff_ids)} for the {len(manifest.layers)} layers"
            " of the manifest"
        )
    return config


def missing_blobs(blobs: Blobs, image: ImageRecord) -> list[Descriptor]:
    """Return what the image needs on this host and does not have (or has in another length)."""
    needed = (*image.content[:1], image.manifest.config, *image.manifest.layers)
    return [blob for blob in needed if blobs.size(blob.digest) != blob.size]


def _unique(content: Sequence[Descriptor]) -> tuple[Descriptor, ...]:
    """An image may use one layer twice; it is one blob."""
    return tuple({blob.digest: blob for blob in content}.values())


def read_catalog(root: Path, blobs: Blobs, host: Platform) -> Catalog:
    """Return the images that the table on the disk names and that can be read."""
    if not (root / "oci-layout").exists():
        write_whole(root / "oci-layout", LAYOUT)
    catalog = Catalog()
    for digest, names in _read_table(root / "index.json", blobs).items():
        try:
            catalog = catalog.with_image(read_image(blobs, digest, names, host))
        except ImageError as error:
            logger.warning("image dropped digest=%s reason=%s", digest, error)
    return catalog


def write_catalog(root: Path, blobs: Blobs, catalog: Catalog) -> None:
    """Make the table durable, after the names of the blobs that it speaks of."""
    blobs.sync_names()
    data = encode_table((image.target, image.names) for image in catalog)
    write_whole(root / "index.json", data)


def _read_table(path: Path, blobs: Blobs) -> Mapping[Digest, Sequence[Reference]]:
    try:
        return {digest: names for digest, (_, names) in decode_table(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (BadManifest, BadReference) as error:
        # Without its names an image is still there for the tasks that pinned its digest.
        logger.error("image table lost names=all reason=%s", error)
        path.replace(path.with_name("index.json.damaged"))
        return dict.fromkeys(_find_manifests(blobs), ())


def _find_manifests(blobs: Blobs) -> list[Digest]:
    found: list[Digest] = []
    children: set[Digest] = set()
    for digest in blobs.digests():
        try:
            decoded = decode_manifest_untrusted(blobs.read(digest, DOCUMENT_BYTES_MAX))
        except ImageError:
            continue
        found.append(digest)
        if isinstance(decoded, Index):
            children |= {entry.digest for entry in decoded.manifests}
    return [digest for digest in found if digest not in children]
