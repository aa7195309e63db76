"""The kernel: its version, its features as the probe tried them, and the layout of cgroups."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from swarmlet.doctor.findings import NOT_TRIED, Finding, Status, feature

KERNEL, CGROUPS = "kernel", "cgroups"
#: Seconds that the probe may take; loading modules on a small board is the longest.
PROBE_SECONDS = 60.0
#: clone3 with CLONE_INTO_CGROUP is 5.7, close_range 5.9; Debian 11 has 5.10.
VERSION_MIN = (5, 10)
#: cgroup.kill is 5.14, idmapped mounts are 5.12; Debian 12 has 6.1.
VERSION_GOOD = (5, 14)

#: feature of the probe -> (what for, how to get it, whether swarmlet runs without it)
FEATURES: dict[str, tuple[str, str, bool]] = {
    "mount namespace": ("containers", "a kernel with CONFIG_NAMESPACES", False),
    "PID namespace": ("containers", "a kernel with CONFIG_PID_NS", False),
    "network namespace": ("containers and overlay networks", "a kernel with CONFIG_NET_NS", False),
    "UTS namespace": ("host names of containers", "a kernel with CONFIG_UTS_NS", False),
    "IPC namespace": ("shared memory of containers", "a kernel with CONFIG_IPC_NS", False),
    "cgroup namespace": ("containers do not see the host's cgroups", "Linux 4.6 or newer", True),
    "user namespace": (
        "root in a container is nobody outside",
        "sysctl user.max_user_namespaces above 0, or a kernel with CONFIG_USER_NS",
        True,
    ),
    "seccomp": (
        "system calls that containers do not need are refused",
        "CONFIG_SECCOMP_FILTER",
        False,
    ),
    "overlayfs": (
        "the layers of images",
        "modprobe overlay, and a state folder on ext4, xfs or btrfs: not NFS, not an overlay",
        False,
    ),
    "veth": ("the network card of a task", "modprobe veth", False),
    "bridge": ("tasks of one network on one host", "modprobe bridge", False),
    "vxlan": ("tasks of one network on many hosts", "modprobe vxlan", False),
    "nftables": (
        "VIPs, published ports and masquerading",
        "apt-get install libnftables1; modprobe nf_tables nft_chain_nat nft_numgen nft_fib_ipv4",
        False,
    ),
    "tun": ("encrypted networks by wireguard-go", "modprobe tun", True),
    "wireguard": (
        "encrypted networks in the kernel, 20 times as fast as wireguard-go",
        "a kernel with CONFIG_WIREGUARD (Debian's has it), or apt-get install wireguard-go",
        True,
    ),
}
#: controller -> (what for, whether swarmlet runs without it)
CONTROLLERS: dict[str, tuple[str, bool]] = {
    "memory": ("memory limits and the notice of an OOM kill", False),
    "cpu": ("cpu limits", False),
    "pids": ("limits of the number of processes", False),
    "cpuset": ("tasks on chosen cpus", True),
    "io": ("limits of disk throughput", True),
}
#: The same controllers' names on version 1.
VERSION_1_NAMES = {"io": "blkio"}
BOOT_OPTIONS = {"memory": "cgroup_enable=memory cgroup_memory=1", "cpuset": "cgroup_enable=cpuset"}


def examine(folder: Path) -> list[Finding]:
    return [
        version(platform.release()),
        *features(probe(folder)),
        pressure(),
        *cgroups(Path("/proc/self/mountinfo").read_text()),
    ]


def version(release: str) -> Finding:
    """Judge a kernel by what uname calls its release."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    why = "each release brought something that containers are made of"
    if numbers >= VERSION_GOOD:
        status, fix = Status.FOUND, ""
    elif numbers >= VERSION_MIN:
        status = Status.DEGRADED
        fix = "Linux 5.14 or newer: containers are killed at once, files are idmapped"
    else:
        status, fix = Status.MISSING, "Linux 5.10 or newer, better 5.14: Debian 12 has 6.1"
    return Finding(
        group=KERNEL, name="version", status=status, detail=f"Linux {release}", why=why, fix=fix
    )


def probe(folder: Path) -> Mapping[str, str | None]:
    """Let the probe try the features in namespaces of its own."""
    if os.geteuid() != 0:
        return dict.fromkeys(FEATURES, NOT_TRIED)
    argv = [sys.executable, "-m", "swarmlet.doctor.probe", str(folder)]
    try:
        done = subprocess.run(  # noqa: TID251 (a command of the user's, not the daemon)
            argv, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True
        )
        results: dict[str, str | None] = json.loads(done.stdout)
    except subprocess.CalledProcessError as error:
        words = (error.stderr or "").strip().splitlines()
        return dict.fromkeys(FEATURES, f"the probe failed: {words[-1] if words else error}")
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return dict.fromkeys(FEATURES, f"the probe failed: {error}")
    return results


def features(results: Mapping[str, str | None]) -> list[Finding]:
    return [
        feature(
            KERNEL,
            name,
            results.get(name, "the probe did not try it"),
            why=why,
            fix=fix,
            optional=optional,
        )
        for name, (why, fix, optional) in FEATURES.items()
    ]


def cgroups(mountinfo: str) -> list[Finding]:
    """Judge the layout of cgroups from what the kernel says is mounted, and where."""
    version_1: set[str] = set()
    unified: list[str] = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = (*after.split(" "), "", "")[:3]
        if kind == "cgroup2":
            unified.append(before.split(" ")[4])
        elif kind == "cgroup":
            version_1 |= set(options.split(","))
    controllers = read_controllers(unified[0]) if unified else set()
    why = "limits and accounting of containers, and their end"
    if not unified:
        layout, status = "no cgroup2 is mounted", Status.MISSING
        fix = (
            "mount -t cgroup2 none /sys/fs/cgroup/unified, or boot with systemd's unified hierarchy"
        )
    elif version_1:
        layout, status = "version 1 with a cgroup2 beside it (hybrid)", Status.DEGRADED
        fix = "the pure version 2: boot with systemd.unified_cgroup_hierarchy=1"
    else:
        layout, status, fix = "version 2", Status.FOUND, ""
    found = [Finding(group=CGROUPS, name="layout", status=status, detail=layout, why=why, fix=fix)]
    for name, (purpose, optional) in CONTROLLERS.items():
        there = name in controllers or VERSION_1_NAMES.get(name, name) in version_1
        boot = BOOT_OPTIONS.get(name)
        fix = f"boot with {boot}" if boot else f"a kernel with the controller {name}"
        error = None if there else "the kernel does not offer it"
        found.append(
            feature(CGROUPS, name, error, why=purpose, fix=fix, optional=optional, detail="there")
        )
    return found


def read_controllers(root: str) -> set[str]:
    try:
        return set(Path(root, "cgroup.controllers").read_text().split())
    except OSError:
        return set()


def pressure() -> Finding:
    there = Path("/proc/pressure/memory").exists()
    return feature(
        KERNEL,
        "pressure stall information",
        None if there else "no /proc/pressure",
        why="how much tasks wait for cpu, memory and disk, in statistics",
        fix="boot with psi=1",
        optional=True,
        detail="there",
    )
