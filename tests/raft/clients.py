"""Clients of a cluster of node.py's processes, who write down what they asked and were told.

Each asks one thing at a time, of whom it takes for the leader, and gives up after a while: then
it does not know what became of it, which is what makes histories hard to explain by chance.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgpack
import trio

from tests.raft import kv
from tests.raft.linearizability import APPEND, CAS, GET, PUT, History, Operation, Value

#: Seconds until a client hangs up.
PATIENCE: Final = 2.0
#: Seconds between two attempts after a refusal.
PAUSE: Final = (0.005, 0.05)
#: Operations on a pair of keys before the next pair: bounds what the checker must search.
OPERATIONS_A_KEY: Final = 150
RECEIVE_BYTES: Final = 64 << 10

Connect = Callable[[int], Awaitable[trio.SocketStream]]


class Connection:
    """A stream to one server, one request at a time."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream

    async def ask(self, request: list[Any]) -> list[Any]:
        """Raises: OSError, trio.BrokenResourceError."""
        await self.stream.send_all(kv.frame(request))
        received = bytearray()
        while True:
            if len(received) >= kv.LENGTH.size:
                (length,) = kv.LENGTH.unpack_from(received)
                if len(received) >= kv.LENGTH.size + length:
                    answer: list[Any] = msgpack.unpackb(received[kv.LENGTH.size :])
                    return answer
            chunk = await self.stream.receive_some(RECEIVE_BYTES)
            if not chunk:
                raise ConnectionResetError("the server hung up")
            received += chunk


class Clients:
    """Several clients of servers 1 to *servers*, and the history that they share."""

    def __init__(self, connect: Connect, servers: int, rng: random.Random) -> None:
        self._connect = connect
        self._servers = servers
        self._rng = rng
        self.history = History()
        self.leader = 1
        self.answered = 0
        self._asked = 0
        self._value = 0
        self._last: dict[str, bytes] = {}  # what somebody has seen last
        self._progress = trio.Event()

    async def run(self, clients: int) -> None:
        """Ask until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                nursery.start_soon(self._client)

    async def wait_answered(self, more: int) -> None:
        """Return once *more* operations than now were answered."""
        goal = self.answered + more
        while self.answered < goal:
            await self._progress.wait()

    async def read_all(self, keys: Sequence[str]) -> None:
        """Read every key once, whatever it takes: what was answered must be there."""
        for key in keys:
            while not await self._ask_once(GET, key, None):
                pass

    async def _client(self) -> None:
        while True:
            self._asked += 1
            kind, key, argument = self._draw()
            await self._ask_once(kind, key, argument)

    def _draw(self) -> tuple[str, str, Value]:
        rng = self._rng
        pair = self._asked // OPERATIONS_A_KEY
        self._value += 1
        value = b"%d" % self._value
        if rng.random() < 0.4:
            key = f"list-{pair}"
            return (APPEND, key, value) if rng.random() < 0.6 else (GET, key, None)
        key = f"register-{pair}"
        draw = rng.random()
        if draw < 0.4:
            return PUT, key, value
        if draw < 0.6:
            expected = self._last.get(key)
            return CAS, key, (expected, value)
        return GET, key, None

    async def _ask_once(self, kind: str, key: str, argument: Value) -> bool:
        """Ask whom we take for the leader; say if there was an answer."""
        target = self.leader
        operation = self.history.call(key, kind, argument, at=time.monotonic())
        answer: list[Any] | None = None
        sent = False
        with trio.move_on_after(PATIENCE):
            try:
                stream = await self._connect(target)
                async with stream:
                    sent = True
                    answer = await Connection(stream).ask(request_of(operation))
            except (OSError, trio.BrokenResourceError):
                pass
        if answer is not None and answer[0] == kv.OK:
            self.history.answer(operation, value_of(answer[1]), at=time.monotonic())
            self._note(operation)
            return True
        never = not sent or (answer is not None and answer[0] == kv.NEVER)
        if never or kind == GET:
            self.history.never(operation)
        if answer is not None and answer[0] == kv.NEVER and answer[1]:
            self.leader = answer[1]
        else:
            self.leader = self._rng.randint(1, self._servers)
        await trio.sleep(self._rng.uniform(*PAUSE))
        return False

    def _note(self, operation: Operation) -> None:
        if operation.kind == GET and isinstance(operation.result, bytes):
            self._last[operation.key] = operation.result
        self.answered += 1
        self._progress.set()
        self._progress = trio.Event()

    def keys(self) -> list[str]:
        return sorted({operation.key for operation in self.history.operations})


def request_of(operation: Operation) -> list[Any]:
    key = operation.key.encode()
    argument = operation.argument
    match operation.kind:
        case "put":
            return [kv.PUT, key, argument]
        case "append":
            return [kv.APPEND, key, argument]
        case "cas":
            assert isinstance(argument, tuple)
            return [kv.CAS, key, *argument]
    return [kv.GET, key]


def value_of(answer: Any) -> Value:
    if isinstance(answer, list):
        return tuple(answer)
    value: Value = answer
    return value
