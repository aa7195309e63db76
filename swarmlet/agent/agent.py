"""The agent: this node's assignment, and everything that carries it out.

A shell: composition. Starts from the stored assignment before any contact; the link brings
newer ones. Each whole assignment is on disk before it is acknowledged.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path

import trio

from swarmlet.agent.assignment import Assignment, Receiver
from swarmlet.agent.imaging import Images
from swarmlet.agent.journal import Journal
from swarmlet.agent.link import Link, ReachNode
from swarmlet.agent.network import HostNetwork
from swarmlet.agent.storing import Storing
from swarmlet.agent.worker import Worker
from swarmlet.images.store import ImageStore
from swarmlet.model import NodeFacts, NodeId, Observation, TaskId
from swarmlet.runtime.supervisor import Supervisor
from swarmlet.session import (
    Assign,
    ClusterView,
    HeldImage,
    Kind,
    ManagerView,
    NetworkView,
    NodeView,
    TaskAssignment,
    Welcome,
)
from swarmlet.transport import FrameStream, Peer

logger = logging.getLogger(__name__)


class Agent:
    def __init__(
        self,
        *,
        node: NodeId,
        node_name: str,
        state_dir: Path,
        network: HostNetwork,
        journal: Journal,
        supervisor: Supervisor,
        images: ImageStore,
        address: Callable[[], str],
        facts: Callable[[], NodeFacts],
        first_managers: Callable[[], Iterable[ManagerView]],
        connect: Callable[[ManagerView], Awaitable[FrameStream]],
        dial_sync: Callable[[NodeView], Awaitable[FrameStream]],
        reach: ReachNode,
        assigned: Callable[[Assignment], None],
        welcomed: Callable[[Welcome, Peer], None],
        rng: random.Random,
    ) -> None:
        """*first_managers* are tried while the assignment names none; *assigned* is called with
        each assignment, the stored one included; *welcomed* when a session opens."""
        self._node = node
        self._image_store = images
        self._assigned = assigned
        self._welcomed = welcomed
        self._first_managers = first_managers
        self._receiver = Receiver(journal.load_assignment())
        self._receiving = trio.Lock()
        self._storing = Storing(journal)
        self.images = Images(images, node, dial_sync)
        self.network = network
        self._address = address
        self.worker = Worker(
            supervisor=supervisor,
            images=self.images,
            network=self.network,
            node=node,
            node_name=node_name,
            state_dir=state_dir,
            connected=lambda: self.link.connected,
            report=self._report,
        )
        self.link = Link(
            managers=self._managers,
            connect=connect,
            facts=facts,
            position=lambda: (self.assignment.epoch, self.assignment.index),
            observations=lambda: self.worker.observations,
            images=self._whole_images,
            assign=self._assign,
            begin=welcomed,
            reach=reach,
            rng=rng,
        )

    @property
    def assignment(self) -> Assignment:
        return self._receiver.current

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry out the stored assignment, and look for a manager, until cancelled."""
        async with trio.open_nursery() as nursery:
            self.network.join(self._node, self._address)
            self._spread(self.assignment)
            await self.worker.adopt(self.assignment)
            self.network.open()
            await nursery.start(self.worker.run)
            nursery.start_soon(self.link.run)
            nursery.start_soon(self._storing.run)
            task_status.started()

    def images_changed(self) -> None:
        """An image came or went: tell the leader who holds what."""
        self.link.poke()

    @property
    def needed_images(self) -> frozenset[str]:
        """Digests that this node's tasks, or any spec of the cluster, need."""
        cluster = self.cluster()
        needed = set(cluster.images if cluster is not None else ())
        for task in self.assignment.all(Kind.TASK, TaskAssignment):
            needed.add(task.template.container.image.partition("@")[2])
        return frozenset(needed)

    def _report(self, task: TaskId, seen: Observation) -> None:
        self.link.report(task, seen)

    def _managers(self) -> Iterable[ManagerView]:
        cluster = next(self.assignment.all(Kind.CLUSTER, ClusterView), None)
        known = cluster.managers if cluster is not None else ()
        return known or self._first_managers()

    def _whole_images(self) -> tuple[HeldImage, ...]:
        store = self._image_store
        return tuple(
            HeldImage(image.digest, image.references)
            for image in sorted(store.images(), key=lambda image: image.digest)
            if store.is_complete(image.digest)
        )

    async def _assign(self, piece: Assign) -> int | None:
        async with self._receiving:
            before = self.assignment
            difference = self._receiver.receive(piece)
            if difference is None:
                return None
            current = self.assignment
            if current.hold and current.hold != before.hold:
                logger.warning("removals held reason=%s", current.hold)
            if difference.puts or difference.removes:
                # The disk is spared: an assignment that is the same again writes nothing.
                await self._storing.store(current, difference)
                self._spread(current)
                self.worker.assign(current)
            return piece.index

    def _spread(self, assignment: Assignment) -> None:
        self.images.assign(assignment)
        self.network.assign(assignment)
        self._assigned(assignment)

    def nodes(self) -> Mapping[NodeId, NodeView]:
        return {node.id: node for node in self.assignment.all(Kind.NODE, NodeView)}

    def networks(self) -> Iterable[NetworkView]:
        return self.assignment.all(Kind.NETWORK, NetworkView)

    def cluster(self) -> ClusterView | None:
        return next(self.assignment.all(Kind.CLUSTER, ClusterView), None)
