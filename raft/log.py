"""The log of one server: what is on disk, what is on its way there, what is committed.

Pure. Storage holds the stable part; entries that are new or being written stay here, in
*unstable*, until the shell reports them durable. Invariants:

    applied <= applying <= committed <= last_index
    the unstable entries start at *offset* and reach last_index
    entries before *offset_in_progress* were handed out for writing

*offset* may be below storage's last index: the next write then truncates what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from raft.messages import Configuration, Entry, SnapshotMeta
from raft.trace import (
    ConflictFound,
    RestoreStarted,
    StableMismatched,
    StableMissing,
    StableWasSnapshot,
    Trace,
    UnstableReplaced,
    UnstableTruncated,
)

#: What an entry costs besides its data, in limits on sizes.
ENTRY_OVERHEAD_BYTES = 16


class Storage(Protocol):
    """The stable part of a log. The core only reads it; the shell writes it."""

    @property
    def first_index(self) -> int: ...

    @property
    def last_index(self) -> int:
        """first_index - 1 if no entry is there."""

    def term(self, index: int) -> int | None:
        """The term of entry *index*, known from first_index - 1 on; None if it is unknown."""

    def entries(self, low: int, high: int) -> Sequence[Entry]:
        """The entries of [low, high), all of which exist."""

    def snapshot(self) -> SnapshotMeta | None:
        """The newest snapshot; None while there is none to give."""


class MemoryStorage:
    """Storage in memory: entries after a snapshot. What the shell keeps of its WAL."""

    def __init__(self, snapshot: SnapshotMeta | None = None, entries: Sequence[Entry] = ()) -> None:
        """Start from *snapshot* and *entries*, which may begin before it but leave no gap."""
        self._meta = snapshot or SnapshotMeta(0, 0, Configuration())
        self._base_index = self._meta.index
        self._base_term = self._meta.term
        self._entries: list[Entry] = []
        if entries and entries[0].index <= self._base_index:
            # The first of them serves as the one before the log: its term is known.
            self._base_index, self._base_term = entries[0].index, entries[0].term
            entries = entries[1:]
        assert not entries or entries[0].index == self._base_index + 1
        self._entries.extend(entries)

    @property
    def first_index(self) -> int:
        return self._base_index + 1

    @property
    def last_index(self) -> int:
        return self._base_index + len(self._entries)

    def term(self, index: int) -> int | None:
        position = index - self._base_index
        if position == 0:
            return self._base_term
        if 0 < position <= len(self._entries):
            return self._entries[position - 1].term
        return None

    def entries(self, low: int, high: int) -> Sequence[Entry]:
        assert self._base_index < low <= high <= self.last_index + 1
        start = low - self._base_index - 1
        return self._entries[start : start + high - low]

    def snapshot(self) -> SnapshotMeta | None:
        return self._meta if self._meta.index else None

    def append(self, entries: Sequence[Entry]) -> None:
        """Add *entries*; those already here from their first index on are replaced."""
        if not entries:
            return
        position = entries[0].index - self._base_index - 1
        if position < 0:  # the front is in the snapshot already
            entries = entries[-position:]
            position = 0
        assert position <= len(self._entries), "a gap in the log"
        if position == len(self._entries):
            self._entries.extend(entries)
        elif entries:
            self._entries[position:] = entries

    def restore(self, snapshot: SnapshotMeta) -> None:
        """Forget every entry and start after *snapshot*."""
        self._meta = snapshot
        self._base_index, self._base_term = snapshot.index, snapshot.term
        self._entries = []

    def note_snapshot(self, snapshot: SnapshotMeta) -> None:
        """Give out *snapshot*, taken here, from now on; the log stays."""
        assert snapshot.index >= self._meta.index
        self._meta = snapshot

    def index_before(self, index: int, *, entries_max: int, bytes_max: int) -> int:
        """Return how far back from *index* so many entries and bytes reach."""
        low = max(index - entries_max, self._base_index)
        size = 0
        while index > low:
            entry = self._entries[index - self._base_index - 1]
            size += len(entry.data) + ENTRY_OVERHEAD_BYTES
            if size > bytes_max:
                break
            index -= 1
        return index

    def compact(self, index: int) -> None:
        """Forget the entries up to *index*, which a snapshot covers."""
        if index <= self._base_index:
            return
        term = self.term(index)
        assert term is not None, f"cannot compact to {index}, the log ends at {self.last_index}"
        del self._entries[: index - self._base_index]
        self._base_index, self._base_term = index, term


class Log:
    """The log as the core sees it.

    Args:
        storage: the stable part.
        applying_bytes_max: committed entries handed out and not yet applied, at most.
        apply_unstable: committed entries may be applied before they are on disk here.
        entry_bytes: what an entry counts against a limit.
        trace: hears of what is unusual.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        applying_bytes_max: int,
        apply_unstable: bool,
        entry_bytes: Callable[[Entry], int],
        trace: Callable[[Trace], None],
    ) -> None:
        self.storage = storage
        self.committed = self.applying = self.applied = storage.first_index - 1
        self.unstable: list[Entry] = []
        self.offset = self.offset_in_progress = storage.last_index + 1
        self.snapshot: SnapshotMeta | None = None
        self._snapshot_in_progress = False
        self._applying_bytes_max = applying_bytes_max
        self._applying_bytes = 0
        self._applying_paused = False
        self._apply_unstable = apply_unstable
        self.entry_bytes = entry_bytes
        self._trace = trace

    # What is where.
    @property
    def first_index(self) -> int:
        if self.snapshot is not None:
            return self.snapshot.index + 1
        return self.storage.first_index

    @property
    def last_index(self) -> int:
        # A restored snapshot set the offset behind it, so this holds for it too.
        if self.unstable or self.snapshot is not None:
            return self.offset + len(self.unstable) - 1
        return self.storage.last_index

    @property
    def last_term(self) -> int:
        term = self.term(self.last_index)
        assert term is not None
        return term

    def term(self, index: int) -> int | None:
        """Return the term of entry *index*; None if it is compacted or not there yet."""
        position = index - self.offset
        if position >= 0:
            return self.unstable[position].term if position < len(self.unstable) else None
        if self.snapshot is not None:
            return self.snapshot.term if index == self.snapshot.index else None
        return self.storage.term(index)

    def matches(self, index: int, term: int) -> bool:
        return self.term(index) == term

    def up_to_date(self, last_index: int, last_term: int) -> bool:
        """Say if a log that ends so is at least as good as this one (paper section 5.4.1)."""
        mine = self.last_term
        return last_term > mine or (last_term == mine and last_index >= self.last_index)

    def entries(self, low: int, bytes_max: int) -> tuple[Entry, ...] | None:
        """Return entries from *low* on, at least one if there is any.

        None: they are compacted, a snapshot must be sent.
        """
        last = self.last_index
        if low > last:
            return ()
        if low < self.first_index:
            return None
        return self._slice(low, last + 1, bytes_max)

    def _slice(self, low: int, high: int, bytes_max: int) -> tuple[Entry, ...]:
        offset = self.offset
        if low >= offset:
            found: Sequence[Entry] = self.unstable[low - offset : high - offset]
        elif high <= offset:
            found = self.storage.entries(low, high)
        else:
            found = [*self.storage.entries(low, offset), *self.unstable[: high - offset]]
        size, entry_bytes = 0, self.entry_bytes
        for position, entry in enumerate(found):
            size += entry_bytes(entry)
            if size > bytes_max and position:
                return tuple(found[:position])
        return tuple(found)

    # Growth.
    def append(self, entries: Sequence[Entry]) -> int:
        """Put *entries* in place of whatever is there from their first index on."""
        if entries:
            assert entries[0].index > self.committed, "a committed entry would change"
            self._truncate_and_append(entries)
        return self.last_index

    def try_append(
        self, previous_index: int, previous_term: int, commit_index: int, entries: Sequence[Entry]
    ) -> int | None:
        """Take a leader's *entries* if they fit behind the previous one (paper section 5.3).

        Return the index of the last of them; None if this log does not have the previous one.
        """
        if not self.matches(previous_index, previous_term):
            return None
        last = previous_index + len(entries)
        conflict = self._find_conflict(entries)
        if conflict:
            assert conflict > self.committed, f"entry {conflict} is committed and would change"
            self._truncate_and_append(entries[conflict - previous_index - 1 :])
        self.commit_to(min(commit_index, last))
        return last

    def _find_conflict(self, entries: Sequence[Entry]) -> int:
        """Return the first index of *entries* that this log lacks or has otherwise; else 0.

        Entries that match stay: a late, shorter append must not truncate (paper figure 2).
        """
        for entry in entries:
            mine = self.term(entry.index)
            if mine != entry.term:
                if entry.index <= self.last_index:
                    self._trace(ConflictFound(entry.index, mine or 0, entry.term))
                return entry.index
        return 0

    def hint(self, index: int, term: int) -> tuple[int, int]:
        """Return the last place at or before *index* that may match a log which has *term* there.

        Terms never fall within a log, so whatever here has a higher term cannot match. The term
        returned is 0 where it is unknown.
        """
        while index > 0:
            mine = self.term(index)
            if mine is None:
                return index, 0
            if mine <= term:
                return index, mine
            index -= 1
        return 0, 0

    def _truncate_and_append(self, entries: Sequence[Entry]) -> None:
        first = entries[0].index
        if first == self.offset + len(self.unstable):
            self.unstable.extend(entries)
        elif first <= self.offset:
            self._trace(UnstableReplaced(first))
            self.unstable = list(entries)
            self.offset = self.offset_in_progress = first
        else:
            self._trace(UnstableTruncated(first))
            self.unstable[first - self.offset :] = entries
            self.offset_in_progress = min(self.offset_in_progress, first)

    # Commit.
    def commit_to(self, index: int) -> None:
        if index > self.committed:
            assert index <= self.last_index, "committed beyond the log: was it lost?"
            self.committed = index

    def try_commit(self, index: int, term: int) -> bool:
        """Commit up to *index* if that entry is of *term* (paper section 5.4.2, figure 8)."""
        if index > self.committed and term and self.term(index) == term:
            self.commit_to(index)
            return True
        return False

    # Storing.
    def next_unstable(self) -> tuple[Entry, ...]:
        """Return the entries that nobody was asked to write yet."""
        return tuple(self.unstable[self.offset_in_progress - self.offset :])

    @property
    def has_next_unstable(self) -> bool:
        return len(self.unstable) > self.offset_in_progress - self.offset

    def next_snapshot(self) -> SnapshotMeta | None:
        return None if self._snapshot_in_progress else self.snapshot

    def accept_unstable(self) -> None:
        """Note that everything unstable was handed out for writing."""
        if self.unstable:
            self.offset_in_progress = self.offset + len(self.unstable)
        if self.snapshot is not None:
            self._snapshot_in_progress = True

    def stable_to(self, index: int, term: int) -> None:
        """Note that entry *index* of *term*, and all before it, are in storage.

        The caller makes sure that no write under way replaces them again.
        """
        if index < self.offset:
            snapshot = self.snapshot
            known = snapshot is not None and snapshot.index == index
            self._trace(StableWasSnapshot(index) if known else StableMissing(index))
            return
        position = index - self.offset
        if position >= len(self.unstable):
            self._trace(StableMissing(index))
            return
        mine = self.unstable[position].term
        if mine != term:
            self._trace(StableMismatched(index, term, mine))
            return
        del self.unstable[: position + 1]
        self.offset = index + 1
        self.offset_in_progress = max(self.offset_in_progress, self.offset)

    def stable_snapshot(self, index: int) -> None:
        if self.snapshot is not None and self.snapshot.index == index:
            self.snapshot = None
            self._snapshot_in_progress = False

    def restore(self, snapshot: SnapshotMeta) -> None:
        """Replace the whole log by *snapshot*."""
        self._trace(
            RestoreStarted(
                snapshot.index,
                snapshot.term,
                self.committed,
                self.applied,
                self.applying,
                self.offset,
                self.offset_in_progress,
                len(self.unstable),
            )
        )
        self.committed = snapshot.index
        self.offset = self.offset_in_progress = snapshot.index + 1
        self.unstable = []
        self.snapshot = snapshot
        self._snapshot_in_progress = False

    # Applying.
    def _appliable_index(self) -> int:
        return self.committed if self._apply_unstable else min(self.committed, self.offset - 1)

    @property
    def has_next_committed(self) -> bool:
        """Entries wait to be applied; never while a snapshot is on its way in."""
        if self._applying_paused or self.snapshot is not None:
            return False
        return self.applying < self._appliable_index()

    def take_committed(self) -> tuple[Entry, ...]:
        """Return the next entries to apply and count them as handed out."""
        if not self.has_next_committed:
            return ()
        high = self._appliable_index()
        room = self._applying_bytes_max - self._applying_bytes
        assert room > 0
        entries = self._slice(self.applying + 1, high + 1, room)
        self.applying = entries[-1].index
        self._applying_bytes += sum(map(self.entry_bytes, entries))
        # Fewer than there are: the next one would pass the limit, so wait for answers.
        self._applying_paused = (
            self._applying_bytes >= self._applying_bytes_max or self.applying < high
        )
        return entries

    def applied_entries(self, entries: Sequence[Entry]) -> None:
        self.applied_to(entries[-1].index, sum(map(self.entry_bytes, entries)))

    def applied_to(self, index: int, size: int = 0) -> None:
        """Note that the state machine holds everything up to *index*."""
        index = max(index, self.applied)
        assert index <= self.committed, f"applied {index} of {self.committed} committed"
        self.applied = index
        self.applying = max(self.applying, index)
        self._applying_bytes = max(0, self._applying_bytes - size)
        self._applying_paused = self._applying_bytes >= self._applying_bytes_max

    def has_unapplied_change(self, kind: int) -> bool:
        """Say if a committed entry of *kind* waits to be applied."""
        if self.applied >= self.committed:
            return False
        low = max(self.applied + 1, self.first_index)
        unapplied = self._slice(low, self.committed + 1, EVERYTHING_BYTES)
        return any(entry.kind == kind for entry in unapplied)


EVERYTHING_BYTES = 1 << 62
