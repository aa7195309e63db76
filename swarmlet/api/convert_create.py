"""The body of `POST /containers/create` as a ContainerConfig: what `docker run` can say.

Pure. A field that is known and cannot be had is refused by its name, with what to do instead; the
empty values that Docker's client sends for what nobody asked are no request.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable
from dataclasses import fields as fields_of
from dataclasses import replace
from posixpath import normpath
from typing import Any

from swarmlet.agent.local.networks import expand_exposed
from swarmlet.agent.local.records import (
    DEFAULT_NETWORK,
    HOST_NETWORK,
    NO_NETWORK,
    OF_CONTAINER,
    Attachment,
    ContainerConfig,
    DeviceRequest,
    IoLimit,
    Limits,
    PortRequest,
    Restart,
    RestartPolicy,
)
from swarmlet.api.convert_container import read_healthcheck
from swarmlet.api.convert_mounts import read_bind, read_mount, read_tmpfs
from swarmlet.api.fields import Fields
from swarmlet.model import Healthcheck, Ulimit
from swarmlet.model.validation import SpecError
from swarmlet.runtime.spec import RLIMITS

UNCONFINED = "unconfined"
#: Docker's least, with which a process can begin at all.
MEMORY_BYTES_MIN = 6 << 20
PORTS_MAX = 10_000
CONTAINER_MODES = re.compile(r"container:.+\Z")
DEVICE_RULE = re.compile(r"[abc] ([0-9]+|\*):([0-9]+|\*) [rwm]{1,3}\Z")
MAC = re.compile(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}\Z")


def read_create(body: Any) -> ContainerConfig:
    """Raises SpecError with the path to the first field that cannot be."""
    fields = Fields(body)
    host = fields.child("HostConfig") or Fields({}, "HostConfig")
    networking = fields.child("NetworkingConfig")
    config = ContainerConfig(
        image=fields.text("Image"),
        entrypoint=_command(fields, "Entrypoint"),
        command=_command(fields, "Cmd"),
        env=_env(fields),
        labels=fields.text_map("Labels"),
        hostname=fields.text("Hostname"),
        domainname=fields.text("Domainname"),
        user=fields.text("User"),
        directory=fields.text("WorkingDir"),
        tty=fields.flag("Tty"),
        open_stdin=fields.flag("OpenStdin"),
        stdin_once=fields.flag("StdinOnce"),
        attach_stdin=fields.flag("AttachStdin"),
        attach_stdout=fields.flag("AttachStdout"),
        attach_stderr=fields.flag("AttachStderr"),
        stop_signal=fields.text("StopSignal"),
        stop_grace=_stop_grace(fields),
        healthcheck=_read_known_healthcheck(fields.child("Healthcheck")),
        exposed=_exposed(fields),
        volumes=tuple(_object_keys(fields, "Volumes")),
    )
    if not config.image:
        raise SpecError("Image", "names no image")
    if config.directory and not config.directory.startswith("/"):
        raise SpecError("WorkingDir", f"{config.directory!r} is no absolute path")
    mac = fields.text("MacAddress")
    fields.refuse("NetworkDisabled", "say --network none")
    fields.refuse("OnBuild", "has a meaning in an image only")
    fields.refuse("Shell", "has a meaning in an image only")
    fields.ignore("ArgsEscaped")
    fields.done()
    config = _read_host_config(config, host)
    config = _read_networks(config, networking, mac)
    _check(config)
    return config


def _command(fields: Fields, name: str) -> tuple[str, ...] | None:
    """A list, or one word; None: not said. `--entrypoint ""` comes as [""]."""
    value = fields.take(name)
    if value is None:
        return None
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise SpecError(fields.at(name), "must be a list of texts")
    return tuple(value)


def _env(fields: Fields) -> tuple[str, ...]:
    env = fields.texts("Env")
    for index, entry in enumerate(env):
        if not entry.partition("=")[0] or "\0" in entry:
            raise SpecError(f"{fields.at('Env')}[{index}]", "is no NAME=VALUE")
    return env


def _stop_grace(fields: Fields) -> float | None:
    if not fields.has("StopTimeout"):
        return None
    seconds = fields.integer("StopTimeout")
    return float("inf") if seconds < 0 else float(seconds)


def _exposed(fields: Fields) -> tuple[str, ...]:
    found = []
    for text in _object_keys(fields, "ExposedPorts"):
        try:
            found += [f"{port}/{protocol}" for port, protocol in expand_exposed(text)]
        except ValueError as exc:
            raise SpecError(fields.at("ExposedPorts"), str(exc)) from None
    return tuple(found)


def _object_keys(fields: Fields, name: str) -> list[str]:
    value = fields.take(name)
    if value is None:
        return []
    if not isinstance(value, dict):
        raise SpecError(fields.at(name), 'must be an object such as {"80/tcp": {}}')
    return list(value)


def _read_known_healthcheck(fields: Fields | None) -> Healthcheck | None:
    check = read_healthcheck(fields)
    if fields is None or check is None:
        return None
    if check.test and check.test[0] not in ("NONE", "CMD", "CMD-SHELL"):
        raise SpecError(fields.at("Test"), f"{check.test[0]!r} is not NONE, CMD or CMD-SHELL")
    return check


def _read_host_config(config: ContainerConfig, host: Fields) -> ContainerConfig:
    log = host.child("LogConfig") or Fields({}, "HostConfig.LogConfig")
    config = replace(
        config,
        mounts=(
            *(read_bind(text, host.at("Binds")) for text in host.texts("Binds")),
            *(read_mount(mount) for mount in host.children("Mounts")),
            *(read_tmpfs(path, text) for path, text in host.text_map("Tmpfs").items()),
        ),
        volumes_from=host.texts("VolumesFrom"),
        network=_network_mode(host),
        ports=tuple(_read_ports(host)),
        publish_all=host.flag("PublishAllPorts"),
        dns=_addresses(host, "Dns"),
        dns_search=host.texts("DnsSearch"),
        dns_options=host.texts("DnsOptions"),
        hosts=_extra_hosts(host),
        groups=host.texts("GroupAdd"),
        restart=read_restart(host.child("RestartPolicy")),
        auto_remove=host.flag("AutoRemove"),
        privileged=host.flag("Privileged"),
        read_only=host.flag("ReadonlyRootfs"),
        init=host.flag("Init"),
        capabilities_add=host.texts("CapAdd"),
        capabilities_drop=host.texts("CapDrop"),
        devices=tuple(_read_device(device) for device in host.children("Devices")),
        device_rules=_device_rules(host),
        ulimits=tuple(_read_ulimit(limit) for limit in host.children("Ulimits")),
        sysctls=host.text_map("Sysctls"),
        shm_bytes=host.integer("ShmSize", least=0),
        oom_score_adj=host.integer("OomScoreAdj"),
        ipc=_mode(host, "IpcMode", ("", "private", "shareable", "host"), containers=True),
        pid=_mode(host, "PidMode", ("", "host"), containers=True),
        uts=_mode(host, "UTSMode", ("", "host")),
        cgroup=_mode(host, "CgroupnsMode", ("", "private", "host")),
        log_driver=log.text("Type"),
        log_options=log.text_map("Config"),
        masked_paths=_paths(host, "MaskedPaths"),
        readonly_paths=_paths(host, "ReadonlyPaths"),
        annotations=host.text_map("Annotations"),
        limits=read_limits(host),
    )
    log.done()
    config = _read_security(config, host)
    _refuse_rest(host)
    host.done()
    return config


def _refuse_rest(host: Fields) -> None:
    """What Docker has and we do not, by name."""
    for name, reason in (
        ("Links", "links are Docker's past; put both on a network: names mean containers there"),
        ("StorageOpt", "the writable layer has no size here; use a volume, or --tmpfs with a size"),
        ("DeviceRequests", "GPUs are not built; give their device nodes with --device"),
        ("CgroupParent", "containers are below the daemon's own group; see --cgroup-parent of it"),
        ("CpuRealtimePeriod", "real-time scheduling is not built; use --cpu-shares"),
        ("CpuRealtimeRuntime", "real-time scheduling is not built; use --cpu-shares"),
        ("BlkioWeight", "weights are not built; limit a device with --device-write-bps"),
        ("BlkioWeightDevice", "weights are not built; limit a device with --device-write-bps"),
        ("KernelMemory", "kernels have no such limit any more; use --memory"),
        ("KernelMemoryTCP", "kernels have no such limit any more; use --memory"),
        ("OomKillDisable", "it would freeze the host; give more --memory, or --oom-score-adj"),
        ("CpuCount", "exists on Windows only"),
        ("CpuPercent", "exists on Windows only"),
        ("IOMaximumIOps", "exists on Windows only"),
        ("IOMaximumBandwidth", "exists on Windows only"),
        ("Cgroup", "is nothing that Linux knows"),
    ):
        host.refuse(name, reason)
    swappiness = host.integer("MemorySwappiness", -1)
    if swappiness not in (-1, 0):
        raise SpecError(host.at("MemorySwappiness"), "is not built; limit with --memory-swap")
    for name, allowed, reason in (
        ("UsernsMode", ("", "host"), "user namespaces are not built for these; leave it out"),
        ("Isolation", ("", "default"), "exists on Windows only"),
        ("Runtime", ("", "swarmlet", "runc"), "there is one runtime here; leave it out"),
        ("VolumeDriver", ("", "local"), "volumes are folders of this host: local is the driver"),
    ):
        value = host.text(name)
        if value not in allowed:
            raise SpecError(host.at(name), f"{value!r}: {reason}")
    host.ignore("ConsoleSize", "ContainerIDFile")


def read_limits(host: Fields) -> Limits:
    """The resource limits of a HostConfig, or of the body of `update`. Raises SpecError."""
    pids = host.integer("PidsLimit", least=-1)
    limits = Limits(
        memory_bytes=host.integer("Memory", least=0),
        memory_swap_bytes=host.integer("MemorySwap", least=-1),
        memory_reservation_bytes=host.integer("MemoryReservation", least=0),
        nano_cpus=host.integer("NanoCpus", least=0),
        cpu_period_us=host.integer("CpuPeriod", least=0),
        cpu_quota_us=host.integer("CpuQuota", least=-1),
        cpu_shares=host.integer("CpuShares", least=0),
        cpuset_cpus=host.text("CpusetCpus"),
        cpuset_mems=host.text("CpusetMems"),
        pids=max(pids, 0),
        io=_read_io(host),
    )
    if 0 < limits.memory_bytes < MEMORY_BYTES_MIN:
        raise SpecError(host.at("Memory"), "Minimum memory limit allowed is 6MB")
    if limits.memory_swap_bytes > 0 and not limits.memory_bytes:
        reason = "You should always set the Memory limit when using Memoryswap limit"
        raise SpecError(host.at("MemorySwap"), reason)
    if 0 < limits.memory_swap_bytes < limits.memory_bytes:
        reason = "Minimum memoryswap limit should be larger than memory limit"
        raise SpecError(host.at("MemorySwap"), reason)
    if limits.nano_cpus and (limits.cpu_quota_us or limits.cpu_period_us):
        reason = "Conflicting options: Nano CPUs and CPU Period or Quota cannot both be set"
        raise SpecError(host.at("NanoCpus"), reason)
    return limits


def merge_limits(limits: Limits, asked: Limits) -> Limits:
    """What an update asks for, over what there is: only what it names changes."""
    given = {
        field.name: value
        for field in fields_of(Limits)
        if (value := getattr(asked, field.name)) not in (0, "", ())
    }
    if "nano_cpus" in given:
        given |= {"cpu_quota_us": 0, "cpu_period_us": 0}
    elif "cpu_quota_us" in given or "cpu_period_us" in given:
        given["nano_cpus"] = 0
    merged = replace(limits, **given)
    if 0 < merged.memory_swap_bytes < merged.memory_bytes:
        raise SpecError(
            "Memory",
            "Memory limit should be smaller than already set memoryswap limit, update the "
            "memoryswap at the same time",
        )
    return merged


def _read_io(host: Fields) -> tuple[IoLimit, ...]:
    names = {
        "BlkioDeviceReadBps": "read_bytes",
        "BlkioDeviceWriteBps": "write_bytes",
        "BlkioDeviceReadIOps": "read_operations",
        "BlkioDeviceWriteIOps": "write_operations",
    }
    found: dict[str, IoLimit] = {}
    for name, field in names.items():
        for entry in host.children(name):
            path, rate = entry.text("Path"), entry.integer("Rate", least=0)
            entry.done()
            limit = found.get(path, IoLimit(path=path))
            found[path] = replace(limit, **{field: rate})  # type: ignore[arg-type]
    return tuple(found.values())


def read_restart(fields: Fields | None) -> RestartPolicy:
    if fields is None:
        return RestartPolicy()
    name = fields.choice("Name", Restart, Restart.NO)
    attempts = fields.integer("MaximumRetryCount", least=0)
    fields.done()
    if attempts and name is not Restart.ON_FAILURE:
        raise SpecError(
            fields.at("MaximumRetryCount"),
            "invalid restart policy: maximum retry count can only be used with 'on-failure'",
        )
    return RestartPolicy(name, attempts)


def _network_mode(host: Fields) -> str:
    mode = host.text("NetworkMode")
    if mode in ("", "default"):
        return DEFAULT_NETWORK
    if mode == OF_CONTAINER:
        raise SpecError(host.at("NetworkMode"), "names no container")
    return mode


def _mode(host: Fields, name: str, allowed: tuple[str, ...], *, containers: bool = False) -> str:
    mode = host.text(name)
    if mode in allowed or (containers and CONTAINER_MODES.match(mode)):
        return mode
    known = ", ".join(word for word in allowed if word)
    more = " and container:NAME" if containers else ""
    raise SpecError(host.at(name), f"{mode!r} is not built; there are {known}{more}")


def _read_ports(host: Fields) -> Iterable[PortRequest]:
    value = host.take("PortBindings")
    if value is None:
        return
    if not isinstance(value, dict):
        raise SpecError(host.at("PortBindings"), "must be an object")
    count = 0
    for target_text, bindings in value.items():
        path = f"{host.at('PortBindings')}.{target_text}"
        try:
            ((target, protocol),) = list(expand_exposed(target_text))
        except ValueError:
            raise SpecError(path, "is no port such as 80/tcp") from None
        if protocol == "sctp":
            raise SpecError(path, "SCTP is not built; publish tcp or udp")
        if bindings is not None and not isinstance(bindings, list):
            raise SpecError(path, "must be a list")
        for index, entry in enumerate(bindings or [{}]):
            binding = Fields(entry, f"{path}[{index}]")
            address, port = binding.text("HostIp"), binding.text("HostPort")
            binding.done()
            count += 1
            if count > PORTS_MAX:
                raise SpecError(path, f"more than {PORTS_MAX} published ports")
            first, last = _port_range(port, binding.at("HostPort"))
            yield PortRequest(
                target=target,
                protocol=protocol,
                address=_host_address(address, binding.at("HostIp")),
                first=first,
                last=last,
            )


def _port_range(text: str, path: str) -> tuple[int, int]:
    if text in ("", "0"):
        return 0, 0
    first, dash, last = text.partition("-")
    parts = (first, last) if dash else (first, first)
    if not all(part.isascii() and part.isdigit() and 0 < int(part[:6]) <= 65535 for part in parts):
        raise SpecError(path, f"{text[:60]!r} is no port")
    low, high = int(parts[0]), int(parts[1])
    if high < low:
        raise SpecError(path, f"{text!r} ends before it begins")
    return low, high


def _host_address(text: str, path: str) -> str:
    if not text:
        return ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise SpecError(path, f"{text[:60]!r} is no address of this host") from None
    if address.version == 6:
        raise SpecError(path, "IPv6 ports are not built yet; publish on an IPv4 address")
    return str(address)


def _addresses(host: Fields, name: str) -> tuple[str, ...]:
    found = host.texts(name)
    for index, text in enumerate(found):
        try:
            ipaddress.ip_address(text)
        except ValueError:
            raise SpecError(f"{host.at(name)}[{index}]", f"{text[:60]!r} is no address") from None
    return found


def _extra_hosts(host: Fields) -> tuple[str, ...]:
    found = []
    for index, text in enumerate(host.texts("ExtraHosts")):
        name, separator, address = text.partition(":")
        path = f"{host.at('ExtraHosts')}[{index}]"
        if not (name and separator and address) or set(" \t\n\0") & set(name):
            raise SpecError(path, f"{text[:60]!r} is no NAME:ADDRESS")
        if address == "host-gateway":
            found.append(text)
            continue
        try:
            ipaddress.ip_address(address.strip("[]"))
        except ValueError:
            raise SpecError(path, f"{address[:60]!r} is no address") from None
        found.append(f"{name}:{address.strip('[]')}")
    return tuple(found)


def _read_device(fields: Fields) -> DeviceRequest:
    source = fields.text("PathOnHost")
    device = DeviceRequest(
        source,
        fields.text("PathInContainer") or source,
        fields.text("CgroupPermissions") or "rwm",
    )
    fields.done()
    if not device.source.startswith("/") or not device.target.startswith("/"):
        raise SpecError(fields.path, f"{device.source!r} is no device of this host")
    if not set(device.access) <= set("rwm"):
        raise SpecError(fields.at("CgroupPermissions"), f"{device.access!r} is not of r, w and m")
    return device


def _device_rules(host: Fields) -> tuple[str, ...]:
    rules = host.texts("DeviceCgroupRules")
    for index, rule in enumerate(rules):
        if not DEVICE_RULE.match(rule):
            path = f"{host.at('DeviceCgroupRules')}[{index}]"
            raise SpecError(path, f"invalid device cgroup format '{rule[:60]}'; 'c 13:* rwm'")
    return rules


def _read_ulimit(fields: Fields) -> Ulimit:
    limit = Ulimit(
        fields.text("Name"), fields.integer("Soft", least=-1), fields.integer("Hard", least=-1)
    )
    fields.done()
    if f"RLIMIT_{limit.name.upper()}" not in RLIMITS:
        raise SpecError(fields.at("Name"), f"invalid ulimit type: {limit.name[:40]}")
    if limit.hard != -1 and (limit.soft > limit.hard or limit.soft == -1):
        text = f"the soft limit {limit.soft} is above the hard limit {limit.hard}"
        raise SpecError(fields.path, text)
    return limit


def _paths(host: Fields, name: str) -> tuple[str, ...] | None:
    """None: as usual; (): nothing (`--security-opt systempaths=unconfined`)."""
    return host.texts(name) if host.has(name) else (host.texts(name) or None)


def _read_security(config: ContainerConfig, host: Fields) -> ContainerConfig:
    for index, text in enumerate(host.texts("SecurityOpt")):
        path = f"{host.at('SecurityOpt')}[{index}]"
        name, separator, value = text.partition("=")
        if not separator:
            name, _, value = text.partition(":")
        match name, value:
            case "no-new-privileges", ("" | "true" | "false"):
                config = replace(config, no_new_privileges=value != "false")
            case "seccomp", _:
                config = replace(config, seccomp=_seccomp(value, path))
            case "apparmor", ("" | "unconfined" | "docker-default"):
                pass  # there is none to be confined by
            case "label", "disable":
                pass
            case "systempaths", "unconfined":
                config = replace(config, masked_paths=(), readonly_paths=())
            case _:
                raise SpecError(
                    path,
                    f"{text[:60]!r} is not built; there are no-new-privileges, seccomp=PROFILE, "
                    "seccomp=unconfined and systempaths=unconfined",
                )
    return config


def _seccomp(value: str, path: str) -> str:
    if value in ("", "builtin", "default"):
        return ""
    if value == UNCONFINED:
        return value
    try:
        json.loads(value)
    except (ValueError, RecursionError):
        raise SpecError(path, "Decoding seccomp profile failed: it is not JSON") from None
    return value


def _read_networks(config: ContainerConfig, fields: Fields | None, mac: str) -> ContainerConfig:
    attachments: list[Attachment] = []
    if fields is not None:
        endpoints = fields.take("EndpointsConfig")
        fields.done()
        if endpoints is not None and not isinstance(endpoints, dict):
            raise SpecError("NetworkingConfig.EndpointsConfig", "must be an object")
        for name, value in (endpoints or {}).items():
            path = f"NetworkingConfig.EndpointsConfig.{name}"
            network = DEFAULT_NETWORK if name == "default" else name
            attachments.append(read_endpoint(network, Fields(value or {}, path)))
    attachments = [a for a in attachments if a.network not in (HOST_NETWORK, NO_NETWORK)]
    if mac:  # of clients before API 1.44
        if not MAC.match(mac):
            raise SpecError("MacAddress", f"{mac[:40]!r} is no MAC address")
        own = next((a for a in attachments if a.network == config.network), None)
        rest = [a for a in attachments if a is not own]
        own = replace(own or Attachment(network=config.network), asked_mac=_mac(mac))
        attachments = [own, *rest]
    return replace(config, attachments=tuple(attachments))


def read_endpoint(network: str, fields: Fields) -> Attachment:
    """What is asked of one network. Raises SpecError."""
    address = ""
    if (ipam := fields.child("IPAMConfig")) is not None:
        address = ipam.text("IPv4Address")
        ipam.refuse("IPv6Address", "IPv6 inside a network is not built yet; leave out --ip6")
        ipam.refuse("LinkLocalIPs", "are not built; leave out --link-local-ip")
        ipam.done()
        if address:
            address = _host_address(address, ipam.at("IPv4Address"))
    aliases, mac = fields.texts("Aliases"), fields.text("MacAddress")
    fields.refuse("Links", "links are Docker's past; both names mean containers on the network")
    fields.refuse("DriverOpts", "a network has no options for one container")
    fields.refuse("GwPriority", "the way out is the host's own bridge, whatever the networks are")
    fields.ignore(
        "NetworkID",
        "EndpointID",
        "Gateway",
        "IPAddress",
        "IPPrefixLen",
        "IPv6Gateway",
        "GlobalIPv6Address",
        "GlobalIPv6PrefixLen",
        "DNSNames",
    )
    fields.done()
    if mac and not MAC.match(mac):
        raise SpecError(fields.at("MacAddress"), f"{mac[:40]!r} is no MAC address")
    return Attachment(network=network, aliases=aliases, asked_address=address, asked_mac=_mac(mac))


def _mac(text: str) -> str:
    return text.lower().replace("-", ":")


def _check(config: ContainerConfig) -> None:
    """What does not go together. Raises SpecError."""
    shared = config.network == HOST_NETWORK or config.network_of
    if config.auto_remove and config.restart.name is not Restart.NO:
        raise SpecError("HostConfig.RestartPolicy", "can't create 'AutoRemove' container with it")
    if config.network_of:
        for asked, name in (
            (config.hostname, "hostname"),
            (config.dns, "dns"),
            (config.hosts, "custom host-to-IP mapping"),
            (config.exposed and config.publish_all, "port exposing"),
            (config.ports, "port publishing"),
        ):
            if asked:
                text = f"conflicting options: {name} and the container type network mode"
                raise SpecError("HostConfig.NetworkMode", text)
    if config.uts == HOST_NETWORK and config.hostname:
        raise SpecError("HostConfig.UTSMode", "conflicting options: hostname and the UTS mode")
    if shared and any(a.asked_address or a.aliases for a in config.attachments):
        text = "conflicting options: a shared network has no address or alias of its own"
        raise SpecError("NetworkingConfig", text)
    for point in config.mounts:
        if normpath(point.target) == "/":
            raise SpecError("HostConfig.Mounts", "invalid specification: destination can't be '/'")
    for attachment in config.attachments:
        if attachment.asked_mac and int(attachment.asked_mac[:2], 16) & 1:
            raise SpecError("MacAddress", f"{attachment.asked_mac} is a group's address")
