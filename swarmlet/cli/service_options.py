"""The flags of `service create` and `service update`, as tables, and what they do to a spec.

Pure but for the files that --env-file reads. A spec here is the JSON of the API: create starts
with an empty one, update with the one that the service has.

    Scalar   one flag, one field: the same in create and update
    Listed   --env in create; --env-add and --env-rm in update. *key* says which entries are the
             same thing: adding one replaces it, removing needs only its key
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from swarmlet.cli.base import Parsed
from swarmlet.cli.parsing import (
    complete_env,
    parse_cpus,
    parse_duration,
    parse_env_file,
    parse_host,
    parse_mount,
    parse_network,
    parse_pair,
    parse_publish,
    parse_size,
    parse_spread,
    parse_ulimit,
)

F = TypeVar("F", bound=Callable[..., Any])

CONTAINER = "TaskTemplate.ContainerSpec"
RESOURCES = "TaskTemplate.Resources"
PLACEMENT = "TaskTemplate.Placement"
RESTART = "TaskTemplate.RestartPolicy"
PORTS = "EndpointSpec.Ports"

DURATION = Parsed(parse_duration, "duration")
SIZE = Parsed(parse_size, "size")
CPUS = Parsed(parse_cpus, "cpus")
COUNT = click.IntRange(min=0)
RATIO = click.FloatRange(0, 1)
TEXT = click.STRING


@dataclass(frozen=True, slots=True)
class Scalar:
    flag: str
    path: str
    type: Any
    help: str
    short: str = ""
    is_flag: bool = False

    @property
    def name(self) -> str:
        return self.flag.removeprefix("--").replace("-", "_")


@dataclass(frozen=True, slots=True)
class Listed:
    flag: str
    path: str
    parse: Callable[[str], list[Any]]
    key: Callable[[Any], Any]
    help: str
    short: str = ""
    #: the key that --…-rm names; by default what *parse* and *key* make of it
    rm_key: Callable[[str], Any] | None = None
    is_map: bool = False

    @property
    def name(self) -> str:
        return self.flag.removeprefix("--").replace("-", "_")


def _choice(*words: str) -> click.Choice[str]:
    return click.Choice(words)


def _one(parse: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [parse(text)]


def _identity(item: Any) -> Any:
    return item


def _before_equals(text: str) -> str:
    return text.partition("=")[0]


def _update_scalars(prefix: str, path: str, verb: str) -> tuple[Scalar, ...]:
    actions = ("pause", "continue", "rollback") if prefix == "update" else ("pause", "continue")
    return (
        Scalar(f"--{prefix}-parallelism", f"{path}.Parallelism", COUNT,
               f"Tasks to {verb} at once; 0 for all."),
        Scalar(f"--{prefix}-delay", f"{path}.Delay", DURATION, f"Pause between {verb}s."),
        Scalar(f"--{prefix}-failure-action", f"{path}.FailureAction", _choice(*actions),
               "What to do when a task fails."),
        Scalar(f"--{prefix}-monitor", f"{path}.Monitor", DURATION,
               "Watch each task so long for failure."),
        Scalar(f"--{prefix}-max-failure-ratio", f"{path}.MaxFailureRatio", RATIO,
               "Share of failures to bear."),
        Scalar(f"--{prefix}-order", f"{path}.Order", _choice("start-first", "stop-first"),
               "Start the new task first, or stop the old one."),
    )  # fmt: skip


# fmt: off
SCALARS: tuple[Scalar, ...] = (
    Scalar("--hostname", f"{CONTAINER}.Hostname", TEXT, "Host name inside the container."),
    Scalar("--workdir", f"{CONTAINER}.Dir", TEXT, "Working directory inside.", "-w"),
    Scalar("--user", f"{CONTAINER}.User", TEXT, "User, or user:group.", "-u"),
    Scalar("--tty", f"{CONTAINER}.TTY", bool, "Give it a terminal.", "-t", is_flag=True),
    Scalar("--read-only", f"{CONTAINER}.ReadOnly", bool, "Read-only root.", is_flag=True),
    Scalar("--init", f"{CONTAINER}.Init", bool, "Run an init that reaps.", is_flag=True),
    Scalar("--stop-signal", f"{CONTAINER}.StopSignal", TEXT, "Signal that stops it."),
    Scalar("--stop-grace-period", f"{CONTAINER}.StopGracePeriod", DURATION,
           "Time before it is killed."),
    Scalar("--oom-score-adj", f"{CONTAINER}.OomScoreAdj", click.IntRange(-1000, 1000),
           "How soon it is killed when memory ends."),
    Scalar("--health-interval", f"{CONTAINER}.Healthcheck.Interval", DURATION,
           "Time between checks."),
    Scalar("--health-timeout", f"{CONTAINER}.Healthcheck.Timeout", DURATION, "Time for a check."),
    Scalar("--health-retries", f"{CONTAINER}.Healthcheck.Retries", COUNT,
           "Failures until unhealthy."),
    Scalar("--health-start-period", f"{CONTAINER}.Healthcheck.StartPeriod", DURATION,
           "Time to start in which failures do not count."),
    Scalar("--health-start-interval", f"{CONTAINER}.Healthcheck.StartInterval", DURATION,
           "Time between checks while it starts."),
    Scalar("--limit-cpu", f"{RESOURCES}.Limits.NanoCPUs", CPUS, "Most cpus, such as 0.5."),
    Scalar("--limit-memory", f"{RESOURCES}.Limits.MemoryBytes", SIZE, "Most memory, such as 64m."),
    Scalar("--limit-pids", f"{RESOURCES}.Limits.Pids", COUNT, "Most processes; 0 for any."),
    Scalar("--reserve-cpu", f"{RESOURCES}.Reservations.NanoCPUs", CPUS, "Cpus to keep for it."),
    Scalar("--reserve-memory", f"{RESOURCES}.Reservations.MemoryBytes", SIZE,
           "Memory to keep free for it."),
    Scalar("--restart-condition", f"{RESTART}.Condition", _choice("none", "on-failure", "any"),
           "When to start it again."),
    Scalar("--restart-delay", f"{RESTART}.Delay", DURATION, "Pause before that."),
    Scalar("--restart-max-attempts", f"{RESTART}.MaxAttempts", COUNT, "How often; 0 for ever."),
    Scalar("--restart-window", f"{RESTART}.Window", DURATION, "Time in which attempts count."),
    Scalar("--replicas-max-per-node", f"{PLACEMENT}.MaxReplicas", COUNT,
           "Most tasks on a node; 0 for any."),
    Scalar("--endpoint-mode", "EndpointSpec.Mode", _choice("vip", "dnsrr"), "How it resolves."),
    Scalar("--log-driver", "TaskTemplate.LogDriver.Name", TEXT, "Where its output goes."),
    *_update_scalars("update", "UpdateConfig", "update"),
    *_update_scalars("rollback", "RollbackConfig", "rollback"),
    # What only swarmlet knows:
    Scalar("--offline", "Swarmlet.Offline", _choice("keep", "pin"),
           "Tasks of a lost node: run elsewhere (keep), or wait for it (pin)."),
    Scalar("--replace-after", "Swarmlet.ReplaceAfter", DURATION,
           "A node must be lost for so long before its tasks run elsewhere."),
    Scalar("--pull", "Swarmlet.PullPolicy", _choice("always", "missing", "never"),
           "When to ask the registry for the image."),
    Scalar("--userns", "Swarmlet.Userns", _choice("private", "host"),
           "Whose users its tasks have: their own (private), or the host's."),
)

LISTED: tuple[Listed, ...] = (
    Listed("--label", "Labels", _one(parse_pair), _identity, "Label of the service.", "-l",
           _before_equals, is_map=True),
    Listed("--container-label", f"{CONTAINER}.Labels", _one(parse_pair), _identity,
           "Label of its containers.", "", _before_equals, is_map=True),
    Listed("--env", f"{CONTAINER}.Env", lambda text: complete_env(text, dict(os.environ)),
           _before_equals, "Environment variable, KEY=value.", "-e", _before_equals),
    Listed("--group", f"{CONTAINER}.Groups", _one(str), _identity, "Further group."),
    Listed("--mount", f"{CONTAINER}.Mounts", _one(parse_mount), lambda mount: mount["Target"],
           "type=bind|volume|tmpfs,source=…,target=….", "", str),
    Listed("--host", f"{CONTAINER}.Hosts", _one(parse_host), _identity, "name:address."),
    Listed("--dns", f"{CONTAINER}.DNSConfig.Nameservers", _one(str), _identity, "Name server."),
    Listed("--dns-search", f"{CONTAINER}.DNSConfig.Search", _one(str), _identity, "Domain."),
    Listed("--dns-option", f"{CONTAINER}.DNSConfig.Options", _one(str), _identity, "As in "
           "resolv.conf."),
    Listed("--sysctl", f"{CONTAINER}.Sysctls", _one(parse_pair), _identity, "Kernel setting.", "",
           _before_equals, is_map=True),
    Listed("--ulimit", f"{CONTAINER}.Ulimits", _one(parse_ulimit), lambda limit: limit["Name"],
           "name=soft[:hard].", "", _before_equals),
    Listed("--constraint", f"{PLACEMENT}.Constraints", _one(str), _identity,
           "Such as node.role==worker."),
    Listed("--placement-pref", f"{PLACEMENT}.Preferences", _one(parse_spread),
           lambda preference: preference["Spread"]["SpreadDescriptor"],
           "Such as spread=node.labels.zone."),
    Listed("--network", "TaskTemplate.Networks", _one(parse_network), lambda net: net["Target"],
           "Network, or name=…,alias=…."),
    Listed("--publish", PORTS, parse_publish, lambda port: (port["TargetPort"], port["Protocol"]),
           "Port, 8080:80 or published=8080,target=80,mode=host,ip=….", "-p"),
    Listed("--log-opt", "TaskTemplate.LogDriver.Options", _one(parse_pair), _identity,
           "Option of the log driver.", is_map=True),
)
# fmt: on

#: Docker's flags whose features are not there, and why.
REFUSED = {
    "--config": "configs are not built yet",
    "--credential-spec": "it exists on Windows only",
    "--generic-resource": "generic resources are not built yet; use node labels and --constraint",
    "--isolation": "it exists on Windows only",
    "--max-concurrent": "jobs are not built yet",
    "--secret": "secrets are not built yet",
}
REFUSED_FLAGS = {
    "--with-registry-auth": "registry logins are not built yet; use `swarmlet image load`",
    "--no-resolve-image": "images are always resolved to a digest here",
}


def scalar_options(function: F) -> F:
    for scalar in reversed(SCALARS):
        flags = [scalar.flag, scalar.short] if scalar.short else [scalar.flag]
        if scalar.is_flag:
            flags[0] = f"{scalar.flag}/--no-{scalar.flag.removeprefix('--')}"
            function = click.option(*flags, default=None, help=scalar.help)(function)
        else:
            function = click.option(*flags, type=scalar.type, help=scalar.help)(function)
    return function


def listed_options(function: F) -> F:
    for listed in reversed(LISTED):
        flags = [listed.flag, listed.short] if listed.short else [listed.flag]
        type_ = Parsed(listed.parse, listed.name)
        function = click.option(*flags, type=type_, multiple=True, help=listed.help)(function)
    return function


def change_options(function: F) -> F:
    """--…-add and --…-rm of every list, for update."""
    for listed in reversed(LISTED):
        rm = click.option(f"{listed.flag}-rm", multiple=True, help="Remove it, by its key.")
        type_ = Parsed(listed.parse, listed.name)
        add = click.option(f"{listed.flag}-add", type=type_, multiple=True, help=listed.help)
        function = add(rm(function))
    return function


def apply_scalars(spec: dict[str, Any], options: Mapping[str, Any]) -> None:
    for scalar in SCALARS:
        if (value := options.get(scalar.name)) is not None:
            put(spec, scalar.path, value)


def apply_lists(spec: dict[str, Any], options: Mapping[str, Any]) -> None:
    """What create's flags give: each list as a whole."""
    for listed in LISTED:
        _change(spec, listed, _flat(options.get(listed.name)), ())


def apply_list_changes(spec: dict[str, Any], options: Mapping[str, Any]) -> None:
    """What update's --…-rm and --…-add give, in this order."""
    for listed in LISTED:
        added = _flat(options.get(f"{listed.name}_add"))
        _change(spec, listed, added, options.get(f"{listed.name}_rm") or ())


def apply_health(spec: dict[str, Any], command: str | None, none: bool) -> None:
    if none and command:
        raise click.UsageError("--no-healthcheck and --health-cmd exclude each other")
    if none:
        put(spec, f"{CONTAINER}.Healthcheck", {"Test": ["NONE"]})
    elif command is not None:
        put(spec, f"{CONTAINER}.Healthcheck.Test", ["CMD-SHELL", command] if command else [])


def read_env_files(paths: tuple[str, ...]) -> list[str]:
    found: list[str] = []
    for path in paths:
        try:
            with open(path, encoding="utf-8") as file:
                found += parse_env_file(file, dict(os.environ))
        except OSError as exc:
            raise click.UsageError(f"--env-file {path}: {exc.strerror}") from None
        except ValueError as exc:
            raise click.UsageError(f"--env-file {path}: {exc}") from None
    return found


def finish(spec: dict[str, Any]) -> None:
    """What depends on several flags, when all of them are in *spec*."""
    # Options of a log driver mean nothing without its name; Docker's default is json-file.
    driver = find(spec, "TaskTemplate.LogDriver")
    if driver and not driver.get("Name"):
        driver["Name"] = "json-file"
    _split_ports(spec)


def _split_ports(spec: dict[str, Any]) -> None:
    """Move IP and Interface, which are swarmlet's own, to where the API takes them."""
    ports = find(spec, PORTS) or []
    bound = find(spec, "Swarmlet.Ports") or []
    kept = {(port["TargetPort"], port.get("PublishedPort", 0), port["Protocol"]) for port in ports}
    bindings = [b for b in bound if (b["Target"], b["Published"], b["Protocol"]) in kept]
    for port in ports:
        address, interface = port.pop("IP", ""), port.pop("Interface", "")
        if address or interface:
            bindings.append(
                {
                    "Target": port["TargetPort"],
                    "Published": port.get("PublishedPort", 0),
                    "Protocol": port["Protocol"],
                    "IP": address,
                    "Interface": interface,
                }
            )
    if bindings or bound:
        put(spec, "Swarmlet.Ports", bindings)


def find(spec: Mapping[str, Any], path: str) -> Any:
    value: Any = spec
    for name in path.split("."):
        value = (value or {}).get(name)
    return value


def put(spec: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        if spec.get(name) is None:
            spec[name] = {}
        spec = spec[name]
    spec[last] = value


def _flat(groups: Any) -> list[Any]:
    return [item for group in groups or () for item in group]


def _change(
    spec: dict[str, Any], listed: Listed, added: list[Any], removed: tuple[str, ...]
) -> None:
    if not added and not removed:
        return
    current = find(spec, listed.path)
    gone = [_removed_keys(listed, text) for text in removed]
    keys = {key for group in gone for key in group}
    if listed.is_map:
        kept = {k: v for k, v in (current or {}).items() if k not in keys}
        put(spec, listed.path, kept | dict(added))
        return
    keys |= {listed.key(item) for item in added}
    kept_items = [item for item in current or [] if not _is_gone(listed, item, keys)]
    put(spec, listed.path, kept_items + added)


def _is_gone(listed: Listed, item: Any, keys: set[Any]) -> bool:
    if listed.path == PORTS:  # --publish-rm may name the target alone
        return listed.key(item) in keys or (item["TargetPort"], "") in keys
    return listed.key(item) in keys


def _removed_keys(listed: Listed, text: str) -> list[Any]:
    if listed.rm_key is not None:
        return [listed.rm_key(text)]
    if listed.path == PORTS and text.isdigit():
        return [(int(text), "")]
    try:
        return [listed.key(item) for item in listed.parse(text)]
    except ValueError as exc:
        raise click.UsageError(f"{listed.flag}-rm: {exc}") from None
