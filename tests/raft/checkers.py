"""What must hold in every run, judged from outside: messages, disks, applied entries, answers.

Each violation raises Violated with the property's name (paper, figure 3, and the design's list).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from raft.log import Log
from raft.messages import (
    AppendEntries,
    Entry,
    Heartbeat,
    InstallSnapshot,
    Message,
    ServerId,
    VoteReply,
)


class Violated(AssertionError):
    """A property of Raft does not hold."""


@dataclass(slots=True)
class Checkers:
    """Sees everything that leaves a server or is applied by one, in the order it happens."""

    #: term -> who led it
    leaders: dict[int, ServerId] = field(default_factory=dict)
    #: (voter, term) -> who got the vote
    votes: dict[tuple[ServerId, int], ServerId] = field(default_factory=dict)
    #: (index, term) -> (term of the entry before, kind, data)
    entries: dict[tuple[int, int], tuple[int, int, bytes]] = field(default_factory=dict)
    #: index -> the entry that was applied there first
    applied: dict[int, Entry] = field(default_factory=dict)
    #: data -> index, of proposals that were answered as committed
    acknowledged: dict[bytes, int] = field(default_factory=dict)
    highest_acknowledged: int = 0
    elections: int = 0
    reads: int = 0

    def sent(self, sender: ServerId, to: ServerId, message: Message) -> None:
        match message:
            case AppendEntries(term=term) | Heartbeat(term=term) | InstallSnapshot(term=term):
                self._led(sender, term)
            case VoteReply(term=term, pre=False, rejected=False):
                given = self.votes.setdefault((sender, term), to)
                if given != to:
                    raise Violated(f"{sender} voted for {given} and {to} in term {term}")

    def _led(self, server: ServerId, term: int) -> None:
        leader = self.leaders.setdefault(term, server)
        if leader != server:
            raise Violated(f"election safety: {leader} and {server} both led term {term}")

    def became_leader(self, server: ServerId, term: int, log: Log) -> None:
        """Leader completeness: everything that anybody has applied is in the new leader's log."""
        self.elections += 1
        self._led(server, term)
        for index, entry in self.applied.items():
            if index >= log.first_index and log.term(index) != entry.term:
                raise Violated(
                    f"leader completeness: {server} leads term {term} with "
                    f"{log.term(index)}/{index}, {entry.term}/{index} was committed"
                )
            if index > log.last_index:
                raise Violated(f"leader completeness: {server} lacks entry {index}")

    def stored(self, previous_term: int | None, entries: Sequence[Entry]) -> None:
        """Log matching: an entry's index and term decide its content and all before it."""
        for entry in entries:
            key = (entry.index, entry.term)
            if previous_term is not None:
                content = (previous_term, entry.kind, entry.data)
                known = self.entries.setdefault(key, content)
                if known != content:
                    raise Violated(f"log matching: {key} is {known} and {content}")
            previous_term = entry.term

    def apply(self, server: ServerId, entry: Entry) -> None:
        """State machine safety."""
        known = self.applied.setdefault(entry.index, entry)
        if known != entry:
            raise Violated(f"state machine safety: {server} applied {entry}, another {known}")

    def acknowledge(self, index: int, data: bytes) -> None:
        self.acknowledged[data] = index
        self.highest_acknowledged = max(self.highest_acknowledged, index)

    def read(self, server: ServerId, index: int, least: int) -> None:
        """Reads see every write that was answered before they were asked."""
        self.reads += 1
        if index < least:
            raise Violated(f"linearizable reads: {server} read at {index}, {least} was answered")

    def converged(self, server: ServerId, commands: Sequence[bytes]) -> None:
        """Durability: what was answered is there; and nothing is there twice."""
        present = set(commands)
        missing = [data for data in self.acknowledged if data not in present]
        if missing:
            raise Violated(f"durability: {server} lacks {missing[:5]}, which were answered")
        if len(present) != len(commands):
            raise Violated(f"{server} applied a command twice")
