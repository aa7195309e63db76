"""Commands on their way through the log, and who waits for them.

Sync, without I/O. A batch of commands becomes one entry; each waiter gets the result of its own
command. A waiter is answered exactly once, and the answer is true: Dropped only if the command
can never take effect.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import msgpack
import trio

from raft.machine import Dropped, Outcome, Unknown
from raft.messages import Entry, ServerId
from raft.records import PACK_BYTES

#: One entry holds at most so many commands...
BATCH_COMMANDS_MAX: Final = 512
#: ... and so many bytes of them, unless a single one is larger.
BATCH_BYTES_MAX: Final = 64 << 10
#: A larger command is refused; it must fit into an entry with some room to spare.
COMMAND_BYTES_MAX: Final = (1 << 20) - 1024
#: Commands that wait for their turn to be proposed. More are dropped as "busy".
WAITING_MAX: Final = 10_000


class Waiter:
    """A proposer that waits. *outcome* is None until it is known."""

    __slots__ = ("_event", "command", "outcome")

    def __init__(self, command: bytes) -> None:
        self.command = command
        self.outcome: Outcome | None = None
        self._event = trio.Event()

    def resolve(self, outcome: Outcome) -> None:
        if self.outcome is None:
            self.outcome = outcome
            self._event.set()

    async def wait(self) -> None:
        await self._event.wait()


def pack_commands(commands: Sequence[bytes]) -> bytes:
    data: bytes = msgpack.packb(commands, buf_size=PACK_BYTES)
    return data


def unpack_commands(data: bytes) -> list[bytes]:
    """Return the commands of an entry that pack_commands() made."""
    commands: list[bytes] = msgpack.unpackb(data)
    return commands


class Proposals:
    """All waiters of one replica: those whose turn has not come, and those in the log."""

    def __init__(self) -> None:
        self._waiting: deque[Waiter] = deque()
        self._in_log: dict[int, tuple[int, list[Waiter]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        return len(self._waiting) >= WAITING_MAX

    def add(self, command: bytes) -> Waiter:
        waiter = Waiter(command)
        self._waiting.append(waiter)
        return waiter

    def withdraw(self, waiter: Waiter) -> bool:
        """Take back a command that is not in the log yet; False if it is."""
        try:
            self._waiting.remove(waiter)
        except ValueError:
            return False
        return True

    def take_batch(self) -> list[Waiter]:
        """Return the waiters whose commands make the next entry."""
        batch: list[Waiter] = []
        size = 0
        waiting = self._waiting
        while waiting and len(batch) < BATCH_COMMANDS_MAX:
            size += len(waiting[0].command)
            if batch and size > BATCH_BYTES_MAX:
                break
            batch.append(waiting.popleft())
        return batch

    def proposed(self, index: int, term: int, batch: list[Waiter]) -> None:
        """Note that *batch* is entry *index* of the log."""
        self._in_log[index] = (term, batch)

    def take_applied(self, entry: Entry) -> list[Waiter] | None:
        """Return the waiters of *entry*, which is being applied; None if nobody here waits.

        If another leader's entry took the place, theirs will never be committed.
        """
        found = self._in_log.pop(entry.index, None)
        if found is None:
            return None
        term, waiters = found
        if term == entry.term:
            return waiters
        resolve_all(waiters, Dropped("another leader's entry took its place"))
        return None

    def drop_waiting(self, reason: str, leader: ServerId | None) -> None:
        """Answer everybody whose command is not in the log yet."""
        waiting, self._waiting = self._waiting, deque()
        resolve_all(waiting, Dropped(reason, leader))

    def forget_to(self, index: int) -> None:
        """Give up on entries up to *index*: a snapshot stands for them."""
        for gone in [i for i in self._in_log if i <= index]:
            _, waiters = self._in_log.pop(gone)
            resolve_all(waiters, Unknown("a snapshot took the place of the log"))

    def give_up(self, reason: str) -> None:
        """Answer everybody: the replica stops."""
        self.drop_waiting(reason, None)
        for _, waiters in self._in_log.values():
            resolve_all(waiters, Unknown(reason))
        self._in_log = {}


def resolve_all(waiters: Sequence[Waiter] | deque[Waiter], outcome: Outcome) -> None:
    for waiter in waiters:
        waiter.resolve(outcome)
