"""`swarmlet token`: the standing join tokens of both roles, and tokens with an end."""

from __future__ import annotations

from typing import Any

import click

from swarmlet.cli.base import App, Command, Group, Parsed, pass_app
from swarmlet.cli.output import emit
from swarmlet.cli.parsing import parse_duration, parse_pair
from swarmlet.cli.swarm import join_command


@click.group(cls=Group)
def token() -> None:
    """Show, rotate and make join tokens."""


_rotate = click.option("--rotate", is_flag=True, help="Make the old one void and show a new one.")
_quiet = click.option("-q", "--quiet", is_flag=True, help="Show the token only.")


@token.command(cls=Command)
@_rotate
@_quiet
@pass_app
def worker(app: App, rotate: bool, quiet: bool) -> None:
    """The token with which workers join."""
    _show(app, "worker", rotate, quiet)


@token.command(cls=Command)
@_rotate
@_quiet
@pass_app
def manager(app: App, rotate: bool, quiet: bool) -> None:
    """The token with which managers join."""
    _show(app, "manager", rotate, quiet)


def _show(app: App, role: str, rotate: bool, quiet: bool) -> None:
    if rotate:
        swarm = app.client.get("/swarm")
        query = {f"rotate{role.capitalize()}Token": True, "version": swarm["Version"]["Index"]}
        app.client.post("/swarm/update", swarm["Spec"], **query)
    _tell(app, role, "", quiet, rotated=rotate)


def _tell(app: App, role: str, made: str, quiet: bool, *, rotated: bool = False) -> None:
    if quiet:
        emit(made or app.client.get("/swarm")["JoinTokens"][role.capitalize()])
        return
    command = join_command(app, role, made)
    if rotated:
        emit(f"Successfully rotated {role} join token; the old one admits nobody any more.\n")
    emit(f"To add a {role} to this swarm, run on that machine:\n")
    emit(f"    {command}\n")


@token.command(cls=Command)
@click.option("--role", type=click.Choice(["worker", "manager"]), default="worker")
@click.option(
    "--ttl", type=Parsed(parse_duration, "duration"), default="1h", help="How long it holds."
)
@click.option("--uses", type=click.IntRange(1, 10_000), default=1, help="How many nodes may join.")
@click.option(
    "--label",
    "labels",
    type=Parsed(parse_pair, "key=value"),
    multiple=True,
    help="Label of the nodes that join with it.",
)
@_quiet
@pass_app
def create(app: App, role: str, ttl: int, uses: int, labels: Any, quiet: bool) -> None:
    """Make a token with an end: for so many nodes, and so long."""
    body = {"Role": role, "TTL": ttl, "Uses": uses, "Labels": dict(labels)}
    made = app.client.post("/swarmlet/tokens", body)["Token"]
    _tell(app, role, made, quiet)
