"""The store as the agent and the API use it: import, load, fetch; names, unpacking, removal."""

from __future__ import annotations

import gzip
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
import trio

from swarmlet.images.errors import (
    AmbiguousImage,
    BadArchive,
    BadChange,
    BadLayer,
    BlobNotFound,
    DigestMismatch,
    ImageInUse,
    ImageNotFound,
    NoPlatform,
    NoSpace,
)
from swarmlet.images.manifest import Platform
from swarmlet.images.placing import Limits
from swarmlet.images.reference import Digest
from swarmlet.images.store import ImageStore
from swarmlet.images.transfer import STALL, BlobStream
from tests.images.making import (
    MadeImage,
    digest_of,
    directory,
    docker_archive,
    make_image,
    make_index,
    oci_archive,
    stream,
    symlink,
    tar_of,
)
from tests.images.shelf import Shelf

AMD64 = Platform("linux", "amd64")
ROOTFS = tar_of(directory("etc/"), ("etc/motd", b"welcome\n"), symlink("bin", "usr/bin"))


async def open_store(root: Path, **options: object) -> ImageStore:
    store = ImageStore(root, platform=AMD64, **options)  # type: ignore[arg-type]
    await store.open()
    return store


@pytest.fixture
async def store(tmp_path: Path) -> ImageStore:
    return await open_store(tmp_path / "images")


def files_below(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*")}


# Import.
async def test_imported_root_file_system_is_an_image(store: ImageStore) -> None:
    changes = ['CMD ["/bin/httpd", "-f"]', "ENV A=1", "EXPOSE 80"]
    image = await store.import_rootfs(stream(ROOTFS), reference="web", changes=changes)
    assert store.images() == (image,)
    assert image.references == ("web:latest",)
    found = store.resolve("docker.io/library/web:latest")
    assert found.id == image.id
    assert found.config.argv == ("/bin/httpd", "-f")
    assert found.config.env == ("A=1",)
    assert found.config.exposed_ports == ("80/tcp",)
    assert found.config.diff_ids == (digest_of(ROOTFS),)
    (lower,) = await store.unpack(image.digest)
    assert (lower / "etc/motd").read_bytes() == b"welcome\n"
    assert store.layers(image.digest) == (lower,)
    assert store.layers(image.id) == (lower,)


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
async def test_import_from_a_file(store: ImageStore, tmp_path: Path, compress: object) -> None:
    file = tmp_path / "rootfs.tar"
    file.write_bytes(compress(ROOTFS))  # type: ignore[operator]
    image = await store.import_rootfs(file, reference="web")
    assert store.config(image.digest).diff_ids == (digest_of(ROOTFS),)
    (lower,) = await store.unpack(image.digest)
    assert (lower / "etc/motd").exists()


async def test_import_of_garbage_leaves_nothing(store: ImageStore, tmp_path: Path) -> None:
    before = files_below(tmp_path)
    for garbage in (b"no tar at all" * 100, gzip.compress(ROOTFS)[:-50], ROOTFS[:700]):
        with pytest.raises(BadLayer):
            await store.import_rootfs(stream(garbage), reference="web")
    assert files_below(tmp_path) == before
    assert store.images() == ()


async def test_bad_change_is_refused_before_the_tar_is_read(store: ImageStore) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("read")
        yield b""

    with pytest.raises(BadChange, match="NONSENSE"):
        await store.import_rootfs(never(), reference="web", changes=["NONSENSE x"])


async def test_client_that_goes_away_in_an_import_leaves_nothing(
    store: ImageStore, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    before = files_below(tmp_path)

    async def stalls() -> AsyncIterator[bytes]:
        yield ROOTFS[:600]
        await trio.sleep_forever()

    with trio.move_on_after(1):
        await store.import_rootfs(stalls(), reference="web")
    assert files_below(tmp_path) == before


# Load and save.
async def test_load_of_both_layouts(store: ImageStore) -> None:
    one, two = tar_of(("a", b"1")), tar_of(("b", b"2"))
    image = make_image(one, two)
    assert await store.load(stream(oci_archive(image, "docker.io/library/x:1"))) == ("x:1",)
    plain = make_image(one, two, compress=False)
    archive = docker_archive(plain.config, [one, two], "y:1", "y:2")
    assert await store.load(stream(gzip.compress(archive))) == ("y:1", "y:2")
    assert store.resolve("x:1").digest == image.digest
    assert store.resolve("y:2").id == plain.id
    for name in ("x:1", "y:1"):
        upper, lower = await store.unpack(store.resolve(name).digest)
        assert (lower / "a").read_bytes() == b"1"
        assert (upper / "b").read_bytes() == b"2"


async def test_load_keeps_nothing_of_the_archive_but_the_images(
    store: ImageStore, tmp_path: Path
) -> None:
    layer = tar_of(("a", b"1"))
    image = make_image(layer, compress=False)
    await store.load(stream(docker_archive(image.config, [layer], "y:1")))
    assert sorted(map(digest_of, map(Path.read_bytes, blob_files(tmp_path)))) == sorted(
        blob.digest for blob in store.blobs(store.resolve("y:1").digest)
    )


def blob_files(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "images/blobs/sha256").iterdir())


async def test_load_of_an_incomplete_archive_leaves_nothing(
    store: ImageStore, tmp_path: Path
) -> None:
    image = make_image(tar_of(("a", b"1")))
    before = files_below(tmp_path)
    for digest in image.blobs:
        blobs = {key: data for key, data in image.blobs.items() if key != digest}
        lacking = MadeImage(image.digest, image.manifest, image.config, blobs)
        with pytest.raises(BadArchive):
            await store.load(stream(oci_archive(lacking, "x:1")))
    with pytest.raises(BadArchive, match="image import"):
        await store.load(stream(ROOTFS))
    with pytest.raises(BadArchive):
        await store.load(stream(b"\x1f\x8b garbage"))
    assert files_below(tmp_path) == before


async def test_archive_with_a_blob_that_is_not_what_it_is_called(store: ImageStore) -> None:
    image = make_image(tar_of(("a", b"1")))
    layer = next(digest for digest in image.blobs if digest not in (image.digest, image.id))
    image.blobs[layer] = b"something else"
    with pytest.raises(DigestMismatch):
        await store.load(stream(oci_archive(image, "x:1")))
    assert store.images() == ()


async def test_what_was_saved_loads_as_the_same_image(store: ImageStore, tmp_path: Path) -> None:
    image = make_image(tar_of(("a", b"1")), tar_of(("b", b"2")))
    await store.load(stream(oci_archive(image, "x:1")))
    await store.tag("x:1", "registry.example:5000/team/x:2")
    other = await open_store(tmp_path / "other")
    assert await other.load(store.save(["x:1"])) == ("x:1",)
    assert other.resolve("x:1").digest == image.digest
    assert await other.load(store.save([image.id[7:19]])) == (image.id,)
    named = await other.load(store.save(["x:1", "registry.example:5000/team/x:2"]))
    assert named == ("x:1", "registry.example:5000/team/x:2")


async def test_save_of_an_unknown_image_fails_before_the_first_byte(store: ImageStore) -> None:
    with pytest.raises(ImageNotFound, match="image load"):
        store.save(["nothing"])


async def test_blob_that_is_here_is_not_written_again(store: ImageStore, tmp_path: Path) -> None:
    image = make_image(tar_of(("a", b"1")))
    await store.load(stream(oci_archive(image, "x:1")))
    before = {file: file.stat().st_ino for file in blob_files(tmp_path)}
    await store.load(stream(oci_archive(image, "x:2")))
    assert {file: file.stat().st_ino for file in blob_files(tmp_path)} == before


async def test_configuration_that_does_not_fit_its_manifest(store: ImageStore) -> None:
    image = make_image(tar_of(("a", b"1")), diff_ids=[digest_of(b"1"), digest_of(b"2")])
    with pytest.raises(BadArchive, match="2 for the 1 layers"):
        await store.load(stream(oci_archive(image, "x:1")))
    assert store.images() == ()


# Fetch.
async def test_fetch_from_another_store_copies_only_what_is_missing(tmp_path: Path) -> None:
    base, top = tar_of(("a", b"1")), tar_of(("b", b"2"))
    first, second = make_image(base), make_image(base, top)
    there = await open_store(tmp_path / "there")
    await there.load(stream(oci_archive(first, "x:1")))
    await there.load(stream(oci_archive(second, "x:2")))
    here = await open_store(tmp_path / "here")
    image = await here.fetch(first.digest, there, reference="x:1")
    assert image.digest == first.digest
    assert here.is_complete(first.digest)
    assert image.references == ()
    shelf = Shelf(second.blobs)
    await here.fetch(second.digest, shelf)
    shared = digest_of(gzip.compress(base, mtime=0))
    assert {digest for digest, _ in shelf.asked} == second.blobs.keys() - {shared}
    upper, lower = await here.unpack(second.digest)
    assert (lower / "a").exists()
    assert (upper / "b").exists()


async def test_broken_transfer_goes_on_where_it_stopped(store: ImageStore) -> None:
    layer = tar_of(("a", bytes(range(256)) * 40))
    image = make_image(layer, compress=False)
    digest = digest_of(layer)
    shelf = Shelf(image.blobs, breaks_after={digest: 5000})
    with pytest.raises(BlobNotFound, match="the cable"):
        await store.fetch(image.digest, shelf)
    assert not store.is_complete(image.digest)
    await store.fetch(image.digest, shelf)
    assert shelf.asked[-2:] == [(digest, 0), (digest, 5000)]
    assert store.is_complete(image.digest)


@pytest.mark.parametrize("failure", [EOFError(), OSError(113, "no route"), trio.TooSlowError()])
async def test_second_source_goes_on_for_the_first(store: ImageStore, failure: Exception) -> None:
    layer = tar_of(("a", bytes(range(256)) * 40))
    image = make_image(layer, compress=False)
    digest = digest_of(layer)
    broken = Shelf(image.blobs, breaks_after={digest: 5000}, breaks_with=failure)
    whole = Shelf({digest: layer})
    await store.fetch(image.digest, broken, whole)
    assert whole.asked == [(digest, 5000)]


async def test_wrong_bytes_are_thrown_away_and_another_source_is_asked(store: ImageStore) -> None:
    image = make_image(tar_of(("a", b"1")))
    lies = Shelf({digest: data[:-1] + b"!" for digest, data in image.blobs.items()})
    with pytest.raises(BlobNotFound, match="was wanted, but the bytes are"):
        await store.fetch(image.digest, lies)
    assert not store.has(image.digest)
    lies.asked.clear()
    await store.fetch(image.digest, lies, Shelf(image.blobs))
    assert store.is_complete(image.digest)
    assert len(lies.asked) == 1  # and after that it is not believed again


async def test_two_fetches_of_one_image_ask_once(store: ImageStore) -> None:
    image = make_image(tar_of(("a", b"1")))
    shelf = Shelf(image.blobs)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(store.fetch, image.digest, shelf)
    layers = [digest for digest, _ in shelf.asked if digest not in (image.digest, image.id)]
    assert len(layers) == 1
    assert len(store.images()) == 1


async def test_stalled_source_is_given_up(
    store: ImageStore, autojump_clock: trio.testing.MockClock
) -> None:
    image = make_image(tar_of(("a", b"1")))

    class Stalls:
        @asynccontextmanager
        async def open_blob(
            self, digest: Digest, *, offset: int = 0, media_type: str | None = None
        ) -> AsyncIterator[BlobStream]:
            async def chunks() -> AsyncIterator[bytes]:
                await trio.sleep_forever()
                yield b""

            async with aclosing(chunks()) as nothing:
                yield BlobStream(10, 0, nothing)

    await store.fetch(image.digest, Stalls(), Shelf(image.blobs))
    assert trio.current_time() < 2 * STALL
    assert store.is_complete(image.digest)


async def test_index_brings_the_image_of_this_host_only(store: ImageStore) -> None:
    mine = make_image(tar_of(("a", b"amd64")))
    other = make_image(tar_of(("a", b"arm64")), architecture="arm64")
    index = make_index((other, "arm64/v8"), (mine, "amd64"))
    image = await store.fetch(index.digest, Shelf(index.blobs))
    assert (image.digest, image.id) == (index.digest, mine.id)
    assert store.config(index.digest).architecture == "amd64"
    assert not store.has(other.digest)
    foreign = make_index((other, "arm64/v8"))
    with pytest.raises(NoPlatform, match="it is for linux/arm64/v8"):
        await store.fetch(foreign.digest, Shelf(foreign.blobs))


async def test_archive_for_all_platforms_serves_every_node(tmp_path: Path) -> None:
    mine = make_image(tar_of(("a", b"amd64")))
    other = make_image(tar_of(("a", b"arm64")), architecture="arm64")
    index = make_index((other, "arm64/v8"), (mine, "amd64"))
    archive = oci_archive(index, "x:1", media_type="application/vnd.oci.image.index.v1+json")
    manager = await open_store(tmp_path / "manager")
    await manager.load(stream(archive))
    await manager.collect([])
    pi = ImageStore(tmp_path / "pi", platform=Platform("linux", "arm64", "v8"))
    await pi.open()
    image = await pi.fetch(manager.resolve("x:1").digest, manager)
    assert (image.digest, image.id) == (index.digest, other.id)


async def test_image_that_does_not_fit_is_refused_before_it_comes(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "images", limits=Limits(free_bytes_min=1 << 60))
    image = make_image(tar_of(("a", b"1")))
    with pytest.raises(NoSpace, match="image prune"):
        await store.fetch(image.digest, Shelf(image.blobs))


# Names.
async def test_names_ids_and_digests_resolve(store: ImageStore) -> None:
    images = [make_image(tar_of(("a", bytes([n])))) for n in range(40)]
    for n, image in enumerate(images):
        await store.load(stream(oci_archive(image, f"x:{n}")))
    some = images[7]
    for text in ("x:7", some.id, some.id[7:], some.id[7:19], some.digest, f"any@{some.digest}"):
        assert store.resolve(text).id == some.id
    await store.tag("x:3", some.id[7:12])
    assert store.resolve(some.id[7:12]).id == images[3].id
    with pytest.raises(ImageNotFound):
        store.resolve("x:40")
    with pytest.raises(ImageNotFound):
        store.resolve(digest_of(b""))


async def test_short_id_of_two_images_is_refused(store: ImageStore) -> None:
    seen: dict[str, MadeImage] = {}
    for n in range(2000):
        image = make_image(b"", config={"Labels": {"n": str(n)}}, diff_ids=[digest_of(b"")])
        twin = seen.setdefault(image.id[7:11], image)
        if twin is not image:
            break
    for n, made in enumerate((twin, image)):
        await store.load(stream(oci_archive(made, f"x:{n}")))
    with pytest.raises(AmbiguousImage, match="2 images"):
        store.resolve(image.id[7:11])


async def test_tag_moves_from_image_to_image(store: ImageStore) -> None:
    one, two = make_image(tar_of(("a", b"1"))), make_image(tar_of(("a", b"2")))
    await store.load(stream(oci_archive(one, "x:1")))
    await store.load(stream(oci_archive(two, "x:1")))
    assert store.resolve("x:1").digest == two.digest
    assert [image.references for image in store.images()] == [(), ("x:1",)]


async def test_all_is_there_after_a_restart(store: ImageStore, tmp_path: Path) -> None:
    image = make_image(tar_of(("a", b"1")))
    await store.load(stream(oci_archive(image, "x:1", "y:1")))
    await store.unpack(image.digest)
    again = await open_store(tmp_path / "images")
    assert again.images() == store.images()
    assert again.layers(image.digest) == store.layers(image.digest)


# Removal.
async def test_remove_takes_names_then_the_image(store: ImageStore, tmp_path: Path) -> None:
    image = make_image(tar_of(("a", b"1")))
    await store.load(stream(oci_archive(image, "x:1", "y:1")))
    await store.unpack(image.digest)
    removal = await store.remove("x:1")
    assert (removal.untagged, removal.deleted) == (("x:1",), ())
    removal = await store.remove("y:1")
    assert (removal.untagged, removal.deleted) == (("y:1",), (image.id,))
    assert removal.freed_bytes > 0
    assert blob_files(tmp_path) == []
    assert list((tmp_path / "images/layers").iterdir()) == []


async def test_remove_by_id_wants_force_for_many_names(store: ImageStore) -> None:
    image = make_image(tar_of(("a", b"1")))
    await store.load(stream(oci_archive(image, "x:1", "y:1")))
    with pytest.raises(ImageInUse, match="x:1, y:1"):
        await store.remove(image.id)
    removal = await store.remove(image.id, force=True)
    assert removal.deleted == (image.id,)


async def test_pinned_image_stays_whatever_is_asked(store: ImageStore) -> None:
    image = make_image(tar_of(("a", b"1")))
    await store.load(stream(oci_archive(image, "x:1")))
    with pytest.raises(ImageInUse, match="needed by"):
        await store.remove("x:1", pins={image.digest})
    removal = await store.remove("x:1", pins={image.digest}, force=True)
    assert (removal.untagged, removal.deleted) == (("x:1",), ())
    assert store.is_complete(image.digest)
    assert (await store.collect({image.id})).deleted == ()
    assert (await store.collect(())).deleted == (image.id,)
    assert not store.has(image.digest)


async def test_shared_layers_stay_for_the_other_image(store: ImageStore) -> None:
    base = tar_of(("a", b"1"))
    one, two = make_image(base), make_image(base, tar_of(("b", b"2")))
    await store.load(stream(oci_archive(one, "x:1")))
    await store.load(stream(oci_archive(two, "x:2")))
    await store.unpack(two.digest)
    await store.remove("x:1")
    assert store.is_complete(two.digest)
    assert len(store.layers(two.digest)) == 2


async def test_blobs_of_a_broken_fetch_wait_an_hour(store: ImageStore, tmp_path: Path) -> None:
    layer = tar_of(("a", bytes(range(256)) * 40))
    image = make_image(layer, compress=False)
    shelf = Shelf(image.blobs, breaks_after={digest_of(layer): 5000})
    with pytest.raises(BlobNotFound):
        await store.fetch(image.digest, shelf)
    assert (await store.collect(())).freed_bytes == 0
    assert store.has(image.id)
    for file in blob_files(tmp_path):
        os.utime(file, (1, 1))
    assert (await store.collect(())).freed_bytes > 0
    assert blob_files(tmp_path) == []


async def test_collect_spares_what_is_on_its_way(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarmlet.images.store.ORPHAN_AGE", 0.0)
    image = make_image(tar_of(("a", b"1")), tar_of(("b", b"2")))
    arrived, proceed = trio.Event(), trio.Event()

    class Slow(Shelf):
        @asynccontextmanager
        async def open_blob(
            self, digest: Digest, *, offset: int = 0, media_type: str | None = None
        ) -> AsyncIterator[BlobStream]:
            if len(self.asked) == 3:
                arrived.set()
                await proceed.wait()
            async with super().open_blob(digest, offset=offset) as blob:
                yield blob

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.fetch, image.digest, Slow(image.blobs))
        await arrived.wait()
        assert (await store.collect(())).freed_bytes == 0
        proceed.set()
    assert store.is_complete(image.digest)
