"""The table of members: what is held of each, and which news supersedes it.

Pure. The table stores and finds; what follows from a change is decided in core.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from swarmlet.swim.antientropy import bucket_of, fold, record_hash
from swarmlet.swim.messages import BUCKETS_MAX, Address, MemberId, ShortId, State, short_id

#: One ring is meant for 2,000 members and known to work with 10,000. A member of the group that
#: invents others cannot fill the memory of the rest.
MEMBERS_MAX = 1 << 14

LIVE = frozenset({State.ALIVE, State.SUSPECT})


@dataclass(frozen=True, slots=True)
class Member:
    """What is held of one member. *since*: the tick at which it came to this state."""

    member: MemberId
    incarnation: int
    state: State
    address: Address
    facts: bytes
    since: int

    @property
    def short(self) -> ShortId:
        return short_id(self.member)


def supersedes(incarnation: int, state: State, held: Member) -> bool:
    """Tell whether news of a member replaces what is held of it.

    The higher incarnation wins, and at equal ones LEFT > DEAD > SUSPECT > ALIVE. It is a total
    order, so members that heard the same news in any order hold the same (SWIM section 4.2;
    there Confirm beats every incarnation, here a member may come back).
    """
    return (incarnation, state) > (held.incarnation, held.state)


class Table:
    """Every member that was heard of, *myself* among them."""

    def __init__(self, myself: Member) -> None:
        self._myself = myself.member
        self._members: dict[MemberId, Member] = {}
        self._by_short: dict[ShortId, MemberId] = {}
        self._by_address: dict[Address, MemberId] = {}
        # The others that are alive or suspect, in a list so that choosing one costs the same
        # at any size; _place says where each stands.
        self._live: list[MemberId] = []
        self._place: dict[MemberId, int] = {}
        self._dead: dict[MemberId, None] = {}
        self._buckets = [0] * BUCKETS_MAX
        self.put(myself)

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    @property
    def live(self) -> int:
        """Members that are alive or suspect, this one included: the n of every formula."""
        return len(self._live) + 1

    @property
    def dead(self) -> Collection[MemberId]:
        return self._dead.keys()

    def get(self, member: MemberId) -> Member | None:
        return self._members.get(member)

    def find(self, short: ShortId) -> Member | None:
        member = self._by_short.get(short)
        return None if member is None else self._members[member]

    def at(self, address: Address) -> Member | None:
        """Return who was last heard to be at *address*."""
        member = self._by_address.get(address)
        return None if member is None else self._members[member]

    def collides(self, member: MemberId) -> MemberId | None:
        """Return the other member that has the same short id, if there is one."""
        holder = self._by_short.get(short_id(member))
        return None if holder == member else holder

    def put(self, record: Member) -> None:
        member = record.member
        before = self._members.get(member)
        if before is not None:
            self._forget(before)
        self._members[member] = record
        self._by_short[record.short] = member
        self._by_address[record.address] = member
        self._toggle(record)
        if record.state is State.DEAD:
            self._dead[member] = None
        if member != self._myself and record.state in LIVE and member not in self._place:
            self._place[member] = len(self._live)
            self._live.append(member)
        elif record.state not in LIVE:
            self._bury(member)

    def remove(self, member: MemberId) -> None:
        self._forget(self._members.pop(member))
        del self._by_short[short_id(member)]
        self._bury(member)

    def _forget(self, record: Member) -> None:
        self._toggle(record)
        self._dead.pop(record.member, None)
        if self._by_address.get(record.address) == record.member:
            del self._by_address[record.address]

    def _bury(self, member: MemberId) -> None:
        place = self._place.pop(member, None)
        if place is None:
            return
        last = self._live.pop()
        if last != member:
            self._live[place] = last
            self._place[last] = place

    def _toggle(self, record: Member) -> None:
        self._buckets[bucket_of(record.short)] ^= record_hash(
            record.member, record.incarnation, record.state, record.address, record.facts
        )

    def digests(self, count: int) -> bytes:
        return fold(self._buckets, count)

    def in_buckets(self, buckets: bytes, count: int) -> list[Member]:
        wanted = frozenset(buckets)
        return [r for r in self._members.values() if bucket_of(r.short, count) in wanted]

    def others(self) -> list[MemberId]:
        """Return the other members that are alive or suspect."""
        return list(self._live)

    def sample(
        self, rng: random.Random, count: int, accept: Callable[[Member], bool]
    ) -> list[Member]:
        """Return up to *count* different others that are alive or suspect and acceptable."""
        chosen: list[Member] = []
        if not self._live or count <= 0:
            return chosen
        # Drawing and looking is cheap when most fit. When few do, or few are left, look at all.
        for _ in range(3 * count if len(self._live) > 3 * count else 0):
            record = self._members[self._live[rng.randrange(len(self._live))]]
            if record not in chosen and accept(record):
                chosen.append(record)
                if len(chosen) == count:
                    return chosen
        rest = [r for r in map(self._members.__getitem__, self._live) if accept(r)]
        rest = [r for r in rest if r not in chosen]
        return chosen + rng.sample(rest, min(count - len(chosen), len(rest)))
