"""Probes: who is asked when, and when silence is a failure (SWIM 3.1, 4.3; Lifeguard).

Pure. A probe is first a ping. Without an answer in time it becomes indirect: some helpers ping
the target, and so does a stream, which gets through where datagrams are dropped. Any one
answer ends it well.

One regular probe starts every period, round robin over a shuffled list. Probes out of turn look
into a doubt: a suspicion or a death that others report, a refused packet, a closed session.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from swarmlet.swim.awareness import Awareness
from swarmlet.swim.config import Config
from swarmlet.swim.events import Action, Send, StreamPing
from swarmlet.swim.members import LIVE, Member, Table
from swarmlet.swim.messages import (
    Ack,
    Address,
    Alive,
    Evidence,
    MemberId,
    Message,
    Nack,
    Ping,
    PingReq,
    ShortId,
    State,
)

#: Doubts that wait; one more is dropped, and round robin comes to its member anyway.
DOUBTS_MAX = 1024
#: Probes out of turn that may start in one tick.
DOUBTS_PER_TICK = 4
#: Pings that run for others.
RELAYS_MAX = 64


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """*target* answered neither us nor a helper nor the stream.

    *incarnation*: what it had when the probe began; a refutation since then stands above.
    *evidence*: REFUSED only if its host refused a helper as well as us.
    *claimed*: the state that the doubt came with.
    """

    target: MemberId
    incarnation: int
    evidence: Evidence
    claimed: State


Outcome: TypeAlias = Action | ProbeFailed


@dataclass(slots=True)
class Probe:
    target: MemberId
    address: Address
    ping: Ping
    claimed: State
    ticks_left: int
    indirect: bool = False
    refused: bool = False  # our own ping, or the stream
    connected: bool = False  # the host took the stream
    stream_over: bool = False
    helpers: frozenset[ShortId] = frozenset()
    nacks: set[ShortId] = field(default_factory=set)
    helper_refused: bool = False

    @property
    def unanswered_by_all(self) -> bool:
        return self.indirect and self.stream_over and len(self.nacks) == len(self.helpers)

    @property
    def evidence(self) -> Evidence:
        # One refusal may be a firewall's between us two; that of a helper as well is none.
        if self.refused and (self.helper_refused or not self.helpers):
            return Evidence.REFUSED
        return Evidence.STALLED if self.connected else Evidence.SILENT


class Prober:
    """All probes of this member. *sequences* are never repeated."""

    def __init__(
        self,
        *,
        table: Table,
        awareness: Awareness,
        config: Config,
        rng: random.Random,
        sequences: Iterator[int],
    ) -> None:
        self._table = table
        self._awareness = awareness
        self._config = config
        self._rng = rng
        self._sequences = sequences
        self._probes: dict[int, Probe] = {}
        self._doubts: dict[MemberId, State] = {}
        self._round: list[MemberId] = []
        # Spread over the first period: a cluster started at once must not probe in step.
        self._ticks_to_probe = rng.randint(1, config.probe_period)

    def configure(self, config: Config) -> None:
        self._config = config
        self._ticks_to_probe = min(
            self._ticks_to_probe, self._awareness.stretch(config.probe_period)
        )

    def tick(self) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for sequence in list(self._probes):
            probe = self._probes[sequence]
            probe.ticks_left -= 1
            if probe.ticks_left <= 0:
                outcomes += self._time_out(sequence, probe)
        self._ticks_to_probe -= 1
        if self._ticks_to_probe <= 0:
            self._ticks_to_probe = self._awareness.stretch(self._config.probe_period)
            outcomes += self._probe_next()
        for member in list(self._doubts)[:DOUBTS_PER_TICK]:
            claimed = self._doubts.pop(member)
            record = self._table.get(member)
            if record is not None and record.state in LIVE:
                outcomes += self._start(record, claimed)
        return outcomes

    def waits(self) -> list[int]:
        """Return in how many ticks each thing that waits is due."""
        waits = [probe.ticks_left for probe in self._probes.values()]
        return [*waits, 1 if self._doubts else self._ticks_to_probe]

    def add(self, member: MemberId) -> None:
        """Let *member* have its turn in this round, at a random place in it (SWIM 4.3)."""
        if member not in self._round:
            self._round.insert(self._rng.randint(0, len(self._round)), member)

    def doubt(self, member: MemberId, claimed: State) -> None:
        """Probe *member* out of turn, unless that is being done."""
        if self.probing(member):
            return
        if member in self._doubts or len(self._doubts) < DOUBTS_MAX:
            self._doubts[member] = max(claimed, self._doubts.get(member, State.ALIVE))

    def probing(self, member: MemberId) -> bool:
        return any(probe.target == member for probe in self._probes.values())

    def abandon(self) -> None:
        """Give up all probes without a verdict."""
        self._probes.clear()

    def acked(self, sender: ShortId, sequence: int) -> list[Outcome]:
        """A late or repeated Ack is normal on UDP: it is no probe's, so nothing changes."""
        probe = self._probes.get(sequence)
        if probe is None or (sender != probe.ping.target and sender not in probe.helpers):
            return []
        return self._succeed(sequence)

    def nacked(self, sender: ShortId, sequence: int, *, refused: bool) -> list[Outcome]:
        probe = self._probes.get(sequence)
        if probe is None or sender not in probe.helpers:
            return []
        probe.nacks.add(sender)
        probe.helper_refused |= refused
        return self._fail_if_settled(sequence, probe)

    def refused(self, address: Address) -> list[Outcome]:
        """Go indirect at once: waiting for an answer has become pointless."""
        outcomes: list[Outcome] = []
        for sequence, probe in list(self._probes.items()):
            if probe.address == address and not probe.refused:
                probe.refused = True
                if not probe.indirect:
                    outcomes += self._go_indirect(probe, self._config.ack_timeout)
                outcomes += self._fail_if_settled(sequence, probe)
        return outcomes

    def stream_answered(self, sequence: int) -> list[Outcome]:
        return self._succeed(sequence) if sequence in self._probes else []

    def stream_connected(self, sequence: int) -> list[Outcome]:
        probe = self._probes.get(sequence)
        if probe is not None:
            probe.connected = True
        return []

    def stream_failed(self, sequence: int, evidence: Evidence) -> list[Outcome]:
        probe = self._probes.get(sequence)
        if probe is None:
            return []
        probe.stream_over = True
        probe.connected = evidence is Evidence.STALLED
        probe.refused |= evidence is Evidence.REFUSED
        return self._fail_if_settled(sequence, probe)

    def _probe_next(self) -> list[Outcome]:
        # At most one new round: an empty table ends the loop.
        for _ in range(2):
            while self._round:
                record = self._table.get(self._round.pop())
                if record is not None and record.state in LIVE:
                    return self._start(record, record.state)
            self._round = self._table.others()
            self._rng.shuffle(self._round)
        return []

    def _start(self, record: Member, claimed: State) -> list[Outcome]:
        sequence = next(self._sequences)
        state = max(claimed, record.state)
        ping = Ping(sequence, record.short, record.incarnation, state)
        self._probes[sequence] = Probe(
            record.member,
            record.address,
            ping,
            claimed,
            self._awareness.stretch(self._config.ack_timeout),
        )
        return [Send(record.address, (ping,))]

    def _time_out(self, sequence: int, probe: Probe) -> list[Outcome]:
        if probe.indirect:
            return self._fail(sequence, probe)
        return self._go_indirect(probe, self._config.probe_period - self._config.ack_timeout)

    def _go_indirect(self, probe: Probe, wait: int) -> list[Outcome]:
        helpers = self._table.sample(
            self._rng,
            self._config.helpers,
            lambda record: record.state is State.ALIVE and record.member != probe.target,
        )
        probe.indirect = True
        probe.helpers = frozenset(helper.short for helper in helpers)
        probe.ticks_left = self._awareness.stretch(wait)
        ping = probe.ping
        request = PingReq(ping.sequence, ping.target, ping.incarnation, ping.state)
        return [
            *(Send(helper.address, (request,)) for helper in helpers),
            StreamPing(probe.target, probe.address, ping, probe.ticks_left),
        ]

    def _succeed(self, sequence: int) -> list[Outcome]:
        del self._probes[sequence]
        self._awareness.add(-1)
        return []

    def _fail_if_settled(self, sequence: int, probe: Probe) -> list[Outcome]:
        return self._fail(sequence, probe) if probe.unanswered_by_all else []

    def _fail(self, sequence: int, probe: Probe) -> list[Outcome]:
        del self._probes[sequence]
        if probe.helpers:
            # Helpers that answered prove that we can be heard; the missing ones are a doubt
            # about us (Lifeguard section IV.A).
            self._awareness.add(len(probe.helpers) - len(probe.nacks))
        elif not probe.refused:
            self._awareness.add(1)
        return [ProbeFailed(probe.target, probe.ping.incarnation, probe.evidence, probe.claimed)]


@dataclass(slots=True)
class Relay:
    asker: Address
    asked: PingReq
    address: Address
    ticks_left: int


class Relays:
    """Pings that run for other members: the helper's side of an indirect probe."""

    def __init__(self, *, table: Table, config: Config, sequences: Iterator[int]) -> None:
        self._table = table
        self._config = config
        self._sequences = sequences
        self._relays: dict[int, Relay] = {}

    def configure(self, config: Config) -> None:
        self._config = config

    def ask(self, source: Address, request: PingReq) -> list[Action]:
        record = self._table.find(request.target)
        if record is None or len(self._relays) >= RELAYS_MAX:
            return [Send(source, (Nack(request.sequence),))]
        sequence = next(self._sequences)
        self._relays[sequence] = Relay(source, request, record.address, self._config.nack_timeout)
        return [
            Send(
                record.address,
                (Ping(sequence, request.target, request.incarnation, request.state),),
            )
        ]

    def acked(self, sender: ShortId, ack: Ack) -> list[Action]:
        relay = self._relays.get(ack.sequence)
        if relay is None or sender != relay.asked.target:
            return []
        del self._relays[ack.sequence]
        messages: list[Message] = [Ack(relay.asked.sequence, ack.incarnation)]
        record = self._table.find(relay.asked.target)
        # The asker may be cut from the target: its refutation comes by us.
        if record is not None and record.incarnation > relay.asked.incarnation:
            messages.append(Alive(record.member, record.incarnation, record.address, record.facts))
        return [Send(relay.asker, tuple(messages))]

    def refused(self, address: Address) -> list[Action]:
        return self._end(lambda relay: relay.address == address, refused=True)

    def tick(self) -> list[Action]:
        for relay in self._relays.values():
            relay.ticks_left -= 1
        return self._end(lambda relay: relay.ticks_left <= 0, refused=False)

    def waits(self) -> list[int]:
        return [relay.ticks_left for relay in self._relays.values()]

    def abandon(self) -> None:
        self._relays.clear()

    def _end(self, over: Callable[[Relay], bool], *, refused: bool) -> list[Action]:
        actions: list[Action] = []
        for sequence, relay in list(self._relays.items()):
            if over(relay):
                del self._relays[sequence]
                actions.append(Send(relay.asker, (Nack(relay.asked.sequence, refused),)))
        return actions
