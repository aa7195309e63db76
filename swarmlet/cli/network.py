"""`swarmlet network`: create, ls, inspect, connect, disconnect, rm, prune."""

from __future__ import annotations

from typing import Any

import click

from swarmlet.cli.base import (
    App,
    Command,
    Group,
    Parsed,
    filter_option,
    filters_query,
    for_each,
    format_option,
    no_trunc_option,
    pass_app,
    quiet_option,
    refused_flag,
    refused_option,
)
from swarmlet.cli.output import emit, short_id, show, show_documents
from swarmlet.cli.parsing import parse_pair
from swarmlet.cli.pruning import prune_networks

COLUMNS = (("NETWORK ID", "ID"), ("NAME", "Name"), ("DRIVER", "Driver"), ("SCOPE", "Scope"))

_pair = Parsed(parse_pair, "key=value")


@click.group(cls=Group)
def network() -> None:
    """Manage networks."""


@network.command(cls=Command)
@click.option(
    "-d", "--driver", default="", help="overlay, or bridge for this host alone; as the node is."
)
@click.option("--subnet", default="", help="Such as 10.7.0.0/24; chosen by itself if not given.")
@click.option("--gateway", default="", help="Address in the subnet.")
@click.option("-o", "--opt", "options", type=_pair, multiple=True, help="Option of the driver.")
@click.option("--label", "labels", type=_pair, multiple=True, help="Label, key=value.")
@click.option("--attachable", is_flag=True, help="Containers that are no tasks may join.")
@click.option("--internal", is_flag=True, help="No way out of the network.")
@click.option("--ingress", is_flag=True, help="Carries published ports; there is one at most.")
@click.option("--scope", default="", hidden=True)
@refused_flag("--ipv4", reason="every network is one of IPv4; leave it out")
@refused_flag("--ipv6", reason="IPv6 inside a network is not built yet")
@refused_flag("--config-only", reason="not built; give the options with the network itself")
@refused_option("--config-from", reason="not built; give the options with the network itself")
@refused_option("--ip-range", reason="not built yet; give a subnet that is as small")
@refused_option("--aux-address", reason="not built yet")
@refused_option("--ipam-driver", reason="there is one only")
@refused_option("--ipam-opt", reason="it has no meaning here")
@click.argument("name")
@pass_app
def create(
    app: App,
    name: str,
    driver: str,
    subnet: str,
    gateway: str,
    options: tuple[tuple[str, str], ...],
    labels: tuple[tuple[str, str], ...],
    attachable: bool,
    internal: bool,
    ingress: bool,
    scope: str,
) -> None:
    """Create a network: one that reaches every node of the swarm, or one of this host."""
    if not driver:
        in_swarm = app.client.get("/info")["Swarm"]["LocalNodeState"] == "active"
        driver = "overlay" if in_swarm else "bridge"
    config = {key: value for key, value in (("Subnet", subnet), ("Gateway", gateway)) if value}
    body = {
        "Name": name,
        "Driver": driver,
        "Scope": scope,
        "Internal": internal,
        "Attachable": attachable,
        "Ingress": ingress,
        "Options": dict(options),
        "Labels": dict(labels),
        "IPAM": {"Driver": "default", "Config": [config] if config else []},
    }
    emit(app.client.post("/networks/create", body)["Id"])


@network.command(cls=Command)
@filter_option
@format_option
@quiet_option
@no_trunc_option
@pass_app
def ls(app: App, filters: Any, format_: str, quiet: bool, no_trunc: bool) -> None:
    """List networks."""
    networks = app.client.get("/networks", filters=filters_query(filters))
    rows = [
        {
            "ID": short_id(n["Id"], no_trunc),
            "Name": n["Name"],
            "Driver": n["Driver"],
            "Scope": n["Scope"],
            "Internal": "true" if n["Internal"] else "false",
            "CreatedAt": n["Created"],
            "Labels": ",".join(f"{key}={value}" for key, value in n["Labels"].items()),
        }
        for n in networks
    ]
    show(rows, COLUMNS, format_, quiet=quiet)


@network.command(cls=Command)
@click.option("-f", "--format", "format_", default="", help="json, or a template.")
@click.option("-v", "--verbose", is_flag=True, help="With its services and nodes.")
@click.argument("networks", metavar="NETWORK...", nargs=-1, required=True)
@pass_app
def inspect(app: App, networks: tuple[str, ...], format_: str, verbose: bool) -> None:
    """Show networks in detail."""
    found: list[Any] = []

    def look(name: str) -> None:
        found.append(app.client.get(f"/networks/{name}", verbose=verbose or None))

    try:
        for_each(networks, look)
    finally:
        if found:
            show_documents(found, format_)


@network.command(cls=Command)
@click.option("-f", "--force", is_flag=True, help="No error for one that is not there.")
@click.argument("networks", metavar="NETWORK...", nargs=-1, required=True)
@pass_app
def rm(app: App, networks: tuple[str, ...], force: bool) -> None:
    """Remove networks that no service and no container uses."""
    from swarmlet.api.client import Refused

    def remove(name: str) -> None:
        try:
            app.client.delete(f"/networks/{name}")
        except Refused as exc:
            if not (force and exc.status == 404):
                raise
            return
        emit(name)

    for_each(networks, remove)


@network.command(cls=Command)
@click.option("--alias", "aliases", multiple=True, help="A further name of it there.")
@click.option("--ip", default="", help="Its address there.")
@refused_option("--ip6", reason="IPv6 inside a network is not built yet; leave it out")
@refused_option("--link", reason="links are Docker's past; names mean containers on the network")
@refused_option("--link-local-ip", reason="link-local addresses are not built; use --ip")
@refused_option("--driver-opt", reason="a network has no options for one container")
@refused_option("--gw-priority", reason="the way out is the host's own bridge in any case")
@click.argument("network")
@click.argument("container")
@pass_app
def connect(app: App, network: str, container: str, aliases: tuple[str, ...], ip: str) -> None:
    """Put a container on a further network, also while it runs."""
    endpoint: dict[str, Any] = {"Aliases": list(aliases)}
    if ip:
        endpoint["IPAMConfig"] = {"IPv4Address": ip}
    body = {"Container": container, "EndpointConfig": endpoint}
    app.client.post(f"/networks/{network}/connect", body)


@network.command(cls=Command)
@click.option("-f", "--force", is_flag=True, help="As Docker's; it makes no difference here.")
@click.argument("network")
@click.argument("container")
@pass_app
def disconnect(app: App, network: str, container: str, force: bool) -> None:
    """Take a container off a network."""
    body = {"Container": container, "Force": force}
    app.client.post(f"/networks/{network}/disconnect", body)


network.add_command(prune_networks, "prune")
