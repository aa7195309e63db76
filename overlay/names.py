"""What names mean to one sandbox. Pure.

A sandbox sees the names of the networks that it is on, and no others. `web` and `web.shop`
(with the network's name) are one name. The reverse of an address is its canonical name with the
network's, as Docker answers. Addresses on hosts that are thought dead are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from overlay.topology import IPAddress, IPNetwork, NetworkId, SandboxId, Topology


@dataclass(frozen=True, slots=True)
class NetworkNames:
    """The names of one network; shared by all sandboxes on it."""

    network: str
    subnet: IPNetwork
    addresses: Mapping[str, tuple[IPAddress, ...]]  # names in lower case
    reverse: Mapping[IPAddress, str]


@dataclass(frozen=True, slots=True)
class NameView:
    """The names of one sandbox, by network in the order of its interfaces."""

    networks: tuple[NetworkNames, ...]

    def addresses(self, name: str) -> tuple[IPAddress, ...] | None:
        """Return the addresses of *name*, in lower case; None if there is no such name here.

        A name without addresses is one whose tasks are all away.
        """
        found = [n.addresses[name] for n in self.networks if name in n.addresses]
        if not found:
            first, _, network = name.rpartition(".")
            found = [
                n.addresses[first]
                for n in self.networks
                if n.network.lower() == network and first in n.addresses
            ]
        if not found:
            return None
        return tuple(dict.fromkeys(address for addresses in found for address in addresses))

    def reverse(self, address: IPAddress) -> str | None:
        """Return the name of *address*; None if it has none here."""
        for names in self.networks:
            if address in names.reverse:
                return f"{names.reverse[address]}.{names.network}"
        return None

    def covers(self, address: IPAddress) -> bool:
        """Whether nobody but us can know the name of *address*."""
        return any(address in names.subnet for names in self.networks)


def views(topology: Topology) -> dict[SandboxId, NameView]:
    """Return what each sandbox of this host sees."""
    networks = _networks(topology)
    return {
        sandbox.id: NameView(
            tuple(networks[attachment.network] for attachment in sandbox.attachments)
        )
        for sandbox in topology.sandboxes
    }


def _networks(topology: Topology) -> dict[NetworkId, NetworkNames]:
    forward: dict[NetworkId, dict[str, tuple[IPAddress, ...]]]
    reverse: dict[NetworkId, dict[IPAddress, str]]
    forward = {network.id: {} for network in topology.networks}
    reverse = {network.id: {} for network in topology.networks}
    for entry in topology.names:
        table = forward[entry.network]
        # Several entries of one name (an alias that two services share) are one name.
        addresses = dict.fromkeys(table.get(entry.name.lower(), ()) + entry.addresses)
        table[entry.name.lower()] = tuple(
            address for address in addresses if not _is_masked(topology, entry.network, address)
        )
        if entry.canonical:
            reverse[entry.network].update(dict.fromkeys(entry.addresses, entry.name))
    return {
        network.id: NetworkNames(
            network.name, network.subnet, forward[network.id], reverse[network.id]
        )
        for network in topology.networks
    }


def _is_masked(topology: Topology, network: NetworkId, address: IPAddress) -> bool:
    """Whether *address* is a task on a host thought dead; a virtual IP never is."""
    known = (network, address) in topology.vtep_of
    return known and not topology.is_live(network, address)
