"""Whatever step the store is killed at: no half image, no half layer, no promise broken."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import trio

from swarmlet.images.store import ImageStore
from tests.images.making import directory, stream, tar_of

ROOT = Path(__file__).parent.parent.parent
#: Steps of one run of the test; `python -m tests.images.crash FOLDER SEED 0` takes every one.
KILLS = 40
MEMORY = Path("/dev/shm")
ROOTFS = tar_of(directory("etc/"), ("etc/motd", b"welcome\n"))


def test_killed_store_keeps_its_promises(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    # Killing asks nothing of the disk, and there an fsync costs nothing.
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else tmp_path) as at:
        program = [sys.executable, "-m", "tests.images.crash"]
        command = [*program, Path(at) / "crash", str(seed), str(KILLS)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"replay with seed {seed}:\n{done.stdout}{done.stderr}"


async def test_layer_that_was_not_settled_before_a_power_cut_is_unpacked_again(
    tmp_path: Path,
) -> None:
    store = ImageStore(tmp_path / "images")
    await store.open()
    image = await store.import_rootfs(stream(ROOTFS), reference="x")
    (lower,) = await store.unpack(image.digest)
    (lower.parent / "settled").unlink()  # what was renamed, but not synced, before the cut
    (lower / "etc/motd").write_bytes(b"")

    same_boot = ImageStore(tmp_path / "images")
    await same_boot.open()
    assert same_boot.layers(image.digest) == (lower,)

    next_boot = ImageStore(tmp_path / "images", boot="the next")
    await next_boot.open()
    assert not lower.exists()
    assert await next_boot.unpack(image.digest) == (lower,)
    assert (lower / "etc/motd").read_bytes() == b"welcome\n"


async def test_running_store_settles_behind_the_unpacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarmlet.images.store.SETTLE_DELAY", 0.2)
    store = ImageStore(tmp_path / "images")
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        image = await store.import_rootfs(stream(ROOTFS), reference="x")
        (lower,) = await store.unpack(image.digest)
        with trio.fail_after(60):
            while not (lower.parent / "settled").exists():  # noqa: ASYNC110, a file tells nobody
                await trio.sleep(0.05)
        monkeypatch.setattr("swarmlet.images.store.SETTLE_DELAY", 3600)
        image = await store.import_rootfs(stream(tar_of(("b", b""))), reference="y")
        (lower,) = await store.unpack(image.digest)
        nursery.cancel_scope.cancel()
    assert (lower.parent / "settled").exists()
