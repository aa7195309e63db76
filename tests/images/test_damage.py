"""Disks that rot and tables that tear: what is lost is known to be lost, and nothing else is."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio

from swarmlet.images.errors import BlobNotFound, DigestMismatch, ImageError, ImageNotFound
from swarmlet.images.files import write_whole
from swarmlet.images.layers import Layer
from swarmlet.images.reference import Digest
from swarmlet.images.store import ImageStore
from swarmlet.images.unpack import Readable
from tests.images.making import digest_of, make_image, oci_archive, stream, tar_of
from tests.images.shelf import Shelf


@pytest.fixture
async def store(tmp_path: Path) -> ImageStore:
    store = ImageStore(tmp_path / "images")
    await store.open()
    return store


async def test_rotten_blob_is_never_served_whole(store: ImageStore, tmp_path: Path) -> None:
    layer = tar_of(("a", bytes(range(256)) * 4000))
    image = make_image(layer, compress=False)
    await store.load(stream(oci_archive(image, "x:1")))
    digest = digest_of(layer)
    file = tmp_path / "images/blobs/sha256" / digest[7:]
    file.write_bytes(layer[:-600] + b"rot" + layer[-597:])
    received = b""
    with pytest.raises(DigestMismatch):  # noqa: PT012
        async with store.open_blob(digest) as blob:
            async for chunk in blob.chunks:
                received += chunk
    assert len(received) < len(layer)
    assert not store.has(digest)
    assert not store.is_complete(image.digest)
    await store.fetch(image.digest, Shelf(image.blobs))
    assert store.is_complete(image.digest)
    assert store.resolve("x:1").references == ("x:1",)


async def test_layer_of_a_rotten_blob_is_not_unpacked(store: ImageStore, tmp_path: Path) -> None:
    layer = tar_of(("a", b"1"))
    image = make_image(layer, compress=False)
    await store.load(stream(oci_archive(image, "x:1")))
    file = tmp_path / "images/blobs/sha256" / digest_of(layer)[7:]
    file.write_bytes(tar_of(("a", b"2")))
    with pytest.raises(BlobNotFound, match="damaged"):
        await store.unpack(image.digest)
    assert list((tmp_path / "images/layers").iterdir()) == []


async def test_layer_that_is_not_what_the_configuration_says(store: ImageStore) -> None:
    image = make_image(tar_of(("a", b"1")), diff_ids=[digest_of(b"another")])
    await store.load(stream(oci_archive(image, "x:1")))
    with pytest.raises(DigestMismatch, match="promised"):
        await store.unpack(image.digest)
    with pytest.raises(ImageError, match="unpack it"):
        store.layers(image.digest)


async def test_damaged_table_loses_names_but_no_pinned_image(
    store: ImageStore, tmp_path: Path
) -> None:
    image = make_image(tar_of(("a", b"1")))
    await store.load(stream(oci_archive(image, "x:1")))
    (tmp_path / "images/index.json").write_bytes(b"\0" * 100)
    again = ImageStore(tmp_path / "images")
    await again.open()
    assert again.is_complete(image.digest)
    with pytest.raises(ImageNotFound):
        again.resolve("x:1")


async def test_rotten_configuration_takes_its_image_along(
    store: ImageStore, tmp_path: Path
) -> None:
    image, other = make_image(tar_of(("a", b"1"))), make_image(tar_of(("b", b"2")))
    await store.load(stream(oci_archive(image, "x:1")))
    await store.load(stream(oci_archive(other, "y:1")))
    file = tmp_path / "images/blobs/sha256" / image.id[7:]
    file.write_bytes(image.config.replace(b"/bin/sh", b"/bin/no"))
    again = ImageStore(tmp_path / "images")
    await again.open()
    assert [found.digest for found in again.images()] == [other.digest]
    shelf = Shelf(image.blobs)
    await again.fetch(image.digest, shelf)
    assert [digest for digest, _ in shelf.asked] == [image.id]
    assert again.config(image.digest).argv == ("/bin/sh",)


async def test_layers_being_unpacked_are_not_collected(store: ImageStore) -> None:
    image = make_image(tar_of(("a", b"1")), tar_of(("b", b"2")), tar_of(("c", b"3")))
    await store.load(stream(oci_archive(image)))
    unpack = store._layers.unpack

    def collect_behind(
        source: Readable,
        chain_id: Digest,
        diff_id: Digest,
        parents: Sequence[Path],
        pulse: Callable[[], None],
    ) -> Layer:
        layer = unpack(source, chain_id, diff_id, parents, pulse)
        trio.from_thread.run(store.collect, ())
        return layer

    store._layers.unpack = collect_behind  # type: ignore[method-assign]
    lowers = await store.unpack(image.digest)
    assert [os.listdir(lower) for lower in lowers] == [["c"], ["b"], ["a"]]


def test_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "index.json"
    write_whole(file, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(file, b"new")
    assert file.read_bytes() == b"old"
