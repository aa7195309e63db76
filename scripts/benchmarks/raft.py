"""How many writes a second, how late, how soon again after a leader's death, in what memory?

Three servers on this machine, on loopback addresses of their own, against three of etcd, asked
by the same client (load.py) in the same run. Both sync every write to the disk on a majority.
Ours is tests/raft/node.py: everything that a manager has between its port and its disk, mutual
TLS between the servers and a sealed log included; etcd speaks plain TCP to its peers and writes
its log unsealed, as it does by default. Both take their clients' requests without TLS.

What the limit is: Python's time in the leader. A write of 64 clients at once costs it 130 us, most
of them for the client's own request and answer, and a follower 31 us. One client alone pays for
each hop: four processes' wake-ups, and a thread for the disk in each server.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio

from scripts.benchmarks.accounts import MIB, memory_of, size_of
from scripts.benchmarks.load import GET, PUT, Found, until_accepted
from scripts.benchmarks.raft_sides import Servers, make_servers, servers_with_log
from scripts.benchmarks.report import OURS, Report

ROOT = Path(__file__).parent.parent.parent
VALUE_BYTES = 256
WRITERS = (1, 8, 64, 256)
READERS = (1, 64, 256)
SECONDS, SECONDS_QUICK = 8.0, 2.0
KILLS, KILLS_QUICK = 20, 3
#: A state of 50 MB, in values that fit into a frame of HTTP/2.
BIG_VALUE_BYTES, BIG_VALUES = 10_000, 5_000
ATTEMPTS = 3
#: Seconds after which a restarted cluster counts as failed.
PATIENCE = 300.0


async def measure(report: Report, side: str, *, quick: bool, long: bool = False) -> None:
    await trio.to_thread.run_sync(_measure, report, side, quick, long)


def _measure(report: Report, side: str, quick: bool, long: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="swarmlet-bench-") as name:
        folder = Path(name)
        with make_servers(side, folder / "rates", 3) as servers:
            rates(report, servers, SECONDS_QUICK if quick else SECONDS)
            snapshot_while_writing(report, servers, 5.0 if quick else 10.0)
        kills = KILLS_QUICK if quick else KILLS
        for preset in ("default", "lan") if side == OURS else ("default",):
            with make_servers(side, folder / preset, 3, preset=preset) as servers:
                failover(report, servers, kills, preset)
        for entries in (100_000, 1_000_000) if long else (100_000,):
            recovery(report, side, folder / f"log-{entries}", entries)


def load(
    servers: Servers,
    operation: str,
    *,
    clients: int,
    seconds: float,
    keys: int = 10_000,
    value_bytes: int = VALUE_BYTES,
) -> Found:
    """Load the leader from a process of its own; again, if another server leads meanwhile."""
    for _ in range(ATTEMPTS):
        found = Found.of(loading(servers, operation, clients, seconds, keys, value_bytes))
        if found.errors < len(found.taken):
            return found
    raise AssertionError(f"{servers.side}: no leader stays for {seconds:g} s")


def loading(
    servers: Servers,
    operation: str,
    clients: int,
    seconds: float,
    keys: int = 10_000,
    value_bytes: int = VALUE_BYTES,
) -> subprocess.Popen[str]:
    host, port = servers.leader().address
    numbers = [clients, seconds, keys, value_bytes]
    return subprocess.Popen(
        [sys.executable, "-m", "scripts.benchmarks.load", servers.kind, host, str(port), operation]
        + [str(number) for number in numbers],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def rates(report: Report, servers: Servers, seconds: float) -> None:
    side = servers.side
    load(servers, PUT, clients=8, seconds=1.0)  # what is made on first use
    for operation, verb, numbers in ((PUT, "write", WRITERS), (GET, "read", READERS)):
        for clients in numbers:
            found = load(servers, operation, clients=clients, seconds=seconds)
            what = f"{verb}, {clients} client{'s' * (clients > 1)}"
            if found.errors:
                report.remark(f"{side}: {found.errors} errors in {what}")
            report.add(side, what, "/s", found.rate, better="more")
            report.add(side, f"{what}: p50", "ms", found.percentile(50) * 1000)
            report.add(side, f"{what}: p99", "ms", found.percentile(99) * 1000)
    resident = [memory_of(server.pid)[0] / MIB for server in servers.members]
    proportional = [memory_of(server.pid)[1] / MIB for server in servers.members]
    report.add(side, "memory after that, the largest of three (RSS)", "MiB", max(resident))
    report.add(side, "memory after that, the largest of three (PSS)", "MiB", max(proportional))


def snapshot_while_writing(report: Report, servers: Servers, seconds: float) -> None:
    """Have a state of 50 MB copied while clients write; they must not notice."""
    side = servers.side
    servers.fill(BIG_VALUES, BIG_VALUE_BYTES)
    before = load(servers, PUT, clients=64, seconds=seconds)
    writing = loading(servers, PUT, 64, seconds)
    time.sleep(0.5)
    began = time.monotonic()
    servers.snapshot()
    report.add(side, "snapshot of a 50 MB state", "s", time.monotonic() - began)
    found = Found.of(writing)
    what = "write, 64 clients, 50 MB state"
    report.add(side, f"{what}: p99 without a snapshot", "ms", before.percentile(99) * 1000)
    report.add(side, f"{what}: p99 with one", "ms", found.percentile(99) * 1000)
    report.add(side, f"{what}: longest with one", "ms", found.percentile(100) * 1000)
    largest = max(memory_of(server.pid)[0] / MIB for server in servers.members)
    report.add(side, "memory with a 50 MB state (RSS)", "MiB", largest)


def failover(report: Report, servers: Servers, kills: int, preset: str) -> None:
    """From kill -9 of the leader until a survivor accepts a write."""
    taken = []
    for _ in range(kills):
        leader = servers.leader()
        survivors = [server for server in servers.members if server is not leader]
        time.sleep(0.5)
        began = time.monotonic()
        leader.end()
        until_accepted(servers.kind, [server.address for server in survivors])
        taken.append(time.monotonic() - began)
        leader.start()
        servers.wait_whole()
    taken.sort()
    what = "leader killed until the next write"
    if preset != "default":
        what = f"{what}, {preset} preset"
    report.add(servers.side, f"{what}: median", "s", taken[len(taken) // 2])
    report.add(servers.side, f"{what}: longest of {kills}", "s", taken[-1])


def recovery(report: Report, side: str, folder: Path, entries: int) -> None:
    """One server whose log has so many entries, a write of 256 bytes each, starts again."""
    servers = servers_with_log(side, folder, entries, VALUE_BYTES)
    report.add(side, f"log of {entries:,} entries: on the disk", "MiB", size_of(folder) / MIB)
    server = servers.members[0]
    began = time.monotonic()
    server.start()
    try:
        until_accepted(servers.kind, [server.address], within=PATIENCE)
        what = f"log of {entries:,} entries: started"
        report.add(side, f"{what} until it writes", "s", time.monotonic() - began)
        report.add(side, f"{what}, memory (RSS)", "MiB", memory_of(server.pid)[0] / MIB)
    finally:
        servers.end()
