"""A replica on a real file system that runs full, and one that is killed: level 4."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from raft.boot import bootstrap, load
from raft.disk import Directory
from raft.machine import Committed, Dropped, Unknown
from raft.messages import Message, ServerId
from raft.replica import Replica
from raft.snapshots import SnapshotHeader

pytestmark = pytest.mark.level4

KEY = bytes(range(32))
CLUSTER = b"cluster-of-tests"
SEGMENT = 1 << 20


class Count:
    """A state machine that only counts."""

    def __init__(self) -> None:
        self.count = 0

    def apply(self, index: int, position: int, term: int, command: bytes) -> object:
        self.count += 1
        return self.count

    def snapshot(self) -> Callable[[], bytes]:
        count = self.count
        return lambda: b"%d" % count

    def restore(self, index: int, data: bytes) -> None:
        self.count = int(data)


class NoWires:
    """The transport of a server that is alone."""

    def send(self, to: ServerId, message: Message) -> None:
        raise AssertionError("there is nobody")

    async def send_snapshot(
        self, to: ServerId, header: SnapshotHeader, chunks: AsyncIterator[bytes]
    ) -> None:
        raise AssertionError("there is nobody")


def replica_at(directory: Path) -> Replica:
    return Replica(
        directory=directory,
        key=KEY,
        machine=Count(),
        transport=NoWires(),
        rng=random.Random(1),
        cluster=CLUSTER,
        segment_bytes=SEGMENT,
    )


async def leading(replica: Replica) -> None:
    status = replica.status
    while not status.leads:
        status = await replica.wait_for_change(status)


async def fill(directory: Path) -> None:
    """Write until the file system of *directory* is full, make room, and write on."""
    ballast = directory.parent / "ballast"
    ballast.write_bytes(bytes(2 << 20))
    bootstrap(directory, KEY, CLUSTER, segment_bytes=SEGMENT)
    replica = replica_at(directory)
    async with trio.open_nursery() as nursery:
        await nursery.start(replica.run)
        await leading(replica)
        written = 0
        while not replica.status.disk_full:
            outcome = await replica.propose(bytes(50_000), timeout=2)
            written += isinstance(outcome, Committed)
        assert written > 10
        assert isinstance(outcome, Unknown)
        refused = await replica.propose(b"x", timeout=2)
        assert refused == Dropped("the disk of the leader is full")
        ballast.unlink()
        status = replica.status
        while status.disk_full:
            status = await replica.wait_for_change(status)
        outcome = await replica.propose(b"y", timeout=5)
        # The one that was unknown has taken effect after all.
        assert isinstance(outcome, Committed)
        assert outcome.result == written + 2
        nursery.cancel_scope.cancel()


async def write_for_ever(directory: Path) -> None:
    """Write, and say after each answer how many there are."""
    replica = replica_at(directory)
    async with trio.open_nursery() as nursery:
        await nursery.start(replica.run)
        await leading(replica)
        while True:
            outcome = await replica.propose(b"x" * 200, timeout=5)
            assert isinstance(outcome, Committed)
            print(outcome.result, flush=True)


def run_as(*command: str) -> list[str]:
    return [sys.executable, "-m", "tests.raft.test_real_disk", *command]


@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
def test_a_file_system_that_is_full_stops_answers_until_there_is_room(tmp_path: Path) -> None:
    """On a tmpfs of 5 MiB, in a mount namespace of its own that ends with the process."""
    run = subprocess.run(
        ["unshare", "--mount", *run_as("fill", str(tmp_path))], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_what_was_answered_before_a_kill_is_there(tmp_path: Path) -> None:
    bootstrap(tmp_path, KEY, CLUSTER, segment_bytes=SEGMENT)
    answered = 0
    for seconds in (0.0, 0.1, 0.3):
        with subprocess.Popen(
            run_as("write", str(tmp_path)), stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            for line in process.stdout:
                assert int(line) > answered
                answered = int(line)
                if answered > 200 * (1 + seconds):
                    break
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split()
            answered = max(answered, *map(int, rest)) if rest else answered
    disk = Directory(tmp_path)
    booted = load(disk, KEY, CLUSTER, segment_bytes=SEGMENT)
    entries = booted.storage.entries(booted.storage.first_index, booted.storage.last_index + 1)
    disk.close()
    assert sum(len(entry.data) > 200 for entry in entries) >= answered


def main(what: str, place: str) -> None:
    directory = Path(place)
    if what == "fill":
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(directory)], check=True
        )
        trio.run(fill, directory / "raft")
    else:
        trio.run(write_for_ever, directory)


if __name__ == "__main__":
    main(*sys.argv[1:])
