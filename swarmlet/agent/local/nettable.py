"""The networks of this host alone: made, kept in one file, found, and who is on them.

A shell around networks.py. `bridge`, `host` and `none` are always there and in no file. Networks of
the cluster are not here: a container run by hand cannot join one yet, and is told so.
"""

from __future__ import annotations

import ipaddress
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import trio

from overlay.topology import IPNetwork
from swarmlet.agent.local import networks as nets
from swarmlet.agent.local.errors import Conflict, Forbidden, Invalid, NoSuch
from swarmlet.agent.local.names import new_id
from swarmlet.agent.local.records import (
    BUILT_IN,
    DEFAULT_NETWORK,
    HOST_NETWORK,
    NO_NETWORK,
    Attachment,
    ContainerConfig,
    ContainerRecord,
    LocalNetwork,
    LocalNetworks,
)
from swarmlet.agent.local.store import read_record, write_record
from swarmlet.agent.network import HostNetwork
from swarmlet.session import Kind, NetworkView

#: Networks of one host; each is a namespace with a bridge.
NETWORKS_MAX = 500
#: A subnet with fewer addresses has none for containers.
PREFIX_MAX = 29


class Publish(Protocol):
    def __call__(
        self, kind: str, action: str, id_: str, attributes: Mapping[str, str], /
    ) -> None: ...


class NetworkTable:
    def __init__(
        self,
        path: Path,
        host: HostNetwork,
        records: Callable[[], Iterable[ContainerRecord]],
        publish: Publish,
        rng: random.Random,
    ) -> None:
        self._path = path
        self._host = host
        self._records = records
        self._publish = publish
        self._rng = rng
        self._changing = trio.Lock()
        self.table: Mapping[str, LocalNetwork] = {}

    async def load(self) -> None:
        """Raises DamagedRecord: containers could not be put back on their networks."""
        found = await trio.to_thread.run_sync(read_record, self._path, LocalNetworks)
        self.table = {network.id: network for network in found.networks} if found else {}

    async def _keep(self, table: Mapping[str, LocalNetwork]) -> None:
        record = LocalNetworks(tuple(table.values()))
        await trio.to_thread.run_sync(write_record, self._path, record)
        self.table = table

    def find(self, reference: str) -> LocalNetwork:
        """Raises NoSuch, Invalid."""
        try:
            found = nets.find_network(self.table, reference)
        except nets.Taken as exc:
            raise Invalid(str(exc)) from exc
        if found is None:
            raise NoSuch("network", reference)
        return found

    # Making and removing.

    async def create(
        self,
        name: str,
        *,
        subnet: str = "",
        gateway: str = "",
        internal: bool = False,
        labels: Mapping[str, str],
        options: Mapping[str, str],
        mtu: int = 0,
    ) -> LocalNetwork:
        """Raises Conflict, Invalid."""
        async with self._changing:
            if name in BUILT_IN:
                raise Forbidden(f"operation is not permitted on predefined {name} network")
            if any(network.name == name for network in self.table.values()):
                raise Conflict(f"network with name {name} already exists")
            if len(self.table) >= NETWORKS_MAX:
                raise Conflict(f"{NETWORKS_MAX} networks are here already: remove some first")
            chosen = self._subnet(subnet)
            network = LocalNetwork(
                id=new_id(self._rng),
                name=name,
                created_at=time.time(),
                subnet=str(chosen),
                gateway=_gateway(chosen, gateway),
                internal=internal,
                labels=dict(labels),
                options=dict(options),
                mtu=mtu,
            )
            await self._keep({**self.table, network.id: network})
        self._publish("network", "create", network.id, {"name": name, "type": DEFAULT_NETWORK})
        return network

    def _subnet(self, asked: str) -> IPNetwork:
        taken = [ipaddress.ip_network(n.subnet) for n in self.table.values()]
        taken.append(self._host.gateway)
        cluster = self._host.assignment.all(Kind.NETWORK, NetworkView)
        taken += [ipaddress.ip_network(view.subnet) for view in cluster]
        if not asked:
            try:
                return nets.free_subnet(taken)
            except nets.Taken as exc:
                raise Conflict(str(exc)) from exc
        try:
            subnet = ipaddress.ip_network(asked)
        except ValueError as exc:
            raise Invalid(f"subnet {asked!r}: {exc}; write for example 172.20.0.0/16") from exc
        if subnet.version != 4:
            raise Invalid(f"subnet {asked}: IPv6 inside a network is not built yet")
        if subnet.prefixlen > PREFIX_MAX:
            raise Invalid(f"subnet {asked} is too small: a /{PREFIX_MAX} is the least")
        for other in taken:
            if other.version == subnet.version and subnet.overlaps(other):
                raise Forbidden(
                    f"Pool overlaps with other one on this address space: {asked} and {other}"
                )
        return subnet

    async def remove(self, reference: str) -> None:
        """Raises NoSuch, Forbidden while a container is on it."""
        if reference in BUILT_IN:
            raise Forbidden(f"{reference} is a pre-defined network and cannot be removed")
        async with self._changing:
            network = self.find(reference)
            if users := self.users(network.id):
                names = ", ".join(record.name for record in users)
                raise Forbidden(
                    f"error while removing network: network {network.name} id {network.id} has "
                    f"active endpoints ({names}): remove or disconnect those first"
                )
            await self._keep({id_: n for id_, n in self.table.items() if id_ != network.id})
        self._publish("network", "destroy", network.id, {"name": network.name, "type": "bridge"})

    def users(self, network: str) -> list[ContainerRecord]:
        """The containers that are on a network of ours, or on `bridge` and the like."""
        return [
            record
            for record in self._records()
            if any(a.network == network for a in record.config.attachments)
        ]

    # Containers on networks.

    def resolve(self, config: ContainerConfig) -> tuple[Attachment, ...]:
        """The networks of a new container, with ids in the place of names.

        Raises:
            LocalError: one does not exist, or cannot be joined with what was asked.
        """
        mode = config.network
        if mode in (HOST_NETWORK, NO_NETWORK) or config.network_of:
            if config.ports and mode != HOST_NETWORK:
                raise Invalid("conflicting options: port publishing and the container type network")
            return (Attachment(network=mode),) if not config.network_of else ()
        asked = {a.network: a for a in config.attachments}
        first = asked.pop(mode, Attachment(network=mode))
        resolved: dict[str, Attachment] = {}
        for attachment in (first, *asked.values()):
            found = self._resolved(attachment)
            if found.network in resolved:
                raise Invalid(f"network {attachment.network} is named twice")
            resolved[found.network] = found
        return tuple(resolved.values())

    def _resolved(self, asked: Attachment) -> Attachment:
        if asked.network == DEFAULT_NETWORK:
            if asked.asked_address:
                raise Invalid(
                    "user specified IP address is supported on user defined networks only"
                )
            if asked.aliases:
                raise Invalid("network-scoped aliases are only supported for user-defined networks")
            return asked
        if asked.network in BUILT_IN:
            raise Conflict(f"container cannot be connected to {asked.network} and another network")
        self._refuse_cluster_network(asked.network)
        network = self.find(asked.network)
        if asked.asked_address:
            try:
                nets.check_address(network, asked.asked_address)
            except nets.Taken as exc:
                raise Invalid(str(exc)) from exc
        return replace(asked, network=network.id)

    def _refuse_cluster_network(self, reference: str) -> None:
        for view in self._host.assignment.all(Kind.NETWORK, NetworkView):
            if reference in (view.id, view.name):
                raise Forbidden(
                    f"network {view.name} is the swarm's: only tasks of services can join it yet. "
                    "Make a service of one replica, or a network of this host: `swarmlet network "
                    "create -d bridge NAME`"
                )

    def connected(
        self, record: ContainerRecord, reference: str, asked: Attachment
    ) -> ContainerRecord:
        """Return *record* with one network more."""
        if record.config.network in (HOST_NETWORK, NO_NETWORK) or record.config.network_of:
            raise Forbidden(
                f"container {record.name} shares the network of {record.config.network}: it cannot "
                "be connected to another one"
            )
        found = self._resolved(replace(asked, network=reference))
        if any(a.network == found.network for a in record.config.attachments):
            raise Forbidden(f"endpoint with name {record.name} already exists in {reference}")
        attachments = (*record.config.attachments, found)
        return record.changed(config=replace(record.config, attachments=attachments))

    def disconnected(self, record: ContainerRecord, reference: str) -> ContainerRecord:
        id_ = reference if reference in BUILT_IN else self.find(reference).id
        left = tuple(a for a in record.config.attachments if a.network != id_)
        if len(left) == len(record.config.attachments):
            raise Forbidden(f"container {record.name} is not connected to network {reference}")
        if id_ in (HOST_NETWORK, NO_NETWORK):
            raise Forbidden(f"container cannot be disconnected from {reference} network")
        return record.changed(config=replace(record.config, attachments=left))

    def name_of(self, network: str) -> str:
        found = self.table.get(network)
        return found.name if found is not None else network

    def tell(self, action: str, reference: str, container: str) -> None:
        id_ = reference if reference in BUILT_IN else self.find(reference).id
        attributes = {"name": self.name_of(id_), "type": "bridge", "container": container}
        self._publish("network", action, id_, attributes)


def _gateway(subnet: IPNetwork, asked: str) -> str:
    if not asked:
        return str(subnet[1])
    try:
        inside = ipaddress.ip_address(asked) in subnet
    except ValueError:
        inside = False
    if not inside:
        raise Invalid(f"gateway {asked!r} is no address in the subnet {subnet}")
    return asked
