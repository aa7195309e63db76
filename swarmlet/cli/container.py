"""`swarmlet ps | logs`: the containers of this node."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from swarmlet.cli.base import (
    App,
    Command,
    filter_option,
    filters_query,
    format_option,
    no_trunc_option,
    pass_app,
    quiet_option,
)
from swarmlet.cli.frames import STDERR, read_frames
from swarmlet.cli.output import ago, short_id, short_image, show
from swarmlet.cli.parsing import NANOSECONDS, parse_duration

COLUMNS = (
    ("CONTAINER ID", "ID"),
    ("IMAGE", "Image"),
    ("COMMAND", "Command"),
    ("CREATED", "RunningFor"),
    ("STATUS", "Status"),
    ("PORTS", "Ports"),
    ("NAMES", "Names"),
)
COMMAND_CHARACTERS = 20


@click.command(cls=Command)
@click.option("-a", "--all", "all_", is_flag=True, help="Also those that have ended.")
@click.option("-n", "--last", type=click.IntRange(1), help="The youngest so many, ended or not.")
@filter_option
@format_option
@quiet_option
@no_trunc_option
@pass_app
def ps(
    app: App,
    all_: bool,
    last: int | None,
    filters: Any,
    format_: str,
    quiet: bool,
    no_trunc: bool,
) -> None:
    """List the containers of this node."""
    query = {"all": all_ or None, "limit": last, "filters": filters_query(filters)}
    containers = app.client.get("/containers/json", **query)
    rows = [_row(document, no_trunc) for document in containers]
    show(rows, COLUMNS, format_, quiet=quiet)


def _row(document: dict[str, Any], no_trunc: bool) -> dict[str, str]:
    command = document["Command"]
    if not no_trunc and len(command) > COMMAND_CHARACTERS:
        command = f"{command[: COMMAND_CHARACTERS - 1]}…"
    return {
        "ID": short_id(document["Id"], no_trunc),
        "Image": short_image(document["Image"], no_trunc),
        "Command": f'"{command}"',
        "CreatedAt": str(document["Created"]),
        "RunningFor": ago(document["Created"], time.time()),
        "State": document["State"],
        "Status": document["Status"],
        "Ports": "",
        "Names": ",".join(name.removeprefix("/") for name in document["Names"]),
        "Labels": ",".join(f"{key}={value}" for key, value in document["Labels"].items()),
        "Networks": ",".join(document["NetworkSettings"]["Networks"]),
    }


@click.command(cls=Command)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option("-n", "--tail", default="all", help="So many last lines.")
@click.option("--since", default="", help="From a time on, or for example 10m.")
@click.option("--until", default="", help="Up to a time, or for example 1m.")
@click.option("-t", "--timestamps", is_flag=True, help="Show times.")
@click.argument("container")
@pass_app
def logs(
    app: App,
    container: str,
    follow: bool,
    tail: str,
    since: str,
    until: str,
    timestamps: bool,
) -> None:
    """Show what a container of this node wrote."""
    terminal = app.client.get(f"/containers/{container}/json")["Config"]["Tty"]
    query = {
        "stdout": True,
        "stderr": True,
        "follow": follow or None,
        "tail": tail,
        "since": moment(since),
        "until": moment(until),
        "timestamps": timestamps or None,
    }
    pieces = app.client.stream("GET", f"/containers/{container}/logs", query=query)
    frames = ((0, piece) for piece in pieces) if terminal else read_frames(pieces)
    for stream, line in frames:
        out = sys.stderr.buffer if stream == STDERR else sys.stdout.buffer
        out.write(line)
        out.flush()


def moment(text: str) -> str | None:
    """A time as the API takes it; `10m` is ten minutes ago."""
    if not text:
        return None
    try:
        return f"{time.time() - parse_duration(text) / NANOSECONDS:.6f}"
    except ValueError:
        return text
