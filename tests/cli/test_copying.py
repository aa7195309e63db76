"""What `swarmlet cp` unpacks on this side, whatever a container sends."""

from __future__ import annotations

import io
import os
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmlet.cli.base import Failure
from swarmlet.cli.copying import pack, split_place, unpack
from swarmlet.cli.duplex import KeyScan

NAMES = st.sampled_from(
    ["top", "top/a", "top/a/b", "../x", "/etc/x", "top/../../x", "top/link", "top/link/x", "."]
)
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
LINKS = st.sampled_from(["..", "../..", "/", "../../outside", "top/a", "/etc/passwd", "top/link"])


def archive(*entries: tuple[str, bytes, str]) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, link in entries:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kind, link, 0o755
            tar.addfile(info)
    out.seek(0)
    return out


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(NAMES, KINDS, LINKS), max_size=8), st.sampled_from(["", "new"]))
def test_nothing_is_unpacked_outside(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, bytes, str]], name: str
) -> None:
    around = tmp_path_factory.mktemp("around")
    (around / "here").mkdir()
    (around / "outside").write_text("untouched")
    before = os.stat(around / "outside").st_mode
    with suppress(Failure):
        unpack(archive(*entries), str(around / "here"), name, keep_owners=False)
    assert sorted(p.name for p in around.iterdir()) == ["here", "outside"]
    assert (around / "outside").read_text() == "untouched"
    assert os.stat(around / "outside").st_mode == before


def test_a_link_that_came_first_is_no_way_out(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    hostile = archive(("top", tarfile.SYMTYPE, ".."), ("top/file", tarfile.REGTYPE, ""))
    with pytest.raises(Failure, match="leads out"):
        unpack(hostile, str(tmp_path / "here"), "", keep_owners=False)
    assert not (tmp_path / "file").exists()


def test_a_file_that_becomes_a_link_lends_its_mode_to_nobody(tmp_path: Path) -> None:
    (tmp_path / "outside").touch(0o600)
    (tmp_path / "here").mkdir()
    hostile = archive(("f", tarfile.REGTYPE, ""), ("f", tarfile.SYMTYPE, "../outside"))
    unpack(hostile, str(tmp_path / "here"), "", keep_owners=False)
    assert (tmp_path / "outside").stat().st_mode & 0o777 == 0o600


def test_what_is_packed_is_unpacked_the_same_under_its_new_name(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "file").write_text("content")
    (source / "inner" / "file").chmod(0o640)
    (source / "link").symlink_to("inner")
    out = io.BytesIO()
    assert pack(out, str(source), "source", follow=False) == len("content")
    out.seek(0)
    unpack(out, str(tmp_path), "copy", keep_owners=False)
    assert (tmp_path / "copy" / "inner" / "file").read_text() == "content"
    assert (tmp_path / "copy" / "inner" / "file").stat().st_mode & 0o777 == 0o640
    assert os.readlink(tmp_path / "copy" / "link") == "inner"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("web:/etc", ("web", "/etc")),
        ("web:", ("web", "")),
        ("./a:b", ("", "./a:b")),
        ("/a:b", ("", "/a:b")),
        ("a/b:c", ("", "a/b:c")),
        ("file", ("", "file")),
        ("-", ("", "-")),
    ],
)
def test_a_path_with_a_colon_is_told_from_a_containers(text: str, place: tuple[str, str]) -> None:
    assert split_place(text) == place


@given(st.lists(st.binary(max_size=4), max_size=8))
def test_what_is_typed_passes_unless_it_detaches(pieces: list[bytes]) -> None:
    scan = KeyScan(b"\x10\x11")
    sent = b""
    for piece in pieces:
        sent += scan.feed(piece)
        if scan.found:
            break
    typed = b"".join(pieces)
    if scan.found:
        assert typed.startswith(sent + b"\x10\x11")
    else:
        assert typed == sent + (b"\x10" if typed.endswith(b"\x10") else b"")


def test_keys_that_detach_may_come_in_pieces_and_begin_anew() -> None:
    scan = KeyScan(b"\x10\x11")
    assert scan.feed(b"ab\x10") == b"ab"
    assert scan.feed(b"\x10") == b"\x10"
    assert not scan.found
    assert scan.feed(b"\x11more") == b""
    assert scan.found
