"""`docker commit`: the image of a container, and one layer of what the container changed.

A Trio shell. The layer goes to a file that has no name, since its digest is known at its end; then
the store takes it in like any archive: a manifest, a configuration and the one layer that it does
not have yet. Imported when the first commit comes.
"""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO

import trio

from swarmlet.agent.local.changes import LayerOut
from swarmlet.images.changes import apply_changes
from swarmlet.images.config import History, ImageConfig, encode_config
from swarmlet.images.manifest import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    encode_manifest,
)
from swarmlet.images.reference import Digest, Reference, digest_of
from swarmlet.images.store import ImageStore
from swarmlet.images.table import LAYOUT, encode_table

#: gzip's fastest, as other layers are stored.
LEVEL = 1
CHUNK_BYTES = 256 * 1024


async def commit(
    images: ImageStore,
    base: Digest,
    upper: Path,
    config: ImageConfig,
    *,
    reference: Reference | None,
    comment: str,
    author: str,
    changes: list[str],
    folder: Path,
) -> Digest:
    """Make an image of *base* under the writable layer *upper*; return its id.

    *config* says how it starts; *folder* is where the layer may lie meanwhile.

    Raises:
        ImageError: the base is gone, a change cannot be, or the disk is full.
    """
    record = images.find(base)
    config = apply_changes(config, changes)
    await trio.to_thread.run_sync(partial(folder.mkdir, 0o700, parents=True, exist_ok=True))
    with tempfile.TemporaryFile(dir=folder) as file:
        layer, diff_id = await trio.to_thread.run_sync(write_layer, upper, file)
        moment = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        history = History(moment, " ".join(config.argv), author, comment)
        written = encode_config(
            replace(
                config,
                created=moment,
                author=author,
                diff_ids=(*record.config.diff_ids, diff_id),
                history=(*record.config.history, history),
            )
        )
        described = Descriptor(digest_of(written), len(written), OCI_CONFIG)
        manifest = encode_manifest(Manifest(described, (*record.manifest.layers, layer)))
        target = Descriptor(digest_of(manifest), len(manifest), OCI_MANIFEST)
        small = {
            "oci-layout": LAYOUT,
            _blob(described.digest): written,
            _blob(target.digest): manifest,
            "index.json": encode_table([(target, [reference] if reference else [])]),
        }
        await images.load(_archive(small, _blob(layer.digest), file, layer.size))
    return images.find(target.digest).id


def write_layer(upper: Path, file: IO[bytes]) -> tuple[Descriptor, Digest]:
    """Write the layer, compressed, and return what it is and the digest of its plain bytes."""
    plain, stored = hashlib.sha256(), _Summed(file)
    with gzip.GzipFile(filename="", mode="wb", compresslevel=LEVEL, fileobj=stored, mtime=0) as out:

        def write(data: bytes) -> None:
            plain.update(data)
            out.write(data)

        layer = LayerOut(write)
        if upper.is_dir():
            layer.add_layer(upper)
        layer.finish()
    described = Descriptor(stored.digest, stored.size, f"{OCI_LAYER}+gzip")
    return described, Digest(f"sha256:{plain.hexdigest()}")


class _Summed:
    """A file, and the digest of all that was written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sum = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._sum.update(data)
        self.size += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    @property
    def digest(self) -> Digest:
        return Digest(f"sha256:{self._sum.hexdigest()}")


def _blob(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


async def _archive(
    small: dict[str, bytes], name: str, file: IO[bytes], size: int
) -> AsyncIterator[bytes]:
    for path, content in small.items():
        yield _member(path, len(content)) + content + bytes(-len(content) % tarfile.BLOCKSIZE)
    yield _member(name, size)
    file.seek(0)
    while chunk := await trio.to_thread.run_sync(file.read, CHUNK_BYTES):
        yield chunk
    yield bytes(-size % tarfile.BLOCKSIZE) + bytes(2 * tarfile.BLOCKSIZE)


def _member(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    return entry.tobuf(tarfile.PAX_FORMAT)
