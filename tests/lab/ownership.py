"""Labs on the disk: claiming a number, and clearing away what a dead owner left. Sync."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from tests.lab import kernel
from tests.lab.host import DEATH_SECONDS
from tests.lab.network import MARK, LabError

#: Folders of labs, by number. On the disk and not in /tmp, which may be a tmpfs: states are there.
BASE = Path("/var/tmp/swarmlet-lab")
#: Numbers of labs: the third part of their addresses.
LABS_MAX = 250


def cgroup_of(lab: int) -> str:
    return f"swarmlet-lab-{lab}"


@contextlib.contextmanager
def _alone() -> Iterator[TextIO]:
    """Keep others from claiming and reaping: who found a lab dead may not clear the next one."""
    BASE.mkdir(mode=0o755, exist_ok=True)
    with (BASE / "last").open("a+") as last:
        fcntl.flock(last, fcntl.LOCK_EX)
        yield last


def claim(kept: bool) -> tuple[int, Path]:
    """Take the next free number. The folder appears with its owner in it, in one step.

    As with pids, a number comes back late: whoever looks what is left of a lab that has ended must
    not see the next one.
    """
    with _alone() as last:
        last.seek(0)
        number, folder = _claim(kept, int(last.read() or 0))
        last.truncate(0)
        last.write(str(number))
        return number, folder


def _claim(kept: bool, last: int) -> tuple[int, Path]:
    draft = Path(tempfile.mkdtemp(prefix="draft-", dir=BASE))
    draft.chmod(0o755)
    write_handle(draft / "owner", os.getpid())
    if kept:
        (draft / "kept").touch()
    for step in range(LABS_MAX):
        number = (last + step) % LABS_MAX + 1
        folder = BASE / str(number)
        try:
            draft.rename(folder)  # fails over a folder that is not empty, and ours never are
        except OSError:
            continue
        return number, folder
    shutil.rmtree(draft)
    raise LabError(f"{LABS_MAX} labs are in use: {BASE}")


def write_handle(path: Path, pid: int) -> None:
    path.write_text(f"{pid} {kernel.start_time(pid)}\n")


def living(handle: Path) -> int | None:
    """The pid that was written to *handle*, if that very process still runs."""
    try:
        pid, start = handle.read_text().split()
    except (OSError, ValueError):
        return None
    return int(pid) if str(kernel.start_time(int(pid))) == start else None


def labs() -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(BASE) if name.isdigit())
    except FileNotFoundError:
        return []


def is_dead(number: int) -> bool:
    """Whether nobody wants this lab any more. A kept one lives as long as one of its hosts."""
    folder = BASE / str(number)
    if living(folder / "owner"):
        return False
    hosts = [living(handle) for handle in folder.glob("h*/first")]
    return not ((folder / "kept").exists() and any(hosts))


def reap_dead_labs() -> list[int]:
    """Remove the labs whose owner was killed before it could, and say which."""
    with _alone():
        dead = [number for number in labs() if is_dead(number)]
        for number in dead:
            remove(number)
    return dead


def remove(number: int) -> None:
    """End the hosts of a lab and remove all that is left of it. Twice is as good as once.

    Raises:
        LabError: something would not go. The number stays taken.
    """
    folder = BASE / str(number)
    deadline = time.monotonic() + DEATH_SECONDS
    handles = [*folder.glob("h*/first"), folder / "network"]
    while True:
        kernel.thaw(cgroup_of(number))
        alive = {pid for handle in handles if (pid := living(handle))} | members(number)
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not alive and not kernel.remove_cgroups(cgroup_of(number)):
            left = [what for what in leftovers(number) if what != f"folder {folder}"]
            if not left:
                break
        if time.monotonic() > deadline:
            raise LabError(f"lab {number} does not go away: {leftovers(number)}")
        time.sleep(0.02)
    # In one step: from here on the number may be somebody else's.
    gone = Path(tempfile.mkdtemp(prefix="gone-", dir=BASE))
    with contextlib.suppress(FileNotFoundError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def members(number: int) -> set[int]:
    """Processes of lab *number*: by the mark in their environment, or by their cgroup."""
    mark, cgroup = f"{MARK}={number}", cgroup_of(number)
    return {
        pid
        for pid in kernel.pids()
        if (kernel.environment_has(pid, mark) or kernel.in_cgroup(pid, cgroup))
        and kernel.start_time(pid) is not None
        and pid != os.getpid()
    }


def leftovers(number: int) -> list[str]:
    """What this machine still has of lab *number*: processes, cgroups, mounts, its folder.

    Links, rules and names of namespaces cannot be left: they lived in the hosts' namespaces.
    """
    found = [f"process {pid} {kernel.command_of(pid)}" for pid in sorted(members(number))]
    found += [f"cgroup {path}" for path in kernel.cgroups(cgroup_of(number))]
    folder = BASE / str(number)
    found += [f"mount {path}" for path in kernel.mounts() if Path(path).is_relative_to(folder)]
    if folder.exists():
        found.append(f"folder {folder}")
    return found
