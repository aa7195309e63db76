"""The way out when a majority of the managers is lost for good: one of them goes on alone.

A shell: it asks the other managers what they have, and lets the daemon end this node's life,
rewrite its log, and begin another life. What that changes in the state: manager/rebirth.py.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from raft import boot, repair
from raft.scan import LogMissing
from swarmlet.api.raftstate import OtherManager, RaftState, Survey
from swarmlet.api.recovery import read_state
from swarmlet.api.upstream import Broken, Upstream
from swarmlet.codec import pack
from swarmlet.daemon.manager import Manager, cluster_bytes
from swarmlet.daemon.node import Node
from swarmlet.manager.errors import Conflicting, ControlError, Unavailable
from swarmlet.model import NodeId, Role
from swarmlet.session import ManagerView

logger = logging.getLogger(__name__)

#: For another manager to say what it has.
ASK_SECONDS = 5.0
ANSWER_BYTES_MAX = 64 * 1024
EPOCH_BITS = 62

Restart = Callable[[Callable[[], None]], Awaitable[None]]


class NodeRecovery:
    """swarmlet.api.raftstate.Recovery of this host.

    Args:
        node: None while this host belongs to no cluster.
        folder: where Raft's log is.
        key: returns what it is sealed with.
        restart: ends the node's life, does something on its disk, begins another life.
    """

    def __init__(
        self, node: Node | None, *, folder: Path, key: Callable[[], bytes], restart: Restart
    ) -> None:
        self._node = node
        self._folder = folder
        self._key = key
        self._restart = restart

    def _manager(self) -> tuple[Node, Manager]:
        node = self._node
        if node is None or node.manager is None:
            raise Unavailable("this node is no manager: it has no copy of the cluster's state")
        return node, node.manager

    def state(self) -> RaftState:
        _, manager = self._manager()
        status = manager.status
        if status is None:
            return RaftState(fault=manager.fault or "it is still starting")
        return RaftState(
            server=status.server,
            role=status.role.value,
            leader=status.leader is not None,
            term=status.term,
            commit_index=status.commit_index,
            last_index=status.last_index,
            last_term=status.last_term,
            voters=len(status.configuration.all_voters()),
            recovering=status.recovering,
            disk_full=status.disk_full,
        )

    async def survey(self) -> Survey:
        node, manager = self._manager()
        here, damage = self.state(), ""
        if manager.status is None:
            here, damage = await self._look(node, here.fault)
        others: list[OtherManager] = []
        async with trio.open_nursery() as nursery:
            for view in self._views(node, manager):
                nursery.start_soon(self._ask, node, view, others)
        return Survey(here=here, others=tuple(sorted(others, key=_name_of)), damage=damage)

    async def _look(self, node: Node, fault: str) -> tuple[RaftState, str]:
        """Look at a log that no server runs on; its text says what is wrong with it."""
        cluster = cluster_bytes(node.cluster_id)
        try:
            found = await trio.to_thread.run_sync(repair.look, self._folder, self._key(), cluster)
        except (OSError, LogMissing, ValueError) as exc:
            return RaftState(fault=fault), str(exc)
        state = RaftState(
            server=found.server,
            term=found.term,
            commit_index=found.commit_index,
            last_index=found.last_index,
            last_term=found.last_term,
            voters=len(found.configuration.all_voters()) if found.configuration else 0,
            fault=fault,
        )
        return state, found.damage or ""

    def _views(self, node: Node, manager: Manager) -> list[tuple[NodeId, str, str]]:
        """Id, name and address of the other managers, as the state has them, or the agent."""
        rows = manager.store.state.nodes.values()
        found = {
            row.id: (row.id, row.facts.hostname, f"{row.facts.address}:{row.facts.port}")
            for row in rows
            if Role.MANAGER in (row.role, row.spec.role)
        }
        names = {row.id: row.name for row in node.agent.nodes().values()}
        for view in node.managers():
            name = names.get(view.node, view.node)
            found.setdefault(view.node, (view.node, name, f"{view.address}:{view.port}"))
        return [view for id_, view in found.items() if id_ != node.id]

    async def _ask(
        self, node: Node, view: tuple[NodeId, str, str], into: list[OtherManager]
    ) -> None:
        id_, name, address = view
        try:
            state = await self._fetch(node, id_)
        except (ControlError, OSError, Broken, ValueError, KeyError, TypeError) as exc:
            reason = str(exc) or type(exc).__name__
            into.append(OtherManager(name=name, address=address, error=reason))
        else:
            into.append(OtherManager(name=name, address=address, state=state))

    async def _fetch(self, node: Node, id_: NodeId) -> RaftState:
        with trio.move_on_after(ASK_SECONDS):
            upstream = Upstream(await node.dial_api(id_))
            try:
                head = await upstream.request("GET", "/swarmlet/raft")
                text = b""
                while chunk := await upstream.receive():
                    text += chunk
                    if len(text) > ANSWER_BYTES_MAX:
                        raise ValueError("it says too much")
            finally:
                await upstream.aclose()
            document = json.loads(text)
            if head.status != 200:
                raise ValueError(str(document.get("message", head.status)))
            return read_state(document)
        raise Unavailable(f"it did not answer within {ASK_SECONDS:g} s")

    async def recover(self, *, force: bool) -> None:
        node, manager = self._manager()
        status = manager.status
        if status is not None and status.leader is not None and not force:
            raise Conflicting(
                "a majority of the managers is there and has a leader, so nothing is lost: take "
                "dead managers out with `swarmlet node demote` and `swarmlet node rm --force`"
            )
        key, cluster, folder = self._key(), cluster_bytes(node.cluster_id), self._folder
        server = boot.random_server()
        context = pack(
            ManagerView(
                node=node.id,
                address=node.address,
                port=node.port,
                raft_server=server,
                epoch=secrets.randbits(EPOCH_BITS) or 1,
            )
        )

        def rewrite() -> None:
            repair.recover_alone(folder, key, cluster, context=context, new_id=server)

        logger.warning("recovering alone node=%s", node.id)
        try:
            await self._restart(rewrite)
        except LogMissing as exc:
            raise Unavailable(f"there is nothing to recover from: {exc}") from exc


def _name_of(other: OtherManager) -> str:
    return other.name
