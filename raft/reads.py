"""Linearizable reads at the leader: one heartbeat round serves every read that waits for it.

Pure (thesis section 6.4). Each read gets the next number; a heartbeat carries the newest number
and its answer echoes it, so an echo confirms every read up to that number. The read with number
n may be answered once a majority has echoed n: the leader still led when the read came in.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from raft import quorum
from raft.messages import Configuration, ServerId


@dataclass(frozen=True, slots=True)
class PendingRead:
    number: int
    requester: ServerId
    context: bytes
    index: int  # the commit index when the read came in


class Reads:
    """The reads of one term of leadership; a new term starts with a new object.

    Args:
        first: the number to count from. Numbers must not repeat over the terms of one server's
            leadership, or a late echo of an old term's heartbeat would count. (It would also
            carry the old term and be ignored; this is the belt to those braces.)
    """

    def __init__(self, first: int = 0) -> None:
        self.number = first
        self._pending: deque[PendingRead] = deque()
        self._echoes: dict[ServerId, int] = {}
        #: Reads that came before the leader had committed an entry of its own term.
        self.early: list[tuple[ServerId, bytes]] = []

    def __len__(self) -> int:
        return len(self._pending) + len(self.early)

    @property
    def latest(self) -> int:
        """The number that heartbeats should carry; 0 if nobody waits."""
        return self._pending[-1].number if self._pending else 0

    def add(self, leader: ServerId, requester: ServerId, context: bytes, index: int) -> int:
        """Note a read of *requester*; return the number for the heartbeats."""
        self.number += 1
        self._pending.append(PendingRead(self.number, requester, context, index))
        self._echoes[leader] = self.number
        return self.number

    def echo(self, server: ServerId, number: int) -> None:
        self._echoes[server] = max(number, self._echoes.get(server, 0))

    def take_confirmed(self, configuration: Configuration) -> list[PendingRead]:
        """Return, and forget, the reads that a majority has confirmed."""
        confirmed = quorum.joint_committed_index(
            configuration.voters, configuration.outgoing, self._echoes
        )
        done = []
        while self._pending and self._pending[0].number <= confirmed:
            done.append(self._pending.popleft())
        return done
