"""Networks: Docker's JSON to a NetworkSpec, and the record of a Network as JSON.

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swarmlet.api.fields import Fields, timestamp
from swarmlet.model import Network, NetworkSpec
from swarmlet.model.validation import SpecError

VXLAN_OPTION = "com.docker.network.driver.overlay.vxlanid_list"


def read_network_spec(body: Any) -> NetworkSpec:
    """Raises SpecError with the path to the first field that cannot be."""
    fields = Fields(body)
    subnet, gateway = read_ipam(fields.child("IPAM"))
    spec = NetworkSpec(
        name=fields.text("Name"),
        driver=_read_driver(fields),
        labels=fields.text_map("Labels"),
        internal=fields.flag("Internal"),
        attachable=fields.flag("Attachable"),
        ingress=fields.flag("Ingress"),
        subnet=subnet,
        gateway=gateway,
        options=fields.text_map("Options"),
    )
    scope = fields.text("Scope", "swarm")
    if scope not in ("", "swarm"):
        raise SpecError("Scope", f"{scope!r}: an overlay network reaches every node; leave it out")
    if not fields.flag("EnableIPv4", default=True):
        raise SpecError("EnableIPv4", "a network without IPv4 is not built yet; leave it out")
    fields.refuse("EnableIPv6", "IPv6 inside a network is not built yet; leave it out")
    fields.refuse("ConfigOnly", "not built; give the options with the network itself")
    fields.refuse("ConfigFrom", "not built; give the options with the network itself")
    fields.ignore("CheckDuplicate")  # of clients before API 1.44; names are unique here anyway
    fields.done()
    return spec


def _read_driver(fields: Fields) -> str:
    driver = fields.text("Driver")
    if driver == "overlay":
        return driver
    raise SpecError("Driver", f"{driver!r} is not built; there are bridge and overlay")


def read_ipam(fields: Fields | None) -> tuple[str, str]:
    """Return subnet and gateway."""
    if fields is None:
        return "", ""
    driver = fields.text("Driver", "default")
    if driver not in ("", "default"):
        raise SpecError(fields.at("Driver"), f"{driver!r} is not known; leave it out")
    fields.refuse("Options", "has no meaning here; leave it out")
    subnet, gateway = "", ""
    configs = fields.children("Config")
    if len(configs) > 1:
        raise SpecError(fields.at("Config"), "a network has one subnet here; give one")
    for config in configs:
        subnet, gateway = config.text("Subnet"), config.text("Gateway")
        config.refuse("IPRange", "not built yet; give a subnet that is as small")
        config.refuse("AuxiliaryAddresses", "not built yet; leave them out")
        config.refuse("AuxAddress", "not built yet; leave it out")
        config.done()
    fields.done()
    return subnet, gateway


def write_network(network: Network) -> dict[str, Any]:
    """What `GET /networks` and `GET /networks/{id}` show."""
    spec = network.spec
    return {
        "Name": spec.name,
        "Id": network.id,
        "Created": timestamp(network.created_at),
        "Scope": "swarm",
        "Driver": spec.driver,
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": None, "Config": _write_ipam(network)},
        "Internal": spec.internal,
        "Attachable": spec.attachable,
        "Ingress": spec.ingress,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": None,
        "Options": {**spec.options, VXLAN_OPTION: str(network.vni)},
        "Labels": dict(spec.labels),
    }


def write_network_services(services: Sequence[tuple[str, str, Sequence[str]]]) -> dict[str, Any]:
    """What `?verbose=true` adds: (service name, its VIP, addresses of its tasks)."""
    return {
        name: {
            "VIP": vip,
            "Ports": [],
            "LocalLBIndex": 0,
            "Tasks": [
                {"Name": f"{name}.{n}", "EndpointID": "", "EndpointIP": address, "Info": None}
                for n, address in enumerate(addresses, 1)
            ],
        }
        for name, vip, addresses in services
    }


def write_network_brief(network: Network) -> dict[str, Any]:
    """The network as it stands inside a task."""
    spec = network.spec
    return {
        "ID": network.id,
        "Version": {"Index": network.version},
        "CreatedAt": timestamp(network.created_at),
        "UpdatedAt": timestamp(network.updated_at),
        "Spec": {
            "Name": spec.name,
            "Labels": dict(spec.labels),
            "DriverConfiguration": {"Name": spec.driver},
            "Attachable": spec.attachable,
            "Ingress": spec.ingress,
            "IPAMOptions": {"Driver": {"Name": "default"}},
            "Scope": "swarm",
        },
        "DriverState": {"Name": spec.driver, "Options": {VXLAN_OPTION: str(network.vni)}},
        "IPAMOptions": {"Driver": {"Name": "default"}, "Configs": _write_ipam(network)},
    }


def _write_ipam(network: Network) -> list[dict[str, str]]:
    config = {"Subnet": network.subnet}
    if network.gateway:
        config["Gateway"] = network.gateway
    return [config] if network.subnet else []
