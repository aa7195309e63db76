"""Hosts as network namespaces on one bridge, for the overlay's kernel tests.

Every namespace is a file `swl-...` in a directory of the test's own; nothing outside of them is
touched. Sockets are made inside a namespace and used from the test's own Trio loop, so a
"container" here is a namespace with sockets.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import trio

from overlay import Reconciler, netns
from overlay.topology import (
    Attachment,
    Endpoint,
    GatewayPort,
    Ingress,
    IngressGateway,
    Network,
    NetworkId,
    Sandbox,
    SandboxId,
    Topology,
    Underlay,
)

#: Seconds in which anything that the kernel does between namespaces has long been done.
PATIENCE = 10.0
UNDERLAY = IPv4Network("10.66.0.0/24")
OUTSIDE = IPv4Network("192.168.77.0/24")
INGRESS = Network(
    id=NetworkId("ingress"), name="ingress", vni=4096, subnet=IPv4Network("10.0.0.0/24")
)


def run_in(namespace: Path, *command: str) -> str:
    """Run *command* in the namespace and return what it prints."""
    result = subprocess.run(
        ["nsenter", f"--net={namespace}", *command], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{command}: {result.stderr}"
    return result.stdout


def refused_in(namespace: Path, *command: str) -> bool:
    result = subprocess.run(["nsenter", f"--net={namespace}", *command], capture_output=True)
    return result.returncode != 0


@dataclass
class Host:
    """One host of the lab: its namespace, its address, its reconciler."""

    namespace: Path
    run_dir: Path
    address: IPv4Address
    reconciler: Reconciler

    def restarted(self) -> Host:
        """The same host with another daemon, which knows nothing of the one before."""
        reconciler = Reconciler(run_dir=self.run_dir, host=self.namespace)
        return replace(self, reconciler=reconciler)

    def sandbox(self, sandbox: str) -> Path:
        return self.run_dir / "netns" / sandbox


@dataclass
class Lab:
    directory: Path
    hosts: list[Host] = field(default_factory=list)

    @property
    def fabric(self) -> Path:
        return self.directory / "swl-fabric"

    @property
    def client(self) -> Path:
        """A machine outside of the cluster, reached by the hosts' other interface."""
        return self.directory / "swl-client"

    def make_namespace(self, path: Path) -> None:
        netns.run_in_thread(lambda: netns.create(path))
        # Without IPv6's own traffic nothing moves but what the test moves.
        quiet = "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1"
        run_in(path, "sh", "-c", f"{quiet}; ip link set lo up")

    def plug(self, namespace: Path, name: str, bridge: str, address: str, mtu_bytes: int) -> None:
        port = f"{namespace.name[-6:]}-{bridge}"
        descriptor = os.open(namespace, os.O_RDONLY)
        try:
            run_in(
                self.fabric,
                *("ip", "link", "add", port, "mtu", str(mtu_bytes), "master", bridge, "type"),
                *("veth", "peer", "name", name, "mtu", str(mtu_bytes)),
                *("netns", f"/proc/{os.getpid()}/fd/{descriptor}"),
            )
        finally:
            os.close(descriptor)
        run_in(self.fabric, "ip", "link", "set", port, "up")
        run_in(namespace, "sh", "-c", f"ip link set {name} up; ip address add {address} dev {name}")

    def add_host(self, mtu_bytes: int = 1500) -> Host:
        number = len(self.hosts) + 1
        address = UNDERLAY[number]
        namespace = self.directory / f"swl-host{number}"
        run_dir = self.directory / f"run{number}"
        run_dir.mkdir()
        host = Host(namespace, run_dir, address, Reconciler(run_dir=run_dir, host=namespace))
        self.hosts.append(host)
        self.make_namespace(namespace)
        self.plug(namespace, "eth0", "under", f"{address}/24", mtu_bytes)
        self.plug(namespace, "eth1", "outside", f"{OUTSIDE[number]}/24", 1500)
        run_in(namespace, "ip", "route", "add", "default", "via", str(OUTSIDE[100]))
        return host


@contextmanager
def laboratory(directory: Path, *, hosts: int = 0, mtus_bytes: Sequence[int] = ()) -> Iterator[Lab]:
    """Make *hosts* hosts, or one for each underlay MTU, and a client.

    Everything is removed afterwards, also after a failure.
    """
    lab = Lab(directory)
    try:
        lab.make_namespace(lab.fabric)
        for bridge in ("under", "outside"):
            run_in(lab.fabric, "ip", "link", "add", bridge, "type", "bridge")
            run_in(lab.fabric, "ip", "link", "set", bridge, "up")
        lab.make_namespace(lab.client)
        lab.plug(lab.client, "eth0", "outside", f"{OUTSIDE[100]}/24", 1500)
        for mtu_bytes in mtus_bytes or [1500] * hosts:
            lab.add_host(mtu_bytes)
        yield lab
    finally:
        for host in lab.hosts:
            for path in [*(host.run_dir / "netns").glob("*"), host.namespace]:
                netns.remove(path)
        for path in (lab.client, lab.fabric):
            netns.remove(path)


@asynccontextmanager
async def reconciling(*hosts: Host) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for host in hosts:
            await nursery.start(host.reconciler.run)
        yield
        nursery.cancel_scope.cancel()


# Topologies: a small cluster, and each host's share of it.


@dataclass(frozen=True)
class Task:
    """A task of the test's cluster, on host number *host* (0, 1, ...)."""

    name: str
    host: int
    networks: tuple[Network, ...]
    number: int

    def address(self, network: Network) -> IPv4Address:
        subnet = network.subnet
        assert isinstance(subnet, IPv4Network)
        return subnet[self.number]


def mac_of(address: IPv4Address, kind: str = "02") -> str:
    return ":".join([kind, "00", *(f"{byte:02x}" for byte in address.packed)])


def ingress_gateway(host: Host) -> IngressGateway:
    address = INGRESS.subnet[200 + host.address.packed[-1]]
    assert isinstance(address, IPv4Address)
    return IngressGateway(address=address, mac=mac_of(address), vtep=host.address)


def topology_of(lab: Lab, host: Host, tasks: list[Task], **more: object) -> Topology:
    """Return what *host* is told of a cluster with *tasks*; *more* are fields of Topology."""
    networks = {INGRESS.id: INGRESS}
    networks |= {network.id: network for task in tasks for network in task.networks}
    endpoints = [
        Endpoint(
            network=network.id,
            address=task.address(network),
            mac=mac_of(task.address(network)),
            vtep=lab.hosts[task.host].address,
        )
        for task in tasks
        for network in task.networks
    ]
    sandboxes = [
        Sandbox(
            id=SandboxId(task.name),
            attachments=tuple(
                Attachment(
                    network=network.id,
                    address=task.address(network),
                    mac=mac_of(task.address(network)),
                    interface=f"eth{place}",
                )
                for place, network in enumerate(task.networks)
            ),
            gateway=GatewayPort(
                address=IPv4Address(f"172.30.0.{task.number}"),
                mac=mac_of(IPv4Address(f"172.30.0.{task.number}"), "06"),
            ),
        )
        for task in tasks
        if lab.hosts[task.host].address == host.address
    ]
    return Topology(
        underlay=Underlay(address=host.address),
        gateway=IPv4Network("172.30.0.0/24"),
        networks=tuple(networks.values()),
        endpoints=tuple(endpoints),
        sandboxes=tuple(sandboxes),
        ingress=Ingress(network=INGRESS.id, gateways=tuple(map(ingress_gateway, lab.hosts))),
        **more,  # type: ignore[arg-type]
    )


# Sockets in namespaces.


def socket_in(namespace: Path, kind: socket.SocketKind) -> socket.socket:
    return netns.run_in_netns(namespace, lambda: socket.socket(socket.AF_INET, kind))


@asynccontextmanager
async def answering(namespace: Path, name: str, port: int) -> AsyncIterator[None]:
    """Answer every TCP connection and UDP datagram to *port* with '<name> <client>'."""
    tcp = socket_in(namespace, socket.SOCK_STREAM)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    tcp.bind(("", port))
    tcp.listen(64)
    udp = socket_in(namespace, socket.SOCK_DGRAM)
    udp.bind(("", port))

    async def serve_tcp() -> None:
        listener = trio.socket.from_stdlib_socket(tcp)
        while True:
            connection, (client, *_) = await listener.accept()
            with connection:
                await connection.send(f"{name} {client}".encode())

    async def serve_udp() -> None:
        server = trio.socket.from_stdlib_socket(udp)
        while True:
            _, address = await server.recvfrom(2048)
            await server.sendto(f"{name} {address[0]}".encode(), address)

    with tcp, udp:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_tcp)
            nursery.start_soon(serve_udp)
            yield
            nursery.cancel_scope.cancel()


async def ask_tcp(namespace: Path, address: object, port: int, seconds: float = PATIENCE) -> str:
    """Return what the server at *address* says.

    Raises:
        TooSlowError, OSError: nobody does.
    """
    with trio.fail_after(seconds):
        client = trio.socket.from_stdlib_socket(socket_in(namespace, socket.SOCK_STREAM))
        with client:
            await client.connect((str(address), port))
            return (await client.recv(1000)).decode()


async def ask_udp(namespace: Path, address: object, port: int, seconds: float = PATIENCE) -> str:
    with trio.fail_after(seconds):
        client = trio.socket.from_stdlib_socket(socket_in(namespace, socket.SOCK_DGRAM))
        with client:
            await client.connect((str(address), port))
            await client.send(b"?")
            return (await client.recv(1000)).decode()
