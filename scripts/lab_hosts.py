"""N hosts on this machine, each with a running daemon, and a shell in any of them.

scripts/lab 3                 three hosts; a shell in h1; all gone when it ends
scripts/lab 3 --keep          three hosts that stay
scripts/lab --enter h2        a shell in h2 (--lab N if there are several labs)
scripts/lab --enter h2 swarmlet node ls
scripts/lab --list
scripts/lab --remove N        or: all
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from functools import partial

import trio

from tests.lab import Lab, LabError, leftovers, remove, visit
from tests.lab.ownership import is_dead, labs

#: How a host's shell names itself.
PROMPT = r"\[\e[1m\]\h\[\e[0m\]# "


def enter(lab: int | None, name: str, command: list[str]) -> int:
    """Run *command*, or a shell, in a host, and return its exit code."""
    host = visit.the_host(visit.the_lab(lab), name)
    terminal = {key: os.environ[key] for key in ("TERM", "COLORTERM") if key in os.environ}
    environment = {**host.environment, **terminal, "PS1": PROMPT}
    shell = ["bash", "--norc", "--noprofile", "-i"]
    return subprocess.call(host.argv(*(command or shell)), env=environment)


def show_all() -> None:
    living = [number for number in labs() if not is_dead(number)]
    for number in living:
        for host in visit.hosts_of(number):
            print(f"lab {number}  {host.name}  {host.address}  {visit.log_of(number, host.name)}")
    if not living:
        print("no lab")


def remove_all(which: str) -> int:
    numbers = labs() if which == "all" else [int(which)]
    for number in numbers:
        remove(number)
    left = [entry for number in numbers for entry in leftovers(number)]
    for entry in left:
        print(f"left: {entry}", file=sys.stderr)
    return 1 if left else 0


def explain(lab: Lab) -> None:
    for host in lab.hosts:
        print(f"  {host.name}  {host.address}  log {host.log}")
    first, last = lab.hosts[0], lab.hosts[-1]
    print(f"  a shell in a host:      scripts/lab --enter {last.name}")
    print(f"  a client on the LAN:    {shlex.join([*lab.network.enter(), 'curl', 'http://...'])}")
    print(f"  a power cut for {last.name}:     kill -9 {last.pid}")
    print(f"  first step, in {first.name}:      swarmlet init")


async def make(count: int, *, keep: bool, daemons: bool) -> int:
    async with Lab(count, kept=keep) as lab:
        if daemons:
            async with trio.open_nursery() as nursery:
                for host in lab.hosts:
                    nursery.start_soon(host.start_daemon)
            for host in lab.hosts:
                await host.wait_ready()
        print(f"lab {lab.number}: {count} hosts" + (" with daemons" if daemons else ""))
        explain(lab)
        if keep:
            print(f"  remove it all:          scripts/lab --remove {lab.number}")
            return 0
        if sys.stdin.isatty():
            print("a shell in h1; the lab ends with it", flush=True)
            return await trio.to_thread.run_sync(enter, lab.number, "h1", [])
        print("the lab ends with the end of input", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/lab", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("hosts", nargs="?", type=int, metavar="N", help="how many hosts to make")
    parser.add_argument("--keep", action="store_true", help="let them outlive this command")
    parser.add_argument("--bare", action="store_true", help="start no daemons")
    parser.add_argument("--lab", type=int, metavar="N", help="which lab --enter means")
    parser.add_argument("--enter", metavar="HOST", help="a shell, or a command, in a host")
    parser.add_argument("--list", action="store_true", help="the hosts of all labs")
    parser.add_argument("--remove", metavar="N|all", help="remove a lab")
    options, command = parser.parse_known_args(_before_command(sys.argv[1:]))
    command = sys.argv[1 + len(_before_command(sys.argv[1:])) :] or command
    try:
        if options.enter:
            return enter(options.lab, options.enter, command)
        if command:
            parser.error(f"unknown: {shlex.join(command)}")
        if options.list:
            show_all()
            return 0
        if options.remove:
            return remove_all(options.remove)
        wanted = 3 if options.hosts is None else options.hosts
        if not wanted:
            parser.error("a lab to play with has at least one host")
        return trio.run(partial(make, wanted, keep=options.keep, daemons=not options.bare))
    except (LabError, AssertionError) as error:
        print(f"scripts/lab: {error}", file=sys.stderr)
        return 1


def _before_command(words: list[str]) -> list[str]:
    """Our own words: what follows `--enter HOST` is a command with options of its own."""
    if "--enter" in words:
        return words[: words.index("--enter") + 2]
    return words


if __name__ == "__main__":
    sys.exit(main())
