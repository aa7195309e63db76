"""The first process of a lab host: makes the host's own view of the machine, then only reaps.

Run by `unshare` inside new mount, PID, network, UTS and IPC namespaces, as PID 1. Prints
`pid <its pid outside>` and `ready`, then becomes `cat` (or `sleep` for a lab that is kept):
standard input is the lifeline to the owner of the lab, and its end is the end of the host.
Whatever way the owner died, the kernel then ends every process in the PID namespace.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def cover(path: Path, source: Path) -> None:
    """Show *source* at *path* in this mount namespace only; what a link points to counts."""
    target = path.resolve()
    if target.is_relative_to("/run"):  # our own tmpfs: the file is not there yet
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text())
    elif target.exists():
        mount("--bind", str(source), str(target))


def main(name: str, folder: Path, mode: str) -> None:
    # Read before /proc is ours: the outer procfs names processes as the owner sees them.
    print("pid", os.readlink("/proc/self"), flush=True)
    mount("-t", "proc", "-o", "nosuid,nodev,noexec", "proc", "/proc")
    mount("-t", "tmpfs", "-o", "mode=755,nosuid,nodev", "tmpfs", "/run")
    # A sysfs shows the links of the network namespace it was mounted in. The cgroup mounts
    # below the old one move on top of the new one: hiding them is what `ip netns exec` does.
    Path("/run/cgroup").mkdir()
    mount("--rbind", "/sys/fs/cgroup", "/run/cgroup")
    mount("-t", "sysfs", "-o", "nosuid,nodev,noexec", "sysfs", "/sys")
    mount("--move", "/run/cgroup", "/sys/fs/cgroup")
    Path("/run/cgroup").rmdir()
    Path("/run/lock").mkdir(mode=0o1777)
    for file in ("hosts", "resolv.conf", "hostname"):
        cover(Path("/etc") / file, folder / "etc" / file)
    Path("/proc/sys/kernel/hostname").write_text(name)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # An ignored SIGCHLD survives exec and makes the kernel reap this process's children.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.chdir("/")
    print("ready", flush=True)
    if mode == "kept":
        os.execvp("sleep", ["sleep", "infinity"])
    os.execvp("cat", ["cat"])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
