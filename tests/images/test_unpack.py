"""Layers become directories: what is kept, and what hostile ones cannot do."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarmlet.images.compression import CHUNK_BYTES
from swarmlet.images.errors import BadLayer, NoSpace
from swarmlet.images.placing import Limits, find_below
from swarmlet.images.unpack import LayerFacts, check_layer, remove_tree, unpack_layer
from tests.images.making import (
    UID,
    Part,
    digest_of,
    directory,
    hard_link,
    member,
    symlink,
    tar_of,
)

LIMITS = Limits(free_bytes_min=0)


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A folder with a layer's directory and, beside it, what no layer may touch."""
    (tmp_path / "layer").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/file").write_text("untouched")
    os.utime(tmp_path / "secret/file", (1, 1))
    os.utime(tmp_path / "secret", (1, 1))
    return tmp_path


def unpack(
    room: Path, *parts: Part, parents: Sequence[Path] = (), limits: Limits = LIMITS
) -> LayerFacts:
    data = tar_of(*parts)
    return unpack_layer(io.BytesIO(data), room / "layer", parents, limits)


def outside(room: Path) -> list[object]:
    """All that is observable of what stands beside the layer."""
    found: list[object] = []
    for path in (room / "secret", room / "secret/file"):
        info = path.lstat()
        found.append((info.st_mode, info.st_uid, info.st_mtime_ns, info.st_nlink))
    found.append(sorted(os.listdir(room / "secret")))
    found.append((room / "secret/file").read_text())
    found.append(sorted(os.listdir(room)))
    return found


def test_files_keep_what_they_are(room: Path) -> None:
    facts = unpack(
        room,
        directory("bin/", mode=0o1777, mtime=1_600_000_000),
        (member("bin/su", mode=0o4755, mtime=1_600_000_001.25), b"program"),
        symlink("bin/sh", "su"),
        hard_link("bin/twin", "bin/su"),
        member("bin/pipe", tarfile.FIFOTYPE, mode=0o620),
        ("empty", b""),
    )
    top = room / "layer"
    su = (top / "bin/su").lstat()
    assert (top / "bin/su").read_bytes() == b"program"
    assert stat.S_IMODE(su.st_mode) == 0o4755
    assert su.st_mtime_ns == 1_600_000_001_250_000_000
    assert os.readlink(top / "bin/sh") == "su"
    assert (top / "bin/twin").samefile(top / "bin/su")
    assert stat.S_ISFIFO((top / "bin/pipe").lstat().st_mode)
    assert stat.S_IMODE((top / "bin/pipe").lstat().st_mode) == 0o620
    assert (top / "bin").lstat().st_mtime == 1_600_000_000
    assert stat.S_IMODE((top / "bin").lstat().st_mode) == 0o1777
    assert (top / "empty").read_bytes() == b""
    assert (facts.entries, facts.size, facts.left_out) == (6, 7, 0)


def test_diff_id_is_that_of_the_whole_plain_tar(room: Path) -> None:
    data = tar_of(("a", b"1")) + bytes(4 * CHUNK_BYTES)
    facts = unpack_layer(io.BytesIO(data), room / "layer", [], LIMITS)
    assert facts.diff_id == digest_of(data)
    assert check_layer(io.BytesIO(data), LIMITS) == facts


def test_missing_directories_are_made_as_they_are_below(room: Path) -> None:
    below = room / "below"
    (below / "tmp").mkdir(parents=True)
    (below / "tmp").chmod(0o1777)
    os.utime(below / "tmp", (5, 5))
    unpack(room, ("tmp/x", b""), ("other/y", b""), parents=[below])
    assert stat.S_IMODE((room / "layer/tmp").stat().st_mode) == 0o1777
    assert (room / "layer/tmp").stat().st_mtime == 5
    assert stat.S_IMODE((room / "layer/other").stat().st_mode) == 0o755


def test_later_entries_replace_earlier_ones(room: Path) -> None:
    unpack(
        room,
        ("a", b"1"),
        ("a", b"2"),
        directory("d/", mode=0o700),
        ("d/x", b"kept"),
        directory("d/", mode=0o711),
        symlink("s", "d"),
        directory("s/"),
        ("s/y", b"own"),
        directory("gone/"),
        ("gone/x", b""),
        ("gone", b"file"),
        hard_link("a", "a"),
    )
    top = room / "layer"
    assert (top / "a").read_bytes() == b"2"
    assert (top / "d/x").exists()
    assert stat.S_IMODE((top / "d").stat().st_mode) == 0o711
    assert not (top / "s").is_symlink()
    assert not (top / "d/y").exists()
    assert (top / "gone").read_bytes() == b"file"


def test_directory_that_went_and_came_again_is_the_new_one(room: Path) -> None:
    first = [directory("a/b/"), ("a/b/x", b""), ("a", b"")]
    unpack(room, *first, directory("a/"), directory("a/b/"), ("a/b/y", b""))
    assert os.listdir(room / "layer/a/b") == ["y"]


def test_link_inside_of_the_layer_is_followed(room: Path) -> None:
    unpack(
        room,
        directory("usr/lib/"),
        symlink("lib", "usr/lib"),
        symlink("abs", "/usr/lib"),
        symlink("up", "../../usr/./lib"),
        directory("usr/share/"),
        symlink("usr/share/side", "../lib"),
        ("usr/share/side/e", b""),
        ("lib/a", b""),
        ("abs/b", b""),
        ("up/c", b""),
        ("usr/lib/d", b""),
    )
    assert sorted(os.listdir(room / "layer/usr/lib")) == ["a", "b", "c", "d", "e"]


HOSTILE: dict[str, list[Part]] = {
    "link to a directory outside": [symlink("a", "../secret"), ("a/file", b"evil")],
    "link to outside, absolute": [symlink("a", "SECRET"), ("a/file", b"evil")],
    "chain of links": [
        symlink("a", "b"),
        symlink("b", "../secret"),
        ("a/new", b"evil"),
    ],
    "dots in a name": [("../secret/file", b"evil")],
    "dots deep in a name": [directory("a/"), ("a/../../secret/file", b"evil")],
    "absolute name": [("SECRET/file", b"evil")],
    "hard link to outside": [hard_link("a", "../secret/file"), ("a", b"evil")],
    "hard link to outside, absolute": [hard_link("a", "SECRET/file"), ("a", b"evil")],
    "hard link through a link": [
        symlink("a", "../secret"),
        hard_link("b", "a/file"),
        (member("b"), b"evil"),
    ],
    "file over a link": [symlink("a", "../secret/file"), ("a", b"evil")],
    "mode through a link": [symlink("a", "../secret"), directory("a/", mode=0o777)],
    "mode of a link": [member("a", tarfile.SYMTYPE, linkname="../secret/file", mode=0o777)],
    "hard link to a link to outside": [
        symlink("a", "../secret/file"),
        hard_link("b", "a"),
        ("b", b"evil"),
    ],
    "hard link to a link": [symlink("a", "../secret/file"), hard_link("b", "a")],
    "directory changed for a link at the end": [
        directory("a/d/", mtime=99),
        ("a", b""),
        symlink("a", ".."),
        symlink("d", "../secret"),
    ],
    "times of a directory that became a link": [
        directory("secret/", mtime=99),
        ("secret", b""),
        symlink("secret", "../secret"),
    ],
    "directory below that became a link": [
        directory("x/secret/", mtime=99, mode=0o777),
        ("x", b""),
        symlink("x", ".."),
    ],
    "removal through a link": [symlink("a", ".."), ("a/secret", b"evil")],
    "whiteout through a link": [symlink("a", "../secret"), ("a/.wh.file", b"")],
    "opaque through a link": [symlink("a", "../secret"), ("a/.wh..wh..opq", b"")],
    "whiteout of the parent": [("a/.wh...", b"")],
    "whiteout of itself": [("a/.wh..", b"")],
    "whiteout of nothing": [("a/.wh.", b"")],
    "file as a directory": [("a", b""), ("a/b", b"")],
    "loop of links": [symlink("a", "b"), symlink("b", "a"), ("a/x", b"")],
    "link to itself": [symlink("a", "a/a"), ("a/x", b"")],
    "root that is a file": [(member("."), b"")],
    "hard link to the root": [hard_link("a", "/")],
    "hard link to a directory": [directory("d/"), hard_link("a", "d")],
    "hard link in the place of its folder": [("a/b", b""), hard_link("a", "a/b")],
    "hard link to nothing": [hard_link("a", "b")],
    "entry inside of a whiteout": [("a/.wh.x/y", b"")],
    "deep": [("/".join(["d"] * 200), b"")],
    "deep by links": [
        directory("/".join(["d"] * 100) + "/"),
        symlink("l", "/".join(["d"] * 100)),
        directory("l/" + "/".join(["e"] * 60) + "/"),
    ],
    "long name": [("x" * 300, b"")],
    "long link": [symlink("a", "x" * 5000)],
    "empty link": [symlink("a", "")],
}


#: What stays inside of the layer, because that is where its names and links lead.
HARMLESS = {
    "link to a directory outside",
    "link to outside, absolute",
    "chain of links",
    "absolute name",
    "file over a link",
    "mode through a link",
    "mode of a link",
    "hard link to a link to outside",
    "hard link to a link",
    "directory changed for a link at the end",
    "times of a directory that became a link",
    "directory below that became a link",
    "removal through a link",
    "whiteout through a link",
    "opaque through a link",
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.level4 if "opaque" in name else ()) for name in HOSTILE],
)
def test_hostile_layer_touches_nothing_outside(room: Path, name: str) -> None:
    below = room / "below"
    (below / "a").mkdir(parents=True)
    (below / "a/file").touch()
    before = outside(room)
    parts: list[Part] = []
    for part in HOSTILE[name]:
        info = part if isinstance(part, tarfile.TarInfo) else part[0]
        if isinstance(info, str):
            info = member(info)
        info.name = info.name.replace("SECRET", str(room / "secret"))
        info.linkname = info.linkname.replace("SECRET", str(room / "secret"))
        parts.append(info if isinstance(part, tarfile.TarInfo) else (info, part[1]))
    if name in HARMLESS:
        unpack(room, *parts, parents=[below])
    else:
        with pytest.raises(BadLayer):
            unpack(room, *parts, parents=[below])
    assert outside(room) == before
    remove_tree(room / "layer")
    assert not (room / "layer").exists()


names = st.sampled_from(
    ["a", "b", "a/b", "a/c", "b/a", "a/b/c", "../secret", "a/../b", "./a", "/a"]
)
targets = st.sampled_from(
    ["a", "b", "..", "../secret", "/", "/a", "../secret/file", "a/b", "b/../.."]
)
#: An opaque directory has a trusted xattr, which root alone may set.
OPAQUE_MOVES = [names.map(lambda name: (f"{name}/.wh..wh..opq", b""))] if UID == 0 else []
moves = st.one_of(
    st.tuples(names, st.just(b"evil")),
    names.map(directory),
    st.builds(symlink, names, targets),
    st.builds(hard_link, names, targets),
    names.map(lambda name: (os.path.join(os.path.dirname(name), ".wh.file"), b"")),
    *OPAQUE_MOVES,
)


@given(st.lists(moves, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_series_of_entries_leads_out(room: Path, series: list[Part]) -> None:
    before = outside(room)
    remove_tree(room / "layer")
    (room / "layer").mkdir()
    try:
        unpack(room, *series, parents=[room / "secret"])
    except BadLayer:
        pass
    finally:
        assert outside(room) == before


# Devices, whiteouts.
def test_devices_are_left_out_and_counted(room: Path) -> None:
    facts = unpack(
        room,
        member("null", tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("sda", tarfile.BLKTYPE, devmajor=8, devminor=0),
        member("whiteout", tarfile.CHRTYPE, devmajor=0, devminor=0),
        hard_link("twin", "null"),
        ("file", b""),
    )
    assert os.listdir(room / "layer") == ["file"]
    assert facts.left_out == 4


def test_whiteout_with_nothing_to_hide_is_left_out(room: Path) -> None:
    below = room / "below"
    below.mkdir()
    unpack(room, ("d/.wh.x", b""), (".wh.y", b""), ("d/.wh..wh..opq", b""))
    assert [*(room / "layer").rglob("*")] == [room / "layer/d"] or os.listdir(room / "layer") == []
    unpack(room, ("d/.wh.x", b""), (".wh.y", b""), parents=[below])
    assert not list((room / "layer").rglob("x"))
    assert not list((room / "layer").rglob("y"))


def test_books_of_aufs_are_left_out(room: Path) -> None:
    unpack(room, directory(".wh..wh.plnk/"), (".wh..wh.plnk/1", b""), (".wh..wh.aufs", b""))
    assert os.listdir(room / "layer") == []


def test_lookup_through_layers_stops_where_one_hides(room: Path) -> None:
    top, bottom = room / "top", room / "bottom"
    (bottom / "d/e").mkdir(parents=True)
    (bottom / "f").touch()
    (bottom / "out").symlink_to(room / "secret")
    top.mkdir()
    (top / "d").touch()
    assert find_below([top, bottom], (b"f",)) is not None
    assert find_below([bottom], (b"d", b"e")) is not None
    assert find_below([top, bottom], (b"d", b"e")) is None
    assert find_below([top, bottom], (b"out", b"file")) is None
    assert find_below([], (b"f",)) is None


# Limits.
def test_layer_larger_than_its_limit_is_refused(room: Path) -> None:
    limits = Limits(layer_bytes_max=100_000, free_bytes_min=0)
    with pytest.raises(BadLayer, match="larger than 100000 bytes"):
        unpack(room, ("a", bytes(200_000)), limits=limits)
    padded = tar_of(("b", b"")) + bytes(4 * CHUNK_BYTES)
    limits = Limits(layer_bytes_max=2 * CHUNK_BYTES, free_bytes_min=0)
    with pytest.raises(BadLayer, match="larger than 524288 bytes"):
        unpack_layer(io.BytesIO(padded), room / "layer", [], limits)


def test_layer_that_would_eat_the_reserve_is_refused(room: Path) -> None:
    with pytest.raises(NoSpace, match="kept free"):
        unpack(room, ("a", b""), limits=Limits(free_bytes_min=1 << 60))


def test_pulse_may_give_up(room: Path) -> None:
    class Enough(Exception):
        pass

    def pulse() -> None:
        raise Enough

    with pytest.raises(Enough):
        unpack_layer(io.BytesIO(tar_of(("a", b""))), room / "layer", [], LIMITS, pulse)


def test_no_file_stays_open(room: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    parts = [directory(f"d{n}/{m}/") for n in range(40) for m in range(3)]
    unpack(room, *parts, *[(f"d{n}/1/f", b"") for n in range(40)])
    with pytest.raises(BadLayer):
        unpack(room, symlink("l", "l"), ("l/x", b""))
    assert len(os.listdir("/proc/self/fd")) == before
