"""From a container's record to the container that the runtime makes (runtime.ContainerSpec).

Pure. `merge` mixes in what the image says, once, at creation; `build` is done at each start, with
what only this host and this moment know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from swarmlet.agent.container import (
    CPU_PERIOD_US,
    DEFAULT_PATH,
    NANO,
    PROPAGATION,
    UnusableTemplate,
    log_config,
    merge_healthcheck,
)
from swarmlet.agent.local.records import (
    HOST_NETWORK,
    OF_CONTAINER,
    ContainerConfig,
    ContainerRecord,
    Limits,
    MountKind,
    MountPoint,
)
from swarmlet.images.config import Healthcheck, ImageConfig
from swarmlet.runtime import spec as oci
from swarmlet.runtime.defaults import CAPABILITIES, MASKED_PATHS, READONLY_PATHS, SHM_BYTES

#: How the supervisor's containers of this package are told from tasks.
MARK = "swarmlet.local"
STOP_GRACE = 10.0
ID_CHARACTERS = 12
HOST_GATEWAY = "host-gateway"
MOUNT_OPTIONS: tuple[Literal["nosuid", "nodev", "noexec"], ...] = ("nosuid", "nodev", "noexec")


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a container finds on this host at this start."""

    layers: tuple[str, ...]
    upper: str
    netns: str  # namespace file, "host" or "private"
    address: str  # the container's first, for /etc/hosts; "" without a network
    resolver: str  # the address to ask for names; "" leaves the host's own resolvers
    host_name: str
    host_gateway: str  # what `--add-host name:host-gateway` means
    host_hosts: str  # text of the host's /etc/hosts
    host_resolv_conf: str
    ipc: str = "private"  # a namespace file, "private" or "host"
    pid: str = "private"
    mounts: tuple[oci.Mount, ...] = ()
    devices: tuple[oci.Device, ...] = ()
    io: tuple[oci.IoLimit, ...] = ()


def merge(config: ContainerConfig, image: ImageConfig) -> ContainerConfig:
    """Return *config* with the image's words where the user said nothing.

    Raises:
        UnusableTemplate: nothing is to be run.
    """
    entrypoint, command = config.entrypoint, config.command
    if not entrypoint:
        # `--entrypoint ""` takes the image's away, and its command with it only if none is given.
        reset = entrypoint is not None and entrypoint == ("",)
        if not command and not reset:
            command = image.cmd
        entrypoint = None if reset else image.entrypoint
    elif entrypoint == ("",):
        entrypoint = None
    env = _merge_env(image.env, config.env)
    merged = replace(
        config,
        entrypoint=entrypoint or None,
        command=command or None,
        env=env,
        labels={**image.labels, **config.labels},
        user=config.user or image.user,
        directory=config.directory or image.working_dir,
        stop_signal=config.stop_signal or image.stop_signal,
        healthcheck=merge_healthcheck(config.healthcheck, image),
        exposed=tuple(dict.fromkeys((*image.exposed_ports, *config.exposed))),
        volumes=tuple(dict.fromkeys((*image.volumes, *config.volumes))),
    )
    if not merged.argv:
        raise UnusableTemplate(
            "no command specified: the image names none, so give one after the image"
        )
    return merged


def as_image(config: ContainerConfig, image: ImageConfig) -> ImageConfig:
    """Return how an image starts that is made of a container of *image*."""
    check = config.healthcheck
    return replace(
        image,
        user=config.user,
        env=config.env,
        entrypoint=config.entrypoint,
        cmd=config.command,
        working_dir=config.directory,
        labels=dict(config.labels),
        exposed_ports=config.exposed,
        volumes=config.volumes,
        stop_signal=config.stop_signal,
        healthcheck=None
        if check is None
        else Healthcheck(
            test=check.test,
            interval=round(check.interval * NANO),
            timeout=round(check.timeout * NANO),
            start_period=round(check.start_period * NANO),
            start_interval=round(check.start_interval * NANO),
            retries=check.retries,
        ),
    )


def _merge_env(image: Sequence[str], asked: Sequence[str]) -> tuple[str, ...]:
    env: dict[str, str] = {}
    for entry in (DEFAULT_PATH, *image, *asked):
        name, equals, _ = entry.partition("=")
        if equals:
            env[name] = entry
        else:
            env.pop(name, None)  # Docker: a bare name takes the variable away
    return tuple(env.values())


def build(record: ContainerRecord, around: Surroundings) -> oci.ContainerSpec:
    """Return what the supervisor shall make of *record* now.

    Raises:
        UnusableTemplate, oci.SpecError: this cannot be, with what to do.
    """
    config = record.config
    hostname = hostname_of(record, around.host_name)
    privileged = config.privileged
    masked = config.masked_paths if config.masked_paths is not None else MASKED_PATHS
    readonly = config.readonly_paths if config.readonly_paths is not None else READONLY_PATHS
    rules = [_device_rule(text) for text in config.device_rules]
    rules += [oci.DeviceRule(allow=True)] if privileged else []
    spec = oci.ContainerSpec(
        process=process_of(record, hostname),
        root=oci.Root(layers=around.layers, upper=around.upper, readonly=config.read_only),
        hostname=hostname,
        domainname=config.domainname,
        mounts=around.mounts,
        hosts=hosts_text(config, hostname, around),
        resolv_conf=_resolv_conf(config, around),
        namespaces=oci.Namespaces(
            network=around.netns,
            ipc=around.ipc,
            pid=around.pid,
            uts=HOST_NETWORK if config.uts == HOST_NETWORK else "private",
            cgroup=HOST_NETWORK if config.cgroup == HOST_NETWORK else "private",
        ),
        resources=resources_of(config.limits, around.io),
        devices=around.devices,
        device_rules=tuple(rules),
        sysctls=dict(config.sysctls),
        seccomp=_seccomp(config),
        masked_paths=() if privileged else masked,
        readonly_paths=() if privileged else readonly,
        shm_bytes=config.shm_bytes or SHM_BYTES,
        stop_signal=config.stop_signal or "SIGTERM",
        stop_grace=STOP_GRACE if config.stop_grace is None else config.stop_grace,
        log=log_config(config.log_driver, config.log_options),
        annotations={MARK: record.name, **config.annotations},
    )
    oci.validate(spec)
    return spec


def hostname_of(record: ContainerRecord, host_name: str) -> str:
    config = record.config
    if config.hostname:
        return config.hostname
    shared = HOST_NETWORK in (config.network, config.uts)
    return host_name if shared else record.id[:ID_CHARACTERS]


def process_of(record: ContainerRecord, hostname: str) -> oci.Process:
    config = record.config
    env = {"HOSTNAME": f"HOSTNAME={hostname}"}
    if config.tty:
        env["TERM"] = "TERM=xterm"
    for entry in config.env:
        env[entry.partition("=")[0]] = entry
    user = oci.User.parse(config.user)
    return oci.Process(
        args=config.argv,
        env=tuple(env.values()),
        cwd=config.directory or "/",
        user=replace(user, additional_groups=config.groups),
        capabilities=capabilities_of(config),
        no_new_privileges=config.no_new_privileges,
        rlimits=tuple(
            oci.Rlimit(type=f"RLIMIT_{u.name.upper()}", soft=u.soft, hard=u.hard)
            for u in config.ulimits
        ),
        terminal=config.tty,
        stdin=config.open_stdin,
        oom_score_adj=config.oom_score_adj,
        init=config.init,
    )


def capabilities_of(config: ContainerConfig) -> oci.Capabilities:
    if config.privileged:
        return all_capabilities()
    return oci.Capabilities.adjusted(add=config.capabilities_add, drop=config.capabilities_drop)


def all_capabilities() -> oci.Capabilities:
    return oci.Capabilities(bounding=CAPABILITIES, effective=CAPABILITIES, permitted=CAPABILITIES)


def resources_of(limits: Limits, io: tuple[oci.IoLimit, ...] = ()) -> oci.Resources:
    """Raises UnusableTemplate for limits that exclude each other."""
    quota, period = limits.cpu_quota_us or None, limits.cpu_period_us or CPU_PERIOD_US
    if limits.nano_cpus:
        if limits.cpu_quota_us or limits.cpu_period_us:
            raise UnusableTemplate("--cpus and --cpu-quota or --cpu-period exclude each other")
        quota = max(1000, limits.nano_cpus * CPU_PERIOD_US // NANO)
    swap = limits.memory_swap_bytes or None
    if limits.memory_bytes and swap is None:
        swap = 2 * limits.memory_bytes  # Docker's default: as much swap as memory
    return oci.Resources(
        memory_bytes=limits.memory_bytes or None,
        memory_swap_bytes=swap,
        memory_reservation_bytes=limits.memory_reservation_bytes or None,
        cpu_quota_us=quota if quota is None or quota > 0 else None,
        cpu_period_us=period,
        cpu_shares=limits.cpu_shares or None,
        cpuset_cpus=limits.cpuset_cpus or None,
        cpuset_mems=limits.cpuset_mems or None,
        pids_max=limits.pids if limits.pids > 0 else None,
        io=io,
    )


def mount_of(point: MountPoint, volumes: str) -> oci.Mount:
    """*volumes* is the folder of the named volumes."""
    options = tuple(option for option in MOUNT_OPTIONS if option in point.options)
    if point.kind is MountKind.TMPFS:
        return oci.Mount(
            target=point.target,
            type="tmpfs",
            readonly=point.read_only,
            size_bytes=point.size_bytes or None,
            mode=point.mode,
            options=options,
        )
    source = point.source
    if point.kind is MountKind.VOLUME:
        source = f"{volumes}/{point.source}/_data"
    return oci.Mount(
        target=point.target,
        source=source,
        type="volume" if point.kind is MountKind.VOLUME else "bind",
        readonly=point.read_only,
        recursive=point.recursive,
        propagation=PROPAGATION[point.propagation],
        options=options,
    )


def _seccomp(config: ContainerConfig) -> oci.Seccomp:
    if config.privileged or config.seccomp == "unconfined":
        return oci.Seccomp(profile="unconfined")
    if config.seccomp:
        return oci.Seccomp(profile="custom", document=config.seccomp)
    return oci.Seccomp()


def _device_rule(text: str) -> oci.DeviceRule:
    """Read `c 13:* rwm`, in the kernel's words."""
    kind, numbers, access = text.split()
    major, _, minor = numbers.partition(":")
    return oci.DeviceRule(
        allow=True,
        type=kind,  # type: ignore[arg-type]
        major=None if major == "*" else int(major),
        minor=None if minor in ("*", "") else int(minor),
        access=access,
    )


def hosts_text(config: ContainerConfig, hostname: str, around: Surroundings) -> str:
    if config.network == HOST_NETWORK:
        lines = around.host_hosts.splitlines()
    else:
        lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    for entry in config.hosts:
        name, _, address = entry.partition(":")
        if address == HOST_GATEWAY:
            address = around.host_gateway
        lines.append(f"{address}\t{name}")
    if around.address:
        names = f"{hostname}.{config.domainname} {hostname}" if config.domainname else hostname
        lines.append(f"{around.address}\t{names}")
    return "\n".join(lines) + "\n"


def _resolv_conf(config: ContainerConfig, around: Surroundings) -> str:
    """`--dns` names the servers to ask; else our resolver is asked, which asks the host's.

    On a network with names both are there: ours first, since only it knows the other containers.
    """
    said = bool(config.dns or config.dns_search or config.dns_options)
    if not around.resolver and not said:
        return around.host_resolv_conf
    servers = list(config.dns)
    if around.resolver and (not servers or _has_names(config)):
        servers.insert(0, around.resolver)
    lines = [f"nameserver {server}" for server in servers]
    if not around.resolver and not servers:
        lines = [
            line for line in around.host_resolv_conf.splitlines() if line.startswith("nameserver")
        ]
    search = [domain for domain in config.dns_search if domain != "."]
    if search:
        lines.insert(0, "search " + " ".join(search))
    options = [*config.dns_options]
    if around.resolver and not any(option.startswith("ndots:") for option in options):
        options.append("ndots:0")
    if options:
        lines.append("options " + " ".join(options))
    return "\n".join(lines) + "\n"


def _has_names(config: ContainerConfig) -> bool:
    """Whether the container is on a network where names mean containers."""
    return not config.network.startswith(OF_CONTAINER) and any(
        a.network not in ("bridge", "host", "none") for a in config.attachments
    )


def env_map(env: Sequence[str]) -> Mapping[str, str]:
    return {name: value for name, _, value in (entry.partition("=") for entry in env)}
