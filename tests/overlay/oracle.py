"""What is in a host's namespaces, as iproute2 and nft tell it: an oracle that is not ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from overlay import netns
from tests.overlay.lab import Host, run_in

#: What differs from one link to its successor although both are right.
VOLATILE = {"ifindex", "link_index", "link_netnsid", "link", "stats", "stats64", "txqlen", "group"}
VOLATILE |= {
    "hello_timer",
    "tcn_timer",
    "topology_change_timer",
    "gc_timer",
    "bridge_id",
    "root_id",
}
VOLATILE |= {"used", "probes", "updated", "designated_port", "no", "id", "message_age_timer"}
VOLATILE |= {"forward_delay_timer", "hold_timer", "port_id", "port_no", "parentbus", "parentdev"}
VOLATILE |= {"valid_life_time", "preferred_life_time", "min_mtu", "max_mtu", "num_tx_queues"}
VOLATILE |= {"num_rx_queues", "refcnt", "linkmode", "designated_bridge", "designated_root"}
SYSCTLS = ("ipv4/ip_forward", "ipv4/conf/all/rp_filter", "bridge/bridge-nf-call-iptables")


def picture(host: Host) -> dict[str, Any]:
    """Return everything in the host's namespace and in those that it keeps, without chance."""
    kept = sorted((host.run_dir / "netns").glob("*"))
    return {path.name: _namespace(path) for path in [host.namespace, *kept]}


COMMANDS = {
    "links": "ip -j -d address",
    "routes": "ip -j route show table all",
    "rules": "ip -j rule",
    "neighbours": "ip -j neigh show nud permanent",
    "fdb": "bridge -j fdb",
    "nft": "nft -s list ruleset",
}
SEPARATOR = "=== next"


def _namespace(path: Path) -> dict[str, Any]:
    script = f"; echo '{SEPARATOR}'; ".join(COMMANDS.values())
    outputs = run_in(path, "sh", "-c", script).split(f"{SEPARATOR}\n")
    found: dict[str, Any] = dict(zip(COMMANDS, outputs, strict=True))
    for what in COMMANDS.keys() - {"nft"}:
        found[what] = _stable(found[what])
    return found | {"sysctls": netns.run_in_netns(path, _sysctls)}


def _sysctls() -> dict[str, str]:
    names = [Path("/proc/sys/net", name) for name in SYSCTLS]
    links = Path("/proc/sys/net/ipv4/conf").iterdir()
    names += [link / name for link in links for name in ("rp_filter", "route_localnet")]
    return {str(name): name.read_text().strip() for name in sorted(names) if name.exists()}


def _stable(text: str) -> list[Any]:
    return sorted((_without_chance(item) for item in json.loads(text or "[]")), key=repr)


def _without_chance(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _without_chance(v) for key, v in value.items() if key not in VOLATILE}
        return dict(sorted(kept.items()))
    if isinstance(value, list):
        return [_without_chance(item) for item in value]
    return value
