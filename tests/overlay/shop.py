"""The cluster of the kernel tests: a service with three tasks, and one task that is apart."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from overlay.topology import Network, NetworkId, Protocol, PublishedPort, Topology, VirtualIp
from tests.overlay.lab import INGRESS, Host, Lab, Task, topology_of

SHOP = Network(id=NetworkId("shop"), name="shop", vni=5000, subnet=IPv4Network("10.1.0.0/24"))
OFFICE = Network(id=NetworkId("office"), name="office", vni=5001, subnet=IPv4Network("10.2.0.0/24"))
VIP = IPv4Address("10.1.0.100")
#: web1 on the first host, web2 and web3 on the second, none on the third; desk1 is apart.
WEB = [
    Task("web1", 0, (INGRESS, SHOP), 11),
    Task("web2", 1, (INGRESS, SHOP), 12),
    Task("web3", 1, (INGRESS, SHOP), 13),
]
DESK = Task("desk1", 0, (OFFICE,), 14)
TASKS = [*WEB, DESK]


def wanted(lab: Lab, host: Host, **more: object) -> Topology:
    """Return what *host* is told: the service has a virtual IP and port 8080 of every host."""
    web = tuple(task.address(SHOP) for task in WEB)
    behind = tuple(task.address(INGRESS) for task in WEB)
    fields: dict[str, object] = {
        "virtual_ips": (VirtualIp(network=SHOP.id, address=VIP, backends=web),),
        "published_ports": tuple(
            PublishedPort(protocol=protocol, port=8080, target_port=80, backends=behind)
            for protocol in Protocol
        ),
    }
    return topology_of(lab, host, TASKS, **fields | more)


def place(lab: Lab, task: Task) -> Path:
    """The namespace of *task*."""
    return lab.hosts[task.host].sandbox(task.name)
