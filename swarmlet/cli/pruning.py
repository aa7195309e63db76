"""`swarmlet … prune` and `swarmlet system df`: what takes room, and giving it back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from swarmlet.cli.base import (
    App,
    Command,
    Failure,
    Parsed,
    filters_query,
    format_option,
    pass_app,
)
from swarmlet.cli.output import emit, human_size, render_table, short_id, show

DF_COLUMNS = (
    ("TYPE", "Type"),
    ("TOTAL", "TotalCount"),
    ("ACTIVE", "Active"),
    ("SIZE", "Size"),
    ("RECLAIMABLE", "Reclaimable"),
)


def _parse_filter(text: str) -> tuple[str, str]:
    """`label=a=b`, `label!=a`, `until=24h`."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError(f"{text!r} is no filter; write until=24h or label=key=value")
    return key.strip().lower(), value.strip()


_force = click.option("-f", "--force", is_flag=True, help="Do not ask.")
_filters = click.option(
    "--filter",
    "filters",
    type=Parsed(_parse_filter, "key=value"),
    multiple=True,
    help="Only what matches, such as until=24h.",
)


def _ask(force: bool, warning: str) -> None:
    """Raises Failure: nobody said yes."""
    if force:
        return
    sys.stderr.write(f"WARNING! {warning}\nAre you sure you want to continue? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Failure("nothing was removed; say yes, or use --force")


def _prune(
    app: App, resource: str, filters: tuple[tuple[str, str], ...], *more: tuple[str, str]
) -> Mapping[str, Any]:
    query = filters_query((*filters, *more))
    document: Mapping[str, Any] = app.client.post(f"/{resource}/prune", None, filters=query)
    return document


def _tell(title: str, names: Iterable[str]) -> None:
    names = list(names)
    if names:
        emit(f"Deleted {title}:")
        for name in names:
            emit(name)
        emit("")


def _tell_images(rows: Iterable[Mapping[str, str]]) -> None:
    _tell("Images", (f"{what.lower()}: {name}" for row in rows for what, name in row.items()))


def _total(freed: int) -> None:
    emit(f"Total reclaimed space: {human_size(freed)}")


@click.command("prune", cls=Command)
@_filters
@_force
@pass_app
def prune_containers(app: App, filters: Any, force: bool) -> None:
    """Remove all containers that do not run."""
    _ask(force, "This will remove all stopped containers.")
    done = _prune(app, "containers", filters)
    _tell("Containers", done["ContainersDeleted"] or ())
    _total(done["SpaceReclaimed"])


@click.command("prune", cls=Command)
@click.option("-a", "--all", "all_", is_flag=True, help="Also those that have a name.")
@_filters
@_force
@pass_app
def prune_images(app: App, all_: bool, filters: Any, force: bool) -> None:
    """Remove images that have no name and that nothing needs."""
    which = "all images without at least one container" if all_ else "all dangling images"
    _ask(force, f"This will remove {which}.")
    done = _prune(app, "images", filters, ("dangling", "false" if all_ else "true"))
    _tell_images(done["ImagesDeleted"] or ())
    _total(done["SpaceReclaimed"])


@click.command("prune", cls=Command)
@click.option("-a", "--all", "all_", is_flag=True, help="Also those that have a name.")
@_filters
@_force
@pass_app
def prune_volumes(app: App, all_: bool, filters: Any, force: bool) -> None:
    """Remove anonymous volumes that no container has."""
    which = "all" if all_ else "anonymous"
    _ask(force, f"This will remove {which} local volumes not used by at least one container.")
    done = _prune(app, "volumes", filters, *([("all", "true")] if all_ else []))
    _tell("Volumes", done["VolumesDeleted"] or ())
    _total(done["SpaceReclaimed"])


@click.command("prune", cls=Command)
@_filters
@_force
@pass_app
def prune_networks(app: App, filters: Any, force: bool) -> None:
    """Remove networks that no container and no service uses."""
    _ask(force, "This will remove all custom networks not used by at least one container.")
    _tell("Networks", _prune(app, "networks", filters)["NetworksDeleted"] or ())


@click.command("prune", cls=Command)
@click.option("-a", "--all", "all_", is_flag=True, help="Also images that have a name.")
@_filters
@_force
@click.option("--volumes", is_flag=True, help="Also anonymous volumes.")
@pass_app
def prune_system(app: App, all_: bool, filters: Any, force: bool, volumes: bool) -> None:
    """Remove stopped containers, unused networks and images that nothing needs."""
    if volumes and any(key == "until" for key, _ in filters):
        raise click.UsageError('the "until" filter is not supported with "--volumes"')
    images = "all images without at least one container" if all_ else "all dangling images"
    kinds = ["all stopped containers", "all networks not used by at least one container", images]
    kinds += ["all anonymous volumes not used by at least one container"] if volumes else []
    _ask(force, "This will remove:\n" + "".join(f"  - {kind}\n" for kind in kinds))
    freed = 0
    done = _prune(app, "containers", filters)
    _tell("Containers", done["ContainersDeleted"] or ())
    freed += done["SpaceReclaimed"]
    _tell("Networks", _prune(app, "networks", filters)["NetworksDeleted"] or ())
    if volumes:
        done = _prune(app, "volumes", filters)
        _tell("Volumes", done["VolumesDeleted"] or ())
        freed += done["SpaceReclaimed"]
    done = _prune(app, "images", filters, ("dangling", "false" if all_ else "true"))
    _tell_images(done["ImagesDeleted"] or ())
    _total(freed + done["SpaceReclaimed"])


# What takes room.


@click.command(cls=Command)
@format_option
@click.option("-v", "--verbose", is_flag=True, help="Name by name.")
@pass_app
def df(app: App, format_: str, verbose: bool) -> None:
    """Show what takes room on this node's disk."""
    document = app.client.get("/system/df")
    if verbose:
        _show_verbose(document)
        return
    show(_df_rows(document), DF_COLUMNS, format_)


def _df_rows(document: Mapping[str, Any]) -> list[dict[str, str]]:
    images, containers = document["Images"] or [], document["Containers"] or []
    volumes = document["Volumes"] or []

    def idle(container: Mapping[str, Any]) -> bool:
        return container["State"] not in ("running", "paused", "restarting")

    return [
        _df_row(
            "Images",
            images,
            lambda i: i["Containers"] > 0,
            lambda i: i["Size"],
            total=document["LayersSize"],
        ),
        _df_row("Containers", containers, lambda c: not idle(c), lambda c: c.get("SizeRw", 0)),
        _df_row(
            "Local Volumes",
            volumes,
            lambda v: v["UsageData"]["RefCount"] > 0,
            lambda v: v["UsageData"]["Size"],
        ),
    ]


def _df_row(
    kind: str,
    items: list[Mapping[str, Any]],
    is_active: Callable[[Mapping[str, Any]], bool],
    size_of: Callable[[Mapping[str, Any]], int],
    *,
    total: int | None = None,
) -> dict[str, str]:
    size = sum(map(size_of, items)) if total is None else total
    free = sum(size_of(item) for item in items if not is_active(item))
    percent = f" ({min(100, 100 * free // size)}%)" if size else ""
    return {
        "Type": kind,
        "TotalCount": str(len(items)),
        "Active": str(sum(map(is_active, items))),
        "Size": human_size(size),
        "Reclaimable": f"{human_size(free)}{percent}",
    }


def _show_verbose(document: Mapping[str, Any]) -> None:
    tables: tuple[tuple[str, tuple[str, ...], list[tuple[str, ...]]], ...] = (
        (
            "Images space usage:",
            ("IMAGE", "IMAGE ID", "SIZE", "CONTAINERS"),
            [
                (
                    ", ".join(i["RepoTags"] or ["<none>"]),
                    short_id(i["Id"]),
                    human_size(i["Size"]),
                    str(i["Containers"]),
                )
                for i in document["Images"] or ()
            ],
        ),
        (
            "Containers space usage:",
            ("CONTAINER ID", "IMAGE", "SIZE", "STATUS", "NAMES"),
            [
                (
                    short_id(c["Id"]),
                    c["Image"],
                    human_size(c.get("SizeRw", 0)),
                    c["Status"],
                    ",".join(name.removeprefix("/") for name in c["Names"]),
                )
                for c in document["Containers"] or ()
            ],
        ),
        (
            "Local Volumes space usage:",
            ("VOLUME NAME", "LINKS", "SIZE"),
            [
                (v["Name"], str(v["UsageData"]["RefCount"]), human_size(v["UsageData"]["Size"]))
                for v in document["Volumes"] or ()
            ],
        ),
    )
    for number, (title, headers, rows) in enumerate(tables):
        if number:
            emit("")
        emit(f"{title}\n")
        columns = [(header, header) for header in headers]
        for line in render_table([dict(zip(headers, row, strict=True)) for row in rows], columns):
            emit(line)
