"""Frames: bounds in both directions, noise, slow and vanishing peers."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from swarmlet import wire
from swarmlet.codec import BadMessage
from swarmlet.identity import Issued, JoinPending, JoinRefused, TrustBundle, TrustRequest
from swarmlet.identity.messages import JoinFault
from swarmlet.transport import EndOfStream, FrameStream, Peer, Protocol, StreamBroken
from swarmlet.transport.frames import AT_ONCE_MAX
from swarmlet.transport.protocols import QUEUE_BYTES_MAX, RULES
from tests.identity.test_certificates import mutated

PEER = Peer(protocol=Protocol.SESSION, address=("192.0.2.7", 7947), node="n" * 26)
FRAME_BYTES_MAX = RULES[Protocol.SESSION].frame_bytes_max
MESSAGES: list[Any] = [
    TrustRequest(),
    JoinPending(retry_after=2.5, text="wait"),
    JoinRefused(fault=JoinFault.BUSY, text="später"),
    Issued(node="n" * 26, chain=(b"leaf",), bundle=TrustBundle(roots=(b"root",))),
]


def pair(**bounds: Any) -> tuple[FrameStream, trio.abc.Stream]:
    """Our end as a FrameStream, the peer's as bytes."""
    ours, theirs = memory_stream_pair()
    return FrameStream(ours, PEER, wire, **bounds), theirs


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


async def test_messages_arrive_in_order_however_the_bytes_are_cut() -> None:
    data = b"".join(frame(wire.encode(message)) for message in MESSAGES)
    for size in (1, 3, len(data)):
        stream, peer = pair()
        for at in range(0, len(data), size):
            await peer.send_all(data[at : at + size])
        assert [await stream.receive() for _ in MESSAGES] == MESSAGES
        await peer.aclose()
        with pytest.raises(EndOfStream, match="closed the connection"):
            await stream.receive()


async def test_iteration_ends_with_the_stream() -> None:
    stream, peer = pair()
    await peer.send_all(b"".join(frame(wire.encode(message)) for message in MESSAGES))
    await peer.aclose()
    assert [message async for message in stream] == MESSAGES


async def test_frame_of_a_forbidden_length_is_not_awaited() -> None:
    """The length is checked before a byte of the body is held."""
    for length in (0, FRAME_BYTES_MAX + 1, 0xFFFFFFFF):
        stream, peer = pair()
        await peer.send_all(length.to_bytes(4, "big"))
        with pytest.raises(BadMessage, match=f"a frame of {length} bytes; 1 to {FRAME_BYTES_MAX}"):
            await stream.receive()
        with pytest.raises(StreamBroken, match="forbidden length"):
            await stream.receive()


async def test_strangers_have_a_smaller_bound() -> None:
    ours, peer = memory_stream_pair()
    stream = FrameStream(ours, Peer(protocol=Protocol.CA, address=("192.0.2.7", 1)), wire)
    await peer.send_all((64 * 1024 + 1).to_bytes(4, "big"))
    with pytest.raises(BadMessage, match="1 to 65536 are read"):
        await stream.receive()


async def test_flood_of_frames_lets_others_run() -> None:
    """What is buffered is given out without waiting, and still not in one go."""
    stream, peer = pair()
    await peer.send_all(frame(wire.encode(MESSAGES[0])) * 1000)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        for _ in range(1000):
            await stream.receive()
        nursery.cancel_scope.cancel()
    assert turns >= 1000 // AT_ONCE_MAX
    await peer.send_all(frame(wire.encode(MESSAGES[0])) * 2)
    await stream.receive()
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.receive()
    assert scope.cancelled_caught
    assert await stream.receive() == MESSAGES[0]  # a cancelled receive loses nothing


async def test_largest_frame_goes_through() -> None:
    ours, theirs = memory_stream_pair()
    sender, receiver = FrameStream(ours, PEER, wire), FrameStream(theirs, PEER, wire)
    body = bytes(FRAME_BYTES_MAX)
    await sender.send_bodies([body])
    assert await receiver.receive_body() == body


async def test_body_that_is_no_message_leaves_the_stream_in_step() -> None:
    stream, peer = pair()
    await peer.send_all(frame(b"\xc1noise") + frame(wire.encode(MESSAGES[1])))
    with pytest.raises(BadMessage):
        await stream.receive()
    assert await stream.receive() == MESSAGES[1]


async def test_connection_that_ends_within_a_frame_is_broken() -> None:
    stream, peer = pair()
    await peer.send_all(frame(b"whole body")[:-3])
    await peer.aclose()
    with pytest.raises(StreamBroken, match="ended within a frame"):
        await stream.receive()


async def test_silence_is_noticed(autojump_clock: MockClock) -> None:
    stream, _peer = pair(idle_timeout=90)
    with pytest.raises(StreamBroken, match="silent for too long"):
        await stream.receive()
    assert trio.current_time() == pytest.approx(90)


async def test_slow_frame_has_a_deadline_as_a_whole(autojump_clock: MockClock) -> None:
    """A byte now and then keeps no frame alive (slow loris)."""
    stream, peer = pair(idle_timeout=90, frame_timeout=30)

    async def trickle() -> None:
        await peer.send_all(frame(bytes(1000))[:5])
        while True:
            await trio.sleep(10)
            await peer.send_all(b"\0")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle)
        with pytest.raises(StreamBroken, match="silent for too long"):
            await stream.receive()
        nursery.cancel_scope.cancel()
    assert trio.current_time() == pytest.approx(30)


async def test_receive_may_be_cancelled_within_a_frame(autojump_clock: MockClock) -> None:
    stream, peer = pair()
    whole = frame(wire.encode(MESSAGES[1]))
    await peer.send_all(whole[:6])
    with trio.move_on_after(1):
        await stream.receive()
    await peer.send_all(whole[6:])
    assert await stream.receive() == MESSAGES[1]


class Stuck(trio.abc.Stream):
    """A peer that takes nothing until it is told to."""

    def __init__(self) -> None:
        self.open = trio.Event()
        self.writes: list[bytes] = []

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.open.wait()
        self.writes.append(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await self.open.wait()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_what_waits_for_a_write_goes_out_in_one_piece() -> None:
    ours = Stuck()
    stream = FrameStream(ours, PEER, wire)
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(stream.send, JoinPending(retry_after=float(number)))
            if not number:
                await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        ours.open.set()
    assert len(ours.writes) == 2  # the first, and all that came meanwhile
    assert sum(len(data) for data in ours.writes) == sum(
        len(frame(wire.encode(JoinPending(retry_after=float(number))))) for number in range(10)
    )


async def test_queue_is_bounded() -> None:
    """A peer that takes nothing makes senders wait, and not our memory grow."""
    ours = Stuck()
    stream = FrameStream(ours, PEER, wire)
    body = bytes(FRAME_BYTES_MAX // 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_bodies, [body])
        await wait_all_tasks_blocked()
        for _ in range(49):
            nursery.start_soon(stream.send_bodies, [body])
        await wait_all_tasks_blocked()
        held = stream._queue_bytes
        ours.open.set()
    assert QUEUE_BYTES_MAX <= held <= QUEUE_BYTES_MAX + len(body) + 4
    assert sum(len(data) for data in ours.writes) == 50 * (len(body) + 4)


async def test_peer_that_takes_nothing_is_given_up(autojump_clock: MockClock) -> None:
    stream = FrameStream(Stuck(), PEER, wire, write_timeout=60)
    with pytest.raises(StreamBroken, match="took nothing for 60 s"):
        await stream.send(MESSAGES[0])
    with pytest.raises(StreamBroken, match="took nothing"):
        await stream.send(MESSAGES[0])


async def test_last_words_are_heard_although_we_cannot_answer(
    autojump_clock: MockClock,
) -> None:
    class LastWords(Stuck):
        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            await trio.lowlevel.checkpoint()
            return frame(wire.encode(MESSAGES[1]))

    stream = FrameStream(LastWords(), PEER, wire)
    with pytest.raises(StreamBroken):
        await stream.send(MESSAGES[0])
    assert await stream.receive() == MESSAGES[1]


async def test_send_that_is_cut_off_ends_the_stream(autojump_clock: MockClock) -> None:
    """Half a frame may be on the wire: whatever followed would be misread."""
    stream = FrameStream(Stuck(), PEER, wire)
    with trio.move_on_after(1):
        await stream.send(MESSAGES[0])
    with pytest.raises(StreamBroken, match="cut off half way"):
        await stream.send(MESSAGES[0])


async def test_closed_stream_says_so() -> None:
    stream, _ = pair()
    await stream.aclose()
    await stream.aclose()
    with pytest.raises(StreamBroken, match="closed on this side"):
        await stream.send(MESSAGES[0])
    with pytest.raises(StreamBroken, match="closed on this side"):
        await stream.receive()


async def test_farewell_to_a_peer_that_does_not_listen_is_short(
    autojump_clock: MockClock,
) -> None:
    class Deaf(Stuck):
        closings = 0

        async def aclose(self) -> None:
            self.closings += 1
            await self.open.wait()

    ours = Deaf()
    await FrameStream(ours, PEER, wire).aclose()
    assert trio.current_time() <= 3
    assert ours.closings == 2  # politely, then not


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_noise_raises_bad_message_or_breaks(chunks: list[bytes]) -> None:
    async def play() -> None:
        stream, peer = pair(idle_timeout=1, frame_timeout=1)
        for chunk in chunks:
            await peer.send_all(chunk)
        await peer.aclose()
        while True:
            try:
                await stream.receive()
            except BadMessage:
                continue
            except (EndOfStream, StreamBroken):
                return

    trio.run(play)


@pytest.mark.parametrize("seed", range(2))
async def test_mutated_frames(seed: int) -> None:
    """2,500 frames of noise and 2,500 mutated messages a seed: 10,000 in all."""
    rng = random.Random(seed)
    bodies = [rng.randbytes(rng.randint(1, 60)) for _ in range(2500)]
    bodies += [mutated(wire.encode(rng.choice(MESSAGES)), rng) or b"\0" for _ in range(2500)]
    stream, peer = pair()
    bad = 0
    for body in bodies:
        await peer.send_all(frame(body))
        try:
            await stream.receive()
        except BadMessage:
            bad += 1
    assert bad > 2500  # nearly all noise, and most mutations
    await peer.send_all(frame(wire.encode(MESSAGES[0])))
    assert await stream.receive() == MESSAGES[0]
