"""How entries, configurations and snapshots look on this server's disk: msgpack arrays.

Pure. A frame of the WAL holds [hard state, record, record, ...], a record is [kind, ...]. Kinds
and positions are append-only; readers ignore what follows the fields they know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from raft.messages import Configuration, Entry, HardState, Member, ServerId, SnapshotMeta

#: The buffer that packing begins with; it grows as it must. msgpack's own 256 KiB are mapped and
#: unmapped for every small message, at ten times the cost of packing it.
PACK_BYTES: Final = 1024

ENTRIES: Final = 1
SNAPSHOT: Final = 2


class BadRecord(ValueError):
    """The bytes are no record of ours, though they were sealed with our key."""


@dataclass(frozen=True, slots=True)
class Write:
    """One store of the core: a snapshot that replaces the log, or entries that extend it."""

    entries: tuple[Entry, ...] = ()
    snapshot: SnapshotMeta | None = None


def pack_body(hard_state: HardState, writes: Sequence[Write]) -> bytes:
    """Return the body of a frame. The hard state is in every one: rot elsewhere spares it."""
    h = hard_state
    records: list[Any] = [[h.term, h.voted_for, h.commit_index, h.recovering]]
    for write in writes:
        if write.snapshot is not None:
            records.append([SNAPSHOT, *pack_snapshot(write.snapshot)])
        if write.entries:
            entries = [[e.term, e.kind, e.data] for e in write.entries]
            records.append([ENTRIES, write.entries[0].index, entries])
    body: bytes = msgpack.packb(records, buf_size=PACK_BYTES)
    return body


def unpack_body(body: bytes) -> tuple[HardState, list[Write]]:
    """Raises: BadRecord."""
    try:
        (term, voted_for, commit_index, recovering, *_), *records = msgpack.unpackb(body)
        hard_state = HardState(term, ServerId(voted_for), commit_index, bool(recovering))
        return hard_state, [_unpack_record(record) for record in records]
    except (ValueError, TypeError, msgpack.UnpackException) as exc:
        raise BadRecord(f"not a frame of records: {exc}") from exc


def _unpack_record(record: list[Any]) -> Write:
    match record:
        case [int(kind), int(first), list(entries), *_] if kind == ENTRIES:
            return Write(
                tuple(
                    Entry(first + position, term, entry_kind, data)
                    for position, (term, entry_kind, data, *_) in enumerate(entries)
                )
            )
        case [int(kind), *fields] if kind == SNAPSHOT:
            return Write(snapshot=unpack_snapshot(fields))
    raise BadRecord(f"unknown kind of record: {record[:1]}")


def pack_snapshot(snapshot: SnapshotMeta) -> list[Any]:
    return [snapshot.index, snapshot.term, pack_configuration(snapshot.configuration)]


def unpack_snapshot(fields: list[Any]) -> SnapshotMeta:
    index, term, configuration, *_ = fields
    return SnapshotMeta(index, term, unpack_configuration(configuration))


def pack_configuration(c: Configuration) -> list[Any]:
    members = [[member.server, member.context] for member in c.members]
    return [c.voters, c.outgoing, c.learners, c.learners_next, c.auto_leave, members]


def unpack_configuration(fields: list[Any]) -> Configuration:
    voters, outgoing, learners, learners_next, auto_leave, members, *_ = fields
    return Configuration(
        voters=tuple(map(ServerId, voters)),
        outgoing=tuple(map(ServerId, outgoing)),
        learners=tuple(map(ServerId, learners)),
        learners_next=tuple(map(ServerId, learners_next)),
        auto_leave=bool(auto_leave),
        members=tuple(Member(ServerId(server), context) for server, context, *_ in members),
    )
