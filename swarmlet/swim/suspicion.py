"""The timer of one suspect (Lifeguard: dynamic suspicion timeout).

It starts long and gets shorter with each member that finds the suspect unreachable as well,
because one accuser is often the one who is ill.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from swarmlet.swim.messages import ACCUSERS_MAX, Evidence, ShortId


def suspicion_ticks(*, confirmations: int, wanted: int, least: int, most: int) -> int:
    """Return the length of a suspicion that *confirmations* members have confirmed.

    With nobody to confirm (*wanted* is 0) it is *least*.
    """
    if wanted <= 0:
        return least
    share = math.log(confirmations + 1) / math.log(wanted + 1)
    return max(least, math.floor(most - share * (most - least)))


class Suspicion:
    """Suspicion of one member at one incarnation.

    Args:
        accusers: who accuses; the first one is no confirmation.
        wanted: confirmations that bring the timer down to *least*.
        now: the tick it starts at.
    """

    def __init__(
        self, accusers: Iterable[ShortId], *, wanted: int, least: int, most: int, now: int
    ) -> None:
        self._accusers: list[ShortId] = []
        self._wanted = wanted
        self._least = least
        self._most = most
        self._started = now
        self._refused_by: int | None = None
        self._factor = 1
        self.add(accusers)

    @property
    def accusers(self) -> tuple[ShortId, ...]:
        return tuple(self._accusers)

    @property
    def confirmations(self) -> int:
        return min(self._wanted, len(self._accusers) - 1)

    @property
    def evidence(self) -> Evidence:
        if self._refused_by is not None:
            return Evidence.REFUSED
        return Evidence.STALLED if self._factor > 1 else Evidence.SILENT

    def deadline(self, others: int) -> int:
        """Return the tick at which the suspect is dead.

        Args:
            others: members that may still confirm. Without any there is nothing to wait for.
        """
        confirmations = self.confirmations
        deadline = self._started + suspicion_ticks(
            confirmations=confirmations,
            wanted=min(self._wanted, confirmations + others),
            least=self._least * self._factor,
            most=max(self._most, self._least * self._factor),
        )
        return deadline if self._refused_by is None else min(deadline, self._refused_by)

    def add(self, accusers: Iterable[ShortId]) -> bool:
        """Count *accusers*; True when that is news worth telling others.

        It is none when the timer has all the confirmations that it wants.
        """
        before = len(self._accusers)
        room = min(self._wanted + 1, ACCUSERS_MAX)
        for accuser in accusers:
            if len(self._accusers) < max(1, room) and accuser not in self._accusers:
                self._accusers.append(accuser)
        return len(self._accusers) > before

    def refuse(self, deadline: int) -> bool:
        """Take note that nobody listens at the suspect's address; True when that is news."""
        if self._refused_by is not None:
            return False
        self._refused_by = deadline
        return True

    def stall(self, factor: int) -> bool:
        """Take note that the suspect's host is alive: its silence may be a pause.

        The shortest timer becomes *factor* times as long. True when that is news.
        """
        if self._factor > 1 or factor <= 1:
            return False
        self._factor = factor
        return self._refused_by is None

    def restart(self, now: int, *, least: int, most: int) -> None:
        """Begin again: this process slept, and the suspect's answers with it."""
        self._started = now
        self._least = least
        self._most = most
        if self._refused_by is not None:
            self._refused_by = now + least
