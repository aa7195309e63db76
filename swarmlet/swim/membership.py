"""The rules of membership: what news changes what, what is told on, when a suspect is dead.

Pure. Owns the table, the suspicions and this member's own Alive. News comes from rumours
(hear), from exchanges (merge) and from our own probes (probe_failed).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias, assert_never

from swarmlet.swim.awareness import Awareness
from swarmlet.swim.config import Config, ticks
from swarmlet.swim.dissemination import Queue
from swarmlet.swim.events import Action, Changed, Conflict, Reason, Refuted
from swarmlet.swim.members import LIVE, MEMBERS_MAX, Member, Table, supersedes
from swarmlet.swim.messages import (
    INCARNATION_MAX,
    Address,
    Alive,
    Dead,
    Evidence,
    Left,
    MemberId,
    Record,
    Rumour,
    ShortId,
    State,
    Suspect,
    UserEvent,
    boot_of,
    first_incarnation,
    short_id,
)
from swarmlet.swim.moves import Moved, Moves
from swarmlet.swim.probing import ProbeFailed
from swarmlet.swim.suspicion import Suspicion

#: Ticks between two complaints about, or answers to, a copy of somebody's identity.
CONFLICT_EVERY = ticks(10)
REASONS = {
    Evidence.SILENT: Reason.UNANSWERED,
    Evidence.REFUSED: Reason.REFUSED,
    Evidence.STALLED: Reason.STALLED,
}
#: Ticks before its end at which a dead member is no longer worth taking over from others.
REAP_MARGIN = ticks(120)


@dataclass(frozen=True, slots=True)
class Doubtful:
    """*member* should be probed out of turn: others hold it for *claimed*."""

    member: MemberId
    claimed: State


Outcome: TypeAlias = Action | Doubtful | ProbeFailed | Moved


class Membership:
    def __init__(
        self,
        *,
        member: MemberId,
        address: Address,
        facts: bytes,
        boot: int,
        config: Config,
        awareness: Awareness,
        queue: Queue,
        moves: Moves,
    ) -> None:
        self._config = config
        self._awareness = awareness
        self._queue = queue
        self._moves = moves
        self.now = 0
        self.heard_at = 0
        self.leaving = False
        self.short = short_id(member)
        self.me = Alive(member, first_incarnation(boot), address, facts)
        self.table = Table(self._member_of(self.me))
        self.suspicions: dict[MemberId, Suspicion] = {}
        self._conflict_at = -CONFLICT_EVERY
        queue.put(self.me)

    def configure(self, config: Config) -> None:
        """Use *config* from now on; suspicions that run keep their bounds."""
        self._config = config

    @property
    def own(self) -> Member:
        record = self.table.get(self.me.member)
        assert record is not None
        return record

    @property
    def isolated(self) -> bool:
        """Nobody was heard for so long that the fault is rather here.

        What we conclude then is for ourselves: told on after the cut has healed, it would
        bury the living.
        """
        silence = self.now - self.heard_at
        return silence > self._awareness.stretch(2 * self._config.probe_period)

    # This member.

    def become(self, address: Address, facts: bytes) -> None:
        """Tell everybody of our new *address* or *facts*, in a new incarnation."""
        if (address, facts) != (self.me.address, self.me.facts):
            self.me = dataclasses.replace(self.me, address=address, facts=facts)
            self._outbid(self.me.incarnation)

    def believed(self, state: State, incarnation: int) -> list[Outcome]:
        """Others hold us for *state*: refute, if that is wrong and our latest word.

        SWIM section 4.2; the score goes up because somebody found us slow (Lifeguard IV.A).
        """
        if state is State.ALIVE or incarnation < self.me.incarnation or self.leaving:
            return []
        if not self._outbid(incarnation):
            return []
        self._awareness.add(1)
        return [Refuted(state, self.me.incarnation)]

    def _hear_of_myself(self, alive: Alive) -> list[Outcome]:
        if alive.incarnation < self.me.incarnation or alive == self.me or self.leaving:
            return []
        if boot_of(alive.incarnation) != boot_of(self.me.incarnation):
            # A life that this disk does not remember: it was restored from a backup.
            self._outbid(alive.incarnation)
            return []
        if self.now - self._conflict_at < CONFLICT_EVERY:
            # A copy of us answers every answer: the two must not fill the network.
            return []
        self._conflict_at = self.now
        self._outbid(alive.incarnation)
        if alive.address == self.me.address:
            return []
        return [Conflict(self.me.member, self.me.address, alive.address)]

    def _outbid(self, incarnation: int) -> bool:
        if incarnation >= INCARNATION_MAX:
            return False  # no honest member counts so far; there is nothing above it
        self.me = dataclasses.replace(self.me, incarnation=incarnation + 1)
        self.table.put(self._member_of(self.me))
        self._queue.put(self.me)
        return True

    # Rumours.

    def hear(self, rumour: Rumour, teller: ShortId) -> list[Outcome]:
        """Take note of *rumour*, told by *teller*."""
        match rumour:
            case Alive():
                return self._hear_alive(rumour, teller)
            case Suspect():
                return self._hear_suspect(rumour)
            case Dead(_, _, by):
                return self._hear_gone(rumour, State.DEAD, Reason.TOLD, by)
            case Left():
                return self._hear_gone(rumour, State.LEFT, Reason.LEFT, None)
            case UserEvent():
                return []
            case _:
                assert_never(rumour)

    def _hear_alive(self, alive: Alive, teller: ShortId | None) -> list[Outcome]:
        if alive.member == self.me.member:
            return self._hear_of_myself(alive)
        held = self.table.get(alive.member)
        if held is None:
            refusal = self._refuse_newcomer(alive.member, alive.address)
            return self._take(alive, None, teller) if refusal is None else refusal
        if alive.address != held.address and held.state in LIVE:
            # At the incarnation that we hold it is no news, but a sign of two with one identity.
            fresh = alive.incarnation >= held.incarnation
            return [*self._moves.begin(alive, held)] if fresh else []
        return self._take(alive, held, teller)

    def moved(self, alive: Alive) -> list[Outcome]:
        held = self.table.get(alive.member)
        return self._take(alive, held, held.short) if held is not None else []

    def _refuse_newcomer(self, member: MemberId, address: Address) -> list[Outcome] | None:
        """Return why *member* cannot enter the table, None if it can."""
        other = self.table.collides(member)
        if other is None:
            return None if len(self.table) < MEMBERS_MAX else []
        holder = self.table.get(other)
        if holder is None or self.now - self._conflict_at < CONFLICT_EVERY:
            return []
        self._conflict_at = self.now
        return [Conflict(member, holder.address, address, other)]

    def _take(self, alive: Alive, held: Member | None, teller: ShortId | None) -> list[Outcome]:
        """Enter *alive* in the table and tell it on, if it is news."""
        if held is not None and not supersedes(alive.incarnation, State.ALIVE, held):
            return []
        record = self._member_of(alive)
        if held is not None and held.state is State.ALIVE:
            record = dataclasses.replace(record, since=held.since)
        self.table.put(record)
        self.suspicions.pop(alive.member, None)
        self._queue.put(alive)
        reason = _reason_to_live(alive, held)
        return [] if reason is None else [self._changed(record, held, reason, teller)]

    def _hear_suspect(self, rumour: Suspect) -> list[Outcome]:
        if rumour.member == self.short:
            return self.believed(State.SUSPECT, rumour.incarnation)
        held = self.table.find(rumour.member)
        if held is None:
            return []
        if supersedes(rumour.incarnation, State.SUSPECT, held):
            record = dataclasses.replace(held, incarnation=rumour.incarnation)
            return self._suspect(record, held, rumour.accusers, rumour.evidence, Reason.ACCUSED)
        if (held.incarnation, held.state) == (rumour.incarnation, State.SUSPECT):
            self._confirm(held, rumour.accusers, rumour.evidence)
        return []

    def _hear_gone(
        self, rumour: Dead | Left, state: State, reason: Reason, by: ShortId | None
    ) -> list[Outcome]:
        if rumour.member == self.short:
            return self.believed(state, rumour.incarnation)
        held = self.table.find(rumour.member)
        if held is None or not supersedes(rumour.incarnation, state, held):
            return []
        self._queue.put(rumour)
        return self._bury(held, rumour.incarnation, state, reason, by)

    # Suspicion and death.

    def probe_failed(self, failed: ProbeFailed) -> list[Outcome]:
        held = self.table.get(failed.target)
        if held is None or held.state not in LIVE or held.incarnation != failed.incarnation:
            return []  # gone, or it has refuted since
        if failed.claimed is State.DEAD and failed.evidence is not Evidence.STALLED:
            # Others waited out a suspicion, and our own probe agrees.
            self._tell(held.member, Dead(held.short, held.incarnation, self.short))
            return self._bury(held, held.incarnation, State.DEAD, Reason.CONFIRMED, self.short)
        if held.state is State.SUSPECT:
            self._confirm(held, (self.short,), failed.evidence)
            return []
        reason = REASONS[failed.evidence]
        return self._suspect(held, held, (self.short,), failed.evidence, reason)

    def expire(self) -> list[Outcome]:
        """Declare dead whose suspicion has run out."""
        if not self.suspicions:
            return []
        others = self._others_to_confirm()
        over = [m for m, s in self.suspicions.items() if s.deadline(others) <= self.now]
        outcomes: list[Outcome] = []
        for member in over:
            held = self.table.get(member)
            assert held is not None
            assert held.state is State.SUSPECT
            refused = self.suspicions[member].evidence is Evidence.REFUSED
            reason = Reason.REFUSED if refused else Reason.TIMEOUT
            self._tell(member, Dead(held.short, held.incarnation, self.short))
            outcomes += self._bury(held, held.incarnation, State.DEAD, reason, self.short)
        return outcomes

    def waits(self) -> list[int]:
        """Return in how many ticks each suspicion runs out."""
        others = self._others_to_confirm()
        return [s.deadline(others) - self.now for s in self.suspicions.values()]

    def _others_to_confirm(self) -> int:
        return self.table.live - 1 - len(self.suspicions)

    def restart_suspicions(self) -> None:
        least, most = self._suspicion_bounds()
        for suspicion in self.suspicions.values():
            suspicion.restart(self.now, least=least, most=most)

    def obituary(self, held: Member) -> Rumour:
        """Return what we hold of a member, as a rumour that it can refute."""
        match held.state:
            case State.LEFT:
                return Left(held.short, held.incarnation)
            case State.DEAD:
                return Dead(held.short, held.incarnation, self.short)
            case State.SUSPECT:
                return self._suspicion_of(held)
            case State.ALIVE:
                return Alive(held.member, held.incarnation, held.address, held.facts)
            case _:
                assert_never(held.state)

    def _suspect(
        self,
        record: Member,
        held: Member,
        accusers: Iterable[ShortId],
        evidence: Evidence,
        reason: Reason,
    ) -> list[Outcome]:
        record = dataclasses.replace(record, state=State.SUSPECT, since=self.now)
        self.table.put(record)
        least, most = self._suspicion_bounds()
        suspicion = self.suspicions[record.member] = Suspicion(
            accusers,
            # Neither the suspect nor its accuser can confirm.
            wanted=max(0, min(self._config.confirmations, self.table.live - 2)),
            least=least,
            most=most,
            now=self.now,
        )
        self._weigh(suspicion, evidence)
        self._tell(record.member, self._suspicion_of(record))
        return [self._changed(record, held, reason, suspicion.accusers[0])]

    def _confirm(self, held: Member, accusers: Iterable[ShortId], evidence: Evidence) -> None:
        suspicion = self.suspicions[held.member]
        news = suspicion.add(accusers)
        if self._weigh(suspicion, evidence) or news:
            self._tell(held.member, self._suspicion_of(held))

    def _weigh(self, suspicion: Suspicion, evidence: Evidence) -> bool:
        """Let *evidence* shorten or lengthen *suspicion*; True when it is news."""
        match evidence:
            case Evidence.SILENT:
                return False
            case Evidence.REFUSED:
                timeout = self._awareness.stretch(self._config.refused_timeout)
                return suspicion.refuse(self.now + timeout)
            case Evidence.STALLED:
                return suspicion.stall(self._config.stall_factor)
            case _:
                assert_never(evidence)

    def _suspicion_of(self, held: Member) -> Suspect:
        suspicion = self.suspicions[held.member]
        return Suspect(held.short, held.incarnation, suspicion.accusers, suspicion.evidence)

    def _suspicion_bounds(self) -> tuple[int, int]:
        return self._config.suspicion_bounds(self.table.live, self._awareness.score)

    def _tell(self, member: MemberId, verdict: Suspect | Dead) -> None:
        """Tell on what we concluded ourselves, unless we may be the one who is lost."""
        if self.isolated:
            self._queue.discard(short_id(member))
        else:
            self._queue.put(verdict)

    def _bury(
        self, held: Member, incarnation: int, state: State, reason: Reason, by: ShortId | None
    ) -> list[Outcome]:
        record = dataclasses.replace(held, incarnation=incarnation, state=state, since=self.now)
        self.table.put(record)
        self.suspicions.pop(held.member, None)
        return [self._changed(record, held, reason, by)]

    def forget(self, held: Member) -> list[Outcome]:
        """Drop one who has been gone for long."""
        self.table.remove(held.member)
        self._queue.discard(held.short)
        return [
            Changed(held.member, held.state, None, Reason.REAPED, held.incarnation, held.address)
        ]

    # Exchanges.

    def to_record(self, held: Member) -> Record:
        age = 0 if held.state in LIVE else min(self.now - held.since, (1 << 48) - 1)
        return Record(held.member, held.incarnation, held.state, held.address, held.facts, age)

    def merge(self, record: Record, teller: ShortId | None) -> list[Outcome]:
        """Take over what *teller*, if he is known, holds of a member.

        Its word that somebody is dead is a doubt for us: we probe, and one failure is then
        enough. One confused member must not bury others (memberlist's rule, but there the
        suspicion goes to everybody, and here the living are not troubled).
        """
        alive = Alive(record.member, record.incarnation, record.address, record.facts)
        if record.member == self.me.member:
            if record.state is State.ALIVE:
                return self._hear_of_myself(alive)
            return self.believed(record.state, record.incarnation)
        match record.state:
            case State.ALIVE:
                return self._hear_alive(alive, teller)
            case State.SUSPECT:
                return [*self._hear_alive(alive, teller), *self._doubt(record)]
            case State.DEAD | State.LEFT:
                return self._merge_gone(record, alive, teller)
            case _:
                assert_never(record.state)

    def _merge_gone(self, record: Record, alive: Alive, teller: ShortId | None) -> list[Outcome]:
        held = self.table.get(record.member)
        if held is None:
            return self._remember_gone(record, teller)
        if not supersedes(record.incarnation, record.state, held):
            return []
        if record.state is State.LEFT:
            rumour = Left(held.short, record.incarnation)
            return self._hear_gone(rumour, State.LEFT, Reason.LEFT, None)
        if held.state in LIVE:
            return [*self._hear_alive(alive, teller), *self._doubt(record)]
        self.table.put(dataclasses.replace(held, incarnation=record.incarnation))
        return []

    def _remember_gone(self, record: Record, teller: ShortId | None) -> list[Outcome]:
        """Enter one who was gone before we came: whoever heals a cut pings it."""
        if record.age > self._config.reap_after - REAP_MARGIN:
            return []
        refusal = self._refuse_newcomer(record.member, record.address)
        if refusal is not None:
            return refusal
        entry = Member(
            record.member,
            record.incarnation,
            record.state,
            record.address,
            record.facts,
            self.now - record.age,
        )
        self.table.put(entry)
        reason = Reason.LEFT if record.state is State.LEFT else Reason.TOLD
        return [self._changed(entry, None, reason, teller)]

    def _doubt(self, record: Record) -> list[Outcome]:
        held = self.table.get(record.member)
        if held is None or not supersedes(record.incarnation, record.state, held):
            return []
        return [Doubtful(record.member, record.state)]

    # Helpers.

    def _member_of(self, alive: Alive) -> Member:
        return Member(
            alive.member, alive.incarnation, State.ALIVE, alive.address, alive.facts, self.now
        )

    @staticmethod
    def _changed(
        record: Member, held: Member | None, reason: Reason, by: ShortId | None = None
    ) -> Changed:
        before = None if held is None else held.state
        return Changed(
            record.member, before, record.state, reason, record.incarnation, record.address, by
        )


def _reason_to_live(alive: Alive, held: Member | None) -> Reason | None:
    """Return how it came that a member is alive; None when nothing is new but a number."""
    if held is None:
        return Reason.JOINED
    if held.state not in LIVE:
        return Reason.RETURNED
    if boot_of(alive.incarnation) != boot_of(held.incarnation):
        return Reason.RESTARTED
    if held.state is State.SUSPECT:
        return Reason.REFUTED
    if (alive.address, alive.facts) != (held.address, held.facts):
        return Reason.UPDATED
    return None
