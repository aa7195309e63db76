"""The host's network as the agent wants it: one loop keeps the overlay to it.

A shell around topology.build. Whoever needs a sandbox attaches it and waits; whatever else
changes (assignments, gossip's verdicts) only pokes. Several wishes become one pass.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import trio

from overlay import NotConverged, Reconciler, Resolver, views
from overlay.topology import IPNetwork, Topology
from swarmlet.agent.assignment import Assignment
from swarmlet.agent.journal import Journal
from swarmlet.agent.topology import build, give_gateways
from swarmlet.model import NodeId
from swarmlet.waiting import Bell

logger = logging.getLogger(__name__)

#: Seconds until a pass that left something undone is tried again.
RETRY = 1.0
#: Seconds that a task waits for its sandbox.
ATTACH_PATIENCE = 30.0
#: Seconds that a pass waits for the resolver to listen in new sandboxes.
RESOLVER_PATIENCE = 2.0
NETNS_FOLDER = "netns"


class NetworkFailed(Exception):
    """The sandbox's network could not be made; the text says what differs."""


class HostNetwork:
    """Owned by its run() task; attach, detach and the setters may be called from any task."""

    def __init__(
        self,
        *,
        own: NodeId,
        address: Callable[[], str],
        gateway: str,
        run_dir: Path,
        journal: Journal,
        reconciler: Reconciler,
        resolver: Resolver,
    ) -> None:
        self._own = own
        self._address = address
        self._gateway: IPNetwork = ipaddress.ip_network(gateway)
        self._run_dir = run_dir
        self._journal = journal
        self._reconciler = reconciler
        self._resolver = resolver
        self._assignment = Assignment()
        self._sandboxes: set[str] = set()
        self._gateways = journal.gateways()
        self._masked: frozenset[NodeId] = frozenset()
        self._wish = Bell()
        self._done = Bell()
        self._granted = 0  # the last wish that a pass has looked at
        self._failures: dict[str, str] = {}

    def path_of(self, sandbox: str) -> str:
        """The namespace file of *sandbox*."""
        return str(self._run_dir / NETNS_FOLDER / sandbox)

    def assign(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._wish.ring()

    def mask(self, nodes: Iterable[NodeId]) -> None:
        """Take the backends of *nodes* out of every load balancer, until they are not named."""
        masked = frozenset(nodes)
        if masked != self._masked:
            self._masked = masked
            self._wish.ring()

    def poke(self) -> None:
        """Look again: the host's own address may have changed."""
        self._wish.ring()

    async def attach(self, sandbox: str) -> str:
        """Make the network of *sandbox* and return its namespace file.

        Raises:
            NetworkFailed: it could not be made; detach() forgets the wish.
        """
        self._sandboxes.add(sandbox)
        self._wish.ring()
        wish = self._wish.rung
        with trio.move_on_after(ATTACH_PATIENCE):
            while self._granted < wish or sandbox in self._failures:
                await self._done.wait_beyond(self._done.rung)
            return self.path_of(sandbox)
        reason = self._failures.get(sandbox, "the host's network is busy")
        raise NetworkFailed(f"the task's network could not be made: {reason}")

    def adopt(self, sandboxes: Iterable[str]) -> None:
        """These exist already: containers in them survived this daemon's restart.

        Call it before run(), whose first pass removes what nobody asked for.
        """
        self._sandboxes |= set(sandboxes)

    def detach(self, sandbox: str) -> None:
        if sandbox in self._sandboxes:
            self._sandboxes.discard(sandbox)
            self._wish.ring()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the kernel as wished, until cancelled."""
        task_status.started()
        while True:
            wish = self._wish.rung
            await self._pass(wish)
            if self._failures:
                with trio.move_on_after(RETRY):
                    await self._wish.wait_beyond(wish)
            else:
                await self._wish.wait_beyond(wish)

    async def _pass(self, wish: int) -> None:
        try:
            topology = await self._topology()
            await self._reconciler.converge(topology)
            await self._serve_names(topology)
            self._fail({})
        except NotConverged as exc:
            await self._serve_names(topology)
            self._fail(dict.fromkeys(exc.namespaces, str(exc)))
        except (OSError, ValueError) as exc:
            self._fail(dict.fromkeys(self._sandboxes or {"*"}, str(exc)))
        self._granted = wish
        self._done.ring()

    async def _serve_names(self, topology: Topology) -> None:
        """A task must not start before its resolver answers."""
        names = views(topology)
        self._resolver.update(names)
        with trio.move_on_after(RESOLVER_PATIENCE):
            await self._resolver.wait_serving(names)

    def _fail(self, failures: dict[str, str]) -> None:
        if failures and failures != self._failures:
            logger.warning("network incomplete reason=%s", next(iter(failures.values())))
        elif self._failures and not failures:
            logger.info("network complete again")
        self._failures = failures

    async def _topology(self) -> Topology:
        sandboxes = frozenset(self._sandboxes)  # as of now: it may grow while the disk is written
        gateways = give_gateways(self._gateway, self._gateways, sandboxes)
        if gateways != self._gateways:
            # Before the address is used, so that it is the same one after a reboot.
            await trio.to_thread.run_sync(self._journal.set_gateways, gateways)
            self._gateways = gateways
        return build(
            self._assignment,
            own=self._own,
            address=self._address(),
            gateway=self._gateway,
            gateways=gateways,
            sandboxes=sandboxes,
            masked=self._masked,
        )
