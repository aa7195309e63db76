"""`swarmlet audit`: try the ways out of a container, on this machine."""

from __future__ import annotations

import os
import sys
from urllib.parse import quote

import click

from swarmlet.cli.base import App, pass_app

#: The program that enters containers: no daemon's, since it becomes what it audits.
PROGRAM = "swarmlet.runtime.audit.command"


@click.command()
@click.argument("container", required=False)
@click.option("--privileged", is_flag=True, help="Show what a privileged container opens.")
@click.option("--problems", is_flag=True, help="Only what is open.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object with all findings.")
@pass_app
def audit(
    app: App, container: str | None, *, privileged: bool, problems: bool, as_json: bool
) -> None:
    """Try the known ways out of a container and over its limits: each is held or open, and why.

    A process that is confined as the container's own enters it and calls what an attacker would,
    without doing harm where it is let. Without CONTAINER one is made as a service's task is by
    default, and removed. Run it as root, where the container is. Exit code 1 if a way is open.
    """
    words = [sys.executable, "-Pm", PROGRAM]
    for flag, given in (
        ("--privileged", privileged),
        ("--problems", problems),
        ("--json", as_json),
    ):
        words += [flag] if given else []
    if container:
        if privileged:
            raise click.UsageError("--privileged is for a container that the audit makes")
        found = app.client.get(f"/containers/{quote(container)}/json")
        root = app.client.get("/info")["DockerRootDir"]
        words += ["--state-dir", root, "--pid", str(found["State"]["Pid"])]
    sys.stdout.flush()
    os.execv(words[0], words)
