"""What `features`, `spec` and `events` print. Pure, but for the figures of a group."""

from __future__ import annotations

from typing import Any

from swarmlet.runtime import defaults
from swarmlet.runtime.host import Host
from swarmlet.runtime.oci.config import HOOKS, VERSION
from swarmlet.runtime.oci.mounts import CLEARS, PROPAGATION, SETS
from swarmlet.runtime.statistics import CgroupStats


def features(host: Host, seccomp_actions: list[str], operators: list[str]) -> dict[str, Any]:
    """Return what this runtime can do on this host (features.md, features-linux.md)."""
    words = [word for kind in PROPAGATION for word in (kind, f"r{kind}")]
    options = sorted({*SETS, *CLEARS, *words, "bind", "rbind", "tmpcopyup", "rro"})
    namespaces = ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"]
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": VERSION,
        "hooks": list(HOOKS),
        "mountOptions": options,
        "linux": {
            "namespaces": namespaces,
            "capabilities": list(defaults.CAPABILITIES[: host.last_capability + 1]),
            "cgroup": {
                "v1": host.hybrid,
                "v2": True,
                "systemd": False,
                "systemdUser": False,
                "rdma": False,
            },
            "seccomp": {
                "enabled": True,
                "actions": seccomp_actions,
                "operators": operators,
                "archs": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_X86_64"],
            },
            "apparmor": {"enabled": False},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": False}},
        },
        "annotations": {"org.opencontainers.runc.checkpoint.enabled": "false"},
    }


def template() -> dict[str, Any]:
    """Return a config.json to begin with: a shell in the folder rootfs, well confined."""
    held = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
    safe = ["nosuid", "noexec", "nodev"]
    mounts = [
        ("/proc", "proc", "proc", []),
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", "devpts", [*safe[:2], "newinstance", "ptmxmode=0666", "mode=0620"]),
        ("/dev/shm", "tmpfs", "shm", [*safe, "mode=1777", "size=65536k"]),
        ("/dev/mqueue", "mqueue", "mqueue", safe),
        ("/sys", "sysfs", "sysfs", [*safe, "ro"]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", [*safe, "relatime", "ro"]),
    ]
    return {
        "ociVersion": VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [f"PATH={defaults.PATH}", "TERM=xterm"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), held),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "swarmlet",
        "mounts": [
            {"destination": target, "type": kind, "source": source}
            | ({"options": options} if options else {})
            for target, kind, source, options in mounts
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [
                {"type": kind} for kind in ("pid", "network", "ipc", "uts", "cgroup", "mount")
            ],
            "maskedPaths": list(defaults.MASKED_PATHS),
            "readonlyPaths": list(defaults.READONLY_PATHS),
        },
    }


def stats_event(container_id: str, stats: CgroupStats) -> dict[str, Any]:
    """Return an event of type stats, in the form that runc prints and engines read."""
    memory = {"limit": stats.memory_limit_bytes or 0, "usage": stats.memory_usage_bytes}
    data = {
        "cpu": {
            "usage": {
                "total": stats.cpu_usage_us * 1000,
                "user": stats.cpu_user_us * 1000,
                "kernel": stats.cpu_system_us * 1000,
            },
            "throttling": {
                "throttledPeriods": stats.throttled_periods,
                "throttledTime": stats.throttled_us * 1000,
            },
        },
        "memory": {"usage": memory, "cache": stats.memory_inactive_file_bytes},
        "pids": {"current": stats.pids, "limit": stats.pids_limit or 0},
        "blkio": {
            "ioServiceBytesRecursive": [
                {"op": "Read", "value": stats.read_bytes},
                {"op": "Write", "value": stats.written_bytes},
            ]
        },
    }
    return {"type": "stats", "id": container_id, "data": data}
