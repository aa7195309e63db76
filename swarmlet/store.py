"""Store: the replicated state behind Raft. Readers look at it, writers propose changes to it.

A shell: Raft applies entries here, in order, from one place; readers get the immutable state of
that moment. Nobody else writes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import trio

from raft.machine import Committed, Dropped, Unknown
from raft.messages import ServerId
from swarmlet.codec import BadMessage, pack, unpack_untrusted
from swarmlet.state import (
    CHANGE_BYTES_MAX,
    Applied,
    Change,
    ClusterState,
    Conflict,
    Verdict,
    apply,
    decode_snapshot_untrusted,
    encode_snapshot,
)

logger = logging.getLogger(__name__)

#: Seconds that a writer waits for a quorum.
PROPOSE_PATIENCE = 10.0
COMMAND_FORMAT = b"\x01"


class ChangeConflict(Exception):
    """Somebody else changed the same things first: look again and compute anew."""


class NotLeader(Exception):
    """This manager does not lead; *leader* may, if one is known."""

    def __init__(self, reason: str, leader: ServerId | None) -> None:
        super().__init__(reason)
        self.leader = leader


class OutcomeUnknown(Exception):
    """The leader was lost on the way: the change may still come, or never."""


class Log(Protocol):
    """What the store needs of Raft (raft.Replica)."""

    async def propose(
        self,
        command: bytes,
        *,
        timeout: float,  # noqa: ASYNC109 (running out is an outcome)
    ) -> Committed | Dropped | Unknown: ...


class Store:
    """The state as of the last applied entry, and the way to change it."""

    def __init__(self) -> None:
        self._state = ClusterState()
        self._changed = trio.Event()
        self._log: Log | None = None

    # What Raft calls.

    def apply(self, index: int, position: int, term: int, command: bytes) -> Verdict:
        try:
            if command[:1] != COMMAND_FORMAT:
                raise BadMessage(f"command format {command[:1].hex()}")
            change = unpack_untrusted(Change, memoryview(command)[1:])
        except BadMessage as exc:
            # Refused alike on every manager, for the bytes are the same everywhere.
            return Conflict(f"unreadable change: {exc}")
        self._state, verdict = apply(self._state, change, index=index, entry_term=term)
        self._wake()
        return verdict

    def snapshot(self) -> Callable[[], bytes]:
        state = self._state
        return lambda: encode_snapshot(state)

    def restore(self, index: int, data: bytes) -> None:
        state = decode_snapshot_untrusted(data)
        self._state = ClusterState(index, state.tables)
        self._wake()
        logger.info("state restored index=%d bytes=%d", index, len(data))

    # Readers.

    @property
    def state(self) -> ClusterState:
        return self._state

    async def wait_beyond(self, index: int) -> None:
        """Return as soon as the state is newer than *index*."""
        while self._state.index <= index:
            await self._changed.wait()
        await trio.lowlevel.checkpoint()

    # Writers.

    def attach(self, log: Log) -> None:
        self._log = log

    async def propose(self, change: Change, *, patience: float = PROPOSE_PATIENCE) -> int:
        """Commit *change* and return the index it has; its effect is in the state by then.

        Raises:
            ChangeConflict: a guard failed; nothing of it was done.
            NotLeader: nothing of it was done.
            OutcomeUnknown: it may have been done, or may yet be.
        """
        assert self._log is not None, "no log is attached"
        command = COMMAND_FORMAT + pack(change)
        assert len(command) <= CHANGE_BYTES_MAX, f"a change of {len(command)} bytes"
        outcome = await self._log.propose(command, timeout=patience)
        match outcome:
            case Committed(result=Applied(index)):
                return index
            case Committed(result=Conflict(reason)):
                raise ChangeConflict(reason)
            case Dropped():
                raise NotLeader(outcome.reason, outcome.leader)
            case Unknown():
                raise OutcomeUnknown(outcome.reason)
            case _:
                raise AssertionError(f"a store does not answer {outcome!r}")

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
