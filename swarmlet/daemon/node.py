"""A node of a cluster, running: transport, gossip, agent, and on managers Raft and the store.

A shell: composition. Nesting is dependency: the transport and gossip are outside, the agent and
the manager inside.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import platform
import random
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import trio

from swarmlet import VERSION
from swarmlet.agent.agent import Agent
from swarmlet.agent.assignment import Assignment
from swarmlet.agent.imaging import serve_blob
from swarmlet.agent.journal import Journal
from swarmlet.agent.network import HostNetwork
from swarmlet.api.exchange import Peer as ApiPeer
from swarmlet.api.http import Respond, serve_stream
from swarmlet.codec import BadMessage
from swarmlet.daemon.admission import NodeAdmission
from swarmlet.daemon.config import Membership, Settings, own_address, parse_address
from swarmlet.daemon.enrolment import ManagerEnrolment
from swarmlet.daemon.manager import RAFT_FOLDER, Founding, Manager
from swarmlet.daemon.neighbours import Neighbours
from swarmlet.identity import ClusterClock, Credentials, Vault, derive_key, open_untrusted, seal
from swarmlet.identity import Role as CertificateRole
from swarmlet.images.store import ImageStore
from swarmlet.manager.control import PinImage
from swarmlet.manager.errors import Unavailable
from swarmlet.manager.leadership import Leadership
from swarmlet.model import NodeFacts, NodeId, Role, Table
from swarmlet.runtime.supervisor import Supervisor
from swarmlet.session import BlobRequest, ManagerView, NodeView, Welcome
from swarmlet.state import ClusterState
from swarmlet.swim.messages import Ping, SyncDigest
from swarmlet.swim.sealing import Keyring
from swarmlet.transport import (
    CertificateAuthorityService,
    EndOfStream,
    Framed,
    FrameStream,
    ManagerAddress,
    Peer,
    Protocol,
    Raw,
    Renewer,
    Transport,
    open_listeners,
)
from swarmlet.transport.dial import TlsStream

logger = logging.getLogger(__name__)

RAFT_KEY_PURPOSE = b"raft log"
JOURNAL_KEY_PURPOSE = b"agent journal"
JOURNAL = "agent.db"
#: Seconds for a stream to another node of which somebody waits.
DIAL_WITHIN = 5.0
#: Seconds of one try to reach a node for a confirmation.
REACH_WITHIN = 0.8
#: How often the floor of time is written, at most: an idle disk stays idle.
FLOOR_INTERVAL = 86_400.0
FACTS_VERSION = 1
#: Seconds between two tries to have the port, and between two looks at the host's address.
LISTEN_RETRY, ADDRESS_LOOK = 1.0, 10.0

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


class _JournalSeal:
    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, plaintext: bytes, context: bytes) -> bytes:
        return seal(self._key, plaintext, context)

    def open_untrusted(self, sealed: bytes, context: bytes) -> bytes:
        return open_untrusted(self._key, sealed, context)


@dataclasses.dataclass(frozen=True, slots=True)
class _Doors:
    """The node's one port, open: TCP and UDP."""

    listeners: list[trio.SocketListener]
    datagrams: trio.socket.SocketType


class Node:
    """One life of this node, from the daemon's start, or its join, to its end."""

    def __init__(
        self,
        *,
        settings: Settings,
        membership: Membership,
        vault: Vault,
        credentials: Credentials,
        supervisor: Supervisor,
        images: ImageStore,
        network: HostNetwork,
        respond: Respond,
        pin_image: PinImage,
        rng: random.Random,
    ) -> None:
        self._settings = settings
        self._membership = membership
        self._vault = vault
        self._credentials = credentials
        self._respond = respond
        self._rng = rng
        self.id = NodeId(credentials.node)
        self.cluster_id = credentials.cluster
        self._listen = parse_address(membership.listen)
        self._storage_key = vault.storage_key()
        self.journal = Journal(
            settings.state_dir / JOURNAL,
            _JournalSeal(derive_key(self._storage_key, JOURNAL_KEY_PURPOSE)),
        )
        self.clock = ClusterClock(time.time, float(self.journal.number("floor")))
        self._floor_written = self.clock.floor
        self.manager: Manager | None = None
        self.transport = Transport(
            lambda: self._credentials,
            NodeAdmission(
                lambda: self._credentials,
                self.clock,
                state=self._state,
                feeds=lambda: self.manager is not None and self.manager.is_fed,
            ),
        )
        self.on_role: Callable[[], None] | None = None  # the certificate is for another role now
        self.neighbours = Neighbours(
            node=self.id,
            address=lambda: (self.address, self.port),
            is_manager=self.role is Role.MANAGER,
            journal=self.journal,
            transport=self.transport,
            suspect=self._suspect,
            returned=self._returned,
            mask=self._mask,
            want_keys=lambda: self.agent.link.dial_now(),
            rng=rng,
        )
        self._nursery: trio.Nursery | None = None
        self._pin_image = pin_image
        self.renewer = Renewer(
            vault,
            self.transport,
            credentials=lambda: self._credentials,
            adopt=self._use,
            managers=self._authorities,
            now=self.clock.now,
            rng=rng,
        )
        self.agent = Agent(
            node=self.id,
            node_name=settings.host_name,
            state_dir=settings.state_dir,
            network=network,
            journal=self.journal,
            supervisor=supervisor,
            images=images,
            address=lambda: self.address,
            facts=self._facts,
            first_managers=self._first_managers,
            connect=self._connect_session,
            dial_sync=self._dial_sync,
            reach=self.neighbours.reach,
            assigned=self._assigned,
            welcomed=self._welcomed,
            rng=rng,
        )
        if credentials.role is CertificateRole.MANAGER:
            self.manager = self._make_manager()

    # What it is.

    @property
    def address(self) -> str:
        return self._membership.advertise

    @property
    def port(self) -> int:
        return self._listen[1]

    @property
    def role(self) -> Role:
        return Role(self._credentials.role.value)

    @property
    def leader(self) -> NodeId | None:
        """The leader, as far as this node knows."""
        if self.manager is not None:
            leader = self.manager.leader
            if leader is not None:
                return leader.node
        return self.agent.link.leader

    def managers(self) -> tuple[ManagerView, ...]:
        cluster = self.agent.cluster()
        return cluster.managers if cluster is not None else ()

    @property
    def credentials(self) -> Credentials:
        return self._credentials

    @property
    def membership(self) -> Membership:
        return self._membership

    def _use(self, credentials: Credentials) -> None:
        """New streams show *credentials* from now on; in another role, another life begins."""
        before, self._credentials = self._credentials, credentials
        if credentials.role is not before.role and self.on_role is not None:
            self.on_role()

    def _state(self) -> ClusterState | None:
        """The replicated state, if this manager has it."""
        if self.manager is None or self.manager.store.state.cluster is None:
            return None
        return self.manager.store.state

    # Life.

    async def run(
        self,
        *,
        founding: Founding | None = None,
        must_listen: bool = True,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Be a node until cancelled.

        With *must_listen* an OSError says that the port cannot be had. Without, a node that comes
        back goes on without it and tries again: its address may come later (DHCP), and what is
        assigned must run all the same.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            if must_listen:
                doors = await self._open_doors()
                await nursery.start(self._serve, doors)
            else:
                nursery.start_soon(self._serve_when_possible)
            if self.manager is not None:
                self.manager.founding = founding
                await nursery.start(self.manager.run)
                nursery.start_soon(self._recheck_forever, self.manager)
            await nursery.start(self.renewer.run)
            await nursery.start(self.agent.run)
            if self._membership.follows_address:
                nursery.start_soon(self._follow_address)
            task_status.started()
            await trio.sleep_forever()

    async def _open_doors(self) -> _Doors:
        host, port = self._listen
        listeners = await open_listeners("" if host == "0.0.0.0" else host, port)
        datagrams = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            await _bind(datagrams, host, port)
        except OSError:
            datagrams.close()
            for listener in listeners:
                await listener.aclose()
            raise
        return _Doors(listeners, datagrams)

    async def _serve(
        self, doors: _Doors, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with doors.datagrams:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.transport.serve, doors.listeners, self._handlers())
                nursery.start_soon(self.neighbours.run, doors.datagrams)
                task_status.started()

    async def _serve_when_possible(self) -> None:
        complained = False
        while True:
            try:
                doors = await self._open_doors()
            except OSError as exc:
                if not complained:
                    logger.warning("not listening, tried again every second reason=%s", exc)
                complained = True
                await trio.sleep(LISTEN_RETRY)
                continue
            logger.info("listening address=%s port=%d", *self._listen)
            await self._serve(doors)

    async def _follow_address(self) -> None:
        """Notice another address from the DHCP server, and tell everybody."""
        while True:
            await trio.sleep(ADDRESS_LOOK)
            with suppress(OSError):  # no route just now: the old address is the best guess
                self._move(own_address(self._toward()))

    def _toward(self) -> str | None:
        """An address on the network that the other nodes are on."""
        others = [node.address for node in self.agent.nodes().values() if node.id != self.id]
        return next((address for address in others if address), None)

    def _move(self, address: str) -> None:
        if address == self.address:
            return
        logger.info("own address changed before=%s now=%s", self.address, address)
        self._membership = dataclasses.replace(self._membership, advertise=address)
        self._membership.store(self._settings.state_dir)
        self.__dict__.pop("_fixed_facts", None)
        self.neighbours.moved()
        self.agent.network.poke()
        self.agent.link.poke()

    async def stop(self, *, back_in: float) -> None:
        """End in order: leadership goes to another, the leader learns how long we are away."""
        if self.manager is not None:
            await self.manager.stop()
        await self.agent.link.farewell(back_in)
        self._write_floor()

    async def leave(self) -> None:
        """Leave the cluster for good: containers and network go, the others are told."""
        await self.agent.worker.stop_all()
        await self.agent.network.leave()
        await self.neighbours.leave()
        await self.agent.link.farewell(0.0)

    def close(self) -> None:
        """After run() has ended."""
        self.journal.close()

    def _handlers(self) -> Mapping[Protocol, Framed | Raw]:
        handlers: dict[Protocol, Framed | Raw] = {
            Protocol.API: Raw(self._serve_api),
            Protocol.SYNC: Framed(self._serve_sync),
        }
        if self.manager is not None:
            enrolment = ManagerEnrolment(self.manager.store, self._leadership, self._dial_leader_ca)
            authority = CertificateAuthorityService(enrolment)
            handlers[Protocol.RAFT] = Framed(self.manager.link.serve)
            handlers[Protocol.SESSION] = Framed(self.manager.serve_session)
            handlers[Protocol.CA] = Framed(authority.serve)
        return handlers

    def _leadership(self) -> Leadership | None:
        term = self.manager.term if self.manager is not None else None
        return term.leadership if term is not None else None

    def _make_manager(self) -> Manager:
        key = derive_key(self._storage_key, RAFT_KEY_PURPOSE)
        return Manager(
            state_dir=self._settings.state_dir,
            key=key,
            cluster=self.cluster_id,
            node=self.id,
            transport=self.transport,
            address=lambda: (self.address, self.port),
            facts=self._facts,
            reach=self.neighbours.reach,
            pin_image=self._pin_image,
            rng=self._rng,
        )

    # Facts.

    @cached_property
    def _fixed_facts(self) -> NodeFacts:
        return NodeFacts(
            hostname=self._settings.host_name,
            os="linux",
            architecture=ARCHITECTURES.get(platform.machine(), platform.machine()),
            nano_cpus=len(os.sched_getaffinity(0)) * 10**9,
            memory_bytes=_memory_bytes(),
            engine_version=VERSION,
            address=self.address,
            port=self.port,
        )

    def _facts(self) -> NodeFacts:
        # Until it is measured, the MTU is what it was: a restart writes nothing to the log.
        own = self.agent.nodes().get(self.id)
        return dataclasses.replace(
            self._fixed_facts,
            raft_server=self.manager.replica.server if self.manager is not None else 0,
            underlay_mtu=self.agent.network.underlay_mtu or (own.underlay_mtu if own else 0),
        )

    # What the assignment says.

    def _assigned(self, assignment: Assignment) -> None:
        self._look_at_role()
        cluster = self.agent.cluster()
        if cluster is None:
            return
        keys = {key.epoch: key.key for key in cluster.gossip_keys}
        if cluster.gossip_epoch in keys:
            keyring = Keyring(self.cluster_id.encode(), keys, cluster.gossip_epoch)
            self.neighbours.configure(keyring, cluster.gossip_preset, cluster.gossip_knobs)
        self.neighbours.set_known(self.agent.nodes().values())

    def _look_at_role(self) -> None:
        """Get the certificate of the role that the store wants of this node."""
        own = self.agent.nodes().get(self.id)
        if own is not None and own.role is not self.role:
            self.renewer.hurry()

    def _welcomed(self, welcome: Welcome, peer: Peer) -> None:
        if peer.node is not None:
            # After a cut we may be dead for each other, and it tells the others.
            self.neighbours.look_at(NodeId(peer.node))
        if peer.certificate is not None:
            self.clock.learn(welcome.now, peer.certificate)
        if self.clock.floor - self._floor_written > FLOOR_INTERVAL:
            self._write_floor()

    def _write_floor(self) -> None:
        if int(self.clock.floor) > int(self._floor_written):
            self.journal.set_number("floor", int(self.clock.floor))
            self._floor_written = self.clock.floor

    def _first_managers(self) -> list[ManagerView]:
        """Managers to turn to before there is an assignment."""
        found = []
        if self.manager is not None:
            leader = self.manager.leader
            if leader is not None:
                found.append(leader)
            if self.manager.founding is not None:
                found.append(ManagerView(node=self.id, address=self.address, port=self.port))
        for text in self._membership.managers:
            address, port = parse_address(text)
            found.append(ManagerView(node=NodeId(""), address=address, port=port))
        return found

    # What gossip tells.

    def _suspect(self, node: NodeId) -> None:
        term = self.manager.term if self.manager is not None else None
        if term is not None:
            term.dispatcher.suspect(node)

    def _returned(self, node: NodeId) -> None:
        if any(manager.node == node for manager in self.managers()):
            self.agent.link.dial_now()

    def _mask(self, dead: Iterable[NodeId]) -> None:
        self.agent.network.mask(dead)

    # Streams to and from other nodes.

    async def _connect_session(self, manager: ManagerView) -> FrameStream:
        return await self.transport.connect(
            (manager.address, manager.port),
            Protocol.SESSION,
            node=manager.node or None,
            within=DIAL_WITHIN,
        )

    async def _dial_sync(self, node: NodeView) -> FrameStream:
        return await self.transport.connect(
            (node.address, node.port), Protocol.SYNC, node=node.id, within=DIAL_WITHIN
        )

    async def _dial_leader_ca(self) -> FrameStream:
        leader = self.manager.leader if self.manager is not None else None
        if leader is None or leader.node == self.id:
            raise OSError("no manager leads just now")
        return await self.transport.connect(
            (leader.address, leader.port), Protocol.CA, node=leader.node, within=DIAL_WITHIN
        )

    def _authorities(self) -> list[ManagerAddress]:
        """The managers that may sign a certificate, the leader first."""
        leader = self.leader
        known = sorted(self.managers(), key=lambda m: m.node != leader)
        return [ManagerAddress((m.address, m.port), m.node) for m in known]

    async def _recheck_forever(self, manager: Manager) -> None:
        """Cut off at once who was removed or demoted."""
        state = manager.store.state
        while True:
            await manager.store.wait_beyond(state.index)
            before, state = state, manager.store.state
            if state.rows(Table.NODE) is not before.rows(Table.NODE):
                self.transport.recheck()

    async def dial_api(self, node: NodeId | None) -> TlsStream:
        """Open an sl-api/1 stream to *node*, or to the leader (None). Raises Unavailable."""
        target = node or self.leader
        if target is None:
            raise Unavailable(
                "no manager leads just now: a quorum of managers is away; try again in a moment"
            )
        view = self.agent.nodes().get(target)
        state = self._state()
        if state is not None and target in state.nodes:
            facts = state.nodes[target].facts
            where = (facts.address, facts.port)
        elif view is not None:
            where = (view.address, view.port)
        else:
            raise Unavailable(f"the address of node {target} is not known here yet; try again")
        try:
            _, stream = await self.transport.connect_raw(
                where, Protocol.API, node=target, within=DIAL_WITHIN
            )
        except OSError as exc:
            raise Unavailable(f"node {target} cannot be reached: {exc}") from exc
        return stream

    async def _serve_api(self, peer: Peer, stream: TlsStream) -> None:
        assert peer.node is not None
        assert peer.role is not None
        api_peer = ApiPeer(NodeId(peer.node), Role(peer.role.value))
        await serve_stream(stream, self._respond, peer=api_peer)

    async def _serve_sync(self, stream: FrameStream) -> None:
        """Gossip's exchanges, and blobs of images; a stream without a word only proves us."""
        try:
            first = await stream.receive()
        except EndOfStream:
            return
        match first:
            case BlobRequest():
                await serve_blob(self.agent.images.store, stream, first)
            case Ping() | SyncDigest():
                await self.neighbours.serve_sync(stream, first)
            case _:
                raise BadMessage(f"{type(first).__name__} does not begin a sync stream")


def has_raft_log(state_dir: Path) -> bool:
    return (state_dir / RAFT_FOLDER).is_dir()


async def _bind(datagrams: trio.socket.SocketType, host: str, port: int) -> None:
    try:
        await datagrams.bind((host, port))
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            text = f"UDP port {port} is in use by another program: stop it, or listen elsewhere"
            raise OSError(exc.errno, f"{text} (--listen)") from exc
        raise


def _memory_bytes() -> int:
    """The host's memory (proc(5), meminfo)."""
    with open("/proc/meminfo") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name == "MemTotal":
                return int(rest.split()[0]) * 1024
    return 0
