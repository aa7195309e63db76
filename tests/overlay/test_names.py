"""What a sandbox can look up, and how it is answered: rules, an oracle, hostile bytes. Level 1."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import dnslib
import pytest

from overlay import dns
from overlay.dns import BadMessage, Rcode
from overlay.names import NameView, views
from overlay.topology import (
    Attachment,
    Endpoint,
    Name,
    Network,
    NetworkId,
    Sandbox,
    SandboxId,
    Topology,
    Underlay,
)

HERE, THERE = IPv4Address("10.66.0.1"), IPv4Address("10.66.0.2")
SHOP = Network(id=NetworkId("n1"), name="shop", vni=1, subnet=IPv4Network("10.1.0.0/24"))
OFFICE = Network(id=NetworkId("n2"), name="office", vni=2, subnet=IPv4Network("10.2.0.0/24"))
VIP, WEB1, WEB2 = (IPv4Address(f"10.1.0.{number}") for number in (100, 11, 12))
DESK = IPv4Address("10.2.0.20")
BOTH, SHOP_ONLY = SandboxId("both"), SandboxId("shop-only")
PACKETS = 10_000


def attached(network: Network, address: IPv4Address, interface: str) -> Attachment:
    return Attachment(
        network=network.id, address=address, mac="02:00:00:00:00:01", interface=interface
    )


TOPOLOGY = Topology(
    underlay=Underlay(address=HERE),
    gateway=IPv4Network("172.30.0.0/24"),
    networks=(SHOP, OFFICE),
    endpoints=(
        Endpoint(network=SHOP.id, address=WEB2, mac="02:00:00:00:00:02", vtep=THERE),
        Endpoint(network=OFFICE.id, address=DESK, mac="02:00:00:00:00:03", vtep=THERE),
    ),
    sandboxes=(
        Sandbox(
            id=BOTH,
            attachments=(
                attached(SHOP, WEB1, "eth0"),
                attached(OFFICE, IPv4Address("10.2.0.11"), "eth1"),
            ),
        ),
        Sandbox(id=SHOP_ONLY, attachments=(attached(SHOP, IPv4Address("10.1.0.13"), "eth0"),)),
    ),
    names=(
        Name(network=SHOP.id, name="Web", addresses=(VIP,), canonical=True),
        Name(network=SHOP.id, name="tasks.web", addresses=(WEB1, WEB2)),
        Name(network=SHOP.id, name="web.2.abc", addresses=(WEB2,), canonical=True),
        Name(network=SHOP.id, name="away", addresses=()),
        Name(network=OFFICE.id, name="desk", addresses=(DESK,)),
    ),
)
VIEWS = views(TOPOLOGY)


def ask(name: str, kind: str = "A", view: NameView = VIEWS[BOTH]) -> dnslib.DNSRecord | None:
    packet = dnslib.DNSRecord.question(name, kind).pack()
    reply = dns.answer(dns.parse_query_untrusted(packet), view, random.Random(1))
    return None if reply is None else dnslib.DNSRecord.parse(reply)


def data(record: dnslib.DNSRecord | None) -> set[str]:
    assert record is not None
    return {str(answer.rdata) for answer in record.rr}


def test_a_service_is_its_virtual_ip_and_its_tasks_are_theirs() -> None:
    assert data(ask("web")) == {str(VIP)}
    assert data(ask("tasks.web")) == {str(WEB1), str(WEB2)}


@pytest.mark.parametrize("name", ["WEB", "web.shop", "Web.Shop."])
def test_case_and_the_name_of_the_network_make_no_difference(name: str) -> None:
    assert data(ask(name)) == {str(VIP)}


def test_names_of_other_networks_are_not_seen() -> None:
    assert data(ask("desk")) == {str(DESK)}
    assert ask("desk", view=VIEWS[SHOP_ONLY]) is None
    assert ask("desk.office", view=VIEWS[SHOP_ONLY]) is None


def test_a_name_that_is_not_ours_is_left_to_others() -> None:
    assert ask("example.org") is None
    assert ask("34.216.184.93.in-addr.arpa", "PTR") is None


def test_a_name_of_ours_has_no_other_kinds_of_records() -> None:
    """Asked upstream it would not exist, and musl believes the first to say so."""
    for kind in ("AAAA", "MX", "TXT"):
        reply = ask("web", kind)
        assert reply is not None
        assert (reply.header.rcode, reply.rr) == (Rcode.NOERROR, [])


def test_a_service_without_running_tasks_is_known_and_has_no_address() -> None:
    assert data(ask("away")) == set()


def test_an_address_has_its_canonical_name() -> None:
    assert data(ask("12.0.1.10.in-addr.arpa", "PTR")) == {"web.2.abc.shop."}
    assert data(ask("100.0.1.10.in-addr.arpa", "PTR")) == {"Web.shop."}


def test_an_address_of_ours_without_a_name_is_nobody_elses_business() -> None:
    reply = ask("77.0.1.10.in-addr.arpa", "PTR")
    assert reply is not None
    assert reply.header.rcode == Rcode.NXDOMAIN


def test_tasks_on_a_host_thought_dead_are_not_named() -> None:
    masked = views(replace(TOPOLOGY, masked=frozenset({HERE, THERE})))[BOTH]
    assert data(ask("tasks.web", view=masked)) == {str(WEB1)}, "our own host is never dead"
    assert data(ask("web", view=masked)) == {str(VIP)}, "a virtual IP lives on no host"


def test_sandboxes_of_one_network_share_its_names() -> None:
    assert VIEWS[BOTH].networks[0] is VIEWS[SHOP_ONLY].networks[0]


def test_the_order_of_addresses_is_drawn_for_each_answer() -> None:
    many = tuple(IPv4Address(f"10.1.0.{number}") for number in range(1, 9))
    name = Name(network=SHOP.id, name="many", addresses=many)
    view = views(replace(TOPOLOGY, names=(name,)))[BOTH]
    query = dns.parse_query_untrusted(dnslib.DNSRecord.question("many").pack())
    rng = random.Random(3)
    firsts = {
        str(dnslib.DNSRecord.parse(dns.answer(query, view, rng) or b"").rr[0].rdata)
        for _ in range(100)
    }
    assert firsts == {str(address) for address in many}


def test_an_answer_too_large_for_udp_asks_for_tcp() -> None:
    many = tuple(IPv4Address(f"10.1.0.{number}") for number in range(1, 60))
    view = views(replace(TOPOLOGY, names=(Name(network=SHOP.id, name="x", addresses=many),)))[BOTH]
    query = dns.parse_query_untrusted(dnslib.DNSRecord.question("x").pack())
    reply = dns.answer(query, view, random.Random(1))
    assert reply is not None
    short = dnslib.DNSRecord.parse(dns.fit(query, reply))
    assert (short.header.tc, short.rr) == (1, [])

    asked = dnslib.DNSRecord.question("x")
    asked.add_ar(dnslib.EDNS0(udp_len=1400))
    query = dns.parse_query_untrusted(asked.pack())
    reply = dns.answer(query, view, random.Random(1))
    assert reply is not None
    assert dns.fit(query, reply) == reply
    whole = dnslib.DNSRecord.parse(reply)
    assert len(whole.rr) == 59
    assert whole.ar[0].rtype == dnslib.QTYPE.OPT


def test_a_reply_counts_only_if_it_is_to_our_number_and_question() -> None:
    packet = dnslib.DNSRecord.question("example.org")
    query = dns.parse_query_untrusted(packet.pack())
    reply = packet.reply()
    reply.add_answer(*dnslib.RR.fromZone("example.org 60 A 192.0.2.1"))
    number = packet.header.id
    assert dns.check_reply_untrusted(query, number, reply.pack()) == Rcode.NOERROR
    other = dnslib.DNSRecord.question("example.net").reply()
    other.header.id = number
    for forged in (
        dns.with_id(reply.pack(), number ^ 1),
        packet.pack(),  # a question is no reply
        other.pack(),
        b"",
    ):
        with pytest.raises(BadMessage):
            dns.check_reply_untrusted(query, number, forged)


@pytest.mark.parametrize("name", ["a b", "a..b", "x" * 64, "a." * 70 + "a", ""])
def test_a_name_that_dns_cannot_carry_is_refused_at_the_door(name: str) -> None:
    with pytest.raises(ValueError, match="DNS"):
        Name(network=SHOP.id, name=name, addresses=())


def test_no_bytes_make_the_resolver_stumble() -> None:
    """Mutations of good queries: either BadMessage or a query that gets a well-formed answer."""
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    outcomes = {"bad": 0, "answered": 0, "not ours": 0}
    for packet in mutations(rng, PACKETS):
        try:
            query = dns.parse_query_untrusted(packet)
        except BadMessage:
            outcomes["bad"] += 1
            continue
        reply = dns.answer(query, VIEWS[BOTH], rng)
        if reply is None:
            outcomes["not ours"] += 1
            reply = dns.refusal(query, Rcode.SERVFAIL)
        else:
            outcomes["answered"] += 1
        assert reply[:2] == packet[:2], f"seed {seed}"
        assert dns.check_reply_untrusted(query, query.id, reply) in set(Rcode), f"seed {seed}"
    assert all(outcomes.values()), f"seed {seed}: {outcomes}: the mutations reach nothing"


def mutations(rng: random.Random, count: int) -> list[bytes]:
    """Return packets that are nearly queries, and some that are not at all."""
    names = ["web", "tasks.web", "12.0.1.10.in-addr.arpa", "example.org", "a." * 60 + "b"]
    kinds = ["A", "AAAA", "PTR", "ANY", "TXT"]
    packets = []
    for _ in range(count):
        asked = dnslib.DNSRecord.question(rng.choice(names), rng.choice(kinds))
        if rng.random() < 0.3:
            asked.add_ar(dnslib.EDNS0(udp_len=rng.randrange(65536)))
        packet = bytearray(asked.pack())
        for _ in range(rng.randrange(4)):
            match rng.randrange(4):
                case 0:
                    packet[rng.randrange(len(packet))] = rng.randrange(256)
                case 1:
                    del packet[rng.randrange(len(packet)) :]
                case 2:
                    packet += rng.randbytes(rng.randrange(40))
                case 3:
                    place = rng.randrange(len(packet) + 1)
                    packet[place:place] = rng.choice((b"\xc0\x0c", b"\x00", b"\x3f", b"\xff" * 5))
            packet = packet or bytearray(1)
        packets.append(bytes(packet))
    return packets
