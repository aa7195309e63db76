"""Run the checks and the test levels in order, the fast ones first, and count every skip aloud.

Exit 0 only if nothing failed. A level that has no test to run says so.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.seeds import VARIABLE, run_seed

ROOT = Path(__file__).parent.parent

#: name -> the tools in it. All run, so that one run shows all that is wrong.
CHECKS = {
    "format": ["ruff", "format", "--check", "--quiet", "."],
    "lint": ["ruff", "check", "--quiet", "."],
    "types": ["mypy"],
    "types of the lab": ["mypy", "--explicit-package-bases", "tests/lab", "scripts"],
}
#: level -> which tests, and after how many minutes a run of it counts as hung: several times
#: what it takes on two idle cores.
LEVELS = {
    "1-2": ("not level3 and not level4 and not level5 and not level6", 10),
    "3": ("level3", 10),
    "4": ("level4", 15),
    "5": ("level5", 20),
}
ABOUT = {
    "1-2": "rules, laws and golden scripts",
    "3": "simulated clusters",
    "4": "the real kernel",
    "5": "real daemons and clients",
}
#: level -> processes that share its tests. Hosts of a lab mostly wait: for timeouts, for a grace
#: period, for a boot. Level 4 shares one kernel's names, and is about its costs.
PROCESSES = {"1-2": 2, "3": 2, "5": 3}
#: Pytest's exit code for "no test was collected".
NO_TESTS = 5


@dataclass
class Result:
    name: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    remark: str = ""

    def line(self) -> str:
        counts = f"{self.passed:6d} passed {self.failed:4d} failed {self.skipped:4d} skipped"
        return f"{self.name:38s} {counts} {self.seconds:7.1f} s {self.remark}".rstrip()


def run(argv: list[str], seconds: float | None = None) -> int | None:
    """Run a command in a session of its own; None if it had to be killed for taking too long."""
    program = str(Path(sys.executable).parent / argv[0])
    with subprocess.Popen([program, *argv[1:]], cwd=ROOT, start_new_session=True) as process:
        try:
            return process.wait(seconds)
        except BaseException as error:
            # Hosts of a lab end with their owner: the lifelines break.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                return None
            raise


def check(name: str) -> Result:
    print(f"\n== {name}: {' '.join(CHECKS[name])}", flush=True)
    began = time.monotonic()
    code = run(CHECKS[name], 600)
    result = Result(name, seconds=time.monotonic() - began)
    result.passed, result.failed = (1, 0) if code == 0 else (0, 1)
    return result


def level(name: str, arguments: list[str]) -> Result:
    title = f"level {name}: {ABOUT[name]}"
    print(f"\n== {title}", flush=True)
    marks, minutes = LEVELS[name]
    result = Result(title)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        argv = ["pytest", "-q", "-m", marks, f"--junitxml={report}", *arguments]
        if name in PROCESSES:
            argv += ["-n", str(PROCESSES[name]), "--dist", "worksteal"]
        code = run(argv, minutes * 60)
        if report.exists():
            read(report, result)
    result.seconds = time.monotonic() - began
    if code is None:
        result.failed += 1
        result.remark = f"KILLED: not done in {minutes} minutes"
    elif code == NO_TESTS:
        result.remark = "NO TEST RAN"
    elif code and not result.failed:
        result.failed += 1
        result.remark = f"pytest: exit {code}"
    return result


def read(report: Path, result: Result) -> None:
    """Count the cases in pytest's own report."""
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            result.failed += 1
        elif "skipped" in kinds:
            result.skipped += 1
            skipped = case.find("skipped")
            assert skipped is not None
            result.reasons[skipped.get("message", "no reason given")] += 1
        else:
            result.passed += 1


def show(results: list[Result]) -> int:
    print()
    for result in results:
        print(result.line())
    for result in results:
        for reason, count in result.reasons.most_common():
            print(f"SKIPPED {count} in {result.name}: {reason}")
    failed = sum(result.failed for result in results)
    passed = sum(result.passed for result in results)
    skipped = sum(result.skipped for result in results)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/test",
        description="Install what the tests need, then check and test. Also: --fresh-venv makes "
        "the virtual environment anew, --python NAME takes another interpreter.",
    )
    parser.add_argument(
        "--level", action="append", choices=LEVELS, help="only this level, without the checks"
    )
    parser.add_argument("--seed", type=int, help="replay the random tests of a run from its seed")
    parser.add_argument("-k", dest="expression", help="only tests whose names match, as in pytest")
    parser.add_argument("pytest", nargs="*", help="after --: more arguments for pytest")
    options = parser.parse_args()
    arguments = list(options.pytest)
    if options.expression:
        arguments += ["-k", options.expression]
    if options.seed is not None:
        os.environ[VARIABLE] = str(options.seed)
    print(f"--seed {run_seed()} replays what is random in this run")  # and all processes share it
    chosen = options.level or list(LEVELS)
    results = [] if options.level or options.expression else [check(name) for name in CHECKS]
    if os.geteuid() != 0:
        print("\nNOT ROOT: levels 4 and 5 are skipped, for they are about the real kernel")
    results += [level(name, arguments) for name in chosen]
    return show(results)


if __name__ == "__main__":
    sys.exit(main())
