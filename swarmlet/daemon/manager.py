"""Manager: Raft and the store on this node, and while it leads the loops that write.

A shell: composition only. Nesting is dependency: the replica runs outside, a term of leadership
inside of it, and ends with it.
"""

from __future__ import annotations

import base64
import dataclasses
import logging
import random
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import trio

from raft.machine import ChangeRefused, NotLeader, ReadTimedOut, ReplicaStatus, TransferFailed
from raft.membership import Change, ChangeKind, ServerChange
from raft.messages import ServerId
from raft.replica import Replica
from swarmlet.codec import BadMessage, pack, unpack_untrusted
from swarmlet.daemon.faults import ManagerFault, explain, leaf_of
from swarmlet.daemon.raftlink import RaftLink
from swarmlet.manager.control import Control, PinImage
from swarmlet.manager.dispatcher import Dispatcher, ReachNode
from swarmlet.manager.gossipkeys import first_key
from swarmlet.manager.leadership import Leadership, new_gossip_key
from swarmlet.manager.membership import AddLearner, Demote, Promote, Remove, SetRole, next_change
from swarmlet.manager.observations import Observations
from swarmlet.manager.rebirth import is_reborn, rebirth, without_retired
from swarmlet.model import (
    Cluster,
    ClusterId,
    ClusterSpec,
    Node,
    NodeFacts,
    NodeId,
    NodeSpec,
    NodeState,
    Role,
)
from swarmlet.session import ManagerView, Redirect
from swarmlet.state import Draft
from swarmlet.store import ChangeConflict, OutcomeUnknown, Store
from swarmlet.store import NotLeader as StoreNotLeader
from swarmlet.swim.config import configure_from_text
from swarmlet.transport import FrameStream, Transport
from swarmlet.waiting import wait_any

logger = logging.getLogger(__name__)

RAFT_FOLDER = "raft"
#: Seconds that a change of Raft's membership may take.
MEMBERSHIP_PATIENCE = 30.0
#: Seconds until a refused change of membership is tried again.
MEMBERSHIP_RETRY = 2.0
#: Seconds for a new leader to have its own entry committed and applied.
CATCH_UP_PATIENCE = 10.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Founding:
    """What the first manager writes into the empty store."""

    spec: ClusterSpec
    ca_certificate: bytes
    ca_key: bytes
    node: NodeId
    node_spec: NodeSpec
    public_key: bytes
    data_path_port: int


class Term:
    """What exists while this node leads."""

    def __init__(self, leadership: Leadership, control: Control, dispatcher: Dispatcher) -> None:
        self.leadership = leadership
        self.control = control
        self.dispatcher = dispatcher


class Manager:
    def __init__(
        self,
        *,
        state_dir: Path,
        key: bytes,
        cluster: str,
        node: NodeId,
        transport: Transport,
        address: Callable[[], tuple[str, int]],
        facts: Callable[[], NodeFacts],
        reach: ReachNode,
        pin_image: PinImage,
        rng: random.Random,
    ) -> None:
        self.store = Store()
        self._node = node
        self._cluster = cluster
        self._facts = facts
        self._reach = reach
        self._pin_image = pin_image
        self._rng = rng
        self.link = RaftLink(
            transport=transport,
            address=address,
            find_server=self._find_server,
            server_of=self._server_of,
        )
        self.replica = Replica(
            directory=state_dir / RAFT_FOLDER,
            key=key,
            machine=self.store,
            transport=self.link,
            rng=rng,
            cluster=cluster_bytes(cluster),
        )
        self.store.attach(self.replica)
        self.term: Term | None = None
        self.founding: Founding | None = None
        self._folder = state_dir / RAFT_FOLDER
        self._started = False
        #: Why this manager takes no part, and what to do; "" while it does.
        self.fault = ""

    # Life.

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part in Raft, and lead when elected, until cancelled.

        Without a log that can be trusted, or a disk to write it to, it does nothing instead: the
        node does what it can without its manager, and says what is wrong.
        """
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.link.run, self.replica)
                await nursery.start(self._run_replica)
                self._started = True
                task_status.started()
                await self._lead_forever()
        except* ManagerFault as faults:
            self.fault = str(leaf_of(faults))
        started, self._started = self._started, False
        logger.error("manager takes no part reason=%s", self.fault)
        if not started:
            task_status.started()
        await trio.sleep_forever()

    async def _run_replica(self, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            await self.replica.run(task_status=task_status)
        except Exception as exc:
            text = explain(exc, self._folder)
            if text is None:
                raise
            raise ManagerFault(text) from exc

    async def _lead_forever(self) -> None:
        status = self.replica.status
        while True:
            if status.leads:
                await self._lead(status)
                status = self.replica.status
            else:
                status = await self.replica.wait_for_change(status)

    async def _lead(self, status: ReplicaStatus) -> None:
        """Lead for one term: until this server leads no more, or leads another term."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_with_term, status.term, nursery.cancel_scope)
            try:
                await self.replica.read_index(timeout=CATCH_UP_PATIENCE)
                if self.founding is not None and self.store.state.cluster is None:
                    await self._found(self.founding, status.term)
                await self._be_reborn(status)
            except (ReadTimedOut, StoreNotLeader, OutcomeUnknown, ChangeConflict) as exc:
                logger.warning("leadership not begun term=%d reason=%s", status.term, exc)
                await trio.sleep(1.0)
                nursery.cancel_scope.cancel()
                return
            leadership = Leadership(self.store, Observations(), term=status.term, rng=self._rng)
            control = Control(
                leadership,
                own=self._node,
                pin_image=self._pin_image,
                check_gossip=configure_from_text,
            )
            dispatcher = Dispatcher(
                leadership,
                own=self._node,
                reach=self._reach,
                wait_current=self._wait_current,
                rng=self._rng,
            )
            await nursery.start(dispatcher.run)
            self.term = Term(leadership, control, dispatcher)
            logger.info("leadership began term=%d index=%d", status.term, self.store.state.index)
            try:
                nursery.start_soon(leadership.run_roles)
                await self._keep_membership(leadership)
            finally:
                self.term = None
                logger.info("leadership ended term=%d", status.term)

    async def _end_with_term(self, term: int, scope: trio.CancelScope) -> None:
        status = self.replica.status
        while status.leads and status.term == term:
            status = await self.replica.wait_for_change(status)
        scope.cancel()

    async def _wait_current(self) -> None:
        """Return once the store here has everything that was committed before the call."""
        try:
            await self.replica.read_index(timeout=CATCH_UP_PATIENCE)
        except ReadTimedOut as exc:
            raise StoreNotLeader(str(exc), None) from exc

    async def _found(self, founding: Founding, term: int) -> None:
        """Write the cluster and its first node."""
        state = self.store.state
        now = time.time()
        draft = Draft(state)
        draft.put(
            Cluster(
                id=ClusterId(self._cluster),
                spec=founding.spec,
                ca_certificate=founding.ca_certificate,
                ca_key=founding.ca_key,
                token_key=secrets.token_bytes(32),
                token_generation={role.value: 1 for role in Role},
                gossip_keys=(first_key(now, new_gossip_key),),
                gossip_epoch=1,
                epoch=secrets.randbits(62) or 1,
                data_path_port=founding.data_path_port,
                created_at=now,
                updated_at=now,
            )
        )
        facts = dataclasses.replace(self._facts(), raft_server=self.replica.server)
        draft.put(
            Node(
                id=founding.node,
                spec=founding.node_spec,
                facts=facts,
                public_keys=(founding.public_key,),
                state=NodeState.READY,
                state_since=now,
                role=Role.MANAGER,
                created_at=now,
                updated_at=now,
            )
        )
        await self.store.propose(draft.change(term=term, at=now))
        logger.info("cluster founded node=%s", founding.node)

    async def _be_reborn(self, status: ReplicaStatus) -> None:
        """If this server was recovered from a lost quorum: tell the state, once."""
        epoch = self._view_in(status.configuration.context_of(self.replica.server)).epoch
        state = self.store.state
        if state.cluster is None or is_reborn(state.cluster, epoch):
            return
        now = time.time()
        server = self.replica.server
        draft = rebirth(state, own=self._node, server=server, epoch=epoch, at=now)
        await self.store.propose(draft.change(term=status.term, at=now))
        logger.warning("cluster recovered by this manager alone epoch=%x", epoch)

    @property
    def status(self) -> ReplicaStatus | None:
        """How Raft stands; None while this manager takes no part in it."""
        return self.replica.status if self._started else None

    async def stop(self) -> None:
        """Hand leadership over, so that a planned stop costs no election timeout."""
        if self._started and self.replica.status.leads:
            try:
                await self.replica.transfer_leadership()
            except TransferFailed as exc:
                logger.info("leadership not handed over reason=%s", exc)

    # Membership.

    async def _keep_membership(self, leadership: Leadership) -> None:
        """Make Raft's configuration follow the nodes' roles, one change at a time."""
        told = ("", "")
        while True:
            index, status = self.store.state.index, self.replica.status
            state = self.store.state
            retired = state.cluster.retired_servers if state.cluster is not None else ()
            change = next_change(
                without_retired(state.nodes, retired),
                status.configuration.all_voters(),
                status.learners,
                own_server=self.replica.server,
            )
            try:
                match change:
                    case None:
                        await self._wait_for_news(index, status)
                    case AddLearner(node, server):
                        context = self._context_of(node, server)
                        await self.replica.add_learner(
                            ServerId(server), context, timeout=MEMBERSHIP_PATIENCE
                        )
                        logger.info("manager added node=%s server=%x", node, server)
                    case Promote(node, server):
                        await self.replica.promote(ServerId(server), timeout=MEMBERSHIP_PATIENCE)
                        logger.info("manager votes node=%s server=%x", node, server)
                    case Demote(server):
                        step = ServerChange(ChangeKind.ADD_LEARNER, ServerId(server))
                        await self.replica.change_membership(
                            Change((step,)), timeout=MEMBERSHIP_PATIENCE
                        )
                        logger.info("manager votes no more server=%x", server)
                    case Remove(server):
                        await self.replica.remove(ServerId(server), timeout=MEMBERSHIP_PATIENCE)
                        logger.info("manager removed server=%x", server)
                    case SetRole(node, role):
                        await self._set_role(leadership, node, role)
            except (ChangeRefused, NotLeader, TransferFailed) as exc:
                if told != (told := (str(change), str(exc))):
                    logger.info("membership not changed wanted=%s reason=%s", *told)
                await trio.sleep(MEMBERSHIP_RETRY)
            except (ChangeConflict, StoreNotLeader, OutcomeUnknown) as exc:
                logger.debug("role not written reason=%s", exc)
                await trio.sleep(0.1)

    async def _wait_for_news(self, index: int, status: ReplicaStatus) -> None:
        await wait_any(
            [
                lambda: self.store.wait_beyond(index),
                lambda: self.replica.wait_for_change(status),
            ]
        )

    async def _set_role(self, leadership: Leadership, node: NodeId, role: Role) -> None:
        async with leadership.writing:
            state = self.store.state
            row = state.nodes.get(node)
            if row is None or row.role is role:
                return
            draft = Draft(state)
            draft.put(dataclasses.replace(row, role=role, updated_at=leadership.now()))
            await leadership.commit(draft)
        logger.info("role of node changed node=%s role=%s", node, role)

    def _context_of(self, node: NodeId, server: int) -> bytes:
        facts = self.store.state.nodes[node].facts
        view = ManagerView(node=node, address=facts.address, port=facts.port, raft_server=server)
        return pack(view)

    # Where servers are.

    def _find_server(self, server: ServerId) -> ManagerView | None:
        for node in self.store.state.nodes.values():
            if node.facts.raft_server == server and node.facts.address:
                facts = node.facts
                return ManagerView(
                    node=node.id, address=facts.address, port=facts.port, raft_server=server
                )
        if not self._started:
            return None
        found = self._view_in(self.replica.status.configuration.context_of(server))
        return found if found.address else None

    @staticmethod
    def _view_in(context: bytes | None) -> ManagerView:
        """Return what a server's context in Raft's configuration says of it."""
        if context:
            with suppress(BadMessage):
                return unpack_untrusted(ManagerView, context)
        return ManagerView(node=NodeId(""), address="", port=0)

    def _server_of(self, node: NodeId) -> ServerId | None:
        row = self.store.state.nodes.get(node)
        server = row.facts.raft_server if row is not None else 0
        return ServerId(server) if server else None

    # Who leads.

    @property
    def leader(self) -> ManagerView | None:
        """The leader, as far as this server knows."""
        if not self._started:
            return None
        server = self.replica.status.leader
        return self._find_server(server) if server else None

    @property
    def is_fed(self) -> bool:
        """Whether this manager leads or hears a leader."""
        return self._started and self.replica.status.leader is not None

    async def serve_session(self, stream: FrameStream) -> None:
        """The handler of sl-session/1."""
        term = self.term
        if term is not None:
            await term.dispatcher.serve(stream)
            return
        leader = self.leader
        if leader is not None and leader.node == self._node:
            leader = None  # elected just now: not ready yet
        await stream.receive()  # its Hello
        await stream.send(Redirect(reason="this manager does not lead", leader=leader))


def cluster_bytes(cluster: str) -> bytes:
    """The 16 bytes that a cluster's id is the text of."""
    return base64.b32decode(cluster.upper() + "=" * (-len(cluster) % 8))
