"""What a program left on a living host: the measure of an uninstall."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tests.lab import kernel
from tests.lab.network import execute

if TYPE_CHECKING:
    from tests.lab.host import Host


async def look(host: Host) -> frozenset[str]:
    """Everything that somebody could have left, in words that name it."""
    return frozenset(
        [
            *(str(process) for process in host.processes()),
            *(f"mount {path}" for path in kernel.mounts(host.pid)),
            *(f"cgroup {path}" for path in kernel.cgroups(host.cgroup_parent)),
            *(f"file {path}" for path in sorted(_files(host))),
            *await _network(host),
        ]
    )


async def residue(host: Host, *, purged: bool = False) -> list[str]:
    """What is there now and was not when the host had booted.

    Processes, mounts, cgroups, files in /run, links, addresses, routes, rules and nft tables; with
    *purged* the state folder must be empty too.
    """
    left = sorted(await look(host) - host.baseline)
    if purged and host.state_dir.exists():
        left += [f"state {path}" for path in sorted(host.state_dir.rglob("*"))]
    return left


def _files(host: Host) -> Iterable[str]:
    inside = host.outside("/run")
    return (f"/run/{path.relative_to(inside)}" for path in inside.rglob("*"))


async def _network(host: Host) -> list[str]:
    net = ["nsenter", f"--net=/proc/{host.pid}/ns/net"]

    async def listed(*argv: str) -> list[dict[str, Any]]:
        out = await execute(*net, *argv)
        return list(json.loads(out or "[]"))

    links = await listed("ip", "-json", "address")
    found = [f"link {link['ifname']}" for link in links]
    for link in links:
        # Link-local ones the kernel makes by itself, some time after the link is up.
        addresses = [one["local"] for one in link["addr_info"] if one["scope"] != "link"]
        found += [f"address {local} on {link['ifname']}" for local in addresses]
    # IPv4 only: the kernel adds and ages IPv6 routes of its own.
    for route in await listed("ip", "-json", "-4", "route", "show", "table", "all"):
        words = ("dst", "gateway", "dev", "table")
        found.append("route " + " ".join(str(route[word]) for word in words if word in route))
    for rule in await listed("ip", "-json", "rule"):
        found.append(f"rule {json.dumps(rule, sort_keys=True)}")
    tables = json.loads(await execute(*net, "nft", "-j", "list", "tables"))["nftables"]
    for entry in tables:
        if table := entry.get("table"):
            found.append(f"nft table {table['family']} {table['name']}")
    return found
