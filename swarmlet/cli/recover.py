"""`swarmlet recover`: go on with this manager alone when most of them are lost for good."""

from __future__ import annotations

from typing import Any

import click

from swarmlet.cli.base import App, Command, pass_app
from swarmlet.cli.output import emit


@click.command(cls=Command)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("-f", "--force", is_flag=True, help="Also while this manager hears from a leader.")
@pass_app
def recover(app: App, yes: bool, force: bool) -> None:
    """Make this manager the only one, with what it has, when most managers are lost for good.

    Run it on the survivor whose log ends last. What only the lost managers had is lost. The other
    managers' nodes come back as workers with their tasks; `swarmlet node promote` makes them
    managers again. Never bring a majority of the lost managers back: they would be a swarm of
    their own.
    """
    found = app.client.get("/swarmlet/recovery")
    for line in describe(found):
        emit(line)
    if not yes:
        click.confirm("Go on with this manager alone?", abort=True)
    app.client.post("/swarmlet/recovery", force=force or None)
    emit("This manager goes on alone. See `swarmlet node ls`; promote others when they are back.")


def describe(found: dict[str, Any]) -> list[str]:
    """Say what is here, what others have, and what will be lost as far as anybody knows."""
    here = found["Here"]
    lines = [f"This manager has {_log(here)}."]
    if here["Fault"]:
        lines.append(f"It takes no part now: {here['Fault']}")
    if found["Damage"]:
        lines.append(f"Its log is damaged, and ends before that: {found['Damage']}")
    better = []
    for other in found["Others"]:
        if other["Error"]:
            lines.append(f"{other['Name']} at {other['Addr']} cannot be asked: {other['Error']}")
            continue
        lines.append(f"{other['Name']} at {other['Addr']} has {_log(other['Raft'])}.")
        if _rank(other["Raft"]) > _rank(here):
            better.append(other["Name"])
    if better:
        lines.append(f"WARNING: {better[0]} has more than this one: run it there instead.")
    if here["LastIndex"] > here["CommitIndex"]:
        count = here["LastIndex"] - here["CommitIndex"]
        lines.append(f"The last {count} entries here may never have been confirmed; they are kept.")
    unknown = [other["Name"] for other in found["Others"] if other["Error"]]
    if unknown:
        lines.append(f"What only {', '.join(unknown)} had is lost; how much that is, nobody knows.")
    return lines


def _log(raft: dict[str, Any]) -> str:
    return f"a log up to entry {raft['LastIndex']} of term {raft['LastTerm']}"


def _rank(raft: dict[str, Any]) -> tuple[int, int]:
    return raft["LastTerm"], raft["LastIndex"]
