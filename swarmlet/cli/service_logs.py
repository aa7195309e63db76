"""`swarmlet service logs`: lines of every task, from every node, with who wrote them."""

from __future__ import annotations

import sys
from typing import Any

import click

from swarmlet.api.client import Refused
from swarmlet.cli.base import App, Command, pass_app
from swarmlet.cli.container import moment
from swarmlet.cli.frames import STDERR, read_frames, split_details

PREFIX = "com.docker.swarm."
ID_CHARACTERS = 12


@click.command(cls=Command)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option("-n", "--tail", default="all", help="So many last lines of each task.")
@click.option("--since", default="", help="From a time on, or for example 10m.")
@click.option("-t", "--timestamps", is_flag=True, help="Show times.")
@click.option("--details", is_flag=True, help="Show ids.")
@click.option("--no-resolve", is_flag=True, help="Show ids in place of names.")
@click.option("--no-task-ids", is_flag=True, help="Leave out the ids of tasks.")
@click.option("--no-trunc", is_flag=True, help="Show whole ids.")
@click.option("--raw", is_flag=True, help="The lines alone.")
@click.argument("name", metavar="SERVICE|TASK")
@pass_app
def logs(app: App, name: str, **options: Any) -> None:
    """Show what the tasks of a service wrote, wherever they run."""
    try:
        found = app.client.get(f"/services/{name}")
        path, template = f"/services/{found['ID']}/logs", found["Spec"]["TaskTemplate"]
    except Refused as exc:
        if exc.status != 404:
            raise
        try:
            found = app.client.get(f"/tasks/{name}")
        except Refused:
            raise exc from None
        path, template = f"/tasks/{found['ID']}/logs", found["Spec"]
    timestamps = options["timestamps"]
    query = {
        "stdout": True,
        "stderr": True,
        "follow": options["follow"] or None,
        "tail": options["tail"],
        "since": moment(options["since"]),
        "timestamps": timestamps or None,
        "details": True,
    }
    pieces = app.client.stream("GET", path, query=query)
    if template.get("ContainerSpec", {}).get("TTY"):
        for piece in pieces:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        return
    names = _Names(app, options)
    for stream, line in read_frames(pieces):
        time_text, details, text = split_details(line, timestamps=timestamps)
        head = "" if options["raw"] else f"{names.of(details):<{names.width}} | "
        if options["details"] and not options["raw"]:
            head += ",".join(f"{key}={value}" for key, value in sorted(details.items())) + " "
        if time_text:
            head = f"{time_text} {head}"
        out = sys.stderr.buffer if stream == STDERR else sys.stdout.buffer
        out.write(head.encode() + text)
        out.flush()


class _Names:
    """`web.1.0jmk2z4ne5rd@h2` for the ids in the details of a line; each is asked for once."""

    def __init__(self, app: App, options: dict[str, Any]) -> None:
        self._app = app
        self._options = options
        self._found: dict[str, str] = {}
        self.width = 0

    def of(self, details: dict[str, str]) -> str:
        task = details.get(f"{PREFIX}task.id", "")
        if task not in self._found:
            self._found[task] = self._resolve(task, details)
            self.width = max(self.width, len(self._found[task]))
        return self._found[task]

    def _resolve(self, task: str, details: dict[str, str]) -> str:
        node = details.get(f"{PREFIX}node.id", "")
        service = details.get(f"{PREFIX}service.id", "")
        short = task if self._options["no_trunc"] else task[:ID_CHARACTERS]
        slot = ""
        if not self._options["no_resolve"]:
            try:
                node_document = self._app.client.get(f"/nodes/{node}")
                node = node_document["Description"]["Hostname"]
                task_document = self._app.client.get(f"/tasks/{task}")
                slot = str(task_document.get("Slot") or node_document["ID"])
                service = self._app.client.get(f"/services/{service}")["Spec"]["Name"]
            except Refused:
                pass  # it is gone by now: its id is what is left
        parts = [part for part in (service, slot) if part]
        if not self._options["no_task_ids"] or not slot:
            parts.append(short)
        return f"{'.'.join(parts)}@{node}"
