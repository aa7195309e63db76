"""`swarmlet init | join | leave | update`."""

from __future__ import annotations

from typing import Any

import click

from swarmlet.cli.base import App, Command, Parsed, pass_app, refused_flag, refused_option
from swarmlet.cli.output import emit
from swarmlet.cli.parsing import parse_duration

DURATION = Parsed(parse_duration, "duration")

_advertise = click.option(
    "--advertise-addr",
    default="",
    metavar="ADDRESS",
    help="Where other nodes reach this one; found out by itself if not given.",
)
_listen = click.option(
    "--listen-addr", default="", metavar="ADDRESS", help="Where to listen; as the daemon says."
)
_availability = click.option(
    "--availability",
    type=click.Choice(["active", "pause", "drain"]),
    default="active",
    help="Whether this node runs tasks.",
)
_no_data_path = refused_option("--data-path-addr", reason="one address carries all traffic here")
_no_autolock = refused_flag("--autolock", reason="autolock is not built yet")


@click.command(cls=Command)
@_advertise
@_listen
@_availability
@click.option("--data-path-port", type=click.IntRange(0, 65535), default=0, help="VXLAN's port.")
@click.option("--default-addr-pool", "pools", multiple=True, help="Where subnets come from.")
@click.option(
    "--default-addr-pool-mask-length", "bits", type=click.IntRange(8, 29), help="Their size."
)
@click.option("--cert-expiry", type=DURATION, help="Life of the nodes' certificates.")
@click.option("--dispatcher-heartbeat", type=DURATION, help="Between two signs of life.")
@click.option("--task-history-limit", type=click.IntRange(min=0), help="Ended tasks kept a slot.")
@_no_data_path
@_no_autolock
@refused_flag("--force-new-cluster", reason="recovery from a lost quorum is not built yet")
@refused_option("--external-ca", reason="the cluster has a CA of its own")
@pass_app
def init(app: App, **options: Any) -> None:
    """Make a new swarm with this node as its first manager."""
    body = {
        "AdvertiseAddr": options["advertise_addr"],
        "ListenAddr": options["listen_addr"],
        "DataPathPort": options["data_path_port"],
        "Availability": options["availability"],
        "DefaultAddrPool": list(options["pools"]),
        "SubnetSize": options["bits"] or 0,
        "Spec": _spec(options),
    }
    node = app.client.post("/swarm/init", body)
    emit(f"Swarm initialized: current node ({node}) is now a manager.")
    emit("\nTo add a worker to this swarm, run on that machine:\n")
    emit(f"    {join_command(app, 'worker')}")
    emit("\nTo add a manager: `swarmlet token manager` shows how.")


def _spec(options: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = {}
    if options["task_history_limit"] is not None:
        limit = options["task_history_limit"]
        spec["Orchestration"] = {"TaskHistoryRetentionLimit": limit}
    if options["dispatcher_heartbeat"] is not None:
        spec["Dispatcher"] = {"HeartbeatPeriod": options["dispatcher_heartbeat"]}
    if options["cert_expiry"] is not None:
        spec["CAConfig"] = {"NodeCertExpiry": options["cert_expiry"]}
    return spec


def join_command(app: App, role: str, token: str = "") -> str:
    """The command that brings a node in, with every manager's address: this node's own first."""
    if not token:
        token = app.client.get("/swarm")["JoinTokens"][role.capitalize()]
    swarm = app.client.get("/info")["Swarm"]
    managers = sorted(
        swarm.get("RemoteManagers") or (), key=lambda manager: manager["NodeID"] != swarm["NodeID"]
    )
    addresses = " ".join(manager["Addr"] for manager in managers)
    return f"swarmlet join --token {token} {addresses}"


@click.command(cls=Command)
@click.option("--token", default="", help="What `swarmlet token worker` shows on a manager.")
@_advertise
@_listen
@_availability
@_no_data_path
@click.argument("addresses", metavar="MANAGER[:PORT]...", nargs=-1)
@pass_app
def join(app: App, addresses: tuple[str, ...], **options: Any) -> None:
    """Bring this node into a swarm; the managers are tried in their order."""
    if not options["token"]:
        raise click.UsageError(
            "--token is missing; `swarmlet token worker` on a manager shows the whole command"
        )
    if not addresses:
        raise click.UsageError("the address of a manager is missing, such as 10.0.0.1")
    body = {
        "RemoteAddrs": list(addresses),
        "JoinToken": options["token"],
        "AdvertiseAddr": options["advertise_addr"],
        "ListenAddr": options["listen_addr"],
        "Availability": options["availability"],
    }
    app.client.post("/swarm/join", body)
    is_manager = app.client.get("/info")["Swarm"]["ControlAvailable"]
    emit(f"This node joined a swarm as a {'manager' if is_manager else 'worker'}.")


@click.command(cls=Command)
@click.option("-f", "--force", is_flag=True, help="Also a manager, or without one in reach.")
@pass_app
def leave(app: App, force: bool) -> None:
    """Take this node out of its swarm; its containers stop."""
    app.client.post("/swarm/leave", force=force or None)
    emit("Node left the swarm.")


@click.command(cls=Command)
@click.option("--cert-expiry", type=DURATION, help="Life of the nodes' certificates.")
@click.option("--dispatcher-heartbeat", type=DURATION, help="Between two signs of life.")
@click.option("--task-history-limit", type=click.IntRange(min=0), help="Ended tasks kept a slot.")
@click.option(
    "--gossip-preset",
    type=click.Choice(["lan", "fast", "wan", "edge"]),
    help="How often nodes probe each other and how patient they are; changes at once.",
)
@click.option(
    "--gossip-set",
    "gossip_knobs",
    multiple=True,
    metavar="KNOB=VALUE",
    help="A knob over the preset's, such as probe_period=2s; KNOB= takes it back.",
)
@click.option("--gossip-key-life", type=DURATION, help="Between two changes of the gossip key.")
@click.option("--rotate-gossip-key", is_flag=True, help="Change the gossip key now.")
@_no_autolock
@refused_option("--external-ca", reason="the cluster has a CA of its own")
@refused_option("--max-snapshots", reason="the Raft log looks after itself here")
@refused_option("--snapshot-interval", reason="the Raft log looks after itself here")
@pass_app
def update(app: App, **options: Any) -> None:
    """Change settings of the swarm."""
    changes = _spec(options)
    gossip = any(options[name] for name in ("gossip_preset", "gossip_knobs"))
    gossip = gossip or options["gossip_key_life"] is not None
    rotate = options["rotate_gossip_key"]
    if not changes and not gossip and not rotate:
        raise click.UsageError("nothing to change; see the options")
    swarm = app.client.get("/swarm")
    spec = {**swarm["Spec"], **changes}
    if gossip:
        spec["Swarmlet"] = _gossip(spec["Swarmlet"], options)
    app.client.post(
        "/swarm/update", spec, version=swarm["Version"]["Index"], rotateGossipKey=rotate or None
    )
    emit("Swarm updated.")


def _gossip(current: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    changed = dict(current)
    if options["gossip_preset"]:
        changed["GossipPreset"] = options["gossip_preset"]
    if options["gossip_key_life"] is not None:
        changed["GossipKeyLife"] = options["gossip_key_life"]
    knobs = dict(current["GossipKnobs"])
    for text in options["gossip_knobs"]:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--gossip-set {text}: write KNOB=VALUE, as probe_period=2s")
        knobs[name] = value
    changed["GossipKnobs"] = {name: value for name, value in knobs.items() if value}
    return changed
