"""Members in one process: real UDP sockets on the loopback, streams through memory."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from swarmlet.codec import pack, unpack_untrusted
from swarmlet.swim.config import LAN, TICK, Config
from swarmlet.swim.gossip import Gossip
from swarmlet.swim.messages import Address, MemberId, Message, State, StreamMessage
from swarmlet.swim.sealing import Keyring
from swarmlet.swim.streams import STREAM_ERRORS

KEYS = {epoch: bytes([epoch]) * 32 for epoch in range(1, 10)}


@dataclass(frozen=True, slots=True)
class Packet:
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    message: StreamMessage


class PlainCodec:
    """The house codec over one packet's messages."""

    def encode(self, messages: Sequence[Message]) -> bytes:
        return pack(Packet(tuple(messages)))

    def decode_untrusted(self, payload: bytes) -> Sequence[Message]:
        return unpack_untrusted(Packet, payload).messages


def keyring(*epochs: int, primary: int | None = None) -> Keyring:
    chosen = epochs or (1,)
    return Keyring(b"cluster", {e: KEYS[e] for e in chosen}, primary or chosen[0])


@dataclass
class MemoryStream:
    """One end of a pair; what goes over it is bytes, as on the wire."""

    outgoing: trio.MemorySendChannel[bytes]
    incoming: trio.MemoryReceiveChannel[bytes]

    async def send(self, message: StreamMessage) -> None:
        await self.outgoing.send(pack(Frame(message)))

    async def receive(self) -> StreamMessage:
        return unpack_untrusted(Frame, await self.incoming.receive()).message

    async def aclose(self) -> None:
        await self.outgoing.aclose()
        await self.incoming.aclose()


def memory_pair() -> tuple[MemoryStream, MemoryStream]:
    send_a, receive_b = trio.open_memory_channel[bytes](4)
    send_b, receive_a = trio.open_memory_channel[bytes](4)
    return MemoryStream(send_a, receive_a), MemoryStream(send_b, receive_b)


@dataclass(eq=False)
class Agent:
    """One running member."""

    gossip: Gossip
    address: Address
    socket: trio.socket.SocketType
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)

    def state_of(self, other: Agent) -> State | None:
        view = self.gossip.members.get(other.gossip.member)
        return None if view is None else view.state


class Group:
    """Starts members and carries their streams."""

    def __init__(self, nursery: trio.Nursery, seed: int = 0) -> None:
        self._nursery = nursery
        self._rng = random.Random(seed)
        self.agents: dict[Address, Agent] = {}
        self.no_streams_to: set[Address] = set()
        self.no_answer_from: set[Address] = set()
        self.boots: dict[MemberId, int] = {}  # as a disk would have them
        self._sockets: list[trio.socket.SocketType] = []

    def close(self) -> None:
        for socket in self._sockets:
            socket.close()

    async def open(self, member: MemberId | None, address: Address) -> MemoryStream:
        await trio.lowlevel.checkpoint()
        if address in self.no_answer_from:
            await trio.sleep_forever()
        agent = self.agents.get(address)
        if agent is None or address in self.no_streams_to:
            raise OSError from ConnectionRefusedError(111, "Connection refused")
        if member not in (None, agent.gossip.member):
            raise OSError(f"{agent.gossip.member} is there, not {member}")
        ours, theirs = memory_pair()
        self._nursery.start_soon(self._serve, agent, theirs)
        return ours

    async def _serve(self, agent: Agent, stream: MemoryStream) -> None:
        try:
            await agent.gossip.serve_sync(stream)
        except (*STREAM_ERRORS, trio.TooSlowError):
            pass
        finally:
            await stream.aclose()

    async def start(
        self,
        name: str,
        *,
        boot: int = 1,
        facts: bytes = b"",
        config: Config = LAN,
        keys: Keyring | None = None,
        port: int = 0,
    ) -> Agent:
        socket = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        self._sockets.append(socket)
        await socket.bind(("127.0.0.1", port))
        address: Address = socket.getsockname()
        gossip = Gossip(
            member=MemberId(name),
            address=address,
            facts=facts,
            boot=boot,
            config=config,
            keyring=keys or keyring(),
            codec=PlainCodec(),
            streams=self,
            rng=random.Random(self._rng.random()),
            boot_changed=lambda boot: self.boots.__setitem__(MemberId(name), boot),
        )
        agent = self.agents[address] = Agent(gossip, address, socket)
        await self._nursery.start(self._run, agent)
        return agent

    async def _run(self, agent: Agent, *, task_status: trio.TaskStatus[None]) -> None:
        with agent.scope:
            await agent.gossip.run(agent.socket, task_status=task_status)
        agent.ended.set()

    async def kill(self, agent: Agent) -> None:
        """End the process: its host refuses what comes for it."""
        self.silence(agent)
        agent.socket.close()
        del self.agents[agent.address]
        await agent.ended.wait()

    def silence(self, agent: Agent) -> None:
        """Stop the member with its socket open: what comes for it stays unanswered."""
        agent.scope.cancel()
        self.no_streams_to.add(agent.address)


@asynccontextmanager
async def group(seed: int = 0) -> AsyncIterator[Group]:
    async with trio.open_nursery() as nursery:
        members = Group(nursery, seed)
        try:
            yield members
        finally:
            members.close()
            nursery.cancel_scope.cancel()


async def eventually(condition: Callable[[], bool], within: float) -> float:
    """Let virtual time pass until *condition* holds; return the seconds that it took."""
    start = trio.current_time()
    with trio.fail_after(within):
        while not condition():  # noqa: ASYNC110 (a step of virtual time, and any state will do)
            await trio.sleep(TICK / 2)
    return trio.current_time() - start
