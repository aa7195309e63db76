"""`swarmlet service ls | ps | inspect`, and the rows of tasks that `node ps` shows, too."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from swarmlet.cli.base import (
    App,
    Command,
    filter_option,
    filters_query,
    for_each,
    format_option,
    no_trunc_option,
    pass_app,
    quiet_option,
)
from swarmlet.cli.output import (
    ago,
    emit,
    human_memory,
    parse_time,
    short_error,
    short_id,
    short_image,
    show,
    show_documents,
)

LS_COLUMNS = (
    ("ID", "ID"),
    ("NAME", "Name"),
    ("MODE", "Mode"),
    ("REPLICAS", "Replicas"),
    ("IMAGE", "Image"),
    ("PORTS", "Ports"),
)
PS_COLUMNS = (
    ("ID", "ID"),
    ("NAME", "Name"),
    ("IMAGE", "Image"),
    ("NODE", "Node"),
    ("DESIRED STATE", "DesiredState"),
    ("CURRENT STATE", "CurrentState"),
    ("ERROR", "Error"),
    ("PORTS", "Ports"),
)


@click.command(cls=Command)
@filter_option
@format_option
@quiet_option
@no_trunc_option
@pass_app
def ls(app: App, filters: Any, format_: str, quiet: bool, no_trunc: bool) -> None:
    """List services."""
    services = app.client.get("/services", status=True, filters=filters_query(filters))
    show([_service_row(s, no_trunc) for s in services], LS_COLUMNS, format_, quiet=quiet)


def _service_row(service: Mapping[str, Any], no_trunc: bool) -> dict[str, str]:
    spec = service["Spec"]
    status = service.get("ServiceStatus") or {}
    limit = (spec["TaskTemplate"].get("Placement") or {}).get("MaxReplicas")
    replicas = f"{status.get('RunningTasks', 0)}/{status.get('DesiredTasks', 0)}"
    return {
        "ID": short_id(service["ID"], no_trunc),
        "Name": spec["Name"],
        "Mode": "global" if "Global" in spec["Mode"] else "replicated",
        "Replicas": f"{replicas} (max {limit} per node)" if limit else replicas,
        "Image": short_image(spec["TaskTemplate"]["ContainerSpec"]["Image"], no_trunc),
        "Ports": ", ".join(_port_text(p) for p in service.get("Endpoint", {}).get("Ports") or ()),
    }


def _port_text(port: Mapping[str, Any]) -> str:
    if port.get("PublishMode") == "host":
        return f"*:{port['PublishedPort']}->{port['TargetPort']}/{port['Protocol']} (host)"
    return f"*:{port['PublishedPort']}->{port['TargetPort']}/{port['Protocol']}"


@click.command(cls=Command)
@filter_option
@format_option
@quiet_option
@no_trunc_option
@click.option("--no-resolve", is_flag=True, help="Show ids in place of names.")
@click.argument("services", metavar="SERVICE...", nargs=-1, required=True)
@pass_app
def ps(
    app: App,
    services: tuple[str, ...],
    filters: Any,
    format_: str,
    quiet: bool,
    no_trunc: bool,
    no_resolve: bool,
) -> None:
    """List the tasks of services: who runs where, and why one does not."""
    ids: list[str] = []
    try:
        for_each(services, lambda name: ids.append(app.client.get(f"/services/{name}")["ID"]))
    finally:
        if ids:
            query = {**(filters_query(filters) or {}), "service": ids}
            tasks = app.client.get("/tasks", filters=query)
            rows = task_rows(app, tasks, no_trunc=no_trunc, no_resolve=no_resolve)
            show(rows, PS_COLUMNS, format_, quiet=quiet)


def task_rows(
    app: App, tasks: Sequence[Mapping[str, Any]], *, no_trunc: bool, no_resolve: bool
) -> list[dict[str, str]]:
    """Rows of tasks, by service and slot; the past of a slot hangs below its present."""
    names: dict[str, str] = {}
    nodes: dict[str, str] = {}
    if not no_resolve:
        names = {s["ID"]: s["Spec"]["Name"] for s in app.client.get("/services")}
        nodes = {n["ID"]: n["Description"]["Hostname"] for n in app.client.get("/nodes")}
    # The younger of two tasks in a slot comes first.
    ordered = sorted(tasks, key=lambda task: str(task["CreatedAt"]), reverse=True)
    ordered.sort(key=lambda task: (names.get(task["ServiceID"], task["ServiceID"]), _slot(task)))
    now = time.time()
    rows = []
    before = ""
    for task in ordered:
        service = names.get(task["ServiceID"], task["ServiceID"])
        name = f"{service}.{task.get('Slot') or task.get('NodeID', '')}"
        is_past = name == before
        before = name
        rows.append(_task_row(task, f" \\_ {name}" if is_past else name, nodes, no_trunc, now))
    return rows


def _slot(task: Mapping[str, Any]) -> tuple[int, str]:
    return (task.get("Slot") or 0, "" if task.get("Slot") else task.get("NodeID", ""))


def _task_row(
    task: Mapping[str, Any], name: str, nodes: Mapping[str, str], no_trunc: bool, now: float
) -> dict[str, str]:
    status = task["Status"]
    node = task.get("NodeID", "")
    image = task.get("Spec", {}).get("ContainerSpec", {}).get("Image", "")
    since = ago(parse_time(status["Timestamp"]), now)
    ports = (status.get("PortStatus") or {}).get("Ports") or ()
    return {
        "ID": short_id(task["ID"], no_trunc),
        "Name": name,
        "Image": short_image(image, no_trunc),
        "Node": nodes.get(node, node),
        "DesiredState": task["DesiredState"].capitalize(),
        "CurrentState": f"{status['State'].capitalize()} {since[:1].lower()}{since[1:]}".strip(),
        "Error": short_error(status.get("Err", ""), no_trunc),
        "Ports": ", ".join(_port_text(port) for port in ports),
    }


@click.command(cls=Command)
@click.option("--format", "format_", default="", help="json, or a template.")
@click.option("--pretty", is_flag=True, help="For people, not in JSON.")
@click.argument("services", metavar="SERVICE...", nargs=-1, required=True)
@pass_app
def inspect(app: App, services: tuple[str, ...], format_: str, pretty: bool) -> None:
    """Show services in detail."""
    if pretty and format_:
        raise click.UsageError("--pretty and --format exclude each other")
    found: list[Any] = []
    try:
        for_each(services, lambda name: found.append(app.client.get(f"/services/{name}")))
    finally:
        if pretty:
            networks = {n["Id"]: n["Name"] for n in app.client.get("/networks")} if found else {}
            for document in found:
                for line in pretty_service(document, networks):
                    emit(line)
        elif found or not services:
            show_documents(found, format_)


def pretty_service(service: Mapping[str, Any], networks: Mapping[str, str]) -> list[str]:
    """The service as lines for people."""
    spec = service["Spec"]
    template = spec["TaskTemplate"]
    container = template["ContainerSpec"]
    replicated = spec["Mode"].get("Replicated")
    mode = f"Replicated, {replicated['Replicas']} tasks" if replicated else "Global"
    rows: list[tuple[str, str]] = [
        ("ID", service["ID"]),
        ("Name", spec["Name"]),
        ("Labels", _pairs(spec.get("Labels"))),
        ("Mode", mode),
        ("Update status", _update_text(service.get("UpdateStatus"))),
        ("Image", container["Image"]),
        ("Entrypoint", " ".join(container.get("Command", ()))),
        ("Args", " ".join(container.get("Args", ()))),
        ("Env", " ".join(container.get("Env", ()))),
        ("User", container.get("User", "")),
        ("Mounts", ", ".join(_mount_text(m) for m in container.get("Mounts", ()))),
        ("Limits", _resources(template.get("Resources", {}).get("Limits"))),
        ("Reservations", _resources(template.get("Resources", {}).get("Reservations"))),
        ("Constraints", ", ".join(template.get("Placement", {}).get("Constraints", ()))),
        ("Restart", _restart_text(template.get("RestartPolicy") or {})),
        ("Update", _config_text(spec.get("UpdateConfig") or {})),
        ("Rollback", _config_text(spec.get("RollbackConfig") or {})),
        (
            "Networks",
            " ".join(networks.get(n["Target"], n["Target"]) for n in template.get("Networks", ())),
        ),
        ("Addresses", " ".join(v["Addr"] for v in service["Endpoint"].get("VirtualIPs", ()))),
        ("Ports", ", ".join(_port_text(p) for p in service["Endpoint"].get("Ports") or ())),
        ("When a node is lost", (spec.get("Swarmlet") or {}).get("Offline", "")),
    ]
    return [f"{name + ':':<21}{value}" for name, value in rows if value]


def _pairs(labels: Mapping[str, str] | None) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted((labels or {}).items()))


def _update_text(status: Mapping[str, Any] | None) -> str:
    return f"{status['State']}: {status.get('Message', '')}" if status else ""


def _mount_text(mount: Mapping[str, Any]) -> str:
    source = f"{mount['Source']} -> " if mount.get("Source") else ""
    read_only = " (read-only)" if mount.get("ReadOnly") else ""
    return f"{mount['Type']} {source}{mount['Target']}{read_only}"


def _resources(resources: Mapping[str, int] | None) -> str:
    shown = []
    for key, amount in (resources or {}).items():
        match key:
            case "NanoCPUs":
                shown.append(f"{amount / 1e9:g} cpus")
            case "MemoryBytes":
                shown.append(f"{human_memory(amount)} memory")
            case "Pids":
                shown.append(f"{amount} processes")
    return ", ".join(shown)


def _restart_text(policy: Mapping[str, Any]) -> str:
    times = f", at most {policy['MaxAttempts']} times" if policy.get("MaxAttempts") else ""
    return f"{policy.get('Condition')}, after {policy.get('Delay', 0) / 1e9:g}s{times}"


def _config_text(config: Mapping[str, Any]) -> str:
    return (
        f"{config.get('Parallelism') or 'all'} at once, {config.get('Order')}, "
        f"{config.get('Delay', 0) / 1e9:g}s apart, on failure {config.get('FailureAction')}"
    )
