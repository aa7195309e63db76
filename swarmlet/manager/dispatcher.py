"""Dispatcher: the agents' sessions on the leader, and the watch over the nodes.

A shell around two pure parts: what a node is told (assignments.py) and whether it is there
(liveness.py). It needs only the store, the observations and a way to probe, so that later any
manager can serve sessions without a change of protocol.
"""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import trio

from swarmlet.manager.assignments import Assignments, Items, difference, managers_of
from swarmlet.manager.leadership import Leadership
from swarmlet.manager.liveness import (
    TICK_SECONDS,
    Action,
    Closed,
    Confirm,
    Confirmed,
    Event,
    Heard,
    HeldBack,
    Listed,
    Liveness,
    LivenessConfig,
    Opened,
    SetNodeState,
    Suspected,
    Tick,
)
from swarmlet.model import Cluster, Node, NodeFacts, NodeId, Table
from swarmlet.session import (
    ITEMS_MAX,
    PROTOCOL,
    Ack,
    Assign,
    Farewell,
    Heartbeat,
    Hello,
    Images,
    Item,
    Probe,
    Probed,
    Reach,
    Redirect,
    Status,
    Welcome,
)
from swarmlet.state import Draft
from swarmlet.store import ChangeConflict, NotLeader, OutcomeUnknown
from swarmlet.transport import EndOfStream, FrameStream
from swarmlet.waiting import wait_any

logger = logging.getLogger(__name__)

#: Seconds from one push of assignments to the next: what happens between goes out together.
PUSH_INTERVAL = 0.05
HELLO_PATIENCE = 10.0
#: Others that try to reach a node that this leader cannot hear.
WITNESSES = 3
#: A confirmation is two rounds in two seconds.
ROUNDS = 2
ROUND_SECONDS = 1.0
#: Ticks without a sign of life before a node may be DOWN.
_DOWN_AFTER_TICKS = round(4 / TICK_SECONDS)
#: Sessions whose last word was longer ago than this many heartbeats are closed by the leader.
HEARTBEATS_MISSED_MAX = 3

#: Tries to reach a node from here: a ping over UDP and a TCP connection.
ReachNode = Callable[[NodeId, str, int], Awaitable[Reach]]


class Session:
    """One agent's stream, and what it was told over it. Owned by the task that serves it."""

    def __init__(self, node: NodeId, stream: FrameStream) -> None:
        self.node = node
        self.stream = stream
        self.scope = trio.CancelScope()
        self.poked = trio.Event()
        self.planned_ticks = 0
        self._told: Items = {}
        self._sequence = 0

    def poke(self) -> None:
        self.poked.set()

    async def tell(self, items: Items, *, cluster: Cluster | None, index: int) -> None:
        """Send what changed since it was last told; all of it the first time."""
        full = self._sequence == 0
        puts, removes = difference(self._told, items)
        if not puts and not removes and not full:
            return
        self._told = items
        pieces = list(puts.items())
        first, left = pieces[:ITEMS_MAX], pieces[ITEMS_MAX:]
        while True:
            self._sequence += 1
            assign = Assign(
                sequence=self._sequence,
                epoch=cluster.epoch if cluster is not None else 0,
                index=index,
                full=full,
                done=not left,
                puts=tuple(Item(key.kind, key.id, body) for key, body in first),
                removes=tuple(removes),
                past_epochs=cluster.past_epochs if cluster is not None else (),
            )
            await self.stream.send(assign)
            if not left:
                return
            removes = []
            first, left = left[:ITEMS_MAX], left[ITEMS_MAX:]


class Dispatcher:
    """Serves sessions for one term of leadership."""

    def __init__(
        self,
        leadership: Leadership,
        *,
        own: NodeId,
        reach: ReachNode,
        wait_current: Callable[[], Awaitable[object]],
        rng: random.Random,
    ) -> None:
        self._leadership = leadership
        self._own = own
        self._reach = reach
        self._wait_current = wait_current
        self._rng = rng
        self._sessions: dict[NodeId, Session] = {}
        self._over = False
        self._assignments: Assignments | None = None
        self._index = 0
        self._probes: dict[int, tuple[NodeId, trio.MemorySendChannel[Reach]]] = {}
        self._probe_number = 0
        self._actions_send, self._actions = trio.open_memory_channel[Action](1024)
        heartbeat = self._heartbeat
        silent = round(1.25 * heartbeat / TICK_SECONDS)
        self._liveness = Liveness(
            own,
            LivenessConfig(silent_after=silent, down_after=max(silent + 1, _DOWN_AFTER_TICKS)),
        )

    @property
    def _heartbeat(self) -> float:
        cluster = self._leadership.store.state.cluster
        return cluster.spec.heartbeat if cluster is not None else 2.0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch the nodes and keep every session told, until cancelled; then end the sessions.

        An agent whose manager leads no more must look for the one that does.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._push_forever)
                nursery.start_soon(self._watch_forever)
                nursery.start_soon(self._act_forever)
                task_status.started()
        finally:
            self._over = True
            for session in self._sessions.values():
                session.scope.cancel()

    def suspect(self, node: NodeId) -> None:
        """Gossip doubts *node*: confirm it now."""
        if node in self._leadership.store.state.nodes:
            self._step(Suspected(node))

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    # One session.

    async def serve(self, stream: FrameStream) -> None:
        """Serve one agent until its stream ends."""
        hello: Hello | None = None
        with trio.move_on_after(HELLO_PATIENCE):
            message = await stream.receive()
            hello = message if isinstance(message, Hello) else None
        if hello is None:
            return
        assert stream.peer.node is not None
        node = NodeId(stream.peer.node)
        if not hello.protocol_min <= PROTOCOL <= hello.protocol_max:
            reason = (
                f"this manager speaks session protocol {PROTOCOL}, the node {hello.protocol_min} "
                f"to {hello.protocol_max}: upgrade the older of the two"
            )
            await stream.send(Redirect(reason=reason))
            return
        try:
            await self._wait_current()
            await self._record_facts(node, hello.facts)
        except (NotLeader, OutcomeUnknown) as exc:
            await stream.send(Redirect(reason=f"no quorum here: {exc}"))
            return
        if self._over:
            await stream.send(Redirect(reason="this manager leads no more"))
            return
        session = Session(node, stream)
        self._replace(session)
        try:
            await self._serve(session, hello)
        except* (NotLeader, OutcomeUnknown) as group:
            logger.info("session ended node=%s reason=%s", node, group.exceptions[0])
        finally:
            self._closed(session)

    def _replace(self, session: Session) -> None:
        older = self._sessions.get(session.node)
        if older is not None:
            older.scope.cancel()
        self._sessions[session.node] = session

    def _closed(self, session: Session) -> None:
        if self._sessions.get(session.node) is not session:
            return  # a newer session of the node took its place
        del self._sessions[session.node]
        self._leadership.observations.leave(session.node)
        if not self._over:
            self._step(Closed(session.node, session.planned_ticks))
        logger.info("session closed node=%s", session.node)

    async def _serve(self, session: Session, hello: Hello) -> None:
        leadership = self._leadership
        observations = leadership.observations
        observations.report(session.node, hello.reports, complete=True, now=leadership.now())
        observations.hold_images(session.node, hello.images)
        cluster = leadership.store.state.cluster
        assert cluster is not None
        welcome = Welcome(
            epoch=cluster.epoch,
            term=leadership.term,
            heartbeat=self._heartbeat,
            now=leadership.now(),
            managers=managers_of(leadership.view),
        )
        with session.scope:
            await session.stream.send(welcome)
            self._step(Opened(session.node))
            logger.info("session opened node=%s tasks=%d", session.node, len(hello.reports))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_forever, session)
                nursery.start_soon(self._beat_forever, session)
                await self._listen(session)
                nursery.cancel_scope.cancel()

    async def _listen(self, session: Session) -> None:
        node, observations = session.node, self._leadership.observations
        session.stream.idle_timeout = self._heartbeat * HEARTBEATS_MISSED_MAX
        while True:
            try:
                message = await session.stream.receive()
            except EndOfStream:
                return
            self._step(Heard(node))
            match message:
                case Heartbeat():
                    pass
                case Ack(_, index):
                    observations.acknowledge(node, index)
                case Status(reports=reports, facts=facts):
                    if facts is not None:
                        await self._record_facts(node, facts)
                    now = self._leadership.now()
                    observations.report(node, reports, complete=False, now=now)
                case Images(images):
                    observations.hold_images(node, images)
                case Probed(number, reach):
                    self._probed(node, number, reach)
                case Farewell(seconds):
                    session.planned_ticks = round(min(seconds, 300.0) / TICK_SECONDS)
                    return
                case _:
                    logger.warning(
                        "session ended node=%s reason=unexpected %s", node, type(message).__name__
                    )
                    return

    async def _beat_forever(self, session: Session) -> None:
        while True:
            await trio.sleep(self._heartbeat)
            await session.stream.send(Heartbeat(self._leadership.now()))

    async def _tell_forever(self, session: Session) -> None:
        while True:
            session.poked = trio.Event()
            if self._assignments is not None:
                cluster = self._leadership.store.state.cluster
                items = self._assignments.of(session.node)
                await session.tell(items, cluster=cluster, index=self._index)
            await session.poked.wait()

    async def _record_facts(self, node: NodeId, facts: NodeFacts) -> None:
        """Write what a node says of itself, if it is news."""
        leadership = self._leadership
        while True:
            async with leadership.writing:
                state = leadership.store.state
                row = state.nodes.get(node)
                if row is None or row.facts == facts:
                    return
                draft = Draft(state)
                draft.put(dataclasses.replace(row, facts=facts, updated_at=leadership.now()))
                try:
                    await leadership.commit(draft)
                except ChangeConflict:
                    continue
                logger.info("node facts changed node=%s address=%s", node, facts.address)
                return

    # What every session is told.

    async def _push_forever(self) -> None:
        leadership = self._leadership
        while True:
            index, seen = leadership.store.state.index, leadership.observations.changes
            view = leadership.view
            self._assignments = Assignments(view, leadership.observations.holders)
            self._index = index
            self._step(Listed(tuple((n.id, n.state) for n in view.state.nodes.values())))
            for session in self._sessions.values():
                session.poke()
            await wait_any(
                [
                    partial(leadership.store.wait_beyond, index),
                    partial(leadership.observations.wait_beyond, seen),
                ]
            )
            await trio.sleep(PUSH_INTERVAL)

    # The watch over the nodes.

    async def _watch_forever(self) -> None:
        due = trio.current_time()
        while True:
            due += TICK_SECONDS
            await trio.sleep_until(due)
            missed = int((trio.current_time() - due) / TICK_SECONDS)
            due += missed * TICK_SECONDS
            self._step(Tick(missed))

    def _step(self, event: Event) -> None:
        for action in self._liveness.step(event):
            try:
                self._actions_send.send_nowait(action)
            except trio.WouldBlock:
                logger.warning("action dropped action=%s", action)
        self._leadership.observations.set_connections(self._liveness.connections)

    async def _act_forever(self) -> None:
        async with trio.open_nursery() as nursery:
            async for action in self._actions:
                match action:
                    case Confirm(node):
                        nursery.start_soon(self._confirm, node)
                    case SetNodeState(node):
                        nursery.start_soon(self._set_node_state, action)
                    case HeldBack(nodes):
                        logger.warning(
                            "mass disconnect nodes=%d: this leader waits before it gives up any",
                            nodes,
                        )

    async def _set_node_state(self, action: SetNodeState) -> None:
        leadership = self._leadership
        async with leadership.writing:
            state = leadership.store.state
            row: Node | None = state.find(Table.NODE, action.node)
            if row is None or row.state is action.state:
                return
            now = leadership.now()
            draft = Draft(state)
            draft.put(dataclasses.replace(row, state=action.state, state_since=now, updated_at=now))
            try:
                await leadership.commit(draft)
            except (ChangeConflict, NotLeader, OutcomeUnknown) as exc:
                logger.warning("node state not written node=%s reason=%s", action.node, exc)
                return
        logger.info("node %s node=%s", action.state.value, action.node)

    async def _confirm(self, node: NodeId) -> None:
        """Try to reach *node* from here and from others: one success anywhere is life."""
        row = self._leadership.store.state.nodes.get(node)
        reached = False
        if row is not None and row.facts.address:
            for _ in range(ROUNDS):
                with trio.move_on_after(ROUND_SECONDS):
                    if await self._reach_from_anywhere(row):
                        reached = True
                        break
                    await trio.sleep_forever()  # the rest of this round
        self._step(Confirmed(node, reached))

    async def _reach_from_anywhere(self, row: Node) -> bool:
        witnesses = [n for n in self._sessions if n not in (row.id, self._own)]
        chosen = self._rng.sample(sorted(witnesses), k=min(WITNESSES, len(witnesses)))
        verdicts: list[Reach] = []
        async with trio.open_nursery() as nursery:

            async def take(ask: Callable[[], Awaitable[Reach]]) -> None:
                verdict = await ask()
                verdicts.append(verdict)
                if verdict is Reach.ALIVE:
                    nursery.cancel_scope.cancel()

            facts = row.facts
            nursery.start_soon(take, partial(self._reach, row.id, facts.address, facts.port))
            for witness in chosen:
                nursery.start_soon(take, partial(self._ask, witness, row))
        return Reach.ALIVE in verdicts

    async def _ask(self, witness: NodeId, row: Node) -> Reach:
        """Let *witness* try to reach a node, and return what it found."""
        session = self._sessions.get(witness)
        if session is None:
            return Reach.SILENT
        self._probe_number += 1
        number = self._probe_number
        send, receive = trio.open_memory_channel[Reach](1)
        self._probes[number] = (witness, send)
        try:
            with send, receive:
                await session.stream.send(Probe(number, row.id, row.facts.address, row.facts.port))
                return await receive.receive()
        except OSError:
            return Reach.SILENT
        finally:
            del self._probes[number]

    def _probed(self, witness: NodeId, number: int, reach: Reach) -> None:
        asked, send = self._probes.get(number, (None, None))
        if asked == witness and send is not None:
            with suppress(trio.WouldBlock, trio.BrokenResourceError):  # twice, or too late
                send.send_nowait(reach)
