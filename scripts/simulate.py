"""Play simulated clusters from many seeds, and say which seed breaks a promise.

scripts/simulate                          every world, seeds 0 to 99
scripts/simulate --minutes 30             every world, fresh seeds, for half an hour
scripts/simulate --worlds raft --seeds 10000
scripts/simulate --worlds raft:rot --first 4711 --seeds 1     replays one run

A run is a function of the world's name and the seed. What they are about and what is checked stands
in tests/raft/modes.py, tests/swim/test_simulation.py and tests/manager/test_simulation.py.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import partial

from tests.manager import test_simulation as manager
from tests.raft import modes as raft
from tests.swim import test_simulation as swim

Play = Callable[[int], object]

WORLDS: dict[str, Play] = {
    **{f"raft:{mode}": partial(raft.simulate, mode) for mode in raft.MODES},
    "swim:churn": swim.test_churn_ends_in_agreement,
    "swim:crash": swim.test_crash_is_seen_through_loss,
    "swim:loss": swim.test_loss_accuses_nobody_for_good,
    "swim:one_way": swim.test_one_way_cut_buries_nobody,
    "manager": manager.test_laws_hold_and_the_cluster_comes_to_rest,
}
SEEDS = 100
#: Runs given to the processes beyond those that they are at.
AHEAD = 2
#: Seconds between two lines about how far it is.
TELL_EVERY = 60.0
FAILURES_MAX = 20


def play(name: str, seed: int) -> str:
    """Play one run; return what went wrong, or nothing."""
    try:
        WORLDS[name](seed)
    except Exception:
        return traceback.format_exc()
    return ""


def chosen(words: Iterable[str]) -> list[str]:
    """The worlds whose names are, or begin with, one of *words*."""
    words = list(words)
    names = [n for n in WORLDS if not words or any(n == w or n.startswith(f"{w}:") for w in words)]
    if not names:
        raise SystemExit(f"scripts/simulate: no such world; there are {', '.join(WORLDS)}")
    return names


def runs(names: list[str], first: int, seeds: int | None) -> Iterator[tuple[str, int]]:
    numbers = itertools.count(first) if seeds is None else range(first, first + seeds)
    return ((name, seed) for seed in numbers for name in names)


class Campaign:
    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self.played: Counter[str] = Counter()
        self.failed: list[tuple[str, int]] = []

    def run(self, wanted: Iterator[tuple[str, int]], until: float) -> None:
        """Play the *wanted* runs, in several processes, but begin none after *until*."""
        under_way: dict[Future[str], tuple[str, int]] = {}
        told = time.monotonic()
        # What servers say about their disks that rot is not for here.
        quiet = partial(logging.disable, logging.CRITICAL)
        with ProcessPoolExecutor(self._jobs, initializer=quiet) as pool:
            while len(self.failed) < FAILURES_MAX:
                while len(under_way) < self._jobs * AHEAD and time.monotonic() < until:
                    run = next(wanted, None)
                    if run is None:
                        break
                    under_way[pool.submit(play, *run)] = run
                if not under_way:
                    return
                done, _ = wait(under_way, timeout=TELL_EVERY, return_when=FIRST_COMPLETED)
                for future in done:
                    self._note(under_way.pop(future), future.result())
                if time.monotonic() - told > TELL_EVERY:
                    told = time.monotonic()
                    total = self.played.total()
                    print(f"{total} runs, {len(self.failed)} failed", flush=True)
            pool.shutdown(cancel_futures=True)

    def _note(self, run: tuple[str, int], failure: str) -> None:
        name, seed = run
        self.played[name] += 1
        if failure:
            self.failed.append(run)
            print(f"\nFAILED {name} seed {seed}\n{failure}")
            print(f"replay: scripts/simulate --worlds {name} --first {seed} --seeds 1", flush=True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="scripts/simulate",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--worlds", nargs="+", default=[], help="raft, raft:MODE, swim, manager")
    parser.add_argument("--first", type=int, help="the first seed (0; a fresh one with --minutes)")
    parser.add_argument("--seeds", type=int, help=f"seeds of each world ({SEEDS})")
    parser.add_argument("--minutes", type=float, help="for how long, instead of how many")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    names = chosen(options.worlds)
    seeds, first, until = options.seeds, options.first or 0, float("inf")
    if options.minutes is not None:
        until = time.monotonic() + options.minutes * 60
        if options.first is None:
            first = random.SystemRandom().randrange(1 << 32)
    elif seeds is None:
        seeds = SEEDS
    print(f"{len(names)} worlds, seeds from {first} on", flush=True)
    began = time.monotonic()
    campaign = Campaign(options.jobs)
    campaign.run(runs(names, first, seeds), until)
    for name in names:
        print(f"{name:22s} {campaign.played[name]:7d} runs")
    total, failed = campaign.played.total(), len(campaign.failed)
    print(f"{total} runs in {time.monotonic() - began:.0f} s, {failed} failed")
    return 1 if failed or not total else 0


if __name__ == "__main__":
    sys.exit(main())
