"""The tar reader: it agrees with tarfile on honest archives, and survives all others."""

from __future__ import annotations

import gzip
import importlib.util
import io
import tarfile
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.images.compression import CHUNK_BYTES, decompress
from swarmlet.images.errors import BadLayer
from swarmlet.images.tarstream import Blocks, Entry, Kind, TarReader, parse_pax, split_path
from tests.images.making import directory, hard_link, member, symlink, tar_of


def read_all(
    data: bytes, *, piece: int = 1000, entries_max: int = 1000
) -> list[tuple[Entry, bytes]]:
    stream = io.BytesIO(data)
    reader = TarReader(Blocks(lambda: stream.read(piece)), entries_max=entries_max)
    return [(entry, b"".join(reader.content())) for entry in reader]


KINDS = {
    tarfile.REGTYPE: Kind.FILE,
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.LNKTYPE: Kind.HARDLINK,
    tarfile.FIFOTYPE: Kind.FIFO,
    tarfile.CHRTYPE: Kind.DEVICE,
    tarfile.BLKTYPE: Kind.DEVICE,
}
names = st.lists(
    st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=60
    ).filter(lambda name: name not in (".", "..") and len(name.encode()) < 200),
    min_size=1,
    max_size=5,
).map("/".join)


@st.composite
def members(draw: st.DrawFn) -> tuple[tarfile.TarInfo, bytes]:
    kind = draw(st.sampled_from(list(KINDS)))
    data = draw(st.binary(max_size=1500)) if kind == tarfile.REGTYPE else b""
    info = member(
        draw(names),
        kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(st.integers(0, 2**31)),
        gid=draw(st.integers(0, 2**31)),
        mtime=draw(st.integers(0, 2**33)),
        size=len(data),
    )
    if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        info.linkname = draw(names)
    return info, data


@given(
    st.lists(members(), max_size=5),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.integers(1, 3000),
)
def test_archive_of_tarfile_is_read_as_it_was_written(
    written: list[tuple[tarfile.TarInfo, bytes]], form: int, piece: int
) -> None:
    found = read_all(tar_of(*written, form=form), piece=piece)
    assert [data for _, data in found] == [data for _, data in written]
    for (entry, _), (info, _) in zip(found, written, strict=True):
        assert b"/".join(entry.path) == info.name.encode()
        assert entry.kind is KINDS[info.type]
        assert (entry.mode, entry.uid, entry.gid) == (info.mode, info.uid, info.gid)
        assert entry.mtime_ns == info.mtime * 10**9
        assert entry.link == info.linkname.encode()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_format(form: int) -> None:
    long = "/".join(["d" * 49] * 4) if form == tarfile.USTAR_FORMAT else "/".join(["d" * 99] * 20)
    target = "t" * (99 if form == tarfile.USTAR_FORMAT else 300)
    data = tar_of((member(long), b"x"), symlink("l", target), form=form)
    (entry, content), (link, _) = read_all(data)
    assert b"/".join(entry.path).decode() == long
    assert content == b"x"
    assert link.link.decode() == target


def test_pax_says_what_the_header_cannot() -> None:
    info = member("f", mtime=1.5, uid=2**31)
    info.pax_headers = {
        "SCHILY.xattr.user.x": "1",
        "SCHILY.xattr.security.capability": "\x01\x02",
        "comment": "nothing",
    }
    ((entry, _),) = read_all(tar_of(info))
    assert entry.mtime_ns == 1_500_000_000
    assert entry.uid == 2**31
    assert entry.xattrs == {"user.x": b"1", "security.capability": b"\x01\x02"}


def test_time_before_1970_and_far_away() -> None:
    found = read_all(tar_of(member("a", mtime=-1.5), member("b", mtime=2.0**50)))
    assert [entry.mtime_ns for entry, _ in found] == [-1_500_000_000, 2**40 * 10**9]
    found = read_all(tar_of(member("a", mtime=-2), form=tarfile.GNU_FORMAT))
    assert found[0][0].mtime_ns == -2_000_000_000


# Hostile archives.
def header(**fields: bytes) -> bytearray:
    """A header with raw fields, and a checksum that is right."""
    raw = bytearray(member("f").tobuf(tarfile.USTAR_FORMAT)[:512])
    places = {"name": (0, 100), "size": (124, 12), "uid": (108, 8), "mtime": (136, 12)}
    places |= {"type": (156, 1), "link": (157, 100), "magic": (257, 8)}
    for name, value in fields.items():
        at, length = places[name]
        raw[at : at + length] = value.ljust(length, b"\0")
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return raw


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"x" * 512, "this is no tar archive"),
        (b"x" * 100, "middle of a header"),
        (header(size=b"\xff" * 12), "negative size"),
        (header(size=b"\x80" + b"\xff" * 11), "a size of"),
        (header(size=b"-1"), "as its size"),
        (header(size=b"1_0"), "as its size"),
        (header(size=b" +7"), "as its size"),
        (header(size=b"9"), "as its size"),
        (header(uid=b"\xff" * 8), "negative uid"),
        (header(type=b"S"), "--sparse"),
        (header(type=b"V"), "unknown type"),
        (header(name=b"../x"), "leads out"),
        (header(name=b"a/../../x"), "leads out"),
        (header(name=b".."), "leads out"),
        (header(name=b"/".join([b"a"] * 50), magic=b"ustar\000"), None),
        (header(size=b"7777"), "middle of a file"),
        (header(type=b"x", size=b"100"), "middle of an extended header"),
        (header(type=b"x", size=b"77777777777"), "1048576 are allowed"),
        (header(type=b"L", size=b"\x80" + b"\0" * 3 + b"\x7f" * 8), "extended header of"),
        (bytes(512) + header(), "goes on behind its end"),
        (bytes(1024) + b"anything", None),
        (b"", None),
    ],
    ids=str,
)
def test_damaged_archive_is_refused(data: bytes, complaint: str | None) -> None:
    if complaint is None:
        read_all(bytes(data))
        return
    with pytest.raises(BadLayer, match=complaint):
        read_all(bytes(data))


@pytest.mark.parametrize(
    "records",
    [
        b"x",
        b"99 path=a\n",
        b"0 path=a\n",
        b"-5 path=a\n",
        b"10 path=a",
        b"9 path:ab\n",
        b"5 =ab\n",
        b" path=a\n",
        b"1 1 1 1 1",
        b"99999999999999999999999 a=b\n",
    ],
)
def test_broken_extended_header_is_refused(records: bytes) -> None:
    with pytest.raises(BadLayer, match="extended header"):
        parse_pax(records)


@pytest.mark.parametrize(
    "headers",
    [
        {"size": "-1"},
        {"size": "1e3"},
        {"uid": "x"},
        {"mtime": "nan"},
        {"mtime": "1.-5"},
        {"mtime": ""},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
        {"path": "../x"},
        {"path": "a/../x"},
        {"path": "x" * 5000},
        {"path": "/".join("x" * 300)},
    ],
    ids=str,
)
def test_bad_values_in_extended_headers_are_refused(headers: dict[str, str]) -> None:
    info = member("f")
    info.pax_headers = headers
    with pytest.raises(BadLayer):
        read_all(tar_of((info, b"")))


def test_entries_and_headers_have_a_bound() -> None:
    with pytest.raises(BadLayer, match="more than 10 entries"):
        read_all(tar_of(*[member(f"f{n}") for n in range(11)]), entries_max=10)
    chain = bytes(header(type=b"x", size=b"0")) * 50
    with pytest.raises(BadLayer, match="more than 10 headers"):
        read_all(chain, entries_max=10)


@given(st.data())
def test_mutated_archive_is_read_or_refused(data: st.DataObject) -> None:
    plain = bytearray(
        tar_of(
            directory("d/"),
            ("d/f", b"content"),
            symlink("l", "d/f"),
            hard_link("h", "d/f"),
            (member("x" * 150), b"long"),
        )
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(plain) - 1))
        plain[at : at + 1] = data.draw(st.binary(max_size=3))
    try:
        found = read_all(bytes(plain))
    except BadLayer:
        return
    for entry, content in found:
        assert len(content) == entry.size
        assert b".." not in entry.path


@given(st.binary(max_size=1200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        read_all(data)
    except BadLayer:
        return


@given(st.binary(max_size=40) | st.text("./a\0", max_size=30).map(str.encode))
def test_path_never_leads_out(raw: bytes) -> None:
    try:
        parts = split_path(raw)
    except BadLayer:
        return
    assert not {b"", b".", b".."} & set(parts)
    assert not any(b"/" in part or b"\0" in part for part in parts)


# Compression.
@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=4), st.integers(1, 500))
def test_members_of_a_gzip_stream_are_one_stream(parts: list[bytes], piece: int) -> None:
    stream = io.BytesIO(b"".join(gzip.compress(part) for part in parts) + bytes(100))
    assert b"".join(decompress(lambda _: stream.read(piece))) == b"".join(parts)


@given(st.binary(max_size=300), st.integers(1, 50))
def test_stream_without_compression_passes(data: bytes, piece: int) -> None:
    if data[:2] == b"\x1f\x8b" or data[:4] == b"\x28\xb5\x2f\xfd":
        return
    stream = io.BytesIO(data)
    assert b"".join(decompress(lambda _: stream.read(piece))) == data


@pytest.mark.parametrize("cut", [3, 11, 20, -9, -1])
def test_gzip_stream_that_is_cut_is_refused(cut: int) -> None:
    stream = io.BytesIO(gzip.compress(b"a" * 1000)[:cut])
    with pytest.raises(BadLayer, match="gzip"):
        list(decompress(stream.read))


def test_gzip_with_rubbish_behind_it_is_refused() -> None:
    stream = io.BytesIO(gzip.compress(b"a") + b"rubbish")
    with pytest.raises(BadLayer, match="gzip"):
        list(decompress(stream.read))


def test_bomb_is_unpacked_in_constant_memory() -> None:
    compressor = zlib.compressobj(9, wbits=31)
    zeros = bytes(1 << 20)
    bomb = b"".join(compressor.compress(zeros) for _ in range(64)) + compressor.flush()
    stream = io.BytesIO(bomb)
    tracemalloc.start()
    try:
        assert sum(map(len, decompress(stream.read))) == 64 << 20
        assert tracemalloc.get_traced_memory()[1] < 4 * CHUNK_BYTES + len(bomb)
    finally:
        tracemalloc.stop()


def test_zstd_is_read_or_its_absence_explained() -> None:
    if importlib.util.find_spec("zstandard") is None:
        with pytest.raises(BadLayer, match="install the package zstandard"):
            list(decompress(io.BytesIO(b"\x28\xb5\x2f\xfd rest").read))
        return
    zstandard = importlib.import_module("zstandard")
    data = b"zstd" * 100_000
    stream = io.BytesIO(zstandard.compress(data[:1000]) + zstandard.compress(data[1000:]))
    assert b"".join(decompress(stream.read)) == data
    with pytest.raises(BadLayer, match="zstd"):
        list(decompress(io.BytesIO(b"\x28\xb5\x2f\xfd rest" * 10).read))
