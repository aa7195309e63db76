"""`swarmlet stop | restart | kill | pause | unpause | wait | rm | rename | update`."""

from __future__ import annotations

import json
from typing import Any

import click

from swarmlet.cli.base import (
    App,
    Command,
    Parsed,
    for_each,
    pass_app,
    refused_flag,
    refused_option,
)
from swarmlet.cli.container_options import LIMITS, REFUSED, add_flags, read_limits
from swarmlet.cli.output import emit
from swarmlet.cli.parsing import parse_restart

_signal = click.option("-s", "--signal", default=None, help="The signal that ends it.")
_timeout = click.option(
    "-t",
    "--timeout",
    "--time",
    type=int,
    default=None,
    help="Seconds until it is killed; -1: never.",
)
_containers = click.argument("containers", metavar="CONTAINER...", nargs=-1, required=True)


@click.command(cls=Command)
@_signal
@_timeout
@_containers
@pass_app
def stop(app: App, containers: tuple[str, ...], signal: str | None, timeout: int | None) -> None:
    """End containers: their stop signal, and SIGKILL when their time is over."""
    _end(app, "stop", containers, signal, timeout)


@click.command(cls=Command)
@_signal
@_timeout
@_containers
@pass_app
def restart(app: App, containers: tuple[str, ...], signal: str | None, timeout: int | None) -> None:
    """Stop containers if they run, and start them."""
    _end(app, "restart", containers, signal, timeout)


def _end(
    app: App, verb: str, containers: tuple[str, ...], signal: str | None, timeout: int | None
) -> None:
    def act(name: str) -> None:
        # However long it takes: the daemon answers when it has ended.
        query = {"signal": signal, "t": timeout}
        for _ in app.client.stream("POST", f"/containers/{name}/{verb}", query=query):
            pass
        emit(name)

    for_each(containers, act)


@click.command(cls=Command)
@click.option("-s", "--signal", default="KILL", help="Another signal.")
@_containers
@pass_app
def kill(app: App, containers: tuple[str, ...], signal: str) -> None:
    """Send a signal to containers: SIGKILL, if no other is given."""

    def act(name: str) -> None:
        app.client.post(f"/containers/{name}/kill", signal=signal)
        emit(name)

    for_each(containers, act)


@click.command(cls=Command)
@_containers
@pass_app
def pause(app: App, containers: tuple[str, ...]) -> None:
    """Freeze all processes of containers."""
    _each(app, containers, "pause")


@click.command(cls=Command)
@_containers
@pass_app
def unpause(app: App, containers: tuple[str, ...]) -> None:
    """Let the processes of containers go on."""
    _each(app, containers, "unpause")


def _each(app: App, containers: tuple[str, ...], verb: str) -> None:
    def act(name: str) -> None:
        app.client.post(f"/containers/{name}/{verb}")
        emit(name)

    for_each(containers, act)


@click.command(cls=Command)
@_containers
@pass_app
def wait(app: App, containers: tuple[str, ...]) -> None:
    """Wait until containers have ended, and print their exit codes."""

    def act(name: str) -> None:
        pieces = app.client.stream("POST", f"/containers/{name}/wait")
        emit(str(json.loads(b"".join(pieces))["StatusCode"]))

    for_each(containers, act)


@click.command(cls=Command)
@click.option("-f", "--force", is_flag=True, help="Also one that runs: it is killed.")
@click.option("-v", "--volumes", is_flag=True, help="With its anonymous volumes.")
@refused_flag("-l", "--link", reason="links are Docker's past, and there is none to remove")
@_containers
@pass_app
def rm(app: App, containers: tuple[str, ...], force: bool, volumes: bool) -> None:
    """Remove containers."""
    from swarmlet.api.client import Refused

    def act(name: str) -> None:
        try:
            app.client.delete(f"/containers/{name}", force=force or None, v=volumes or None)
        except Refused as exc:
            if not (force and exc.status == 404):
                raise
            # As Docker: with --force the container is not there, as it should be.
            click.echo(f"swarmlet: {exc}", err=True)
            return
        emit(name)

    for_each(containers, act)


@click.command(cls=Command)
@click.argument("container")
@click.argument("new_name")
@pass_app
def rename(app: App, container: str, new_name: str) -> None:
    """Give a container another name."""
    app.client.post(f"/containers/{container}/rename", name=new_name)


@click.command(cls=Command)
@add_flags(LIMITS)
@click.option("--restart", type=Parsed(parse_restart, "policy"), metavar="TEXT", help="Its policy.")
@refused_option("--blkio-weight", reason=REFUSED["--blkio-weight"])
@refused_option("--cpu-rt-period", reason=REFUSED["--cpu-rt-period"])
@refused_option("--cpu-rt-runtime", reason=REFUSED["--cpu-rt-runtime"])
@_containers
@pass_app
def update(app: App, containers: tuple[str, ...], restart: Any, **options: Any) -> None:
    """Change the limits of containers, also while they run, and their restart policy."""
    body = read_limits(options)
    if restart is not None:
        body["RestartPolicy"] = restart
    if not body:
        raise click.UsageError("you must provide one or more flags when using this command")

    def act(name: str) -> None:
        app.client.post(f"/containers/{name}/update", body)
        emit(name)

    for_each(containers, act)
