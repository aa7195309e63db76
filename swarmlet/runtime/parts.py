"""The parts of a container's spec: frozen values in the vocabulary of the OCI runtime spec.

Pure. Sizes are bytes, times seconds unless a name says otherwise. `spec.py` puts them together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from swarmlet.runtime import defaults
from swarmlet.runtime.decoding import SpecError
from swarmlet.runtime.values import named_value

#: "private" (new and empty), "host" (the daemon's own), or the path of a namespace file.
Namespace: TypeAlias = str


@named_value
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


@named_value
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


@named_value
class Rlimit:
    type: str
    soft: int
    hard: int


@named_value
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
    #: run it under an init that forwards signals and reaps (of a container's own process only)
    init: bool = False


@named_value
class Root:
    """The root file system: *layers*, base first, under a writable layer.

    Without *upper* the runtime makes the writable layer and removes it with the container. With
    it (a path on a file system with xattrs) the caller owns it and it outlives the container.
    """

    layers: tuple[str, ...]
    upper: str | None = None
    readonly: bool = False


@named_value
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


@named_value
class File:
    """A secret or config: *content* appears at *path*, on a tmpfs, never on a disk."""

    path: str
    content: bytes
    uid: int = 0
    gid: int = 0
    mode: int = 0o444


@named_value
class Namespaces:
    """Which of the kernel's namespaces are the container's own. The mount namespace always is.

    *user* may also be "network": the one that owns the network that is joined, so that the
    container's root has its rights there (a network that the host owns makes it "private").
    """

    pid: Namespace = "private"
    network: Namespace = "private"
    ipc: Namespace = "private"
    uts: Namespace = "private"
    cgroup: Namespace = "private"
    user: Namespace = "host"


@named_value
class IdMapping:
    """One extent of a user namespace: ids from *container_id* on are *host_id* and on outside."""

    container_id: int
    host_id: int
    size: int


@named_value
class IoLimit:
    """Limits of a block device, `major:minor`; None is no limit."""

    device: str
    read_bytes_per_second: int | None = None
    write_bytes_per_second: int | None = None
    read_operations_per_second: int | None = None
    write_operations_per_second: int | None = None


@named_value
class HugetlbLimit:
    """Bytes of huge pages of one size, named as the kernel does: 2MB, 1GB."""

    page_size: str
    limit_bytes: int


@named_value
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
    hugetlb: tuple[HugetlbLimit, ...] = ()


@named_value
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


@named_value
class DeviceRule:
    """One line of the device rules; "a" and None mean any."""

    allow: bool
    type: Literal["a", "c", "b"] = "a"
    major: int | None = None
    minor: int | None = None
    access: str = "rwm"


@named_value
class Seccomp:
    """The system call filter; *document* is Docker's JSON format when *profile* is custom."""

    profile: Literal["default", "unconfined", "custom"] = "default"
    document: str = ""


@named_value
class LogConfig:
    """Where output goes. *local* is the same file as json-file, with other defaults.

    The journal's entries bear *tag* and *name*; nothing of them can be read back by `logs`.
    """

    driver: Literal["json-file", "local", "journald", "none"] = "json-file"
    file_bytes_max: int = defaults.LOG_BYTES_MAX
    files_max: int = defaults.LOG_FILES_MAX
    compress: bool = True  # rotated files
    tag: str = ""
    name: str = ""

    @property
    def has_file(self) -> bool:
        return self.driver in ("json-file", "local")
