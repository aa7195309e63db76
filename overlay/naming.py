"""What our kernel objects are called. Pure.

Every interface of ours carries an alias that begins with the prefix: by that, not by its
name alone, an interface is known to be ours.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from overlay.topology import IPAddress, IPNetwork, NetworkId, SandboxId

#: Interfaces within the namespaces that hold our bridges: nobody else names anything there.
BRIDGE = "br0"
VXLAN = "vx0"
HOST_PORT = "host"

#: Longest prefix: an interface name has 15 characters, of which 11 are ours.
PREFIX_LENGTH_MAX = 4
#: In the name of every namespace that holds a bridge; no id of a sandbox contains it.
_BRIDGE_MARK = "@"
#: The namespace of the bridge between the sandboxes and the host.
GATEWAY_NAMESPACE = f"gateway{_BRIDGE_MARK}"
#: 'S' in the top byte of connection marks, packet marks and routing tables that lead back to
#: an entry host; below it, the entry host's place in the ingress subnet.
MARK_BASE = 0x53000000
MARK_MASK = 0xFF000000
#: The ingress subnet must fit below the top byte.
INGRESS_PREFIX_LENGTH_MIN = 8


@dataclass(frozen=True, slots=True)
class Naming:
    """Names under one *prefix*; two daemons in one namespace need two prefixes."""

    prefix: str = "swl"

    def __post_init__(self) -> None:
        if not (self.prefix.isascii() and self.prefix.isalnum() and self.prefix[0].isalpha()):
            raise ValueError(f"prefix {self.prefix!r} is not a word of ASCII letters and digits")
        if len(self.prefix) > PREFIX_LENGTH_MAX:
            raise ValueError(f"prefix {self.prefix!r} is longer than {PREFIX_LENGTH_MAX}")

    @property
    def gateway_link(self) -> str:
        """The host's own interface to the sandboxes: their default gateway."""
        return f"{self.prefix}-gw"

    @property
    def ingress_link(self) -> str:
        """The host's own interface on the ingress network."""
        return f"{self.prefix}-ingress"

    @property
    def table(self) -> str:
        """The one nft table that we have in a namespace."""
        return self.prefix

    @property
    def alias(self) -> str:
        """What the alias of every interface of ours begins with."""
        return f"{self.prefix}:"


def sandbox_port(sandbox: SandboxId) -> str:
    """The bridge's end of a sandbox's interface, whatever bridge it is."""
    return f"p-{short_digest(sandbox)}"


def overlay_namespace(network: NetworkId) -> str:
    return f"overlay{_BRIDGE_MARK}{network}"


def holds_bridge(namespace: str) -> bool:
    """Whether *namespace* is one of those where every interface is ours."""
    return _BRIDGE_MARK in namespace


def return_mark(gateway: IPAddress, subnet: IPNetwork) -> int:
    """Return the mark of connections that came in through the host with *gateway*.

    The same on every host and at every time, so nothing has to be allocated or remembered.
    """
    assert subnet.prefixlen >= INGRESS_PREFIX_LENGTH_MIN
    return MARK_BASE | (int(gateway) - int(subnet.network_address))


def derived_mac(*words: str) -> str:
    """Return a locally administered MAC for an interface that no endpoint table names."""
    digest = hashlib.sha256("\0".join(words).encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def short_digest(text: str) -> str:
    """Return ten hexadecimal digits that stand for *text* where a name has no room for it."""
    return hashlib.sha256(text.encode()).hexdigest()[:10]
