"""What goes out: the queue of rumours to piggyback, and the budget of bytes.

Pure. Rumours ride on every packet (SWIM section 4.1) and on gossip packets of their own
(memberlist). The one sent least goes first, the newest among equals, and a newer rumour about
a subject takes the place of the older one.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeAlias

from swarmlet.swim.config import TICK
from swarmlet.swim.messages import Alive, Message, Rumour, ShortId, UserEvent, short_id, size_of

#: More subjects than this at once are a storm that anti-entropy carries better.
RUMOURS_MAX = 4096


#: A member, or an event that stands for itself.
Subject: TypeAlias = ShortId | UserEvent


@dataclass(slots=True)
class Pending:
    rumour: Rumour
    size: int
    age: int  # lower is newer
    transmits: int = 0


def subject_of(rumour: Rumour) -> Subject:
    """Return what *rumour* is about: a newer one about the same replaces it."""
    match rumour:
        case UserEvent():
            return rumour
        case Alive(member):
            return short_id(member)
        case _:
            return rumour.member


class Queue:
    """Rumours waiting to be sent, at most one for each subject and RUMOURS_MAX in all."""

    def __init__(self) -> None:
        self._pending: dict[Subject, Pending] = {}
        self._age = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._pending)

    def put(self, rumour: Rumour) -> None:
        """Queue *rumour* in place of any other about the same subject."""
        self._age -= 1
        subject = subject_of(rumour)
        if subject not in self._pending and len(self._pending) >= RUMOURS_MAX:
            # The most often sent has the least left to do.
            spent = max(self._pending, key=lambda key: self._rank(self._pending[key]))
            del self._pending[spent]
            self.dropped += 1
        self._pending[subject] = Pending(rumour, size_of(rumour), self._age)

    def discard(self, subject: Subject) -> None:
        self._pending.pop(subject, None)

    def clear(self) -> None:
        self._pending.clear()

    def take(
        self, *, room: int, count: int, limit: int, told: Collection[Message] = ()
    ) -> list[Rumour]:
        """Return at most *count* rumours that fit into *room* bytes, and count them as sent.

        Subjects that the packet has *told* of anyway count as sent, too. A rumour that was
        sent *limit* times is gone.
        """
        if not self._pending or count <= 0:
            return []
        # A few more than wanted, so that one long rumour does not keep the others back.
        first = heapq.nsmallest(
            2 * count, self._pending.items(), key=lambda item: self._rank(item[1])
        )
        told_of = {subject_of(message) for message in told if isinstance(message, Rumour)}
        taken: list[Rumour] = []
        for subject, pending in first:
            if len(taken) == count:
                break
            if subject not in told_of:
                if pending.size > room:
                    continue
                room -= pending.size
                taken.append(pending.rumour)
            pending.transmits += 1
            if pending.transmits >= limit:
                del self._pending[subject]
        return taken

    @staticmethod
    def _rank(pending: Pending) -> tuple[int, int]:
        return pending.transmits, pending.age


class Budget:
    """Token bucket over the bytes of all packets; it holds one second's worth."""

    def __init__(self, rate_bytes: int) -> None:
        self._rate_bytes = rate_bytes
        self._tokens = float(rate_bytes)

    def configure(self, rate_bytes: int) -> None:
        self._rate_bytes = rate_bytes
        self._tokens = min(self._tokens, rate_bytes)

    def tick(self) -> None:
        self._tokens = min(self._tokens + self._rate_bytes * TICK, self._rate_bytes)

    @property
    def rumours_allowed(self) -> bool:
        """Half of the budget is kept for probes and answers: they prove who is alive."""
        return self._tokens > self._rate_bytes / 2

    def spend(self, size: int) -> bool:
        """Pay for a packet of *size* bytes; False, and nothing paid, when it must not go."""
        if self._tokens < size:
            return False
        self._tokens -= size
        return True
