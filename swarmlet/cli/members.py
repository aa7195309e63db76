"""`swarmlet members | monitor | broadcast`: what gossip knows, and what it tells."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import click

from swarmlet.cli.base import App, Command, format_option, pass_app, quiet_option
from swarmlet.cli.output import ago, emit, parse_time, show, show_documents

COLUMNS = (
    ("NAME", "Name"),
    ("STATE", "State"),
    ("ADDRESS", "Addr"),
    ("ROLE", "Role"),
    ("RTT", "RTT"),
    ("HEALTH", "Health"),
    ("INCARNATION", "Incarnation"),
    ("SINCE", "Since"),
    ("LEARNED", "Learned"),
)


@click.command(cls=Command)
@format_option
@quiet_option
@click.option("--counters", is_flag=True, help="Show what gossip has counted, not the members.")
@pass_app
def members(app: App, format_: str, quiet: bool, counters: bool) -> None:
    """Show the nodes as this node's gossip sees them, also with no manager in reach."""
    if counters:
        _show_counters(app.client.get("/swarmlet/gossip"), format_)
        return
    now = time.time()
    found = app.client.get("/swarmlet/members")
    if format_ == "json":
        for member in found:
            emit(json.dumps(member))
        return
    show([_row(m, now) for m in found], COLUMNS, format_, quiet=quiet, key="Name")
    for member in found:
        if member["Conflict"] and not quiet:
            emit(
                f"WARNING: {member['Conflict']} has the identity of {member['Name']} as well: stop "
                "one of the two and remove its state folder before it joins again"
            )


def _row(member: Mapping[str, Any], now: float) -> dict[str, str]:
    return {
        **{name: str(value) for name, value in member.items()},
        "Since": ago(parse_time(member["Since"]), now),
        "RTT": human_rtt(member["RTT"]),
        "Health": "" if member["Health"] is None else str(member["Health"]),
        "Incarnation": _incarnation(member["Incarnation"]),
        "Accusers": ", ".join(member["Accusers"]),
        "Learned": _learned(member),
    }


def _learned(member: Mapping[str, Any]) -> str:
    accusers = ", ".join(member["Accusers"])
    by = accusers or member["By"]
    return f"{member['Reason']} (by {by})" if by and by != member["Name"] else member["Reason"]


def human_rtt(nanoseconds: int | None) -> str:
    """`0.42 ms`; nothing while it is not known."""
    return "" if nanoseconds is None else f"{nanoseconds / 1e6:.3g} ms"


def _incarnation(number: int) -> str:
    """The start of the node, and how often it refuted since."""
    return f"{number >> 32}.{number & 0xFFFFFFFF}"


def _show_counters(counters: Mapping[str, Any], format_: str) -> None:
    if format_:
        show_documents([counters], format_)
        return
    for name, value in counters.items():
        if isinstance(value, dict):
            value = " ".join(f"{key}={count}" for key, count in value.items())
        elif isinstance(value, list):
            value = len(value)
        emit(f"{name + ':':<18}{value}")


@click.command(cls=Command)
@click.option("--format", "format_", default="", help="json, or a template.")
@pass_app
def monitor(app: App, format_: str) -> None:
    """Show what gossip tells, as it comes: members that come, go and return, and users' events."""
    for news in _documents(app.client.stream("GET", "/swarmlet/monitor")):
        if format_:
            show_documents([news], format_)
        else:
            emit(_line(news))
        sys.stdout.flush()  # a pipe's reader waits for it


def _documents(pieces: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from map(json.loads, lines)


def _line(news: Mapping[str, Any]) -> str:
    by = f" by={news['By']}" if news["By"] else ""
    if news["Type"] == "user":
        return f"{news['Time']} event {news['Name']} {news['Payload']!r} clock={news['Clock']}{by}"
    change = f"{news['Before'] or '-'} -> {news['After'] or 'forgotten'}"
    return (
        f"{news['Time']} {news['Name']} {change} ({news['Reason']}){by} addr={news['Addr']} "
        f"incarnation={_incarnation(news['Incarnation'])}"
    )


@click.command(cls=Command)
@click.argument("name")
@click.argument("payload", default="")
@pass_app
def broadcast(app: App, name: str, payload: str) -> None:
    """Send an event to every node's `swarmlet monitor`: a name, and a few words."""
    document = {"Name": name, "Payload": base64.b64encode(payload.encode()).decode()}
    app.client.post("/swarmlet/broadcast", document)
