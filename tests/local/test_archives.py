"""Archives in and out of a root, without a daemon: laws, and whatever bytes come."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmlet.agent.local.errors import LocalError
from swarmlet.agent.local.owners import NOBODY, Owners
from swarmlet.agent.local.rootfs import PATH_DIRECTORY, READ_DIRECTORY
from swarmlet.agent.local.tarin import extract
from swarmlet.agent.local.tarout import TarOut

pytestmark = pytest.mark.level4  # owners are set, which takes the host's root

NAMES = st.sampled_from(
    ["a", "b", "a/b", "a/b/c", "../x", "/etc/x", "a/../../x", "./a", "", ".", "link/x", "link"]
)
KINDS = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]
)
LINKS = st.sampled_from(["a", "..", "../..", "/", "../outside", "/outside", "b", "link"])


@pytest.fixture
def root(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    place = tmp_path / "root"
    place.mkdir()
    fd = os.open(place, PATH_DIRECTORY)
    yield fd, place
    os.close(fd)


def take(root: int, data: bytes, *, owners: Owners | None = None) -> None:
    file = io.BytesIO(data)
    more = {"owners": owners} if owners is not None else {}
    extract(root, "/", file.read, keep_kinds=True, **more)


def put(place: Path, owners: Owners | None = None) -> bytes:
    parts: list[bytes] = []
    out = TarOut(parts.append, owners=owners or Owners())
    fd = os.open(place, READ_DIRECTORY)
    out.add_children(fd, "")
    out.finish()
    os.close(fd)
    return b"".join(parts)


def tree(place: Path) -> dict[str, tuple[int, int, bytes]]:
    found = {}
    for path in sorted(place.rglob("*")):
        info = path.lstat()
        content = b""
        if path.is_symlink():
            content = os.fsencode(os.readlink(path))
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(place))] = (info.st_mode, info.st_uid, content)
    return found


def test_what_went_out_comes_in_the_same(root: tuple[int, Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    (source / "folder" / "file").write_bytes(os.urandom(100_000))
    os.chown(source / "folder" / "file", 5, 6)
    (source / "folder" / "file").chmod(0o4751)
    os.link(source / "folder" / "file", source / "again")
    (source / "link").symlink_to("nowhere")
    os.mkfifo(source / "fifo")
    (source / "näme\udcff").write_text("not UTF-8")
    fd, place = root
    take(fd, put(source))
    assert tree(place) == tree(source)
    assert (place / "again").stat().st_ino == (place / "folder" / "file").stat().st_ino


def test_owners_are_the_containers_in_the_archive(root: tuple[int, Path], tmp_path: Path) -> None:
    source, owners = tmp_path / "source", Owners(100_000, 65_536)
    source.mkdir()
    for name, uid in (("root", 100_000), ("user", 101_000), ("foreign", 7)):
        (source / name).touch()
        os.chown(source / name, uid, uid)
    data = put(source, owners)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert {m.name: m.uid for m in tar} == {"root": 0, "user": 1000, "foreign": NOBODY}
    fd, place = root
    take(fd, data, owners=owners)
    assert (place / "user").stat().st_uid == 101_000
    assert (place / "foreign").stat().st_uid == 100_000 + NOBODY


@given(st.integers(0, 65_535), st.integers(0, 2**31))
def test_owners_in_and_out_again(id_: int, first: int) -> None:
    owners = Owners(first, 65_536)
    assert owners.inside(owners.outside(id_)) == id_


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(NAMES, KINDS, LINKS), max_size=8))
def test_no_archive_touches_anything_outside(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, bytes, str]]
) -> None:
    around = tmp_path_factory.mktemp("around")
    (around / "root").mkdir()
    (around / "outside").write_text("untouched")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, link in entries:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, 0
            info.mode = 0o755
            tar.addfile(info)
    fd = os.open(around / "root", PATH_DIRECTORY)
    try:
        take(fd, out.getvalue())
    except (LocalError, FileNotFoundError):
        pass
    finally:
        os.close(fd)
    assert sorted(p.name for p in around.iterdir()) == ["outside", "root"]
    assert (around / "outside").read_text() == "untouched"


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=2048), st.integers(0, 1000))
def test_whatever_bytes_come_the_answer_is_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int
) -> None:
    place = tmp_path_factory.mktemp("root")
    source = tmp_path_factory.mktemp("source")
    (source / "file").write_text("x" * 700)
    data = bytearray(put(source))
    data[at : at + len(noise)] = noise
    fd = os.open(place, PATH_DIRECTORY)
    try:
        take(fd, bytes(data))
    except (LocalError, FileNotFoundError):
        pass
    finally:
        os.close(fd)
