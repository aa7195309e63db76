"""From files to a server that can start: making a new log, and reading an old one back.

Sync: call it in a worker thread.
"""

from __future__ import annotations

import logging
import secrets
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from raft.disk import Directory, DurableDir
from raft.log import MemoryStorage
from raft.membership import (
    Change,
    ChangeKind,
    InvalidChange,
    ServerChange,
    decode_change,
    encode_change,
)
from raft.messages import CHANGE, NOBODY, Entry, HardState, ServerId, SnapshotMeta
from raft.records import Write
from raft.scan import Contents, LogDamaged, current_segments, segment_names
from raft.snapshots import SnapshotDamaged, SnapshotStore
from raft.wal import SEGMENT_BYTES, WAL

logger = logging.getLogger(__name__)

#: Server ids are random and positive, and fit into what every codec can carry.
SERVER_ID_BITS = 63
#: Begins the names of segments that an operator may want to look at.
DAMAGED = "damaged-"


@dataclass(slots=True)
class Booted:
    """Everything a replica starts from."""

    server: ServerId
    wal: WAL
    snapshots: SnapshotStore
    storage: MemoryStorage
    hard_state: HardState
    snapshot: SnapshotMeta | None
    state: bytes | None  # of the state machine, as of the snapshot


def random_server() -> ServerId:
    return ServerId(secrets.randbits(SERVER_ID_BITS) or 1)


def create(
    directory: Path, key: bytes, cluster: bytes, *, segment_bytes: int = SEGMENT_BYTES
) -> ServerId:
    """Make the empty log of a server that will join a cluster; return its new id.

    A directory that already holds a log that nothing was ever written to keeps it.
    """
    disk = Directory(directory)
    try:
        return create_on(disk, key, cluster, segment_bytes=segment_bytes)
    finally:
        disk.close()


def create_on(
    disk: DurableDir,
    key: bytes,
    cluster: bytes,
    *,
    server: ServerId | None = None,
    segment_bytes: int = SEGMENT_BYTES,
) -> ServerId:
    """Do what create() does, on any disk; *server* takes the place of a random id."""
    if segment_names(disk):
        wal, contents = WAL.open(disk, key, segment_bytes=segment_bytes)
        wal.close()
        used = contents.hard_state != HardState() or contents.last_index > 0
        if used or contents.cluster != cluster:
            raise FileExistsError("the directory holds the log of a server already")
        return contents.server
    server = server or random_server()
    WAL.create(disk, key, cluster=cluster, server=server, segment_bytes=segment_bytes)
    return server


def bootstrap(
    directory: Path,
    key: bytes,
    cluster: bytes,
    *,
    context: bytes = b"",
    segment_bytes: int = SEGMENT_BYTES,
) -> ServerId:
    """Make the log of the first server of a new cluster; return its id.

    The log starts with a committed change that makes this server the only voter; *context* is
    the caller's note about it.
    """
    disk = Directory(directory)
    try:
        return bootstrap_on(disk, key, cluster, context=context, segment_bytes=segment_bytes)
    finally:
        disk.close()


def bootstrap_on(
    disk: DurableDir,
    key: bytes,
    cluster: bytes,
    *,
    context: bytes = b"",
    server: ServerId | None = None,
    segment_bytes: int = SEGMENT_BYTES,
) -> ServerId:
    """Do what bootstrap() does, on any disk; *server* takes the place of a random id."""
    server = create_on(disk, key, cluster, server=server, segment_bytes=segment_bytes)
    wal, _ = WAL.open(disk, key, segment_bytes=segment_bytes)
    change = Change((ServerChange(ChangeKind.ADD_VOTER, server, context),))
    first = Entry(1, 1, CHANGE, encode_change(change))
    wal.append(HardState(1, NOBODY, 1), [Write((first,))])
    wal.close()
    return server


def load(
    disk: DurableDir, key: bytes, cluster: bytes, *, segment_bytes: int = SEGMENT_BYTES
) -> Booted:
    """Read a server's log and its newest good snapshot.

    If they have lost something in the middle, the server starts as one that recovers: it has no
    vote and acknowledges nothing until the others have made it whole.

    Raises:
        LogMissing: there is no log.
        LogDamaged: they do not hold everything they should, and nobody can make them whole:
            there are no others, or the end of the log is lost and a vote with it. Then this
            server must be removed from the cluster, and may join as a new one.
        WrongKey: *key* is not the one they were sealed with.
    """
    snapshots = SnapshotStore(disk, key, cluster=cluster)
    try:
        return _load_whole(disk, key, cluster, snapshots, segment_bytes)
    except LogDamaged as damage:
        logger.error("log damaged %s", damage)
        _salvage(disk, key, snapshots, damage, segment_bytes)
        return _load_whole(disk, key, cluster, snapshots, segment_bytes)


def _load_whole(
    disk: DurableDir, key: bytes, cluster: bytes, snapshots: SnapshotStore, segment_bytes: int
) -> Booted:
    _set_aside(disk)
    wal, contents = WAL.open(disk, key, segment_bytes=segment_bytes)
    if contents.cluster != cluster:
        raise LogDamaged("the log belongs to another cluster", contents)
    if contents.torn:
        logger.warning("log tail cut off server=%d %s", contents.server, contents.torn)
    snapshot, state = newest_good(snapshots, contents)
    try:
        entries = entries_for(snapshot, contents)
    except LogDamaged:
        wal.close()
        raise
    storage = MemoryStorage(snapshot, entries)
    hard_state = _clamped(contents.hard_state, snapshot, storage)
    if not hard_state.recovering:
        _forget_damage(disk)
    if snapshot is not None and contents.last_index != storage.last_index:
        # The log must say that it starts anew, or its next entry would leave a gap.
        wal.append(hard_state, [Write(snapshot=snapshot)])
    return Booted(contents.server, wal, snapshots, storage, hard_state, snapshot, state)


def _set_aside(disk: DurableDir) -> None:
    """Take the segments of an older log, which was begun anew, out of the way."""
    current = set(current_segments(disk))
    for name in segment_names(disk):
        if name not in current:
            disk.rename(name, f"{DAMAGED}{name}")


def _forget_damage(disk: DurableDir) -> None:
    """Remove what was set aside: the server is whole again."""
    for name in disk.names():
        if name.startswith(DAMAGED):
            disk.remove(name)


def _salvage(
    disk: DurableDir,
    key: bytes,
    snapshots: SnapshotStore,
    damage: LogDamaged,
    segment_bytes: int,
) -> None:
    """Begin the log anew with what is known to be good, as that of a server that recovers.

    Raises:
        LogDamaged: the others cannot make this server whole.
    """
    contents, tail = damage.contents, damage.tail
    if tail is None or contents.server == NOBODY:
        raise damage
    snapshot, _ = newest_good(snapshots, contents)
    try:
        entries = entries_for(snapshot, contents)
    except LogDamaged:
        entries = []
    if not _others(contents.server, snapshot, contents.entries):
        raise damage
    # Nothing behind the snapshot is taken for committed: what was lost may have replaced it.
    commit_index = snapshot.index if snapshot else 0
    hard_state = HardState(tail.term, tail.voted_for, commit_index, recovering=True)
    writes = [Write(snapshot=snapshot)] if snapshot else []
    kept = tuple(entry for entry in entries if entry.index > commit_index)
    if kept:
        writes.append(Write(kept))
    WAL.rebuild(
        disk,
        key,
        cluster=contents.cluster,
        server=contents.server,
        state=(hard_state, writes),
        segment_bytes=segment_bytes,
    )
    logger.error(
        "log begun anew server=%d good_up_to=%d term=%d; no votes until a leader has made it "
        "whole; the damaged files are kept as %s*",
        contents.server,
        kept[-1].index if kept else commit_index,
        tail.term,
        DAMAGED,
    )


def _others(server: ServerId, snapshot: SnapshotMeta | None, entries: list[Entry]) -> bool:
    """Say if anybody but *server* ever took part, as far as can be read."""
    known = set(snapshot.configuration.servers()) if snapshot else set()
    for entry in entries:
        if entry.kind == CHANGE:
            with suppress(InvalidChange):
                known |= {change.server for change in decode_change(entry.data).changes}
    return bool(known - {server})


def newest_good(
    snapshots: SnapshotStore, contents: Contents
) -> tuple[SnapshotMeta | None, bytes | None]:
    """Return the newest snapshot that can be read, with its state."""
    for name in snapshots.names():
        try:
            file = snapshots.open(name)
            state = file.state()
        except SnapshotDamaged as damage:
            logger.error("snapshot damaged server=%d %s", contents.server, damage)
            continue
        snapshot, installed = file.snapshot, contents.snapshot
        if installed and (installed.index, installed.term) == (snapshot.index, snapshot.term):
            snapshot = installed  # the log may have been given another configuration since
        return snapshot, state
    return None, None


def entries_for(snapshot: SnapshotMeta | None, contents: Contents) -> list[Entry]:
    """Return the entries of the log that go with *snapshot*."""
    entries = contents.entries
    if snapshot is None:
        if contents.snapshot is not None or (entries and entries[0].index != 1):
            what = "no snapshot can be read, and the log starts behind one"
            raise LogDamaged(what, contents, contents.hard_state)
        return entries
    installed = contents.snapshot
    if installed is not None and installed.index > snapshot.index:
        raise LogDamaged(
            f"the snapshot at entry {installed.index} cannot be read, and the log before it was "
            "replaced by it",
            contents,
            contents.hard_state,
        )
    if not entries or entries[-1].index < snapshot.index:
        return []  # a snapshot that arrived just before the log could say so
    first = entries[0].index
    if first > snapshot.index + 1:
        raise LogDamaged(
            f"entries {snapshot.index + 1} to {first - 1} are in no segment and no snapshot",
            contents,
            contents.hard_state,
        )
    if first <= snapshot.index and entries[snapshot.index - first].term != snapshot.term:
        return []  # what the log holds there was never committed
    return entries


def _clamped(state: HardState, snapshot: SnapshotMeta | None, storage: MemoryStorage) -> HardState:
    """Return *state* so that it fits what is there.

    The commit index is written late, and a snapshot is durable before the hard state that goes
    with it; both are safe, since what a snapshot holds is committed.
    """
    index, term = (snapshot.index, snapshot.term) if snapshot else (0, 0)
    commit_index = min(max(state.commit_index, index), storage.last_index)
    if state.recovering:
        commit_index = index
    if state.term < term:
        return HardState(term, NOBODY, commit_index, state.recovering)
    return replace(state, commit_index=commit_index)


__all__ = ["Booted", "bootstrap", "create", "load", "random_server"]
