"""From a task and its image to the container that runs it (runtime.ContainerSpec).

Pure. What the user wrote wins over what the image says, as in Docker: a command of the user's
replaces the image's entry point and its command, arguments replace the command alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from swarmlet.images.config import ImageConfig
from swarmlet.model import (
    ContainerTemplate,
    Healthcheck,
    LogDriver,
    Mount,
    MountType,
    Resources,
)
from swarmlet.runtime import spec as oci
from swarmlet.session import TaskAssignment

NANO = 1_000_000_000
CPU_PERIOD_US = 100_000
DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: Docker's defaults of a health check that gives no times.
HEALTH_INTERVAL, HEALTH_TIMEOUT, HEALTH_RETRIES = 30.0, 30.0, 3

LABEL_PREFIX = "com.docker.swarm."


class UnusableTemplate(ValueError):
    """The task cannot be made into a container on this host; the text says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What a container learns of the host that it is on."""

    node: str
    node_name: str
    volumes: str  # folder of the named volumes
    netns: str  # namespace file of the task's sandbox; "" for the host's own network
    resolver: str  # address that the container asks for names; "" leaves the host's resolv.conf
    host_resolv_conf: str
    address: str  # the task's own, for /etc/hosts; "" without a network
    users_refused: str = ""  # why containers here cannot have users of their own; "" if they can


def build(
    task: TaskAssignment, image: ImageConfig, layers: tuple[str, ...], host: Host
) -> oci.ContainerSpec:
    """Return the container of *task*; *layers* are the image's, base first.

    Raises:
        UnusableTemplate: there is nothing to run, or a setting has no meaning here.
        oci.SpecError: a value that the runtime cannot do.
    """
    template = task.template
    container = template.container
    words = _words(task, host)
    hostname = _expand(container.hostname, words) or task.id[:12]
    driver = template.log_driver or LogDriver()
    spec = oci.ContainerSpec(
        process=_process(container, image, words, hostname),
        root=oci.Root(layers=layers, readonly=container.read_only),
        hostname=hostname,
        mounts=tuple(_mount(mount, host, words) for mount in container.mounts),
        hosts=_hosts(container, hostname, host.address),
        resolv_conf=_resolv_conf(container, host),
        namespaces=oci.Namespaces(network=host.netns or "host", user=_users(container, host)),
        resources=_resources(template.limits, template.reservations),
        sysctls=dict(container.sysctls),
        seccomp=_seccomp(container.seccomp),
        stop_signal=container.stop_signal or image.stop_signal or "SIGTERM",
        stop_grace=container.stop_grace,
        log=log_config(driver.name, driver.options),
        annotations=_labels(task),
    )
    oci.validate(spec)
    return spec


#: Capabilities that mean something over the host only: in a user namespace they are void.
_HOST_CAPABILITIES = (
    "ALL AUDIT_CONTROL AUDIT_READ BLOCK_SUSPEND BPF DAC_READ_SEARCH IPC_LOCK LINUX_IMMUTABLE "
    "MAC_ADMIN MAC_OVERRIDE PERFMON SYS_BOOT SYS_MODULE SYS_NICE SYS_PACCT SYS_RAWIO SYS_RESOURCE "
    "SYS_TIME SYS_TTY_CONFIG SYSLOG WAKE_ALARM"
)
HOST_CAPABILITIES = frozenset(_HOST_CAPABILITIES.split())


def users_of(container: ContainerTemplate, refused: str) -> Literal["private", "host"]:
    """Whose users the container has: its own, unless it is told or needs otherwise.

    *refused* is why this host cannot give it its own.

    Raises:
        UnusableTemplate: it asks for its own, and this host cannot.
    """
    match container.userns:
        case "host":
            return "host"
        case "private":
            if refused:
                raise UnusableTemplate(f"no user namespace: {refused}; use --userns host")
            return "private"
    added = {name.upper().removeprefix("CAP_") for name in container.capabilities_add}
    return "host" if refused or added & HOST_CAPABILITIES else "private"


def _users(container: ContainerTemplate, host: Host) -> str:
    if users_of(container, host.users_refused) == "host":
        return "host"
    return "network" if host.netns else "private"


def healthcheck_of(container: ContainerTemplate, image: ImageConfig) -> Healthcheck | None:
    """The check that applies, with every time filled in; None if there is none."""
    check = merge_healthcheck(container.healthcheck, image)
    if check is None or not check.test or check.test[0] == "NONE":
        return None
    return with_default_times(check)


def merge_healthcheck(asked: Healthcheck | None, image: ImageConfig) -> Healthcheck | None:
    """What the user asked for, and where that says nothing what the image says."""
    made = image.healthcheck
    if made is None:
        return asked
    asked = asked or Healthcheck()
    return Healthcheck(
        test=asked.test or made.test,
        interval=asked.interval or made.interval / NANO,
        timeout=asked.timeout or made.timeout / NANO,
        retries=asked.retries or made.retries,
        start_period=asked.start_period or made.start_period / NANO,
        start_interval=asked.start_interval or made.start_interval / NANO,
    )


def with_default_times(check: Healthcheck) -> Healthcheck:
    """*check* with Docker's times where it gives none."""
    return Healthcheck(
        test=check.test,
        interval=check.interval or HEALTH_INTERVAL,
        timeout=check.timeout or HEALTH_TIMEOUT,
        retries=check.retries or HEALTH_RETRIES,
        start_period=check.start_period,
        start_interval=check.start_interval or 5.0,
    )


def _process(
    container: ContainerTemplate, image: ImageConfig, words: Mapping[str, str], hostname: str
) -> oci.Process:
    entrypoint = container.command or image.entrypoint or ()
    arguments = container.args or (() if container.command else image.cmd or ())
    args = (*entrypoint, *arguments)
    if not args:
        raise UnusableTemplate(
            f"image {container.image.partition('@')[0]} names no command and the service gives "
            "none: add one after the image"
        )
    env = {"HOSTNAME": f"HOSTNAME={hostname}"}
    for entry in (DEFAULT_PATH, *image.env, *(_expand(e, words) for e in container.env)):
        name, equals, _ = entry.partition("=")
        if equals:
            env[name] = entry
        else:
            env.pop(name, None)  # Docker: a bare name takes the variable away
    capabilities = oci.Capabilities.adjusted(
        add=container.capabilities_add, drop=container.capabilities_drop
    )
    user = oci.User.parse(container.user or image.user)
    if container.groups:
        user = oci.User(
            user=user.user, group=user.group, additional_groups=container.groups, umask=user.umask
        )
    return oci.Process(
        args=args,
        env=tuple(env.values()),
        cwd=container.directory or image.working_dir or "/",
        user=user,
        capabilities=capabilities,
        rlimits=tuple(
            oci.Rlimit(type=f"RLIMIT_{u.name.upper()}", soft=u.soft, hard=u.hard)
            for u in container.ulimits
        ),
        terminal=container.tty,
        stdin=container.open_stdin,
        oom_score_adj=container.oom_score_adj,
        init=container.init,
    )


def _mount(mount: Mount, host: Host, words: Mapping[str, str]) -> oci.Mount:
    match mount.type:
        case MountType.TMPFS:
            return oci.Mount(
                target=mount.target,
                type="tmpfs",
                readonly=mount.read_only,
                size_bytes=mount.tmpfs_bytes or None,
                mode=mount.tmpfs_mode or 0o1777,
            )
        case MountType.VOLUME:
            name = _expand(mount.source, words)
            if not _VOLUME.fullmatch(name):
                raise UnusableTemplate(f"{name!r} is no name of a volume")
            return oci.Mount(
                target=mount.target,
                source=f"{host.volumes}/{name}/_data",
                type="volume",
                readonly=mount.read_only,
            )
        case MountType.BIND:
            return oci.Mount(
                target=mount.target,
                source=_expand(mount.source, words),
                readonly=mount.read_only,
                propagation=PROPAGATION[mount.propagation],
            )


_VOLUME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
PROPAGATION: Mapping[str, Literal["private", "slave", "shared"]] = {
    "": "private",
    "rprivate": "private",
    "private": "private",
    "rslave": "slave",
    "slave": "slave",
    "rshared": "shared",
    "shared": "shared",
}


def _resources(limits: Resources, reservations: Resources) -> oci.Resources:
    quota = None
    if limits.nano_cpus:
        quota = max(1000, limits.nano_cpus * CPU_PERIOD_US // NANO)
    return oci.Resources(
        memory_bytes=limits.memory_bytes or None,
        memory_reservation_bytes=reservations.memory_bytes or None,
        cpu_quota_us=quota,
        cpu_period_us=CPU_PERIOD_US,
        pids_max=limits.pids or None,
    )


def _seccomp(text: str) -> oci.Seccomp:
    if text in ("", "default"):
        return oci.Seccomp()
    if text == "unconfined":
        return oci.Seccomp(profile="unconfined")
    return oci.Seccomp(profile="custom", document=text)


#: Docker's defaults of the driver local: bytes of a file, files.
LOCAL_FILE_BYTES, LOCAL_FILES = 20 << 20, 5


def log_config(driver: str, given: Mapping[str, str]) -> oci.LogConfig:
    """Return the log of a container from Docker's words for it. Raises UnusableTemplate."""
    options = dict(given)
    match driver:
        case "" | "json-file" | "local":
            made = oci.LogConfig()
            if driver == "local":
                made = oci.LogConfig(
                    driver="local", file_bytes_max=LOCAL_FILE_BYTES, files_max=LOCAL_FILES
                )
            size = _bytes(options.pop("max-size", ""), "max-size")
            files, compress = options.pop("max-file", ""), options.pop("compress", "true")
            if compress not in ("true", "false"):
                raise UnusableTemplate(f"log option compress: {compress!r} is not true or false")
            made = replace(
                made,
                file_bytes_max=size or made.file_bytes_max,
                files_max=int(files) if files.isdigit() else made.files_max,
                compress=compress == "true",
            )
        case "journald":
            made = oci.LogConfig(driver="journald", tag=options.pop("tag", ""))
        case "none":
            made = oci.LogConfig(driver="none")
        case other:
            raise UnusableTemplate(
                f"log driver {other!r} is not built; use json-file, local, journald or none"
            )
    if options:
        raise UnusableTemplate(f"log option {min(options)!r} is not known")
    return made


_SIZE = re.compile(r"(\d+)([kmg]?)b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def _bytes(text: str, name: str) -> int:
    if not text:
        return 0
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UnusableTemplate(f"log option {name}: {text!r} is no size; write for example 10m")
    return int(match[1]) * _UNITS[match[2].lower()]


def _hosts(container: ContainerTemplate, hostname: str, address: str) -> str:
    lines = [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
    ]
    lines += ["\t".join(line.split()) for line in container.hosts]
    if address:
        lines.append(f"{address}\t{hostname}")
    return "\n".join(lines) + "\n"


def _resolv_conf(container: ContainerTemplate, host: Host) -> str | None:
    """The container asks our resolver, which sends on what it does not know."""
    if not host.resolver:
        return host.host_resolv_conf
    lines = []
    if container.dns_search:
        lines.append("search " + " ".join(container.dns_search))
    lines.append(f"nameserver {host.resolver}")
    options = [*container.dns_options]
    if not any(option.startswith("ndots:") for option in options):
        options.append("ndots:0")
    lines.append("options " + " ".join(options))
    return "\n".join(lines) + "\n"


def _labels(task: TaskAssignment) -> dict[str, str]:
    """Docker's labels of a task's container, by which tools find it, over the user's own."""
    return {
        **task.template.container.labels,
        f"{LABEL_PREFIX}node.id": task.node,
        f"{LABEL_PREFIX}service.id": task.service,
        f"{LABEL_PREFIX}service.name": task.service_name,
        f"{LABEL_PREFIX}task": "",
        f"{LABEL_PREFIX}task.id": task.id,
        f"{LABEL_PREFIX}task.name": task.name,
    }


_PLACEHOLDER = re.compile(r"\{\{\s*\.([A-Za-z.]+)\s*\}\}")


def _words(task: TaskAssignment, host: Host) -> dict[str, str]:
    return {
        "Service.ID": task.service,
        "Service.Name": task.service_name,
        "Node.ID": host.node,
        "Node.Hostname": host.node_name,
        "Task.ID": task.id,
        "Task.Name": task.name,
        "Task.Slot": str(task.slot) if task.slot else task.node,
    }


def _expand(text: str, words: Mapping[str, str]) -> str:
    """Fill in Docker's placeholders: {{.Task.Slot}} and the like."""
    if "{{" not in text:
        return text

    def fill(match: re.Match[str]) -> str:
        try:
            return words[match[1]]
        except KeyError:
            known = ", ".join(f"{{{{.{word}}}}}" for word in words)
            raise UnusableTemplate(f"{match[0]} is no placeholder; there are {known}") from None

    return _PLACEHOLDER.sub(fill, text)
