"""Specs: what a user wrote, in Docker's vocabulary. A spec is never modified by the cluster.

Pure. Durations are seconds, sizes bytes, cpus billionths of one (Docker's NanoCPUs). An empty
string, tuple or zero means "not given", as in Docker's API; where "given as nothing" differs from
"not given" the field is optional.

These records are stored and sent (swarmlet.codec): fields are append-only.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias


class Role(enum.StrEnum):
    WORKER = "worker"
    MANAGER = "manager"


class Availability(enum.StrEnum):
    ACTIVE = "active"
    PAUSE = "pause"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    role: Role
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    availability: Availability = Availability.ACTIVE


class MountType(enum.StrEnum):
    BIND = "bind"
    VOLUME = "volume"
    TMPFS = "tmpfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    type: MountType
    target: str
    source: str = ""
    read_only: bool = False
    propagation: str = ""  # bind: rprivate, private, rshared, shared, rslave, slave
    tmpfs_bytes: int = 0
    tmpfs_mode: int = 0
    no_copy: bool = False  # volume: leave it empty instead of copying the image's content
    labels: Mapping[str, str] = field(default_factory=dict)
    driver: str = ""
    driver_options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Healthcheck:
    """*test* is empty (the image's own), ("NONE",), ("CMD", ...) or ("CMD-SHELL", line)."""

    test: tuple[str, ...] = ()
    interval: float = 0.0
    timeout: float = 0.0
    retries: int = 0
    start_period: float = 0.0
    start_interval: float = 0.0


@dataclass(frozen=True, slots=True)
class Ulimit:
    name: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerTemplate:
    """What runs in each task of a service (Docker: ContainerSpec)."""

    image: str
    command: tuple[str, ...] = ()  # replaces the image's entrypoint
    args: tuple[str, ...] = ()  # replaces the image's command
    env: tuple[str, ...] = ()
    hostname: str = ""
    directory: str = ""
    user: str = ""
    groups: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    tty: bool = False
    open_stdin: bool = False
    read_only: bool = False
    mounts: tuple[Mount, ...] = ()
    stop_signal: str = ""
    stop_grace: float = 10.0
    healthcheck: Healthcheck | None = None
    hosts: tuple[str, ...] = ()  # "address name [name ...]", as in /etc/hosts
    dns_servers: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    init: bool = False
    sysctls: Mapping[str, str] = field(default_factory=dict)
    capabilities_add: tuple[str, ...] = ()
    capabilities_drop: tuple[str, ...] = ()
    ulimits: tuple[Ulimit, ...] = ()
    oom_score_adj: int = 0
    seccomp: str = ""  # "", "unconfined", or a profile in Docker's JSON format
    pull_policy: str = ""
    userns: str = ""  # "host": the host's users; "private" and "": users of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    nano_cpus: int = 0
    memory_bytes: int = 0
    pids: int = 0  # limits only


class RestartCondition(enum.StrEnum):
    NONE = "none"
    ON_FAILURE = "on-failure"
    ANY = "any"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    condition: RestartCondition = RestartCondition.ANY
    delay: float = 5.0
    max_attempts: int = 0  # 0: without end
    window: float = 0.0  # 0: attempts are counted for ever


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    constraints: tuple[str, ...] = ()
    spread: tuple[str, ...] = ()  # preference descriptors, outermost first
    max_replicas_per_node: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkAttachment:
    """*target* is a network's id once the spec is in the store, an id or name before."""

    target: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogDriver:
    name: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTemplate:
    container: ContainerTemplate
    limits: Resources = Resources()
    reservations: Resources = Resources()
    restart: RestartPolicy = RestartPolicy()
    placement: Placement = Placement()
    networks: tuple[NetworkAttachment, ...] = ()
    log_driver: LogDriver | None = None
    force_update: int = 0  # a counter: its change alone replaces every task


@dataclass(frozen=True, slots=True)
class Replicated:
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class Global:
    """One task on every eligible node."""


ServiceMode: TypeAlias = Replicated | Global


class UpdateOrder(enum.StrEnum):
    STOP_FIRST = "stop-first"
    START_FIRST = "start-first"


class FailureAction(enum.StrEnum):
    PAUSE = "pause"
    CONTINUE = "continue"
    ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateConfig:
    parallelism: int = 1  # 0: all at once
    delay: float = 0.0
    failure_action: FailureAction = FailureAction.PAUSE
    monitor: float = 5.0
    max_failure_ratio: float = 0.0
    order: UpdateOrder = UpdateOrder.STOP_FIRST


class Protocol(enum.StrEnum):
    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


class PublishMode(enum.StrEnum):
    INGRESS = "ingress"
    HOST = "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class PortConfig:
    target: int
    published: int = 0  # 0: the allocator chooses one
    protocol: Protocol = Protocol.TCP
    mode: PublishMode = PublishMode.INGRESS
    name: str = ""
    ip: str = ""  # listen on this address or network only
    iface: str = ""  # listen on this interface only


class EndpointMode(enum.StrEnum):
    VIP = "vip"
    DNSRR = "dnsrr"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSpec:
    mode: EndpointMode = EndpointMode.VIP
    ports: tuple[PortConfig, ...] = ()


class OfflinePolicy(enum.StrEnum):
    """What happens to a node's tasks while it is DOWN (DISTRIBUTED B6)."""

    KEEP = "keep"  # replaced elsewhere; the surplus copy stops when the node is back
    PIN = "pin"  # never replaced: the slot waits for its node


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    name: str
    task: TaskTemplate
    mode: ServiceMode = Replicated()
    labels: Mapping[str, str] = field(default_factory=dict)
    update: UpdateConfig = UpdateConfig()
    rollback: UpdateConfig = UpdateConfig()
    endpoint: EndpointSpec = EndpointSpec()
    offline: OfflinePolicy = OfflinePolicy.KEEP
    replace_after: float = 0.0  # seconds a node must have been DOWN before its tasks are replaced


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec:
    name: str
    driver: str = "overlay"
    labels: Mapping[str, str] = field(default_factory=dict)
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    subnet: str = ""  # "": the allocator chooses one
    gateway: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """Settings that `swarmlet update` may change while the cluster runs."""

    labels: Mapping[str, str] = field(default_factory=dict)
    task_history: int = 5  # ended tasks kept for each slot
    heartbeat: float = 2.0  # seconds between the heartbeats of a session
    certificate_life: float = 90 * 86400.0
    pools: tuple[str, ...] = ("10.128.0.0/9",)  # where the subnets of networks come from
    subnet_bits: int = 24
    gossip_preset: str = "lan"
    gossip_key_life: float = 12 * 3600.0  # 0: a key stays until it is changed by hand
    gossip_knobs: Mapping[str, str] = field(default_factory=dict)  # over the preset's: "2s", "4"
