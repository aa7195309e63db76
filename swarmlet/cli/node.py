"""`swarmlet node`: ls, inspect, ps, update, promote, demote, rm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from swarmlet.cli.base import (
    App,
    Command,
    Group,
    Parsed,
    filter_option,
    filters_query,
    for_each,
    format_option,
    no_trunc_option,
    pass_app,
    quiet_option,
)
from swarmlet.cli.output import emit, human_memory, show, show_documents
from swarmlet.cli.parsing import parse_pair

COLUMNS = (
    ("ID", "IDMark"),
    ("HOSTNAME", "Hostname"),
    ("STATUS", "Status"),
    ("AVAILABILITY", "Availability"),
    ("MANAGER STATUS", "ManagerStatus"),
    ("ENGINE VERSION", "EngineVersion"),
)


@click.group(cls=Group)
def node() -> None:
    """Manage the nodes of the swarm."""


@node.command(cls=Command)
@filter_option
@format_option
@quiet_option
@no_trunc_option
@click.option("--rtt", is_flag=True, help="Also the round trip time from here to each node.")
@pass_app
def ls(app: App, filters: Any, format_: str, quiet: bool, no_trunc: bool, rtt: bool) -> None:
    """List the nodes; * marks the one that answers."""
    nodes = app.client.get("/nodes", filters=filters_query(filters))
    own = app.client.get("/info")["Swarm"]["NodeID"]
    rows = [_row(n, own) for n in nodes]
    columns: tuple[tuple[str, str], ...] = COLUMNS
    if rtt:
        from swarmlet.cli.members import human_rtt

        found = {member["ID"]: member for member in app.client.get("/swarmlet/members")}
        for row in rows:
            row["RTT"] = human_rtt(found[row["ID"]]["RTT"]) if row["ID"] in found else ""
        columns = (*COLUMNS, ("RTT", "RTT"))
    show(rows, columns, format_, quiet=quiet)


def _row(document: Mapping[str, Any], own: str) -> dict[str, str]:
    manager = document.get("ManagerStatus") or {}
    status = "Leader" if manager.get("Leader") else manager.get("Reachability", "").capitalize()
    is_own = document["ID"] == own
    return {
        "ID": document["ID"],
        "IDMark": f"{document['ID']} *" if is_own else document["ID"],
        "Self": "true" if is_own else "false",
        "Hostname": document["Description"]["Hostname"],
        "Status": document["Status"]["State"].capitalize(),
        "Availability": document["Spec"]["Availability"].capitalize(),
        "ManagerStatus": status,
        "EngineVersion": document["Description"]["Engine"]["EngineVersion"],
    }


def own_or(app: App, name: str) -> str:
    """`self` is the node that answers."""
    return str(app.client.get("/info")["Swarm"]["NodeID"]) if name == "self" else name


@node.command(cls=Command)
@click.option("--format", "format_", default="", help="json, or a template.")
@click.option("--pretty", is_flag=True, help="For people, not in JSON.")
@click.argument("nodes", metavar="self|NODE...", nargs=-1, required=True)
@pass_app
def inspect(app: App, nodes: tuple[str, ...], format_: str, pretty: bool) -> None:
    """Show nodes in detail."""
    if pretty and format_:
        raise click.UsageError("--pretty and --format exclude each other")
    found: list[Any] = []
    try:
        for_each(nodes, lambda n: found.append(app.client.get(f"/nodes/{own_or(app, n)}")))
    finally:
        if pretty:
            for document in found:
                for line in _pretty(document):
                    emit(line)
        elif found:
            show_documents(found, format_)


def _pretty(document: Mapping[str, Any]) -> list[str]:
    description = document["Description"]
    manager = document.get("ManagerStatus") or {}
    platform, resources = description["Platform"], description["Resources"]
    labels = document["Spec"].get("Labels") or {}
    rows = [
        ("ID", document["ID"]),
        ("Hostname", description["Hostname"]),
        ("Labels", " ".join(f"{k}={v}" for k, v in sorted(labels.items()))),
        ("Role", document["Spec"]["Role"]),
        ("State", document["Status"]["State"]),
        ("Availability", document["Spec"]["Availability"]),
        ("Address", document["Status"]["Addr"]),
        ("Manager", f"{manager['Addr']}, {manager['Reachability']}" if manager else ""),
        ("Leader", "yes" if manager.get("Leader") else ""),
        ("Platform", f"{platform['OS']}/{platform['Architecture']}"),
        ("CPUs", f"{resources['NanoCPUs'] / 1e9:g}"),
        ("Memory", human_memory(resources["MemoryBytes"])),
        ("Version", description["Engine"]["EngineVersion"]),
    ]
    return [f"{name + ':':<16}{value}" for name, value in rows if value]


@node.command(cls=Command)
@filter_option
@format_option
@quiet_option
@no_trunc_option
@click.option("--no-resolve", is_flag=True, help="Show ids in place of names.")
@click.argument("nodes", metavar="[self|NODE...]", nargs=-1)
@pass_app
def ps(
    app: App,
    nodes: tuple[str, ...],
    filters: Any,
    format_: str,
    quiet: bool,
    no_trunc: bool,
    no_resolve: bool,
) -> None:
    """List the tasks of nodes; of the one that answers if none is named."""
    from swarmlet.cli.service_show import PS_COLUMNS, task_rows

    ids: list[str] = []
    names = nodes or ("self",)
    try:
        for_each(names, lambda n: ids.append(app.client.get(f"/nodes/{own_or(app, n)}")["ID"]))
    finally:
        if ids:
            query = {**(filters_query(filters) or {}), "node": ids}
            tasks = app.client.get("/tasks", filters=query)
            rows = task_rows(app, tasks, no_trunc=no_trunc, no_resolve=no_resolve)
            show(rows, PS_COLUMNS, format_, quiet=quiet)


_label_type = Parsed(parse_pair, "key=value")


@node.command(cls=Command)
@click.option(
    "--availability",
    type=click.Choice(["active", "pause", "drain"]),
    help="active; pause: no new tasks; drain: no tasks.",
)
@click.option("--role", type=click.Choice(["worker", "manager"]), help="Role of the node.")
@click.option("--label-add", "added", type=_label_type, multiple=True, help="Add key=value.")
@click.option("--label-rm", "removed", multiple=True, help="Remove a label by its key.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait until the node is drained.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.argument("name", metavar="NODE")
@pass_app
def update(
    app: App,
    name: str,
    availability: str | None,
    role: str | None,
    added: tuple[tuple[str, str], ...],
    removed: tuple[str, ...],
    detach: bool,
    quiet: bool,
) -> None:
    """Change a node; with --availability drain wait until its tasks have moved."""
    changes = {"Availability": availability, "Role": role}
    document = app.client.get(f"/nodes/{own_or(app, name)}")
    labels = dict(document["Spec"].get("Labels") or {})
    missing = [key for key in removed if key not in labels]
    if missing:
        raise click.UsageError(f"--label-rm: node {name} has no label {missing[0]!r}")
    kept = {key: value for key, value in labels.items() if key not in removed} | dict(added)
    _update(app, document, {"Labels": kept, **{k: v for k, v in changes.items() if v}})
    print(name, flush=True)
    if availability == "drain" and not detach:
        from swarmlet.cli.watching import watch_drain

        watch_drain(app.client, document["ID"], name, quiet=quiet)


def _update(app: App, document: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    spec = {**document["Spec"], **changes}
    app.client.post(f"/nodes/{document['ID']}/update", spec, version=document["Version"]["Index"])


def _set_role(app: App, name: str, role: str) -> None:
    document = app.client.get(f"/nodes/{own_or(app, name)}")
    if document["Spec"]["Role"] == role:
        emit(f"Node {name} is already a {role}.")
        return
    _update(app, document, {"Role": role})
    verb = "promoted to" if role == "manager" else "demoted from"
    emit(f"Node {name} {verb} a manager in the swarm.")


@node.command(cls=Command)
@click.argument("nodes", metavar="NODE...", nargs=-1, required=True)
@pass_app
def promote(app: App, nodes: tuple[str, ...]) -> None:
    """Make managers of workers."""
    for_each(nodes, lambda name: _set_role(app, name, "manager"))


@node.command(cls=Command)
@click.argument("nodes", metavar="NODE...", nargs=-1, required=True)
@pass_app
def demote(app: App, nodes: tuple[str, ...]) -> None:
    """Make workers of managers."""
    for_each(nodes, lambda name: _set_role(app, name, "worker"))


@node.command(cls=Command)
@click.option("-f", "--force", is_flag=True, help="Also one that is not down.")
@click.argument("nodes", metavar="NODE...", nargs=-1, required=True)
@pass_app
def rm(app: App, nodes: tuple[str, ...], force: bool) -> None:
    """Remove nodes from the swarm for good."""

    def remove(name: str) -> None:
        app.client.delete(f"/nodes/{name}", force=force or None)
        emit(name)

    for_each(nodes, remove)
