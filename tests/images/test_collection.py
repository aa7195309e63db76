"""What may go and what must stay: laws over any series of operations."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmlet.images.catalog import Catalog, ImageRecord
from swarmlet.images.config import ImageConfig
from swarmlet.images.errors import ImageInUse, ImageNotFound
from swarmlet.images.manifest import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Descriptor, Manifest
from swarmlet.images.reference import Reference, digest_of, parse_reference
from swarmlet.images.store import ImageStore
from tests.images.making import make_image, oci_archive, stream, tar_of

#: Images that share layers in every way: each is a path from the root of a small tree.
LAYERS = {letter: tar_of((letter, letter.encode() * 100)) for letter in "abcd"}
STACKS = ["a", "ab", "abc", "b", "ba", "d", "abd"]
IMAGES = [make_image(*(LAYERS[letter] for letter in stack)) for stack in STACKS]
NAMES = ["x:1", "x:2", "y:1"]


def record(stack: str, *names: str) -> ImageRecord:
    """An image for the pure laws, whose blobs are named for what they hold."""
    layers = tuple(Descriptor(digest_of(c.encode()), 1, OCI_LAYER) for c in stack)
    config = Descriptor(digest_of(f"config {stack}".encode()), 1, OCI_CONFIG)
    target = Descriptor(digest_of(f"manifest {stack}".encode()), 1, OCI_MANIFEST)
    return ImageRecord(
        target,
        target.digest,
        Manifest(config, layers),
        ImageConfig("amd64", diff_ids=tuple(layer.digest for layer in layers)),
        (target, config, *layers),
        tuple(map(parse_reference, names)),
    )


stacks = st.text("abc", min_size=1, max_size=3)
records = st.builds(
    lambda stack, names: record(stack, *names), stacks, st.sets(st.sampled_from(NAMES))
)


def _catalog(images: list[ImageRecord]) -> Catalog:
    catalog = Catalog()
    for image in images:
        catalog = catalog.with_image(image)
    return catalog


catalogs = st.lists(records, max_size=6).map(_catalog)


def names_of(catalog: Catalog) -> list[Reference]:
    return [name for image in catalog for name in image.names]


@given(catalogs, records)
def test_a_name_belongs_to_the_last_image_that_took_it(
    catalog: Catalog, image: ImageRecord
) -> None:
    after = catalog.with_image(image)
    assert len(names_of(after)) == len(set(names_of(after)))
    for name in image.names:
        assert after.resolve(name.familiar).digest == image.digest
    for name in set(names_of(catalog)) - set(image.names):
        assert after.resolve(name.familiar).digest == catalog.resolve(name.familiar).digest


@given(catalogs, st.sets(stacks), st.booleans())
def test_no_pin_and_no_tag_is_ever_unwanted(
    catalog: Catalog, pinned: set[str], tagged_too: bool
) -> None:
    for kind in ("target", "config"):
        pins = {record(stack).digest if kind == "target" else record(stack).id for stack in pinned}
        unwanted = catalog.unwanted(pins, tagged_too=tagged_too)
        kept = catalog.without(unwanted)
        for image in catalog:
            needed = image.digest in pins or image.id in pins
            tagged = bool(image.names) and not tagged_too
            assert (image.digest in unwanted) == (not needed and not tagged)
        for image in kept:
            assert {blob.digest for blob in image.content} <= kept.blobs()
            assert set(image.chain) <= kept.chains()


@given(st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_store_holds_what_is_needed_and_after_collection_nothing_else(seed: int) -> None:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        trio.run(_live, Path(folder) / "images", random.Random(seed))


async def _live(root: Path, rng: random.Random) -> None:
    store = ImageStore(root)
    await store.open()
    for _ in range(12):
        image = rng.choice(IMAGES)
        name = rng.choice(NAMES)
        pins = {rng.choice([made.digest, made.id]) for made in rng.sample(IMAGES, 2)}
        before = {summary.digest for summary in store.images()}
        try:
            match rng.randrange(6):
                case 0 | 1:
                    await store.load(stream(oci_archive(image, *[name][: rng.randrange(2)])))
                    assert store.is_complete(image.digest)
                case 2:
                    await store.unpack(image.digest)
                case 3:
                    await store.tag(image.digest, name)
                    assert store.resolve(name).digest == image.digest
                case 4:
                    await store.remove(name, pins=pins, force=rng.random() < 0.5)
                case 5:
                    await store.collect(pins, tagged_too=rng.random() < 0.3)
                    _check_disk(store, root)
        except (ImageNotFound, ImageInUse):
            assert {summary.digest for summary in store.images()} == before
        for made in IMAGES:
            if made.digest in before and pins & {made.digest, made.id}:
                assert store.is_complete(made.digest)
        for summary in store.images():
            assert store.is_complete(summary.digest)
    await store.collect([], tagged_too=True)
    assert store.disk_usage().blob_bytes == store.disk_usage().layer_bytes == 0
    assert _on_disk(root / "blobs/sha256") == _on_disk(root / "layers") == set()


def _check_disk(store: ImageStore, root: Path) -> None:
    """Nothing is on the disk that no image needs."""
    images = [store.find(summary.digest) for summary in store.images()]
    blobs = {blob.digest[7:] for image in images for blob in image.content}
    chains = {chain_id[7:39] for image in images for chain_id in image.chain}
    assert _on_disk(root / "blobs/sha256") == blobs
    assert _on_disk(root / "layers") <= chains


def _on_disk(folder: Path) -> set[str]:
    return set(os.listdir(folder))
