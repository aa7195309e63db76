"""Which backend gets which connection, as nft expressions. Pure.

A connection takes the next number of a counter in the kernel (`numgen inc`), and the number
says the backend. A backend of weight two has two numbers. The kernel remembers the choice
for the life of the connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from overlay.topology import IPAddress

#: A backend on this host gets twice the share of one elsewhere: preferred, because its packets
#: stay here, but every task of the service answers in turn, so that no load hides on one host.
LOCAL_WEIGHT = 2
REMOTE_WEIGHT = 1


@dataclass(frozen=True, slots=True)
class Backend:
    """Where a connection may go. *port* is None where the port stays as it is."""

    address: IPAddress
    port: int | None = None
    weight: int = REMOTE_WEIGHT

    @property
    def target(self) -> str:
        return str(self.address) if self.port is None else f"{self.address} . {self.port}"


def spread(backends: Sequence[Backend]) -> list[Backend]:
    """Return the turns of one round: each backend as often as its weight, evenly spaced.

    A backend of weight two stands at a quarter and at three quarters of the round, one of
    weight one in the middle. Ties keep the order given, so the result depends on nothing else.
    """
    turns = [
        ((2 * turn + 1) / (2 * backend.weight), index)
        for index, backend in enumerate(backends)
        for turn in range(backend.weight)
    ]
    return [backends[index] for _, index in sorted(turns)]


def translation(backends: Sequence[Backend]) -> str:
    """Return the nft statement that sends a connection to the next of *backends*.

    *backends* is not empty, and either all have a port or none has.
    """
    assert backends, "no backend: refuse instead"
    assert len({backend.port is None for backend in backends}) == 1
    family = "ip" if backends[0].address.version == 4 else "ip6"
    turns = spread(backends)
    if len(set(turns)) == 1:
        # No map: one target needs no counter, and 'addr : port' has its own spelling.
        (only,) = set(turns)
        host = str(only.address) if family == "ip" else f"[{only.address}]"
        target = host if only.port is None else f"{host}:{only.port}"
        return f"dnat {family} to {target}"
    elements = ", ".join(f"{turn} : {backend.target}" for turn, backend in enumerate(turns))
    return f"dnat {family} to numgen inc mod {len(turns)} map {{ {elements} }}"
