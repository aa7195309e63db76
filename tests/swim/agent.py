"""One member as a process: real datagrams and TCP, and nothing of the daemon around it.

    python -m tests.swim.agent NAME ADDRESS PORT PRESET

On standard output a line for each thing that happens: `alive NAME`, `suspect NAME`, `dead NAME`,
`left NAME`, `forgotten NAME`; `ready` first. On standard input: `join ADDRESS`, `move ADDRESS`,
`leave`.
Streams are TCP without TLS, as serf's: what is measured and tested here is gossip.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import trio

from swarmlet import wire
from swarmlet.swim.config import PRESETS
from swarmlet.swim.gossip import Gossip
from swarmlet.swim.messages import Address, MemberId, Message, StreamMessage
from swarmlet.swim.sealing import Keyring
from swarmlet.swim.streams import STREAM_ERRORS
from swarmlet.swim.views import Transition

KEYS = Keyring(b"group", {1: bytes(range(32))}, 1)
FRAME_BYTES_MAX = 1 << 20


class Codec:
    def encode(self, messages: Sequence[Message], /) -> bytes:
        return wire.encode_many(messages)

    def decode_untrusted(self, payload: bytes, /) -> Sequence[Message]:
        return wire.decode_many_untrusted(payload)


class Frames:
    """Four bytes of length, then a message, on TCP."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._waiting = bytearray()

    async def send(self, message: StreamMessage, /) -> None:
        body = wire.encode(message)
        await self._stream.send_all(len(body).to_bytes(4) + body)

    async def receive(self) -> StreamMessage:
        size = int.from_bytes(await self._take(4))
        if size > FRAME_BYTES_MAX:
            raise ValueError(f"a frame of {size} bytes")
        message: StreamMessage = wire.decode_untrusted(await self._take(size))
        return message

    async def _take(self, count: int) -> bytes:
        while len(self._waiting) < count:
            piece = await self._stream.receive_some()
            if not piece:
                raise EOFError
            self._waiting += piece
        taken = bytes(self._waiting[:count])
        del self._waiting[:count]
        return taken

    async def aclose(self) -> None:
        await self._stream.aclose()


class Streams:
    async def open(self, member: MemberId | None, address: Address) -> Frames:
        return Frames(await trio.open_tcp_stream(*address))


@dataclass
class Agent:
    gossip: Gossip
    address: Address

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be reached at the present address, until cancelled."""
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as datagrams:
            await datagrams.bind(self.address)
            async with trio.open_nursery() as nursery:
                host, port = self.address
                listeners = await trio.open_tcp_listeners(port, host=host)
                await nursery.start(trio.serve_listeners, self._answer, listeners)
                await nursery.start(self.gossip.run, datagrams)
                task_status.started()

    async def _answer(self, stream: trio.SocketStream) -> None:
        frames = Frames(stream)
        with suppress(trio.TooSlowError, *STREAM_ERRORS):
            await self.gossip.serve_sync(frames)
        await frames.aclose()

    async def obey(self) -> None:
        """Do what standard input says, to its end."""
        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:

            async def serve(task_status: trio.TaskStatus[None]) -> None:
                with scope:
                    await self.serve(task_status)

            await nursery.start(serve)
            say("ready")
            async with trio.wrap_file(sys.stdin) as lines:
                async for line in lines:
                    match line.split():
                        case ["move", host]:
                            scope.cancel()
                            scope = trio.CancelScope()
                            self.address = (host, self.address[1])
                            await nursery.start(serve)
                            self.gossip.set_address(self.address)
                        case ["join", host]:
                            self.gossip.join([(host, self.address[1])])
                        case ["leave"]:
                            await self.gossip.leave()
            nursery.cancel_scope.cancel()


def say(text: str) -> None:
    print(text, flush=True)


def tell(transition: Transition) -> None:
    after = "forgotten" if transition.after is None else transition.after.name.lower()
    if transition.before is not transition.after:
        say(f"{after} {transition.member}")


async def main(name: str, host: str, port: str, preset: str) -> None:
    address = (host, int(port))
    gossip = Gossip(
        member=MemberId(name),
        address=address,
        facts=b"",
        # A start later than any before: nothing of the last one is on a disk here.
        boot=int(time.monotonic() * 10) + 1,
        config=PRESETS[preset],
        keyring=KEYS,
        codec=Codec(),
        streams=Streams(),
        rng=random.Random(name),
    )
    with gossip.subscribe() as transitions:
        async with trio.open_nursery() as nursery:

            async def pass_on() -> None:
                async for transition in transitions:
                    tell(transition)

            nursery.start_soon(pass_on)
            await Agent(gossip, address).obey()
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
