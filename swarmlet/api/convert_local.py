"""Containers run by hand as Docker shows them. Pure but for what it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from swarmlet.agent.local.container import Container, Phase
from swarmlet.agent.local.networks import names_of
from swarmlet.agent.local.records import (
    BUILT_IN,
    DEFAULT_NETWORK,
    Attachment,
    ContainerConfig,
    ContainerRecord,
    LocalNetwork,
)
from swarmlet.agent.topology import mac_of
from swarmlet.api.convert_containers import COMMAND_CHARACTERS, age
from swarmlet.api.convert_mounts import write_binds, write_points, write_tmpfs
from swarmlet.api.fields import nanoseconds, timestamp
from swarmlet.runtime.defaults import MASKED_PATHS, READONLY_PATHS, SHM_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What a container's documents say of the host around it."""

    networks: Mapping[str, LocalNetwork]
    gateway: IPv4Network | IPv6Network
    volumes: str
    now: float


def write_local_row(container: Container, address: str, around: Around) -> dict[str, Any]:
    """A row of `docker ps`."""
    record, config = container.record, container.record.config
    names = [f"/{record.name}"]
    return {
        "Id": record.id,
        "Names": names,
        "Image": config.image,
        "ImageID": record.image_id,
        "Command": " ".join(config.argv)[:COMMAND_CHARACTERS],
        "Created": int(record.created_at),
        "Ports": write_ports_row(record, address),
        "Labels": dict(config.labels),
        "State": str(container.phase),
        "Status": status_text(container, around.now),
        "HostConfig": {"NetworkMode": network_mode(config, around)},
        "NetworkSettings": {"Networks": write_endpoints(container, address, around)},
        "Mounts": write_points(config.mounts, around.volumes),
    }


def status_text(container: Container, now: float) -> str:
    """`Up 3 minutes (healthy)`, `Exited (1) 2 seconds ago`, `Restarting (1) ...`."""
    ended = container.record.ended
    match container.phase:
        case Phase.RUNNING | Phase.PAUSED:
            up = f"Up {age(now - container.started_at)}"
            if container.phase is Phase.PAUSED:
                return f"{up} (Paused)"
            match container.health.status.value:
                case "starting":
                    return f"{up} (health: starting)"
                case "healthy" | "unhealthy" as health:
                    return f"{up} ({health})"
            return up
        case Phase.RESTARTING if ended is not None:
            return f"Restarting ({ended.code}) {age(now - ended.at)} ago"
        case Phase.EXITED if ended is not None:
            return f"Exited ({ended.code}) {age(now - ended.at)} ago"
        case Phase.REMOVING:
            return "Removal In Progress"
    return "Created" if container.phase is Phase.CREATED else str(container.phase).capitalize()


def write_local(
    container: Container, address: str, around: Around, *, log_path: str, execs: list[str]
) -> dict[str, Any]:
    """What `docker inspect` shows."""
    record, config = container.record, container.record.config
    return {
        "Id": record.id,
        "Created": timestamp(record.created_at),
        "Path": config.argv[0],
        "Args": list(config.argv[1:]),
        "State": _write_state(container),
        "Image": record.image_id,
        "ResolvConfPath": "",
        "HostnamePath": "",
        "HostsPath": "",
        "LogPath": log_path if config.log_driver in ("", "json-file") else "",
        "Name": f"/{record.name}",
        "RestartCount": container.streak.restarts or record.restarts,
        "Driver": "overlayfs",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": execs or None,
        "HostConfig": write_host_config(record, around),
        "GraphDriver": {"Name": "overlayfs", "Data": None},
        "Mounts": write_points(config.mounts, around.volumes),
        "Config": _write_config(record),
        "NetworkSettings": _write_network_settings(container, address, around),
    }


def _write_state(container: Container) -> dict[str, Any]:
    ended, health = container.record.ended, container.health
    phase = container.phase
    # A restart clears what is known of the last end, as with Docker: it runs.
    document: dict[str, Any] = {
        "Status": str(phase),
        "Running": phase.runs or phase is Phase.RESTARTING,
        "Paused": phase is Phase.PAUSED,
        "Restarting": phase is Phase.RESTARTING,
        "OOMKilled": ended.oom_killed if ended is not None else False,
        "Dead": False,
        "Pid": container.pid,
        "ExitCode": ended.code if ended is not None else 0,
        "Error": container.error or (ended.error if ended is not None else ""),
        "StartedAt": timestamp(container.started_at),
        "FinishedAt": timestamp(ended.at if ended is not None else 0.0),
    }
    if health.status.value != "started":
        document["Health"] = {
            "Status": health.status.value,
            "FailingStreak": health.failures,
            "Log": [
                {
                    "Start": timestamp(check.at),
                    "End": timestamp(check.at),
                    "ExitCode": 0 if check.passed else 1,
                    "Output": check.output,
                }
                for check in health.checks
            ],
        }
    return document


def _write_config(record: ContainerRecord) -> dict[str, Any]:
    config = record.config
    document: dict[str, Any] = {
        "Hostname": config.hostname or record.id[:12],
        "Domainname": config.domainname,
        "User": config.user,
        "AttachStdin": config.attach_stdin,
        "AttachStdout": config.attach_stdout,
        "AttachStderr": config.attach_stderr,
        "ExposedPorts": {port: {} for port in config.exposed} or None,
        "Tty": config.tty,
        "OpenStdin": config.open_stdin,
        "StdinOnce": config.stdin_once,
        "Env": list(config.env),
        "Cmd": list(config.command) if config.command is not None else None,
        "Image": config.image,
        "Volumes": {target: {} for target in config.volumes} or None,
        "WorkingDir": config.directory,
        "Entrypoint": list(config.entrypoint) if config.entrypoint is not None else None,
        "OnBuild": None,
        "Labels": dict(config.labels),
    }
    if config.stop_signal:
        document["StopSignal"] = config.stop_signal
    if config.stop_grace is not None:
        document["StopTimeout"] = -1 if config.stop_grace == float("inf") else config.stop_grace
        document["StopTimeout"] = int(document["StopTimeout"])
    if (check := config.healthcheck) is not None:
        document["Healthcheck"] = {
            "Test": list(check.test),
            "Interval": nanoseconds(check.interval),
            "Timeout": nanoseconds(check.timeout),
            "StartPeriod": nanoseconds(check.start_period),
            "StartInterval": nanoseconds(check.start_interval),
            "Retries": check.retries,
        }
    return document


def network_mode(config: ContainerConfig, around: Around) -> str:
    found = around.networks.get(config.network)
    return found.name if found is not None else config.network


def write_host_config(record: ContainerRecord, around: Around) -> dict[str, Any]:
    config = record.config
    limits = config.limits
    masked = config.masked_paths if config.masked_paths is not None else MASKED_PATHS
    readonly = config.readonly_paths if config.readonly_paths is not None else READONLY_PATHS
    security = ["no-new-privileges"] if config.no_new_privileges else []
    security += [f"seccomp={config.seccomp}"] if config.seccomp else []
    bindings: dict[str, list[dict[str, str]]] = {}
    for port in config.ports:
        text = f"{port.first}-{port.last}" if port.last > port.first else str(port.first or "")
        asked = {"HostIp": port.address, "HostPort": text}
        bindings.setdefault(f"{port.target}/{port.protocol}", []).append(asked)
    return {
        "Binds": write_binds(config.mounts),
        "ContainerIDFile": "",
        "LogConfig": {
            "Type": config.log_driver or "json-file",
            "Config": dict(config.log_options),
        },
        "NetworkMode": network_mode(config, around),
        "PortBindings": bindings,
        "RestartPolicy": {
            "Name": str(config.restart.name),
            "MaximumRetryCount": config.restart.attempts_max,
        },
        "AutoRemove": config.auto_remove,
        "VolumeDriver": "",
        "VolumesFrom": list(config.volumes_from) or None,
        "ConsoleSize": [0, 0],
        "Annotations": dict(config.annotations) or None,
        "CapAdd": list(config.capabilities_add) or None,
        "CapDrop": list(config.capabilities_drop) or None,
        "CgroupnsMode": config.cgroup or "private",
        "Dns": list(config.dns),
        "DnsOptions": list(config.dns_options),
        "DnsSearch": list(config.dns_search),
        "ExtraHosts": list(config.hosts) or None,
        "GroupAdd": list(config.groups) or None,
        "IpcMode": config.ipc or "private",
        "Cgroup": "",
        "Links": None,
        "OomScoreAdj": config.oom_score_adj,
        "PidMode": config.pid,
        "Privileged": config.privileged,
        "PublishAllPorts": config.publish_all,
        "ReadonlyRootfs": config.read_only,
        "SecurityOpt": security or None,
        "Tmpfs": write_tmpfs(config.mounts),
        "UTSMode": config.uts,
        "UsernsMode": "",
        "ShmSize": config.shm_bytes or SHM_BYTES,
        "Sysctls": dict(config.sysctls) or None,
        "Runtime": "swarmlet",
        "Isolation": "",
        "CpuShares": limits.cpu_shares,
        "Memory": limits.memory_bytes,
        "NanoCpus": limits.nano_cpus,
        "CgroupParent": "",
        "BlkioWeight": 0,
        "BlkioWeightDevice": [],
        "BlkioDeviceReadBps": _rates(record, "read_bytes"),
        "BlkioDeviceWriteBps": _rates(record, "write_bytes"),
        "BlkioDeviceReadIOps": _rates(record, "read_operations"),
        "BlkioDeviceWriteIOps": _rates(record, "write_operations"),
        "CpuPeriod": limits.cpu_period_us,
        "CpuQuota": limits.cpu_quota_us,
        "CpuRealtimePeriod": 0,
        "CpuRealtimeRuntime": 0,
        "CpusetCpus": limits.cpuset_cpus,
        "CpusetMems": limits.cpuset_mems,
        "Devices": [
            {
                "PathOnHost": device.source,
                "PathInContainer": device.target,
                "CgroupPermissions": device.access,
            }
            for device in config.devices
        ],
        "DeviceCgroupRules": list(config.device_rules) or None,
        "DeviceRequests": None,
        "MemoryReservation": limits.memory_reservation_bytes,
        "MemorySwap": limits.memory_swap_bytes,
        "MemorySwappiness": None,
        "OomKillDisable": False,
        "PidsLimit": limits.pids or None,
        "Ulimits": [{"Name": u.name, "Soft": u.soft, "Hard": u.hard} for u in config.ulimits],
        "Init": config.init,
        "MaskedPaths": [] if config.privileged else list(masked),
        "ReadonlyPaths": [] if config.privileged else list(readonly),
    }


def _rates(record: ContainerRecord, field: str) -> list[dict[str, Any]]:
    return [
        {"Path": limit.path, "Rate": getattr(limit, field)}
        for limit in record.config.limits.io
        if getattr(limit, field)
    ]


# Networks and ports.


def _write_network_settings(container: Container, address: str, around: Around) -> dict[str, Any]:
    endpoints = write_endpoints(container, address, around)
    default = endpoints.get(DEFAULT_NETWORK, {})
    return {
        "Bridge": "",
        "SandboxID": container.id if container.is_up else "",
        "SandboxKey": "",
        "Ports": write_ports(container.record, up=container.is_up),
        "EndpointID": default.get("EndpointID", ""),
        "Gateway": default.get("Gateway", ""),
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "IPAddress": default.get("IPAddress", ""),
        "IPPrefixLen": default.get("IPPrefixLen", 0),
        "IPv6Gateway": "",
        "MacAddress": default.get("MacAddress", ""),
        "Networks": endpoints,
    }


def write_endpoints(container: Container, address: str, around: Around) -> dict[str, Any]:
    """*address* is the container's on the host's bridge."""
    found = {}
    for attachment in container.record.config.attachments:
        network = around.networks.get(attachment.network)
        name = network.name if network is not None else attachment.network
        found[name] = _write_endpoint(container, attachment, network, address, around)
    return found


def _write_endpoint(
    container: Container,
    attachment: Attachment,
    network: LocalNetwork | None,
    address: str,
    around: Around,
) -> dict[str, Any]:
    own, gateway, prefix, mac = "", "", 0, ""
    if network is not None and attachment.address:
        own, gateway = attachment.address, network.gateway
        prefix, mac = ip_network(network.subnet).prefixlen, attachment.mac
    elif attachment.network == DEFAULT_NETWORK and container.is_up:
        own, gateway, prefix = address, str(around.gateway[1]), around.gateway.prefixlen
        mac = attachment.asked_mac or (mac_of(ip_address(address)) if address else "")
    asked = {"IPv4Address": attachment.asked_address} if attachment.asked_address else None
    is_ours = attachment.network not in BUILT_IN
    return {
        "IPAMConfig": asked,
        "Links": None,
        "Aliases": list(attachment.aliases) or None,
        "MacAddress": mac,
        "DriverOpts": None,
        "GwPriority": 0,
        "NetworkID": attachment.network,
        "EndpointID": container.id if own else "",
        "Gateway": gateway,
        "IPAddress": own,
        "IPPrefixLen": prefix,
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "DNSNames": list(names_of(container.record, attachment)) if is_ours else None,
    }


def write_ports(record: ContainerRecord, *, up: bool) -> dict[str, Any]:
    """NetworkSettings.Ports: what is exposed, and where it is published."""
    if not up:
        return {}
    found: dict[str, Any] = dict.fromkeys(record.config.exposed)
    for port in record.ports:
        entry = {"HostIp": port.address or "0.0.0.0", "HostPort": str(port.port)}
        key = f"{port.target}/{port.protocol}"
        found[key] = [*(found.get(key) or []), entry]
    return found


def write_ports_row(record: ContainerRecord, address: str) -> list[dict[str, Any]]:
    if not address:
        return []
    rows: list[dict[str, Any]] = []
    published = set()
    for port in record.ports:
        published.add((port.target, port.protocol))
        rows.append(
            {
                "IP": port.address or "0.0.0.0",
                "PrivatePort": port.target,
                "PublicPort": port.port,
                "Type": port.protocol,
            }
        )
    for text in record.config.exposed:
        target, _, protocol = text.partition("/")
        if (int(target), protocol) not in published:
            rows.append({"PrivatePort": int(target), "Type": protocol})
    return rows
