"""How far this member trusts itself: Lifeguard's local health multiplier (LHM)."""

from __future__ import annotations


class Awareness:
    """A score from 0, healthy, to *maximum* - 1; it stretches this member's own timers.

    Whoever is slow takes the silence of others for death. So every sign that the fault may be
    here raises the score: a probe that failed without a helper's Nack, a suspicion about
    ourselves, a pause of the process. Every answered probe lowers it.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._score = 0

    @property
    def score(self) -> int:
        return self._score

    def configure(self, maximum: int) -> None:
        self._maximum = maximum
        self.add(0)

    def add(self, points: int) -> None:
        self._score = min(max(0, self._score + points), self._maximum - 1)

    def distrust(self) -> None:
        """Take the highest score: this process was not there for a while."""
        self._score = self._maximum - 1

    def stretch(self, ticks: int) -> int:
        return ticks * (self._score + 1)
