"""Journal: what must survive a reboot, in one sqlite file, sealed.

Sync, and each write is one transaction with one fsync (synchronous=FULL, WAL mode): call it in a
worker thread. A row per object, so a small change costs a page or two. Nothing is written while
nothing changes.

    meta      name -> value       epoch, index, boot, floor
    item      kind, id -> body    the assignment
    attempt   task -> body        restarts of this host, so that a backoff survives a reboot

Bodies are sealed with the node's storage key, bound to their table and id.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from swarmlet.agent.assignment import Assignment, Difference, load
from swarmlet.session import ItemKey, Kind

logger = logging.getLogger(__name__)

FORMAT = 1
#: sqlite checkpoints its WAL at so many pages (4 KiB): the file stays small on an SD card.
WAL_PAGES_MAX = 64


_KINDS = {kind.value for kind in Kind}


class Seal(Protocol):
    """Sealing with the node's storage key (swarmlet.identity.sealing)."""

    def seal(self, plaintext: bytes, context: bytes) -> bytes: ...
    def open_untrusted(self, sealed: bytes, context: bytes) -> bytes: ...


class DamagedJournal(Exception):
    """The file cannot be read; the text says what to do."""


class JournalRefused(Exception):
    """The disk takes no more just now; nothing was changed."""


class Journal:
    """One process has it open at a time; one thread at a time uses it."""

    def __init__(self, path: Path, seal: Seal) -> None:
        self._path = path
        self._seal = seal
        self._db = self._open()
        self._numbers: dict[str, int] = {}

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        db = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        try:
            self._path.chmod(0o600)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute(f"PRAGMA wal_autocheckpoint={WAL_PAGES_MAX}")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version not in (0, FORMAT):
                raise DamagedJournal(
                    f"{self._path} has format {version}, this release reads {FORMAT}: "
                    "start the newer release again"
                )
            if version == 0:
                db.executescript(
                    f"""
                    BEGIN;
                    CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
                    CREATE TABLE item (kind TEXT, id TEXT, body BLOB, PRIMARY KEY (kind, id))
                        WITHOUT ROWID;
                    CREATE TABLE attempt (task TEXT PRIMARY KEY, body BLOB) WITHOUT ROWID;
                    PRAGMA user_version={FORMAT};
                    COMMIT;
                    """
                )
        except sqlite3.DatabaseError as exc:
            db.close()
            raise DamagedJournal(
                f"{self._path} cannot be read ({exc}): move it away, and this node gets its "
                "assignment from a manager again"
            ) from exc
        return db

    def close(self) -> None:
        self._db.close()

    # The assignment.

    def load_assignment(self) -> Assignment:
        """The last assignment that was stored whole.

        Raises:
            DamagedJournal: an item does not open with this node's key.
        """
        items: dict[ItemKey, bytes] = {}
        for kind, id_, body in self._db.execute("SELECT kind, id, body FROM item"):
            if kind in _KINDS:  # else a newer release stored it
                items[ItemKey(Kind(kind), id_)] = self._opened(f"item/{kind}/{id_}", body)
        return load(self.number("epoch"), self.number("index"), items)

    def store_assignment(self, assignment: Assignment, difference: Difference) -> None:
        """Make the disk agree with *assignment*, which *difference* led to.

        Raises:
            JournalRefused: there is no room.
        """
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO item VALUES (?, ?, ?)",
                (
                    (key.kind.value, key.id, self._sealed(f"item/{key.kind.value}/{key.id}", body))
                    for key, body in difference.puts.items()
                ),
            )
            self._db.executemany(
                "DELETE FROM item WHERE kind = ? AND id = ?",
                ((key.kind.value, key.id) for key in difference.removes),
            )
            self._set("epoch", assignment.epoch)
            self._set("index", assignment.index)

    # Small things.

    def number(self, name: str) -> int:
        if name in self._numbers:
            return self._numbers[name]
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row is not None else 0

    def set_number(self, name: str, value: int) -> None:
        """A full disk is borne: the number holds until this process ends."""
        self._numbers[name] = value
        try:
            with self._transaction():
                self._set(name, value)
        except JournalRefused as exc:
            logger.warning("number not stored name=%s value=%d reason=%s", name, value, exc)

    def next_boot(self) -> int:
        """Count this start: gossip's incarnations and nonces must never come again."""
        boot = self.number("boot") + 1
        self.set_number("boot", boot)
        return boot

    def attempts(self) -> dict[str, bytes]:
        rows = self._db.execute("SELECT task, body FROM attempt")
        return {task: self._opened(f"attempt/{task}", body) for task, body in rows}

    def set_attempts(self, changed: Mapping[str, bytes], gone: Iterable[str]) -> None:
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO attempt VALUES (?, ?)",
                ((task, self._sealed(f"attempt/{task}", body)) for task, body in changed.items()),
            )
            self._db.executemany("DELETE FROM attempt WHERE task = ?", ((task,) for task in gone))

    def _set(self, name: str, value: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, str(value)))

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)

    def _sealed(self, context: str, body: bytes) -> bytes:
        return self._seal.seal(body, context.encode())

    def _opened(self, context: str, body: bytes) -> bytes:
        try:
            return self._seal.open_untrusted(body, context.encode())
        except ValueError as exc:
            raise DamagedJournal(
                f"{self._path}: {context} does not open with this node's key: move the file away, "
                "and this node gets its assignment from a manager again"
            ) from exc


class _Transaction:
    """All of it or nothing, fsynced at the end."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as exc:
            self._refuse(exc)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, *_: object
    ) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
                return
        except sqlite3.OperationalError as exc:
            self._roll_back()
            self._refuse(exc)
        self._roll_back()
        if isinstance(error, sqlite3.OperationalError):
            self._refuse(error)

    def _roll_back(self) -> None:
        if self._db.in_transaction:  # a full disk may have ended it already
            self._db.execute("ROLLBACK")

    @staticmethod
    def _refuse(error: sqlite3.OperationalError) -> None:
        """Raise JournalRefused if it is the disk that fails; else it is a bug of ours."""
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            raise JournalRefused(f"{error}: make room on the state folder's disk") from error
        raise error
