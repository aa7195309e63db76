"""How a member finds others: it joins at addresses, and it never gives up on the absent.

Pure. Whoever the store knows or the table remembers, and who is not alive here, is pinged for
ever at a low rate. The ping carries our own Alive and what we hold of the other, so one answer
tells both sides all they need, and two islands become one by themselves.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from swarmlet.swim.config import Config, ticks
from swarmlet.swim.events import Action, OpenSync, Send
from swarmlet.swim.members import LIVE, MEMBERS_MAX, Table
from swarmlet.swim.messages import ANYBODY, Address, Alive, MemberId, Ping, State, short_id

#: Addresses to join at; an operator gives a handful.
SEEDS_MAX = 64
#: Absent members to be pinged at once; one more waits for its turn.
CALLS_MAX = 64
#: With others in sight, an address that never answered is given up after so many tries.
TRIES_MAX = 5
RETRY_LEAST = ticks(1.0)
#: Every so many pings of absent members, one is a stream: datagrams alone may be blocked.
STREAM_EVERY = 6


@dataclass(slots=True)
class Attempt:
    """Joining at one address."""

    sequence: int = -1
    tries: int = 0
    ticks_left: int = 1  # to the timeout while asked, else to the next try
    asked: bool = False


class Contacts:
    def __init__(
        self,
        *,
        table: Table,
        config: Config,
        rng: random.Random,
        sequences: Iterator[int],
    ) -> None:
        self._table = table
        self._config = config
        self._rng = rng
        self._sequences = sequences
        self._seeds: list[Address] = []
        self._attempts: dict[Address, Attempt] = {}
        self._known: dict[MemberId, Address] = {}
        self._ticks_to_heal = rng.randint(1, config.heal_period)
        self._healed = 0
        self._calls: dict[MemberId, None] = {}

    def configure(self, config: Config) -> None:
        self._config = config
        self._ticks_to_heal = min(self._ticks_to_heal, config.heal_period)

    def knows(self, member: MemberId) -> bool:
        return member in self._known

    def set_known(self, members: Sequence[tuple[MemberId, Address]]) -> None:
        self._known = dict(members[:MEMBERS_MAX])

    def join(self, addresses: Sequence[Address], own: Address) -> None:
        for address in addresses:
            if address == own or address in self._attempts:
                continue
            if address not in self._seeds:
                self._seeds = [*self._seeds, address][-SEEDS_MAX:]
            if len(self._attempts) < SEEDS_MAX:
                self._attempts[address] = Attempt()

    def call(self, member: MemberId) -> None:
        """Ping *member*, which is absent, with the next tick: it may be back."""
        if len(self._calls) < CALLS_MAX:
            self._calls[member] = None

    def acked(self, sequence: int) -> bool:
        """Return whether an attempt to join has just succeeded."""
        for address, attempt in self._attempts.items():
            if attempt.asked and attempt.sequence == sequence:
                del self._attempts[address]
                return True
        return False

    def tick(self, me: Alive) -> list[Action]:
        actions: list[Action] = []
        for address, attempt in list(self._attempts.items()):
            attempt.ticks_left -= 1
            if attempt.ticks_left <= 0:
                actions += self._advance(address, attempt, me)
        absent = self._absent() if self._calls else []
        actions += [self._ping(member, me) for member in self._calls if member in absent]
        self._calls.clear()
        self._ticks_to_heal -= 1
        if self._ticks_to_heal <= 0:
            actions += self._heal(me)
        return actions

    def waits(self) -> list[int]:
        """Return in how many ticks each thing that waits is due."""
        soonest = 1 if self._calls else self._ticks_to_heal
        return [soonest, *(a.ticks_left for a in self._attempts.values())]

    def _advance(self, address: Address, attempt: Attempt, me: Alive) -> list[Action]:
        if attempt.asked:
            # No datagram came back. The stream may get through.
            attempt.asked = False
            attempt.ticks_left = min(
                RETRY_LEAST << min(attempt.tries, 8), max(RETRY_LEAST, self._config.heal_period)
            )
            return [OpenSync(None, address)]
        if attempt.tries >= TRIES_MAX and self._table.live > 1:
            del self._attempts[address]
            return []
        attempt.tries += 1
        attempt.asked = True
        attempt.sequence = next(self._sequences)
        attempt.ticks_left = self._config.ack_timeout
        return [Send(address, (Ping(attempt.sequence, ANYBODY), me))]

    def _heal(self, me: Alive) -> list[Action]:
        absent = self._absent()
        self._ticks_to_heal = self._config.heal_ticks(self._table.live, len(absent))
        if not absent:
            if self._table.live == 1 and self._seeds:
                self.join([self._rng.choice(self._seeds)], me.address)
            return []
        self._healed += 1
        member = self._rng.choice(absent)
        if self._healed % STREAM_EVERY == 0:
            return [OpenSync(member, self._address_of(member))]
        return [self._ping(member, me)]

    def _ping(self, member: MemberId, me: Alive) -> Send:
        held = self._table.get(member)
        incarnation, state = (0, State.ALIVE) if held is None else (held.incarnation, held.state)
        ping = Ping(next(self._sequences), short_id(member), incarnation, state)
        return Send(self._address_of(member), (ping, me))

    def _address_of(self, member: MemberId) -> Address:
        held = self._table.get(member)
        # The store's word and the last seen address may differ: try each at times.
        addresses = [self._known[member]] if member in self._known else []
        if held is not None and held.address not in addresses:
            addresses.append(held.address)
        return self._rng.choice(addresses)

    def _absent(self) -> list[MemberId]:
        absent = dict.fromkeys(self._table.dead)
        for member in self._known:
            held = self._table.get(member)
            if held is None or (held.state not in LIVE and held.state is not State.LEFT):
                absent[member] = None
        return list(absent)
