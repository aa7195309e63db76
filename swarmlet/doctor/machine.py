"""The machine around the kernel: rights, libraries, tools, ports, clock, disk, memory, firewall."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from swarmlet import nft
from swarmlet.doctor.findings import NOT_TRIED, Finding, feature

RIGHTS, TOOLS, NETWORK, DISK, CLOCK, MEMORY = (
    "rights",
    "tools",
    "network",
    "disk",
    "clock",
    "memory",
)
#: linux/capability.h: bits of the capabilities that are looked at.
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_SYS_RESOURCE": 24}
LIBRARIES = {
    "libnftables.so.1": ("rules for VIPs and published ports", "apt-get install libnftables1"),
    "libseccomp.so.2": ("the seccomp filter of containers", "apt-get install libseccomp2"),
}
#: program -> (what for, how to get it); swarmlet itself calls none but wireguard-go.
PROGRAMS = {
    "docker": ("the stock client works at swarmlet's socket", "apt-get install docker-cli"),
    "wireguard-go": ("encrypted networks without the kernel's", "apt-get install wireguard-go"),
}
GIB = 1 << 30
#: Free bytes: less than the first and images hardly fit, less than the second and the log does not.
DISK_GOOD_BYTES, DISK_MIN_BYTES = 2 * GIB, GIB // 5
#: Seconds for a flush: above, every change of the cluster's state waits for this disk.
FLUSH_GOOD_SECONDS = 0.05
FLUSHES = 5
MEMORY_GOOD_BYTES = GIB // 4
#: Where an overlay cannot have its upper layer, or the state does not outlive a reboot.
BAD_FILE_SYSTEMS = {"nfs", "nfs4", "overlay", "cifs", "vfat", "9p", "fuseblk"}
FLEETING_FILE_SYSTEMS = {"tmpfs", "ramfs"}
#: A clock that is before this was never set: the year of this program.
YEAR_MIN = 2025
STA_UNSYNC = 0x40  # <sys/timex.h>


def rights() -> list[Finding]:
    root = os.geteuid() == 0
    status = Path("/proc/self/status").read_text()
    mask = int(
        next(line for line in status.splitlines() if line.startswith("CapEff")).split()[1], 16
    )
    found = [
        feature(
            RIGHTS,
            "root",
            None if root else f"user {os.geteuid()}",
            why="the daemon makes namespaces, mounts and links",
            fix="run the daemon as root: swarmlet install",
            optional=not root,  # this command is not the daemon
            detail="yes",
        )
    ]
    if root:
        found += [capability(name, bool(mask >> bit & 1)) for name, bit in CAPABILITIES.items()]
    return found


def capability(name: str, there: bool) -> Finding:
    return feature(
        RIGHTS,
        name,
        None if there else "taken away",
        why="limits above the daemon's own" if name == "CAP_SYS_RESOURCE" else "containers",
        fix="a machine or container that gives root all capabilities",
        optional=name == "CAP_SYS_RESOURCE",
        detail="there",
    )


def tools() -> list[Finding]:
    found = []
    for name, (why, fix) in LIBRARIES.items():
        try:
            ctypes.CDLL(name)
            error = None
        except OSError as failure:
            error = str(failure)
        found.append(feature(TOOLS, name, error, why=why, fix=fix, detail="loads"))
    for name, (why, fix) in PROGRAMS.items():
        path = shutil.which(name)
        error = None if path else "not on the PATH"
        found.append(
            feature(TOOLS, name, error, why=why, fix=fix, optional=True, detail=path or "")
        )
    return found


def ports(port: int, data_path_port: int, daemon_answers: bool) -> list[Finding]:
    """Whether the ports are free, or ours already."""
    wanted = [
        ("TCP", port, socket.SOCK_STREAM, "all streams between nodes"),
        ("UDP", port, socket.SOCK_DGRAM, "gossip"),
        ("UDP", data_path_port, socket.SOCK_DGRAM, "overlay networks (VXLAN)"),
    ]
    found = []
    for protocol, number, kind, why in wanted:
        error = try_port(kind, number)
        detail = "free"
        if error and daemon_answers:
            error, detail = None, "in use by the daemon that runs here"
        option = "--data-path-port" if number == data_path_port else "--listen"
        fix = f"stop what uses it, or choose another one with {option}"
        name = f"port {number}/{protocol}"
        found.append(feature(NETWORK, name, error, why=why, fix=fix, detail=detail))
    return found


def try_port(kind: int, number: int) -> str | None:
    with socket.socket(socket.AF_INET, kind) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(kind == socket.SOCK_STREAM))
        try:
            bound.bind(("", number))
            if kind == socket.SOCK_STREAM:
                bound.listen(1)
        except OSError as error:
            return "in use" if error.errno == errno.EADDRINUSE else str(error)
    return None


def daemon_answers(run_dir: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2)
        try:
            client.connect(str(run_dir / "swarmlet.sock"))
        except OSError:
            return False
    return True


def host_name(name: str) -> Finding:
    error = "every machine is called that" if name in ("", "localhost", "(none)") else None
    return feature(
        NETWORK,
        "host name",
        error,
        why="the node is shown by it",
        fix="hostnamectl set-hostname NAME, or swarmlet install --name NAME",
        optional=True,
        detail=name,
    )


def firewall(port: int, data_path_port: int) -> Finding:
    """Chains that drop what no rule allows."""
    why = "nodes must reach each other, and clients the published ports"
    fix = f"allow {port}/tcp, {port}/udp and {data_path_port}/udp between nodes, and forwarding"
    if os.geteuid() != 0:
        return feature(NETWORK, "firewall", NOT_TRIED, why=why, fix=fix)
    try:
        listed = json.loads(nft.connect()("list chains") or "{}")
    except (OSError, nft.NftError) as failure:
        return feature(NETWORK, "firewall", f"cannot be read: {failure}", why=why, fix=fix)
    chains = dropping(listed.get("nftables", []))
    return feature(
        NETWORK,
        "firewall",
        f"drops by default in {', '.join(chains)}" if chains else None,
        why=why,
        fix=fix,
        optional=True,
        detail="drops nothing by default",
    )


def dropping(entries: list[dict[str, Any]]) -> list[str]:
    """Names of base chains of the input and forward hooks whose policy is to drop. Pure."""
    chains = [entry["chain"] for entry in entries if "chain" in entry]
    return [
        f"{chain['family']} {chain['table']} {chain['name']}"
        for chain in chains
        if chain.get("hook") in ("input", "forward") and chain.get("policy") == "drop"
    ]


def clock(now: float, synchronised: bool | None) -> Finding:
    """Judge the clock: *synchronised* is what the kernel believes, None if it does not say."""
    year = time.gmtime(now).tm_year
    error = None
    if year < YEAR_MIN:
        error = f"it is {year} here: the clock was never set"
    elif synchronised is False:
        error = "not synchronised: nobody corrects it"
    return feature(
        CLOCK,
        "clock",
        error,
        why="times in logs, cron services, the lives of certificates and tokens",
        fix="apt-get install systemd-timesyncd, or chrony",
        optional=True,
        detail="set" if synchronised is None else "synchronised",
    )


def is_synchronised() -> bool | None:
    """adjtimex(2): the kernel's own belief."""
    buffer = ctypes.create_string_buffer(512)  # struct timex has 208 bytes on 64 bits
    state = ctypes.CDLL(None).adjtimex(buffer)
    if state < 0:
        return None
    long_size = ctypes.sizeof(ctypes.c_long)
    # modes is an int, padded to a long; offset, freq, maxerror, esterror are longs; then status.
    offset = 5 * long_size
    status = int.from_bytes(buffer.raw[offset : offset + 4], "little")
    return not status & STA_UNSYNC


def disk(folder: Path, kind: str, free_bytes: int, free_inodes: int, flush: float) -> list[Finding]:
    """Judge the file system that *folder* is on."""
    good, minimum = DISK_GOOD_BYTES / GIB, DISK_MIN_BYTES / GIB
    space = feature(
        DISK,
        "space",
        None if free_bytes >= DISK_GOOD_BYTES and free_inodes else f"{size(free_bytes)} free",
        why="images, volumes and the log",
        fix=f"free some: {good:.0f} GB are good, below {minimum:.1f} GB nothing works",
        optional=free_bytes >= DISK_MIN_BYTES and free_inodes > 0,
        detail=f"{size(free_bytes)} free at {folder}",
    )
    error = None
    if kind in BAD_FILE_SYSTEMS:
        error = f"{folder} is on {kind}, over which the kernel lays no overlay"
    elif kind in FLEETING_FILE_SYSTEMS:
        error = f"{folder} is on {kind}: this node forgets its swarm when it reboots"
    lasting = feature(
        DISK,
        "file system",
        error,
        why="containers' layers and the node's identity",
        fix="another --state-dir, on ext4, xfs or btrfs",
        optional=kind in FLEETING_FILE_SYSTEMS,
        detail=kind,
    )
    speed = feature(
        DISK,
        "flush",
        None if flush <= FLUSH_GOOD_SECONDS else f"{flush * 1000:.0f} ms",
        why="a manager answers only when its log is on the disk",
        fix="let this node be a worker, or give it a better disk or card",
        optional=True,
        detail=f"{flush * 1000:.1f} ms",
    )
    return [space, lasting, speed]


def size(number: int) -> str:
    return f"{number / GIB:.1f} GB"


def existing(folder: Path) -> Path:
    """*folder*, or the nearest of its parents that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def file_system_of(folder: Path, mountinfo: str) -> str:
    """The kind of file system that *folder* is on. Pure."""
    best, kind = -1, "unknown"
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        point = Path(before.split(" ")[4])
        if folder.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split(" ")[0]
    return kind


def flush_seconds(folder: Path) -> float:
    """The median time of a small append and fdatasync; 0 where we may not write."""
    times = []
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            for _ in range(FLUSHES):
                began = time.perf_counter()
                file.write(b"x" * 512)
                file.flush()
                os.fdatasync(file.fileno())
                times.append(time.perf_counter() - began)
    except OSError:
        return 0.0
    return statistics.median(times)


def memory(meminfo: str) -> Finding:
    total = int(meminfo.split("MemTotal:")[1].split()[0]) * 1024
    return feature(
        MEMORY,
        "memory",
        None if total >= MEMORY_GOOD_BYTES else f"{size(total)} in all",
        why="a manager needs 70 MB, a container 3 MB and its program's",
        fix="let this node be a worker with few tasks",
        optional=True,
        detail=f"{size(total)} in all",
    )


def examine(state_dir: Path, run_dir: Path, port: int, data_path_port: int) -> list[Finding]:
    folder = existing(state_dir)
    room = os.statvfs(folder)
    mountinfo = Path("/proc/self/mountinfo").read_text()
    return [
        *rights(),
        *tools(),
        *ports(port, data_path_port, daemon_answers(run_dir)),
        host_name(socket.gethostname()),
        firewall(port, data_path_port),
        clock(time.time(), is_synchronised()),
        *disk(
            folder,
            file_system_of(folder.resolve(), mountinfo),
            room.f_bavail * room.f_frsize,
            room.f_favail or int(room.f_files == 0),  # btrfs counts none
            flush_seconds(folder),
        ),
        memory(Path("/proc/meminfo").read_text()),
    ]
