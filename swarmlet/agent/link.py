"""Link: this node's session with the leader, kept up for ever.

A shell. Dials the managers that are known, follows redirects to the leader, tells everything once
and then what changes. While it is down the node goes on with what it has; nothing here is needed
to run what is assigned.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping

import trio

from swarmlet.codec import BadMessage
from swarmlet.model import NodeFacts, NodeId, Observation, TaskId
from swarmlet.session import (
    PROTOCOL,
    REPORTS_MAX,
    Ack,
    Assign,
    Farewell,
    Heartbeat,
    HeldImage,
    Hello,
    Images,
    ManagerView,
    Probe,
    Probed,
    Reach,
    Redirect,
    Report,
    Status,
    Welcome,
)
from swarmlet.transport import EndOfStream, FrameStream, Peer
from swarmlet.waiting import Bell

logger = logging.getLogger(__name__)

#: Seconds between two rounds of all known managers: longer each time, with jitter.
BACKOFF_MIN, BACKOFF_MAX, BACKOFF_FACTOR = 0.2, 8.0, 1.5
#: Seconds from asking one manager to asking the next.
STAGGER = 0.25
#: Seconds that reports wait for others of their kind.
REPORT_INTERVAL = 0.05
WELCOME_PATIENCE = 15.0
#: A session without a word from the leader for so many heartbeats is given up.
HEARTBEATS_MISSED_MAX = 3
REDIRECTS_MAX = 3
#: Probes for the leader under way at once.
PROBES_MAX = 16

ReachNode = Callable[[NodeId, str, int], Awaitable[Reach]]


class Link:
    def __init__(
        self,
        *,
        managers: Callable[[], Iterable[ManagerView]],
        connect: Callable[[ManagerView], Awaitable[FrameStream]],
        facts: Callable[[], NodeFacts],
        position: Callable[[], tuple[int, int]],
        observations: Callable[[], Mapping[TaskId, Observation]],
        images: Callable[[], tuple[HeldImage, ...]],
        assign: Callable[[Assign], Awaitable[int | None]],
        begin: Callable[[Welcome, Peer], None],
        reach: ReachNode,
        rng: random.Random,
    ) -> None:
        """*position* is (epoch, index) of the stored assignment; *assign* takes one piece and
        returns the index that is on disk once an assignment is whole."""
        self._managers = managers
        self._connect = connect
        self._facts = facts
        self._position = position
        self._observations = observations
        self._images = images
        self._assign = assign
        self._begin = begin
        self._reach = reach
        self._rng = rng
        self._pending: dict[TaskId, Observation] = {}
        self._news = Bell()
        self._dial_now = Bell()
        self._farewell: float | None = None
        self._stream: FrameStream | None = None
        self._hint: ManagerView | None = None
        self._images_told: tuple[HeldImage, ...] = ()
        self._facts_told: NodeFacts | None = None
        self.connected = False
        self.last_error = ""
        self._changed = Bell()

    async def wait_connected(self) -> None:
        """Return once a session is open."""
        while not self.connected:
            await self._changed.wait_beyond(self._changed.rung)
        await trio.lowlevel.checkpoint()

    @property
    def leader(self) -> NodeId | None:
        """The manager of the session that is open."""
        return self._hint.node if self.connected and self._hint is not None else None

    def report(self, task: TaskId, observation: Observation) -> None:
        """Tell the leader soon; several reports of one task become the last."""
        self._pending[task] = observation
        self._news.ring()

    def poke(self) -> None:
        """Something else than a task changed: facts or images."""
        self._news.ring()

    def dial_now(self) -> None:
        """A manager may be in reach again: do not wait for the backoff."""
        self._dial_now.ring()

    async def farewell(self, seconds: float) -> None:
        """Close the session on purpose: back in *seconds*, or 0 for good."""
        if self._stream is not None:
            with trio.move_on_after(1.0):
                try:
                    await self._stream.send(Farewell(seconds))
                except OSError as exc:
                    logger.debug("farewell not sent reason=%s", exc)

    async def run(self) -> None:
        """Keep a session up, until cancelled."""
        backoff = BACKOFF_MIN
        while True:
            rung = self._dial_now.rung
            found = await self._find()
            if found is not None:
                backoff = BACKOFF_MIN
                await self._hold(*found)
                continue
            with trio.move_on_after(self._rng.uniform(0.2, 1.0) * backoff):
                await self._dial_now.wait_beyond(rung)
            backoff = min(backoff * BACKOFF_FACTOR, BACKOFF_MAX)

    async def _find(self) -> tuple[FrameStream, Welcome] | None:
        """Ask every manager, one a little after the other, until one opens a session.

        So a manager that is gone without a word costs a moment and not its whole timeout.
        """
        managers = {manager.node: manager for manager in self._managers()}
        order = self._rng.sample(sorted(managers), k=len(managers))
        hint, self._hint = self._hint, None
        if hint is not None:
            managers[hint.node] = hint
            order = [hint.node, *(node for node in order if node != hint.node)]
        found: list[tuple[FrameStream, Welcome]] = []
        async with trio.open_nursery() as nursery:

            async def ask(manager: ManagerView) -> None:
                opened = await self._ask(manager)
                if opened is None:
                    return
                if found:
                    await opened[0].aclose()
                    return
                found.append(opened)
                nursery.cancel_scope.cancel()

            for node in order:
                nursery.start_soon(ask, managers[node])
                await trio.sleep(STAGGER)
        return found[0] if found else None

    async def _ask(self, manager: ManagerView) -> tuple[FrameStream, Welcome] | None:
        """Open a session with *manager*, or with whom it redirects to."""
        target: ManagerView | None = manager
        for _ in range(REDIRECTS_MAX):
            if target is None:
                break
            where = f"manager {target.address}:{target.port}"
            try:
                stream = await self._connect(target)
            except OSError as exc:
                self._complain(f"{where}: {exc}")
                return None
            keep = False
            try:
                answer = await self._greet(stream)
                if isinstance(answer, Welcome):
                    keep = True
                    return stream, answer
                self._complain(f"{where}: {answer.reason}")
                target = answer.leader
            except (OSError, EndOfStream, BadMessage) as exc:
                self._complain(f"{where}: {exc}")
                return None
            finally:
                if not keep:
                    await stream.aclose()
        return None

    async def _hold(self, stream: FrameStream, welcome: Welcome) -> None:
        """Live the session on *stream* until it ends."""
        address, port = stream.peer.address
        self._hint = ManagerView(node=NodeId(stream.peer.node or ""), address=address, port=port)
        self._stream, self.connected = stream, True
        self.last_error = ""
        logger.info("session opened manager=%s", stream.peer)
        self._begin(welcome, stream.peer)
        self._changed.ring()
        try:
            async with stream:
                await self._live(stream, welcome)
        except* (OSError, EndOfStream, BadMessage) as failures:
            self._complain(f"manager {address}:{port}: {_first(failures)}")
        finally:
            self._stream, self.connected = None, False
            logger.info("session closed manager=%s reason=%s", stream.peer, self.last_error)

    def _complain(self, text: str) -> None:
        if text != self.last_error:
            self.last_error = text
            logger.debug("no session reason=%s", text)

    async def _greet(self, stream: FrameStream) -> Welcome | Redirect:
        epoch, index = self._position()
        facts, images = self._facts(), self._images()
        self._pending.clear()
        reports = tuple(Report(t, o) for t, o in self._observations().items())
        await stream.send(
            Hello(
                protocol_min=PROTOCOL,
                protocol_max=PROTOCOL,
                facts=facts,
                epoch=epoch,
                index=index,
                reports=reports,
                images=images,
            )
        )
        self._facts_told, self._images_told = facts, images
        with trio.move_on_after(WELCOME_PATIENCE):
            answer = await stream.receive()
            if isinstance(answer, Welcome | Redirect):
                return answer
            raise BadMessage(f"a manager answered Hello with {type(answer).__name__}")
        raise OSError(f"no welcome within {WELCOME_PATIENCE:g} s")

    async def _live(self, stream: FrameStream, welcome: Welcome) -> None:
        stream.idle_timeout = welcome.heartbeat * HEARTBEATS_MISSED_MAX
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_forever, stream)
            nursery.start_soon(self._beat_forever, stream, welcome.heartbeat)
            limit = trio.CapacityLimiter(PROBES_MAX)
            while True:
                message = await stream.receive()
                match message:
                    case Assign():
                        index = await self._assign(message)
                        if index is not None:
                            await stream.send(Ack(message.sequence, index))
                    case Heartbeat():
                        pass
                    case Probe():
                        nursery.start_soon(self._probe, stream, message, limit)
                    case Redirect(leader=leader):
                        self._hint = leader
                        raise OSError("the manager leads no more")
                    case _:
                        raise BadMessage(f"unexpected {type(message).__name__}")

    async def _probe(self, stream: FrameStream, probe: Probe, limit: trio.CapacityLimiter) -> None:
        async with limit:
            reach = await self._reach(probe.node, probe.address, probe.port)
        await stream.send(Probed(probe.number, reach))

    async def _beat_forever(self, stream: FrameStream, period: float) -> None:
        while True:
            await trio.sleep(period * self._rng.uniform(0.9, 1.1))
            await stream.send(Heartbeat())
            self._news.ring()  # what nobody poked about: images that came or went

    async def _tell_forever(self, stream: FrameStream) -> None:
        while True:
            rung = self._news.rung
            pending, self._pending = self._pending, {}
            reports = [Report(task, seen) for task, seen in pending.items()]
            facts = self._facts()
            news = facts if facts != self._facts_told else None
            self._facts_told = facts
            if reports or news is not None:
                first, rest = reports[:REPORTS_MAX], reports[REPORTS_MAX:]
                await stream.send(Status(reports=tuple(first), facts=news))
                for start in range(0, len(rest), REPORTS_MAX):
                    await stream.send(Status(reports=tuple(rest[start : start + REPORTS_MAX])))
            images = self._images()
            if images != self._images_told:
                await stream.send(Images(images))
                self._images_told = images
            await self._news.wait_beyond(rung)
            await trio.sleep(REPORT_INTERVAL)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
