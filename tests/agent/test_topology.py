"""From the assignment to the host's network: what is ready is sent to, what is not is there."""

from __future__ import annotations

import ipaddress
from typing import Any

from overlay.topology import NetworkId as OverlayId
from overlay.topology import Topology
from swarmlet.agent.assignment import Assignment, load
from swarmlet.agent.topology import build, give_gateways
from swarmlet.codec import pack
from swarmlet.model import (
    ContainerTemplate,
    Desired,
    Endpoint,
    NetworkId,
    NodeId,
    PortConfig,
    PublishMode,
    ServiceId,
    TaskId,
    TaskTemplate,
)
from swarmlet.session import (
    EndpointView,
    ItemKey,
    Kind,
    NetworkView,
    NodeView,
    ServiceNetwork,
    ServiceView,
    TaskAssignment,
)

SHOP, INGRESS = NetworkId("shop1"), NetworkId("ingr1")
GATEWAY = ipaddress.ip_network("172.31.192.0/20")


def assignment(*records: tuple[Kind, str, Any]) -> Assignment:
    return load(1, 1, {ItemKey(kind, id_): pack(record) for kind, id_, record in records})


def network(id_: NetworkId, *, ingress: bool = False, internal: bool = False) -> NetworkView:
    third = 1 if ingress else 0
    return NetworkView(
        id=id_,
        name=id_,
        vni=4097 + third,
        subnet=f"10.128.{third}.0/24",
        gateway=f"10.128.{third}.1",
        ingress=ingress,
        internal=internal,
    )


def endpoint(
    task: str, node: str, octet: int, *, ready: bool, on: NetworkId = SHOP
) -> EndpointView:
    third = 1 if on == INGRESS else 0
    return EndpointView(
        task=TaskId(task),
        service=ServiceId("s1"),
        slot=octet,
        node=NodeId(node),
        network=on,
        address=f"10.128.{third}.{octet}",
        mac=f"02:00:00:00:0{third}:{octet:02x}",
        ready=ready,
    )


def node(id_: str, octet: int, *, mtu: int = 0) -> NodeView:
    ingress = Endpoint(
        network=INGRESS, address=f"10.128.1.{200 + octet}", mac=f"02:00:00:00:99:{octet:02x}"
    )
    address = f"10.0.0.{octet}"
    return NodeView(
        id=NodeId(id_), name=id_, address=address, port=7947, ingress=ingress, underlay_mtu=mtu
    )


def task(id_: str, **fields: Any) -> TaskAssignment:
    return TaskAssignment(
        id=TaskId(id_),
        service=ServiceId("s1"),
        service_name="web",
        slot=1,
        spec_version=1,
        desired=Desired.RUNNING,
        template=TaskTemplate(container=ContainerTemplate(image="busybox")),
        endpoints=(
            Endpoint(network=INGRESS, address="10.128.1.5", mac="02:00:00:00:01:05"),
            Endpoint(network=SHOP, address="10.128.0.5", mac="02:00:00:00:00:05"),
        ),
        node=NodeId("a"),
        **fields,
    )


SERVICE = ServiceView(
    id=ServiceId("s1"),
    name="web",
    networks=(ServiceNetwork(network=SHOP, address="10.128.0.2", aliases=("www",)),),
    ports=(PortConfig(target=80, published=8080),),
)


def usual(*extra: tuple[Kind, str, Any], internal: bool = False) -> Assignment:
    return assignment(
        (Kind.NODE, "a", node("a", 1, mtu=1500)),
        (Kind.NODE, "b", node("b", 2, mtu=1400)),
        (Kind.NETWORK, SHOP, network(SHOP, internal=internal)),
        (Kind.NETWORK, INGRESS, network(INGRESS, ingress=True)),
        (Kind.SERVICE, "s1", SERVICE),
        (Kind.ENDPOINT, "t5.shop1", endpoint("t5", "a", 5, ready=True)),
        (Kind.ENDPOINT, "t6.shop1", endpoint("t6", "b", 6, ready=True)),
        (Kind.ENDPOINT, "t7.shop1", endpoint("t7", "b", 7, ready=False)),
        (Kind.ENDPOINT, "t6.ingr1", endpoint("t6", "b", 6, ready=True, on=INGRESS)),
        (Kind.TASK, "t5", task("t5")),
        *extra,
    )


def built(given: Assignment, *, masked: tuple[str, ...] = ()) -> Topology:
    sandboxes = ["t5"]
    return build(
        given,
        own=NodeId("a"),
        address="10.0.0.1",
        gateway=GATEWAY,
        gateways=give_gateways(GATEWAY, {}, sandboxes),
        sandboxes=sandboxes,
        masked=[NodeId(name) for name in masked],
    )


def test_only_ready_tasks_are_backends_and_all_have_an_address() -> None:
    topology = built(usual())
    (vip,) = topology.virtual_ips
    assert [str(address) for address in vip.backends] == ["10.128.0.5", "10.128.0.6"]
    (port,) = topology.published_ports
    assert [str(address) for address in port.backends] == ["10.128.1.6"]
    on_shop = {
        str(e.address): str(e.vtep) for e in topology.endpoints if e.network == OverlayId(SHOP)
    }
    assert on_shop == {"10.128.0.5": "10.0.0.1", "10.128.0.6": "10.0.0.2", "10.128.0.7": "10.0.0.2"}


def test_names_mean_the_virtual_address_the_tasks_and_the_task() -> None:
    names = {n.name: [str(a) for a in n.addresses] for n in built(usual()).names}
    assert names["web"] == names["www"] == ["10.128.0.2"]
    assert names["tasks.web"] == ["10.128.0.5", "10.128.0.6"]
    assert names["web.7.t7"] == ["10.128.0.7"]


def test_a_tasks_own_network_is_eth0_and_the_ingress_comes_after() -> None:
    (sandbox,) = built(usual()).sandboxes
    assert [(a.network, a.interface) for a in sandbox.attachments] == [
        (OverlayId(SHOP), "eth0"),
        (OverlayId(INGRESS), "eth1"),
    ]
    assert sandbox.gateway
    assert sandbox.gateway.interface == "eth2"


def test_a_task_on_internal_networks_only_has_no_way_out() -> None:
    (sandbox,) = built(usual(internal=True)).sandboxes
    assert sandbox.gateway is None


def test_every_node_answers_for_the_ingress() -> None:
    topology = built(usual())
    assert topology.ingress
    assert {str(g.vtep): str(g.address) for g in topology.ingress.gateways} == {
        "10.0.0.1": "10.128.1.201",
        "10.0.0.2": "10.128.1.202",
    }


def test_dead_hosts_are_masked_and_the_own_never_is() -> None:
    topology = built(usual(), masked=("a", "b", "unknown"))
    assert {str(address) for address in topology.masked} == {"10.0.0.2"}


def test_the_smallest_underlay_of_all_hosts_counts() -> None:
    assert built(usual()).underlay.mtu_bytes == 1400


def test_a_port_of_the_host_leads_to_its_task() -> None:
    port = PortConfig(target=80, published=9000, mode=PublishMode.HOST)
    topology = built(usual((Kind.TASK, "t5", task("t5", ports=(port,)))))
    (host_port,) = topology.host_ports
    assert (host_port.port, host_port.sandbox, host_port.target_port) == (9000, "t5", 80)


def test_places_on_the_bridge_are_kept_and_given_again_when_free() -> None:
    first = give_gateways(GATEWAY, {}, ["a", "b"])
    assert first == {"a": 2, "b": 3}
    assert give_gateways(GATEWAY, first, ["b", "c"]) == {"b": 3, "c": 2}
