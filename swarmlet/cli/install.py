"""`swarmlet install` and `swarmlet uninstall`: the daemon as a service of this machine."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def places(command: F) -> F:
    """The options that say where a daemon has its things."""
    for name, metavar, text in (
        ("--cgroup-parent", "NAME", "The cgroup that all containers are in."),
        ("--run-dir", "FOLDER", "Sockets and namespaces."),
        ("--state-dir", "FOLDER", "What outlives a reboot."),
    ):
        command = click.option(name, metavar=metavar, help=text)(command)
    return command


def say(text: str) -> None:
    click.echo(text)


@click.command()
@click.option("--no-start", is_flag=True, help="Only enable it; it starts with the next boot.")
@click.option("--force", is_flag=True, help="Replace a unit that has other options.")
@click.option("--config", metavar="FILE", help="A TOML file with the daemon's options.")
@click.option("--name", metavar="NAME", help="The node's name; else the host's.")
@click.option("--listen", metavar="ADDRESS:PORT", help="Where the daemon listens.")
@click.option("--advertise", metavar="ADDRESS", help="The address that others reach it by.")
@click.option("--data-path-port", metavar="PORT", help="The UDP port of the VXLANs.")
@places
def install(*, no_start: bool, force: bool, **options: str | None) -> None:
    """Start the daemon at every boot, as a systemd unit, and now.

    The options are the daemon's own, and go into the unit.

    \b
    Example: swarmlet install --advertise 10.0.0.5
    """
    from swarmlet import install as service

    words: list[str] = []
    for name, value in options.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", value]
    try:
        service.install(words, start=not no_start, force=force, report=say)
    except service.InstallError as error:
        raise click.ClickException(str(error)) from error
    say("next: `swarmlet init` for a new swarm, or `swarmlet join` with a token for one there is")


@click.command()
@click.option("--purge", is_flag=True, help="Remove the state too: keys, log, images, volumes.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@places
def uninstall(
    *, purge: bool, yes: bool, state_dir: str | None, run_dir: str | None, cgroup_parent: str | None
) -> None:
    """Stop the daemon and its containers and remove all that they had on this machine.

    The state stays, unless --purge: a later install takes it up again. Run `swarmlet leave` first,
    or the swarm goes on to list this node.
    """
    from swarmlet import install as service
    from swarmlet import uninstall as remover

    known = service.configured_places()
    where = replace(
        known,
        state_dir=Path(state_dir).absolute() if state_dir else known.state_dir,
        run_dir=Path(run_dir).absolute() if run_dir else known.run_dir,
        cgroup_parent=cgroup_parent or known.cgroup_parent,
    )
    if purge and not yes and sys.stdin.isatty():
        click.confirm(f"Remove all containers, and for good {where.state_dir}?", abort=True)
    try:
        left = remover.uninstall(where, purge=purge, report=say)
    except service.InstallError as error:
        raise click.ClickException(str(error)) from error
    if left:
        again = f"when that is solved, run it again: {shlex.join(sys.argv)}"
        raise click.ClickException("\n  ".join(["could not be removed:", *left, again]))
    if not purge and where.state_dir.exists():
        say(f"kept {where.state_dir}; --purge removes it")
    say("swarmlet is gone from this machine")
