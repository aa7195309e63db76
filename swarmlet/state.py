"""The replicated state: immutable tables, and the guarded changes that make the next one.

Pure. The log carries changes, not commands: the objects to put or delete, and the versions they
were computed from. apply() is the only code that must do the same for ever on every version of
swarmlet: it checks the guards, then copies. It reads no clock and no chance; ids and times are
in the change.

    change = Change(guards, puts, deletes)     all of it or, if a guard fails, nothing of it
    version of an object = index of the entry that put it; 0 = there is none
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar, cast

from swarmlet.codec import BadMessage, pack, unpack_untrusted
from swarmlet.model import (
    Cluster,
    JoinToken,
    Network,
    NetworkId,
    Node,
    NodeId,
    Object,
    Request,
    Revision,
    Service,
    ServiceId,
    Table,
    Task,
    TaskId,
    TaskTemplate,
    revision_id,
)

O = TypeVar("O", bound=Any)  # noqa: E741

#: Objects of one table by id.
Rows: TypeAlias = Mapping[str, Any]

CLASSES: dict[Table, type[Any]] = {
    cls.table: cls for cls in (Cluster, Node, Service, Revision, Task, Network, JoinToken, Request)
}

SNAPSHOT_FORMAT = 1
CHANGE_BYTES_MAX = 512 * 1024


@dataclass(frozen=True, slots=True)
class Guard:
    """The change holds only while the object *id* has this *version* (0: does not exist)."""

    table: Table
    id: str
    version: int


@dataclass(frozen=True, slots=True)
class Put:
    table: Table
    id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    table: Table
    id: str


@dataclass(frozen=True, slots=True)
class Change:
    """What one writer wants changed, as a whole.

    *term* is the Raft term of the leader whose loop computed it: in an entry of another term the
    change is late and does nothing. 0 for changes that a user asked for.
    """

    guards: tuple[Guard, ...] = ()
    puts: tuple[Put, ...] = ()
    deletes: tuple[Delete, ...] = ()
    request: str = ""  # the same request id again changes nothing and is answered as done
    term: int = 0
    at: float = 0.0  # the writer's clock: when a request may be forgotten


@dataclass(frozen=True, slots=True)
class Applied:
    index: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """A guard failed: somebody else was first. Look again and compute anew."""

    reason: str


Verdict: TypeAlias = Applied | Conflict


@dataclass(frozen=True, slots=True)
class ClusterState:
    """Everything the managers agree on, as of one Raft index."""

    index: int = 0
    tables: Mapping[Table, Rows] = field(default_factory=dict)

    def rows(self, table: Table) -> Rows:
        return self.tables.get(table, {})

    @property
    def cluster(self) -> Cluster | None:
        """The cluster's record; None before it was initialised."""
        return next(iter(self.rows(Table.CLUSTER).values()), None)

    @property
    def nodes(self) -> Mapping[NodeId, Node]:
        return cast(Mapping[NodeId, Node], self.rows(Table.NODE))

    @property
    def services(self) -> Mapping[ServiceId, Service]:
        return cast(Mapping[ServiceId, Service], self.rows(Table.SERVICE))

    @property
    def tasks(self) -> Mapping[TaskId, Task]:
        return cast(Mapping[TaskId, Task], self.rows(Table.TASK))

    @property
    def networks(self) -> Mapping[NetworkId, Network]:
        return cast(Mapping[NetworkId, Network], self.rows(Table.NETWORK))

    @property
    def revisions(self) -> Mapping[str, Revision]:
        return self.rows(Table.REVISION)

    @property
    def join_tokens(self) -> Mapping[str, JoinToken]:
        return self.rows(Table.JOIN_TOKEN)

    @property
    def ingress(self) -> Network | None:
        """The network that carries published ports between the nodes."""
        return next((n for n in self.networks.values() if n.spec.ingress), None)

    def find(self, table: Table, id_: str) -> Any | None:
        return self.rows(table).get(id_)

    def template_of(self, task: Task) -> TaskTemplate | None:
        """What *task* was made from; None if its service and revision are gone."""
        service = self.services.get(task.service)
        if service is not None and service.spec_version == task.spec_version:
            return service.spec.task
        revision = self.revisions.get(revision_id(task.service, task.spec_version))
        return revision.task if revision is not None else None

    def version_of(self, table: Table, id_: str) -> int:
        row = self.rows(table).get(id_)
        return row.version if row is not None else 0


class Draft:
    """Collects one change against *state*; every object it writes is guarded by its version.

    Mutable and short-lived: one writer makes it, fills it and takes its change().
    """

    def __init__(self, state: ClusterState) -> None:
        self._state = state
        self._guards: dict[tuple[Table, str], int] = {}
        self._writes: dict[tuple[Table, str], Any | None] = {}

    def put(self, row: Object) -> None:
        """Write *row*, new or changed; conflicts if it is not as *state* has it."""
        self._guard(row.table, row.id)
        self._writes[(row.table, row.id)] = row

    def delete(self, row: Object) -> None:
        self._guard(row.table, row.id)
        self._writes[(row.table, row.id)] = None

    def require(self, row: Object) -> None:
        """Let the change hold only while *row* stays as it is, though nothing is written to it."""
        self._guard(row.table, row.id)

    def require_absent(self, table: Table, id_: str) -> None:
        self._guards[(table, id_)] = 0

    def find(self, table: Table, id_: str) -> Any | None:
        """Return the object as this draft would leave it."""
        if (table, id_) in self._writes:
            return self._writes[(table, id_)]
        return self._state.find(table, id_)

    @property
    def is_empty(self) -> bool:
        return not self._writes

    def change(self, *, term: int = 0, request: str = "", at: float = 0.0) -> Change:
        puts = tuple(
            Put(table, id_, pack(row)) for (table, id_), row in self._writes.items() if row
        )
        deletes = tuple(Delete(table, id_) for (table, id_), row in self._writes.items() if not row)
        guards = tuple(Guard(table, id_, version) for (table, id_), version in self._guards.items())
        return Change(guards, puts, deletes, request, term, at)

    def _guard(self, table: Table, id_: str) -> None:
        self._guards.setdefault((table, id_), self._state.version_of(table, id_))


def apply(
    state: ClusterState, change: Change, *, index: int, entry_term: int
) -> tuple[ClusterState, Verdict]:
    """Return the state after *change* at *index*, and what became of it. Total: never raises.

    Deterministic for ever: what a line here does to a log that exists must not change.
    """
    if change.term and change.term != entry_term:
        return _at(state, index), Conflict(f"computed in term {change.term}, not {entry_term}")
    if change.request and state.find(Table.REQUEST, change.request) is not None:
        return _at(state, index), Applied(state.version_of(Table.REQUEST, change.request))
    for guard in change.guards:
        version = state.version_of(guard.table, guard.id)
        if version != guard.version:
            text = f"{guard.table} {guard.id} is at version {version}, not {guard.version}"
            return _at(state, index), Conflict(text)
    try:
        rows = [(p.table, p.id, _read(p.table, p.id, p.body, index)) for p in change.puts]
    except BadMessage as exc:
        # A record that this release cannot read; refused alike on every manager.
        return _at(state, index), Conflict(f"unreadable record: {exc}")
    if change.request:
        rows.append((Table.REQUEST, change.request, _request(change, index)))
    tables = dict(state.tables)
    touched = {p.table for p in change.puts} | {d.table for d in change.deletes}
    if change.request:
        touched.add(Table.REQUEST)
    fresh: dict[Table, dict[str, Any]] = {table: dict(tables.get(table, {})) for table in touched}
    for table, id_, row in rows:
        fresh[table][id_] = row
    for delete in change.deletes:
        fresh[delete.table].pop(delete.id, None)
    tables.update(fresh)
    return ClusterState(index, tables), Applied(index)


def _request(change: Change, index: int) -> Request:
    at = change.at
    return Request(id=change.request, version=index, created_at=at, updated_at=at)


def _at(state: ClusterState, index: int) -> ClusterState:
    return ClusterState(index, state.tables)


def _read(table: Table, id_: str, body: bytes, index: int) -> Any:
    row = unpack_untrusted(CLASSES[table], body)
    if row.id != id_:
        raise BadMessage(f"{table} {id_} holds {row.id}")
    return dataclasses.replace(row, version=index)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole state as a record: rows as bytes, so that a table is read one row at a time."""

    format: int
    index: int
    rows: Mapping[Table, tuple[bytes, ...]]


def encode_snapshot(state: ClusterState) -> bytes:
    rows = {
        table: tuple(pack(row) for row in rows.values()) for table, rows in state.tables.items()
    }
    return pack(Snapshot(SNAPSHOT_FORMAT, state.index, rows))


def decode_snapshot_untrusted(data: bytes) -> ClusterState:
    """Raises BadMessage."""
    snapshot = unpack_untrusted(Snapshot, data)
    if snapshot.format != SNAPSHOT_FORMAT:
        raise BadMessage(f"snapshot format {snapshot.format}; this release reads {SNAPSHOT_FORMAT}")
    tables: dict[Table, Rows] = {}
    for table, bodies in snapshot.rows.items():
        rows = [unpack_untrusted(CLASSES[table], body) for body in bodies]
        tables[table] = {row.id: row for row in rows}
    return ClusterState(snapshot.index, tables)


def live_tasks(state: ClusterState, service: ServiceId | None = None) -> Iterator[Task]:
    """Tasks that have not ended, of all services or of one."""
    for task in state.tasks.values():
        if task.outcome is None and (service is None or task.service == service):
            yield task


def by_service(tasks: Iterable[Task]) -> dict[ServiceId, list[Task]]:
    groups: dict[ServiceId, list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.service, []).append(task)
    return groups
