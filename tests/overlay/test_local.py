"""Networks of one host alone: a bridge without VXLAN. Level 4, and a look at the resources."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from overlay.desired import desired, overlay_mtu_bytes
from overlay.naming import Naming, overlay_namespace
from overlay.resources import Ruleset, Vxlan
from overlay.topology import Attachment, Network, NetworkId, Sandbox, SandboxId, Topology, Underlay
from tests.overlay.lab import Lab, answering, ask_tcp, laboratory, mac_of, reconciling, run_in

YARD = Network(id=NetworkId("yard"), name="yard", vni=0, subnet=IPv4Network("172.20.0.0/16"))
SHED = Network(id=NetworkId("shed"), name="shed", vni=0, subnet=IPv4Network("172.21.0.0/16"))


def box(name: str, network: Network, number: int) -> Sandbox:
    address = network.subnet[number]
    attachment = Attachment(network=network.id, address=address, mac=mac_of(address))  # type: ignore[arg-type]
    return Sandbox(id=SandboxId(name), attachments=(attachment,))


def topology(lab: Lab, host: int, *sandboxes: Sandbox) -> Topology:
    return Topology(
        underlay=Underlay(address=lab.hosts[host].address),
        gateway=IPv4Network("172.31.192.0/20"),
        networks=(YARD, SHED),
        sandboxes=sandboxes,
    )


def test_two_local_networks_need_no_vni_and_make_no_device() -> None:
    asked = Topology(
        underlay=Underlay(address=IPv4Network("10.66.0.0/24")[1]),
        gateway=IPv4Network("172.31.192.0/20"),
        networks=(YARD, SHED),
    )
    resources = desired(asked, Naming("swl"), 1500)
    assert not [r for r in resources if isinstance(r, Vxlan)]
    guards = [
        rule
        for r in resources
        if isinstance(r, Ruleset)
        for chain in r.chains
        for rule in chain.rules
        if "@th" in rule
    ]
    assert guards == []
    assert overlay_mtu_bytes(1500, YARD) == 1500


@pytest.mark.level4
async def test_boxes_of_one_host_reach_each_other_and_nobody_elsewhere(tmp_path: Path) -> None:
    with laboratory(tmp_path, hosts=2) as lab:
        here, there = lab.hosts
        async with reconciling(here, there):
            boxes = (box("a", YARD, 11), box("b", YARD, 12), box("c", SHED, 13))
            await here.reconciler.converge(topology(lab, 0, *boxes))
            await there.reconciler.converge(topology(lab, 1, box("d", YARD, 14)))
            async with answering(here.sandbox("b"), "b", 80):
                answer = await ask_tcp(here.sandbox("a"), YARD.subnet[12], 80)  # type: ignore[arg-type]
                assert answer == "b 172.20.0.11"
                for path in (there.sandbox("d"), here.sandbox("c")):
                    with pytest.raises(OSError, match=r"No route to host|unreachable"):
                        await ask_tcp(path, YARD.subnet[12], 80)  # type: ignore[arg-type]
            bridge = here.run_dir / "netns" / overlay_namespace(YARD.id)
            assert "vxlan" not in run_in(bridge, "ip", "-d", "link")
