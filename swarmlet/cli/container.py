"""`swarmlet ps | logs`: the containers of this node."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
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
    refused_flag,
)
from swarmlet.cli.frames import STDERR, read_frames
from swarmlet.cli.output import ago, human_size, short_id, short_image, show
from swarmlet.cli.parsing import NANOSECONDS, PORT_MAX, parse_duration

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
CREATED_AT = "%Y-%m-%d %H:%M:%S +0000 UTC"


@click.command(cls=Command)
@click.option("-a", "--all", "all_", is_flag=True, help="Also those that have ended.")
@click.option("-n", "--last", type=int, default=-1, help="The youngest so many, ended or not.")
@click.option("-l", "--latest", is_flag=True, help="The youngest, ended or not.")
@click.option("-s", "--size", is_flag=True, help="With sizes.")
@filter_option
@format_option
@quiet_option
@no_trunc_option
@pass_app
def ps(
    app: App,
    all_: bool,
    last: int,
    latest: bool,
    size: bool,
    filters: Any,
    format_: str,
    quiet: bool,
    no_trunc: bool,
) -> None:
    """List the containers of this node."""
    wants_size = size or ".Size" in format_
    query = {
        "all": all_ or None,
        "limit": 1 if latest else last if last > 0 else None,
        "size": wants_size or None,
        "filters": filters_query(filters),
    }
    containers = app.client.get("/containers/json", **query)
    rows = [_row(document, no_trunc) for document in containers]
    columns = (*COLUMNS, ("SIZE", "Size")) if wants_size else COLUMNS
    show(rows, columns, format_, quiet=quiet)


def _row(document: dict[str, Any], no_trunc: bool) -> dict[str, str]:
    command = document["Command"]
    if not no_trunc and len(command) > COMMAND_CHARACTERS:
        command = f"{command[: COMMAND_CHARACTERS - 1]}…"
    return {
        "ID": short_id(document["Id"], no_trunc),
        "Image": short_image(document["Image"], no_trunc),
        "Command": f'"{command}"',
        "CreatedAt": datetime.fromtimestamp(document["Created"], UTC).strftime(CREATED_AT),
        "RunningFor": ago(document["Created"], time.time()),
        "State": document["State"],
        "Status": document["Status"],
        "Ports": ports_text(document["Ports"] or ()),
        "Names": ",".join(name.removeprefix("/") for name in document["Names"]),
        "Labels": ",".join(f"{key}={value}" for key, value in document["Labels"].items()),
        "Networks": ",".join(document["NetworkSettings"]["Networks"]),
        "Mounts": ",".join(
            mount.get("Name") or mount.get("Source") or "" for mount in document["Mounts"] or ()
        ),
        "Size": _size_text(document),
    }


def _size_text(document: dict[str, Any]) -> str:
    own, whole = document.get("SizeRw"), document.get("SizeRootFs")
    if own is None:
        return ""
    return f"{human_size(own)} (virtual {human_size(whole or own)})"


def ports_text(ports: Iterable[dict[str, Any]]) -> str:
    """`0.0.0.0:8080->80/tcp, 9000/udp`; neighbours in one range, as Docker shows them."""
    found: dict[tuple[str, str, int], list[tuple[int, int]]] = {}
    for port in ports:
        public, private = port.get("PublicPort", 0), port["PrivatePort"]
        key = (port.get("IP", ""), port["Type"], public - private if public else -PORT_MAX)
        found.setdefault(key, []).append((private, public))
    texts = []
    for (address, kind, _), pairs in sorted(found.items(), key=lambda item: item[1][0]):
        for first, last in _runs(sorted(set(pairs))):
            private = _range(first[0], last[0])
            head = f"{address}:{_range(first[1], last[1])}->" if first[1] else ""
            texts.append(f"{head}{private}/{kind}")
    return ", ".join(texts)


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _runs(pairs: list[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    first = last = pairs[0]
    for pair in pairs[1:]:
        if pair[0] != last[0] + 1:
            yield first, last
            first = pair
        last = pair
    yield first, last


@click.command(cls=Command)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option("-n", "--tail", default="all", help="So many last lines.")
@click.option("--since", default="", help="From a time on, or for example 10m.")
@click.option("--until", default="", help="Up to a time, or for example 1m.")
@click.option("-t", "--timestamps", is_flag=True, help="Show times.")
@refused_flag("--details", reason="lines carry no attributes here")
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
