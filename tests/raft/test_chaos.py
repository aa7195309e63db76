"""Real servers in network namespaces, killed, paused, cut off, and out of room.

scripts/chaos does the same for as long as one likes.
"""

from __future__ import annotations

import pytest

from tests.raft.chaos import cluster
from tests.seeds import fresh

pytestmark = pytest.mark.level5

STORY = [
    "kill_leader",
    "isolate_leader",
    "full_disk",
    "pause_leader",
    "one_way",
    "loss",
    "kill_all",
]


async def test_nothing_that_was_answered_is_lost() -> None:
    (seed,) = fresh("chaos")
    async with cluster(3, seed=seed) as chaos:
        await chaos.play(STORY)
