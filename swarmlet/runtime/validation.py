"""What is nonsense in a spec: one function for each part, one sentence for each error.

Pure. Each raises SpecError with the path of the first field that cannot be meant, or that the
kernel could not keep.
"""

from __future__ import annotations

import posixpath
import re
import signal
from collections.abc import Mapping

from swarmlet.runtime import defaults
from swarmlet.runtime.decoding import SpecError
from swarmlet.runtime.parts import File, IdMapping, Mount, Namespaces, Process, Resources, Root

CONTAINER_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
#: Bytes of all secret and config files of one container.
FILES_BYTES_MAX = 8 << 20
_RLIMITS = (
    "AS CORE CPU DATA FSIZE MEMLOCK MSGQUEUE NICE NOFILE NPROC RSS RTPRIO RTTIME SIGPENDING STACK"
)
RLIMITS = frozenset(f"RLIMIT_{name}" for name in _RLIMITS.split())
#: user_namespaces(7): extents of one map.
MAPPINGS_MAX = 340


def validate_process(process: Process, path: str = "process") -> None:
    """Raise SpecError for the first thing in *process* that cannot be meant."""
    require(bool(process.args) and bool(process.args[0]), f"{path}.args", "must not be empty")
    for name, values in (("args", process.args), ("env", process.env)):
        for index, value in enumerate(values):
            require("\0" not in value, f"{path}.{name}[{index}]", "holds a NUL byte")
    for index, value in enumerate(process.env):
        require("=" in value[1:], f"{path}.env[{index}]", f"must be NAME=VALUE, not {value!r}")
    absolute(f"{path}.cwd", process.cwd)
    for name in ("bounding", "effective", "permitted", "inheritable", "ambient"):
        for capability in getattr(process.capabilities, name):
            require(
                capability in defaults.CAPABILITY_NUMBERS,
                f"{path}.capabilities.{name}",
                f"there is no {capability!r}",
            )
    for index, rlimit in enumerate(process.rlimits):
        require(
            rlimit.type in RLIMITS, f"{path}.rlimits[{index}].type", f"there is no {rlimit.type!r}"
        )
        require(
            rlimit.hard < 0 or 0 <= rlimit.soft <= rlimit.hard,
            f"{path}.rlimits[{index}]",
            f"the soft limit {rlimit.soft} is above the hard limit {rlimit.hard}",
        )
    require(
        -1000 <= process.oom_score_adj <= 1000, f"{path}.oom_score_adj", "must be -1000 to 1000"
    )
    user = process.user
    require(bool(user.user), f"{path}.user.user", "must not be empty")
    for name in (user.user, user.group, *user.additional_groups):
        require(
            not set(":\n\0") & set(name) and not (name.isdecimal() and int(name) >= 2**32 - 1),
            f"{path}.user",
            f"{name!r} is no user or group",
        )


def validate_resources(resources: Resources, path: str = "resources") -> None:
    """Raise SpecError for the first limit that the kernel could not keep."""
    memory, swap = resources.memory_bytes, resources.memory_swap_bytes
    for name in ("memory_bytes", "memory_reservation_bytes", "pids_max"):
        value = getattr(resources, name)
        require(value is None or value > 0, f"{path}.{name}", "must be above 0")
    require(
        memory is None or memory >= 512 << 10,
        f"{path}.memory_bytes",
        "is below what a process needs to start: give at least 512 KiB",
    )
    require(
        swap is None or swap == -1 or (memory is not None and swap >= memory),
        f"{path}.memory_swap_bytes",
        "is memory and swap together: it must be -1 or at least memory_bytes",
    )
    require(
        resources.cpu_quota_us is None or resources.cpu_quota_us >= 1000,
        f"{path}.cpu_quota_us",
        "must be at least 1000 (one hundredth of a CPU)",
    )
    require(
        1000 <= resources.cpu_period_us <= 1_000_000,
        f"{path}.cpu_period_us",
        "must be 1000 to 1000000",
    )
    require(
        resources.cpu_shares is None or 2 <= resources.cpu_shares <= 262144,
        f"{path}.cpu_shares",
        "must be 2 to 262144",
    )
    for name in ("cpuset_cpus", "cpuset_mems"):
        value = getattr(resources, name)
        require(
            value is None or re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", value) is not None,
            f"{path}.{name}",
            f"must be like 0-2,4, not {value!r}",
        )
    for index, limit in enumerate(resources.io):
        require(
            re.fullmatch(r"\d+:\d+", limit.device) is not None,
            f"{path}.io[{index}].device",
            f"must be MAJOR:MINOR, not {limit.device!r}",
        )
    for index, pages in enumerate(resources.hugetlb):
        require(
            re.fullmatch(r"[1-9]\d*[KMG]B", pages.page_size) is not None,
            f"{path}.hugetlb[{index}].page_size",
            f"must be like 2MB, not {pages.page_size!r}",
        )
        require(
            pages.limit_bytes >= 0, f"{path}.hugetlb[{index}].limit_bytes", "must not be negative"
        )


def signal_number(name: str) -> int:
    """Return the number of a signal given as SIGTERM, TERM or 15."""
    if name.isdecimal() and 1 <= int(name) <= 64:
        return int(name)
    full = f"SIG{name.upper().removeprefix('SIG')}"
    try:
        return signal.Signals[full].value
    except KeyError:
        raise SpecError(f"stop_signal: there is no signal {name!r}") from None


def validate_root(root: Root) -> None:
    require(bool(root.layers), "root.layers", "must not be empty")
    # overlayfs: OVL_MAX_STACK is 500, but 128 is where Docker stops and images stay below.
    require(len(root.layers) <= 128, "root.layers", "has more than 128 layers")
    for index, layer in enumerate(root.layers):
        absolute(f"root.layers[{index}]", layer)
    if root.upper is not None:
        absolute("root.upper", root.upper)


def validate_mount(path: str, mount: Mount) -> None:
    absolute(f"{path}.target", mount.target)
    target = posixpath.normpath(mount.target)
    require(
        target not in ("/", "/proc", "/dev", "/sys") and not target.startswith("/proc/"),
        f"{path}.target",
        f"{target} belongs to the runtime",
    )
    if mount.type == "tmpfs":
        require(not mount.source, f"{path}.source", "a tmpfs has none")
        require(
            mount.size_bytes is None or mount.size_bytes > 0,
            f"{path}.size_bytes",
            "must be above 0",
        )
    else:
        absolute(f"{path}.source", mount.source)


def validate_files(files: tuple[File, ...]) -> None:
    for index, file in enumerate(files):
        absolute(f"files[{index}].path", file.path)
        require(
            posixpath.normpath(file.path) != "/", f"files[{index}].path", "must be a file, not /"
        )
    total = sum(len(file.content) for file in files)
    require(total <= FILES_BYTES_MAX, "files", f"hold {total} bytes, more than {FILES_BYTES_MAX}")


def validate_namespaces(namespaces: Namespaces) -> None:
    for name in ("pid", "network", "ipc", "uts", "cgroup", "user"):
        value = getattr(namespaces, name)
        allowed = ("private", "host", "network") if name == "user" else ("private", "host")
        require(
            value in allowed or value.startswith("/"),
            f"namespaces.{name}",
            f"must be {', '.join(allowed)} or an absolute path, not {value!r}",
        )
    require(
        namespaces.user != "network" or namespaces.network.startswith("/"),
        "namespaces.user",
        "is that of a network, but none is joined",
    )
    # proc(5): only who owns a PID namespace may mount its /proc.
    require(
        namespaces.user not in ("private", "network") or not namespaces.pid.startswith("/"),
        "namespaces.pid",
        "is another container's: join its user namespace too, or use namespaces.user=host",
    )


def validate_mappings(path: str, namespaces: Namespaces, mappings: tuple[IdMapping, ...]) -> None:
    require(not mappings or namespaces.user != "host", path, "go with a user namespace of its own")
    require(len(mappings) <= MAPPINGS_MAX, path, f"are more than {MAPPINGS_MAX}")
    for index, mapping in enumerate(mappings):
        numbers = (mapping.container_id, mapping.host_id, mapping.size)
        good = min(numbers) >= 0 and mapping.size > 0
        good = good and max(numbers[:2]) + mapping.size < 1 << 32
        require(good, f"{path}[{index}]", "must lie within 0 to 4294967294 and hold something")
    require(
        not mappings or any(m.container_id == 0 for m in mappings),
        path,
        "must map the container's root (container_id 0)",
    )


def validate_sysctls(
    sysctls: Mapping[str, str], namespaces: Namespaces, field: str = "sysctls"
) -> None:
    for name in sysctls:
        path = f"{field}.{name}"
        clean = re.fullmatch(r"[a-zA-Z0-9_-]+([./][a-zA-Z0-9_:-]+)+", name) is not None
        require(clean, path, "is no name of a sysctl")
        if name in defaults.IPC_SYSCTLS or name.startswith("fs.mqueue."):
            require(namespaces.ipc != "host", path, "would change the host's: ipc is host")
        elif name.startswith("net."):
            require(namespaces.network != "host", path, "would change the host's: network is host")
        else:
            raise SpecError(f"{path}: belongs to the whole host, not to a container")


def validate_access(path: str, access: str) -> None:
    require(bool(access) and set(access) <= set("rwm"), path, f"must be of r, w, m, not {access!r}")


def absolute(path: str, value: str) -> None:
    require(
        value.startswith("/") and "\0" not in value,
        path,
        f"must be an absolute path, not {value!r}",
    )
    require(".." not in value.split("/"), path, f"must not climb with '..': {value!r}")


def require(condition: bool, path: str, problem: str) -> None:
    if not condition:
        raise SpecError(f"{path}: {problem}")
