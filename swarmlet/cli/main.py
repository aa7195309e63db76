"""`swarmlet`: the table of commands, and the one boundary of errors.

Exit codes: 0 done, 1 refused or failed, 2 a usage that cannot be, 130 interrupted.
"""

from __future__ import annotations

import os
import sys

import click

from swarmlet.cli.base import App, Command, Failure, Group, load_command

#: The same as swarmlet.api.client.DEFAULT_HOST, which is not imported for `--help`.
DEFAULT_HOST = "unix:///run/swarmlet/swarmlet.sock"

#: What `run` says when there is no container to say anything.
RUN_FAILED = 125

_SWARM, _SYSTEM = "swarmlet.cli.swarm", "swarmlet.cli.system"
_MEMBERS = "swarmlet.cli.members"
_RUN, _LIVES, _LOOK = "swarmlet.cli.run", "swarmlet.cli.lives", "swarmlet.cli.looking"
_SHOW, _COPY = "swarmlet.cli.container", "swarmlet.cli.copying"
_IMAGE = "swarmlet.cli.image"
#: Verbs on containers.
VERBS = {
    "run": (f"{_RUN}:run", "Make a container and run it"),
    "create": (f"{_RUN}:create", "Make a container, which is not started"),
    "start": (f"{_RUN}:start", "Start containers that do not run"),
    "stop": (f"{_LIVES}:stop", "End containers"),
    "restart": (f"{_LIVES}:restart", "Stop containers, and start them again"),
    "kill": (f"{_LIVES}:kill", "Send a signal to containers"),
    "pause": (f"{_LIVES}:pause", "Freeze all processes of containers"),
    "unpause": (f"{_LIVES}:unpause", "Let the processes of containers go on"),
    "wait": (f"{_LIVES}:wait", "Wait until containers have ended"),
    "rm": (f"{_LIVES}:rm", "Remove containers"),
    "ps": (f"{_SHOW}:ps", "List the containers of this node"),
    "exec": (f"{_RUN}:exec_", "Run a further command in a container"),
    "attach": (f"{_RUN}:attach", "Join a terminal with a container's process"),
    "logs": (f"{_SHOW}:logs", "Show what a container of this node wrote"),
    "inspect": (f"{_LOOK}:inspect", "Show containers, images, networks … in detail"),
    "top": (f"{_LOOK}:top", "Show the processes of a container"),
    "stats": (f"{_LOOK}:stats", "Show what containers use"),
    "port": (f"{_LOOK}:port", "Show which ports of the host lead to a container"),
    "diff": (f"{_LOOK}:diff", "Show what a container changed"),
    "cp": (f"{_COPY}:cp", "Copy files between a container and this side"),
    "export": (f"{_COPY}:export", "Write all files of a container as a tar"),
    "commit": (f"{_COPY}:commit", "Make an image of a container"),
    "rename": (f"{_LIVES}:rename", "Give a container another name"),
}
COMMANDS = {
    "init": (f"{_SWARM}:init", "Make a new swarm with this node as its first manager"),
    "join": (f"{_SWARM}:join", "Bring this node into a swarm"),
    "leave": (f"{_SWARM}:leave", "Take this node out of its swarm"),
    "token": ("swarmlet.cli.token:token", "Show, rotate and make join tokens"),
    "update": ("swarmlet.cli.groups:update", "Change settings of the swarm, or of containers"),
    "recover": ("swarmlet.cli.recover:recover", "Go on with this manager when most are lost"),
    "node": ("swarmlet.cli.node:node", "Manage the nodes of the swarm"),
    "service": ("swarmlet.cli.service:service", "Manage services"),
    "network": ("swarmlet.cli.network:network", "Manage networks"),
    "image": ("swarmlet.cli.image:image", "Manage the images of this node"),
    "volume": ("swarmlet.cli.volume:volume", "Manage the volumes of this node"),
    **VERBS,
    "container": ("swarmlet.cli.groups:container", "The same verbs, and prune"),
    "system": ("swarmlet.cli.groups:system", "Disk usage, events and prune of this node"),
    "info": (f"{_SYSTEM}:info", "Show this node and its swarm"),
    "members": (f"{_MEMBERS}:members", "Show the nodes as this node's gossip sees them"),
    "monitor": (f"{_MEMBERS}:monitor", "Show what gossip tells, as it comes"),
    "broadcast": (f"{_MEMBERS}:broadcast", "Send an event to every node's monitor"),
    "version": (f"{_SYSTEM}:version", "Show the versions of client and daemon"),
    "daemon": ("swarmlet.cli.daemon:daemon", "Run the node (as the service manager does)"),
    "doctor": ("swarmlet.cli.doctor:doctor", "Check what this machine has and lacks"),
    "audit": ("swarmlet.cli.audit:audit", "Try the ways out of a container"),
    "install": ("swarmlet.cli.install:install", "Install the systemd unit and start the daemon"),
    "uninstall": ("swarmlet.cli.install:uninstall", "Remove the unit, and with --purge all state"),
}

#: Docker's short names of what has a longer one here; they work, and are not listed.
SHORT = {
    "swarm": ("swarmlet.cli.groups:swarm", ""),
    "events": (f"{_LOOK}:events", ""),
    "images": (f"{_IMAGE}:ls", ""),
    "rmi": (f"{_IMAGE}:rm", ""),
    **{name: (f"{_IMAGE}:{name}", "") for name in ("history", "load", "pull", "save", "tag")},
    "import": (f"{_IMAGE}:import_", ""),
}


class Root(Group):
    command_class = Command

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in SHORT:
            return load_command(SHORT[cmd_name][0])
        return super().get_command(ctx, cmd_name)


@click.group(
    cls=Root,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "-H",
    "--host",
    metavar="ADDRESS",
    default="",
    help=f"The daemon's socket; else $SWARMLET_HOST, else {DEFAULT_HOST}.",
)
@click.version_option(
    None, "-v", "--version", package_name="swarmlet", message="swarmlet %(version)s"
)
@click.pass_context
def cli(ctx: click.Context, host: str) -> None:
    """A container swarm for the edge: one daemon a host, no Docker, no etcd, no kubelet.

    From nothing to a service: `swarmlet init`, then `swarmlet service create --name web
    --replicas 3 --publish 8080:80 IMAGE`.
    """
    ctx.obj = App(host or os.environ.get("SWARMLET_HOST") or DEFAULT_HOST)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    try:
        code = cli.main(arguments, prog_name="swarmlet", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as exc:
        click.echo(exc.format_message())
        return 2
    except click.UsageError as exc:
        path = exc.ctx.command_path if exc.ctx is not None else "swarmlet"
        _complain(f"{path}: {_one_line(exc.format_message())} (see `{path} --help`)")
        # 2 may be what the command in the container says.
        return RUN_FAILED if path.endswith(" run") else 2
    except click.ClickException as exc:
        _complain(f"swarmlet: {_one_line(exc.format_message())}")
        return 1
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # The reader has what it wanted (| head); what is left in the buffer goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Failure as exc:
        if str(exc):
            _complain(f"swarmlet: {exc}")
        return exc.code
    except Exception as exc:
        if not _is_client_error(exc):
            raise
        _complain(f"swarmlet: {exc}")
        return 1


def _is_client_error(exc: Exception) -> bool:
    """Whether the API's client raised it; without a call the client was never imported."""
    module = sys.modules.get("swarmlet.api.client")
    return module is not None and isinstance(exc, module.ClientError)


def _complain(text: str) -> None:
    sys.stdout.flush()
    click.echo(text, err=True)


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text[:-1] if text.endswith(".") else text


if __name__ == "__main__":
    main()
