"""`swarmlet version | info`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import click

from swarmlet.cli.base import App, Command, pass_app
from swarmlet.cli.output import emit, human_memory, show_documents


@click.command(cls=Command)
@click.option("--format", "format_", default="", help="json, or a template.")
@pass_app
def version(app: App, format_: str) -> None:
    """Show the versions of client and daemon."""
    client = {"Version": metadata.version("swarmlet")}
    if not format_:
        emit(f"Client: swarmlet {client['Version']}")
    server = app.client.get("/version")
    if format_:
        show_documents([{"Client": client, "Server": server}], format_)
        return
    emit(f"Daemon: swarmlet {server['Version']}")
    emit(f"  API:    {server['ApiVersion']} (Docker Engine API, from {server['MinAPIVersion']})")
    emit(f"  System: {server['Os']}/{server['Arch']}, kernel {server['KernelVersion']}")
    details = server["Components"][0]["Details"]
    emit(f"  Python: {details['Python']}")


@click.command(cls=Command)
@click.option("--format", "format_", default="", help="json, or a template.")
@pass_app
def info(app: App, format_: str) -> None:
    """Show this node and its swarm."""
    document = app.client.get("/info")
    if format_:
        show_documents([document], format_)
        return
    for name, value in _info_rows(document):
        emit(f"{name + ':':<16}{value}")


def _info_rows(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    swarm = document["Swarm"]
    cluster = swarm.get("Cluster") or {}
    role = "manager" if swarm["ControlAvailable"] else "worker"
    is_in = swarm["LocalNodeState"] != "inactive"
    managers = ", ".join(manager["Addr"] for manager in swarm.get("RemoteManagers") or ())
    counts = f"{swarm['Nodes']} ({swarm['Managers']} managers)" if swarm.get("Nodes") else ""
    rows = [
        ("Name", document["Name"]),
        ("Version", document["ServerVersion"]),
        ("Swarm", swarm["LocalNodeState"]),
        ("Node", swarm["NodeID"]),
        ("Role", role if is_in else ""),
        ("Address", swarm["NodeAddr"]),
        ("Managers", managers),
        ("Nodes", counts),
        ("Cluster", cluster.get("ID", "")),
        ("Error", swarm["Error"]),
        ("Containers", f"{document['Containers']} ({document['ContainersRunning']} running)"),
        ("Images", str(document["Images"])),
        ("System", f"{document['OperatingSystem']}, kernel {document['KernelVersion']}"),
        ("Cgroups", f"v{document['CgroupVersion']}"),
        ("CPUs", str(document["NCPU"])),
        ("Memory", human_memory(document["MemTotal"])),
        ("State folder", document["DockerRootDir"]),
    ]
    return [(name, value) for name, value in rows if value]
