"""The write-ahead log: what was acknowledged is there after any power cut, and rot is named."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from raft.disk import Directory, DirectoryLocked, DiskFull
from raft.frames import FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES, WrongKey
from raft.membership import Change, ChangeKind, ServerChange, encode_change
from raft.messages import (
    CHANGE,
    Configuration,
    Entry,
    HardState,
    Member,
    ServerId,
    SnapshotMeta,
)
from raft.records import Write
from raft.scan import Contents, LogDamaged, LogMissing, segment_names
from raft.wal import WAL
from tests.raft.disks import MemoryDisk, PowerCut

KEY = bytes(range(32))
CLUSTER = b"cluster-of-tests"
ME = ServerId(77)
SEGMENT = 8192


def entry(index: int, term: int = 1, size: int = 40) -> Entry:
    return Entry(index, term, data=(b"%d:" % index).ljust(size, b"x"))


def batch(first: int, count: int = 1, term: int = 1, size: int = 40) -> list[Write]:
    return [Write(tuple(entry(first + i, term, size) for i in range(count)))]


def state(commit: int, term: int = 1) -> HardState:
    return HardState(term, ME, commit)


def make(disk: MemoryDisk) -> None:
    WAL.create(disk, KEY, cluster=CLUSTER, server=ME, segment_bytes=SEGMENT)


def reopen(disk: MemoryDisk) -> tuple[WAL, Contents]:
    return WAL.open(disk, KEY, segment_bytes=SEGMENT)


@pytest.fixture
def disk() -> MemoryDisk:
    disk = MemoryDisk()
    make(disk)
    return disk


def test_what_was_appended_is_read_back(disk: MemoryDisk) -> None:
    wal, contents = reopen(disk)
    assert contents == Contents(CLUSTER, ME)
    data = encode_change(Change((ServerChange(ChangeKind.ADD_VOTER, ServerId(5), b"addr"),)))
    writes = [*batch(1, 3), Write((Entry(4, 2, CHANGE, data),))]
    wal.append(HardState(2, ServerId(9), 1), writes)
    _, contents = reopen(disk)
    assert contents.hard_state == HardState(2, ServerId(9), 1)
    assert contents.entries == [entry(1), entry(2), entry(3), Entry(4, 2, CHANGE, data)]


def test_one_batch_is_one_write_and_one_sync(disk: MemoryDisk) -> None:
    wal, _ = reopen(disk)
    wal.append(state(0), batch(1))
    syncs, operations = disk.syncs, disk.operations
    wal.append(state(1), [*batch(2), *batch(3, 4), *batch(7)])
    assert (disk.syncs - syncs, disk.operations - operations) == (1, 2)


def test_later_entries_of_the_same_index_replace_earlier_ones(disk: MemoryDisk) -> None:
    wal, _ = reopen(disk)
    wal.append(state(0), batch(1, 5))
    wal.append(state(0, 2), batch(3, 1, term=2))
    assert reopen(disk)[1].entries == [entry(1), entry(2), entry(3, 2)]


def test_an_installed_snapshot_replaces_the_log(disk: MemoryDisk) -> None:
    configuration = Configuration(
        voters=(ServerId(1), ME), learners=(ServerId(3),), members=(Member(ME, b"here"),)
    )
    snapshot = SnapshotMeta(9, 3, configuration)
    wal, _ = reopen(disk)
    wal.append(state(0), batch(1, 5))
    wal.append(state(9, 3), [Write(snapshot=snapshot), *batch(10, 2, term=3)])
    _, contents = reopen(disk)
    assert contents.snapshot == snapshot
    assert contents.entries == [entry(10, 3), entry(11, 3)]


def test_segments_follow_each_other_and_are_removed_behind_a_snapshot(disk: MemoryDisk) -> None:
    wal, _ = reopen(disk)
    for index in range(1, 61):
        wal.append(state(index - 1), batch(index, size=400))
        wal.prepare()
    assert wal.segments >= 4
    wal, contents = reopen(disk)
    assert [e.index for e in contents.entries] == list(range(1, 61))
    before = wal.segments
    wal.compact(30)
    assert before > wal.segments == len(segment_names(disk))
    wal.append(state(60), batch(61))
    _, contents = reopen(disk)
    kept = [e.index for e in contents.entries]
    assert kept == list(range(kept[0], 62))
    assert 1 < kept[0] <= 31


def test_an_overwritten_tail_in_a_later_segment_keeps_the_earlier_one(disk: MemoryDisk) -> None:
    """A segment may be removed only when every entry in it is covered, whatever came later."""
    wal, _ = reopen(disk)
    for index in range(1, 25):
        wal.append(state(0), batch(index, size=400))
    wal.append(state(0, 2), batch(10, 1, term=2))
    wal.compact(12)
    assert [e.index for e in reopen(disk)[1].entries][-1] == 10


def test_nothing_is_written_by_opening_or_while_idle(disk: MemoryDisk) -> None:
    wal, _ = reopen(disk)
    wal.append(state(0), batch(1))
    wal.seal()
    written = disk.bytes_written
    wal.seal()
    wal.prepare()
    reopen(disk)
    assert disk.bytes_written == written


def test_a_large_batch_becomes_several_frames(disk: MemoryDisk) -> None:
    wal, _ = reopen(disk)
    wal.append(state(0), batch(1, 40, size=500))
    assert reopen(disk)[1].entries == list(batch(1, 40, size=500)[0].entries)


def test_an_entry_larger_than_a_segment_gets_a_larger_one(disk: MemoryDisk) -> None:
    wal, _ = reopen(disk)
    wal.append(state(0), batch(1))
    wal.append(state(1), batch(2, size=3 * SEGMENT))
    wal.append(state(2), batch(3))
    assert [len(e.data) for e in reopen(disk)[1].entries] == [40, 3 * SEGMENT, 40]


def test_a_wrong_key_is_told_from_rot(disk: MemoryDisk) -> None:
    with pytest.raises(WrongKey):
        WAL.open(disk, bytes(32), segment_bytes=SEGMENT)


def test_a_missing_log_is_not_an_empty_one() -> None:
    with pytest.raises(LogMissing):
        reopen(MemoryDisk())


def test_a_full_disk_refuses_whole_frames_and_recovers(disk: MemoryDisk) -> None:
    wal, _ = reopen(disk)
    disk.full = True
    acknowledged = 0
    while True:
        try:
            wal.append(state(0), batch(acknowledged + 1, size=400))
        except DiskFull:
            break
        acknowledged += 1
    assert acknowledged > 5
    assert [e.index for e in reopen(disk)[1].entries] == list(range(1, acknowledged + 1))
    disk.full = False
    wal.append(state(0), batch(acknowledged + 1, size=400))
    assert reopen(disk)[1].last_index == acknowledged + 1


def test_a_failing_sync_is_passed_on(disk: MemoryDisk) -> None:
    wal, _ = reopen(disk)
    disk.broken = True
    with pytest.raises(OSError, match="failed"):
        wal.append(state(0), batch(1))


# Power cuts.
STEPS = [batch(i, size=[40, 700, 1500][i % 3]) for i in range(1, 33)]


def run_until_cut(disk: MemoryDisk) -> int:
    """Append all steps, sealing and preparing now and then; return how many were acknowledged."""
    done = 0
    try:
        wal, _ = reopen(disk)
        for step in STEPS:
            wal.append(state(done), step)
            done += 1
            if done % 2:
                wal.seal()
            wal.prepare()
    except PowerCut:
        pass
    return done


def operations() -> int:
    disk = MemoryDisk()
    make(disk)
    start = disk.operations
    assert run_until_cut(disk) == len(STEPS)
    return disk.operations - start


def cut_disks() -> Iterator[tuple[int, MemoryDisk]]:
    for number in range(operations()):
        disk = MemoryDisk()
        make(disk)
        disk.cut_at = disk.operations + number
        yield run_until_cut(disk), disk


def test_every_power_cut_keeps_what_was_acknowledged() -> None:
    """Every operation of 32 appends over many segments, every set of surviving sectors."""
    states = torn = 0
    for acknowledged, cut in cut_disks():
        for files in cut.survivors():
            states += 1
            disk = MemoryDisk(files)
            wal, contents = reopen(disk)
            torn += contents.torn is not None
            recovered = len(contents.entries)
            assert acknowledged <= recovered <= acknowledged + 1
            assert contents.entries == [entry for s in STEPS[:recovered] for entry in s[0].entries]
            # Life goes on from there, and a second look finds nothing torn.
            wal.append(state(recovered, 2), batch(recovered + 1, term=2))
            _, again = reopen(MemoryDisk({n: disk.read(n) for n in disk.names()}))
            assert again.torn is None
            assert again.entries == [*contents.entries, entry(recovered + 1, 2)]
    assert states > 300
    assert torn > 100


def test_a_seal_is_never_half_of_what_a_torn_write_leaves() -> None:
    """At every place in a sector: append, seal, and an append that the power cut interrupts."""
    for size in range(40, 40 + 512, 8):
        disk = MemoryDisk()
        make(disk)
        wal, _ = reopen(disk)
        wal.append(state(0), batch(1, size=size))
        wal.seal()
        for file in disk.files.values():
            file.durable[:] = file.current  # the seal has reached the disk by and by
        disk.cut_at = disk.operations + 1
        with pytest.raises(PowerCut):
            wal.append(state(1), batch(2, size=700))
        for files in disk.survivors():
            _, contents = reopen(MemoryDisk(files))
            assert [e.index for e in contents.entries] in ([1], [1, 2])


@pytest.mark.parametrize("sealed", [True, False])
def test_rot_of_any_acknowledged_byte_is_never_cut_off(sealed: bool) -> None:
    """One flipped bit in every eighth byte of a log: it is damage, or harms nothing.

    Without a seal too: the last frame has no sector that was never written.
    """
    disk = MemoryDisk()
    make(disk)
    wal, _ = reopen(disk)
    for number, step in enumerate(STEPS[:8]):
        wal.append(state(number), step)
    if sealed:
        wal.seal()
    files = {name: disk.read(name) for name in disk.names()}
    entries = reopen(disk)[1].entries
    for name, content in files.items():
        end = len(content.rstrip(b"\0"))
        for position in range(0, end, 8):
            rotten = bytearray(content)
            rotten[position] ^= 0x10
            check_rot(MemoryDisk({**files, name: bytes(rotten)}), entries)


def check_rot(disk: MemoryDisk, entries: list[Entry]) -> None:
    before = {name: disk.read(name) for name in disk.names()}
    try:
        _, contents = reopen(disk)
    except (LogDamaged, WrongKey):
        pass
    else:
        # Padding, a SEAL or free space: nothing that was acknowledged.
        assert contents.entries == entries
        return
    assert {name: disk.read(name) for name in disk.names()} == before


def test_zeroed_sectors_are_rot_when_a_later_frame_or_seal_proves_it(disk: MemoryDisk) -> None:
    wal, _ = reopen(disk)
    wal.append(state(0), batch(1, size=1500))
    first_end = len(disk.read(disk.names()[0]).rstrip(b"\0"))
    wal.append(state(1), batch(2))
    name = disk.names()[0]
    content = bytearray(disk.read(name))
    content[512:1024] = bytes(512)
    with pytest.raises(LogDamaged, match="entry 0"):
        reopen(MemoryDisk({name: bytes(content)}))
    # Alone and never sealed, the same picture is an interrupted write.
    del wal
    content[first_end:] = bytes(SEGMENT - first_end)
    assert reopen(MemoryDisk({name: bytes(content)}))[1].torn


def test_a_missing_segment_is_damage(disk: MemoryDisk) -> None:
    wal, _ = reopen(disk)
    for index in range(1, 61):
        wal.append(state(0), batch(index, size=400))
    files = {name: disk.read(name) for name in disk.names()}
    names = [name for name in files if name.startswith("wal-")]
    for missing in names[1:]:
        rest = {name: content for name, content in files.items() if name != missing}
        with pytest.raises(LogDamaged):
            reopen(MemoryDisk(rest))


def test_a_segment_cut_short_is_damage(disk: MemoryDisk) -> None:
    name = disk.names()[0]
    with pytest.raises(LogDamaged, match="4096 bytes long"):
        reopen(MemoryDisk({name: disk.read(name)[:4096]}))


def test_no_nonce_repeats_after_a_write_was_lost(disk: MemoryDisk) -> None:
    """The same frame, written again after a power cut or on a restored image, looks different."""
    image = {name: disk.read(name) for name in disk.names()}
    frames = []
    for _ in range(2):
        copy = MemoryDisk(image)
        wal, _ = reopen(copy)
        wal.append(state(0), batch(1))
        content = copy.read(copy.names()[0])
        frames.append(content[SEGMENT_HEADER_BYTES + FRAME_HEADER_BYTES :][:64])
    assert frames[0] != frames[1]


# The real disk.
def test_files_on_the_real_disk_are_private_and_locked(tmp_path: Path) -> None:
    directory = Directory(tmp_path / "raft")
    WAL.create(directory, KEY, cluster=CLUSTER, server=ME, segment_bytes=SEGMENT)
    wal, _ = WAL.open(directory, KEY, segment_bytes=SEGMENT)
    wal.append(state(0), batch(1, 3))
    for path in (tmp_path / "raft").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(DirectoryLocked):
        Directory(tmp_path / "raft")
    wal.close()
    directory.close()
    again = Directory(tmp_path / "raft")
    assert WAL.open(again, KEY, segment_bytes=SEGMENT)[1].entries == [entry(i) for i in (1, 2, 3)]
    again.close()


def test_drafts_that_a_crash_left_are_removed(tmp_path: Path) -> None:
    (tmp_path / "snap.tmp").write_bytes(b"half")
    Directory(tmp_path).close()
    assert os.listdir(tmp_path) == ["LOCK"]
