"""Hostile bytes at every door: nothing is raised, nothing changes."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import trio
import trio.testing

from swarmlet.swim.config import LAN
from swarmlet.swim.core import Swim
from swarmlet.swim.events import Received, StreamPinged, Synced, Tick
from swarmlet.swim.gossip import Gossip
from swarmlet.swim.messages import (
    ACCUSERS_MAX,
    INCARNATION_MAX,
    Ack,
    Alive,
    Dead,
    Evidence,
    Left,
    MemberId,
    Message,
    Nack,
    Ping,
    PingReq,
    Record,
    ShortId,
    State,
    Suspect,
    SyncDigest,
    SyncRecords,
    UserEvent,
    short_id,
)
from swarmlet.swim.sealing import PACKET_BYTES_MAX, Sealer
from swarmlet.swim.streams import STREAM_ERRORS
from tests.swim.group import Agent, eventually, group, keyring, memory_pair

#: By the real socket, and straight to the door behind it, which is cheaper.
PACKETS, PACKETS_BEHIND = 10_000, 90_000


def look(gossip: Gossip) -> object:
    """All that a packet could change."""
    statistics = gossip.statistics()
    return (
        {m: (v.state, v.incarnation, v.address, v.facts) for m, v in gossip.members.items()},
        statistics.health,
        statistics.rumours_queued,
        statistics.packets_sent,
        statistics.conflicts,
    )


def noise(rng: random.Random, genuine: list[bytes]) -> bytes:
    """A packet that is random, or a genuine one that was cut, grown, flipped or joined."""
    packet = bytearray(rng.choice(genuine))
    match rng.randrange(6):
        case 0:
            return rng.randbytes(rng.randrange(PACKET_BYTES_MAX + 200))
        case 1:
            return bytes(packet[: rng.randrange(len(packet))])
        case 2:
            return bytes(packet) + rng.randbytes(rng.randint(1, 50))
        case 3:
            for _ in range(rng.randint(1, 5)):
                packet[rng.randrange(len(packet))] ^= 1 << rng.randrange(8)
            return bytes(packet)
        case 4:
            return bytes(packet[:26]) + rng.randbytes(rng.randrange(200))
        case _:
            return bytes(packet)  # a replay


async def test_random_and_mutated_packets_change_nothing(
    mock_clock: trio.testing.MockClock,
) -> None:
    """They come by the real socket, and the clock stands still: nothing else can happen."""
    rng = random.Random(7)
    async with group() as members:
        a = await members.start("a")
        sealer = Sealer(keyring(), short_id(MemberId("b")), 1)
        b = Alive(MemberId("b"), 1 << 32, ("127.0.0.1", 9))
        said: list[list[Message]] = [[b], [b, Nack(1)], [Ack(5, 0), Nack(6)]]
        genuine = [sealer.seal(a.gossip._codec.encode(messages)) for messages in said]
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sender:
            for packet in genuine:
                await sender.sendto(packet, a.address)
            await trio.testing.wait_all_tasks_blocked()
            assert MemberId("b") in a.gossip.members
            before = look(a.gossip)
            received = a.gossip.statistics().packets_received
            for number in range(PACKETS):
                await sender.sendto(noise(rng, genuine), a.address)
                if number % 50 == 0:  # as many as fit into the receive buffer
                    await trio.testing.wait_all_tasks_blocked()
            await trio.testing.wait_all_tasks_blocked()
        for _ in range(PACKETS_BEHIND):
            a.gossip._receive_untrusted(noise(rng, genuine), ("127.0.0.1", 9))
        assert look(a.gossip) == before, "seed 7"
        statistics = a.gossip.statistics()
        assert statistics.packets_received - received == PACKETS
        assert sum(statistics.rejected.values()) == PACKETS + PACKETS_BEHIND


async def test_sealed_nonsense_is_no_message(mock_clock: trio.testing.MockClock) -> None:
    """A member of the group seals bytes that are no messages."""
    rng = random.Random(8)
    async with group() as members:
        a = await members.start("a")
        before = look(a.gossip)
        sealer = Sealer(keyring(), short_id(MemberId("b")), 1)
        genuine = [
            a.gossip._codec.encode([message])
            for message in (Ping(1, ShortId(b"")), Alive(MemberId("b"), 1, ("10.0.0.1", 1)))
        ]
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sender:
            for _ in range(500):
                payload = bytearray(rng.choice(genuine))
                del payload[rng.randrange(1, len(payload)) :]
                await sender.sendto(sealer.seal(bytes(payload)), a.address)
                await sender.sendto(sealer.seal(rng.randbytes(rng.randrange(100))), a.address)
                await trio.testing.wait_all_tasks_blocked()
        assert look(a.gossip) == before, "seed 8"
        assert a.gossip.statistics().rejected["not messages"] == 1_000


def any_message(rng: random.Random, names: list[MemberId]) -> Message:
    """A well-formed message of a member that has turned against the others."""
    name = rng.choice(names)
    short = rng.choice([short_id(name), ShortId(rng.randbytes(8))])
    incarnation = rng.choice([0, 1 << 32, (1 << 32) + rng.randrange(9), INCARNATION_MAX])
    sequence = rng.choice([rng.randrange(50), rng.randrange(1 << 32)])
    state = rng.choice(list(State))
    makers: list[Callable[[], Message]] = [
        lambda: Ping(sequence, rng.choice([short, ShortId(b"")]), incarnation, state),
        lambda: Ack(sequence, incarnation),
        lambda: PingReq(sequence, short, incarnation, state),
        lambda: Nack(sequence, rng.random() < 0.5),
        lambda: Alive(
            rng.choice([name, MemberId(f"x{rng.randrange(100)}")]),
            incarnation,
            (f"10.0.0.{rng.randint(1, 9)}", rng.randint(1, 9)),
            rng.randbytes(rng.randrange(257)),
        ),
        lambda: Suspect(
            short,
            incarnation,
            tuple(ShortId(rng.randbytes(8)) for _ in range(rng.randint(1, ACCUSERS_MAX))),
            rng.choice(list(Evidence)),
        ),
        lambda: Dead(short, incarnation, short),
        lambda: Left(short, incarnation),
        lambda: UserEvent(rng.randrange(1, 1 << 62), short, "x", rng.randbytes(rng.randrange(513))),
    ]
    return rng.choice(makers)()


@pytest.mark.parametrize("seed", range(5))
def test_core_outlives_a_hostile_member(seed: int) -> None:
    """Whatever it says, nothing is raised, and we go on saying that we are alive."""
    rng = random.Random(seed)
    names = [MemberId(name) for name in "abcdef"]
    core = Swim(
        member=names[0],
        address=("10.0.0.1", 1),
        facts=b"",
        boot=1,
        config=LAN,
        rng=random.Random(seed),
    )
    for _ in range(2_000):
        messages = tuple(any_message(rng, names) for _ in range(rng.randint(1, 6)))
        core.step(Received(short_id(rng.choice(names)), ("10.0.0.2", 1), messages))
        if rng.random() < 0.2:
            core.step(Tick(rng.choice([0, 0, 0, 100])))
        if rng.random() < 0.1:
            record = Record(
                rng.choice(names),
                rng.choice([0, 1 << 40]),
                rng.choice(list(State)),
                ("10.0.0.3", 1),
                b"",
                rng.randrange(1 << 40),
            )
            core.step(Synced(rng.choice([None, *names]), (record,)))
            core.step(StreamPinged(Ping(1, short_id(names[0]), 1 << 33, State.DEAD)))
    me = core.table.get(names[0])
    assert me is not None
    assert (me.state, me.address) == (State.ALIVE, ("10.0.0.1", 1)), f"seed {seed}"


async def serve_untrusted(agent: Agent, *messages: object) -> None:
    """Say *messages* to *agent* on a stream, and hang up."""
    ours, theirs = memory_pair()
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            try:
                await agent.gossip.serve_sync(theirs)
            except STREAM_ERRORS:
                pass
            finally:
                await theirs.aclose()

        nursery.start_soon(serve)
        try:
            for message in messages:
                if isinstance(message, bytes):
                    await ours.outgoing.send(message)
                else:
                    await ours.send(message)  # type: ignore[arg-type]
        except trio.BrokenResourceError:
            pass  # it hung up first
        await ours.aclose()


async def test_streams_of_nonsense_end(autojump_clock: trio.testing.MockClock) -> None:
    rng = random.Random(9)
    async with group() as members:
        a = await members.start("a")
        before = look(a.gossip)
        me = a.gossip._core.sync_digest().sender
        endless = SyncRecords((), more=True)
        conversations: list[tuple[object, ...]] = [
            (),
            (SyncRecords(()),),
            (SyncDigest(me, bytes(8)),),
            (SyncDigest(me, bytes(512)), Ping(1, ShortId(b""))),
            (SyncDigest(me, bytes(512)), *[endless] * 100),
            (Ping(1, ShortId(b"")), SyncRecords(())),
            *[(rng.randbytes(rng.randrange(300)),) for _ in range(200)],
        ]
        for conversation in conversations:
            await serve_untrusted(a, *conversation)
        assert look(a.gossip) == before


async def test_silent_stream_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    async with group() as members:
        a = await members.start("a")
        ours, theirs = memory_pair()
        with pytest.raises(trio.TooSlowError):
            await a.gossip.serve_sync(theirs)
        await ours.aclose()
        await theirs.aclose()


async def test_liar_in_an_exchange_buries_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A member that holds all others for dead says so in an exchange; all are asked, and live."""
    async with group() as members:
        a, b, c = [await members.start(name) for name in "abc"]
        for other in (b, c):
            other.gossip.join([a.address])
        await eventually(lambda: len(a.gossip.members) == 3, within=5)
        lies = [
            Record(
                x.gossip.member,
                a.gossip.members[x.gossip.member].incarnation,
                State.DEAD,
                x.address,
            )
            for x in (a, b, c)
        ]
        with a.gossip.subscribe() as transitions:
            digest = SyncDigest(lies[1], bytes(512))
            await serve_untrusted(a, digest, SyncRecords(tuple(lies)))
            await eventually(
                lambda: all(view.incarnation & 0xFFFF > 0 for view in a.gossip.members.values()),
                within=5,
            )
            assert transitions.statistics().current_buffer_used == 0
        assert a.state_of(b) is a.state_of(c) is State.ALIVE
