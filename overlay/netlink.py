"""Resources as netlink messages and back: the only file that knows attribute names.

Sync; the socket says in which namespace. Reading returns only what is ours:

- a link whose alias begins with ours (where a bridge of ours lives, every link: nobody else is
  there);
- addresses of such links, the static entries of such bridges and VXLAN devices;
- routes and rules that carry our protocol number, whoever else made others.

The alias of a veth's first end names the second, `swl:<interface>@<namespace>`, so that a pair
can be told from two halves that only have the right names.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from overlay.naming import Naming, holds_bridge
from overlay.resources import (
    HOST,
    Bridge,
    FdbEntry,
    InterfaceAddress,
    LinkSettings,
    Neighbour,
    PortEntry,
    PortSettings,
    Resource,
    Route,
    Rule,
    Veth,
    Vxlan,
)
from overlay.rtnetlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Attributes,
    Message,
    NetlinkSocket,
    attribute,
    attributes,
    nested,
    number,
    string,
    text,
    u8,
    u32,
)
from overlay.topology import IPAddress

#: Who made a route or a rule (RTA_PROTOCOL, FRA_PROTOCOL): a number that rt_protos leaves free.
PROTOCOL = 83
#: Before the main table's rule (32766), after the local table's (0).
RULE_PRIORITY = 83

# linux/rtnetlink.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
RTN_UNICAST = 1
RT_SCOPE_UNIVERSE = 0
RTNH_F_ONLINK = 4
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_TABLE = 1, 4, 5, 15
RT_TABLE_UNSPEC = 0
RTEXT_FILTER_SKIP_STATS = 1 << 3
# linux/if_link.h, linux/if.h, linux/veth.h
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_LINKINFO, IFLA_IFALIAS, IFLA_NET_NS_FD, IFLA_EXT_MASK = 18, 20, 28, 29
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_BR_MCAST_SNOOPING = 23
IFLA_BRPORT_LEARNING, IFLA_BRPORT_UNICAST_FLOOD = 8, 9
IFLA_BRPORT_ISOLATED, IFLA_BRPORT_LOCKED = 33, 39
IFLA_VXLAN_ID, IFLA_VXLAN_LOCAL, IFLA_VXLAN_LEARNING = 1, 4, 7
IFLA_VXLAN_PROXY, IFLA_VXLAN_PORT, IFLA_VXLAN_LOCAL6 = 11, 15, 17
VETH_INFO_PEER = 1
IFF_UP = 1
# linux/if_addr.h, linux/neighbour.h, linux/fib_rules.h
IFA_ADDRESS, IFA_LOCAL = 1, 2
NDA_DST, NDA_LLADDR, NDA_MASTER = 1, 2, 9
NUD_NOARP, NUD_PERMANENT = 0x40, 0x80
NTF_SELF, NTF_MASTER = 0x02, 0x04
FRA_PRIORITY, FRA_FWMARK, FRA_TABLE, FRA_FWMASK, FRA_PROTOCOL = 6, 10, 15, 16, 21
FR_ACT_TO_TBL = 1

_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
_IFADDR = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst, src, tos, table, protocol, scope, type, flags
_NDMSG = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_RULE = struct.Struct("=BBBBBBBBI")  # family, dst, src, tos, table, -, -, action, flags


@dataclass(frozen=True, slots=True)
class Link:
    """An interface as the kernel describes it, whoever made it."""

    index: int
    name: str
    kind: str
    alias: str
    settings: LinkSettings
    port: PortSettings | None
    peer_index: int
    vxlan: Vxlan | None


@dataclass(frozen=True, slots=True)
class Table:
    """What is ours in one namespace, and all links there by name."""

    links: Mapping[str, Link]
    resources: frozenset[Resource]


def read(sock: NetlinkSocket, namespace: str, naming: Naming) -> Table:
    """Return what is ours in the namespace of *sock*. Of veths, see pair()."""
    links = read_links(sock, namespace)
    ours = {link.index: link for link in links.values() if is_ours(link, namespace, naming)}
    found: set[Resource] = set()
    for link in ours.values():
        found.add(link.settings)
        if link.port:
            found.add(link.port)
        if link.vxlan:
            found.add(link.vxlan)
        if link.kind == "bridge":
            found.add(Bridge(namespace, link.name))
    if holds_bridge(namespace):
        found |= _read_entries(sock, namespace, ours)
        found |= _read_neighbours(sock, namespace, ours)
        return Table(links, frozenset(found))
    if namespace != HOST and "lo" in links:
        found.add(links["lo"].settings)
    found |= _read_addresses(sock, namespace, ours)
    found |= _read_routes(sock, namespace, {link.index: link.name for link in links.values()})
    found |= _read_rules(sock, namespace)
    return Table(links, frozenset(found))


def read_links(sock: NetlinkSocket, namespace: str) -> dict[str, Link]:
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    raw = [
        (*_IFINFO.unpack_from(b), attributes(b[_IFINFO.size :]))
        for b in sock.dump(RTM_GETLINK, body)
    ]
    names = {index: string(found.get(IFLA_IFNAME)) for _, _, index, _, _, found in raw}
    return {
        names[index]: _link(namespace, index, flags, found, names)
        for _, _, index, flags, _, found in raw
    }


def find_link(sock: NetlinkSocket, namespace: str, name: str) -> Link:
    """Return the link called *name*, its master unnamed.

    Raises:
        NetlinkError: ENODEV, there is none.
    """
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + text(IFLA_IFNAME, name)
    skip = u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    answer = sock.ask(Message(RTM_GETLINK, 0, body + skip))
    _, _, index, flags, _ = _IFINFO.unpack_from(answer)
    return _link(namespace, index, flags, attributes(answer[_IFINFO.size :]), {index: name})


def mtu_bytes_of(sock: NetlinkSocket, address: IPAddress) -> int | None:
    """Return the MTU of the interface that has *address*, None if none has."""
    for body in sock.dump(RTM_GETADDR, _IFADDR.pack(_family(address), 0, 0, 0, 0)):
        index = _IFADDR.unpack_from(body)[4]
        values = attributes(body[_IFADDR.size :])
        if (values.get(IFA_LOCAL) or values.get(IFA_ADDRESS)) == address.packed:
            links = read_links(sock, HOST).values()
            return next((link.settings.mtu_bytes for link in links if link.index == index), None)
    return None


def is_ours(link: Link, namespace: str, naming: Naming) -> bool:
    return holds_bridge(namespace) or link.alias.startswith(naming.alias)


def pair(namespace: str, link: Link, naming: Naming, tables: Mapping[str, Table]) -> Veth | None:
    """Return the veth whose first end *link* is; None if it is no first end.

    A first end whose second is not where its alias says is another Veth: one that nobody
    wants, so that it is deleted and made again. A namespace that is not in *tables* is
    believed to hold what it should.
    """
    if link.kind != "veth" or not is_ours(link, namespace, naming):
        return None
    peer_name, mark, peer_namespace = link.alias.removeprefix(naming.alias).partition("@")
    if not mark and not holds_bridge(namespace):
        return None
    lost = Veth(namespace, link.name, "?", "?")
    if not mark:
        return lost  # only first ends live with a bridge: this one was not finished
    if table := tables.get(peer_namespace):
        peer = table.links.get(peer_name)
        if peer is None or not is_ours(peer, peer_namespace, naming):
            return lost
        if (peer.index, link.index) != (link.peer_index, peer.peer_index):
            return lost
    return Veth(namespace, link.name, peer_namespace, peer_name)


def _link(
    namespace: str, index: int, flags: int, found: Attributes, names: Mapping[int, str]
) -> Link:
    name = names[index]
    info = attributes(found.get(IFLA_LINKINFO, b""))
    kind = string(info.get(IFLA_INFO_KIND))
    data = attributes(info.get(IFLA_INFO_DATA, b""))
    master = number(found.get(IFLA_MASTER))
    port = None
    if string(info.get(IFLA_INFO_SLAVE_KIND)) == "bridge":
        port = _port(namespace, name, attributes(info.get(IFLA_INFO_SLAVE_DATA, b"")))
    return Link(
        index=index,
        name=name,
        kind=kind,
        alias=string(found.get(IFLA_IFALIAS)),
        settings=LinkSettings(
            namespace=namespace,
            name=name,
            mac=_mac(found.get(IFLA_ADDRESS)),
            mtu_bytes=number(found.get(IFLA_MTU)),
            # A master that is not there is one in another namespace, which ours never is.
            master=names.get(master, "?") if master else "",
            up=bool(flags & IFF_UP),
        ),
        port=port,
        peer_index=number(found.get(IFLA_LINK)),
        vxlan=_vxlan(namespace, name, data) if kind == "vxlan" else None,
    )


def _port(namespace: str, name: str, data: Attributes) -> PortSettings:
    return PortSettings(
        namespace=namespace,
        name=name,
        learning=bool(number(data.get(IFLA_BRPORT_LEARNING))),
        flood=bool(number(data.get(IFLA_BRPORT_UNICAST_FLOOD))),
        isolated=bool(number(data.get(IFLA_BRPORT_ISOLATED))),
        locked=bool(number(data[IFLA_BRPORT_LOCKED])) if IFLA_BRPORT_LOCKED in data else None,
    )


def _vxlan(namespace: str, name: str, data: Attributes) -> Vxlan:
    local = data.get(IFLA_VXLAN_LOCAL) or data.get(IFLA_VXLAN_LOCAL6) or bytes(4)
    return Vxlan(
        namespace,
        name,
        vni=number(data.get(IFLA_VXLAN_ID)),
        local=_address(local),
        port=int.from_bytes(data.get(IFLA_VXLAN_PORT, b""), "big"),
        learning=bool(number(data.get(IFLA_VXLAN_LEARNING))),
        proxy=bool(number(data.get(IFLA_VXLAN_PROXY))),
    )


def _read_addresses(sock: NetlinkSocket, namespace: str, ours: Mapping[int, Link]) -> set[Resource]:
    found: set[Resource] = set()
    for body in sock.dump(RTM_GETADDR, _IFADDR.pack(socket.AF_INET, 0, 0, 0, 0)):
        _, prefix_length, _, _, index = _IFADDR.unpack_from(body)
        values = attributes(body[_IFADDR.size :])
        address = values.get(IFA_LOCAL) or values.get(IFA_ADDRESS)
        if index in ours and address:
            name = ours[index].name
            found.add(InterfaceAddress(namespace, name, _address(address), prefix_length))
    return found


def _read_routes(sock: NetlinkSocket, namespace: str, names: Mapping[int, str]) -> set[Resource]:
    found: set[Resource] = set()
    wanted = _RTMSG.pack(socket.AF_INET, 0, 0, 0, 0, PROTOCOL, 0, 0, 0)
    for body in sock.dump(RTM_GETROUTE, wanted):
        _, length, _, _, table, protocol, _, _, _ = _RTMSG.unpack_from(body)
        if protocol != PROTOCOL:
            continue  # a kernel before 4.20 does not filter
        values = attributes(body[_RTMSG.size :])
        gateway = _address(values.get(RTA_GATEWAY, bytes(4)))
        destination = values.get(RTA_DST, bytes(len(gateway.packed)))
        found.add(
            Route(
                namespace,
                number(values.get(RTA_TABLE)) or table,
                ipaddress.ip_network((destination, length)),
                gateway,
                names.get(number(values.get(RTA_OIF)), ""),
            )
        )
    return found


def _read_rules(sock: NetlinkSocket, namespace: str) -> set[Resource]:
    found: set[Resource] = set()
    for body in sock.dump(RTM_GETRULE, _RULE.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)):
        values = attributes(body[_RULE.size :])
        if number(values.get(FRA_PROTOCOL)) == PROTOCOL:
            mark, table = number(values.get(FRA_FWMARK)), number(values.get(FRA_TABLE))
            found.add(Rule(namespace, mark, table))
    return found


def _read_entries(sock: NetlinkSocket, namespace: str, ours: Mapping[int, Link]) -> set[Resource]:
    found: set[Resource] = set()
    for body in sock.dump(RTM_GETNEIGH, _NDMSG.pack(socket.AF_BRIDGE, 0, 0, 0, 0)):
        _, index, state, flags, _ = _NDMSG.unpack_from(body)
        if index not in ours:
            continue
        values = attributes(body[_NDMSG.size :])
        name, mac = ours[index].name, _mac(values.get(NDA_LLADDR))
        if flags & NTF_SELF and NDA_DST in values:
            found.add(FdbEntry(namespace, name, mac, _address(values[NDA_DST])))
        elif NDA_MASTER in values and state & NUD_NOARP:
            # Static. The bridge's entries for its ports' own MACs are permanent, and not ours.
            found.add(PortEntry(namespace, name, mac))
    return found


def _read_neighbours(
    sock: NetlinkSocket, namespace: str, ours: Mapping[int, Link]
) -> set[Resource]:
    found: set[Resource] = set()
    for body in sock.dump(RTM_GETNEIGH, _NDMSG.pack(socket.AF_INET, 0, 0, 0, 0)):
        _, index, state, _, _ = _NDMSG.unpack_from(body)
        if index in ours and state & NUD_PERMANENT:
            values = attributes(body[_NDMSG.size :])
            address, mac = _address(values[NDA_DST]), _mac(values.get(NDA_LLADDR))
            found.add(Neighbour(namespace, ours[index].name, address, mac))
    return found


# Requests.


# A link is made with an index of the caller's choice, so that its alias can be set in the same
# batch: no crash leaves a link of ours without it, and where the name is taken, the index is
# nobody's and no stranger's link is given our alias.


def create_bridge(resource: Bridge, index: int, naming: Naming) -> list[Message]:
    return [
        _new_link(
            index,
            text(IFLA_IFNAME, resource.name),
            nested(
                IFLA_LINKINFO,
                text(IFLA_INFO_KIND, "bridge"),
                # Multicast goes to every local port; nobody answers the snooping queries.
                nested(IFLA_INFO_DATA, u8(IFLA_BR_MCAST_SNOOPING, 0)),
            ),
        ),
        set_alias(index, f"{naming.alias}bridge"),
    ]


def create_vxlan(resource: Vxlan, index: int, namespace_descriptor: int) -> Message:
    """For the host's socket: born in the other namespace, with its UDP socket in the host's."""
    local = resource.local
    data = nested(
        IFLA_INFO_DATA,
        u32(IFLA_VXLAN_ID, resource.vni),
        attribute(IFLA_VXLAN_LOCAL if local.version == 4 else IFLA_VXLAN_LOCAL6, local.packed),
        attribute(IFLA_VXLAN_PORT, resource.port.to_bytes(2, "big")),
        u8(IFLA_VXLAN_LEARNING, resource.learning),
        u8(IFLA_VXLAN_PROXY, resource.proxy),
    )
    return _new_link(
        index,
        text(IFLA_IFNAME, resource.name),
        u32(IFLA_NET_NS_FD, namespace_descriptor),
        nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, "vxlan"), data),
    )


def create_veth(
    resource: Veth, index: int, peer_index: int, peer_descriptor: int, naming: Naming
) -> list[Message]:
    """The second end is born in its namespace; its alias is set there by the caller."""
    peer = [
        _IFINFO.pack(socket.AF_UNSPEC, 0, peer_index, 0, 0),
        text(IFLA_IFNAME, resource.peer_name),
        u32(IFLA_NET_NS_FD, peer_descriptor),
    ]
    return [
        _new_link(
            index,
            text(IFLA_IFNAME, resource.name),
            nested(
                IFLA_LINKINFO,
                text(IFLA_INFO_KIND, "veth"),
                nested(IFLA_INFO_DATA, nested(VETH_INFO_PEER, *peer)),
            ),
        ),
        set_alias(index, f"{naming.alias}{resource.peer_name}@{resource.peer_namespace}"),
    ]


def set_alias(index: int, alias: str) -> Message:
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, index, 0, 0)
    return Message(RTM_NEWLINK, 0, body + text(IFLA_IFALIAS, alias))


def delete_link(name: str) -> Message:
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    return Message(RTM_DELLINK, 0, body + text(IFLA_IFNAME, name))


def apply_settings(resource: LinkSettings, index: int, master_index: int) -> Message:
    flags = IFF_UP if resource.up else 0
    parts = [
        _IFINFO.pack(socket.AF_UNSPEC, 0, index, flags, IFF_UP),
        u32(IFLA_MTU, resource.mtu_bytes),
        u32(IFLA_MASTER, master_index),
    ]
    if resource.name != "lo":  # it has no address to set
        parts.append(attribute(IFLA_ADDRESS, bytes.fromhex(resource.mac.replace(":", ""))))
    return Message(RTM_NEWLINK, 0, b"".join(parts))


def apply_port(resource: PortSettings, index: int) -> Message:
    data = [
        u8(IFLA_BRPORT_LEARNING, resource.learning),
        u8(IFLA_BRPORT_UNICAST_FLOOD, resource.flood),
        u8(IFLA_BRPORT_ISOLATED, resource.isolated),
    ]
    if resource.locked is not None:
        data.append(u8(IFLA_BRPORT_LOCKED, resource.locked))
    slave = nested(
        IFLA_LINKINFO, text(IFLA_INFO_SLAVE_KIND, "bridge"), nested(IFLA_INFO_SLAVE_DATA, *data)
    )
    return Message(RTM_NEWLINK, 0, _IFINFO.pack(socket.AF_UNSPEC, 0, index, 0, 0) + slave)


def address_request(resource: InterfaceAddress, index: int, *, create: bool) -> Message:
    address = resource.address
    body = _IFADDR.pack(_family(address), resource.prefix_length, 0, RT_SCOPE_UNIVERSE, index)
    body += attribute(IFA_LOCAL, address.packed) + attribute(IFA_ADDRESS, address.packed)
    if create:
        return Message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body)
    return Message(RTM_DELADDR, 0, body)


def route_request(resource: Route, index: int, *, create: bool) -> Message:
    destination = resource.destination
    body = _RTMSG.pack(
        _family(resource.gateway),
        destination.prefixlen,
        0,
        0,
        RT_TABLE_UNSPEC,
        PROTOCOL,
        RT_SCOPE_UNIVERSE,
        RTN_UNICAST,
        RTNH_F_ONLINK,
    )
    if destination.prefixlen:
        body += attribute(RTA_DST, destination.network_address.packed)
    if index:
        body += u32(RTA_OIF, index)
    body += attribute(RTA_GATEWAY, resource.gateway.packed) + u32(RTA_TABLE, resource.table)
    if create:
        return Message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body)
    return Message(RTM_DELROUTE, 0, body)


def rule_request(resource: Rule, *, create: bool) -> Message:
    body = _RULE.pack(socket.AF_INET, 0, 0, 0, RT_TABLE_UNSPEC, 0, 0, FR_ACT_TO_TBL, 0)
    body += u32(FRA_PRIORITY, RULE_PRIORITY) + u32(FRA_FWMARK, resource.mark)
    body += u32(FRA_FWMASK, 0xFFFFFFFF) + u32(FRA_TABLE, resource.table)
    body += u8(FRA_PROTOCOL, PROTOCOL)
    if create:
        return Message(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, body)
    return Message(RTM_DELRULE, 0, body)


def entry_request(resource: FdbEntry | PortEntry, index: int, *, create: bool) -> Message:
    # NOARP is what `bridge fdb` calls static. A bridge's permanent entry is for the bridge
    # itself; a VXLAN device's is one that does not age.
    remote = isinstance(resource, FdbEntry)
    state, flags = (NUD_PERMANENT, NTF_SELF) if remote else (NUD_NOARP, NTF_MASTER)
    body = _NDMSG.pack(socket.AF_BRIDGE, index, state, flags, 0)
    body += attribute(NDA_LLADDR, bytes.fromhex(resource.mac.replace(":", "")))
    if isinstance(resource, FdbEntry):
        body += attribute(NDA_DST, resource.remote.packed)
    if create:
        return Message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)
    return Message(RTM_DELNEIGH, 0, body)


def neighbour_request(resource: Neighbour, index: int, *, create: bool) -> Message:
    body = _NDMSG.pack(_family(resource.address), index, NUD_PERMANENT, 0, 0)
    body += attribute(NDA_DST, resource.address.packed)
    body += attribute(NDA_LLADDR, bytes.fromhex(resource.mac.replace(":", "")))
    if create:
        return Message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)
    return Message(RTM_DELNEIGH, 0, body)


def forget_neighbour(address: IPAddress, index: int) -> Message:
    """Drop what ARP found out about *address*, if anything."""
    body = _NDMSG.pack(_family(address), index, 0, 0, 0) + attribute(NDA_DST, address.packed)
    return Message(RTM_DELNEIGH, 0, body)


def _new_link(index: int, *parts: bytes) -> Message:
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, index, 0, 0) + b"".join(parts)
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def _family(address: IPAddress) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _address(packed: bytes) -> IPAddress:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _mac(value: bytes | None) -> str:
    return (value or b"").hex(":")
