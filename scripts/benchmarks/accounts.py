"""What the processes of a host cost: memory, processor time and bytes sent to the disk."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from tests.lab import Host

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Account:
    """The sum over the programs of a host: daemon and helpers, not what is in containers."""

    processes: int = 0
    resident_bytes: int = 0
    proportional_bytes: int = 0  # shared pages divided by their users (PSS)
    written_bytes: int = 0  # caused to be written to the disk
    cpu_seconds: float = 0.0


def account(*hosts: Host) -> Account:
    pids = [process.pid for host in hosts for process in host.processes() if not process.nested]
    memory = [memory_of(pid) for pid in pids]
    return Account(
        processes=len(pids),
        resident_bytes=sum(resident for resident, _ in memory),
        proportional_bytes=sum(proportional for _, proportional in memory),
        written_bytes=sum(written_by(pid) for pid in pids),
        cpu_seconds=sum(cpu_of(pid) for pid in pids),
    )


def fields_of(path: str) -> dict[str, int]:
    """The `name: number` lines of a file in /proc; none of a process that is gone."""
    found = {}
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            words = line.replace(":", " ").split()
            if len(words) > 1 and words[1].isdigit():
                found[words[0]] = int(words[1])
    return found


def memory_of(pid: int) -> tuple[int, int]:
    fields = fields_of(f"/proc/{pid}/smaps_rollup")
    return fields.get("Rss", 0) * 1024, fields.get("Pss", 0) * 1024


def written_by(pid: int) -> int:
    return fields_of(f"/proc/{pid}/io").get("write_bytes", 0)


def cpu_of(pid: int) -> float:
    """Exact, from the scheduler's own accounts: tick accounting misses what is short."""
    total = 0
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                total += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0])
    return total / 1e9


def size_of(folder: Path) -> int:
    """Bytes that a folder takes up on the disk."""
    return sum(
        os.lstat(os.path.join(root, name)).st_blocks * 512
        for root, _, names in os.walk(folder)
        for name in names
    )
