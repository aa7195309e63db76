"""Real raft servers in network namespaces, broken and mended while clients write and read.

scripts/chaos                             three servers, every fault in any order, two minutes
scripts/chaos --servers 5 --minutes 60
scripts/chaos --faults loss full_disk     only these, of tests/raft/chaos.py
scripts/chaos --seed 4711                 the same faults in the same order (not the same timing)

The clients keep registers and lists. At the end the whole history must be linearizable, all that
was answered must be there, and all servers must have the same state.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time

import trio

from tests.raft.chaos import FAULTS, cluster
from tests.raft.nodes import PRESETS

SERVERS = (3, 5)
MINUTES = 2.0
#: Answers while a fault lasts, and after it: a second or so.
ANSWERS = 400


async def rage(options: argparse.Namespace, seed: int) -> None:
    rng = random.Random(seed)
    end = time.monotonic() + options.minutes * 60
    count = 0
    async with cluster(
        options.servers, seed=seed, preset=options.preset, answers=options.answers
    ) as chaos:
        while time.monotonic() < end:
            fault = rng.choice(options.faults)
            began = time.monotonic()
            await chaos.play([fault])
            count += 1
            seconds = time.monotonic() - began
            print(f"{fault:16s} {seconds:5.1f} s  {chaos.clients.answered} answers", flush=True)
    history = chaos.clients.history.operations
    unknown = sum(not operation.known for operation in history)
    print(
        f"{count} faults, {len(history)} operations, {unknown} of them with unknown outcome: "
        "linearizable, and nothing that was answered is lost"
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="scripts/chaos",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--servers", type=int, default=3, choices=SERVERS)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--preset", choices=PRESETS, default="default", help="raft's timing")
    parser.add_argument("--answers", type=int, default=ANSWERS, help="while a fault lasts")
    parser.add_argument("--seed", type=int)
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    seed = options.seed
    if seed is None:
        seed = random.SystemRandom().randrange(1 << 32)
    print(f"--seed {seed} replays the order of the faults", flush=True)
    logging.basicConfig(level=logging.WARNING)
    trio.run(rage, options, seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
