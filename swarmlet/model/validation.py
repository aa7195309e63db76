"""What a spec must be before it enters the store: each refusal names the path to the field.

Pure. Checks that need no other object are here; names that are taken, networks that do not
exist and ports that are in use are the manager's to refuse (swarmlet/manager/control.py).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from swarmlet.model.specs import (
    ContainerTemplate,
    EndpointMode,
    Global,
    Mount,
    MountType,
    NetworkSpec,
    NodeSpec,
    PortConfig,
    Protocol,
    PublishMode,
    Replicated,
    Resources,
    RestartPolicy,
    ServiceSpec,
    TaskTemplate,
    UpdateConfig,
)

NAME_CHARACTERS_MAX = 63
REPLICAS_MAX = 10_000
PORT_MAX = 65_535
MEMORY_BYTES_MIN = 6 << 20  # what a process needs to exist at all; Docker's least is 6 MiB too
NANO_CPUS_MIN = 1_000_000
CONSTRAINTS_MAX = 64

#: A DNS label: the name is looked up by other tasks (RFC 1123, 2.1).
NAME = re.compile(r"[a-zA-Z0-9](?:[-a-zA-Z0-9_.]*[a-zA-Z0-9])?\Z")
CONSTRAINT = re.compile(
    r"\s*(node\.(?:id|hostname|role|platform\.os|platform\.arch|ip|labels\.[\w./-]+)"
    r"|engine\.labels\.[\w./-]+)\s*(==|!=)\s*([\w:.\-+*/ ]+?)\s*\Z"
)
SPREAD = re.compile(r"(node|engine)\.labels\.[\w./-]+\Z|node\.(id|hostname)\Z")
SIGNAL = re.compile(r"(SIG)?[A-Z][A-Z0-9+\-]{1,9}\Z|[0-9]{1,2}\Z")


class SpecError(ValueError):
    """The user asked for something that cannot be: *path* says where, *reason* what to do."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.path = path
        self.reason = reason


def check_name(name: str, path: str, kind: str) -> None:
    if not name:
        raise SpecError(path, f"a {kind} needs a name")
    if len(name) > NAME_CHARACTERS_MAX:
        raise SpecError(path, f"{len(name)} characters; a name has at most {NAME_CHARACTERS_MAX}")
    if not NAME.match(name):
        raise SpecError(
            path, f"{name!r} is no name: letters, digits, '-', '_' and '.', no mark at either end"
        )


def check_service(spec: ServiceSpec) -> None:
    """Raises SpecError at the first field that cannot be."""
    check_name(spec.name, "name", "service")
    check_labels(spec.labels, "labels")
    _check_task(spec.task, "task_template")
    match spec.mode:
        case Replicated(replicas):
            if not 0 <= replicas <= REPLICAS_MAX:
                raise SpecError(
                    "mode.replicated.replicas", f"{replicas} is not 0 to {REPLICAS_MAX}"
                )
        case Global():
            if spec.task.placement.max_replicas_per_node:
                raise SpecError(
                    "task_template.placement.max_replicas",
                    "a global service has one task a node already; leave it out",
                )
    _check_update(spec.update, "update_config")
    _check_update(spec.rollback, "rollback_config")
    if spec.endpoint.mode is EndpointMode.DNSRR and any(
        port.mode is PublishMode.INGRESS for port in spec.endpoint.ports
    ):
        raise SpecError(
            "endpoint_spec.mode",
            "dnsrr does not go with a port published in ingress mode; publish it in host mode, "
            "or use endpoint mode vip",
        )
    check_ports(spec.endpoint.ports, "endpoint_spec.ports")
    if spec.replace_after < 0:
        raise SpecError("replace_after", "must not be negative")


def _check_task(task: TaskTemplate, path: str) -> None:
    _check_container(task.container, f"{path}.container_spec")
    _check_resources(task.limits, f"{path}.resources.limits", limits=True)
    _check_resources(task.reservations, f"{path}.resources.reservations", limits=False)
    for name, unit in (("memory_bytes", "bytes"), ("nano_cpus", "billionths of a cpu")):
        limit, reserved = getattr(task.limits, name), getattr(task.reservations, name)
        if limit and reserved > limit:
            raise SpecError(
                f"{path}.resources.reservations.{name}",
                f"{reserved} {unit} reserved, but the limit is {limit}",
            )
    _check_restart(task.restart, f"{path}.restart_policy")
    placement = task.placement
    if len(placement.constraints) > CONSTRAINTS_MAX:
        raise SpecError(f"{path}.placement.constraints", f"more than {CONSTRAINTS_MAX}")
    for position, constraint in enumerate(placement.constraints):
        if not CONSTRAINT.match(constraint):
            raise SpecError(
                f"{path}.placement.constraints[{position}]",
                f"{constraint!r} is no constraint; write for example node.role==manager or "
                "node.labels.zone!=north",
            )
    for position, spread in enumerate(placement.spread):
        if not SPREAD.match(spread):
            raise SpecError(
                f"{path}.placement.preferences[{position}]",
                f"{spread!r} cannot be spread over; write for example spread=node.labels.zone",
            )
    if placement.max_replicas_per_node < 0:
        raise SpecError(f"{path}.placement.max_replicas", "must not be negative")
    targets = [attachment.target for attachment in task.networks]
    for position, target in enumerate(targets):
        if not target:
            raise SpecError(f"{path}.networks[{position}].target", "names no network")
        if target in targets[:position]:
            raise SpecError(f"{path}.networks[{position}].target", f"{target} is given twice")


def _check_container(container: ContainerTemplate, path: str) -> None:
    if not container.image:
        raise SpecError(f"{path}.image", "a service needs an image")
    if container.hostname:
        hostname = container.hostname
        if "{{" not in hostname and not NAME.match(hostname):
            raise SpecError(f"{path}.hostname", f"{hostname!r} is no host name")
    for position, entry in enumerate(container.env):
        if entry.startswith("=") or not entry:
            raise SpecError(f"{path}.env[{position}]", f"{entry!r} names no variable")
        if "\0" in entry:
            raise SpecError(f"{path}.env[{position}]", "holds a NUL character")
    if container.directory and not container.directory.startswith("/"):
        raise SpecError(f"{path}.dir", f"{container.directory!r} is not an absolute path")
    if container.userns not in ("", "private", "host"):
        raise SpecError(f"{path}.userns", f"{container.userns!r} is neither private nor host")
    if container.stop_signal and not SIGNAL.match(container.stop_signal):
        raise SpecError(f"{path}.stop_signal", f"{container.stop_signal!r} is no signal")
    if container.stop_grace < 0:
        raise SpecError(f"{path}.stop_grace_period", "must not be negative")
    if not -1000 <= container.oom_score_adj <= 1000:
        raise SpecError(f"{path}.oom_score_adj", f"{container.oom_score_adj} is not -1000 to 1000")
    check_labels(container.labels, f"{path}.labels")
    _check_mounts(container.mounts, f"{path}.mounts")
    for position, server in enumerate(container.dns_servers):
        check_address(server, f"{path}.dns_config.nameservers[{position}]")
    for position, line in enumerate(container.hosts):
        address, *names = line.split()[:2] or [""]
        if not names:
            raise SpecError(f"{path}.hosts[{position}]", f"{line!r} is not 'address name'")
        check_address(address, f"{path}.hosts[{position}]")
    check = container.healthcheck
    if check is not None:
        if check.test and check.test[0] not in ("NONE", "CMD", "CMD-SHELL"):
            raise SpecError(
                f"{path}.healthcheck.test[0]", f"{check.test[0]!r}: not NONE, CMD or CMD-SHELL"
            )
        if len(check.test) == 1 and check.test[0] != "NONE":
            raise SpecError(f"{path}.healthcheck.test", "names no command")
        for name in ("interval", "timeout", "retries", "start_period", "start_interval"):
            if getattr(check, name) < 0:
                raise SpecError(f"{path}.healthcheck.{name}", "must not be negative")


def _check_mounts(mounts: tuple[Mount, ...], path: str) -> None:
    seen: set[str] = set()
    for position, mount in enumerate(mounts):
        here = f"{path}[{position}]"
        if not mount.target.startswith("/"):
            raise SpecError(f"{here}.target", f"{mount.target!r} is not an absolute path")
        if ".." in mount.target.split("/"):
            raise SpecError(f"{here}.target", f"{mount.target!r} leads out of the container")
        if mount.target in seen:
            raise SpecError(f"{here}.target", f"{mount.target} is mounted twice")
        seen.add(mount.target)
        if mount.type is MountType.BIND and not mount.source.startswith("/"):
            raise SpecError(f"{here}.source", f"{mount.source!r} is not an absolute path")
        if mount.type is MountType.TMPFS and mount.source:
            raise SpecError(f"{here}.source", "a tmpfs has no source")
        if mount.type is not MountType.TMPFS and (mount.tmpfs_bytes or mount.tmpfs_mode):
            raise SpecError(f"{here}.tmpfs_options", f"do not go with a mount of type {mount.type}")


def _check_resources(resources: Resources, path: str, *, limits: bool) -> None:
    memory, cpus = resources.memory_bytes, resources.nano_cpus
    if memory < 0 or (memory and limits and memory < MEMORY_BYTES_MIN):
        raise SpecError(
            f"{path}.memory_bytes",
            f"{memory} bytes; no process lives in less than {MEMORY_BYTES_MIN} (6 MiB)",
        )
    if cpus < 0 or (cpus and cpus < NANO_CPUS_MIN):
        raise SpecError(f"{path}.nano_cpus", f"{cpus}; the least is {NANO_CPUS_MIN} (0.001 cpu)")
    if resources.pids < 0:
        raise SpecError(f"{path}.pids", "must not be negative")


def _check_restart(policy: RestartPolicy, path: str) -> None:
    for name in ("delay", "max_attempts", "window"):
        if getattr(policy, name) < 0:
            raise SpecError(f"{path}.{name}", "must not be negative")


def _check_update(config: UpdateConfig, path: str) -> None:
    for name in ("parallelism", "delay", "monitor"):
        if getattr(config, name) < 0:
            raise SpecError(f"{path}.{name}", "must not be negative")
    if not 0.0 <= config.max_failure_ratio <= 1.0:
        raise SpecError(f"{path}.max_failure_ratio", f"{config.max_failure_ratio} is not 0 to 1")


def check_ports(ports: tuple[PortConfig, ...], path: str) -> None:
    seen: set[tuple[int, Protocol, PublishMode]] = set()
    for position, port in enumerate(ports):
        here = f"{path}[{position}]"
        if not 1 <= port.target <= PORT_MAX:
            raise SpecError(f"{here}.target_port", f"{port.target} is no port")
        if not 0 <= port.published <= PORT_MAX:
            raise SpecError(f"{here}.published_port", f"{port.published} is no port")
        if port.protocol is Protocol.SCTP:
            raise SpecError(
                f"{here}.protocol", "sctp ports cannot be published yet; use tcp or udp"
            )
        key = (port.published, port.protocol, port.mode)
        if port.published and key in seen:
            raise SpecError(
                f"{here}.published_port", f"{port.published}/{port.protocol} is published twice"
            )
        seen.add(key)
        if port.ip:
            check_network(port.ip, f"{here}.ip")


def check_labels(labels: Iterable[str], path: str) -> None:
    for label in labels:
        if not label or label != label.strip():
            raise SpecError(path, f"{label!r} is no label")


def check_node(spec: NodeSpec) -> None:
    if spec.name:
        check_name(spec.name, "name", "node")
    check_labels(spec.labels, "labels")


def check_network_spec(spec: NetworkSpec) -> None:
    check_name(spec.name, "name", "network")
    check_labels(spec.labels, "labels")
    if spec.driver != "overlay":
        raise SpecError("driver", f"{spec.driver!r} is not built yet; use overlay")
    for option in spec.options:
        if option not in NETWORK_OPTIONS:
            known = ", ".join(sorted(NETWORK_OPTIONS))
            raise SpecError(f"options.{option}", f"is not known; known are {known}")
    if spec.subnet:
        subnet = check_network(spec.subnet, "ipam.config[0].subnet")
        if subnet.version != 4:
            raise SpecError("ipam.config[0].subnet", "IPv6 is not built yet")
        if not 8 <= subnet.prefixlen <= 29:
            raise SpecError("ipam.config[0].subnet", f"/{subnet.prefixlen} is not /8 to /29")
        if spec.gateway and ipaddress.ip_address(spec.gateway) not in subnet:
            raise SpecError("ipam.config[0].gateway", f"{spec.gateway} is not in {subnet}")
    elif spec.gateway:
        raise SpecError("ipam.config[0].gateway", "a gateway needs a subnet")


#: Driver options that have a meaning here.
NETWORK_OPTIONS = {"com.docker.network.driver.mtu"}


def check_address(text: str, path: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise SpecError(path, f"{text!r} is no IP address") from None


def check_network(text: str, path: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=True)
    except ValueError as exc:
        raise SpecError(path, f"{text!r} is no IP network: {exc}") from None
