"""`swarmlet volume`: create, ls, inspect, rm, prune; of this node's own disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from swarmlet.cli.base import (
    App,
    Command,
    Group,
    filter_option,
    filters_query,
    for_each,
    format_option,
    pass_app,
    quiet_option,
    refused_flag,
    refused_option,
)
from swarmlet.cli.output import emit, show, show_documents
from swarmlet.cli.parsing import parse_pairs
from swarmlet.cli.pruning import prune_volumes

F = TypeVar("F", bound=Callable[..., Any])

COLUMNS = (("DRIVER", "Driver"), ("VOLUME NAME", "Name"))


@click.group(cls=Group)
def volume() -> None:
    """Manage the volumes of this node: folders that outlive containers."""


CLUSTER_VOLUMES = "cluster volumes are not built; a volume is a folder of its node"


def _refuse_cluster_volumes(function: F) -> F:
    for name in (
        "--availability",
        "--group",
        "--limit-bytes",
        "--required-bytes",
        "--scope",
        "--secret",
        "--sharing",
        "--topology-preferred",
        "--topology-required",
        "--type",
    ):
        function = refused_option(name, reason=CLUSTER_VOLUMES)(function)
    return function


@volume.command(cls=Command)
@click.option("-d", "--driver", default="", help="local is what there is.")
@click.option("-o", "--opt", "options", multiple=True, help="An option of the driver.")
@click.option("--label", "labels", multiple=True, help="key=value.")
@click.option("--name", "named", default="", hidden=True)
@_refuse_cluster_volumes
@click.argument("name", metavar="[NAME]", default="")
@pass_app
def create(
    app: App,
    name: str,
    named: str,
    driver: str,
    options: tuple[str, ...],
    labels: tuple[str, ...],
) -> None:
    """Make a volume, or find that it is there; print its name."""
    try:
        body = {
            "Name": name or named,
            "Driver": driver,
            "DriverOpts": parse_pairs(options),
            "Labels": parse_pairs(labels),
        }
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    emit(app.client.post("/volumes/create", body)["Name"])


@volume.command(cls=Command)
@filter_option
@format_option
@quiet_option
@refused_flag("--cluster", reason=CLUSTER_VOLUMES)
@pass_app
def ls(app: App, filters: Any, format_: str, quiet: bool) -> None:
    """List the volumes of this node."""
    found = app.client.get("/volumes", filters=filters_query(filters))["Volumes"] or ()
    rows = [
        {
            "Driver": row["Driver"],
            "Name": row["Name"],
            "Mountpoint": row["Mountpoint"],
            "Scope": row["Scope"],
            "Labels": ",".join(f"{k}={v}" for k, v in (row["Labels"] or {}).items()),
        }
        for row in found
    ]
    show(rows, COLUMNS, format_, quiet=quiet, key="Name")


@volume.command(cls=Command)
@click.option("-f", "--format", "format_", default="", help="json, or a template.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@pass_app
def inspect(app: App, names: tuple[str, ...], format_: str) -> None:
    """Show volumes in detail."""
    found: list[Any] = []
    try:
        for_each(names, lambda name: found.append(app.client.get(f"/volumes/{name}")))
    finally:
        if found:
            show_documents(found, format_)


@volume.command(cls=Command)
@click.option("-f", "--force", is_flag=True, help="No error for one that is not there.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@pass_app
def rm(app: App, names: tuple[str, ...], force: bool) -> None:
    """Remove volumes, with all that is in them."""

    def act(name: str) -> None:
        app.client.delete(f"/volumes/{name}", force=force or None)
        emit(name)

    for_each(names, act)


volume.add_command(prune_volumes, "prune")
