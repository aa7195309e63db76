"""Who gets which connection, and which rules say so. Level 1."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.balancing import Backend, spread, translation
from overlay.naming import Naming
from overlay.rulesets import host_ruleset, sandbox_ruleset, virtual_chains
from overlay.tables import Chain, difference, whole
from overlay.topology import (
    HostPort,
    Protocol,
    PublishedPort,
    SandboxId,
    Topology,
    VirtualIp,
)
from tests.overlay.clusters import FEW, INGRESS, VTEPS, address_on, cluster, topologies

A, B, C = (IPv4Address(f"10.0.0.{number}") for number in (11, 12, 13))
backends = st.lists(
    st.builds(
        Backend,
        st.builds(IPv4Address, st.integers(0, 2**32 - 1)),
        st.just(80),
        st.integers(1, 3),
    ),
    min_size=1,
    max_size=20,
    unique_by=lambda backend: backend.address,
)


@FEW
@given(backends)
def test_each_backend_gets_as_many_turns_as_its_weight(given_backends: list[Backend]) -> None:
    assert Counter(spread(given_backends)) == {b: b.weight for b in given_backends}


def test_the_turns_of_one_backend_are_apart() -> None:
    local, other, third = Backend(A, weight=2), Backend(B), Backend(C)
    assert spread([local, other, third]) == [local, other, third, local]


def test_a_connection_is_sent_to_the_next_number() -> None:
    assert translation([Backend(A, 80), Backend(B, 80)]) == (
        "dnat ip to numgen inc mod 2 map { 0 : 10.0.0.11 . 80, 1 : 10.0.0.12 . 80 }"
    )
    assert translation([Backend(A, weight=2)]) == "dnat ip to 10.0.0.11"
    assert translation([Backend(A, 80, weight=2)]) == "dnat ip to 10.0.0.11:80"


# Rulesets: task10 is on the first host (ours), task11 on the second, task12 on the third.


def published(**fields: object) -> PublishedPort:
    behind = tuple(address_on(INGRESS, number) for number in (10, 11, 12))
    defaults: dict[str, object] = {
        "protocol": Protocol.TCP,
        "port": 8080,
        "target_port": 80,
        "backends": behind,
    }
    return PublishedPort(**{**defaults, **fields})  # type: ignore[arg-type]


def rules(topology: Topology) -> dict[str, tuple[str, ...]]:
    return {chain.name: chain.rules for chain in host_ruleset(topology, Naming(), 1450)}


def test_a_local_backend_has_two_shares_of_a_published_port() -> None:
    chains = rules(replace(cluster(), published_ports=(published(),)))
    assert chains["tcp-8080"] == (
        "meta l4proto tcp dnat ip to numgen inc mod 4 map "
        "{ 0 : 10.0.0.10 . 80, 1 : 10.0.0.11 . 80, 2 : 10.0.0.12 . 80, 3 : 10.0.0.10 . 80 }",
    )
    assert chains["published"] == ("meta l4proto . th dport vmap { tcp . 8080 : goto tcp-8080 }",)


def test_backends_on_a_host_thought_dead_leave_and_come_back() -> None:
    topology = replace(cluster(), published_ports=(published(),))
    masked = rules(replace(topology, masked=frozenset({VTEPS[1], VTEPS[2]})))
    assert masked["tcp-8080"] == ("meta l4proto tcp dnat ip to 10.0.0.10:80",)
    assert rules(topology) != masked
    own = replace(topology, masked=frozenset({VTEPS[0]}))
    assert rules(own) == rules(topology), "this host is never dead"


def test_a_port_without_backends_is_refused_not_left_to_the_host() -> None:
    topology = replace(
        cluster(), published_ports=(published(),), masked=frozenset(VTEPS), sandboxes=()
    )
    topology = replace(topology, endpoints=topology.endpoints[1:])
    chains = rules(topology)
    assert "tcp-8080" not in chains
    assert chains["published"] == ()
    assert chains["input"][-1] == (
        "fib daddr type local meta l4proto . th dport vmap { tcp . 8080 : goto refuse }"
    )


def test_restricted_ports_have_rules_of_their_own_before_the_map() -> None:
    chains = rules(
        replace(
            cluster(),
            published_ports=(
                published(),
                published(within=IPv4Network("192.168.1.0/24"), target_port=81),
                published(interface="eth1", target_port=82, port=90),
            ),
        )
    )
    second, first, last = chains["published"]
    assert first.startswith("ip daddr 192.168.1.0/24 tcp dport 8080 goto tcp-8080-")
    assert second.startswith('iifname "eth1" tcp dport 90 goto tcp-90-')
    assert last.startswith("meta l4proto . th dport vmap")
    assert ". 81" in chains[first.split()[-1]][0]


def test_a_host_port_leads_to_its_task_by_the_gateway() -> None:
    port = HostPort(protocol=Protocol.UDP, port=53, sandbox=SandboxId("task10"), target_port=5353)
    chains = rules(replace(cluster(), host_ports=(port,)))
    assert chains["udp-53"] == ("meta l4proto udp dnat ip to 172.30.0.10:5353",)


def test_a_virtual_ip_without_backends_is_refused_in_the_sandbox() -> None:
    vip = VirtualIp(network=INGRESS, address=address_on(INGRESS, 100), backends=())
    topology = replace(cluster(), virtual_ips=(vip,))
    (sandbox,) = topology.sandboxes
    chains = {c.name: c for c in sandbox_ruleset(topology, sandbox, virtual_chains(topology), 1450)}
    assert "ip daddr vmap { 10.0.0.100 : goto nobody }" in chains["output"].rules
    assert chains["refused"].rules == (
        "ct direction original ct original ip daddr vmap { 10.0.0.100 : goto refuse }",
    )


def test_a_backend_that_is_no_endpoint_is_left_out() -> None:
    vip = VirtualIp(
        network=INGRESS,
        address=address_on(INGRESS, 100),
        backends=(address_on(INGRESS, 11), address_on(INGRESS, 77)),
    )
    chain = virtual_chains(replace(cluster(), virtual_ips=(vip,)))[INGRESS][vip.address]
    assert chain == Chain("vip-10.0.0.100", ("dnat ip to 10.0.0.11",))


# Tables.

OLD = (
    Chain("gone", ("drop",)),
    Chain("kept", ("accept",)),
    Chain("base", ("jump gone", "jump kept"), "type filter hook input priority filter"),
)
NEW = (
    Chain("kept", ("accept",)),
    Chain("fresh", ("reject",)),
    Chain("base", ("jump kept", "jump fresh"), "type filter hook input priority filter"),
)


def test_only_what_differs_is_changed_and_in_an_order_that_nft_takes() -> None:
    assert difference("swl", OLD, NEW) == (
        "add chain ip swl fresh\n"
        "flush chain ip swl base\n"
        "flush chain ip swl gone\n"
        "add rule ip swl base jump kept\n"
        "add rule ip swl base jump fresh\n"
        "add rule ip swl fresh reject\n"
        "delete chain ip swl gone\n"
    )


def test_another_hook_takes_the_whole_table() -> None:
    moved = (Chain("base", (), "type filter hook output priority filter"),)
    assert difference("swl", OLD, moved) is None


@FEW
@given(topologies())
def test_no_chain_stands_twice_in_a_table(topology: Topology) -> None:
    names = [chain.name for chain in host_ruleset(topology, Naming(), 1450)]
    assert len(set(names)) == len(names)
    virtual = virtual_chains(topology)
    for sandbox in topology.sandboxes:
        names = [chain.name for chain in sandbox_ruleset(topology, sandbox, virtual, 1450)]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("bad", ["x y", 'a"', "a;b", "", "a" * 16, "a/b", "a\nb", "{"])
def test_no_interface_name_can_become_a_rule(bad: str) -> None:
    with pytest.raises(ValueError, match="interface"):
        published(interface=bad)


def test_a_table_is_replaced_in_one_transaction() -> None:
    assert whole("swl", NEW[:1]) == (
        "add table ip swl\ndelete table ip swl\ntable ip swl {\nchain kept {\naccept\n}\n}\n"
    )
