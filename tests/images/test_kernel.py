"""What overlayfs makes of unpacked layers, on the real kernel."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from swarmlet.images.store import ImageStore
from tests.images.busybox import BUSYBOX, busybox_rootfs
from tests.images.making import (
    MadeImage,
    Part,
    directory,
    hard_link,
    make_image,
    member,
    oci_archive,
    stream,
    symlink,
    tar_of,
)

pytestmark = pytest.mark.level4

#: VFS_CAP_REVISION_2 with CAP_NET_BIND_SERVICE permitted and effective (linux/capability.h).
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)

BASE: list[Part] = [
    directory("tmp/", mode=0o1777),
    directory("d/"),
    ("d/old", b"old"),
    ("d/kept", b"kept"),
    directory("replaced/"),
    ("replaced/old", b"old"),
    ("gone", b"gone"),
    directory("gone-dir/"),
    ("gone-dir/x", b"x"),
    ("was-file", b"file"),
    directory("was-dir/"),
    ("was-dir/x", b"x"),
    symlink("link", "gone"),
    ("twin-a", b"twin"),
    hard_link("twin-b", "twin-a"),
]
TOP: list[Part] = [
    ("d/.wh.old", b""),
    ("d/new", b"new"),
    ("replaced/.wh..wh..opq", b""),
    ("replaced/new", b"new"),
    (".wh.gone", b""),
    (".wh.gone-dir", b""),
    directory("gone-dir/"),
    ("gone-dir/y", b"y"),
    directory("was-file/"),
    ("was-file/z", b"z"),
    ("was-dir", b"now a file"),
    ("tmp/x", b""),
    (".wh.link", b""),
    directory("fresh/"),
    ("fresh/.wh.nothing", b""),
    (member("su", mode=0o4755), b"setuid"),
]
MERGED = {
    "tmp": "d1777",
    "tmp/x": "",
    "d": "d755",
    "d/kept": "kept",
    "d/new": "new",
    "replaced": "d755",
    "replaced/new": "new",
    "gone-dir": "d755",
    "gone-dir/y": "y",
    "was-file": "d755",
    "was-file/z": "z",
    "was-dir": "now a file",
    "twin-a": "twin",
    "twin-b": "twin",
    "fresh": "d755",
    "su": "setuid",
}


@contextmanager
def overlay(lowers: Sequence[Path], room: Path, options: str = "") -> Iterator[Path]:
    """Mount *lowers* (topmost first) under a fresh upper directory."""
    for name in ("upper", "work", "merged"):
        (room / name).mkdir()
    stacked = ":".join(map(str, lowers))
    where = f"lowerdir={stacked},upperdir={room}/upper,workdir={room}/work{options}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", where, room / "merged"], check=True)
    try:
        yield room / "merged"
    finally:
        subprocess.run(["umount", room / "merged"], check=True)


def output_of(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def tree(root: Path) -> dict[str, str]:
    found = {}
    for path in root.rglob("*"):
        info = path.lstat()
        if stat.S_ISDIR(info.st_mode):
            found[str(path.relative_to(root))] = f"d{stat.S_IMODE(info.st_mode):o}"
        elif stat.S_ISLNK(info.st_mode):
            found[str(path.relative_to(root))] = f"-> {os.readlink(path)}"
        else:
            found[str(path.relative_to(root))] = path.read_text()
    return found


async def unpacked(tmp_path: Path, image: MadeImage) -> tuple[Path, ...]:
    store = ImageStore(tmp_path / "images")
    await store.open()
    await store.load(stream(oci_archive(image, "x:1")))
    return await store.unpack(image.digest)


async def test_overlay_shows_what_the_layers_say(tmp_path: Path) -> None:
    lowers = await unpacked(tmp_path, make_image(tar_of(*BASE), tar_of(*TOP)))
    with overlay(lowers, tmp_path) as merged:
        assert tree(merged) == MERGED
        assert stat.S_IMODE((merged / "su").stat().st_mode) == 0o4755
        (merged / "fresh").rmdir()  # a whiteout left in it would forbid that
        shutil.rmtree(merged / "gone-dir")
        (merged / "gone").write_text("again")
        assert (merged / "gone").read_text() == "again"


async def test_container_in_a_user_namespace_sees_the_same(tmp_path: Path) -> None:
    """There overlayfs is mounted with userxattr, and reads user.overlay.opaque."""
    lowers = await unpacked(tmp_path, make_image(tar_of(*BASE), tar_of(*TOP)))
    for name in ("upper", "work", "merged"):
        (tmp_path / name).mkdir()
    stacked = ":".join(map(str, lowers))
    where = f"lowerdir={stacked},upperdir={tmp_path}/upper,workdir={tmp_path}/work,userxattr"
    script = 'mount -t overlay overlay -o "$1" "$2" && ls -A "$2/replaced" "$2/gone-dir" "$2/fresh"'
    isolated = ["unshare", "--user", "--map-root-user", "--mount"]
    said = output_of(*isolated, "sh", "-c", script, "sh", where, tmp_path / "merged")
    shown = {line for line in said.split() if not line.endswith(":")}
    assert shown == {"new", "y"}


async def test_attributes_survive(tmp_path: Path) -> None:
    ping = member("ping", mode=0o755, uid=1, gid=2)
    ping.pax_headers = {
        "SCHILY.xattr.security.capability": CAPABILITY.decode(errors="surrogateescape"),
        "SCHILY.xattr.user.note": "hello",
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.user.overlay.redirect": "/etc",
        "SCHILY.xattr.trusted.x": "x",
        "SCHILY.xattr.security.selinux": "x",
    }
    (lower,) = await unpacked(tmp_path, make_image(tar_of((ping, b"program"))))
    with overlay([lower], tmp_path) as merged:
        for path in (lower / "ping", merged / "ping"):
            assert os.getxattr(path, "security.capability") == CAPABILITY
            assert os.getxattr(path, "user.note") == b"hello"
            assert sorted(os.listxattr(path)) == ["security.capability", "user.note"]
            assert (path.stat().st_uid, path.stat().st_gid) == (1, 2)


async def test_devices_of_an_image_do_not_reach_the_disk(tmp_path: Path) -> None:
    disk = member("sda", tarfile.BLKTYPE, devmajor=8, devminor=0, mode=0o666)
    smuggled = member("d", tarfile.CHRTYPE, devmajor=0, devminor=0)
    layers = [tar_of(*BASE), tar_of(disk, smuggled)]
    lowers = await unpacked(tmp_path, make_image(*layers))
    with overlay(lowers, tmp_path) as merged:
        assert not (merged / "sda").exists()
        assert (merged / "d/old").read_text() == "old"


@pytest.mark.skipif(not BUSYBOX.exists(), reason="needs the package busybox-static")
async def test_busybox_runs_from_its_image(tmp_path: Path) -> None:
    first = busybox_rootfs(tmp_path / "one.tar").read_bytes()
    assert busybox_rootfs(tmp_path / "two.tar").read_bytes() == first
    store = ImageStore(tmp_path / "images")
    await store.open()
    image = await store.import_rootfs(tmp_path / "one.tar", reference="busybox")
    lowers = await store.unpack(image.digest)
    with overlay(lowers, tmp_path) as merged:
        script = "id -un; cat /var/www/index.html; env true"
        assert output_of("chroot", merged, "/bin/sh", "-c", script) == "root\nIt works.\n"
