"""Gossip: the shell around the core. Owns one UDP socket, the ticks and one Swim.

Trio. Whatever happens ends in _take, which is sync: one step of the core and all its actions,
without a checkpoint between them. So the core needs no lock and no queue.

An idle member sleeps over the ticks in which the core has nothing to do, and gives them
afterwards, before anything else.

Datagrams go through the socket's own calls, not through Trio's: a send must not wait (what the
kernel's buffer does not take is lost, as on any network), one wake-up takes all that has come,
and refused packets lie in the socket's error queue, which is no stream of data.
"""

from __future__ import annotations

import random
import secrets
import socket as stdlib_socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import trio

from swarmlet.swim import streams as conversations
from swarmlet.swim.config import PAYLOAD_BYTES_MAX, TICK, Config, ticks
from swarmlet.swim.core import SEQUENCE_SPACE, Swim
from swarmlet.swim.errorqueue import enable_refusals, read_refusals
from swarmlet.swim.events import (
    Action,
    Answer,
    Broadcast,
    Changed,
    Configure,
    Doubt,
    Event,
    Join,
    Leave,
    LeaveComplete,
    OpenSync,
    Received,
    Refused,
    Send,
    SetAddress,
    SetFacts,
    SetKnown,
    StreamPing,
    SyncFailed,
    Tick,
    Verify,
)
from swarmlet.swim.members import Member
from swarmlet.swim.messages import (
    SEQUENCE_MAX,
    Ack,
    Address,
    Alive,
    MemberId,
    Message,
    Ping,
    Record,
    ShortId,
    State,
    StreamMessage,
    UserEvent,
    boot_of,
    first_incarnation,
    short_id,
)
from swarmlet.swim.reports import Reports
from swarmlet.swim.sealing import (
    PACKET_BYTES_MAX,
    BadPacket,
    Keyring,
    OldBoot,
    Opener,
    Sealer,
    UnknownEpoch,
)
from swarmlet.swim.streams import FrameStream, Streams
from swarmlet.swim.views import MemberView, Reachability, Statistics, Transition

#: Packets taken in one go before others get their turn.
PACKETS_PER_TURN = 64
#: Conversations of ours that run at a time; further ones fail at once.
STREAMS_MAX = 32
#: Pings whose time of sending is remembered, for the round trip time.
PINGS_MAX = 256
#: Weight of a new sample in the smoothed round trip time (as TCP's, RFC 6298).
RTT_GAIN = 0.125
#: Seconds of suspend (boot clock less monotonic clock) that are no rounding.
SUSPEND_LEAST = 0.5
#: Seconds between two hints to members whose boot number is behind.
HINT_EVERY = 1.0


class Codec(Protocol):
    """Messages as bytes and back."""

    def encode(self, messages: Sequence[Message], /) -> bytes: ...

    def decode_untrusted(self, payload: bytes, /) -> Sequence[Message]:
        """Raises: ValueError, and nothing else, for whatever holds no messages."""
        ...


@dataclass(slots=True)
class Confirmation:
    """A ping outside of the protocol, and who waits for it."""

    target: ShortId
    address: Address
    outcome: Reachability = Reachability.SILENT
    over: trio.Event = field(default_factory=trio.Event)

    def end(self, outcome: Reachability) -> None:
        self.outcome = outcome
        self.over.set()


class Gossip:
    """This member of the group.

    Args:
        address: where the others reach us; the socket given to run() listens there.
        facts: up to 256 bytes that the others get to see.
        boot: number of this start, higher than at any start before. See also *boot* below.
        rng: a seed replays every choice, but for salts and sequences.
        boot_changed: called with a higher number for this start, before it is used.
    """

    def __init__(
        self,
        *,
        member: MemberId,
        address: Address,
        facts: bytes,
        boot: int,
        config: Config,
        keyring: Keyring,
        codec: Codec,
        streams: Streams,
        rng: random.Random,
        boot_changed: Callable[[int], None] = lambda boot: None,
    ) -> None:
        self.member = member
        self._codec = codec
        self._streams = streams
        self._core = Swim(
            member=member,
            address=address,
            facts=facts,
            boot=boot,
            config=config,
            rng=rng,
            sequence=secrets.randbelow(SEQUENCE_SPACE),
        )
        self._sealer = Sealer(keyring, short_id(member), boot)
        self._opener = Opener(keyring, short_id(member))
        self._keyring = keyring
        self._boot_changed = boot_changed
        self._socket: stdlib_socket.socket | None = None
        self._jobs: trio.Nursery | None = None
        self._streams_open = 0
        self._reports = Reports(self._name)
        self._confirmations: dict[int, Confirmation] = {}
        self._confirm_sequence = secrets.randbelow(SEQUENCE_SPACE)
        self._pings: dict[int, tuple[ShortId, float]] = {}
        self._rtt: dict[ShortId, float] = {}
        self._hinted_at = -HINT_EVERY
        self._left = trio.Event()
        # The core has had all ticks up to _ticked_at, and does nothing before _planned more.
        self._ticked_at = 0.0
        self._planned = 1
        self._sleep = trio.CancelScope()
        self._suspended = 0.0
        self._key_missing = trio.Event()
        self._members: Mapping[MemberId, MemberView] | None = None
        self._counts: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()

    # What others ask and say. Sync; call it from Trio's thread.

    @property
    def members(self) -> Mapping[MemberId, MemberView]:
        """All members that are known, this one included; frozen."""
        if self._members is None:
            views = {held.member: self._view(held) for held in self._core.table}
            self._members = MappingProxyType(views)
        return self._members

    @property
    def boot(self) -> int:
        """The number of this start, as the group counts.

        Higher than the one given when our disk is older than the group's memory (a restored
        backup). Whoever keeps the number keeps this one.
        """
        return boot_of(self._core.me.incarnation)

    def join(self, addresses: Sequence[Address]) -> None:
        """Contact the members at *addresses* (IP literals) until one has answered."""
        self._step(Join(tuple(addresses)))

    def set_known(self, members: Mapping[MemberId, Address]) -> None:
        """Say who belongs to the cluster: none of them is ever given up."""
        self._step(SetKnown(tuple(sorted(members.items()))))

    def set_facts(self, facts: bytes) -> None:
        self._step(SetFacts(facts))

    def set_address(self, address: Address) -> None:
        """Tell everybody that this member is reached at *address* now."""
        self._step(SetAddress(address))

    def configure(self, config: Config) -> None:
        self._step(Configure(config))

    def set_keys(self, keyring: Keyring) -> None:
        """Seal with *keyring*'s primary key, and take packets of all its epochs."""
        if keyring == self._keyring:
            return
        self._keyring = keyring
        self._sealer.set_keys(keyring)
        self._opener.set_keys(keyring)

    def doubt(self, member: MemberId) -> None:
        """Have *member* asked at once: its session closed, or opened while it counts as dead."""
        self._step(Doubt(member))

    def broadcast(self, name: str, payload: bytes) -> None:
        """Send a user's event to every member, this one included.

        Raises:
            ValueError: the name or the payload is too long.
        """
        self._step(Broadcast(name, payload))

    @contextmanager
    def subscribe(self) -> Iterator[trio.MemoryReceiveChannel[Transition]]:
        """Yield a channel of all transitions from now on.

        A subscriber who is reports.WAITING_MAX behind misses the next ones. He has others to wake
        him, so whoever looks at *members* after each misses nothing.
        """
        with self._reports.subscribe() as channel:
            yield channel

    @contextmanager
    def subscribe_user_events(self) -> Iterator[trio.MemoryReceiveChannel[UserEvent]]:
        """Yield a channel of users' events from now on; each comes at most once."""
        with self._reports.subscribe_user_events() as channel:
            yield channel

    async def confirm(self, member: MemberId, address: Address, *, timeout: float) -> Reachability:  # noqa: ASYNC109 (running out is an outcome)
        """Ping *member* at *address*, beside the protocol, and return what came of it.

        No verdict of gossip's follows. The ping says what is held of the member, so a suspect
        that hears it refutes.
        """
        self._confirm_sequence = (self._confirm_sequence + 1) % SEQUENCE_SPACE
        sequence = SEQUENCE_SPACE + self._confirm_sequence
        assert sequence <= SEQUENCE_MAX
        confirmation = Confirmation(short_id(member), address)
        held = self._core.table.get(member)
        incarnation, state = (0, State.ALIVE) if held is None else (held.incarnation, held.state)
        self._confirmations[sequence] = confirmation
        try:
            with trio.move_on_after(timeout):
                self._send(Send(address, (Ping(sequence, short_id(member), incarnation, state),)))
                await confirmation.over.wait()
        finally:
            del self._confirmations[sequence]
        return confirmation.outcome

    async def wait_key_missing(self) -> None:
        """Wait until a packet comes that names a newer epoch than our keyring has.

        The packet is not authentic: a reason to ask the managers, no more.
        """
        await self._key_missing.wait()

    async def leave(self) -> None:
        """Tell the others that this member goes; takes leave_timeout at most. Then silence."""
        self._step(Leave())
        if self._jobs is not None:
            with trio.move_on_after((self._core.config.leave_timeout + ticks(1)) * TICK):
                await self._left.wait()
        else:
            await trio.lowlevel.checkpoint()

    async def serve_sync(self, stream: FrameStream, first: StreamMessage | None = None) -> None:
        """Answer one conversation of another member; the caller closes *stream*.

        Args:
            first: the first message, if it was received already.

        Raises:
            trio.TooSlowError, streams.STREAM_ERRORS: the peer's fault or the world's.
        """
        await conversations.serve(stream, self._core, self._step, first)

    def statistics(self) -> Statistics:
        states = Counter(held.state for held in self._core.table)
        counts = self._counts
        return Statistics(
            members=MappingProxyType({state: states[state] for state in State}),
            health=self._core.score,
            rumours_queued=self._core.rumours,
            rumours_dropped=self._core.rumours_dropped,
            suspicions=states[State.SUSPECT],
            streams_open=self._streams_open,
            packets_sent=counts["packets_sent"],
            packets_received=counts["packets_received"],
            bytes_sent=counts["bytes_sent"],
            bytes_received=counts["bytes_received"],
            send_errors=counts["send_errors"],
            held_back=self._core.held_back,
            rejected=MappingProxyType(dict(self._rejected)),
            refusals=counts["refusals"],
            syncs=counts["syncs"],
            syncs_failed=counts["syncs_failed"],
            refutations=self._reports.refutations,
            pauses=self._reports.pauses,
            ticks_missed=counts["ticks_missed"],
            transitions_lost=self._reports.lost,
            conflicts=tuple(self._reports.conflicts.values()),
        )

    # The loops.

    async def run(
        self,
        socket: trio.socket.SocketType,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve *socket*, bound and of UDP, until cancelled. It stays the caller's to close."""
        assert self._socket is None, "one run at a time"
        with stdlib_socket.socket(fileno=stdlib_socket.dup(socket.fileno())) as own:
            own.setblocking(False)
            enable_refusals(own)
            self._socket = own
            try:
                async with trio.open_nursery() as self._jobs:
                    self._ticked_at = trio.current_time()
                    self._suspended = _suspended()
                    self._plan()
                    self._jobs.start_soon(self._receive_forever, own)
                    self._jobs.start_soon(self._tick_forever)
                    task_status.started()
            finally:
                self._socket = None
                self._jobs = None

    async def _receive_forever(self, own: stdlib_socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(own)
            self._tick()
            self._drain(own)
            self._read_refusals(own)

    async def _tick_forever(self) -> None:
        while True:
            self._sleep = trio.CancelScope(deadline=self._wake_at())
            with self._sleep:
                await trio.sleep_forever()
            self._tick()

    def _asleep(self) -> float:
        """Return the seconds that the core has not been told of yet."""
        return 0.0 if self._socket is None else trio.current_time() - self._ticked_at

    def _wake_at(self) -> float:
        return self._ticked_at + self._planned * TICK

    def _tick(self) -> None:
        """Give the core the ticks that have passed.

        First those in which it does nothing, so that what has come meanwhile counts from now.
        Then, if it is time for more, all packets that have come: nobody is accused whose answer
        waits. Then one Tick, which also says how many were missed since the planned one.
        """
        assert self._socket is not None
        passed = int((trio.current_time() - self._ticked_at) / TICK + 1e-6)
        now = self._ticked_at + passed * TICK
        # CLOCK_MONOTONIC stands still while the machine is suspended.
        slept, self._suspended = _suspended() - self._suspended, _suspended()
        planned = self._planned
        for _ in range(min(passed, planned - 1)):
            self._ticked_at += TICK
            self._take(Tick())
        if passed < planned and slept < SUSPEND_LEAST:
            return
        missed = max(0, passed - planned) + (int(slept / TICK) if slept >= SUSPEND_LEAST else 0)
        self._counts["ticks_missed"] += missed
        while self._drain(self._socket):
            pass
        self._read_refusals(self._socket)
        self._ticked_at = now
        self._take(Tick(missed))

    def _drain(self, own: stdlib_socket.socket) -> bool:
        """Take the packets that have come, up to PACKETS_PER_TURN; True when there may be more."""
        for _ in range(PACKETS_PER_TURN):
            try:
                packet, source = own.recvfrom(PACKET_BYTES_MAX + 1)
            except BlockingIOError:
                return False
            except OSError:
                continue  # the report of a packet of ours (udp(7)); _read_refusals has it
            self._counts["packets_received"] += 1
            self._counts["bytes_received"] += len(packet)
            self._receive_untrusted(packet, (source[0], source[1]))
        return True

    def _receive_untrusted(self, packet: bytes, source: Address) -> None:
        try:
            opened = self._opener.open_untrusted(packet)
            messages = tuple(self._codec.decode_untrusted(opened.payload))
        except UnknownEpoch as exc:
            self._rejected[exc.kind] += 1
            if self._keyring.is_newer(exc.epoch):
                self._key_missing.set()
                self._key_missing = trio.Event()
        except OldBoot as exc:
            self._rejected[exc.kind] += 1
            self._hint(exc, source)
        except BadPacket as exc:
            self._rejected[exc.kind] += 1
        except ValueError:
            self._rejected["not messages"] += 1
        else:
            self._take_answers(opened.sender, messages)
            self._take(Received(opened.sender, source, messages))

    def _take_answers(self, sender: ShortId, messages: Sequence[Message]) -> None:
        for message in messages:
            if not isinstance(message, Ack):
                continue
            confirmation = self._confirmations.get(message.sequence)
            if confirmation is not None and confirmation.target == sender:
                confirmation.end(Reachability.ALIVE)
            target, sent_at = self._pings.pop(message.sequence, (None, 0.0))
            if target == sender:
                sample = trio.current_time() - sent_at
                smoothed = self._rtt.get(sender, sample)
                self._rtt[sender] = smoothed + RTT_GAIN * (sample - smoothed)

    def _hint(self, old: OldBoot, source: Address) -> None:
        """Tell a member that was restored from a backup what start the group knows of."""
        held = self._core.table.find(old.sender)
        now = trio.current_time()
        if held is None or now - self._hinted_at < HINT_EVERY:
            return
        self._hinted_at = now
        incarnation = max(held.incarnation, first_incarnation(old.newest))
        self._send(Send(source, (Alive(held.member, incarnation, held.address, held.facts),)))

    def _read_refusals(self, own: stdlib_socket.socket) -> None:
        for address in read_refusals(own):
            self._counts["refusals"] += 1
            for confirmation in self._confirmations.values():
                if confirmation.address == address:
                    confirmation.end(Reachability.REFUSED)
            self._take(Refused(address))

    # Steps and what they ask for.

    def _step(self, event: Event) -> Record | None:
        """Let the core take note of *event*, now."""
        if self._socket is not None:
            self._tick()
        return self._take(event)

    def _take(self, event: Event) -> Record | None:
        """Let the core take one step and do what it asks for; return the record of an Answer."""
        self._members = None
        answer: Record | None = None
        actions = self._core.step(event)
        if self.boot != self._sealer.boot:
            self._boot_changed(self.boot)
            self._sealer.set_boot(self.boot)
        for action in actions:
            if isinstance(action, Answer):
                answer = action.record
            else:
                self._perform(action)
        self._plan()
        return answer

    def _plan(self) -> None:
        """Set when to wake up for the next tick that may do something."""
        self._planned = self._core.quiet_ticks()
        self._sleep.deadline = self._wake_at()

    def _perform(self, action: Action) -> None:
        match action:
            case Send():
                self._send(action)
            case StreamPing() | OpenSync() | Verify():
                assert self._jobs is not None, "asked for by a tick or a packet only"
                self._jobs.start_soon(self._converse, action)
            case LeaveComplete():
                self._left.set()
            case Answer():
                pass  # _step has it
            case _:
                self._reports.announce(action)
                if isinstance(action, Changed) and action.after is None:
                    self._rtt.pop(short_id(action.member), None)

    def _send(self, send: Send) -> None:
        if self._socket is None:
            return
        for message in send.messages:
            if isinstance(message, Ping):
                self._pings[message.sequence] = (message.target, trio.current_time())
                if len(self._pings) > PINGS_MAX:
                    del self._pings[next(iter(self._pings))]
        for payload in self._payloads(send.messages):
            self._send_packet(self._socket, self._sealer.seal(payload), send.to)

    def _payloads(self, messages: Sequence[Message]) -> Iterator[bytes]:
        """Yield *messages* as payloads that fit; one, if the core has reckoned well."""
        payload = self._codec.encode(messages)
        if len(payload) <= PAYLOAD_BYTES_MAX:
            yield payload
        elif len(messages) > 1:
            middle = len(messages) // 2
            yield from self._payloads(messages[:middle])
            yield from self._payloads(messages[middle:])
        else:
            raise AssertionError(f"{type(messages[0]).__name__} takes {len(payload)} bytes")

    def _send_packet(self, own: stdlib_socket.socket, packet: bytes, to: Address) -> None:
        for _ in range(2):
            try:
                own.sendto(packet, to)
            except BlockingIOError:
                break  # the buffer is full: lost, as on any network
            except OSError:
                # Perhaps this packet cannot be sent. But the first error may be the report of
                # another packet, and then the second try succeeds (udp(7)).
                continue
            self._counts["packets_sent"] += 1
            self._counts["bytes_sent"] += len(packet)
            return
        self._counts["send_errors"] += 1

    async def _converse(self, action: StreamPing | OpenSync | Verify) -> None:
        if self._streams_open >= STREAMS_MAX:
            self._step(conversations.failure(action))
            return
        self._streams_open += 1
        try:
            event = await conversations.converse(
                self._streams, action, core=self._core, step=self._step
            )
        finally:
            self._streams_open -= 1
        if isinstance(action, OpenSync):
            self._counts["syncs_failed" if isinstance(event, SyncFailed) else "syncs"] += 1
        self._step(event)

    def _name(self, short: ShortId | None) -> MemberId | None:
        held = self._core.table.find(short) if short is not None else None
        return None if held is None else held.member

    def _view(self, held: Member) -> MemberView:
        reason, by = self._reports.learned.get(held.member, (None, None))
        suspicion = self._core.suspicion(held.member)
        accusers = () if suspicion is None else map(self._name, suspicion.accusers)
        return MemberView(
            state=held.state,
            incarnation=held.incarnation,
            address=held.address,
            facts=held.facts,
            since=(self._core.now - held.since) * TICK + self._asleep(),
            rtt=self._rtt.get(held.short),
            reason=reason,
            by=by,
            accusers=tuple(name for name in accusers if name is not None),
        )


def _suspended() -> float:
    """Return the seconds that this machine has been suspended since it was started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
