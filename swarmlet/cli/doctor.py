"""`swarmlet doctor`: what this machine has and lacks."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import click

#: How a status looks: a word for everybody, a colour for a terminal.
COLOURS = {"found": "green", "degraded": "yellow", "missing": "red", "unknown": "yellow"}
STATUS_WIDTH = 10
NAME_WIDTH = 28


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object with all findings.")
@click.option("--problems", is_flag=True, help="Only what is not as it should be.")
@click.option("--state-dir", default="/var/lib/swarmlet", metavar="FOLDER", show_default=True)
@click.option("--run-dir", default="/run/swarmlet", metavar="FOLDER", show_default=True)
@click.option("--port", default=7947, metavar="PORT", show_default=True, help="Of the cluster.")
@click.option("--data-path-port", default=4789, metavar="PORT", show_default=True)
@click.pass_context
def doctor(
    ctx: click.Context,
    *,
    as_json: bool,
    problems: bool,
    state_dir: str,
    run_dir: str,
    port: int,
    data_path_port: int,
) -> None:
    """Check each thing that swarmlet needs here: found, degraded or missing, and what to do.

    Run it as root to try the kernel's features. Exit code 1 if something is missing.
    """
    from swarmlet import doctor as examination

    findings = examination.examine(Path(state_dir), Path(run_dir), port, data_path_port)
    code: int = examination.exit_code(findings)
    shown = [finding for finding in findings if not problems or finding.fix]
    if as_json:
        summary = {"summary": examination.summary(findings), "exit_code": code}
        click.echo(json.dumps({**summary, "findings": [one.as_json() for one in shown]}, indent=2))
    else:
        for group, members in groupby(shown, key=lambda finding: finding.group):
            click.secho(group, bold=True)
            for finding in members:
                show(finding.status.value, finding.name, finding.detail, finding.why, finding.fix)
        click.echo(examination.summary(findings))
    ctx.exit(code)


def show(status: str, name: str, detail: str, why: str, fix: str) -> None:
    word = click.style(f"{status:{STATUS_WIDTH}}", fg=COLOURS[status])
    click.echo(f"  {word}{name:{NAME_WIDTH}}{detail}")
    if fix:
        indent = " " * (2 + STATUS_WIDTH)
        click.echo(f"{indent}for {why}")
        click.echo(f"{indent}to get it: {fix}")
