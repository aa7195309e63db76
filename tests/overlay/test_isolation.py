"""Who must not reach whom, what must not break, and how large packets may be. Level 4."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import given

from overlay import NotConverged, netns, nftables
from overlay.naming import Naming
from overlay.rulesets import host_ruleset, sandbox_ruleset, virtual_chains
from overlay.tables import Chain, difference, whole
from overlay.topology import Topology
from tests.overlay.clusters import FEW, topologies
from tests.overlay.lab import (
    INGRESS,
    OUTSIDE,
    PATIENCE,
    Lab,
    ask_tcp,
    ask_udp,
    laboratory,
    reconciling,
    run_in,
    socket_in,
)
from tests.overlay.shop import DESK, SHOP, VIP, WEB, place, wanted

pytestmark = pytest.mark.level4

GATEWAY = "172.30.0.1"
PORT = 9000


class Listener:
    """Receives datagrams in a namespace. What must not arrive is sent first, then what must."""

    def __init__(self, namespace: Path, address: str = "") -> None:
        self._sock = trio.socket.from_stdlib_socket(socket_in(namespace, socket.SOCK_DGRAM))
        self._address = address

    async def __aenter__(self) -> Listener:
        await self._sock.bind((self._address, PORT))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sock.close()

    async def first(self) -> bytes:
        with trio.fail_after(PATIENCE):
            return (await self._sock.recvfrom(2000))[0]


def send_udp(namespace: Path, address: object, data: bytes) -> None:
    # What is refused on the way out does not arrive either.
    with socket_in(namespace, socket.SOCK_DGRAM) as sock, suppress(OSError):
        sock.sendto(data, (str(address), PORT))


def send_frame(
    namespace: Path, link: str, *, to_mac: str, from_mac: str, source: str, target: str
) -> None:
    """Send a hand-made UDP datagram from a packet socket, as a task with CAP_NET_RAW can."""
    data = b"forged"
    udp = struct.pack("!HHHH", PORT, PORT, 8 + len(data), 0) + data
    header = struct.pack(
        "!BBHHHBBH4s4s",
        *(0x45, 0, 20 + len(udp), 1, 0, 64, socket.IPPROTO_UDP, 0),
        socket.inet_aton(source),
        socket.inet_aton(target),
    )
    total = sum(struct.unpack("!10H", header))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    header = header[:10] + checksum.to_bytes(2, "big") + header[12:]
    frame = bytes.fromhex((to_mac + from_mac).replace(":", "")) + b"\x08\x00" + header + udp

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind((link, 0))
            sock.send(frame)

    netns.run_in_netns(namespace, send)


def mac_on(namespace: Path, link: str) -> str:
    words = run_in(namespace, "ip", "-br", "link", "show", link).split()
    return words[2]


async def test_tasks_meet_on_their_networks_only(cluster: Lab) -> None:
    """Not on the network of published ports, nor on the host's side of their gateways."""
    web1, web2 = WEB[0], WEB[1]
    async with Listener(place(cluster, web1)) as listener:
        # By the ingress network, from another host and by way of the host:
        send_udp(place(cluster, web2), web1.address(INGRESS), b"ingress")
        send_udp(place(cluster, DESK), web1.address(INGRESS), b"ingress by the host")
        # By the gateway subnet, over the bridge and by way of the host:
        send_udp(place(cluster, DESK), "172.30.0.11", b"gateway")
        send_frame(
            place(cluster, DESK),
            "gw0",
            to_mac=mac_on(place(cluster, web1), "gw0"),
            from_mac=mac_on(place(cluster, DESK), "gw0"),
            source="172.30.0.14",
            target="172.30.0.11",
        )
        # By a network that it is not on, and from outside:
        send_udp(place(cluster, DESK), web1.address(SHOP), b"another network")
        run_in(cluster.client, "ip", "route", "add", "172.30.0.0/24", "via", str(OUTSIDE[1]))
        run_in(cluster.client, "ip", "route", "add", "10.0.0.0/24", "via", str(OUTSIDE[1]))
        send_udp(cluster.client, "172.30.0.11", b"from outside")
        send_udp(cluster.client, web1.address(INGRESS), b"from outside, ingress")
        send_udp(place(cluster, web2), web1.address(SHOP), b"as it should")
        assert await listener.first() == b"as it should"


async def test_no_task_can_speak_with_another_one_s_mac(cluster: Lab) -> None:
    """Else it could answer for others, or pass for an entry host of the mesh."""
    web1, web2, web3 = (place(cluster, task) for task in WEB)
    async with Listener(web1) as listener:
        for link, task in (("eth1", web3), ("eth0", web3)):
            network = SHOP if link == "eth1" else INGRESS
            send_frame(
                web2,
                link,
                to_mac=mac_on(web1, link),
                from_mac=mac_on(task, link)
                if link == "eth1"
                else mac_on(cluster.hosts[1].namespace, "swl-ingress"),
                source=str(WEB[2].address(network)),
                target=str(WEB[0].address(network)),
            )
        send_udp(web2, WEB[0].address(SHOP), b"as it should")
        assert await listener.first() == b"as it should"


async def test_loopback_of_the_host_is_not_reached_by_tasks(cluster: Lab) -> None:
    """route_localnet is on, for answers to the host itself (CVE-2020-8558)."""
    host, desk = cluster.hosts[0], place(cluster, DESK)
    async with Listener(host.namespace) as listener:
        send_frame(
            desk,
            "gw0",
            to_mac=mac_on(host.namespace, "swl-gw"),
            from_mac=mac_on(desk, "gw0"),
            source="172.30.0.14",
            target="127.0.0.1",
        )
        send_udp(desk, GATEWAY, b"the host by its gateway address")
        assert await listener.first() == b"the host by its gateway address"


async def test_the_host_has_no_services_on_the_ingress_network(cluster: Lab) -> None:
    host = cluster.hosts[0]
    async with Listener(host.namespace) as listener:
        send_udp(place(cluster, WEB[1]), "10.0.0.201", b"from a task by the ingress")
        send_udp(host.namespace, "127.0.0.1", b"own")
        assert await listener.first() == b"own"


async def test_frames_from_outside_of_the_cluster_are_dropped(cluster: Lab) -> None:
    """Somebody on the underlay who knows a VNI and all addresses."""
    stranger = cluster.add_host().namespace
    mac = mac_on(place(cluster, WEB[0]), "eth1")
    target = str(WEB[0].address(SHOP))
    run_in(
        stranger,
        "sh",
        "-ec",
        f"""ip link add vx type vxlan id {SHOP.vni} dstport 4789 local 10.66.0.4 nolearning
        ip address add 10.1.0.77/24 dev vx
        ip link set vx up
        bridge fdb append {mac} dev vx dst 10.66.0.1
        ip neigh add {target} lladdr {mac} dev vx nud permanent""",
    )
    async with Listener(place(cluster, WEB[0])) as listener:
        send_udp(stranger, target, b"from a stranger")
        send_udp(place(cluster, WEB[1]), target, b"as it should")
        assert await listener.first() == b"as it should"


async def test_neither_arp_nor_broadcasts_cross_the_underlay(cluster: Lab) -> None:
    host = cluster.hosts[0]
    sniffer = netns.run_in_netns(
        host.namespace, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    )
    with sniffer:
        sniffer.bind(("eth0", 3))
        sniffer.settimeout(PATIENCE)
        with socket_in(place(cluster, WEB[0]), socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.sendto(b"to everybody", ("10.1.0.255", PORT))
            for nobody in range(50, 60):  # in the subnet, in no table
                sock.sendto(b"?", (f"10.1.0.{nobody}", PORT))
        neighbours = run_in(place(cluster, WEB[0]), "ip", "neigh")
        assert str(WEB[1].address(SHOP)) not in neighbours, "it has yet to be asked for"
        assert await ask_udp(place(cluster, WEB[0]), WEB[1].address(SHOP), 80)
        seen = []
        while not seen or seen[-1] != "answer":
            frame = sniffer.recv(65536)
            if frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_UDP:
                continue
            inner = frame[14 + 20 + 8 + 8 :]
            assert inner[12:14] != b"\x08\x06", "an ARP request"
            assert not inner[0] & 1, "a broadcast"
            answer = inner[26:30] == WEB[1].address(SHOP).packed
            seen.append("answer" if answer else "question")
        assert seen == ["question", "answer"]


async def test_one_broken_sandbox_keeps_no_other_from_its_network(cluster: Lab) -> None:
    host = cluster.hosts[0]
    topology = wanted(cluster, host)
    await host.reconciler.converge(replace(topology, sandboxes=()))
    await host.reconciler.converge(
        replace(topology, sandboxes=tuple(s for s in topology.sandboxes if s.id == "desk1"))
    )
    # A task with CAP_NET_ADMIN took the name that its next interface would have.
    run_in(place(cluster, DESK), "ip", "tuntap", "add", "eth9", "mode", "tun")
    broken = tuple(
        replace(s, attachments=tuple(replace(a, interface="eth9") for a in s.attachments))
        if s.id == "desk1"
        else s
        for s in topology.sandboxes
    )
    with pytest.raises(NotConverged, match="eth9") as caught:
        await host.reconciler.converge(replace(topology, sandboxes=broken))
    assert "desk1" in caught.value.namespaces
    assert "web1" not in caught.value.namespaces
    assert (await ask_tcp(place(cluster, WEB[1]), VIP, 80)).startswith("web")
    run_in(place(cluster, DESK), "ip", "link", "delete", "eth9")
    await host.reconciler.converge(topology)


async def test_many_wishes_at_once_are_one_change(cluster: Lab) -> None:
    """The last topology is reached, and nobody waits for each of those before it."""
    host = cluster.hosts[0]
    before = host.reconciler.statistics().passes
    topology = wanted(cluster, host)
    async with trio.open_nursery() as nursery:
        for number in range(50):
            vips = tuple(
                replace(vip, backends=vip.backends[: number % 3]) for vip in topology.virtual_ips
            )
            nursery.start_soon(host.reconciler.converge, replace(topology, virtual_ips=vips))
        nursery.start_soon(host.reconciler.converge, topology)
    assert host.reconciler.statistics().passes - before < 10
    assert await host.reconciler.heal() == 0


# How large packets may be.


@pytest.mark.parametrize("mtus_bytes", [(1500, 1500), (1400, 1400), (1400, 1500), (1500, 1400)])
async def test_nothing_is_fragmented_whatever_the_underlays(
    tmp_path: Path, mtus_bytes: tuple[int, int]
) -> None:
    """Between tasks, and through the mesh by a host whose other interface is wider."""
    with laboratory(tmp_path, mtus_bytes=mtus_bytes) as lab:
        async with reconciling(*lab.hosts):
            for host, mtu_bytes in zip(lab.hosts, mtus_bytes, strict=True):
                behind = (WEB[1].address(INGRESS),)
                ports = wanted(lab, host).published_ports
                only = tuple(replace(port, backends=behind) for port in ports)
                await host.reconciler.converge(wanted(lab, host, published_ports=only))
                assert host.reconciler.statistics().underlay_mtu_bytes == mtu_bytes
            web1, web2 = place(lab, WEB[0]), place(lab, WEB[1])
            # Of the narrower one: VXLAN 50, IP and TCP 40, timestamps 12.
            both = (min(mtus_bytes) - 50 - 40 - 12,) * 2
            assert await transfer(web1, web2, str(WEB[1].address(SHOP)), 80) == both
            assert await transfer(lab.client, web2, str(OUTSIDE[1]), 8080) == both
            for namespace in (web1, web2, *(host.namespace for host in lab.hosts)):
                counters = netns.run_in_netns(namespace, fragments)
                assert counters == {"ReasmReqds": 0, "FragOKs": 0, "FragCreates": 0}


async def test_a_narrower_underlay_narrows_what_exists(cluster: Lab) -> None:
    """Without taking any interface away from under its task."""
    host, web1 = cluster.hosts[0], place(cluster, WEB[0])
    before = [line.split(":")[:2] for line in run_in(web1, "ip", "-o", "link").splitlines()]
    run_in(host.namespace, "ip", "link", "set", "eth0", "mtu", "1300")
    assert await host.reconciler.heal()
    assert "mtu 1250 " in run_in(web1, "ip", "link", "show", "eth1")
    after = [line.split(":")[:2] for line in run_in(web1, "ip", "-o", "link").splitlines()]
    assert after == before
    run_in(host.namespace, "ip", "link", "set", "eth0", "mtu", "1500")
    assert await host.reconciler.heal()
    assert "mtu 1450 " in run_in(web1, "ip", "link", "show", "eth1")


async def test_a_narrow_way_out_is_said_to_the_peer(cluster: Lab) -> None:
    """A DSL line: whoever answers has a wider interface, and nobody tells him by ICMP."""
    run_in(cluster.hosts[0].namespace, "ip", "link", "set", "eth1", "mtu", "1300")
    task = place(cluster, DESK)
    _, outside = await transfer(task, cluster.client, str(OUTSIDE[100]), 80)
    assert outside == 1300 - 40 - 12


async def transfer(client: Path, server: Path, address: str, port: int) -> tuple[int, int]:
    """Send a megabyte each way, and return the segment sizes of client and server.

    Taken before anything is sent, so before path MTU discovery could have helped.
    """
    size = 1 << 20
    listener = trio.socket.from_stdlib_socket(socket_in(server, socket.SOCK_STREAM))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with listener, trio.fail_after(PATIENCE):
        await listener.bind(("", 80))
        listener.listen()
        sock = trio.socket.from_stdlib_socket(socket_in(client, socket.SOCK_STREAM))
        await sock.connect((address, port))
        accepted, _ = await listener.accept()
        option = socket.IPPROTO_TCP, socket.TCP_MAXSEG
        segments = sock.getsockopt(*option), accepted.getsockopt(*option)
        ends = trio.SocketStream(sock), trio.SocketStream(accepted)
        async with trio.open_nursery() as nursery, ends[0], ends[1]:
            for end in ends:
                nursery.start_soon(end.send_all, bytes(size))
            for end in ends:
                left = size
                while left:
                    part = await end.receive_some(65536)
                    assert part
                    left -= len(part)
        return segments


def fragments() -> dict[str, int]:
    """Return how many packets of this namespace were ever fragmented or put together."""
    lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith("Ip: "))
    counters = dict(zip(names, map(int, values), strict=True))
    return {name: counters[name] for name in ("ReasmReqds", "FragOKs", "FragCreates")}


# What nft takes.


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("nft") / "swl-nft"
    netns.run_in_thread(lambda: netns.create(path))
    yield path
    netns.remove(path)


@FEW
@given(topologies(), topologies())
def test_nft_takes_every_table_and_every_way_from_one_to_another(
    scratch: Path, first: Topology, second: Topology
) -> None:
    nft = nftables.open_nft()

    def load(commands: str) -> str | None:
        def body() -> str | None:
            nft(commands)
            return nftables.read(nft, "swl")

        return netns.run_in_netns(scratch, body)

    for old, new in zip(tables_of(first), tables_of(second), strict=False):
        load(whole("swl", old))
        commands = difference("swl", old, new)
        assert commands is not None
        assert load(commands) == load(whole("swl", new))


def tables_of(topology: Topology) -> list[tuple[Chain, ...]]:
    virtual = virtual_chains(topology)
    host = host_ruleset(topology, Naming(), 1450)
    return [host, *(sandbox_ruleset(topology, s, virtual, 1450) for s in topology.sandboxes)]


async def test_udp_and_tcp_go_on_while_the_rules_are_changed(cluster: Lab) -> None:
    """Every table of the host is replaced again and again under new connections."""
    host, client = cluster.hosts[0], place(cluster, WEB[0])
    topology = wanted(cluster, host)
    done = trio.Event()

    async def change() -> None:
        number = 0
        while not done.is_set():
            number += 1
            ports = tuple(
                replace(port, port=9000 + number % 50) for port in topology.published_ports
            )
            await host.reconciler.converge(
                replace(topology, published_ports=topology.published_ports + ports)
            )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        for _ in range(100):
            assert (await ask_tcp(client, VIP, 80)).startswith("web")
            assert (await ask_tcp(cluster.client, OUTSIDE[1], 8080)).startswith("web")
            assert (await ask_udp(cluster.client, OUTSIDE[1], 8080)).startswith("web")
        done.set()
