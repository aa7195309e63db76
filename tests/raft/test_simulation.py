"""Simulated clusters: safety under faults, rest after them.

python -m tests.raft.test_simulation chaos 8812      replays one schedule
python -m tests.raft.test_simulation chaos 1 500     plays seeds 1 to 500
"""

from __future__ import annotations

import sys
import time

import pytest

from tests.raft.modes import MODES, simulate
from tests.seeds import fresh

#: Seeds of each mode that run every time, and fresh ones besides.
FIXED = 20
FRESH = 5

pytestmark = pytest.mark.level3


@pytest.mark.parametrize("mode", MODES)
def test_fixed_seeds(mode: str) -> None:
    for seed in range(FIXED):
        play(mode, seed)


@pytest.mark.parametrize("mode", MODES)
def test_fresh_seeds(mode: str) -> None:
    for seed in fresh(mode, FRESH):
        play(mode, seed)


def play(mode: str, seed: int) -> None:
    try:
        world = simulate(mode, seed)
    except BaseException as failure:
        failure.add_note(f"replay: python -m tests.raft.test_simulation {mode} {seed}")
        raise
    assert world.checkers.elections >= 1


def test_the_same_seed_is_the_same_run() -> None:
    first, second = (simulate("chaos", 7) for _ in range(2))
    assert (first.now, first.sends) == (second.now, second.sends)
    assert first.checkers == second.checkers


if __name__ == "__main__":
    name, start, *end = sys.argv[1:]
    started = time.monotonic()
    for number in range(int(start), int(end[0]) + 1 if end else int(start) + 1):
        play(name, number)
    print(f"{name}: seeds {start} to {number} hold, {time.monotonic() - started:.1f} s")
