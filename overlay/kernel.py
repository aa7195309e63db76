"""One pass over the namespaces of this host: read what is ours, or apply operations.

Sync: a Pass lives in one thread that dies with it, because it wanders from namespace to
namespace. It opens one netlink socket for each namespace that it touches and closes them all.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import assert_never

from overlay import conntrack, netlink, netns, nftables
from overlay.naming import Naming, holds_bridge
from overlay.plan import Create, Delete, Operation
from overlay.resources import (
    HOST,
    Bridge,
    FdbEntry,
    InterfaceAddress,
    Key,
    Link,
    LinkSettings,
    Namespace,
    Neighbour,
    PortEntry,
    PortSettings,
    Resource,
    Route,
    Rule,
    Ruleset,
    Sysctl,
    Veth,
    Vxlan,
)
from overlay.retirement import Survivors
from overlay.rtnetlink import NETFILTER, Message, NetlinkError, NetlinkSocket
from overlay.tables import Chain
from overlay.topology import IPAddress, IPNetwork, Topology

PROC_SYS_NET = Path("/proc/sys/net")
#: Beside the namespaces: the host's sysctls before we changed them, name=value.
SAVED_NAME = "sysctls"
#: Interface indexes that the kernel itself does not get to: it counts up from 1.
INDEX_MIN, INDEX_MAX = 1 << 24, 1 << 30
LINKS = (Bridge, Vxlan, Veth)
#: What cannot be batched: it concerns more than one namespace, or is not netlink.
DONE_SINGLY = (Namespace, Sysctl, Ruleset, *LINKS)
#: What a request may answer because things already are as it wants them. It may hide another
#: object of that name; the next read shows it as stale, so tolerance never lies.
ALREADY_SO = {
    (Create, errno.EEXIST),
    (Delete, errno.ENOENT),
    (Delete, errno.ENODEV),
    (Delete, errno.ESRCH),
    (Delete, errno.EADDRNOTAVAIL),
}


@dataclass(frozen=True, slots=True)
class Failure:
    """An operation that the kernel refused."""

    operation: Operation
    reason: str


@dataclass(slots=True)
class Memory:
    """What a pass may take over from the one before: rulesets by namespace and its inode.

    *given* are descriptors of namespaces that somebody made, to be kept under these names.
    """

    rulesets: dict[tuple[str, int], nftables.Known] = field(default_factory=dict)
    given: dict[str, int] = field(default_factory=dict)


class Pass:
    """One look at the kernel or one change of it.

    Args:
        directory: where the namespaces' files are; ours alone.
        host: the namespace that is called HOST here.
        memory: carried from pass to pass by the caller, who runs one pass at a time.
    """

    def __init__(self, directory: Path, host: Path, naming: Naming, memory: Memory) -> None:
        self._directory = directory
        self._saved = directory.with_name(SAVED_NAME)
        self._host = host
        self._naming = naming
        self._memory = memory
        self._stack = ExitStack()
        self._descriptors: dict[str, int] = {}
        self._sockets: dict[str, NetlinkSocket] = {}
        self._indexes: dict[tuple[str, str], int] = {}
        self._here: str | None = None

    def __enter__(self) -> Pass:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    # Reading.

    def read(
        self, desired: Collection[Resource], scope: frozenset[str] | None = None
    ) -> frozenset[Resource]:
        """Return what is ours in the namespaces of *scope* (None: in all).

        *desired* says which sysctls matter, and helps to recognise rulesets.
        """
        sysctls: dict[str, list[Sysctl]] = {}
        rulesets: dict[str, tuple[Chain, ...]] = {}
        locks: dict[Key, bool | None] = {}
        there = netns.listing(self._directory)
        tables: dict[str, netlink.Table] = {}
        for resource in desired:
            match resource:
                case Sysctl(namespace):
                    sysctls.setdefault(namespace, []).append(resource)
                case Ruleset(namespace, _, chains):
                    rulesets[namespace] = chains
                case PortSettings():
                    locks[resource.key] = resource.locked
                case Namespace(namespace) if not there.get(namespace):
                    tables[namespace] = netlink.Table({}, frozenset())
        found: set[Resource] = {
            Namespace(name, mounted)
            for name, mounted in there.items()
            if scope is None or name in scope
        }
        for namespace in [HOST, *(name for name, mounted in there.items() if mounted)]:
            if scope is not None and namespace not in scope:
                continue
            table = netlink.read(self._socket(namespace), namespace, self._naming)
            tables[namespace] = table
            for resource in table.resources:
                if isinstance(resource, PortSettings) and resource.locked is None:
                    # A kernel before 5.18 cannot lock a port: nothing to set.
                    resource = replace(resource, locked=locks.get(resource.key))
                found.add(resource)
            found.update(self._read_sysctls(namespace, sysctls.get(namespace, []), table))
            if not holds_bridge(namespace):
                found.update(self._read_ruleset(namespace, rulesets.get(namespace)))
        if scope is None:
            here = {(namespace, self._inode(namespace)) for namespace in self._descriptors}
            for key in self._memory.rulesets.keys() - here:
                del self._memory.rulesets[key]
        for namespace, table in tables.items():
            for link in table.links.values():
                if veth := netlink.pair(namespace, link, self._naming, tables):
                    found.add(veth)
        return frozenset(found)

    def mtu_bytes_of(self, address: IPAddress) -> int | None:
        """Return the MTU of the host's interface that has *address*, None if none has."""
        return netlink.mtu_bytes_of(self._socket(HOST), address)

    def _read_sysctls(
        self, namespace: str, wanted: Sequence[Sysctl], table: netlink.Table
    ) -> Iterator[Sysctl]:
        if wanted:
            self._enter(namespace)
        for sysctl in wanted:
            try:
                value = (PROC_SYS_NET / sysctl.name).read_text().strip()
            except FileNotFoundError:
                if not sysctl.link or sysctl.link in table.links:
                    # The kernel has no such thing (no IPv6, no br_netfilter): nothing to set.
                    yield sysctl
                continue
            yield Sysctl(namespace, sysctl.name, value, sysctl.link)

    def _read_ruleset(self, namespace: str, wanted: tuple[Chain, ...] | None) -> Iterator[Ruleset]:
        self._enter(namespace)
        key = (namespace, self._inode(namespace))
        table = self._naming.table
        known = nftables.verify(nftables.open_nft(), table, wanted, self._memory.rulesets.get(key))
        if known is None:
            self._memory.rulesets.pop(key, None)
            return
        self._memory.rulesets[key] = known
        yield Ruleset(namespace, table, known.chains)

    # Applying.

    def apply(self, operations: Iterable[Operation]) -> list[Failure]:
        """Do *operations* in order; go on past those that fail, and return them."""
        failures: list[Failure] = []
        for (_, resource_kind, namespace), group in groupby(operations, key=_group):
            batch = list(group)
            if resource_kind in DONE_SINGLY:
                failures += self._apply_singly(batch)
            else:
                failures += self._apply_batch(namespace, batch)
        return failures

    def _apply_batch(self, namespace: str, batch: Sequence[Operation]) -> Iterator[Failure]:
        requests: list[tuple[Operation, Message]] = []
        for operation in batch:
            try:
                requests.append((operation, self._request(operation)))
            except OSError as exc:
                yield from _failure(operation, exc)
        if not requests:
            return
        errors = self._socket(namespace).execute([message for _, message in requests])
        for (operation, _), error in zip(requests, errors, strict=True):
            if error:
                yield from _failure(operation, error)

    def _apply_singly(self, batch: Sequence[Operation]) -> Iterator[Failure]:
        for operation in batch:
            try:
                self._apply_one(operation)
            except OSError as exc:
                yield from _failure(operation, exc)

    def _apply_one(self, operation: Operation) -> None:
        create = isinstance(operation, Create)
        match operation.resource:
            case Namespace(namespace):
                self._change_namespace(namespace, create=create)
            case Sysctl() as sysctl:
                self._set_sysctl(sysctl)
            case Ruleset(namespace, table, chains):
                self._change_ruleset(namespace, table, chains if create else None)
            case (Bridge() | Vxlan() | Veth()) as link:
                if create:
                    self._create_link(link)
                else:
                    self._indexes.pop((link.namespace, link.name), None)
                    self._socket(link.namespace).request(netlink.delete_link(link.name))
            case other:
                raise AssertionError(other)

    def _create_link(self, link: Link) -> None:
        index = _new_index()
        match link:
            case Bridge():
                self._do(link.namespace, netlink.create_bridge(link, index, self._naming))
            case Vxlan():
                # No alias: every link in such a namespace is ours.
                descriptor = self._descriptor(link.namespace)
                self._do(HOST, [netlink.create_vxlan(link, index, descriptor)])
            case Veth():
                peer, peer_index = link.peer_namespace, _new_index()
                messages = netlink.create_veth(
                    link, index, peer_index, self._descriptor(peer), self._naming
                )
                self._do(link.namespace, messages)
                # A crash before this leaves a pair that reads as lost, and is made again.
                self._do(peer, [netlink.set_alias(peer_index, f"{self._naming.alias}veth")])
            case _:
                assert_never(link)

    def _do(self, namespace: str, messages: Sequence[Message]) -> None:
        """Do *messages*, and raise what the kernel had against the first that it refused."""
        for error in self._socket(namespace).execute(messages):
            if error:
                raise error

    def _set_sysctl(self, sysctl: Sysctl) -> None:
        self._enter(sysctl.namespace)
        path = PROC_SYS_NET / sysctl.name
        if sysctl.namespace == HOST and not sysctl.link:
            saved = self._saved_sysctls()
            if sysctl.name not in saved:
                saved[sysctl.name] = path.read_text().strip()
                lines = "".join(f"{name}={value}\n" for name, value in saved.items())
                temporary = self._saved.with_suffix(".new")
                temporary.write_text(lines)
                temporary.rename(self._saved)
        path.write_text(sysctl.value)

    def _saved_sysctls(self) -> dict[str, str]:
        """Return the host's own values of what we have changed."""
        try:
            lines = self._saved.read_text().splitlines()
        except FileNotFoundError:
            return {}
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def restore(self) -> None:
        """Give the host its own settings back, and remove what remembers them."""
        self._enter(HOST)
        for name, value in self._saved_sysctls().items():
            (PROC_SYS_NET / name).write_text(value)
        self._saved.unlink(missing_ok=True)
        with suppress(OSError):  # not empty: the caller has said so already
            self._directory.rmdir()

    def _change_namespace(self, namespace: str, *, create: bool) -> None:
        self._forget(namespace)
        if create:
            self._here = None
            netns.create(self._path(namespace), self._memory.given.get(namespace))
            self._here = namespace
        else:
            if self._here == namespace:
                self._enter(HOST)
            netns.remove(self._path(namespace))

    def _change_ruleset(self, namespace: str, table: str, chains: tuple[Chain, ...] | None) -> None:
        self._enter(namespace)
        key = (namespace, self._inode(namespace))
        known = self._memory.rulesets.pop(key, None)
        nft = nftables.open_nft()
        if chains is None:
            nftables.remove(nft, table)
        else:
            self._memory.rulesets[key] = nftables.replace(nft, table, chains, known)

    def _request(self, operation: Operation) -> Message:
        create = isinstance(operation, Create)
        match operation.resource:
            case LinkSettings() as settings:
                index = self._index(settings.namespace, settings.name)
                master = self._index(settings.namespace, settings.master) if settings.master else 0
                return netlink.apply_settings(settings, index, master)
            case PortSettings() as port:
                return netlink.apply_port(port, self._index(port.namespace, port.name))
            case InterfaceAddress() as address:
                index = self._index(address.namespace, address.link)
                return netlink.address_request(address, index, create=create)
            case Route() as route:
                index = self._index(route.namespace, route.link) if route.link else 0
                return netlink.route_request(route, index, create=create)
            case Rule() as rule:
                return netlink.rule_request(rule, create=create)
            case (FdbEntry() | PortEntry()) as entry:
                index = self._index(entry.namespace, entry.link)
                return netlink.entry_request(entry, index, create=create)
            case Neighbour() as neighbour:
                index = self._index(neighbour.namespace, neighbour.link)
                return netlink.neighbour_request(neighbour, index, create=create)
            case other:
                raise AssertionError(other)

    # Forgetting.

    def forget(self, topology: Topology, survivors: Survivors) -> None:
        """End the flows that are over, and drop what ARP knows of addresses that moved.

        Raises:
            OSError: some of it could not be done.
        """
        for namespace, subnets in _reached(topology).items():
            if survivors.concerned & subnets:
                self._end_flows(namespace, survivors)
        links = [
            (str(sandbox.id), attachment.interface, attachment.network)
            for sandbox in topology.sandboxes
            for attachment in sandbox.attachments
        ]
        if topology.ingress and topology.own_ingress:
            links.append((HOST, self._naming.ingress_link, topology.ingress.network))
        for namespace, link, network in links:
            if addresses := survivors.moved.get(network):
                index = self._index(namespace, link)
                messages = [netlink.forget_neighbour(address, index) for address in addresses]
                self._socket(namespace).execute(messages)  # most are not there: no matter

    def _end_flows(self, namespace: str, survivors: Survivors) -> None:
        self._enter(namespace)
        # A look takes 10 ms, however few flows there are: the table is one for all namespaces.
        if (PROC_SYS_NET / "netfilter/nf_conntrack_count").read_text().strip() == "0":
            return
        with NetlinkSocket(NETFILTER) as sock:
            conntrack.end_flows(
                sock,
                lambda flow: survivors.is_over(
                    asked=flow.asked, backend=flow.backend, is_datagram=flow.is_datagram
                ),
            )

    # Namespaces.

    def _path(self, namespace: str) -> Path:
        assert namespace != HOST
        return self._directory / namespace

    def _inode(self, namespace: str) -> int:
        return os.fstat(self._descriptor(namespace)).st_ino

    def _descriptor(self, namespace: str) -> int:
        if namespace not in self._descriptors:
            path = self._host if namespace == HOST else self._path(namespace)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._stack.callback(os.close, descriptor)
            self._descriptors[namespace] = descriptor
        return self._descriptors[namespace]

    def _enter(self, namespace: str) -> None:
        if self._here != namespace:
            self._here = None
            netns.enter_descriptor(self._descriptor(namespace), namespace or "host")
            self._here = namespace

    def _socket(self, namespace: str) -> NetlinkSocket:
        if namespace not in self._sockets:
            self._enter(namespace)
            self._sockets[namespace] = self._stack.enter_context(NetlinkSocket())
        return self._sockets[namespace]

    def _forget(self, namespace: str) -> None:
        """Nothing that is known of *namespace* holds any more (its descriptors close later)."""
        self._descriptors.pop(namespace, None)
        if sock := self._sockets.pop(namespace, None):
            sock.close()
        self._indexes = {key: i for key, i in self._indexes.items() if key[0] != namespace}

    def _index(self, namespace: str, name: str) -> int:
        """Return the index of our link *name*.

        Raises:
            OSError: there is none, or it is somebody else's.
        """
        key = (namespace, name)
        if key not in self._indexes:
            link = netlink.find_link(self._socket(namespace), namespace, name)
            if name != "lo" and not netlink.is_ours(link, namespace, self._naming):
                raise NetlinkError(errno.EPERM, f"interface {name} is there and is not ours")
            self._indexes[key] = link.index
        return self._indexes[key]


def _failure(operation: Operation, error: OSError) -> Iterator[Failure]:
    # A link that could not be made is never "already so": the name is somebody else's.
    tolerated = (type(operation), error.errno) in ALREADY_SO
    if not tolerated or (isinstance(operation, Create) and isinstance(operation.resource, LINKS)):
        yield Failure(operation, error.strerror or str(error))


def _reached(topology: Topology) -> dict[str, set[IPNetwork]]:
    """Return the subnets to whose addresses each namespace translates."""
    subnet = {network.id: network.subnet for network in topology.networks}
    reached = {
        str(sandbox.id): {subnet[attachment.network] for attachment in sandbox.attachments}
        for sandbox in topology.sandboxes
    }
    reached[HOST] = {topology.gateway}
    if topology.ingress:
        reached[HOST].add(subnet[topology.ingress.network])
    return reached


def _new_index() -> int:
    """Return an interface index that nobody has, all but surely (else: an error like any)."""
    return secrets.randbelow(INDEX_MAX - INDEX_MIN) + INDEX_MIN


def _group(operation: Operation) -> tuple[type[Operation], type[Resource], str]:
    return type(operation), type(operation.resource), operation.resource.namespace
