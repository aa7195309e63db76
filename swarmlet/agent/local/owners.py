"""Whose a file is, seen from the host and from inside of a container.

A container with users of its own counts them from 0; the host knows them as a range of its
numbers (user_namespaces(7)). Archives carry the container's. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

#: What the kernel shows for an owner who has no number (/proc/sys/kernel/overflowuid).
NOBODY = 65534
EVERYBODY = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Owners:
    """The container's ids from 0 are the host's from *first*; *size* of them."""

    first: int = 0
    size: int = EVERYBODY

    @property
    def are_hosts(self) -> bool:
        return self.first == 0

    def inside(self, id_: int) -> int:
        """The container's number of the host's *id_*."""
        return id_ - self.first if 0 <= id_ - self.first < self.size else NOBODY

    def outside(self, id_: int) -> int:
        """The host's number of the container's *id_*."""
        return self.first + (id_ if 0 <= id_ < self.size else min(NOBODY, self.size - 1))


HOST_OWNERS = Owners()
