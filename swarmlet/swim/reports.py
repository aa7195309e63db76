"""Who is told what this member noticed: the log, subscribers, and whoever asks later.

Sync. A subscriber never holds anything up: what does not fit into its channel is lost to it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias, TypeVar, assert_never

import trio

from swarmlet.swim.config import TICK
from swarmlet.swim.events import Changed, Conflict, Delivered, Paused, Reason, Refuted
from swarmlet.swim.messages import MemberId, ShortId, UserEvent, boot_of
from swarmlet.swim.views import Transition

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Values that wait for one subscriber.
WAITING_MAX = 256
#: Copied identities that are remembered.
CONFLICTS_MAX = 64

Report: TypeAlias = Changed | Refuted | Conflict | Paused | Delivered


class Reports:
    """Args: *name* finds the whole name of a short one, if it is known."""

    def __init__(self, name: Callable[[ShortId | None], MemberId | None]) -> None:
        self._name = name
        self._subscribers: list[trio.MemorySendChannel[Transition]] = []
        self._listeners: list[trio.MemorySendChannel[UserEvent]] = []
        self.learned: dict[MemberId, tuple[Reason, MemberId | None]] = {}
        self.conflicts: dict[MemberId, Conflict] = {}
        self.refutations = 0
        self.pauses = 0
        self.lost = 0

    @contextmanager
    def subscribe(self) -> Iterator[trio.MemoryReceiveChannel[Transition]]:
        with _subscription(self._subscribers) as channel:
            yield channel

    @contextmanager
    def subscribe_user_events(self) -> Iterator[trio.MemoryReceiveChannel[UserEvent]]:
        with _subscription(self._listeners) as channel:
            yield channel

    def announce(self, report: Report) -> None:
        match report:
            case Changed():
                self._announce_change(report)
            case Refuted(state, incarnation):
                self.refutations += 1
                logger.info(
                    "refuted own state=%s incarnation=%s", state.name, _readable(incarnation)
                )
            case Conflict():
                self._announce_conflict(report)
            case Paused(missed):
                self.pauses += 1
                logger.warning("slept seconds=%.1f: accusing nobody for it", missed * TICK)
            case Delivered(event):
                logger.debug("user event name=%s clock=%d", event.name, event.clock)
                self._publish(self._listeners, event)
            case _:
                assert_never(report)

    def _announce_conflict(self, conflict: Conflict) -> None:
        known = self.conflicts.pop(conflict.member, None)
        self.conflicts[conflict.member] = conflict
        if len(self.conflicts) > CONFLICTS_MAX:
            del self.conflicts[next(iter(self.conflicts))]
        if known != conflict:
            logger.warning(
                "identity runs twice member=%s held=%s:%d claimed=%s:%d other=%s: stop one of the "
                "two and remove its state directory before it joins again",
                conflict.member,
                *conflict.held,
                *conflict.claimed,
                conflict.other,
            )

    def _announce_change(self, changed: Changed) -> None:
        by = self._name(changed.by)
        if changed.after is None:
            self.learned.pop(changed.member, None)
        else:
            self.learned[changed.member] = changed.reason, by
        logger.info(
            "member %s member=%s before=%s incarnation=%s address=%s:%d reason=%r by=%s",
            "forgotten" if changed.after is None else changed.after.name.lower(),
            changed.member,
            "-" if changed.before is None else changed.before.name.lower(),
            _readable(changed.incarnation),
            *changed.address,
            changed.reason.value,
            by,
        )
        self._publish(
            self._subscribers,
            Transition(
                member=changed.member,
                before=changed.before,
                after=changed.after,
                reason=changed.reason,
                incarnation=changed.incarnation,
                address=changed.address,
                by=by,
            ),
        )

    def _publish(self, channels: Sequence[trio.MemorySendChannel[T]], value: T) -> None:
        for channel in channels:
            try:
                channel.send_nowait(value)
            except trio.WouldBlock:
                self.lost += 1
            except trio.BrokenResourceError:
                pass  # its reader has closed it, and is about to end the subscription


@contextmanager
def _subscription(
    channels: list[trio.MemorySendChannel[T]],
) -> Iterator[trio.MemoryReceiveChannel[T]]:
    send: trio.MemorySendChannel[T]
    receive: trio.MemoryReceiveChannel[T]
    send, receive = trio.open_memory_channel(WAITING_MAX)
    with send, receive:
        channels.append(send)
        try:
            yield receive
        finally:
            channels.remove(send)


def _readable(incarnation: int) -> str:
    return f"{boot_of(incarnation)}.{incarnation & 0xFFFFFFFF}"
