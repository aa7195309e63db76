"""Other people's tools read our images and write those that we read: skopeo and umoci."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import trio

from swarmlet.images.catalog import ImageRecord
from swarmlet.images.reference import Digest
from swarmlet.images.store import ImageStore
from tests.images.making import make_image, oci_archive, stream, tar_of
from tests.images.test_kernel import BASE, TOP, overlay

pytestmark = [
    pytest.mark.level5,
    pytest.mark.skipif(
        not (shutil.which("skopeo") and shutil.which("umoci")),
        reason="needs the packages skopeo and umoci",
    ),
]

IMAGE = make_image(tar_of(*BASE), tar_of(*TOP), config={"Cmd": ["/x"], "Labels": {"a": "b"}})


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
async def store(tmp_path: Path) -> ImageStore:
    store = ImageStore(tmp_path / "images")
    await store.open()
    await store.load(stream(oci_archive(IMAGE, "registry.example/team/x:1")))
    return store


async def save(store: ImageStore, path: Path, *names: str) -> Path:
    async with await trio.open_file(path, "wb") as file:
        async for chunk in store.save(names):
            await file.write(chunk)
    return path


def inspect(source: str) -> tuple[list[str], dict[str, str]]:
    """Return diff ids and labels as skopeo sees them."""
    config = json.loads(run("skopeo", "inspect", "--config", source))
    return config["rootfs"]["diff_ids"], config["config"]["Labels"]


async def test_skopeo_reads_what_we_save(store: ImageStore, tmp_path: Path) -> None:
    archive = await save(store, tmp_path / "x.tar", "registry.example/team/x:1")
    config = store.config(IMAGE.digest)
    for source in (f"docker-archive:{archive}", f"oci-archive:{archive}"):
        assert inspect(source) == (list(config.diff_ids), {"a": "b"})
        run("skopeo", "--insecure-policy", "copy", source, f"oci:{tmp_path / source[:3]}:x")
    index = json.loads((tmp_path / "oci/index.json").read_text())
    assert [entry["digest"] for entry in index["manifests"]] == [IMAGE.digest]


async def test_skopeo_reads_the_store_itself(store: ImageStore, tmp_path: Path) -> None:
    source = f"oci:{tmp_path / 'images'}:registry.example/team/x:1"
    run("skopeo", "--insecure-policy", "copy", source, f"oci:{tmp_path / 'copy'}:x")
    index = json.loads((tmp_path / "copy/index.json").read_text())
    assert [entry["digest"] for entry in index["manifests"]] == [IMAGE.digest]


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
async def test_we_load_what_skopeo_writes(store: ImageStore, tmp_path: Path, form: str) -> None:
    source = f"oci:{tmp_path / 'images'}:registry.example/team/x:1"
    archive = tmp_path / "written.tar"
    run("skopeo", "--insecure-policy", "copy", source, f"{form}:{archive}:registry.example/y:2")
    other = ImageStore(tmp_path / "other")
    await other.open()
    (name,) = await other.load(archive)
    image: ImageRecord = other.resolve(name)
    assert image.config.diff_ids == store.config(IMAGE.digest).diff_ids
    assert image.id == IMAGE.id
    assert name == "registry.example/y:2" or form == "oci-archive"
    await other.unpack(image.digest)


def listing(root: Path) -> dict[str, tuple[object, ...]]:
    found = {}
    for path in root.rglob("*"):
        info = path.lstat()
        content = ""
        if stat.S_ISLNK(info.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(info.st_mode):
            content = path.read_text()
        name = str(path.relative_to(root))
        found[name] = (info.st_mode, info.st_uid, info.st_gid, info.st_nlink, content)
    return found


async def test_umoci_unpacks_to_the_same_tree(store: ImageStore, tmp_path: Path) -> None:
    source = f"oci:{tmp_path / 'images'}:registry.example/team/x:1"
    run("skopeo", "--insecure-policy", "copy", source, f"oci:{tmp_path / 'copy'}:x")
    run("umoci", "unpack", "--image", f"{tmp_path / 'copy'}:x", tmp_path / "bundle")
    lowers = await store.unpack(Digest(IMAGE.digest))
    with overlay(lowers, tmp_path) as merged:
        ours, theirs = listing(merged), listing(tmp_path / "bundle/rootfs")
    for path in ours.keys() | theirs.keys():
        mine, other = ours.get(path), theirs.get(path)
        if mine and stat.S_ISDIR(int(str(mine[0]))):  # overlayfs counts no subdirectories
            assert other is not None
            mine, other = mine[:3], other[:3]
        assert mine == other, path
