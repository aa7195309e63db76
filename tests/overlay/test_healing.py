"""Whatever somebody does to the kernel is put right; nothing else is touched. Level 4."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlay import NotConverged, netns
from tests.overlay.lab import Host, Lab, laboratory, reconciling, run_in, topology_of
from tests.overlay.oracle import picture
from tests.overlay.shop import SHOP, WEB, wanted

pytestmark = pytest.mark.level4

HOST = "swl-host1"
SANDBOX = "web1"
OVERLAY = f"overlay@{SHOP.id}"
GATEWAY = "gateway@"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two hosts for all tests: each begins with a daemon that finds everything in place."""
    with laboratory(tmp_path_factory.mktemp("lab"), hosts=2) as lab:
        yield lab


@pytest.fixture
def host(lab: Lab) -> Host:
    """The first host, with a daemon that was just started."""
    return lab.hosts[0].restarted()


def namespace(host: Host, name: str) -> Path:
    return host.namespace if name == HOST else host.run_dir / "netns" / name


@pytest.mark.parametrize(
    ("where", "damage"),
    [
        (HOST, "ip link delete swl-gw"),
        (HOST, "ip link delete swl-ingress"),
        (HOST, "ip link set swl-ingress down"),
        (HOST, "ip link set swl-ingress mtu 1300"),
        (HOST, "ip link set swl-ingress address 02:99:00:00:00:01"),
        (HOST, "ip address flush dev swl-ingress"),
        (HOST, "ip address add 10.0.0.99/24 dev swl-ingress"),
        (HOST, "sysctl -qw net.ipv4.ip_forward=0"),
        (HOST, "sysctl -qw net.ipv4.conf.swl-ingress.route_localnet=0"),
        (HOST, "sysctl -qw net.ipv4.conf.swl-ingress.rp_filter=1"),
        (HOST, "nft delete table ip swl"),
        (HOST, "nft flush chain ip swl forward"),
        (HOST, "nft add rule ip swl forward drop"),
        (HOST, "nft flush ruleset"),
        (OVERLAY, "ip link delete vx0"),
        (OVERLAY, "ip link delete br0"),
        (OVERLAY, "ip link set vx0 nomaster"),
        (OVERLAY, "ip link set vx0 down"),
        (OVERLAY, "ip link set vx0 type vxlan learning"),
        (OVERLAY, "ip link set vx0 type bridge_slave learning on"),
        (OVERLAY, "bridge fdb del 02:00:0a:01:00:0c dev vx0 self"),
        (OVERLAY, "bridge fdb replace 02:00:0a:01:00:0c dev vx0 dst 10.66.0.99 self"),
        (OVERLAY, "bridge fdb append 00:00:00:00:00:00 dev vx0 dst 10.66.0.99 self permanent"),
        (OVERLAY, "ip neigh del 10.1.0.12 dev vx0"),
        (OVERLAY, "ip neigh replace 10.1.0.12 lladdr 02:99:00:00:00:01 dev vx0 nud permanent"),
        (OVERLAY, "ip neigh add 10.1.0.99 lladdr 02:99:00:00:00:01 dev vx0 nud permanent"),
        (OVERLAY, "bridge fdb del 02:00:0a:01:00:0b dev {port} master"),
        (OVERLAY, "bridge fdb add 02:99:00:00:00:01 dev {port} master static"),
        (OVERLAY, "ip link set {port} type bridge_slave flood on locked off"),
        (OVERLAY, "ip link delete {port}"),
        (OVERLAY, "ip link set {port} alias nonsense"),
        (OVERLAY, "sysctl -qw net.bridge.bridge-nf-call-iptables=1"),
        (GATEWAY, "ip link set {port} type bridge_slave isolated off"),
        (GATEWAY, "ip link delete {port}"),
        (SANDBOX, "ip link set lo down"),
        (SANDBOX, "ip link set eth1 down"),
        (SANDBOX, "ip link delete eth0"),
        (SANDBOX, "ip link set eth1 name other"),
        (SANDBOX, "ip address flush dev eth1"),
        (SANDBOX, "ip address replace 172.30.0.99/32 dev gw0"),
        (SANDBOX, "ip route delete default"),
        (SANDBOX, "ip route flush table 1392509129"),
        (SANDBOX, "ip rule delete pref 83"),
        (SANDBOX, "nft delete table ip swl"),
        (SANDBOX, "nft flush chain ip swl vip-10.1.0.100"),
        (SANDBOX, "sysctl -qw net.ipv4.conf.all.rp_filter=1"),
    ],
)
async def test_what_somebody_breaks_is_healed(
    lab: Lab, host: Host, where: str, damage: str
) -> None:
    async with reconciling(host):
        await host.reconciler.converge(wanted(lab, host))
        before = picture(host)
        links = run_in(namespace(host, OVERLAY), "ip", "-br", "link")
        port = next(word for word in links.split() if word.startswith("p-")).partition("@")[0]
        run_in(namespace(host, where), *shlex.split(damage.format(port=port)))
        assert picture(host) != before, "the damage shows"
        assert await host.reconciler.heal()
        assert picture(host) == before
        assert await host.reconciler.heal() == 0


async def test_a_daemon_that_starts_anew_finds_nothing_to_do(lab: Lab, host: Host) -> None:
    async with reconciling(host):
        await host.reconciler.converge(wanted(lab, host))
        before = picture(host)
    again = host.restarted()
    async with reconciling(again):
        await again.reconciler.converge(wanted(lab, again))
        assert again.reconciler.statistics().passes == 1, "one look, no work"
    assert picture(host) == before


async def test_what_is_not_ours_is_not_touched(lab: Lab, host: Host) -> None:
    """Not even where it looks like ours, in the host's namespace and in a task's."""
    async with reconciling(host):
        await host.reconciler.converge(wanted(lab, host))
        before = picture(host)
        for where, command in (
            (HOST, "ip link add swl-strange type bridge"),
            (HOST, "ip link add swl-0123456789 type veth peer name swl-9876543210"),
            (HOST, "ip address add 10.99.0.1/24 dev swl-strange"),
            (HOST, "ip link set swl-strange up"),
            (HOST, "ip route add 10.98.0.0/24 via 10.99.0.7"),
            (HOST, "ip rule add fwmark 0x53000001 table 77 pref 83"),
            (HOST, "nft add table ip swlx"),
            (HOST, "nft add table inet swl"),
            (SANDBOX, "ip tuntap add tun0 mode tun"),
            (SANDBOX, "ip address add 10.97.0.1/24 dev tun0"),
            (SANDBOX, "ip link set tun0 up"),
            (SANDBOX, "ip route add 0.0.0.0/1 via 10.97.0.2 onlink dev tun0"),
            (SANDBOX, "ip rule add from 10.97.0.0/24 table 5"),
            (SANDBOX, "nft add table ip vpn"),
        ):
            run_in(namespace(host, where), *shlex.split(command))
        strange = picture(host)
        assert strange != before
        assert await host.reconciler.heal() == 0
        assert picture(host) == strange
        for where, command in (
            (HOST, "ip link delete swl-strange"),
            (HOST, "ip link delete swl-0123456789"),
            (HOST, "ip rule delete fwmark 0x53000001 table 77 pref 83"),
            (HOST, "nft delete table ip swlx"),
            (HOST, "nft delete table inet swl"),
            (SANDBOX, "ip link delete tun0"),
            (SANDBOX, "ip rule delete from 10.97.0.0/24 table 5"),
            (SANDBOX, "nft delete table ip vpn"),
        ):
            run_in(namespace(host, where), *shlex.split(command))
        assert picture(host) == before


async def test_a_name_that_a_stranger_has_is_reported_and_not_taken(tmp_path: Path) -> None:
    with laboratory(tmp_path, hosts=1) as lab:
        (host,) = lab.hosts
        run_in(host.namespace, "ip", "link", "add", "swl-gw", "type", "bridge")
        before = run_in(host.namespace, "ip", "-d", "address", "show", "swl-gw")
        async with reconciling(host):
            with pytest.raises(NotConverged, match="swl-gw") as caught:
                await host.reconciler.converge(topology_of(lab, host, [WEB[0]]))
        assert run_in(host.namespace, "ip", "-d", "address", "show", "swl-gw") == before
        assert caught.value.namespaces == {"", "gateway@"}, "the task itself is on its networks"


async def test_a_namespace_whose_file_was_lost_is_made_anew(lab: Lab, host: Host) -> None:
    async with reconciling(host):
        await host.reconciler.converge(wanted(lab, host))
        before = picture(host)
        for name in (OVERLAY, SANDBOX, GATEWAY):
            netns.remove(host.run_dir / "netns" / name)
        (host.run_dir / "netns" / SANDBOX).touch()  # as a crash between two calls leaves it
        assert await host.reconciler.heal()
        assert picture(host) == before


async def test_nothing_is_left_of_a_host_that_leaves(tmp_path: Path) -> None:
    with laboratory(tmp_path, hosts=2) as lab:
        host = lab.hosts[0]
        before = picture(host)
        files = sorted(host.run_dir.rglob("*"))
        async with reconciling(host):
            await host.reconciler.converge(wanted(lab, host))
            assert picture(host) != before
        await host.reconciler.remove_all()
        assert picture(host) == before
        assert sorted(host.run_dir.rglob("*")) == files
        await host.reconciler.remove_all()
        assert picture(host) == before
