"""A store that is killed at every step that it takes on the disk, and looked at afterwards.

Run as a program, `python -m tests.images.crash FOLDER SEED RUNS`: it forks a process that works
with a store and is killed at its n-th change of a file's name, mode or place, and another that
opens the store again and checks it. (A program of its own, because it forks and must have no
threads.)
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import trio

from swarmlet.images.catalog import ImageRecord
from swarmlet.images.errors import ImageNotFound
from swarmlet.images.store import ImageStore
from tests.images.making import (
    digest_of,
    directory,
    make_image,
    oci_archive,
    stream,
    symlink,
    tar_of,
)
from tests.images.shelf import Shelf

#: Python's audit events of system calls that change names or attributes (sys.addaudithook).
CHANGES = {
    "open",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.chown",
    "os.utime",
    "os.truncate",
}

ROOTFS = tar_of(directory("etc/"), ("etc/motd", b"welcome\n"), symlink("sh", "etc/motd"))
BASE = tar_of(("base", b"b" * 10_000))
LOADED = make_image(BASE, tar_of(("one", b"1"), directory("d/"), ("d/x", b"x")))
FETCHED = make_image(BASE, tar_of(("two", b"2")), compress=False)
#: The trees that layers must show, by the chain of what was unpacked before them.
TREES: dict[tuple[str, ...], set[str]] = {
    (digest_of(ROOTFS),): {"etc", "etc/motd", "sh"},
    (digest_of(BASE),): {"base"},
    (digest_of(BASE), digest_of(tar_of(("two", b"2")))): {"two"},
}


async def work(root: Path, acknowledge: Callable[[str], None]) -> None:
    """Use a store in every way; *acknowledge* what a user was told."""
    store = ImageStore(root)
    await store.open()
    imported = await store.import_rootfs(stream(ROOTFS), reference="imported")
    acknowledge("imported")
    await store.unpack(imported.digest)
    acknowledge("unpacked")
    await store.load(stream(oci_archive(LOADED, "loaded")))
    acknowledge("loaded")
    await store.tag("loaded", "also")
    acknowledge("tagged")
    await store.fetch(FETCHED.digest, Shelf(FETCHED.blobs))
    acknowledge("fetched")
    await store.unpack(FETCHED.digest)
    await store.remove("loaded")
    acknowledge("untagged")
    await store.remove("also")
    acknowledge("removed")
    await store.collect([FETCHED.digest])
    acknowledge("collected")


async def check(root: Path, told: set[str], *, powered_off: bool) -> None:
    """Open the store as a new daemon does and check every promise."""
    store = ImageStore(root, boot="another boot" if powered_off else None)
    await store.open()
    for folder in ("ingest", "layers"):
        leftovers = [p.name for p in (root / folder).iterdir() if p.name[:4] in ("new-", "old-")]
        assert not leftovers, leftovers
    for summary in store.images():
        image = store.find(summary.digest)
        assert store.is_complete(summary.digest), summary
        for blob in image.content:
            async with store.open_blob(blob.digest) as opened:
                async for _ in opened.chunks:  # verifies
                    pass
        check_layers(store, image)
    for name, step, gone in (
        ("imported", "imported", None),
        ("loaded", "loaded", "untagged"),
        ("also", "tagged", "removed"),
        (FETCHED.digest, "fetched", None),
    ):
        if step in told and gone is None:
            store.resolve(name)
        if gone in told:
            try:
                store.resolve(name)
            except ImageNotFound:
                continue
            raise AssertionError(f"{name} is still there")
    if "unpacked" in told:
        store.layers(store.resolve("imported").digest)  # settled: a power cut does not matter
    # And all can be done again.
    await work(root, lambda step: None)


def check_layers(store: ImageStore, image: ImageRecord) -> None:
    """A layer that may be used is whole."""
    layers = [store._layers.find(chain_id) for chain_id in image.chain]
    for place, layer in enumerate(layers):
        tree = TREES.get(image.config.diff_ids[: place + 1])
        if layer is not None and tree is not None:
            assert {str(p.relative_to(layer.path)) for p in layer.path.rglob("*")} == tree


def die_at(step: int, root: Path) -> None:
    """Have this process killed at its change number *step* below *root*."""
    taken = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal taken
        if event not in CHANGES:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        taken += 1
        if taken == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def forked(function: Callable[[], object]) -> int:
    """Run *function* in a process of its own; return its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def run(folder: Path, step: int, *, powered_off: bool) -> bool:
    """Work, die at *step*, check. Returns whether the work got to its end before that step."""
    root, told_file = folder / "images", folder / "told"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()

    def killed_work() -> None:
        with open(told_file, "a", buffering=1) as told:
            die_at(step, root)
            trio.run(work, root, lambda word: told.write(f"{word}\n"))

    status = forked(killed_work)
    died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert died or status == 0, status
    told = set(told_file.read_text().split())
    checked = forked(lambda: trio.run(lambda: check(root, told, powered_off=powered_off)))
    if checked != 0:
        raise SystemExit(f"step {step}, powered_off {powered_off}, told {sorted(told)}")
    return not died


def main(folder: Path, seed: int, runs: int) -> None:
    """Kill at *runs* steps that *seed* chooses; 0 is every step."""
    rng = random.Random(seed)
    last = 1
    while not run(folder, last * 2, powered_off=False):
        last *= 2
    steps = range(1, last * 2) if runs == 0 else sorted(rng.sample(range(1, last * 2), runs))
    ended = 0
    for step in steps:
        ended += run(folder, step, powered_off=rng.random() < 0.5)
    print(f"seed {seed}: killed {len(steps) - ended} times, {ended} runs got to the end")
    assert ended < len(steps)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
