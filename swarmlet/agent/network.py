"""The host's network as the agent wants it: one loop keeps the overlay to it.

A shell around topology.build. Whoever needs a sandbox attaches it and waits; whatever else
changes (assignments, gossip's verdicts) only pokes. Several wishes become one pass.

It lives as long as the daemon, in a cluster or out of it: tasks bring an assignment, containers
run by hand a LocalTopology. While neither is there, nothing of ours is in the kernel.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import trio

from overlay import NotConverged, Reconciler, Resolver, views
from overlay.topology import IPAddress, IPNetwork, Topology
from swarmlet.agent.assignment import Assignment
from swarmlet.agent.local.records import Places
from swarmlet.agent.local.store import DamagedRecord, read_record, write_record
from swarmlet.agent.topology import NOTHING_LOCAL, LocalTopology, build, give_gateways
from swarmlet.model import NodeId
from swarmlet.waiting import Bell

logger = logging.getLogger(__name__)

#: Seconds until a pass that left something undone is tried again.
RETRY = 1.0
#: Seconds that a container waits for its sandbox.
ATTACH_PATIENCE = 30.0
#: Seconds that a pass waits for the resolver to listen in new sandboxes.
RESOLVER_PATIENCE = 2.0
#: Seconds for which an idle network stays: the next container may be the next command.
LINGER = 10.0
NETNS_FOLDER = "netns"
PLACES_FILE = "network"
NO_NODE = NodeId("")


class NetworkFailed(Exception):
    """The sandbox's network could not be made; the text says what differs."""


class HostNetwork:
    """Owned by its run() task; all else may be called from any task.

    Nothing is done before open() was called: what exists already must be known first, or the first
    pass would remove it.
    """

    def __init__(
        self, *, address: Callable[[], str], gateway: str, run_dir: Path, state_dir: Path
    ) -> None:
        """*address* is this host's own while it is in no cluster."""
        self._address_alone = self._address = address
        self._gateway: IPNetwork = ipaddress.ip_network(gateway)
        self._run_dir = run_dir
        self._places_file = state_dir / PLACES_FILE
        self._reconciler = Reconciler(run_dir=run_dir)
        self._resolver = Resolver(run_dir=run_dir)
        self._own = NO_NODE
        self._in_cluster = False
        self._assignment = Assignment()
        self._sandboxes: set[str] = set()  # of tasks
        self._local = NOTHING_LOCAL
        self._gateways: dict[str, int] = {}
        self._masked: frozenset[NodeId] = frozenset()
        self._is_open = False
        self._is_leaving = False
        self._wish = Bell()
        self._done = Bell()
        self._granted = 0  # the last wish that a pass has looked at
        self._failures: dict[str, str] = {}

    def path_of(self, sandbox: str) -> str:
        """The namespace file of *sandbox*."""
        return str(self._run_dir / NETNS_FOLDER / sandbox)

    @property
    def underlay_mtu(self) -> int:
        """The MTU of the interface that has this host's address; 0 before it was measured."""
        statistics = self._reconciler.statistics()
        return statistics.measured_mtu_bytes if statistics.passes else 0

    def gateway_address_of(self, sandbox: str) -> IPAddress | None:
        """The sandbox's address on the host's bridge; None while it has none."""
        offset = self._gateways.get(sandbox)
        return self._gateway[offset] if offset is not None else None

    @property
    def gateway(self) -> IPNetwork:
        """The subnet of the host's bridge; the host has its first address."""
        return self._gateway

    @property
    def assignment(self) -> Assignment:
        """What the cluster wants here; empty outside of one."""
        return self._assignment

    # Tasks.

    def join(self, own: NodeId, address: Callable[[], str]) -> None:
        """This host is node *own* now. Waits for open(): the tasks that are here adopt first."""
        self._own, self._address, self._in_cluster = own, address, True
        self._sandboxes.clear()
        self._is_open = False

    async def leave(self) -> None:
        """This host is in no cluster any more: take away what tasks had, and wait for it."""
        self._own, self._address, self._in_cluster = NO_NODE, self._address_alone, False
        self._assignment, self._masked = Assignment(), frozenset()
        self._sandboxes.clear()
        self._is_leaving = True
        self.open()
        await self._wait_granted(self._wish.rung)

    def open(self) -> None:
        """All sandboxes that exist are known: begin to keep them."""
        self._is_open = True
        self._wish.ring()

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

    async def attach(self, sandbox: str, namespace: int | None = None) -> str:
        """Make the network of the task *sandbox* and return its namespace file.

        *namespace* is the descriptor of one that was made for it (Supervisor.new_network).

        Raises:
            NetworkFailed: it could not be made; detach() forgets the wish.
        """
        with ExitStack() as stack:
            if namespace is not None:
                stack.enter_context(self._reconciler.given(sandbox, namespace))
            self._sandboxes.add(sandbox)
            self._wish.ring()
            await self.wait_attached(sandbox)
        return self.path_of(sandbox)

    def adopt(self, sandboxes: Iterable[str]) -> None:
        """These exist already: containers in them survived this daemon's restart."""
        self._sandboxes |= set(sandboxes)

    def detach(self, sandbox: str) -> None:
        if sandbox in self._sandboxes:
            self._sandboxes.discard(sandbox)
            self._wish.ring()

    # Containers run by hand.

    @property
    def local(self) -> LocalTopology:
        return self._local

    def set_local(self, local: LocalTopology) -> None:
        """From now on keep *local* beside the assignment."""
        if local != self._local:
            self._local = local
            self._wish.ring()

    async def wait_attached(self, sandbox: str) -> None:
        """Return when *sandbox* is as was wished last. Raises NetworkFailed."""
        wish = self._wish.rung
        with trio.move_on_after(ATTACH_PATIENCE):
            while self._granted < wish or sandbox in self._failures:
                await self._done.wait_beyond(self._done.rung)
            return
        reason = self._failures.get(sandbox, "the host's network is busy")
        raise NetworkFailed(f"the container's network could not be made: {reason}")

    # The loop.

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the kernel as wished, until cancelled, which leaves it as it is."""
        await self._load_places()
        task_status.started()
        await self._wait_open()
        if self._is_idle and self._has_remains():
            await self._remove_all()
        while True:
            while self._is_idle:
                self._is_leaving = False
                wish = self._wish.rung
                self._grant(wish)
                await self._wish.wait_beyond(wish)
            async with trio.open_nursery() as nursery:
                await nursery.start(self._reconciler.run)
                await nursery.start(self._resolver.run)
                await self._keep()
                nursery.cancel_scope.cancel()
            await self._remove_all()

    async def _wait_open(self) -> None:
        # A flag and not an Event: join() may close again what somebody is waiting for.
        while not self._is_open:
            await self._wish.wait_beyond(self._wish.rung)

    async def _load_places(self) -> None:
        try:
            places = await trio.to_thread.run_sync(read_record, self._places_file, Places)
        except DamagedRecord as exc:
            # Others are given: containers get another address on the bridge, and nothing is lost.
            logger.error("places forgotten reason=%s", exc)
            places = None
        self._gateways = dict(places.offsets) if places is not None else {}

    @property
    def _is_idle(self) -> bool:
        return not (self._in_cluster or self._local.sandboxes)

    async def _keep(self) -> None:
        """One pass for each wish, until nobody needs a network on this host."""
        while not (self._is_idle and self._is_leaving):
            await self._wait_open()
            wish = self._wish.rung
            await self._pass(wish)
            patience = LINGER if self._is_idle else RETRY if self._failures else float("inf")
            with trio.move_on_after(patience) as waiting:
                await self._wish.wait_beyond(wish)
            if waiting.cancelled_caught and self._is_idle:
                return

    def _has_remains(self) -> bool:
        folder = self._run_dir / NETNS_FOLDER
        return folder.is_dir() and any(folder.iterdir())

    async def _remove_all(self) -> None:
        self._resolver.update({})
        try:
            await self._reconciler.remove_all()
        except (NotConverged, OSError) as exc:
            logger.warning("network not removed reason=%s", exc)

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
            self._fail(dict.fromkeys(self._all_sandboxes() or {"*"}, str(exc)))
        self._grant(wish)

    def _grant(self, wish: int) -> None:
        self._granted = wish
        self._done.ring()

    async def _wait_granted(self, wish: int) -> None:
        while self._granted < wish:
            await self._done.wait_beyond(self._done.rung)

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

    def _all_sandboxes(self) -> set[str]:
        return self._sandboxes | {sandbox.id for sandbox in self._local.sandboxes}

    async def _topology(self) -> Topology:
        # As of now: they may change while the disk is written.
        sandboxes, local = frozenset(self._sandboxes), self._local
        wanted = self._all_sandboxes()
        gateways = give_gateways(self._gateway, self._gateways, wanted)
        if gateways != self._gateways:
            # Before the address is used, so that it is the same one after a reboot.
            await trio.to_thread.run_sync(write_record, self._places_file, Places(gateways))
            self._gateways = gateways
        return build(
            self._assignment,
            own=self._own,
            address=self._address(),
            gateway=self._gateway,
            gateways=gateways,
            sandboxes=sandboxes,
            masked=self._masked,
            local=local,
        )
