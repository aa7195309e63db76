"""What this node was assigned, as it stands on this disk too: items, and when they were good.

Pure. An assignment is authoritative for removal only under a guard: it comes from the cluster
epoch that we know, and is not older than what we had. A manager that was restored from a
backup, or that leads a cluster made anew, adds and changes, but makes nobody delete work:
that state is *held* until an assignment passes the guard (DISTRIBUTED B6). A recovery from a lost
quorum, which an operator has confirmed, names the epochs that it goes on from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from swarmlet.codec import BadMessage, unpack_untrusted
from swarmlet.session import RECORDS, Assign, ItemKey, Kind

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Assignment:
    """Every item as bytes and as a record; *hold* says why removals wait, if they do."""

    epoch: int = 0
    index: int = 0
    items: Mapping[ItemKey, bytes] = field(default_factory=dict)
    records: Mapping[ItemKey, Any] = field(default_factory=dict)
    hold: str = ""

    def all(self, kind: Kind, cls: type[R]) -> Iterator[R]:
        """Every record of *kind*, in the order of their ids."""
        for key in sorted((k for k in self.records if k.kind is kind), key=lambda key: key.id):
            record = self.records[key]
            assert isinstance(record, cls)
            yield record

    def find(self, kind: Kind, id_: str, cls: type[R]) -> R | None:
        record = self.records.get(ItemKey(kind, id_))
        return record if isinstance(record, cls) else None


@dataclass(frozen=True, slots=True)
class Difference:
    """What has to be written to make the disk agree."""

    puts: Mapping[ItemKey, bytes]
    removes: frozenset[ItemKey]


def load(epoch: int, index: int, items: Mapping[ItemKey, bytes]) -> Assignment:
    """The assignment that was stored. Items that this release cannot read are left out."""
    records: dict[ItemKey, Any] = {}
    for key, body in items.items():
        try:
            records[key] = unpack_untrusted(RECORDS[key.kind], body)
        except BadMessage:
            continue
    return Assignment(epoch, index, dict(items), records)


class Receiver:
    """Puts the pieces of one session's assignments together.

    A full assignment may come in several pieces; only the last one, which says *done*, makes it
    valid, so a session that breaks in the middle changes nothing.
    """

    def __init__(self, current: Assignment) -> None:
        self.current = current
        self._pieces: list[Assign] = []

    def receive(self, piece: Assign) -> Difference | None:
        """Take *piece*; return what changed once an assignment is complete.

        Raises:
            BadMessage: an item is no record; nothing changed.
        """
        self._pieces.append(piece)
        if not piece.done:
            return None
        pieces, self._pieces = self._pieces, []
        puts: dict[ItemKey, bytes] = {}
        removes: set[ItemKey] = set()
        for part in pieces:
            for item in part.puts:
                puts[ItemKey(item.kind, item.id)] = item.body
            removes |= set(part.removes)
        if any(part.full for part in pieces):
            removes = set(self.current.items.keys() - puts.keys())
        return self._adopt(puts, removes, piece)

    def _adopt(
        self, puts: Mapping[ItemKey, bytes], removes: set[ItemKey], last: Assign
    ) -> Difference:
        current = self.current
        changed = {key: body for key, body in puts.items() if current.items.get(key) != body}
        fresh: dict[ItemKey, Any] = {
            key: unpack_untrusted(RECORDS[key.kind], body) for key, body in changed.items()
        }
        hold = _why_hold(current, last)
        gone = frozenset() if hold else frozenset(removes & current.items.keys())
        items = {k: v for k, v in current.items.items() if k not in gone} | changed
        records = {k: v for k, v in current.records.items() if k not in gone} | fresh
        epoch, index = (current.epoch, current.index) if hold else (last.epoch, last.index)
        self.current = Assignment(epoch, index, items, records, hold)
        return Difference(changed, gone)


def _why_hold(current: Assignment, last: Assign) -> str:
    if not current.epoch and not current.items:
        return ""
    if last.epoch != current.epoch and current.epoch not in last.past_epochs:
        return (
            f"the cluster was made anew (epoch {last.epoch:x}, this node knows {current.epoch:x})"
        )
    if last.index < current.index:
        return f"the managers lost state (index {last.index}, this node has seen {current.index})"
    return ""
