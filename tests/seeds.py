"""The seed of a run: all that is random in it follows from this one number.

It is in the environment so that processes that share the tests of a run share it. pytest prints it
in its header; SWARMLET_SEED=N replays the run.
"""

from __future__ import annotations

import os
import random

VARIABLE = "SWARMLET_SEED"


def run_seed() -> int:
    """The seed of this run, drawn by whoever asks first."""
    os.environ.setdefault(VARIABLE, str(random.SystemRandom().randrange(1 << 32)))
    return int(os.environ[VARIABLE])


def fresh(purpose: str, count: int = 1) -> list[int]:
    """*count* seeds that differ from run to run, and between purposes."""
    rng = random.Random(f"{run_seed()} {purpose}")
    return [rng.randrange(1 << 32) for _ in range(count)]
