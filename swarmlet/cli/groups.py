"""`swarmlet container | system | swarm`: Docker's longer names of what the root has as well."""

from __future__ import annotations

from typing import Any

import click

from swarmlet.cli.base import Command, Group
from swarmlet.cli.main import VERBS

_LIVES, _LOOK = "swarmlet.cli.lives", "swarmlet.cli.looking"
_PRUNE, _SWARM = "swarmlet.cli.pruning", "swarmlet.cli.swarm"


class Renamed(Group):
    """`container ls` is the root's `ps`."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = {"list": "ps", "ls": "ps", "remove": "rm"}.get(cmd_name, cmd_name)
        return super().get_command(ctx, name)


@click.group(
    cls=Renamed,
    lazy=VERBS
    | {
        "update": (f"{_LIVES}:update", "Change the limits of containers"),
        "prune": (f"{_PRUNE}:prune_containers", "Remove all containers that do not run"),
    },
)
def container() -> None:
    """Manage the containers of this node."""


@click.group(
    cls=Group,
    lazy={
        "df": (f"{_PRUNE}:df", "Show what takes room on this node's disk"),
        "events": (f"{_LOOK}:events", "Show what happens on this node"),
        "info": ("swarmlet.cli.system:info", "Show this node and its swarm"),
        "prune": (f"{_PRUNE}:prune_system", "Remove what nothing needs"),
    },
)
def system() -> None:
    """Look after this node."""


@click.group(
    cls=Group,
    lazy={
        "init": (f"{_SWARM}:init", "Make a new swarm with this node as its first manager"),
        "join": (f"{_SWARM}:join", "Bring this node into a swarm"),
        "join-token": ("swarmlet.cli.token:token", "Show, rotate and make join tokens"),
        "leave": (f"{_SWARM}:leave", "Take this node out of its swarm"),
        "update": (f"{_SWARM}:update", "Change settings of the swarm"),
    },
)
def swarm() -> None:
    """Docker's names of init, join, leave, token and update."""


class _Update(Command):
    """Docker's `update` changes containers, ours the swarm: names of containers tell."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        from swarmlet.cli.lives import update as containers_update
        from swarmlet.cli.swarm import update as swarm_update

        target: click.Command = swarm_update
        try:
            probe = click.Context(swarm_update, info_name=info_name, parent=parent)
            _, names, _ = swarm_update.make_parser(probe).parse_args(list(args))
            if names:
                target = containers_update
        except click.UsageError:
            probe = click.Context(containers_update, info_name=info_name, parent=parent)
            try:
                containers_update.make_parser(probe).parse_args(list(args))
                target = containers_update
            except click.UsageError:
                pass  # it fits neither: the swarm's says why
        return target.make_context(info_name, args, parent, **extra)


@click.command(cls=_Update)
def update() -> None:
    """Change settings of the swarm, or with their names the limits of containers."""
