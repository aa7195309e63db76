"""Leadership: one term of leading, and the loop that runs the managers' roles in it.

A shell. Everything that allocates goes through one lock, so no two changes that this leader
computes can take the same address or port; and every change carries the term, so what a deposed
leader computed does nothing. The loop is level-triggered: look at the whole view, act, sleep until
something is another one; a wake-up carries no data.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import secrets
import time
from collections.abc import Callable
from functools import partial

import trio

from swarmlet.manager import gossipkeys, orchestrator, reaper, scheduler
from swarmlet.manager.allocator import Allocator, Exhausted, nodes_without_ingress
from swarmlet.manager.changes import changes_of
from swarmlet.manager.decisions import Decisions
from swarmlet.manager.observations import Observations
from swarmlet.manager.view import View
from swarmlet.state import Draft
from swarmlet.store import ChangeConflict, NotLeader, OutcomeUnknown, Store
from swarmlet.waiting import wait_any

logger = logging.getLogger(__name__)

#: Seconds that a wake-up waits for more of its kind.
DEBOUNCE = 0.01
#: Seconds after which the loop looks again though nothing woke it.
RESYNC = 30.0
#: Seconds between looks while the log does not take changes.
RETRY = 0.2


def new_gossip_key() -> bytes:
    return secrets.token_bytes(gossipkeys.KEY_BYTES)


class Leadership:
    """What this node holds while it leads in *term*: the right to write."""

    def __init__(
        self, store: Store, observations: Observations, *, term: int, rng: random.Random
    ) -> None:
        self.store = store
        self.observations = observations
        self.term = term
        self.rng = rng
        self.led_from = store.state.index
        self.writing = trio.Lock()  #: held from the look at the state to the commit

    @staticmethod
    def now() -> float:
        return time.time()

    @property
    def view(self) -> View:
        return self.observations.view(self.store.state, now=self.now(), led_from=self.led_from)

    async def commit(self, draft: Draft, *, request: str = "") -> int:
        """Write *draft*, which was computed under the lock. Raises what Store.propose raises."""
        change = draft.change(term=self.term, request=request, at=self.now())
        return await self.store.propose(change)

    async def run_roles(self) -> None:
        """Keep the state as the services want it, until cancelled."""
        roles: tuple[Callable[[View], Decisions], ...] = (
            reaper.reap,
            orchestrator.reconcile,
            self._schedule,
        )
        while True:
            index, seen = self.store.state.index, self.observations.changes
            wake_at = self.now() + RESYNC
            try:
                self.observations.forget_unknown(self.store.state)
                for role in roles:
                    decisions = await self._look(role)
                    if decisions.wake_at is not None:
                        wake_at = min(wake_at, decisions.wake_at)
                await self._give_nodes_their_ingress()
                wake_at = min(wake_at, await self._change_gossip_keys() or wake_at)
            except (ChangeConflict, OutcomeUnknown) as exc:
                logger.debug("look repeated reason=%s", exc)
                await trio.sleep(RETRY)
                continue
            except NotLeader as exc:
                # The term is over, or a quorum is away: whoever watches the role ends this loop.
                logger.debug("look without a quorum reason=%s", exc)
                await trio.sleep(RETRY)
                continue
            with trio.move_on_after(max(0.0, wake_at - self.now())):
                await self._wait_for_news(index, seen)
            await trio.sleep(DEBOUNCE)

    async def _look(self, role: Callable[[View], Decisions]) -> Decisions:
        """Let one role look once, and write what it decides."""
        async with self.writing:
            view = self.view
            decisions = role(view)
            changes = list(
                changes_of(view.state, decisions, term=self.term, now=view.now, rng=self.rng)
            )
            refused = [text for _, refusals in changes for text in refusals]
            for change, _ in changes:
                if change.puts or change.deletes:
                    await self.store.propose(change)
        for text in sorted(set(refused)):
            logger.warning("allocation refused reason=%s", text)
        if refused:
            decisions.wake(self.now() + 1.0)
        return decisions

    def _schedule(self, view: View) -> Decisions:
        decisions, explanations = scheduler.schedule(view)
        self.observations.explain(explanations)
        return decisions

    async def _give_nodes_their_ingress(self) -> None:
        if not nodes_without_ingress(self.store.state):
            return
        async with self.writing:
            state = self.store.state
            draft, allocator = Draft(state), Allocator(state, self.rng)
            assert state.ingress
            for node in nodes_without_ingress(state):
                try:
                    endpoint = allocator.endpoint(state.ingress.id)
                except Exhausted as exc:
                    logger.warning("allocation refused reason=%s", exc)
                    break
                draft.put(dataclasses.replace(node, ingress=endpoint, updated_at=self.now()))
            if not draft.is_empty:
                await self.commit(draft)

    async def _change_gossip_keys(self) -> float | None:
        """Take the step that is due; return when the next one may be."""
        async with self.writing:
            step = gossipkeys.next_step(self.view, new_gossip_key)
            if step.cluster is None:
                return step.wake_at
            draft = Draft(self.store.state)
            draft.put(step.cluster)
            await self.commit(draft)
        logger.info("gossip key %s epoch=%d", step.did, step.cluster.gossip_keys[-1].epoch)
        return None

    async def _wait_for_news(self, index: int, seen: int) -> None:
        """Return when the state or the observations are newer than these."""
        await wait_any(
            [
                partial(self.store.wait_beyond, index),
                partial(self.observations.wait_beyond, seen),
            ]
        )
