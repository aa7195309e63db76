"""/_ping, /version, /info, /events: what this daemon is and sees."""

from __future__ import annotations

import json
import os
import platform
import time
from typing import Any

import trio

from swarmlet.api.backend import Event, LocalNode, LocalState, LocalStatus
from swarmlet.api.containers import container_counts
from swarmlet.api.exchange import (
    Answer,
    ApiError,
    Response,
    Send,
    Streamed,
    json_response,
)
from swarmlet.api.fields import timestamp
from swarmlet.api.filters import Filters, matches_labels, matches_prefix, parse_filters
from swarmlet.api.rights import Right
from swarmlet.api.router import API_VERSION, API_VERSION_MIN, Call, Route
from swarmlet.api.swarm import cluster_summary
from swarmlet.api.upstream import Broken, Upstream
from swarmlet.manager.errors import ControlError
from swarmlet.model import Role

#: For the leader's counts in `info`, which must answer also when there is no leader.
SUMMARY_SECONDS = 2.0
SUMMARY_BYTES_MAX = 1 << 20
EVENT_FILTERS = ("container", "event", "image", "label", "network", "node", "service", "type")

GO_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}


async def ping(call: Call) -> Answer:
    swarm = "inactive"
    here = call.node.status
    if here.in_swarm:
        role = "manager" if here.role is Role.MANAGER else "worker"
        swarm = f"{here.state}/{role}"
    headers = (
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Cache-Control", "no-cache, no-store, must-revalidate"),
        ("Builder-Version", "1"),
        ("Swarm", swarm),
    )
    return Response(200, b"OK", headers)


async def version(call: Call) -> Answer:
    here = call.node.status
    newest, oldest = "{}.{}".format(*API_VERSION), "{}.{}".format(*API_VERSION_MIN)
    uname = os.uname()
    architecture = GO_ARCHITECTURES.get(uname.machine, uname.machine)
    details = {
        "ApiVersion": newest,
        "MinAPIVersion": oldest,
        "Arch": architecture,
        "KernelVersion": uname.release,
        "Os": "linux",
        "Python": platform.python_version(),
    }
    return json_response(
        {
            "Platform": {"Name": "swarmlet"},
            "Components": [{"Name": "swarmlet", "Version": here.version, "Details": details}],
            "Version": here.version,
            "ApiVersion": newest,
            "MinAPIVersion": oldest,
            "GitCommit": "",
            "GoVersion": "",
            "Os": "linux",
            "Arch": architecture,
            "KernelVersion": uname.release,
            "BuildTime": "",
        }
    )


async def info(call: Call) -> Answer:
    node = call.node
    here = node.status
    uname = os.uname()
    document: dict[str, Any] = {
        "ID": here.node_id,
        "Name": here.name,
        "ServerVersion": here.version,
        "Driver": "overlayfs",
        "DriverStatus": [],
        "Plugins": {"Volume": ["local"], "Network": ["overlay"], "Log": ["json-file"]},
        "MemoryLimit": True,
        "SwapLimit": False,
        "CpuCfsPeriod": True,
        "CpuCfsQuota": True,
        "CPUShares": True,
        "CPUSet": True,
        "PidsLimit": True,
        "IPv4Forwarding": True,
        "BridgeNfIptables": True,
        "BridgeNfIp6tables": True,
        "OomKillDisable": False,
        "Debug": False,
        "NGoroutines": 0,
        "NFd": 0,
        "NEventsListener": 0,
        "SystemTime": timestamp(time.time()),
        "LoggingDriver": "json-file",
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": str(here.cgroup_version),
        "KernelVersion": uname.release,
        "OperatingSystem": _operating_system(),
        "OSVersion": "",
        "OSType": "linux",
        "Architecture": uname.machine,
        "NCPU": len(os.sched_getaffinity(0)),
        "MemTotal": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {"InsecureRegistryCIDRs": [], "IndexConfigs": {}, "Mirrors": []},
        "DockerRootDir": here.state_dir,
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "Labels": [f"{key}={value}" for key, value in here.labels.items()],
        "ExperimentalBuild": False,
        "Runtimes": {"swarmlet": {"path": "swarmlet-zygote"}},
        "DefaultRuntime": "swarmlet",
        "LiveRestoreEnabled": True,
        "Isolation": "",
        "InitBinary": "swarmlet-init",
        "SecurityOptions": ["name=seccomp,profile=builtin"],
        "Warnings": None,
    }
    document |= container_counts(node)
    document["Images"] = len(node.images.images())
    document["Swarm"] = await _swarm_info(node)
    return json_response(document)


async def _swarm_info(node: LocalNode) -> dict[str, Any]:
    here = node.status
    document: dict[str, Any] = {
        "NodeID": here.node_id,
        "NodeAddr": here.address if here.in_swarm else "",
        "LocalNodeState": str(here.state),
        "ControlAvailable": here.state is LocalState.ACTIVE and here.role is Role.MANAGER,
        "Error": here.error,
        "RemoteManagers": [
            {"NodeID": manager.node, "Addr": str(manager)} for manager in here.managers
        ]
        or None,
    }
    if here.state is LocalState.ACTIVE:
        document |= await _summary(node, here)
    return document


async def _summary(node: LocalNode, here: LocalStatus) -> dict[str, Any]:
    """The leader's counts; nothing when it cannot be reached in time."""
    control = node.control
    if control is not None:
        try:
            summary = cluster_summary(control.view)
        except ControlError:
            return {}
    elif (asked := await _ask_leader(node)) is not None:
        summary = asked
    else:
        return {}
    if here.role is not Role.MANAGER:  # as Docker: a worker knows no more than the id
        return {"Cluster": {"ID": summary["Cluster"]["ID"]}}
    return summary


async def _ask_leader(node: LocalNode) -> dict[str, Any] | None:
    with trio.move_on_after(SUMMARY_SECONDS):
        try:
            upstream = Upstream(await node.dial_api(None))
        except (ControlError, OSError):
            return None
        try:
            head = await upstream.request("GET", "/swarmlet/cluster")
            text = b""
            while chunk := await upstream.receive():
                text += chunk
                if len(text) > SUMMARY_BYTES_MAX:
                    return None
            document = json.loads(text)
        except (Broken, ValueError):
            return None
        finally:
            await upstream.aclose()
        if head.status == 200 and isinstance(document, dict) and "Cluster" in document:
            return document
    return None


async def events(call: Call) -> Answer:
    query = call.request.query
    filters = parse_filters(query, EVENT_FILTERS)
    since, until = query.moment("since"), query.moment("until")
    if since and until and until < since:
        raise ApiError(400, "until: is before since")
    seconds = max(0.0, until - time.time()) if until else float("inf")

    async def produce(send: Send) -> None:
        with trio.move_on_after(seconds):
            async with call.node.subscribe_events() as stream:
                async for event in stream:
                    if _event_matches(event, filters):
                        await send(json.dumps(write_event(event)).encode() + b"\n")

    return Streamed(200, produce, (("Content-Type", "application/json"),))


def write_event(event: Event) -> dict[str, Any]:
    document: dict[str, Any] = {
        "Type": event.type,
        "Action": event.action,
        "Actor": {"ID": event.id, "Attributes": dict(event.attributes)},
        "scope": event.scope,
        "time": int(event.at),
        "timeNano": round(event.at * 1e9),
    }
    if event.type == "container":  # as clients before API 1.22 read it
        document |= {"status": event.action, "id": event.id}
        if "image" in event.attributes:
            document["from"] = event.attributes["image"]
    return document


def _event_matches(event: Event, filters: Filters) -> bool:
    for kind in ("container", "image", "network", "node", "service"):
        names = (event.id, event.attributes.get("name", ""))
        if kind in filters and event.type == kind and not matches_prefix(filters, kind, *names):
            return False
    return (
        matches_prefix(filters, "event", event.action)
        and matches_prefix(filters, "type", event.type)
        and matches_labels(filters, "label", event.attributes)
    )


def _operating_system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"


ROUTES = (
    Route("GET", "/_ping", ping, Right.PUBLIC),
    Route("GET", "/version", version, Right.PUBLIC),
    Route("GET", "/info", info, Right.NODE),
    Route("GET", "/events", events, Right.NODE),
)
