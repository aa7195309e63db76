"""Users' broadcasts: at most once, in an order that respects cause (Lamport's clock).

Pure. As in Serf, what is older than the window is dropped unseen: it may have been delivered.
"""

from __future__ import annotations

from swarmlet.swim.messages import ShortId, UserEvent

#: How far behind the newest an event may come and still be told from one delivered before.
WINDOW = 512
#: Different events at one reading of the clock; more than the members that broadcast at once.
AT_ONE_CLOCK_MAX = 256
#: No honest clock is so far ahead; without the bound one packet could use up all of time.
JUMP_MAX = 1 << 32


class UserEvents:
    def __init__(self) -> None:
        self._clock = 0
        self._seen: dict[int, set[UserEvent]] = {}

    @property
    def clock(self) -> int:
        return self._clock

    def create(self, origin: ShortId, name: str, payload: bytes) -> UserEvent:
        """Return a new event, later than all that were seen here; counted as delivered."""
        event = UserEvent(self._clock + 1, origin, name, payload)
        self.witness(event)
        return event

    def witness(self, event: UserEvent) -> bool:
        """Return whether *event* is new, and remember it."""
        if not self._clock - WINDOW < event.clock <= self._clock + JUMP_MAX:
            return False
        seen = self._seen.setdefault(event.clock, set())
        if event in seen or len(seen) >= AT_ONE_CLOCK_MAX:
            return False
        seen.add(event)
        if event.clock > self._clock:
            self._clock = event.clock
            self._trim()
        return True

    def _trim(self) -> None:
        oldest = self._clock - WINDOW
        for clock in [clock for clock in self._seen if clock <= oldest]:
            del self._seen[clock]
