"""What an operator may do when a majority is lost for good.

Sync, while no replica runs on the directory.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from raft.boot import entries_for, newest_good, random_server
from raft.disk import Directory, DurableDir
from raft.membership import Change, ChangeKind, ServerChange, encode_change
from raft.messages import (
    CHANGE,
    COMMANDS,
    NOBODY,
    Configuration,
    Entry,
    HardState,
    Member,
    ServerId,
    SnapshotMeta,
)
from raft.records import Write
from raft.scan import LogDamaged, Reader
from raft.snapshots import SnapshotStore
from raft.wal import SEGMENT_BYTES, WAL

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Survivor:
    """What one server holds of a cluster whose majority is lost."""

    server: ServerId
    term: int
    commit_index: int  # known to be committed here
    last_index: int  # here; what is above the commit index may or may not have been answered
    last_term: int
    configuration: Configuration | None  # as of the snapshot, if there is one
    damage: str | None  # what is wrong with the log; it ends before that


def look(directory: Path, key: bytes, cluster: bytes) -> Survivor:
    """Say what the server in *directory* holds, and change nothing but a torn tail.

    To compare survivors: the best one has the highest (last_term, last_index).

    Raises:
        LogMissing, WrongKey, DirectoryLocked.
    """
    disk = Directory(directory)
    try:
        return _look(disk, key, cluster).survivor
    finally:
        disk.close()


@dataclass(frozen=True, slots=True)
class _Found:
    survivor: Survivor
    hard_state: HardState
    snapshot: SnapshotMeta | None
    entries: list[Entry]


def _look(disk: DurableDir, key: bytes, cluster: bytes) -> _Found:
    damage = None
    try:
        contents = Reader(disk, key).read().contents
    except LogDamaged as damaged:
        contents, damage = damaged.contents, str(damaged)
    snapshot, _ = newest_good(SnapshotStore(disk, key, cluster=cluster), contents)
    try:
        entries = entries_for(snapshot, contents)
    except LogDamaged as damaged:
        entries, damage = [], str(damaged)
    last = entries[-1] if entries else None
    index, term = (snapshot.index, snapshot.term) if snapshot else (0, 0)
    survivor = Survivor(
        contents.server,
        contents.hard_state.term,
        max(index, contents.hard_state.commit_index),
        last.index if last else index,
        last.term if last else term,
        snapshot.configuration if snapshot else None,
        damage,
    )
    return _Found(survivor, contents.hard_state, snapshot, entries)


def recover_alone(
    directory: Path,
    key: bytes,
    cluster: bytes,
    *,
    context: bytes = b"",
    new_id: ServerId | None = None,
    segment_bytes: int = SEGMENT_BYTES,
) -> ServerId:
    """Make the server in *directory* the only voter of what it holds; return its new id.

    Everything in its log counts as committed from here on, and what only the lost servers had
    is lost. It is a new server, so that no old one, which may come back, ever reaches it: the
    others must be emptied and join again. *new_id* takes the place of a random one, which must
    never have been used. Done in one durable step.
    """
    disk = Directory(directory)
    try:
        return recover_alone_on(
            disk, key, cluster, context=context, new_id=new_id, segment_bytes=segment_bytes
        )
    finally:
        disk.close()


def recover_alone_on(
    disk: DurableDir,
    key: bytes,
    cluster: bytes,
    *,
    context: bytes = b"",
    new_id: ServerId | None = None,
    segment_bytes: int = SEGMENT_BYTES,
) -> ServerId:
    """Do what recover_alone() does, on any disk."""
    found = _look(disk, key, cluster)
    server = new_id or random_server()
    survivor = found.survivor
    writes: list[Write] = []
    entries = found.entries
    if found.snapshot is not None:
        alone = Configuration(voters=(server,), members=(Member(server, context),))
        writes.append(Write(snapshot=replace(found.snapshot, configuration=alone)))
        entries = [entry for entry in entries if entry.index > found.snapshot.index]
    kept = [_without_change(entry) for entry in entries]
    if found.snapshot is None:
        change = Change((ServerChange(ChangeKind.ADD_VOTER, server, context),))
        first = Entry(1, max(1, survivor.last_term), CHANGE, encode_change(change))
        kept = [replace(first, term=kept[0].term), *kept[1:]] if kept else [first]
    if kept:
        writes.append(Write(tuple(kept)))
    last_index = kept[-1].index if kept else survivor.last_index
    hard_state = HardState(max(1, survivor.term), NOBODY, last_index)
    WAL.rebuild(
        disk,
        key,
        cluster=cluster,
        server=server,
        state=(hard_state, writes),
        segment_bytes=segment_bytes,
    )
    logger.warning(
        "recovered alone server=%d was=%d last=%d term=%d damage=%s",
        server,
        survivor.server,
        last_index,
        survivor.term,
        survivor.damage or "none",
    )
    return server


def _without_change(entry: Entry) -> Entry:
    """The configuration is this server alone: what the log says of others is void."""
    if entry.kind == CHANGE:
        return replace(entry, kind=COMMANDS, data=b"")
    return entry
