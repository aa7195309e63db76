"""Networks of this host alone: Docker's JSON to what is asked, and back. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from swarmlet.agent.local.records import DEFAULT_NETWORK, HOST_NETWORK, LocalNetwork
from swarmlet.api.convert_network import read_ipam
from swarmlet.api.fields import Fields, timestamp
from swarmlet.model.validation import SpecError, check_name

BRIDGE = "bridge"
MTU = "com.docker.network.driver.mtu"
_PREFIX = "com.docker.network.bridge."
#: Options that ask for what is the case anyway.
_AS_IT_IS = {
    f"{_PREFIX}enable_icc": "true",
    f"{_PREFIX}enable_ip_masquerade": "true",
    f"{_PREFIX}host_binding_ipv4": "0.0.0.0",
}
MTU_MIN, MTU_MAX = 576, 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    name: str
    subnet: str = ""
    gateway: str = ""
    internal: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    mtu: int = 0


def read_local_network(body: Any) -> Asked | None:
    """What is asked of this host; None if the network is to be the swarm's. Raises SpecError."""
    fields = Fields(body)
    driver, scope = fields.text("Driver"), fields.text("Scope")
    if driver not in ("", "default", BRIDGE) or scope == "swarm":
        return None
    name = fields.text("Name")
    check_name(name, "Name", "network")
    subnet, gateway = read_ipam(fields.child("IPAM"))
    options = fields.text_map("Options")
    asked = Asked(
        name=name,
        subnet=subnet,
        gateway=gateway,
        internal=fields.flag("Internal"),
        labels=fields.text_map("Labels"),
        options=options,
        mtu=_read_options(options),
    )
    if scope not in ("", "local"):
        raise SpecError("Scope", f"{scope[:40]!r} is not local or swarm")
    if not fields.flag("EnableIPv4", default=True):
        raise SpecError("EnableIPv4", "a network without IPv4 is not built yet; leave it out")
    fields.refuse("EnableIPv6", "IPv6 inside a network is not built yet; leave it out")
    fields.refuse("Ingress", "the ingress network is the swarm's: say --driver overlay")
    fields.refuse("ConfigOnly", "not built; give the options with the network itself")
    fields.refuse("ConfigFrom", "not built; give the options with the network itself")
    fields.ignore("CheckDuplicate", "Attachable")  # every network of a host is attachable
    fields.done()
    return asked


def _read_options(options: Mapping[str, str]) -> int:
    """Return the MTU; 0: as the underlay has it."""
    mtu = 0
    for key, value in options.items():
        if key == MTU:
            if not (value.isascii() and value.isdigit() and MTU_MIN <= int(value[:6]) <= MTU_MAX):
                raise SpecError(f"Options.{key}", f"{value[:20]!r} is no MTU from {MTU_MIN}")
            mtu = int(value)
        elif _AS_IT_IS.get(key) != value:
            raise SpecError(f"Options.{key}", "is not built; leave it out")
    return mtu


def write_local_network(network: LocalNetwork) -> dict[str, Any]:
    config = [{"Subnet": network.subnet, "Gateway": network.gateway}]
    return {
        **_write(network.name, network.id, BRIDGE, timestamp(network.created_at), config),
        "Internal": network.internal,
        "Options": dict(network.options),
        "Labels": dict(network.labels),
    }


def write_built_in(name: str) -> dict[str, Any]:
    driver = {DEFAULT_NETWORK: BRIDGE, HOST_NETWORK: "host"}.get(name, "null")
    return _write(name, name, driver, timestamp(0), [])


def _write(
    name: str, id_: str, driver: str, created: str, config: list[dict[str, str]]
) -> dict[str, Any]:
    return {
        "Name": name,
        "Id": id_,
        "Created": created,
        "Scope": "local",
        "Driver": driver,
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": None, "Config": config},
        "Internal": False,
        "Attachable": False,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {},
        "Options": {},
        "Labels": {},
    }
