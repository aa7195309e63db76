"""The clock of scripts/bench container: how long a command takes, from its start to its reaping.

    python container_clock.py RUNS AT_ONCE COMMAND...

Runs COMMAND, AT_ONCE of them together, RUNS times after one warm-up; "{}" in its words becomes a
number that is new each time. Prints the milliseconds of each round as JSON. A process of its own,
so that it can be run in a mount namespace in which a peer finds the cgroups that it wants.
"""

from __future__ import annotations

import json
import os
import sys
import time


def start(argv: list[str], number: int) -> int:
    words = [word.replace("{}", str(number)) for word in argv]
    return os.posix_spawnp(words[0], words, os.environ)


def main() -> int:
    runs, at_once, argv = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    nothing = os.open("/dev/null", os.O_RDWR)
    answer = os.dup(1)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    found = []
    for turn in range(runs + 1):
        began = time.perf_counter()
        pids = [start(argv, turn * at_once + index) for index in range(at_once)]
        for pid in pids:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if code:
                print(f"{argv[0]}: exit {code}", file=sys.stderr)
                return 1
        if turn:
            found.append((time.perf_counter() - began) * 1000)
    os.write(answer, json.dumps(found).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
