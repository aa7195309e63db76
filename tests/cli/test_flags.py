"""Every flag of Docker's client is known here: it works, or it is refused by its name."""

from __future__ import annotations

import re
import shutil
import subprocess

import click
import pytest

from swarmlet.cli.main import cli

COMMANDS = """
run, create, start, stop, restart, kill, pause, unpause, wait, rm, ps, exec, attach, logs, top,
inspect, stats, port, diff, cp, export, commit, rename, events, images, rmi, load, save, tag,
history, import, pull, container prune, container update, container ls, image prune, image ls,
image rm, image inspect, volume create, volume ls, volume inspect, volume rm, volume prune,
network connect, network disconnect, network prune, network create, network ls, network inspect,
network rm, system df, system prune
""".replace("\n", " ").split(", ")
FLAG = re.compile(r"^\s+(?:(-\w), )?(--[a-z0-9-]+)", re.MULTILINE)
#: Of Docker's client itself, or of a daemon that runs Windows.
ELSEWHERE = {"--help"}
pytestmark = pytest.mark.skipif(shutil.which("docker") is None, reason="no docker client here")


def find(words: list[str]) -> click.Command:
    command: click.Command = cli
    ctx = click.Context(cli, info_name="swarmlet")
    for word in words:
        assert isinstance(command, click.Group)
        found = command.get_command(ctx, word)
        assert found is not None, words
        command = found
        ctx = click.Context(command, parent=ctx, info_name=word)
    return command


@pytest.mark.parametrize("line", COMMANDS)
def test_every_flag_of_docker_is_known(line: str) -> None:
    words = line.split()
    text = subprocess.run(
        ["docker", *words, "--help"], capture_output=True, text=True, check=True, timeout=30
    ).stdout
    known = {flag for param in find(words).params for flag in (*param.opts, *param.secondary_opts)}
    theirs = FLAG.findall(text.partition("Options:")[2])
    flags = {flag for pair in theirs for flag in pair if flag} - ELSEWHERE
    assert not flags - known, f"{line}: {sorted(flags - known)}"
