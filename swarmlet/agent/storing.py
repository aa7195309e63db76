"""Keeping the assignment on the disk, also when the disk refuses for a while.

A full disk must not end the daemon, nor keep a node from its work: what is assigned is carried out,
and stored as soon as there is room. Until then a reboot would bring back an older assignment.
"""

from __future__ import annotations

import logging

import trio

from swarmlet.agent.assignment import Assignment, Difference
from swarmlet.agent.journal import Journal, JournalRefused

logger = logging.getLogger(__name__)

#: Seconds between tries while the disk refuses.
RETRY_SECONDS = 5.0

NOTHING = Difference({}, frozenset())


def merge(older: Difference, newer: Difference) -> Difference:
    """What has to be written to make up for both."""
    puts = {key: body for key, body in older.puts.items() if key not in newer.removes}
    return Difference({**puts, **newer.puts}, (older.removes - newer.puts.keys()) | newer.removes)


class Storing:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._alone = trio.Lock()
        self._missing = NOTHING
        self._assignment = Assignment()
        self._refused = trio.Event()

    async def store(self, assignment: Assignment, difference: Difference) -> None:
        """Store *assignment*, which *difference* led to, now or when there is room."""
        async with self._alone:
            self._assignment, self._missing = assignment, merge(self._missing, difference)
            await self._try()

    async def run(self) -> None:
        """Try again while the disk refuses, until cancelled."""
        while True:
            await self._refused.wait()
            await trio.sleep(RETRY_SECONDS)
            async with self._alone:
                if self._refused.is_set():
                    await self._try()

    async def _try(self) -> None:
        arguments = (self._assignment, self._missing)
        try:
            await trio.to_thread.run_sync(self._journal.store_assignment, *arguments)
        except JournalRefused as exc:
            if not self._refused.is_set():
                logger.error("assignment not stored reason=%s", exc)
            self._refused.set()
            return
        if self._refused.is_set():
            logger.info("assignment stored again index=%d", self._assignment.index)
            self._refused = trio.Event()
        self._missing = NOTHING
