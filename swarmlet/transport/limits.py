"""Counters against floods: token buckets, connection counts, and a log that is told once.

Pure: time is an argument. Every table has a bound, for its keys come from strangers.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from dataclasses import dataclass

from swarmlet.transport.protocols import (
    CONNECTIONS_MAX,
    STRANGERS_MAX,
    STRANGERS_PER_ADDRESS_MAX,
    STREAMS_PER_NODE_MAX,
)

#: Addresses that are remembered at most; the one that was quiet for longest is forgotten.
ADDRESSES_MAX = 1024
#: Seconds for which the same complaint about the same address is only counted.
COMPLAINT_PERIOD = 600.0
COMPLAINTS_MAX = 256


def source_of(host: str) -> str:
    """Return the part of an address that one owner can hardly have many of: IPv6 by its /64."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


@dataclass(slots=True)
class TokenBucket:
    """*rate* a second, and *burst* at once after a pause."""

    rate: float
    burst: float
    level: float
    filled_at: float

    def has(self, now: float) -> bool:
        """Whether one may be taken at *now*."""
        self.level = min(self.burst, self.level + (now - self.filled_at) * self.rate)
        self.filled_at = now
        return self.level >= 1

    def take(self, now: float) -> bool:
        """Take one if there is one, and say whether."""
        if not self.has(now):
            return False
        self.level -= 1
        return True


class Buckets:
    """A token bucket for each source of connections."""

    def __init__(self, *, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def of(self, host: str, now: float) -> TokenBucket:
        source = source_of(host)
        bucket = self._buckets.get(source)
        if bucket is None:
            bucket = self._buckets[source] = TokenBucket(self._rate, self._burst, self._burst, now)
            if len(self._buckets) > ADDRESSES_MAX:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(source)
        return bucket

    def __len__(self) -> int:
        return len(self._buckets)


class Census:
    """Who is connected. A connection is a stranger first, and a node's once it is admitted."""

    def __init__(self) -> None:
        self.strangers: Counter[str] = Counter()
        self.nodes: Counter[str] = Counter()

    @property
    def connections(self) -> int:
        return self.strangers.total() + self.nodes.total()

    def full(self, source: str) -> str | None:
        """Return which bound forbids another connection from *source*, None if none does."""
        if self.connections >= CONNECTIONS_MAX:
            return f"{CONNECTIONS_MAX} connections in all"
        if self.strangers.total() >= STRANGERS_MAX:
            return f"{STRANGERS_MAX} connections that are not admitted yet"
        if self.strangers[source] >= STRANGERS_PER_ADDRESS_MAX:
            return f"{STRANGERS_PER_ADDRESS_MAX} connections from there that are not admitted yet"
        return None

    def node_full(self, node: str) -> bool:
        return self.nodes[node] >= STREAMS_PER_NODE_MAX


def discharge(counter: Counter[str], key: str) -> None:
    """Take one off and forget a key that is at nought: the table must not grow."""
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


class Complaints:
    """Which complaint is news: the first about a source, then one for each period with a count."""

    def __init__(self) -> None:
        self._told: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    def news(self, source: str, kind: str, now: float) -> int | None:
        """Return how often it happened unsaid since it was last told, None if it is no news.

        When more sources than are remembered complain at once, all of them are one source:
        an attacker's supply of addresses does not fill the log.
        """
        key = (source, kind)
        if key not in self._told and len(self._told) >= COMPLAINTS_MAX:
            _, (told_at, _) = next(iter(self._told.items()))
            if now - told_at < COMPLAINT_PERIOD:
                key = ("*", kind)
            else:
                self._told.popitem(last=False)
        told_at, unsaid = self._told.get(key, (-COMPLAINT_PERIOD, 0))
        if now - told_at < COMPLAINT_PERIOD:
            self._told[key] = (told_at, unsaid + 1)
            return None
        self._told[key] = (now, 0)
        self._told.move_to_end(key)
        return unsaid
