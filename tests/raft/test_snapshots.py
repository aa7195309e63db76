"""Snapshot files: whole or refused, and never larger in memory than what was sent."""

from __future__ import annotations

import os
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft import boot
from raft.disk import DiskFull
from raft.frames import WrongKey
from raft.messages import Configuration, Entry, HardState, Member, ServerId, SnapshotMeta
from raft.records import Write
from raft.scan import LogDamaged
from raft.snapshots import (
    CHUNK_BYTES,
    SnapshotDamaged,
    SnapshotStore,
    expand_untrusted,
    snapshot_name,
)
from raft.wal import WAL
from tests.raft.disks import MemoryDisk, PowerCut

KEY = bytes(range(32))
CLUSTER = b"cluster-of-tests"
ME = ServerId(7)
CONFIGURATION = Configuration(
    voters=(ServerId(1), ME), learners=(ServerId(9),), members=(Member(ME, b"here"),)
)
SEGMENT = 8192


def meta(index: int, term: int = 2) -> SnapshotMeta:
    return SnapshotMeta(index, term, CONFIGURATION)


@pytest.fixture
def store() -> SnapshotStore:
    return SnapshotStore(MemoryDisk(), KEY, cluster=CLUSTER)


def state_of(size: int) -> bytes:
    return os.urandom(size // 2) + bytes(size - size // 2)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES + 17])
def test_what_was_written_is_read_back(store: SnapshotStore, size: int) -> None:
    state = state_of(size)
    store.write(meta(5), state)
    file = store.open(snapshot_name(meta(5)))
    assert file.snapshot == meta(5)
    assert file.state() == state


def test_a_file_made_of_received_chunks_is_the_same(store: SnapshotStore) -> None:
    state = state_of(3 * CHUNK_BYTES)
    store.write(meta(5), state)
    sent = store.open(snapshot_name(meta(5)))
    other = SnapshotStore(MemoryDisk(), bytes(32), cluster=CLUSTER)
    writer = other.receive(sent.snapshot)
    for position in range(sent.chunk_count):
        writer.add_untrusted(sent.chunk(position))
    header = sent.header(term=4)
    assert (writer.state_bytes, writer.sha256) == (header.state_bytes, header.sha256)
    writer.finish()
    assert other.open(snapshot_name(meta(5))).state() == state


def test_the_state_is_not_readable_without_the_key(store: SnapshotStore) -> None:
    store.write(meta(5), b"a secret" * 1000)
    name = snapshot_name(meta(5))
    assert b"a secret" not in store.directory.read(name)
    assert zlib.compress(b"a secret" * 1000, 1)[:20] not in store.directory.read(name)
    with pytest.raises(WrongKey):
        SnapshotStore(store.directory, bytes(32), cluster=CLUSTER).open(name)


def test_any_changed_byte_is_noticed(store: SnapshotStore) -> None:
    store.write(meta(5), state_of(300))
    name = snapshot_name(meta(5))
    whole = store.directory.read(name)
    for position in range(len(whole)):
        rotten = bytearray(whole)
        rotten[position] ^= 0x40
        damaged = SnapshotStore(MemoryDisk({name: bytes(rotten)}), KEY, cluster=CLUSTER)
        with pytest.raises((SnapshotDamaged, WrongKey)):
            damaged.open(name).state()


def test_any_missing_end_is_noticed(store: SnapshotStore) -> None:
    store.write(meta(5), state_of(200))
    name = snapshot_name(meta(5))
    whole = store.directory.read(name)
    for length in range(len(whole)):
        cut = SnapshotStore(MemoryDisk({name: whole[:length]}), KEY, cluster=CLUSTER)
        with pytest.raises(SnapshotDamaged):
            cut.open(name).state()


def test_chunks_may_not_change_places(store: SnapshotStore) -> None:
    state = os.urandom(2 * CHUNK_BYTES)
    store.write(meta(5), state)
    name = snapshot_name(meta(5))
    whole = store.directory.read(name)
    (first, first_end), (second, second_end), _ = store.open(name)._positions
    assert first_end - first == second_end - second
    swapped = bytearray(whole)
    swapped[first:first_end], swapped[second:second_end] = (
        whole[second:second_end],
        whole[first:first_end],
    )
    with pytest.raises(SnapshotDamaged, match="chunk 0"):
        SnapshotStore(MemoryDisk({name: bytes(swapped)}), KEY, cluster=CLUSTER).open(name).state()


@given(st.binary(max_size=200))
def test_garbage_is_no_chunk(chunk: bytes) -> None:
    try:
        expand_untrusted(chunk)
    except SnapshotDamaged:
        return
    assert zlib.decompress(chunk) is not None


def test_a_chunk_that_explodes_is_refused() -> None:
    with pytest.raises(SnapshotDamaged):
        expand_untrusted(zlib.compress(bytes(100 * CHUNK_BYTES)))


def test_a_full_disk_leaves_the_older_file(store: SnapshotStore) -> None:
    store.write(meta(5), b"old")
    assert isinstance(store.directory, MemoryDisk)
    store.directory.full = True
    with pytest.raises(DiskFull):
        store.write(meta(9), b"new")
    assert store.names() == [snapshot_name(meta(5))]


def test_two_files_are_kept_and_those_that_are_needed(store: SnapshotStore) -> None:
    for index in (3, 5, 7, 9):
        store.write(meta(index), b"x")
    store.retain([snapshot_name(meta(3))])
    assert store.names() == [snapshot_name(meta(i)) for i in (9, 7, 3)]


# A log and its snapshots together.
def disk_with(entries: int, *snapshots: SnapshotMeta, vote: ServerId = ME) -> MemoryDisk:
    """A disk with a log of *entries* of term 2, and with the files of *snapshots*."""
    disk = MemoryDisk()
    WAL.create(disk, KEY, cluster=CLUSTER, server=ME, segment_bytes=SEGMENT)
    wal, _ = WAL.open(disk, KEY, segment_bytes=SEGMENT)
    for index in range(1, entries + 1):
        wal.append(HardState(2, vote, index), [Write((Entry(index, 2, data=b"x" * 300),))])
    store = SnapshotStore(disk, KEY, cluster=CLUSTER)
    for snapshot in snapshots:
        store.write(snapshot, b"state at %d" % snapshot.index)
    return disk


def load(disk: MemoryDisk) -> boot.Booted:
    return boot.load(disk, KEY, CLUSTER, segment_bytes=SEGMENT)


def rot(disk: MemoryDisk, name: str) -> None:
    disk.files[name].current[-20] ^= 1


def test_a_server_starts_from_the_newest_good_snapshot_and_the_log_behind_it() -> None:
    disk = disk_with(20, meta(5), meta(15))
    booted = load(disk)
    assert (booted.snapshot, booted.state) == (meta(15), b"state at 15")
    assert booted.storage.last_index == 20
    rot(disk, snapshot_name(meta(15)))
    booted = load(disk)
    assert (booted.snapshot, booted.state) == (meta(5), b"state at 5")
    assert [e.index for e in booted.storage.entries(6, 21)] == list(range(6, 21))


def test_without_any_good_snapshot_the_whole_log_must_be_there() -> None:
    disk = disk_with(40, meta(15))
    rot(disk, snapshot_name(meta(15)))
    assert load(disk).storage.first_index == 1
    wal, _ = WAL.open(disk, KEY, segment_bytes=SEGMENT)
    wal.compact(25)
    with pytest.raises(LogDamaged, match="no snapshot can be read"):
        load(disk)


#: Of the frame that holds one of disk_with()'s entries.
FRAME_BYTES = 392
ALONE = Configuration(voters=(ME,))


def with_gap(configuration: Configuration) -> MemoryDisk:
    disk = disk_with(60, SnapshotMeta(3, 2, configuration))
    wal, _ = WAL.open(disk, KEY, segment_bytes=SEGMENT)
    wal.compact(40)
    return disk


def with_rot(entry: int, configuration: Configuration) -> MemoryDisk:
    """A log of 60 entries in which the frame of *entry* has rotted; a snapshot at 3."""
    disk = disk_with(60, SnapshotMeta(3, 2, configuration), vote=ServerId(1))
    name = next(n for n in disk.names() if n.startswith("wal-"))
    disk.files[name].current[128 + (entry - 1) * FRAME_BYTES + 100] ^= 1
    return disk


def test_a_lone_server_does_not_start_from_a_damaged_log() -> None:
    with pytest.raises(LogDamaged, match=r"entries 4 to \d+ are in no segment"):
        load(with_gap(ALONE))
    with pytest.raises(LogDamaged, match="can be read up to entry 6 of term 2"):
        load(with_rot(7, ALONE))


def test_a_server_with_others_starts_as_one_that_recovers() -> None:
    booted = load(with_gap(CONFIGURATION))
    assert booted.hard_state == HardState(2, ME, 3, recovering=True)
    assert booted.storage.last_index == 3


def test_what_stands_before_the_damage_is_kept_and_not_taken_for_committed() -> None:
    """And the vote at the end of the log is not forgotten."""
    disk = with_rot(7, CONFIGURATION)
    segments = sum(name.startswith("wal-") for name in disk.names())
    booted = load(disk)
    assert booted.hard_state == HardState(2, ServerId(1), 3, recovering=True)
    assert booted.storage.last_index == 6
    assert sum(name.startswith("damaged-") for name in disk.names()) == segments
    # It stays so over a restart, until it is whole.
    booted = load(disk)
    assert booted.hard_state.recovering
    booted.wal.append(HardState(2, ServerId(1), 5), [])
    assert not load(disk).hard_state.recovering
    assert not [name for name in disk.names() if name.startswith("damaged-")]


def test_a_server_that_may_have_forgotten_a_vote_does_not_start() -> None:
    """The last frame has rotted, or the last segment is gone: who knows what stood there."""
    disk = disk_with(10, meta(3))
    (name,) = (n for n in disk.names() if n.startswith("wal-"))
    end = len(disk.read(name).rstrip(b"\0"))
    disk.files[name].current[end - 100] ^= 1
    with pytest.raises(LogDamaged, match="votes may be forgotten"):
        load(disk)
    disk = disk_with(60, meta(3))
    del disk.files[[n for n in disk.names() if n.startswith("wal-")][-1]]
    with pytest.raises(LogDamaged, match="votes may be forgotten"):
        load(disk)


def test_a_power_cut_while_a_log_is_begun_anew_leaves_the_old_or_the_new_one() -> None:
    damaged = with_rot(7, CONFIGURATION)
    image = {name: damaged.read(name) for name in damaged.names()}
    for cut in range(20):
        disk = MemoryDisk(image, cut_at=cut)
        with suppress(PowerCut):
            load(disk)
        for files in disk.survivors():
            assert load(MemoryDisk(files)).hard_state == HardState(2, ServerId(1), 3, True)


def test_a_snapshot_that_arrived_before_the_log_could_say_so_is_used() -> None:
    """The file is durable first; a power cut may keep the log from ever hearing of it."""
    disk = disk_with(5, meta(30, term=4))
    booted = load(disk)
    assert (booted.storage.first_index, booted.storage.last_index) == (31, 30)
    assert booted.hard_state == HardState(4, ServerId(0), 30)
    booted.wal.append(HardState(4, ServerId(0), 30), [Write((Entry(31, 4),))])
    assert load(disk).storage.last_index == 31


def test_entries_that_contradict_a_snapshot_were_never_committed() -> None:
    booted = load(disk_with(20, meta(10, term=3)))
    assert booted.storage.last_index == 10


def test_the_commit_index_is_clamped_to_what_is_there() -> None:
    disk = disk_with(3, meta(3))
    wal, _ = WAL.open(disk, KEY, segment_bytes=SEGMENT)
    wal.append(HardState(2, ME, 99), [])
    assert load(disk).hard_state.commit_index == 3


def test_another_clusters_log_is_refused() -> None:
    with pytest.raises(LogDamaged, match="another cluster"):
        boot.load(disk_with(1), KEY, b"another cluster!", segment_bytes=SEGMENT)


def test_bootstrapping_survives_a_power_cut_at_any_point() -> None:
    """Done again, it makes the same server; and never a second one."""
    for cut in range(30):
        disk = MemoryDisk(cut_at=cut)
        try:
            boot.bootstrap_on(disk, KEY, CLUSTER, segment_bytes=SEGMENT)
            finished = True
        except PowerCut:
            finished = False
        again = MemoryDisk({name: disk.read(name) for name in disk.names()})
        if finished:
            with pytest.raises(FileExistsError):
                boot.bootstrap_on(again, KEY, CLUSTER, segment_bytes=SEGMENT)
        else:
            with suppress(FileExistsError):  # the cut came after the last write
                boot.bootstrap_on(again, KEY, CLUSTER, segment_bytes=SEGMENT)
        assert load(again).storage.last_index == 1
