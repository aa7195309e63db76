"""Containers, networks and volumes of this host alone, as they stand on its disk.

Pure. What a user asked for is a `ContainerConfig`, with the image's own words already merged in; it
never changes but by `update` and `rename`. These records are stored (swarmlet.codec): fields are
append-only. Sizes are bytes, times seconds since 1970, durations seconds.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from swarmlet.model import Healthcheck, Ulimit

DEFAULT_NETWORK, HOST_NETWORK, NO_NETWORK = "bridge", "host", "none"
#: Networks that are always there and belong to nobody.
BUILT_IN = (DEFAULT_NETWORK, HOST_NETWORK, NO_NETWORK)
#: `--network container:NAME`, `--pid container:NAME`, `--ipc container:NAME`.
OF_CONTAINER = "container:"


class Restart(enum.StrEnum):
    NO = "no"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"
    UNLESS_STOPPED = "unless-stopped"


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    name: Restart = Restart.NO
    attempts_max: int = 0  # on-failure only; 0: without end


class MountKind(enum.StrEnum):
    BIND = "bind"
    VOLUME = "volume"
    TMPFS = "tmpfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class MountPoint:
    """Something at *target*. A volume without a *source* gets a name of its own at creation."""

    kind: MountKind
    target: str
    source: str = ""  # a path of the host's, or a volume's name
    read_only: bool = False
    propagation: str = ""
    make_source: bool = False  # -v: a folder that is missing on the host is made
    no_copy: bool = False  # volume: leave it empty instead of copying the image's content
    anonymous: bool = False  # goes with the container if that is removed with --volumes, or --rm
    labels: Mapping[str, str] = field(default_factory=dict)
    size_bytes: int = 0  # tmpfs
    mode: int = 0o1777  # tmpfs
    options: tuple[str, ...] = ()  # nosuid, nodev, noexec
    recursive: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PortRequest:
    """`-p [ip:]first[-last]:target`; *first* 0: any free port."""

    target: int
    protocol: str = "tcp"
    address: str = ""
    first: int = 0
    last: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedPort:
    """A port of the host that leads to the running container."""

    target: int
    protocol: str
    address: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A container on a network: what was asked, and in *address* and *mac* what it has."""

    network: str  # id of a network, or one of BUILT_IN
    aliases: tuple[str, ...] = ()
    asked_address: str = ""
    asked_mac: str = ""
    address: str = ""
    mac: str = ""
    interface: str = ""


@dataclass(frozen=True, slots=True)
class DeviceRequest:
    source: str  # on the host
    target: str
    access: str = "rwm"


@dataclass(frozen=True, slots=True, kw_only=True)
class IoLimit:
    """A limit of one block device, named by its path on the host; 0: none."""

    path: str
    read_bytes: int = 0
    write_bytes: int = 0
    read_operations: int = 0
    write_operations: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What `docker update` may change. 0 and "" are no limit."""

    memory_bytes: int = 0
    memory_swap_bytes: int = 0  # memory and swap together; -1: unlimited
    memory_reservation_bytes: int = 0
    nano_cpus: int = 0
    cpu_period_us: int = 0
    cpu_quota_us: int = 0
    cpu_shares: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids: int = 0
    io: tuple[IoLimit, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerConfig:
    """Everything that `docker run` can say; None is "not said" where that differs from empty."""

    image: str
    entrypoint: tuple[str, ...] | None = None
    command: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    hostname: str = ""
    domainname: str = ""
    user: str = ""
    groups: tuple[str, ...] = ()
    directory: str = ""
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    stop_signal: str = ""
    stop_grace: float | None = None
    healthcheck: Healthcheck | None = None
    exposed: tuple[str, ...] = ()  # "80/tcp"
    volumes: tuple[str, ...] = ()  # targets of anonymous volumes
    mounts: tuple[MountPoint, ...] = ()
    volumes_from: tuple[str, ...] = ()  # "container[:ro]"
    network: str = DEFAULT_NETWORK
    attachments: tuple[Attachment, ...] = ()
    ports: tuple[PortRequest, ...] = ()
    publish_all: bool = False
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()  # "name:address"
    restart: RestartPolicy = RestartPolicy()
    auto_remove: bool = False
    privileged: bool = False
    read_only: bool = False
    init: bool = False
    capabilities_add: tuple[str, ...] = ()
    capabilities_drop: tuple[str, ...] = ()
    no_new_privileges: bool = False
    seccomp: str = ""  # "", "unconfined", or a profile in Docker's JSON format
    devices: tuple[DeviceRequest, ...] = ()
    device_rules: tuple[str, ...] = ()  # "c 13:* rwm"
    ulimits: tuple[Ulimit, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    shm_bytes: int = 0
    oom_score_adj: int = 0
    ipc: str = ""
    pid: str = ""
    uts: str = ""
    cgroup: str = ""  # cgroup namespace: private, host
    limits: Limits = Limits()
    log_driver: str = ""
    log_options: Mapping[str, str] = field(default_factory=dict)
    masked_paths: tuple[str, ...] | None = None
    readonly_paths: tuple[str, ...] | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def argv(self) -> tuple[str, ...]:
        return (*(self.entrypoint or ()), *(self.command or ()))

    @property
    def network_of(self) -> str:
        """The container whose network this one shares; "" for one of its own."""
        return _container_in(self.network)


def _container_in(mode: str) -> str:
    return mode.removeprefix(OF_CONTAINER) if mode.startswith(OF_CONTAINER) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How the last run ended."""

    code: int
    at: float
    oom_killed: bool = False
    error: str = ""  # why it could not be started


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRecord:
    """One container. *wanted*: it is to run; *stopped*: somebody ended it by hand."""

    id: str
    name: str
    created_at: float
    config: ContainerConfig
    image: str  # digest of what the image's name meant
    image_id: str
    wanted: bool = False
    stopped: bool = False
    started_at: float = 0.0
    ended: Ended | None = None
    restarts: int = 0
    ports: tuple[PublishedPort, ...] = ()  # while it runs
    removing: bool = False

    def changed(self, **changes: object) -> ContainerRecord:
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalNetwork:
    """A bridge network of this host."""

    id: str
    name: str
    created_at: float
    subnet: str
    gateway: str
    internal: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class LocalNetworks:
    """The one file of the networks."""

    networks: tuple[LocalNetwork, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRecord:
    name: str
    created_at: float
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    anonymous: bool = False


@dataclass(frozen=True, slots=True)
class Places:
    """The one file of the places on the host's bridge: sandbox -> offset in its subnet."""

    offsets: Mapping[str, int] = field(default_factory=dict)
