"""The state machine of one member: SWIM (Das et al. 2002) with Lifeguard (Dadgar et al. 2017).

Pure: no socket, no clock, no randomness of its own. The shell calls step() with each thing that
happens and performs the actions that come back, in order. Time is a count of ticks.

Here stand the door, the rhythm of a tick and the answers to packets. The rules about members
are in membership.py, probes in probing.py, joining and healing in contacts.py, changes of
address in moves.py, the queue of rumours in dissemination.py.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import assert_never

from swarmlet.swim.antientropy import bucket_count, differing, frames
from swarmlet.swim.awareness import Awareness
from swarmlet.swim.config import OVERHEAD_BYTES, PAYLOAD_BYTES_MAX, Config, ticks
from swarmlet.swim.contacts import Contacts
from swarmlet.swim.dissemination import Budget, Queue
from swarmlet.swim.events import (
    Action,
    Answer,
    Broadcast,
    Changed,
    Configure,
    Delivered,
    Doubt,
    Event,
    Join,
    Leave,
    LeaveComplete,
    OpenSync,
    Paused,
    Reason,
    Received,
    Refused,
    Send,
    SetAddress,
    SetFacts,
    SetKnown,
    StreamAnswered,
    StreamConnected,
    StreamFailed,
    StreamPinged,
    Synced,
    SyncFailed,
    Tick,
    Verified,
)
from swarmlet.swim.members import LIVE, Table
from swarmlet.swim.membership import Doubtful, Membership, Outcome
from swarmlet.swim.messages import (
    ANYBODY,
    DIGEST_BYTES,
    SEQUENCE_MAX,
    Ack,
    Address,
    Alive,
    Left,
    MemberId,
    Message,
    Nack,
    Ping,
    PingReq,
    Record,
    Rumour,
    ShortId,
    State,
    SyncDigest,
    SyncRecords,
    UserEvent,
    check_address,
    check_facts,
    short_id,
    size_of,
)
from swarmlet.swim.moves import Moved, Moves
from swarmlet.swim.probing import ProbeFailed, Prober, Relays
from swarmlet.swim.suspicion import Suspicion
from swarmlet.swim.userevents import UserEvents

#: Exchanges of ours that may run at a time.
SYNCS_MAX = 3
#: Ticks after a join at which the new table is compared again: what was told to the seed
#: meanwhile may have missed us.
SYNCS_AFTER_JOIN = (ticks(1), ticks(5))
#: Ticks between two looks for members to forget.
REAP_EVERY = ticks(60)
#: Longest sleep of a member that has nothing to do: one second.
QUIET_MAX = ticks(1)
#: The core's sequences use the lower half, the shell's (Gossip.confirm) the upper one.
SEQUENCE_SPACE = (SEQUENCE_MAX >> 1) + 1


class Swim:
    """One member's view of the group.

    Args:
        boot: number of this start, higher than at any start before.
        sequence: first sequence of a ping; a random one makes old answers useless to whoever
            recorded them.
        rng: source of every random choice, so that a seed replays a run.
    """

    def __init__(
        self,
        *,
        member: MemberId,
        address: Address,
        facts: bytes,
        boot: int,
        config: Config,
        rng: random.Random,
        sequence: int = 0,
    ) -> None:
        self._config = config
        self._rng = rng
        self._queue = Queue()
        self._awareness = Awareness(config.awareness_max)
        self._budget = Budget(config.rate_bytes)
        sequences = (number % SEQUENCE_SPACE for number in itertools.count(sequence))
        self._moves = Moves(config=config, sequences=sequences)
        self._membership = Membership(
            member=member,
            address=address,
            facts=facts,
            boot=boot,
            config=config,
            awareness=self._awareness,
            queue=self._queue,
            moves=self._moves,
        )
        self._prober = Prober(
            table=self.table,
            awareness=self._awareness,
            config=config,
            rng=rng,
            sequences=sequences,
        )
        self._relays = Relays(table=self.table, config=config, sequences=sequences)
        self._contacts = Contacts(table=self.table, config=config, rng=rng, sequences=sequences)
        self._user_events = UserEvents()
        self._ticks_to_gossip = rng.randint(1, config.gossip_period)
        self._recent_dead: dict[MemberId, int] = {}  # told of rumours until this tick
        self._syncs_running = 0
        self._sync_due = [rng.randint(1, config.sync_period)]
        self._synced_at = -config.sync_extra
        self._leave_by: int | None = None
        self._left = False
        #: Packets that the budget of bytes kept back.
        self.held_back = 0

    # Questions: for the shell's snapshots and for exchanges.

    @property
    def me(self) -> Alive:
        return self._membership.me

    @property
    def table(self) -> Table:
        return self._membership.table

    @property
    def now(self) -> int:
        return self._membership.now

    @property
    def config(self) -> Config:
        return self._config

    @property
    def score(self) -> int:
        """Local health: 0 is well."""
        return self._awareness.score

    @property
    def rumours(self) -> int:
        return len(self._queue)

    @property
    def rumours_dropped(self) -> int:
        return self._queue.dropped

    def suspicion(self, member: MemberId) -> Suspicion | None:
        return self._membership.suspicions.get(member)

    def quiet_ticks(self) -> int:
        """Return how many ticks from now the next one is that may do something, QUIET_MAX at most.

        The shell may sleep so long, if nothing else happens, and give all ticks at once. An
        idle member wakes up twice a second then, not ten times.
        """
        if self._leave_by is not None:
            return 1
        due = [
            QUIET_MAX,
            REAP_EVERY - self.now % REAP_EVERY,
            min(self._sync_due) - self.now,
            *self._prober.waits(),
            *self._relays.waits(),
            *self._contacts.waits(),
            *self._moves.waits(),
            *self._membership.waits(),
        ]
        if self._queue:
            due.append(self._ticks_to_gossip)
        return max(1, min(due))

    def sync_digest(self) -> SyncDigest:
        """Return the message that opens an exchange of ours."""
        digests = self.table.digests(bucket_count(len(self.table)))
        return SyncDigest(self._own_record(), digests)

    def sync_answer(self, digest: SyncDigest) -> Iterator[SyncRecords]:
        """Return our side of the exchange that *digest* opens."""
        count = len(digest.digests) // DIGEST_BYTES
        buckets = differing(self.table.digests(count), digest.digests)
        return frames(self._records(buckets, count), buckets)

    def sync_rest(self, digest: SyncDigest, buckets: bytes) -> Iterator[SyncRecords]:
        """Return our records in the *buckets* that the answer to *digest* named."""
        return frames(self._records(buckets, len(digest.digests) // DIGEST_BYTES))

    def _records(self, buckets: bytes, count: int) -> list[Record]:
        return [self._membership.to_record(r) for r in self.table.in_buckets(buckets, count)]

    def _own_record(self) -> Record:
        return self._membership.to_record(self._membership.own)

    # The door.

    def step(self, event: Event) -> list[Action]:
        """Take note of *event* and return what is to be done, in order."""
        if self._left:
            return []
        actions = self._settle(self._react(event))
        return [done for action in actions if (done := self._admit(action)) is not None]

    def _react(self, event: Event) -> Sequence[Outcome]:
        match event:
            case Tick(missed):
                return self._tick(missed)
            case Received(sender, source, messages):
                return self._receive(sender, source, messages)
            case Refused(address):
                return self._refused(address)
            case StreamAnswered(sequence, record):
                self._membership.heard_at = self.now
                merged = self._membership.merge(record, short_id(record.member))
                return [*merged, *self._prober.stream_answered(sequence)]
            case StreamConnected(sequence):
                return self._prober.stream_connected(sequence)
            case StreamFailed(sequence, evidence):
                return self._prober.stream_failed(sequence, evidence)
            case StreamPinged(ping):
                return self._stream_pinged(ping)
            case Synced():
                return self._synced(event)
            case SyncFailed():
                self._syncs_running -= 1
                return []
            case Verified(member, address, genuine):
                return self._moves.verified(member, address, genuine=genuine)
            case Broadcast(name, payload):
                user_event = self._user_events.create(self._membership.short, name, payload)
                self._queue.put(user_event)
                return [Delivered(user_event)]
            case Leave():
                return self._leave()
            case _:
                self._set(event)
                return []

    def _set(self, event: Join | SetKnown | SetFacts | SetAddress | Configure | Doubt) -> None:
        """Take note of what changes later steps only."""
        match event:
            case Join(addresses):
                self._contacts.join(addresses, self.me.address)
            case SetKnown(members):
                self._contacts.set_known(members)
            case SetFacts(facts):
                check_facts(facts)
                self._membership.become(self.me.address, facts)
            case SetAddress(address):
                check_address(address)
                self._membership.become(address, self.me.facts)
            case Configure(config):
                self._configure(config)
            case Doubt(member):
                held = self.table.get(member)
                if held is not None and held.state is State.DEAD:
                    self._contacts.call(member)
                elif member != self.me.member:
                    self._prober.doubt(member, State.ALIVE)
            case _:
                assert_never(event)

    def _configure(self, config: Config) -> None:
        self._config = config
        for part in (self._membership, self._prober, self._relays, self._contacts, self._moves):
            part.configure(config)
        self._awareness.configure(config.awareness_max)
        self._budget.configure(config.rate_bytes)
        self._ticks_to_gossip = min(self._ticks_to_gossip, config.gossip_period)
        self._sync_due = [min(due, self.now + config.sync_period) for due in self._sync_due]

    def _settle(self, outcomes: Sequence[Outcome]) -> list[Action]:
        """Draw the conclusions from *outcomes*, and from what follows from them."""
        actions: list[Action] = []
        for outcome in outcomes:
            if isinstance(outcome, ProbeFailed):
                actions += self._settle(self._membership.probe_failed(outcome))
            elif isinstance(outcome, Moved):
                actions += self._settle(self._membership.moved(outcome.alive))
            elif isinstance(outcome, Doubtful):
                self._prober.doubt(outcome.member, outcome.claimed)
            else:
                if isinstance(outcome, Changed):
                    self._follow(outcome)
                actions.append(outcome)
        return actions

    def _follow(self, changed: Changed) -> None:
        """Do what a change in the table asks of the other parts."""
        member = changed.member
        came = changed.after in LIVE and changed.before not in LIVE
        died = changed.after is State.DEAD and changed.before in LIVE
        if came:
            self._prober.add(member)
        if came or died:
            self._sync_soon()
        self._recent_dead.pop(member, None)
        if died:
            self._recent_dead[member] = self.now + self._config.gossip_to_dead
        if changed.reason is Reason.ACCUSED:
            # All confirm in their own time; some at once. More at once would be a flood.
            others = max(1, self.table.live - 2)
            if self._rng.random() * others < self._config.confirmers:
                self._prober.doubt(member, State.SUSPECT)

    def _admit(self, action: Action) -> Action | None:
        """Return what becomes of *action* within our limits; None when it must not be done."""
        match action:
            case Send():
                return self._load(action)
            case OpenSync():
                if self._syncs_running >= SYNCS_MAX:
                    return None
                self._syncs_running += 1
                self._synced_at = self.now
        return action

    def _load(self, send: Send) -> Send | None:
        """Let rumours ride on a packet, and pay for it."""
        size = sum(map(size_of, send.messages))
        if self._budget.rumours_allowed:
            rumours = self._queue.take(
                room=PAYLOAD_BYTES_MAX - size,
                count=self._config.rumours_per_packet,
                limit=self._config.retransmit_limit(self.table.live),
                told=send.messages,
            )
            if rumours:
                size += sum(map(size_of, rumours))
                send = Send(send.to, (*send.messages, *rumours))
        if not send.messages:
            return None
        if not self._budget.spend(size + OVERHEAD_BYTES):
            self.held_back += 1
            return None
        return send

    # Time.

    def _tick(self, missed: int) -> list[Outcome]:
        self._membership.now += 1
        self._budget.tick()
        outcomes: list[Outcome] = []
        if missed >= self._config.pause():
            outcomes += self._pause(missed)
        elif missed >= self._config.ack_timeout:
            self._awareness.add(1)
        if self._leave_by is None:
            outcomes += self._prober.tick()
            outcomes += self._moves.tick()
            outcomes += self._contacts.tick(self.me)
            outcomes += self._membership.expire()
            outcomes += self._sync()
        outcomes += self._relays.tick()
        outcomes += self._gossip()
        if self._leave_by is not None:
            outcomes += self._finish_leave(self._leave_by)
        if self.now % REAP_EVERY == 0:
            outcomes += self._reap()
        return outcomes

    def _pause(self, missed: int) -> list[Outcome]:
        """A paused observer must not accuse: what it waited for may have come and gone."""
        self._awareness.distrust()
        self._prober.abandon()
        self._relays.abandon()
        self._membership.restart_suspicions()
        return [Paused(missed)]

    def _gossip(self) -> list[Outcome]:
        self._ticks_to_gossip -= 1
        if self._ticks_to_gossip > 0:
            return []
        self._ticks_to_gossip = self._config.gossip_period
        if not self._queue:
            return []
        # Empty packets: _load fills them, or drops them when there is no budget.
        return [Send(address, ()) for address in self._gossip_targets()]

    def _gossip_targets(self) -> list[Address]:
        targets = self.table.sample(self._rng, self._config.gossip_fanout, lambda record: True)
        addresses = [record.address for record in targets]
        self._recent_dead = {m: t for m, t in self._recent_dead.items() if t > self.now}
        if self._recent_dead:
            # The dead take their share of the places, in case they are not.
            share = len(self._recent_dead) / (len(self._recent_dead) + self.table.live)
            if self._rng.random() < share * self._config.gossip_fanout:
                record = self.table.get(self._rng.choice(list(self._recent_dead)))
                assert record is not None
                addresses[-1:] = [record.address]
        return addresses

    def _sync(self) -> list[Outcome]:
        if not any(due <= self.now for due in self._sync_due):
            return []
        self._sync_due = [due for due in self._sync_due if due > self.now]
        if not self._sync_due:
            period = self._config.sync_ticks(self.table.live)
            # A tenth of jitter keeps members that started together apart.
            self._sync_due = [self.now + period + self._rng.randint(0, period // 10)]
        peers = self.table.sample(self._rng, 1, lambda record: record.state is State.ALIVE)
        return [OpenSync(peer.member, peer.address) for peer in peers]

    def _sync_soon(self) -> None:
        """Have one extra exchange: a rumour lost now would else wait for the next period."""
        extra = self._config.sync_extra
        due = max(self.now + self._rng.randint(0, extra), self._synced_at + extra)
        if not any(planned <= due for planned in self._sync_due):
            self._sync_due.append(due)

    def _synced(self, event: Synced) -> list[Outcome]:
        self._membership.heard_at = self.now
        if event.final:
            self._syncs_running -= 1
        outcomes: list[Outcome] = []
        teller = None if event.peer is None else short_id(event.peer)
        for record in event.records:
            outcomes += self._membership.merge(record, teller)
        return outcomes

    def _reap(self) -> list[Outcome]:
        oldest = self.now - self._config.reap_after
        outcomes: list[Outcome] = []
        for held in list(self.table):
            gone = held.state not in LIVE and held.since <= oldest
            if gone and not self._contacts.knows(held.member):
                outcomes += self._membership.forget(held)
        return outcomes

    # Leaving.

    def _leave(self) -> list[Outcome]:
        if self._leave_by is None:
            self._leave_by = self.now + self._config.leave_timeout
            self._membership.leaving = True
            # Everything else is other people's news now, and they have it.
            self._queue.clear()
            self._queue.put(Left(self._membership.short, self.me.incarnation))
            self._ticks_to_gossip = 1
        return []

    def _finish_leave(self, leave_by: int) -> list[Outcome]:
        self._ticks_to_gossip = 1  # a round in every tick: somebody waits
        if self.now < leave_by and self._queue and self.table.live > 1:
            return []
        self._left = True
        return [LeaveComplete()]

    # Packets.

    def _receive(
        self, sender: ShortId, source: Address, messages: Sequence[Message]
    ) -> list[Outcome]:
        self._membership.heard_at = self.now
        outcomes: list[Outcome] = []
        # News first: the answers below then rest on what the sender has just told.
        for message in messages:
            if isinstance(message, UserEvent):
                outcomes += self._hear_user_event(message)
            elif isinstance(message, Rumour):
                outcomes += self._membership.hear(message, sender)
        for message in messages:
            match message:
                case Ping():
                    outcomes += self._pinged(sender, source, message)
                case PingReq():
                    outcomes += self._relays.ask(source, message)
                case Ack():
                    outcomes += self._acked(sender, source, message)
                case Nack(sequence, refused):
                    outcomes += self._prober.nacked(sender, sequence, refused=refused)
                case _:
                    pass  # a rumour, heard above
        return outcomes

    def _hear_user_event(self, event: UserEvent) -> list[Outcome]:
        if not self._user_events.witness(event):
            return []
        self._queue.put(event)
        return [Delivered(event)]

    def _pinged(self, sender: ShortId, source: Address, ping: Ping) -> list[Outcome]:
        if ping.target not in (self._membership.short, ANYBODY):
            return []  # this address was another member's once
        outcomes = self._membership.believed(ping.state, ping.incarnation)
        reply: list[Message] = [Ack(ping.sequence, self.me.incarnation)]
        if ping.incarnation < self.me.incarnation:
            reply.append(self.me)
        # The buddy system the other way round: who pings us from the grave is told so.
        held = self.table.find(sender)
        if held is not None and held.state is not State.ALIVE:
            reply.append(self._membership.obituary(held))
        return [*outcomes, Send(source, tuple(reply))]

    def _stream_pinged(self, ping: Ping) -> list[Outcome]:
        if ping.target not in (self._membership.short, ANYBODY):
            return []
        outcomes = self._membership.believed(ping.state, ping.incarnation)
        return [*outcomes, Answer(self._own_record())]

    def _acked(self, sender: ShortId, source: Address, ack: Ack) -> list[Outcome]:
        if self._contacts.acked(ack.sequence):
            held = self.table.find(sender)
            self._sync_due += [self.now + after for after in SYNCS_AFTER_JOIN]
            return [OpenSync(held.member if held else None, source)]
        return [
            *self._prober.acked(sender, ack.sequence),
            *self._relays.acked(sender, ack),
            *self._moves.acked(sender, ack.sequence),
        ]

    def _refused(self, address: Address) -> list[Outcome]:
        held = self.table.at(address)
        if held is not None and held.state in LIVE and not self._prober.probing(held.member):
            # The refused packet was no probe: a probe finds out.
            self._prober.doubt(held.member, State.ALIVE)
        return [
            *self._prober.refused(address),
            *self._relays.refused(address),
            *self._moves.refused(address),
        ]
