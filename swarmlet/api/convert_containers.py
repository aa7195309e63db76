"""Containers of this node as Docker shows them. Pure.

What is known of a container comes from two sides: the supervisor has its state and its spec, whose
annotations carry Docker's labels of a task; the agent knows its image and its networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swarmlet.api.backend import TaskContainer
from swarmlet.api.fields import timestamp
from swarmlet.runtime.state import ContainerState, Status

TASK_ID = "com.docker.swarm.task.id"
TASK_NAME = "com.docker.swarm.task.name"
COMMAND_CHARACTERS = 100

STATES = {
    Status.CREATING: "created",
    Status.CREATED: "created",
    Status.RUNNING: "running",
    Status.PAUSED: "paused",
    Status.EXITED: "exited",
    Status.REMOVING: "removing",
}


#: How `docker ps` says it.
HEALTH_TEXTS = {"starting": "health: starting"}


def container_name(state: ContainerState, known: TaskContainer | None) -> str:
    if known is not None and known.name:
        return known.name
    return state.spec.annotations.get(TASK_NAME, state.id)


def container_labels(state: ContainerState, known: TaskContainer | None) -> dict[str, str]:
    return {**state.spec.annotations, **(known.labels if known is not None else {})}


def write_row(state: ContainerState, known: TaskContainer | None, now: float) -> dict[str, Any]:
    """A row of `docker ps`."""
    networks = {name: _network(address) for name, address in _networks(known).items()}
    return {
        "Id": state.id,
        "Names": [f"/{container_name(state, known)}"],
        "Image": known.image if known is not None else "",
        "ImageID": "",
        "Command": " ".join(state.spec.process.args)[:COMMAND_CHARACTERS],
        "Created": int(state.created_at),
        "Ports": [],
        "Labels": container_labels(state, known),
        "State": STATES[state.status],
        "Status": status_text(state, now, known.health if known is not None else ""),
        "HostConfig": {"NetworkMode": next(iter(networks), "none")},
        "NetworkSettings": {"Networks": networks},
        "Mounts": [_mount(mount) for mount in state.spec.mounts],
    }


def status_text(state: ContainerState, now: float, health: str = "") -> str:
    """`Up 3 minutes (healthy)`, `Exited (1) 2 seconds ago`."""
    match state.status:
        case Status.RUNNING:
            up = f"Up {age(now - state.started_at)}"
            return f"{up} ({HEALTH_TEXTS.get(health, health)})" if health else up
        case Status.PAUSED:
            return f"Up {age(now - state.started_at)} (Paused)"
        case Status.EXITED:
            code = state.exit.code if state.exit is not None else 0
            ended = state.exit.finished_at if state.exit is not None else state.created_at
            return f"Exited ({code}) {age(now - ended)} ago"
        case Status.REMOVING:
            return "Removal In Progress"
        case _:
            return "Created"


def write_container(state: ContainerState, known: TaskContainer | None) -> dict[str, Any]:
    """What `docker inspect` shows."""
    spec, process = state.spec, state.spec.process
    resources = spec.resources
    labels = container_labels(state, known)
    networks = {name: _network(address) for name, address in _networks(known).items()}
    return {
        "Id": state.id,
        "Created": timestamp(state.created_at),
        "Path": process.args[0] if process.args else "",
        "Args": list(process.args[1:]),
        "State": _state(state, known.health if known is not None else ""),
        "Image": known.image if known is not None else "",
        "Name": f"/{container_name(state, known)}",
        "RestartCount": known.restarts if known is not None else 0,
        "Driver": "overlayfs",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": None,
        "HostConfig": {
            "NetworkMode": next(iter(networks), "none"),
            "LogConfig": {"Type": spec.log.driver, "Config": {}},
            "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
            "Memory": resources.memory_bytes or 0,
            "MemoryReservation": resources.memory_reservation_bytes or 0,
            "CpuQuota": resources.cpu_quota_us or 0,
            "CpuPeriod": resources.cpu_period_us if resources.cpu_quota_us else 0,
            "PidsLimit": resources.pids_max,
            "ReadonlyRootfs": spec.root.readonly,
            "OomScoreAdj": process.oom_score_adj,
            "ShmSize": spec.shm_bytes,
            "Sysctls": dict(spec.sysctls),
            "MaskedPaths": list(spec.masked_paths),
            "ReadonlyPaths": list(spec.readonly_paths),
        },
        "Mounts": [_mount(mount) for mount in spec.mounts],
        "Config": {
            "Hostname": spec.hostname,
            "Domainname": spec.domainname,
            "User": process.user.user,
            "AttachStdin": False,
            "AttachStdout": False,
            "AttachStderr": False,
            "Tty": process.terminal,
            "OpenStdin": process.stdin,
            "StdinOnce": False,
            "Env": list(process.env),
            "Cmd": list(process.args),
            "Image": known.image if known is not None else "",
            "Volumes": None,
            "WorkingDir": process.cwd,
            "Entrypoint": None,
            "Labels": labels,
            "StopSignal": spec.stop_signal,
        },
        "NetworkSettings": {"Ports": {}, "Networks": networks},
    }


def _state(state: ContainerState, health: str) -> dict[str, Any]:
    end = state.exit
    document: dict[str, Any] = {
        "Status": STATES[state.status],
        "Running": state.status.running,
        "Paused": state.status is Status.PAUSED,
        "Restarting": False,
        "OOMKilled": end.oom_killed if end is not None else False,
        "Dead": False,
        "Pid": state.pid if state.status.running else 0,
        "ExitCode": end.code if end is not None else 0,
        "Error": "",
        "StartedAt": timestamp(state.started_at),
        "FinishedAt": timestamp(end.finished_at if end is not None else 0.0),
    }
    if health:
        document["Health"] = {"Status": health}
    return document


def _networks(known: TaskContainer | None) -> Mapping[str, str]:
    return known.networks if known is not None else {}


def _network(address: str) -> dict[str, Any]:
    bare, _, prefix = address.partition("/")
    return {
        "IPAMConfig": {"IPv4Address": bare},
        "Links": None,
        "Aliases": None,
        "NetworkID": "",
        "EndpointID": "",
        "Gateway": "",
        "IPAddress": bare,
        "IPPrefixLen": int(prefix) if prefix.isdigit() else 24,
        "MacAddress": "",
    }


def _mount(mount: Any) -> dict[str, Any]:
    return {
        "Type": mount.type,
        "Source": mount.source,
        "Destination": mount.target,
        "Mode": "",
        "RW": not mount.readonly,
        "Propagation": mount.propagation,
    }


def age(seconds: float) -> str:
    """`About a minute`, in Docker's words, which go over the wire here."""
    seconds = max(0.0, seconds)
    minutes, hours = int(seconds // 60), round(seconds / 3600)
    if seconds < 1:
        return "Less than a second"
    if seconds < 60:
        return _count(int(seconds), "second")
    if minutes < 60:
        return "About a minute" if minutes == 1 else _count(minutes, "minute")
    if hours < 48:
        return "About an hour" if hours <= 1 else _count(hours, "hour")
    days = hours // 24
    if days < 14:
        return _count(days, "day")
    if days < 60:
        return _count(days // 7, "week")
    return _count(days // 30, "month") if days < 730 else _count(days // 365, "year")


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
