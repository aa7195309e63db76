"""What runs on streams: exchanges of tables, and pings that datagrams did not carry.

Trio. A stream is authentic (its opener proves whom it reached), but what it says of third
members is hearsay like any rumour. Both sides of a conversation stand here:

    caller                    server
    Ping                  ->
                          <-  SyncRecords, one record: the server's own
or
    SyncDigest            ->
                          <-  SyncRecords ..., the differing buckets and what is in them
    SyncRecords ...       ->  what the caller has in those, if any differ
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Protocol, TypeAlias, assert_never

import trio

from swarmlet.swim.config import TICK
from swarmlet.swim.core import Swim
from swarmlet.swim.events import (
    Event,
    OpenSync,
    StreamAnswered,
    StreamConnected,
    StreamFailed,
    StreamPing,
    StreamPinged,
    Synced,
    SyncFailed,
    Verified,
    Verify,
)
from swarmlet.swim.members import MEMBERS_MAX
from swarmlet.swim.messages import (
    ANYBODY,
    RECORDS_MAX,
    Address,
    Evidence,
    MemberId,
    Ping,
    Record,
    StreamMessage,
    SyncDigest,
    SyncRecords,
    short_id,
)

#: Seconds for one exchange: 5 MB, the records of MEMBERS_MAX members, at 200 kB/s.
SYNC_TIMEOUT = 30.0
#: Seconds for the handshake that proves an identity.
VERIFY_TIMEOUT = 5.0
#: Frames of one side of an exchange.
FRAMES_MAX = MEMBERS_MAX // RECORDS_MAX + 1

#: The world's and the peer's faults; everything else is a bug of ours.
STREAM_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.EndOfChannel,
)

#: Passes an event to the core, does what it asks for, and returns the record of an Answer.
Step = Callable[[Event], Record | None]


class FrameStream(Protocol):
    """One connection of frames. Its errors are among STREAM_ERRORS."""

    async def send(self, message: StreamMessage, /) -> None: ...
    async def receive(self) -> StreamMessage: ...
    async def aclose(self) -> None: ...


class Streams(Protocol):
    async def open(self, member: MemberId | None, address: Address) -> FrameStream:
        """Connect to *member* at *address*; to whichever member is there if it is None.

        Raises:
            OSError: nobody there, or somebody who is not *member*. When the host refused
                the connection, a ConnectionRefusedError is the error or among its causes.
        """
        ...


class BadConversation(ValueError):
    """The peer says what has no place here."""


Conversation: TypeAlias = StreamPing | OpenSync | Verify


async def converse(streams: Streams, action: Conversation, *, core: Swim, step: Step) -> Event:
    """Have the conversation that *action* asks for, and return what came of it."""
    match action:
        case StreamPing():
            return await ping(streams, action, step)
        case OpenSync():
            return await exchange(streams, action, core, step)
        case Verify():
            return await verify(streams, action)
        case _:
            assert_never(action)


def failure(action: Conversation) -> Event:
    """Return the outcome of an *action* that was not carried out."""
    match action:
        case StreamPing(_, _, question):
            return StreamFailed(question.sequence, Evidence.SILENT)
        case OpenSync():
            return SyncFailed()
        case Verify(member, address):
            return Verified(member, address, genuine=False)
        case _:
            assert_never(action)


async def ping(streams: Streams, action: StreamPing, step: Step) -> Event:
    """Ping by stream and return the outcome; that the host takes connections goes to *step*."""
    sequence = action.ping.sequence
    connected = False
    outcome: Event | None = None

    async def knock() -> None:
        """Find out whether the kernel there is alive; TLS would need the daemon."""
        nonlocal connected
        try:
            stream = await trio.open_tcp_stream(*action.address)
        except OSError:
            return
        connected = True
        step(StreamConnected(sequence))
        await trio.aclose_forcefully(stream)

    async def ask() -> None:
        nonlocal outcome
        try:
            record = await _ask(streams, action.member, action.address, action.ping)
        except STREAM_ERRORS as exc:
            evidence = Evidence.REFUSED if is_refusal(exc) else Evidence.SILENT
            outcome = StreamFailed(sequence, evidence)
        else:
            outcome = StreamAnswered(sequence, record)
        nursery.cancel_scope.cancel()

    with trio.move_on_after(action.ticks * TICK):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(knock)
            nursery.start_soon(ask)
    if outcome is not None:
        return outcome
    return StreamFailed(sequence, Evidence.STALLED if connected else Evidence.SILENT)


async def verify(streams: Streams, action: Verify) -> Event:
    """Find out whether *action*'s member can prove itself at *action*'s address."""
    question = Ping(0, short_id(action.member))
    with trio.move_on_after(VERIFY_TIMEOUT):
        try:
            record = await _ask(streams, action.member, action.address, question)
        except STREAM_ERRORS:
            pass
        else:
            return Verified(action.member, action.address, record.member == action.member)
    return Verified(action.member, action.address, genuine=False)


async def exchange(streams: Streams, action: OpenSync, core: Swim, step: Step) -> Event:
    """Exchange tables as the caller; what the peer holds goes to *step* as it comes."""
    with trio.move_on_after(SYNC_TIMEOUT):
        try:
            await _call(streams, action, core, step)
        except STREAM_ERRORS:
            pass
        else:
            return Synced(action.member, (), final=True)
    return SyncFailed()


async def serve(
    stream: FrameStream, core: Swim, step: Step, first: StreamMessage | None = None
) -> None:
    """Answer one conversation; the caller of this closes *stream*.

    Args:
        first: the peer's first message, if it was received already.

    Raises:
        TooSlowError, STREAM_ERRORS: it broke; what came before that counts.
    """
    with trio.fail_after(SYNC_TIMEOUT):
        message = first if first is not None else await stream.receive()
        match message:
            case Ping():
                record = step(StreamPinged(message))
                if record is not None:
                    await stream.send(SyncRecords((record,)))
            case SyncDigest(sender):
                step(Synced(sender.member, (sender,)))
                wanted = b""
                for frame in core.sync_answer(message):
                    wanted = wanted or frame.buckets
                    await stream.send(frame)
                if wanted:
                    async for frame in _receive_frames(stream):
                        step(Synced(sender.member, frame.records))
            case _:
                raise BadConversation(f"a {type(message).__name__} to begin with")


def is_refusal(error: BaseException) -> bool:
    """Tell whether somebody's host said that nobody listens, wherever in the chain of causes."""
    pending: list[BaseException] = [error]
    seen: set[int] = set()
    while pending:
        exc = pending.pop()
        if id(exc) in seen:
            continue
        seen.add(id(exc))
        if isinstance(exc, OSError) and exc.errno == errno.ECONNREFUSED:
            return True
        if isinstance(exc, BaseExceptionGroup):
            pending += exc.exceptions
        pending += [e for e in (exc.__cause__, exc.__context__) if e is not None]
    return False


async def _ask(streams: Streams, member: MemberId, address: Address, question: Ping) -> Record:
    async with _opened(streams, member, address) as stream:
        await stream.send(question)
        answer = await stream.receive()
    match answer:
        case SyncRecords((record,)) if question.target in (short_id(record.member), ANYBODY):
            return record
    raise BadConversation("the answer to a ping is one record, the answerer's own")


async def _call(streams: Streams, action: OpenSync, core: Swim, step: Step) -> None:
    async with _opened(streams, action.member, action.address) as stream:
        digest = core.sync_digest()
        await stream.send(digest)
        differing = b""
        async for frame in _receive_frames(stream):
            differing = differing or frame.buckets
            step(Synced(action.member, frame.records))
        if differing:
            for frame in core.sync_rest(digest, differing):
                await stream.send(frame)


@asynccontextmanager
async def _opened(
    streams: Streams, member: MemberId | None, address: Address
) -> AsyncIterator[FrameStream]:
    stream = await streams.open(member, address)
    async with aclosing(stream):
        yield stream


async def _receive_frames(stream: FrameStream) -> AsyncIterator[SyncRecords]:
    for _ in range(FRAMES_MAX):
        message = await stream.receive()
        if not isinstance(message, SyncRecords):
            raise BadConversation(f"a {type(message).__name__} among records")
        yield message
        if not message.more:
            return
    raise BadConversation(f"more than {FRAMES_MAX} frames of records")
