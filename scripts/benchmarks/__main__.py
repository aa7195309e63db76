"""scripts/bench: pick a benchmark, run it, print its table, write its JSON."""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
from functools import partial
from pathlib import Path

import trio

from scripts.benchmarks.report import OURS, Report, save
from tests.lab import LabError

#: name -> (peer, the program by which the peer is known to be there)
NAMES = {
    "raft": ("etcd", "etcd"),
    "gossip": ("serf", "serf"),
    "container": ("crun", "crun"),
    "overlay": ("veth", "iperf3"),
    "swarm": ("Docker Swarm", "dockerd"),
    "footprint": ("Docker Swarm", "dockerd"),
}


def module_of(name: str) -> str | None:
    path = Path(__file__).with_name(f"{name}.py")
    return f"scripts.benchmarks.{name}" if path.exists() else None


def question(name: str) -> str:
    module = module_of(name)
    if module is None:
        return "(not there yet: it comes with its issue)"
    return (importlib.import_module(module).__doc__ or "").strip().splitlines()[0]


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("name", nargs="?", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="one round of everything")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--only", choices=("ours", "peer"), help="measure one side only")
    parser.add_argument("--long", action="store_true", help="raft: a log of 1,000,000 entries too")
    options = parser.parse_args()
    if options.name is None:
        for name in NAMES:
            print(f"{name:10s} against {NAMES[name][0]:13s} {question(name)}")
        return 0
    module = module_of(options.name)
    if module is None:
        print(f"scripts/bench: {options.name} is not there yet", file=sys.stderr)
        return 2
    peer, program = NAMES[options.name]
    report = Report(peer)
    sides = [
        side for side, word in ((OURS, "ours"), (peer, "peer")) if options.only in (None, word)
    ]
    if peer in sides and shutil.which(program) is None:
        report.remark(f"no {program} on this machine: the peer is not measured")
        sides.remove(peer)
    measure = importlib.import_module(module).measure
    if options.long:
        measure = partial(measure, long=True)
    code = 0
    for side in sides:
        try:
            trio.run(partial(measure, report, side, quick=options.quick))
        except (LabError, AssertionError) as error:
            report.remark(f"{side} failed: {error}")
            code = 1
    print("\n" + report.table())
    if options.json:
        save(report, options.json)
    return code


if __name__ == "__main__":
    sys.exit(main())
