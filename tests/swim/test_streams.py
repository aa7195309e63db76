"""Conversations on streams: both sides against each other, and against the world."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import trio
import trio.testing

from swarmlet.swim.config import LAN
from swarmlet.swim.core import Swim
from swarmlet.swim.events import (
    Answer,
    Event,
    OpenSync,
    StreamAnswered,
    StreamConnected,
    StreamFailed,
    StreamPing,
    Synced,
    SyncFailed,
    Verified,
    Verify,
)
from swarmlet.swim.messages import (
    Address,
    Evidence,
    MemberId,
    Ping,
    Record,
    State,
    short_id,
)
from swarmlet.swim.streams import Step, converse, is_refusal, serve
from tests.swim.group import MemoryStream, memory_pair

A, B = MemberId("a"), MemberId("b")
NOWHERE: Address = ("127.0.0.1", 9)


def core_of(name: MemberId, *others: Record) -> Swim:
    core = Swim(
        member=name,
        address=NOWHERE,
        facts=b"",
        boot=1,
        config=LAN,
        rng=random.Random(0),
    )
    core.step(Synced(None, others))
    return core


def step_of(core: Swim) -> Step:
    def step(event: Event) -> Record | None:
        answers = [action.record for action in core.step(event) if isinstance(action, Answer)]
        return answers[0] if answers else None

    return step


def others(prefix: str, count: int) -> tuple[Record, ...]:
    return tuple(
        Record(MemberId(f"{prefix}{number}"), 0, State.ALIVE, ("10.0.0.1", 1 + number))
        for number in range(count)
    )


class Served:
    """Streams to one core."""

    def __init__(self, nursery: trio.Nursery, core: Swim) -> None:
        self._nursery = nursery
        self._core = core

    async def open(self, member: MemberId | None, address: Address) -> MemoryStream:
        await trio.lowlevel.checkpoint()
        ours, theirs = memory_pair()
        self._nursery.start_soon(self._serve, theirs)
        return ours

    async def _serve(self, stream: MemoryStream) -> None:
        await serve(stream, self._core, step_of(self._core))
        await stream.aclose()


class Broken:
    """Streams that end as told."""

    def __init__(self, error: Callable[[], BaseException] | None = None) -> None:
        self._error = error

    async def open(self, member: MemberId | None, address: Address) -> MemoryStream:
        await trio.lowlevel.checkpoint()
        if self._error is not None:
            raise self._error()
        await trio.sleep_forever()
        raise AssertionError


@pytest.mark.parametrize("count", [0, 3, 700])
async def test_exchange_leaves_both_with_the_same(count: int) -> None:
    """700 records take more than one frame each way."""
    a, b = core_of(A, *others("x", count)), core_of(B, *others("y", count))
    async with trio.open_nursery() as nursery:
        outcome = await converse(Served(nursery, b), OpenSync(B, NOWHERE), core=a, step=step_of(a))
    assert outcome == Synced(B, (), final=True)
    held = [{record.member for record in core.table} for core in (a, b)]
    assert held[0] == held[1]
    assert len(held[0]) == 2 + 2 * count
    assert a.table.digests(64) == b.table.digests(64)


async def test_exchange_of_equals_sends_no_record() -> None:
    a, b = core_of(A), core_of(B)
    seen: list[Event] = []
    for _ in range(2):
        seen.clear()
        async with trio.open_nursery() as nursery:
            step = step_of(a)

            def watched(event: Event, step: Step = step) -> Record | None:
                seen.append(event)
                return step(event)

            await converse(Served(nursery, b), OpenSync(B, NOWHERE), core=a, step=watched)
    assert [event.records for event in seen if isinstance(event, Synced)] == [()]


async def test_ping_is_answered_with_the_answerers_own_record() -> None:
    b = core_of(B)
    action = StreamPing(B, NOWHERE, Ping(7, short_id(B), b.me.incarnation, State.SUSPECT), 5)
    async with trio.open_nursery() as nursery:
        outcome = await converse(Served(nursery, b), action, core=b, step=lambda event: None)
    assert isinstance(outcome, StreamAnswered)
    assert (outcome.sequence, outcome.record.member) == (7, B)
    assert outcome.record.incarnation == (1 << 32) + 1, "it has refuted"


async def test_stopped_process_is_told_from_a_silent_host(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A kernel that takes the connection is alive, whatever its process does."""
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen(5)
        action = StreamPing(B, listener.getsockname(), Ping(7, short_id(B)), 5)
        events: list[Event] = []

        def step(event: Event) -> None:
            events.append(event)

        outcome = await converse(Broken(), action, core=core_of(A), step=step)
        assert events == [StreamConnected(7)]
        assert outcome == StreamFailed(7, Evidence.STALLED)
    events.clear()
    outcome = await converse(Broken(), action, core=core_of(A), step=step)
    assert (events, outcome) == ([], StreamFailed(7, Evidence.SILENT))


def refused_within() -> OSError:
    error = OSError("nothing listens there")
    error.__cause__ = ExceptionGroup("all attempts", [ConnectionRefusedError(111, "refused")])
    return error


@pytest.mark.parametrize(
    ("error", "evidence"),
    [
        (refused_within, Evidence.REFUSED),
        (lambda: OSError("no route to host"), Evidence.SILENT),
        (lambda: ValueError("no message"), Evidence.SILENT),
        (EOFError, Evidence.SILENT),
        (lambda: trio.BrokenResourceError("gone"), Evidence.SILENT),
    ],
)
async def test_errors_of_a_stream_are_evidence(
    error: Callable[[], BaseException], evidence: Evidence
) -> None:
    action = StreamPing(B, NOWHERE, Ping(7, short_id(B)), 5)
    core, streams = core_of(A), Broken(error)
    outcome = await converse(streams, action, core=core, step=lambda event: None)
    assert outcome == StreamFailed(7, evidence)
    assert isinstance(
        await converse(streams, OpenSync(None, NOWHERE), core=core, step=lambda event: None),
        SyncFailed,
    )
    assert await converse(
        streams, Verify(B, NOWHERE), core=core, step=lambda event: None
    ) == Verified(B, NOWHERE, genuine=False)


async def test_bug_of_ours_is_no_evidence() -> None:
    action = OpenSync(B, NOWHERE)
    with pytest.raises(KeyError):
        await converse(
            Broken(lambda: KeyError("x")), action, core=core_of(A), step=lambda event: None
        )


@pytest.mark.parametrize("verified", [A, B])
async def test_who_answers_for_another_is_not_genuine(verified: MemberId) -> None:
    async with trio.open_nursery() as nursery:
        outcome = await converse(
            Served(nursery, core_of(B)),
            Verify(verified, NOWHERE),
            core=core_of(A),
            step=lambda event: None,
        )
        assert outcome == Verified(verified, NOWHERE, genuine=verified == B)


async def test_hanging_exchange_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    core = core_of(A)
    outcome = await converse(Broken(), OpenSync(B, NOWHERE), core=core, step=lambda event: None)
    assert isinstance(outcome, SyncFailed)


def test_refusal_is_found_in_a_ring_of_causes() -> None:
    one, two = OSError("a"), OSError("b")
    one.__cause__, two.__cause__ = two, one
    assert not is_refusal(one)
    two.errno = 111
    assert is_refusal(one)
