"""What a container shall be: frozen values in the vocabulary of the OCI runtime specification.

Pure. `ContainerSpec` is what a caller writes; `from_json` and `to_json` are its file form, and
`validate` says what is nonsense in it, by path: `SpecError("process.args: must not be empty")`.
Sizes are bytes, times seconds unless a name says otherwise.
"""

from __future__ import annotations

import posixpath
import re
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from swarmlet.runtime import defaults
from swarmlet.runtime.decoding import SpecError, decode, encode

#: "private" (new and empty), "host" (the daemon's own), or the path of a namespace file.
Namespace: TypeAlias = str

CONTAINER_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
#: Bytes of all secret and config files of one container.
FILES_BYTES_MAX = 8 << 20
_RLIMITS = (
    "AS CORE CPU DATA FSIZE MEMLOCK MSGQUEUE NICE NOFILE NPROC RSS RTPRIO RTTIME SIGPENDING STACK"
)
RLIMITS = frozenset(f"RLIMIT_{name}" for name in _RLIMITS.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Who the process is: numbers, or names looked up in the root's /etc/passwd and /etc/group."""

    user: str = "0"
    group: str = ""  # empty: the user's own group, or 0 for an unknown number
    additional_groups: tuple[str, ...] = ()
    umask: int = 0o022

    @classmethod
    def parse(cls, text: str) -> User:
        """Read Docker's form, `USER[:GROUP]`; empty text is root."""
        user, _, group = text.partition(":")
        return cls(user=user or "0", group=group)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """The five sets of capabilities(7), as names with CAP_."""

    bounding: tuple[str, ...] = defaults.DEFAULT_CAPABILITIES
    effective: tuple[str, ...] = defaults.DEFAULT_CAPABILITIES
    permitted: tuple[str, ...] = defaults.DEFAULT_CAPABILITIES
    inheritable: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()

    @classmethod
    def adjusted(cls, *, add: Iterable[str] = (), drop: Iterable[str] = ()) -> Capabilities:
        """Docker's --cap-add and --cap-drop; ALL and names without CAP_ are understood."""
        added, dropped = _capability_names("add", add), _capability_names("drop", drop)
        everything = set(defaults.CAPABILITIES)
        chosen = everything if "ALL" in added else set(defaults.DEFAULT_CAPABILITIES)
        if "ALL" in dropped:
            # As Docker: with --cap-drop ALL only what is added by name is left.
            chosen = everything if "ALL" in added else set()
        chosen = (chosen | (added & everything)) - dropped
        names = tuple(name for name in defaults.CAPABILITIES if name in chosen)
        return cls(bounding=names, effective=names, permitted=names)


def _capability_names(path: str, names: Iterable[str]) -> set[str]:
    full = {"ALL" if n.upper() == "ALL" else f"CAP_{n.upper().removeprefix('CAP_')}" for n in names}
    for name in sorted(full - {"ALL", *defaults.CAPABILITIES}):
        raise SpecError(f"capabilities.{path}: there is no {name}")
    return full


@dataclass(frozen=True, slots=True, kw_only=True)
class Rlimit:
    type: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What runs. `args[0]` is looked up in the PATH of *env* when it has no slash."""

    args: tuple[str, ...]
    env: tuple[str, ...] = (f"PATH={defaults.PATH}",)
    cwd: str = "/"
    user: User = User()
    capabilities: Capabilities = Capabilities()
    no_new_privileges: bool = True
    rlimits: tuple[Rlimit, ...] = ()
    terminal: bool = False
    console_rows: int = 24
    console_columns: int = 80
    stdin: bool = False  # keep standard input open for attach; else it is /dev/null
    oom_score_adj: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """The root file system: *layers*, base first, under a writable layer.

    Without *upper* the runtime makes the writable layer and removes it with the container. With
    it (a path on a file system with xattrs) the caller owns it and it outlives the container.
    """

    layers: tuple[str, ...]
    upper: str | None = None
    readonly: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A bind mount, a volume (a bind whose source is made when missing) or a tmpfs."""

    target: str
    source: str = ""
    type: Literal["bind", "volume", "tmpfs"] = "bind"
    readonly: bool = False
    recursive: bool = True
    propagation: Literal["private", "slave", "shared"] = "private"
    options: tuple[Literal["nosuid", "nodev", "noexec"], ...] = ()
    size_bytes: int | None = None  # tmpfs; None is half of the memory, as the kernel's default
    mode: int = 0o1777  # tmpfs


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A secret or config: *content* appears at *path*, on a tmpfs, never on a disk."""

    path: str
    content: bytes
    uid: int = 0
    gid: int = 0
    mode: int = 0o444


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespaces:
    """Which of the kernel's namespaces are the container's own. The mount namespace always is."""

    pid: Namespace = "private"
    network: Namespace = "private"
    ipc: Namespace = "private"
    uts: Namespace = "private"
    cgroup: Namespace = "private"
    user: Namespace = "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class IoLimit:
    """Limits of a block device, `major:minor`; None is no limit."""

    device: str
    read_bytes_per_second: int | None = None
    write_bytes_per_second: int | None = None
    read_operations_per_second: int | None = None
    write_operations_per_second: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Limits; None is no limit. Field names follow the OCI's and Docker's."""

    memory_bytes: int | None = None
    memory_swap_bytes: int | None = None  # memory and swap together; -1 is unlimited
    memory_reservation_bytes: int | None = None
    cpu_quota_us: int | None = None  # microseconds of CPU in each period
    cpu_period_us: int = 100_000
    cpu_shares: int | None = None  # weight 2 to 262144, 1024 is normal
    cpuset_cpus: str | None = None  # "0-2,4"
    cpuset_mems: str | None = None
    pids_max: int | None = None
    io: tuple[IoLimit, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device node in the container, and the right to use it."""

    path: str
    type: Literal["c", "b"]
    major: int
    minor: int
    mode: int = 0o660
    uid: int = 0
    gid: int = 0
    access: str = "rwm"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRule:
    """One line of the device rules; "a" and None mean any."""

    allow: bool
    type: Literal["a", "c", "b"] = "a"
    major: int | None = None
    minor: int | None = None
    access: str = "rwm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seccomp:
    """The system call filter; *document* is Docker's JSON format when *profile* is custom."""

    profile: Literal["default", "unconfined", "custom"] = "default"
    document: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    driver: Literal["json-file", "none"] = "json-file"
    file_bytes_max: int = defaults.LOG_BYTES_MAX
    files_max: int = defaults.LOG_FILES_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    process: Process
    root: Root
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[Mount, ...] = ()
    files: tuple[File, ...] = ()
    hosts: str | None = None  # the text of /etc/hosts; None leaves the image's
    resolv_conf: str | None = None
    namespaces: Namespaces = Namespaces()
    resources: Resources = Resources()
    devices: tuple[Device, ...] = ()
    device_rules: tuple[DeviceRule, ...] = ()  # after the defaults, the last that fits decides
    sysctls: Mapping[str, str] = field(default_factory=dict)
    seccomp: Seccomp = Seccomp()
    masked_paths: tuple[str, ...] = defaults.MASKED_PATHS
    readonly_paths: tuple[str, ...] = defaults.READONLY_PATHS
    shm_bytes: int = defaults.SHM_BYTES
    stop_signal: str = defaults.STOP_SIGNAL
    stop_grace: float = defaults.STOP_GRACE
    log: LogConfig = LogConfig()
    annotations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: object) -> ContainerSpec:
        """Build and validate a spec from what json.loads returned."""
        spec = decode(cls, value)
        validate(spec)
        return spec

    def to_json(self) -> Any:
        return encode(self)

    def with_resources(self, resources: Resources) -> ContainerSpec:
        return replace(self, resources=resources)

    def without_secrets(self) -> ContainerSpec:
        """Return the spec as it may be written to a disk: the files' contents are left out."""
        return replace(self, files=tuple(replace(file, content=b"") for file in self.files))


def validate(spec: ContainerSpec) -> None:
    """Raise SpecError for the first thing in *spec* that cannot be meant."""
    validate_process(spec.process)
    _validate_root(spec.root)
    for path, name in (("hostname", spec.hostname), ("domainname", spec.domainname)):
        _require(len(name.encode()) <= 64 and "\0" not in name, path, "is longer than 64 bytes")
    for index, mount in enumerate(spec.mounts):
        _validate_mount(f"mounts[{index}]", mount)
    _validate_files(spec.files)
    for name in ("pid", "network", "ipc", "uts", "cgroup", "user"):
        value = getattr(spec.namespaces, name)
        _require(
            value in ("private", "host") or value.startswith("/"),
            f"namespaces.{name}",
            f"must be private, host or an absolute path, not {value!r}",
        )
    _require(
        spec.namespaces.user == "host",
        "namespaces.user",
        "user namespaces are not supported yet; use host",
    )
    validate_resources(spec.resources)
    for index, device in enumerate(spec.devices):
        _absolute(f"devices[{index}].path", device.path)
        _validate_access(f"devices[{index}].access", device.access)
    for index, rule in enumerate(spec.device_rules):
        _validate_access(f"device_rules[{index}].access", rule.access)
    _validate_sysctls(spec)
    for path in ("masked_paths", "readonly_paths"):
        for index, value in enumerate(getattr(spec, path)):
            _absolute(f"{path}[{index}]", value)
    _require(spec.shm_bytes > 0, "shm_bytes", "must be above 0")
    signal_number(spec.stop_signal)
    _require(spec.stop_grace >= 0, "stop_grace", "must not be negative")
    _require(spec.log.file_bytes_max >= 4096, "log.file_bytes_max", "must be at least 4096")
    _require(1 <= spec.log.files_max <= 100, "log.files_max", "must be 1 to 100")
    _require(
        (spec.seccomp.profile == "custom") == bool(spec.seccomp.document),
        "seccomp.document",
        "goes with the profile custom, and only with it",
    )


def validate_process(process: Process, path: str = "process") -> None:
    """Raise SpecError for the first thing in *process* that cannot be meant."""
    _require(bool(process.args) and bool(process.args[0]), f"{path}.args", "must not be empty")
    for name, values in (("args", process.args), ("env", process.env)):
        for index, value in enumerate(values):
            _require("\0" not in value, f"{path}.{name}[{index}]", "holds a NUL byte")
    for index, value in enumerate(process.env):
        _require("=" in value[1:], f"{path}.env[{index}]", f"must be NAME=VALUE, not {value!r}")
    _absolute(f"{path}.cwd", process.cwd)
    for name in ("bounding", "effective", "permitted", "inheritable", "ambient"):
        for capability in getattr(process.capabilities, name):
            _require(
                capability in defaults.CAPABILITY_NUMBERS,
                f"{path}.capabilities.{name}",
                f"there is no {capability!r}",
            )
    for index, rlimit in enumerate(process.rlimits):
        _require(
            rlimit.type in RLIMITS, f"{path}.rlimits[{index}].type", f"there is no {rlimit.type!r}"
        )
        _require(
            rlimit.hard < 0 or 0 <= rlimit.soft <= rlimit.hard,
            f"{path}.rlimits[{index}]",
            f"the soft limit {rlimit.soft} is above the hard limit {rlimit.hard}",
        )
    _require(
        -1000 <= process.oom_score_adj <= 1000, f"{path}.oom_score_adj", "must be -1000 to 1000"
    )
    user = process.user
    _require(bool(user.user), f"{path}.user.user", "must not be empty")
    for name in (user.user, user.group, *user.additional_groups):
        _require(
            not set(":\n\0") & set(name) and not (name.isdecimal() and int(name) >= 2**32 - 1),
            f"{path}.user",
            f"{name!r} is no user or group",
        )


def validate_resources(resources: Resources, path: str = "resources") -> None:
    """Raise SpecError for the first limit that the kernel could not keep."""
    memory, swap = resources.memory_bytes, resources.memory_swap_bytes
    for name in ("memory_bytes", "memory_reservation_bytes", "pids_max"):
        value = getattr(resources, name)
        _require(value is None or value > 0, f"{path}.{name}", "must be above 0")
    _require(
        memory is None or memory >= 512 << 10,
        f"{path}.memory_bytes",
        "is below what a process needs to start: give at least 512 KiB",
    )
    _require(
        swap is None or swap == -1 or (memory is not None and swap >= memory),
        f"{path}.memory_swap_bytes",
        "is memory and swap together: it must be -1 or at least memory_bytes",
    )
    _require(
        resources.cpu_quota_us is None or resources.cpu_quota_us >= 1000,
        f"{path}.cpu_quota_us",
        "must be at least 1000 (one hundredth of a CPU)",
    )
    _require(
        1000 <= resources.cpu_period_us <= 1_000_000,
        f"{path}.cpu_period_us",
        "must be 1000 to 1000000",
    )
    _require(
        resources.cpu_shares is None or 2 <= resources.cpu_shares <= 262144,
        f"{path}.cpu_shares",
        "must be 2 to 262144",
    )
    for name in ("cpuset_cpus", "cpuset_mems"):
        value = getattr(resources, name)
        _require(
            value is None or re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", value) is not None,
            f"{path}.{name}",
            f"must be like 0-2,4, not {value!r}",
        )
    for index, limit in enumerate(resources.io):
        _require(
            re.fullmatch(r"\d+:\d+", limit.device) is not None,
            f"{path}.io[{index}].device",
            f"must be MAJOR:MINOR, not {limit.device!r}",
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


def _validate_root(root: Root) -> None:
    _require(bool(root.layers), "root.layers", "must not be empty")
    # overlayfs: OVL_MAX_STACK is 500, but 128 is where Docker stops and images stay below.
    _require(len(root.layers) <= 128, "root.layers", "has more than 128 layers")
    for index, layer in enumerate(root.layers):
        _absolute(f"root.layers[{index}]", layer)
    if root.upper is not None:
        _absolute("root.upper", root.upper)


def _validate_mount(path: str, mount: Mount) -> None:
    _absolute(f"{path}.target", mount.target)
    target = posixpath.normpath(mount.target)
    _require(
        target not in ("/", "/proc", "/dev", "/sys") and not target.startswith("/proc/"),
        f"{path}.target",
        f"{target} belongs to the runtime",
    )
    if mount.type == "tmpfs":
        _require(not mount.source, f"{path}.source", "a tmpfs has none")
        _require(
            mount.size_bytes is None or mount.size_bytes > 0,
            f"{path}.size_bytes",
            "must be above 0",
        )
    else:
        _absolute(f"{path}.source", mount.source)


def _validate_files(files: tuple[File, ...]) -> None:
    for index, file in enumerate(files):
        _absolute(f"files[{index}].path", file.path)
        _require(
            posixpath.normpath(file.path) != "/", f"files[{index}].path", "must be a file, not /"
        )
    total = sum(len(file.content) for file in files)
    _require(total <= FILES_BYTES_MAX, "files", f"hold {total} bytes, more than {FILES_BYTES_MAX}")


def _validate_sysctls(spec: ContainerSpec) -> None:
    for name in spec.sysctls:
        path = f"sysctls.{name}"
        clean = re.fullmatch(r"[a-zA-Z0-9_-]+([./][a-zA-Z0-9_:-]+)+", name) is not None
        _require(clean, path, "is no name of a sysctl")
        if name in defaults.IPC_SYSCTLS or name.startswith("fs.mqueue."):
            _require(spec.namespaces.ipc != "host", path, "would change the host's: ipc is host")
        elif name.startswith("net."):
            _require(
                spec.namespaces.network != "host", path, "would change the host's: network is host"
            )
        else:
            raise SpecError(f"{path}: belongs to the whole host, not to a container")


def _validate_access(path: str, access: str) -> None:
    _require(
        bool(access) and set(access) <= set("rwm"), path, f"must be of r, w, m, not {access!r}"
    )


def _absolute(path: str, value: str) -> None:
    _require(
        value.startswith("/") and "\0" not in value,
        path,
        f"must be an absolute path, not {value!r}",
    )
    _require(".." not in value.split("/"), path, f"must not climb with '..': {value!r}")


def _require(condition: bool, path: str, problem: str) -> None:
    if not condition:
        raise SpecError(f"{path}: {problem}")
