"""The flags of `run` and `create`, as data, and the body of the call that they make.

Docker's names and meanings. What Docker has and we do not is refused by name, here or by the
daemon, which says what to do instead.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from swarmlet.cli.base import Failure, Parsed, refused_flag, refused_option
from swarmlet.cli.parsing import (
    complete_env,
    parse_binding,
    parse_cpus,
    parse_device,
    parse_duration,
    parse_endpoint,
    parse_env_file,
    parse_mount,
    parse_pair,
    parse_pairs,
    parse_rate,
    parse_restart,
    parse_size,
    parse_swap,
    parse_ulimit,
)

F = TypeVar("F", bound=Callable[..., Any])

BYTES, SWAP = Parsed(parse_size, "bytes"), Parsed(parse_swap, "bytes")
CPUS, DURATION = Parsed(parse_cpus, "cpus"), Parsed(parse_duration, "duration")
RATE = Parsed(parse_rate, "device:rate")


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag. *at* is where its value goes in the body, empty for what create_body() places."""

    flags: tuple[str, ...]
    help: str
    type: Any = str
    at: str = ""
    many: bool = False


def _flag(flags: str, help_: str, type_: Any = str, at: str = "", *, many: bool = False) -> Flag:
    return Flag(tuple(flags.split()), help_, type_, at, many)


#: The limits, which `update` has as well.
LIMITS = (
    _flag("-m --memory", "Most memory, such as 64m.", BYTES, "Memory"),
    _flag("--memory-swap", "Memory and swap together; -1: no limit.", SWAP, "MemorySwap"),
    _flag("--memory-reservation", "Memory that is its own.", BYTES, "MemoryReservation"),
    _flag("--cpus", "Most cpus, such as 0.5.", CPUS, "NanoCpus"),
    _flag("--cpu-period", "Period of the cpu quota in µs.", int, "CpuPeriod"),
    _flag("--cpu-quota", "Cpu time in each period in µs.", int, "CpuQuota"),
    _flag("-c --cpu-shares", "Weight when cpus are short.", int, "CpuShares"),
    _flag("--cpuset-cpus", "Cpus to run on, such as 0-3 or 0,1.", str, "CpusetCpus"),
    _flag("--cpuset-mems", "Memory nodes to use.", str, "CpusetMems"),
    _flag("--pids-limit", "Most processes; -1: no limit.", int, "PidsLimit"),
)
HOST = (
    *LIMITS,
    _flag("--restart", "no, always, unless-stopped or on-failure[:N].", Parsed(parse_restart, "p")),
    _flag("--cap-add", "A capability more.", str, "CapAdd", many=True),
    _flag("--cap-drop", "A capability less.", str, "CapDrop", many=True),
    _flag("--cgroupns", "host or private.", str, "CgroupnsMode"),
    _flag("--device", "A device of the host.", Parsed(parse_device, "d"), "Devices", many=True),
    _flag("--device-cgroup-rule", "Such as 'c 13:* rwm'.", str, "DeviceCgroupRules", many=True),
    _flag("--device-read-bps", "Most read.", RATE, "BlkioDeviceReadBps", many=True),
    _flag("--device-write-bps", "Most written.", RATE, "BlkioDeviceWriteBps", many=True),
    _flag("--device-read-iops", "Most reads.", RATE, "BlkioDeviceReadIOps", many=True),
    _flag("--device-write-iops", "Most writes.", RATE, "BlkioDeviceWriteIOps", many=True),
    _flag("--dns", "A resolver of its own.", str, "Dns", many=True),
    _flag("--dns-option", "An option of the resolver.", str, "DnsOptions", many=True),
    _flag("--dns-search", "A domain to look in.", str, "DnsSearch", many=True),
    _flag("--add-host", "A line of /etc/hosts, name:address.", str, "ExtraHosts", many=True),
    _flag("--group-add", "A further group of the process.", str, "GroupAdd", many=True),
    _flag("--ipc", "private, shareable, host or container:NAME.", str, "IpcMode"),
    _flag("--pid", "host or container:NAME.", str, "PidMode"),
    _flag("--uts", "host.", str, "UTSMode"),
    _flag("--userns", "host.", str, "UsernsMode"),
    _flag(
        "--mount", "type=bind,source=/a,target=/b …", Parsed(parse_mount, "m"), "Mounts", many=True
    ),
    _flag("--oom-score-adj", "-1000 to 1000.", int, "OomScoreAdj"),
    _flag("--security-opt", "no-new-privileges, seccomp=FILE, …", many=True),
    _flag("--shm-size", "Size of /dev/shm.", BYTES, "ShmSize"),
    _flag("--sysctl", "key=value.", many=True),
    _flag("--tmpfs", "/path[:options].", many=True),
    _flag("--ulimit", "nofile=1024:2048.", Parsed(parse_ulimit, "u"), "Ulimits", many=True),
    _flag("--volumes-from", "The mounts of a container.", str, "VolumesFrom", many=True),
    _flag("-v --volume", "/host:/in[:ro], name:/in or /in.", many=True),
    _flag("-p --publish", "[IP:]HOST:CONTAINER[/udp].", Parsed(parse_binding, "p"), many=True),
    _flag("--log-driver", "json-file, local, journald or none.", str),
    _flag("--log-opt", "max-size=1m.", many=True),
    _flag("--annotation", "key=value.", many=True),
    _flag("--runtime", "There is one.", str, "Runtime"),
)
PROCESS = (
    _flag("--name", "Its name; one is made up if none is given."),
    _flag("-e --env", "KEY=value, or KEY with its value here.", many=True),
    _flag("--env-file", "A file of such lines.", many=True),
    _flag("-l --label", "key=value.", many=True),
    _flag("--label-file", "A file of such lines.", many=True),
    _flag("--entrypoint", "In the place of the image's."),
    _flag("-h --hostname", "Name of its host.", str, "Hostname"),
    _flag("--domainname", "Domain of its host.", str, "Domainname"),
    _flag("-u --user", "user[:group].", str, "User"),
    _flag("-w --workdir", "Where the process starts.", str, "WorkingDir"),
    _flag("--stop-signal", "The signal that ends it.", str, "StopSignal"),
    _flag("--stop-timeout", "Seconds until it is killed.", int, "StopTimeout"),
    _flag("--expose", "A port that it has.", many=True),
    _flag("--network --net", "A network, host, none or container:NAME.", many=True),
    _flag("--network-alias --net-alias", "A further name there.", many=True),
    _flag("--ip", "Its address there."),
    _flag("--mac-address", "Its MAC address."),
    _flag("--health-cmd", "The command that asks after its health."),
    _flag("--health-interval", "Between two checks.", DURATION, "Interval"),
    _flag("--health-timeout", "For one check.", DURATION, "Timeout"),
    _flag("--health-retries", "Failures until it is unhealthy.", int, "Retries"),
    _flag("--health-start-period", "In which failures do not count.", DURATION, "StartPeriod"),
    _flag("--health-start-interval", "Between checks meanwhile.", DURATION, "StartInterval"),
    _flag("-a --attach", "stdin, stdout or stderr.", many=True),
    _flag("--cidfile", "Write the id to this file."),
    _flag("--platform", "os/architecture."),
    _flag("--pull", "always, missing or never.", click.Choice(["always", "missing", "never"])),
)
SWITCHES = (
    ("-t --tty", "Give it a terminal."),
    ("-i --interactive", "Keep its input open."),
    ("--rm", "Remove it when it has ended."),
    ("--init", "Run an init that reaps."),
    ("--privileged", "All capabilities and devices."),
    ("-P --publish-all", "Publish what it exposes."),
    ("--read-only", "Its root cannot be written to."),
    ("--no-healthcheck", "Not the image's check either."),
    ("-q --quiet", "Say nothing while pulling."),
)
_WEIGHTS = "weights are not built; limit a device with --device-write-bps"
_REAL_TIME = "real-time scheduling is not built; use --cpu-shares"
_WINDOWS = "exists on Windows only"
#: Docker's flags that are no flags here, and why.
REFUSED: Mapping[str, str] = {
    "--blkio-weight": _WEIGHTS,
    "--blkio-weight-device": _WEIGHTS,
    "--cgroup-parent": "containers are below the daemon's own group; it has a --cgroup-parent",
    "--cpu-count": _WINDOWS,
    "--cpu-percent": _WINDOWS,
    "--cpu-rt-period": _REAL_TIME,
    "--cpu-rt-runtime": _REAL_TIME,
    "--gpus": "GPUs are not built; give their device nodes with --device",
    "--io-maxbandwidth": _WINDOWS,
    "--io-maxiops": _WINDOWS,
    "--ip6": "IPv6 inside a network is not built yet; leave it out",
    "--isolation": _WINDOWS,
    "--kernel-memory": "kernels have no such limit any more; use --memory",
    "--link": "links are Docker's past; put both on a network: names mean containers there",
    "--link-local-ip": "link-local addresses are not built; use --ip",
    "--memory-swappiness": "is not built; limit with --memory-swap",
    "--storage-opt": "the writable layer has no size here; use a volume, or --tmpfs with a size",
    "--volume-driver": "volumes are folders of this host: there is one driver, local",
}
REFUSED_SWITCHES: Mapping[str, str] = {
    "--disable-content-trust": "content trust is not built: images are verified by digest",
    "--oom-kill-disable": "it would freeze the host; give more --memory, or --oom-score-adj",
    "--use-api-socket": "no container gets the daemon's socket by a flag; bind it with --volume",
}


def container_options(function: F) -> F:
    """All flags of a container that is made."""
    for name, reason in REFUSED.items():
        function = refused_option(name, reason=reason)(function)
    for name, reason in REFUSED_SWITCHES.items():
        function = refused_flag(name, reason=reason)(function)
    for names, help_ in reversed(SWITCHES):
        function = click.option(*names.split(), is_flag=True, help=help_)(function)
    return add_flags((*PROCESS, *HOST))(function)


def add_flags(flags: tuple[Flag, ...]) -> Callable[[F], F]:
    def add(function: F) -> F:
        for flag in reversed(flags):
            default = {"multiple": True} if flag.many else {"default": None}
            function = click.option(
                *flag.flags, type=flag.type, help=flag.help, metavar=_metavar(flag), **default
            )(function)
        return function

    return add


def _metavar(flag: Flag) -> str | None:
    return "TEXT" if isinstance(flag.type, Parsed) else None


def name_of(flag: Flag) -> str:
    """What click calls the flag's value."""
    longs = [text for text in flag.flags if text.startswith("--")]
    return longs[0].removeprefix("--").replace("-", "_")


def read_limits(options: Mapping[str, Any], flags: tuple[Flag, ...] = LIMITS) -> dict[str, Any]:
    """What goes where it is as it was parsed; what was not given is left out."""
    found = {}
    for flag in flags:
        value = options[name_of(flag)]
        if flag.at and value not in (None, ()):
            found[flag.at] = list(value) if flag.many else value
    return found


def create_body(options: Mapping[str, Any], image: str, command: tuple[str, ...]) -> dict[str, Any]:
    """The body of `POST /containers/create`. Raises Failure, click.UsageError."""
    if options["rm"] and (options["restart"] or {}).get("Name", "no") != "no":
        raise click.UsageError("conflicting options: cannot specify both --restart and --rm")
    checks = tuple(flag for flag in PROCESS if flag.flags[0].startswith("--health-"))
    plain = tuple(flag for flag in PROCESS if flag not in checks)
    streams = _streams(options)
    ports = [pair for pairs in options["publish"] for pair in pairs]
    body: dict[str, Any] = {
        **read_limits(options, plain),
        "Image": image,
        "Cmd": list(command) or None,
        "Tty": options["tty"],
        "OpenStdin": options["interactive"],
        "StdinOnce": options["interactive"] and "stdin" in streams,
        "AttachStdin": "stdin" in streams,
        "AttachStdout": "stdout" in streams,
        "AttachStderr": "stderr" in streams,
        "Env": read_env(options["env"], options["env_file"]),
        "Labels": _labels(options),
        "Volumes": {text: {} for text in options["volume"] if ":" not in text},
        "ExposedPorts": {
            **{target: {} for target, _ in ports},
            **{text if "/" in text else f"{text}/tcp": {} for text in options["expose"]},
        },
        "HostConfig": _host_config(options, ports),
    }
    if options["entrypoint"] is not None:
        body["Entrypoint"] = [options["entrypoint"]]
    if check := _healthcheck(options, read_limits(options, checks)):
        body["Healthcheck"] = check
    return body | _networking(options, body["HostConfig"])


def _streams(options: Mapping[str, Any]) -> set[str]:
    """What is attached to: what -a says; else all, and its input with -i."""
    asked = {text.lower() for text in options["attach"]}
    if unknown := asked - {"stdin", "stdout", "stderr"}:
        raise click.UsageError(f"--attach: {min(unknown)!r} is not stdin, stdout or stderr")
    if asked or options.get("detach"):
        return asked
    return {"stdout", "stderr"} | ({"stdin"} if options["interactive"] else set())


def _host_config(
    options: Mapping[str, Any], ports: list[tuple[str, dict[str, str]]]
) -> dict[str, Any]:
    bindings: dict[str, list[dict[str, str]]] = {}
    for target, binding in ports:
        bindings.setdefault(target, []).append(binding)
    host = {
        **read_limits(options, HOST),
        "Binds": [_absolute(text) for text in options["volume"] if ":" in text],
        "PortBindings": bindings,
        "PublishAllPorts": options["publish_all"],
        "AutoRemove": options["rm"],
        "Init": options["init"] or None,
        "Privileged": options["privileged"],
        "ReadonlyRootfs": options["read_only"],
        "SecurityOpt": [_security(text) for text in options["security_opt"]],
        "Sysctls": parse_pairs(options["sysctl"]),
        "Annotations": parse_pairs(options["annotation"]),
        "Tmpfs": {path: more for path, _, more in (t.partition(":") for t in options["tmpfs"])},
    }
    for field in ("CapAdd", "CapDrop"):
        if field in host:
            host[field] = sorted(_capability(text) for text in host[field])
    if options["restart"] is not None:
        host["RestartPolicy"] = options["restart"]
    if options["log_driver"] or options["log_opt"]:
        host["LogConfig"] = {
            "Type": options["log_driver"] or "",
            "Config": parse_pairs(options["log_opt"]),
        }
    return host


def _capability(text: str) -> str:
    """`net_admin` as the kernel calls it."""
    text = text.upper()
    return text if text == "ALL" or text.startswith("CAP_") else f"CAP_{text}"


def _absolute(text: str) -> str:
    """`./here:/there` with the whole path, as a person at a shell means it."""
    source, _, rest = text.partition(":")
    return f"{os.path.abspath(source)}:{rest}" if source.startswith(".") else text


def _security(text: str) -> str:
    """A seccomp profile is a file of this side."""
    name, _, value = text.partition("=")
    if name != "seccomp" or value in ("", "unconfined", "builtin"):
        return text
    try:
        return f"seccomp={json.dumps(json.loads(Path(value).read_text()))}"
    except OSError as exc:
        raise Failure(f"--security-opt: {value}: {exc.strerror}", 125) from None
    except ValueError as exc:
        raise Failure(f"--security-opt: {value} is not JSON: {exc}", 125) from None


def read_env(given: tuple[str, ...], files: tuple[str, ...]) -> list[str]:
    """Of files first, then of flags. Raises click.UsageError."""
    environment = dict(os.environ)
    found = []
    try:
        for path in files:
            found += parse_env_file(_read_lines(path), environment)
        for text in given:
            found += complete_env(text, environment)
    except ValueError as exc:
        raise click.UsageError(f"--env: {exc}") from None
    return found


def _labels(options: Mapping[str, Any]) -> dict[str, str]:
    texts = [line for path in options["label_file"] for line in _read_lines(path)]
    texts = [text.strip() for text in texts if text.strip() and not text.startswith("#")]
    try:
        return dict(parse_pair(text) for text in (*texts, *options["label"]))
    except ValueError as exc:
        raise click.UsageError(f"--label: {exc}") from None


def _read_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "is not text in UTF-8"
        raise Failure(f"{path}: {reason}", 125) from None


def _healthcheck(options: Mapping[str, Any], timing: dict[str, Any]) -> dict[str, Any]:
    if options["no_healthcheck"]:
        if options["health_cmd"] or timing:
            raise click.UsageError("--no-healthcheck conflicts with --health-* options")
        return {"Test": ["NONE"]}
    if options["health_cmd"]:
        return {"Test": ["CMD-SHELL", options["health_cmd"]], **timing}
    return timing


def _networking(options: Mapping[str, Any], host: dict[str, Any]) -> dict[str, Any]:
    try:
        asked = [parse_endpoint(text) for text in options["network"]]
    except ValueError as exc:
        raise click.UsageError(f"--network: {exc}") from None
    if len({name for name, _ in asked}) < len(asked):
        raise click.UsageError("--network: one network is named twice")
    first, endpoint = asked[0] if asked else ("default", {})
    endpoint = dict(endpoint)
    if options["network_alias"]:
        aliases = [*endpoint.get("Aliases", ()), *options["network_alias"]]
        endpoint["Aliases"] = aliases
    if options["ip"]:
        endpoint["IPAMConfig"] = {"IPv4Address": options["ip"]}
    if options["mac_address"]:
        endpoint["MacAddress"] = options["mac_address"]
    host["NetworkMode"] = first
    endpoints = {first: endpoint, **dict(asked[1:])} if asked or endpoint else {}
    return {"NetworkingConfig": {"EndpointsConfig": endpoints}}


def write_cidfile(path: str | None, id_: str) -> None:
    if path:
        try:
            Path(path).write_text(id_)
        except OSError as exc:
            raise Failure(f"--cidfile: {path}: {exc.strerror}", 125) from None


def refuse_old_cidfile(path: str | None) -> None:
    if path and os.path.exists(path):
        text = "container ID file found, make sure the other container isn't running or delete"
        raise Failure(f"{text} {path}", 125)


def progress(text: str) -> None:
    sys.stderr.write(f"{text}\n")
