"""A member at a new address: the same one that moved, or two with one identity?

Pure. Both addresses are pinged. When only the new one answers, the member has moved (DHCP). When
both do, certificates decide; when both are genuine, the identity was copied, the first address
stands, and the operator hears of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from swarmlet.swim.config import Config
from swarmlet.swim.events import Action, Conflict, Send, Verify
from swarmlet.swim.members import Member
from swarmlet.swim.messages import Address, Alive, MemberId, Ping, ShortId, short_id

#: Moves looked into at the same time; the others are heard of again.
MOVES_MAX = 64
#: Ticks that the handshakes of both addresses may take.
VERIFY_TIMEOUT = 100


@dataclass(frozen=True, slots=True)
class Moved:
    """The member of *alive* is at its new address and no more at the old one."""

    alive: Alive


Outcome: TypeAlias = Action | Moved


@dataclass(slots=True)
class Move:
    alive: Alive
    held: Address
    new_sequence: int
    held_sequence: int
    ticks_left: int
    held_answers: bool = False
    held_refuses: bool = False
    new_answers: bool = False
    verifying: bool = False
    held_genuine: bool | None = None
    new_genuine: bool | None = None


class Moves:
    def __init__(self, *, config: Config, sequences: Iterator[int]) -> None:
        self._config = config
        self._sequences = sequences
        self._moves: dict[MemberId, Move] = {}

    def configure(self, config: Config) -> None:
        self._config = config

    def begin(self, alive: Alive, held: Member) -> list[Outcome]:
        """Look into *alive*, which names another address than what is *held*."""
        if alive.member in self._moves or len(self._moves) >= MOVES_MAX:
            return []
        move = Move(
            alive,
            held.address,
            next(self._sequences),
            next(self._sequences),
            self._config.ack_timeout,
        )
        self._moves[alive.member] = move
        short = held.short
        return [
            Send(alive.address, (Ping(move.new_sequence, short, alive.incarnation),)),
            Send(held.address, (Ping(move.held_sequence, short, held.incarnation),)),
        ]

    def acked(self, sender: ShortId, sequence: int) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for move in list(self._moves.values()):
            if sender == short_id(move.alive.member):
                move.new_answers |= sequence == move.new_sequence
                move.held_answers |= sequence == move.held_sequence
                outcomes += self._end_early(move)
        return outcomes

    def refused(self, address: Address) -> list[Outcome]:
        """Nobody listens at *address*: no need to wait there for the end of the timeout."""
        outcomes: list[Outcome] = []
        for move in list(self._moves.values()):
            move.held_refuses |= move.held == address
            outcomes += self._end_early(move)
        return outcomes

    def verified(self, member: MemberId, address: Address, *, genuine: bool) -> list[Outcome]:
        move = self._moves.get(member)
        if move is None or not move.verifying:
            return []
        if address == move.held:
            move.held_genuine = genuine
        elif address == move.alive.address:
            move.new_genuine = genuine
        if move.held_genuine is None or move.new_genuine is None:
            return []
        if move.held_genuine and move.new_genuine:
            del self._moves[member]
            return [Conflict(member, move.held, move.alive.address)]
        return self._end(move, moved=move.new_genuine)

    def tick(self) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for move in list(self._moves.values()):
            move.ticks_left -= 1
            if move.ticks_left > 0:
                continue
            if move.verifying or not (move.new_answers and move.held_answers):
                outcomes += self._end(move, moved=move.new_answers and not move.verifying)
                continue
            move.verifying = True
            move.ticks_left = VERIFY_TIMEOUT
            outcomes += [
                Verify(move.alive.member, move.held),
                Verify(move.alive.member, move.alive.address),
            ]
        return outcomes

    def waits(self) -> list[int]:
        return [move.ticks_left for move in self._moves.values()]

    def _end_early(self, move: Move) -> list[Outcome]:
        if move.held_refuses and move.new_answers and not move.verifying:
            return self._end(move, moved=True)
        return []

    def _end(self, move: Move, *, moved: bool) -> list[Outcome]:
        del self._moves[move.alive.member]
        return [Moved(move.alive)] if moved else []
