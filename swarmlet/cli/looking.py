"""`swarmlet inspect | top | port | diff | stats | events`: what is there and what it does."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import click

from swarmlet.cli.base import (
    App,
    Command,
    Failure,
    filter_option,
    filters_query,
    for_each,
    format_option,
    no_trunc_option,
    pass_app,
)
from swarmlet.cli.output import (
    compile_template,
    emit,
    human_memory,
    human_size,
    render_table,
    short_id,
    show,
    show_documents,
)

#: Where things are looked for, in Docker's order.
PLACES = (
    ("container", "/containers/{}/json"),
    ("image", "/images/{}/json"),
    ("network", "/networks/{}"),
    ("volume", "/volumes/{}"),
    ("service", "/services/{}"),
    ("task", "/tasks/{}"),
    ("node", "/nodes/{}"),
)
KINDS = {0: "C", 1: "A", 2: "D"}
#: Statuses that mean "not of this kind": no such thing, or no swarm that could have it.
NOT_HERE = (400, 404, 406, 501, 503)
STATS_COLUMNS = (
    ("CONTAINER ID", "ID"),
    ("NAME", "Name"),
    ("CPU %", "CPUPerc"),
    ("MEM USAGE / LIMIT", "MemUsage"),
    ("MEM %", "MemPerc"),
    ("NET I/O", "NetIO"),
    ("BLOCK I/O", "BlockIO"),
    ("PIDS", "PIDs"),
)
#: Seconds between two readings.
INTERVAL = 1.0
CLEAR = "\033[2J\033[H"


@click.command(cls=Command)
@click.option("-f", "--format", "format_", default="", help="json, or a template.")
@click.option("-s", "--size", is_flag=True, help="With the sizes of containers.")
@click.option("--type", "kind", type=click.Choice([kind for kind, _ in PLACES]), help="Of a kind.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@pass_app
def inspect(app: App, names: tuple[str, ...], format_: str, size: bool, kind: str | None) -> None:
    """Show containers, images, networks, volumes, services, tasks or nodes in detail."""
    found: list[Any] = []
    try:
        for_each(names, lambda name: found.append(_find(app, name, kind, size)))
    finally:
        if found or not format_:
            show_documents(found, format_)


def _find(app: App, name: str, kind: str | None, size: bool) -> Any:
    from swarmlet.api.client import Refused

    for each, path in PLACES:
        if kind not in (None, each):
            continue
        query = {"size": True} if size and each == "container" else {}
        try:
            return app.client.get(path.format(name), **query)
        except Refused as exc:
            if exc.status not in NOT_HERE or kind is not None:
                raise
    raise Failure(f"No such object: {name}")


@click.command(
    cls=Command, context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True}
)
@click.argument("container")
@click.argument("arguments", metavar="[PS OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@pass_app
def top(app: App, container: str, arguments: tuple[str, ...]) -> None:
    """Show the processes of a container."""
    query = {"ps_args": " ".join(arguments) or None}
    found = app.client.get(f"/containers/{container}/top", **query)
    titles = found["Titles"]
    rows = [dict(zip(titles, row, strict=False)) for row in found["Processes"] or ()]
    for line in render_table(rows, [(title, title) for title in titles]):
        emit(line)


@click.command(cls=Command)
@click.argument("container")
@click.argument("wanted", metavar="[PORT[/PROTO]]", default="")
@pass_app
def port(app: App, container: str, wanted: str) -> None:
    """Show which ports of the host lead to a container's."""
    found = app.client.get(f"/containers/{container}/json")["NetworkSettings"]["Ports"] or {}
    if not wanted:
        for target in sorted(found):
            for binding in found[target] or ():
                emit(f"{target} -> {binding['HostIp']}:{binding['HostPort']}")
        return
    target = wanted if "/" in wanted else f"{wanted}/tcp"
    if not target.partition("/")[0].isdigit():
        raise click.UsageError(f"{wanted!r} is no port; write 80 or 53/udp")
    if not found.get(target):
        raise Failure(f"no public port '{wanted}' published for {container}")
    for binding in found[target]:
        emit(f"{binding['HostIp']}:{binding['HostPort']}")


@click.command(cls=Command)
@click.argument("container")
@pass_app
def diff(app: App, container: str) -> None:
    """Show what a container changed: A added, C changed, D deleted."""
    for change in app.client.get(f"/containers/{container}/changes") or ():
        emit(f"{KINDS[change['Kind']]} {change['Path']}")


# Statistics.


@click.command(cls=Command)
@click.option("-a", "--all", "all_", is_flag=True, help="Also those that do not run.")
@format_option
@click.option("--no-stream", is_flag=True, help="Once, and no more.")
@no_trunc_option
@click.argument("containers", metavar="[CONTAINER...]", nargs=-1)
@pass_app
def stats(
    app: App,
    containers: tuple[str, ...],
    all_: bool,
    format_: str,
    no_stream: bool,
    no_trunc: bool,
) -> None:
    """Show what containers use, every second."""
    before = _readings(app, containers, all_)
    live = not no_stream and sys.stdout.isatty()
    pause = threading.Event()  # nobody sets it
    try:
        while True:
            pause.wait(INTERVAL)
            now = _readings(app, containers, all_)
            if live:
                sys.stdout.write(CLEAR)
            rows = [_stats_row(before.get(id_), now[id_], no_trunc) for id_ in now]
            show(rows, STATS_COLUMNS, format_)
            sys.stdout.flush()
            if no_stream:
                return
            before = now
    except KeyboardInterrupt:
        return


def _readings(app: App, names: tuple[str, ...], all_: bool) -> dict[str, dict[str, Any]]:
    from swarmlet.api.client import Refused

    if not names:
        listed = app.client.get("/containers/json", all=all_ or None)
        names = tuple(container["Id"] for container in listed)
        given = False
    else:
        given = True
    found = {}
    for name in names:
        try:
            reading = app.client.get(
                f"/containers/{name}/stats", **{"stream": False, "one-shot": True}
            )
        except Refused:
            if given:
                raise
            continue  # it was removed meanwhile
        found[reading["id"]] = reading
    return found


def _stats_row(
    before: Mapping[str, Any] | None, now: Mapping[str, Any], no_trunc: bool
) -> dict[str, str]:
    memory = now["memory_stats"]
    used = memory.get("usage", 0) - memory.get("stats", {}).get("inactive_file", 0)
    limit = memory.get("limit", 0)
    networks = (now.get("networks") or {}).values()
    blocks = {row["op"]: row["value"] for row in now["blkio_stats"].get(BLOCKS) or ()}
    return {
        "ID": short_id(now["id"], no_trunc),
        "Container": short_id(now["id"], no_trunc),
        "Name": now["name"].removeprefix("/"),
        "CPUPerc": f"{_cpu_percent(before, now):.2f}%",
        "MemUsage": f"{human_memory(max(0, used))} / {human_memory(limit)}",
        "MemPerc": f"{100 * used / limit if limit else 0:.2f}%",
        "NetIO": _pair(sum(n["rx_bytes"] for n in networks), sum(n["tx_bytes"] for n in networks)),
        "BlockIO": _pair(blocks.get("read", 0), blocks.get("write", 0)),
        "PIDs": str(now["pids_stats"].get("current", 0)),
    }


BLOCKS = "io_service_bytes_recursive"


def _pair(first: int, second: int) -> str:
    return f"{human_size(first)} / {human_size(second)}"


def _cpu_percent(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> float:
    """Of one cpu: two that are busy are 200 %."""
    if before is None or "system_cpu_usage" not in before["cpu_stats"]:
        return 0.0
    if "system_cpu_usage" not in now["cpu_stats"]:
        return 0.0
    old, new = before["cpu_stats"], now["cpu_stats"]
    used = new["cpu_usage"]["total_usage"] - old["cpu_usage"]["total_usage"]
    passed = new["system_cpu_usage"] - old["system_cpu_usage"]
    return 100.0 * used / passed * new["online_cpus"] if used > 0 and passed > 0 else 0.0


# Events.


@click.command(cls=Command)
@filter_option
@click.option("--format", "format_", default="", help="json, or a template.")
@click.option("--since", default="", help="From a time on, or for example 10m.")
@click.option("--until", default="", help="Up to a time.")
@pass_app
def events(app: App, filters: Any, format_: str, since: str, until: str) -> None:
    """Show what happens on this node, as it happens."""
    from swarmlet.cli.container import moment

    template = compile_template(format_) if format_ not in ("", "json") else None
    query = {
        "filters": filters_query(filters),
        "since": moment(since),
        "until": moment(until),
    }
    try:
        for line in lines_of(app.client.stream("GET", "/events", query=query)):
            event = json.loads(line)
            if template is not None:
                emit(template.render(event))
            else:
                emit(line.decode() if format_ == "json" else _event_line(event))
            sys.stdout.flush()
    except KeyboardInterrupt:
        return


def lines_of(pieces: Iterable[bytes]) -> Iterable[bytes]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line for line in lines if line.strip())


def _event_line(event: Mapping[str, Any]) -> str:
    at = datetime.fromtimestamp(event["timeNano"] / 1e9).astimezone().isoformat()
    attributes = event["Actor"]["Attributes"]
    text = ", ".join(f"{key}={attributes[key]}" for key in sorted(attributes))
    return f"{at} {event['Type']} {event['Action']} {event['Actor']['ID']} ({text})"
