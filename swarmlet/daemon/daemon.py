"""The daemon: one process a host, in a swarm or out of it.

A shell. Always there: the image store, the container supervisor and the API's socket. A Node is
there while this host belongs to a cluster; init, join, leave and a change of role begin and end
one.
"""

from __future__ import annotations

import logging
import random
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress

import trio

from raft.replica import Replica
from swarmlet import VERSION
from swarmlet.agent.health import Health
from swarmlet.agent.local.engine import Engine
from swarmlet.agent.network import HostNetwork
from swarmlet.api.backend import (
    Event,
    InitRequest,
    JoinRequest,
    LocalState,
    LocalStatus,
    ManagerAddress,
    TaskContainer,
)
from swarmlet.api.server import make_router, serve_unix
from swarmlet.daemon.config import BadState, Membership, Settings, own_address, parse_address
from swarmlet.daemon.events import EventBus
from swarmlet.daemon.manager import RAFT_FOLDER, Founding, cluster_bytes
from swarmlet.daemon.neighbourhood import NodeNeighbourhood
from swarmlet.daemon.node import JOURNAL, RAFT_KEY_PURPOSE, Node
from swarmlet.daemon.pinning import ImagePinner
from swarmlet.daemon.recovery import NodeRecovery
from swarmlet.identity import (
    CertificateAuthority,
    Credentials,
    DamagedIdentity,
    Issued,
    JoinFacts,
    KeyPair,
    Locked,
    MistypedToken,
    TrustBundle,
    Vault,
    derive_key,
    new_cluster_id,
    node_id_of,
    parse_token,
)
from swarmlet.identity import Role as CertificateRole
from swarmlet.images.errors import ImageError
from swarmlet.images.reference import Digest
from swarmlet.images.store import ImageStore
from swarmlet.manager.control import Control
from swarmlet.manager.errors import Conflicting, ControlError, Unavailable
from swarmlet.manager.leadership import Leadership
from swarmlet.model import NodeId, NodeSpec, Role, TaskId
from swarmlet.runtime.supervisor import Supervisor
from swarmlet.transport import ConnectFailed, EnrolmentRefused, enrol

logger = logging.getLogger(__name__)

IDENTITY_FOLDER, IMAGES_FOLDER = "identity", "images"
#: Seconds that init waits for its own vote and the first entries.
FOUND_PATIENCE = 20.0
#: Seconds that join waits for the first session; the node goes on trying after that.
SESSION_PATIENCE = 15.0
#: Seconds between two looks for images that nobody needs. Writes only when there is one.
COLLECT_INTERVAL = 3600.0
#: How long a planned restart of the daemon is said to take.
BACK_IN = 30.0


class Daemon:
    """swarmlet.api.backend.LocalNode of this host."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.images = ImageStore(settings.state_dir / IMAGES_FOLDER)
        self.supervisor = Supervisor(
            run_dir=settings.run_dir,
            state_dir=settings.state_dir,
            cgroup_parent=settings.cgroup_parent,
        )
        self.network = HostNetwork(
            address=self._address_alone,
            gateway=settings.gateway_subnet,
            run_dir=settings.run_dir,
            state_dir=settings.state_dir,
        )
        self.events = EventBus()
        self.local = Engine(
            supervisor=self.supervisor,
            images=self.images,
            network=self.network,
            state_dir=settings.state_dir,
            host_name=settings.host_name,
            publish=self.events.tell,
            rng=random.SystemRandom(),
        )
        self.node: Node | None = None
        self._vault = Vault(settings.state_dir / IDENTITY_FOLDER)
        self._rng = random.SystemRandom()
        self._nursery: trio.Nursery | None = None
        self._node_scope = trio.CancelScope()
        self._node_gone = trio.Event()
        self._changing = trio.Lock()  # one init, join or leave at a time
        self._pending = False
        self._error = ""

    # Life.

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started() once the API answers."""
        router = make_router(self)
        self._respond = router.respond
        async with trio.open_nursery() as foundation:
            await foundation.start(self.images.run)
            await foundation.start(self.supervisor.run)
            await foundation.start(self.network.run)
            foundation.start_soon(self.events.follow_tasks, self.supervisor, self._describe)
            await self.local.load()
            await foundation.start(self.local.run)
            foundation.start_soon(self._collect_images)
            async with trio.open_nursery() as work:
                self._nursery = work
                await self._resume()
                self.network.open()
                await work.start(serve_unix, self.settings.socket_path, self._respond)
                task_status.started()
                await trio.sleep_forever()

    async def stop(self) -> None:
        """Before the cancellation: say goodbye where it helps."""
        if self.node is not None:
            with trio.move_on_after(5.0):
                await self.node.stop(back_in=BACK_IN)

    async def _collect_images(self) -> None:
        """Remove images that nobody named here and that no task and no spec needs any more."""
        while True:
            await trio.sleep(COLLECT_INTERVAL)
            node = self.node
            if node is None or not node.agent.link.connected:
                continue  # what is needed is only known from a manager
            needed = {Digest(digest) for digest in node.agent.needed_images if digest}
            needed |= {Digest(digest) for digest in self.local.images_in_use}
            try:
                await self.images.collect(needed)
            except (ImageError, OSError) as exc:
                logger.warning("images not collected reason=%s", exc)

    async def _resume(self) -> None:
        """Be the node again that this host was, with no manager in reach if need be."""
        try:
            membership = Membership.load(self.settings.state_dir)
            if membership is None:
                await self._wipe()  # what an unfinished init or join left
                return
            credentials = self._vault.load()
            if credentials is None:
                raise BadState(
                    f"the identity in {self._vault.folder} is gone: put a copy back, or run "
                    "`swarmlet leave --force` and join again"
                )
            await self._begin(membership, credentials, must_listen=False)
        except (BadState, DamagedIdentity, Locked, OSError) as exc:
            self._error = str(exc)
            logger.error("node not started reason=%s", exc)

    async def _begin(
        self,
        membership: Membership,
        credentials: Credentials,
        founding: Founding | None = None,
        *,
        must_listen: bool = True,
    ) -> Node:
        assert self._nursery is not None
        pinner = ImagePinner(self.images, self._leadership)
        node = Node(
            settings=self.settings,
            membership=membership,
            vault=self._vault,
            credentials=credentials,
            supervisor=self.supervisor,
            images=self.images,
            network=self.network,
            respond=self._respond,
            pin_image=pinner.pin,
            rng=random.Random(self._rng.getrandbits(64)),
        )
        self._node_gone = trio.Event()
        self.node = node
        try:
            await self._nursery.start(self._live, node, founding, must_listen)
        except BaseException:
            self.node = None
            raise
        node.on_role = self._role_changed
        self._error = ""
        logger.info("node started node=%s role=%s address=%s", node.id, node.role, node.address)
        return node

    async def _live(
        self,
        node: Node,
        founding: Founding | None,
        must_listen: bool,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        try:
            with trio.CancelScope() as self._node_scope:
                await node.run(founding=founding, must_listen=must_listen, task_status=task_status)
        finally:
            node.close()
            self._node_gone.set()

    async def _end(self) -> None:
        self._node_scope.cancel()
        await self._node_gone.wait()
        self.node = None

    def _leadership(self) -> Leadership | None:
        term = self.node.manager.term if self.node is not None and self.node.manager else None
        return term.leadership if term is not None else None

    # What the API asks.

    @property
    def status(self) -> LocalStatus:
        node = self.node
        common = {
            "name": self.settings.host_name,
            "version": VERSION,
            "state_dir": str(self.settings.state_dir),
            "cgroup_version": 1 if self.supervisor.host.hybrid else 2,
        }
        if node is None:
            state = LocalState.ERROR if self._error else LocalState.INACTIVE
            if self._pending:
                state = LocalState.PENDING
            return LocalStatus(state=state, error=self._error, **common)  # type: ignore[arg-type]
        fault = node.manager.fault if node.manager is not None else ""
        takes_part = node.manager is not None and not fault
        in_touch = node.agent.link.connected or takes_part
        names = {n.id: n.name for n in node.agent.nodes().values()}
        return LocalStatus(
            state=LocalState.ACTIVE if in_touch else LocalState.PENDING,
            node_id=node.id,
            cluster_id=node.cluster_id,  # type: ignore[arg-type]
            role=node.role,
            is_leader=self.control is not None,
            leader=node.leader,
            managers=tuple(
                ManagerAddress(
                    node=m.node, address=m.address, port=m.port, name=names.get(m.node, "")
                )
                for m in node.managers()
            ),
            address=node.address,
            error=fault or ("" if in_touch else node.agent.link.last_error),
            **common,  # type: ignore[arg-type]
        )

    @property
    def control(self) -> Control | None:
        term = self.node.manager.term if self.node is not None and self.node.manager else None
        return term.control if term is not None else None

    def start_soon(self, act: Callable[..., Awaitable[None]], *arguments: object) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(act, *arguments)

    def _describe(self, container: str) -> Mapping[str, str]:
        """What an event says of a task's container beside its labels."""
        for task in self.task_containers().values():
            if task.container == container:
                return {"name": task.name, "image": task.image}
        return {}

    async def dial_api(self, node: NodeId | None) -> trio.abc.Stream:
        if self.node is None:
            raise Unavailable("this node is not part of a swarm")
        return await self.node.dial_api(node)

    def task_containers(self) -> Mapping[TaskId, TaskContainer]:
        if self.node is None:
            return {}
        networks = {n.id: n.name for n in self.node.agent.networks()}
        found: dict[TaskId, TaskContainer] = {}
        for id_, entry in self.node.agent.worker.tasks.items():
            if entry.task is not None and entry.container:
                state = self.supervisor.containers.get(entry.container)
                found[id_] = TaskContainer(
                    container=entry.container,
                    name=entry.task.name,
                    image=entry.task.template.container.image,
                    labels=state.spec.annotations if state is not None else {},
                    networks={
                        networks.get(e.network, e.network): e.address for e in entry.task.endpoints
                    },
                    health="" if entry.health is Health.NONE else entry.health.value,
                    restarts=entry.local.attempt,
                )
        return found

    @property
    def neighbourhood(self) -> NodeNeighbourhood:
        return NodeNeighbourhood(self.node)

    @property
    def recovery(self) -> NodeRecovery:
        return NodeRecovery(
            self.node,
            folder=self.settings.state_dir / RAFT_FOLDER,
            key=lambda: derive_key(self._vault.storage_key(), RAFT_KEY_PURPOSE),
            restart=self._restart_node,
        )

    def subscribe_events(
        self,
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Event]]:
        return self.events.subscribe()

    # Into a cluster and out of it.

    async def init(self, request: InitRequest) -> NodeId:
        """Make a new cluster with this node as its first manager."""
        async with self._changing:
            self._refuse_second("init")
            try:
                return await self._init(request)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._give_up()
                raise

    async def _init(self, request: InitRequest) -> NodeId:
        listen, advertise, found = self._addresses(request.listen, request.advertise, None)
        now = time.time()
        cluster = new_cluster_id()
        authority = CertificateAuthority.create(cluster, now=now)
        key = await trio.to_thread.run_sync(self._vault.pending_key)
        node_id = NodeId(node_id_of(key.public_key))
        leaf = authority.issue(
            key.public_key,
            node=node_id,
            role=CertificateRole.MANAGER,
            now=now,
            lifetime=request.spec.certificate_life,
        )
        trust = TrustBundle(roots=(authority.certificate,))
        credentials = await self._adopt_identity((leaf,), trust)
        raft_key = derive_key(self._vault.storage_key(), RAFT_KEY_PURPOSE)
        folder = self.settings.state_dir / RAFT_FOLDER
        await trio.to_thread.run_sync(Replica.bootstrap, folder, raft_key, cluster_bytes(cluster))
        founding = Founding(
            spec=request.spec,
            ca_certificate=authority.certificate,
            ca_key=authority.key.pem,
            node=node_id,
            node_spec=NodeSpec(role=Role.MANAGER, availability=request.availability),
            public_key=key.public_key,
            data_path_port=request.data_path_port or self.settings.data_path_port,
        )
        membership = Membership(
            cluster=cluster,
            node=node_id,
            listen=listen,
            advertise=advertise,
            follows_address=found,
        )
        node = await self._begin(membership, credentials, founding)
        with trio.move_on_after(FOUND_PATIENCE) as patience:
            await node.agent.link.wait_connected()
        if patience.cancelled_caught:
            raise Unavailable(
                f"the new cluster did not come up within {FOUND_PATIENCE:g} s: look at the log of "
                "the daemon"
            )
        await trio.to_thread.run_sync(membership.store, self.settings.state_dir)
        logger.info("cluster initialised cluster=%s node=%s", cluster, node_id)
        return node_id

    async def join(self, request: JoinRequest) -> NodeId:
        """Make this host a node of the cluster whose token is given."""
        async with self._changing:
            self._refuse_second("join")
            try:
                return await self._join(request)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._give_up()
                raise

    async def _join(self, request: JoinRequest) -> NodeId:
        try:
            token = parse_token(request.token)
            managers = [parse_address(text) for text in request.addresses]
        except (MistypedToken, ValueError) as exc:
            raise _bad_request(str(exc)) from exc
        if not managers:
            raise _bad_request("name the address of a manager to join: HOST:PORT")
        listen, advertise, found = self._addresses(
            request.listen, request.advertise, managers[0][0]
        )
        key = await trio.to_thread.run_sync(self._vault.pending_key)
        _, port = parse_address(listen)
        facts = JoinFacts(
            name=self.settings.host_name,
            address=f"{advertise}:{port}",
            version=VERSION,
            facts={"availability": request.availability.value},
        )
        self._pending = True
        try:
            issued = await self._enrol(managers, token, key, facts)
        finally:
            self._pending = False
        credentials = await self._adopt_identity(issued.chain, issued.bundle)
        if credentials.role is CertificateRole.MANAGER:
            await self._make_raft_log(credentials)
        asked = [f"{host}:{port}" for host, port in managers]
        membership = Membership(
            cluster=credentials.cluster,
            node=credentials.node,
            listen=listen,
            advertise=advertise,
            managers=list(dict.fromkeys([*issued.managers, *asked])),
            follows_address=found,
        )
        await trio.to_thread.run_sync(membership.store, self.settings.state_dir)
        node = await self._begin(membership, credentials)
        with trio.move_on_after(SESSION_PATIENCE):
            await node.agent.link.wait_connected()
        logger.info("cluster joined cluster=%s node=%s", node.cluster_id, node.id)
        return node.id

    async def _enrol(
        self,
        managers: Sequence[tuple[str, int]],
        token: object,
        key: KeyPair,
        facts: JoinFacts,
    ) -> Issued:
        failures: list[str] = []
        for address in managers:
            try:
                answer = await enrol(address, token, key, facts)  # type: ignore[arg-type]
            except ConnectFailed as exc:
                failures.append(str(exc))
                continue
            except EnrolmentRefused as exc:
                raise _bad_request(exc.text) from exc
            if isinstance(answer, Issued):
                return answer
            failures.append(answer.text or "a person has to approve this node first")
        raise Unavailable("; ".join(failures))

    async def leave(self, *, force: bool) -> None:
        """Take this host out of its cluster: its tasks end, and nothing of it stays here."""
        async with self._changing:
            node = self.node
            if node is None and not self._error:
                raise ControlError("this node is not part of a swarm")
            if node is not None and node.role is Role.MANAGER and not force:
                raise ControlError(
                    "this node is a manager: leaving takes its vote and its copy of the cluster's "
                    "state away. Demote it first (`swarmlet node demote` on another manager), or "
                    "leave with --force; if it is the last manager, the cluster ends with it"
                )
            if node is not None:
                with trio.move_on_after(10.0):
                    await node.leave()
                await self._end()
                await self.network.leave()
            self._error = ""
            await self._wipe()
            logger.info("cluster left")

    def _refuse_second(self, what: str) -> None:
        if self.node is not None:
            raise Conflicting(
                f"this node is part of a swarm already (as {self.node.role} of cluster "
                f"{self.node.cluster_id}): run `swarmlet leave` before another {what}"
            )
        if self._error:
            raise Conflicting(f"this node has state of a cluster that it cannot use: {self._error}")

    def _addresses(self, listen: str, advertise: str, toward: str | None) -> tuple[str, str, bool]:
        """Where to listen, which address to tell others, and whether that one was found."""
        listen = listen or self.settings.listen
        advertise = advertise or self.settings.advertise
        try:
            _, port = parse_address(listen)
            address = parse_address(advertise, port)[0] if advertise else own_address(toward)
        except (ValueError, OSError) as exc:
            raise _bad_request(str(exc)) from exc
        return listen, address, not advertise

    def _address_alone(self) -> str:
        """This host's own address while it is in no cluster; without a route any will do."""
        try:
            return own_address()
        except OSError:
            return "0.0.0.0"

    async def _adopt_identity(self, chain: tuple[bytes, ...], trust: TrustBundle) -> Credentials:
        def adopt() -> Credentials:
            self._vault.store_pending(chain, trust)
            return self._vault.promote_pending()

        return await trio.to_thread.run_sync(adopt)

    async def _make_raft_log(self, credentials: Credentials) -> None:
        key = derive_key(self._vault.storage_key(), RAFT_KEY_PURPOSE)
        folder = self.settings.state_dir / RAFT_FOLDER
        await trio.to_thread.run_sync(
            Replica.create, folder, key, cluster_bytes(credentials.cluster)
        )

    async def _give_up(self) -> None:
        if self.node is not None:
            await self._end()
        await self.network.leave()
        await self._wipe()

    async def _wipe(self) -> None:
        """Forget the cluster: identity, log, assignment. Images and volumes stay."""

        def wipe() -> None:
            state = self.settings.state_dir
            Membership.forget(state)
            for name in (JOURNAL, f"{JOURNAL}-wal", f"{JOURNAL}-shm"):
                with suppress(FileNotFoundError):
                    (state / name).unlink()
            shutil.rmtree(state / RAFT_FOLDER, ignore_errors=True)
            self._vault.erase()

        await trio.to_thread.run_sync(wipe)

    async def _restart_node(self, work: Callable[[], None]) -> None:
        """End this node's life, do *work* on its disk, and begin another life. Tasks go on."""
        async with self._changing:
            node = self.node
            if node is None:
                raise Unavailable("this node is not part of a swarm")
            membership, credentials = node.membership, node.credentials
            await self._end()
            try:
                await trio.to_thread.run_sync(work)
            finally:
                await self._begin(membership, credentials, must_listen=False)

    # Another role.

    def _role_changed(self) -> None:
        """The node has a certificate of another role: it begins another life in it."""
        assert self._nursery is not None
        self._nursery.start_soon(self._change_role)

    async def _change_role(self) -> None:
        async with self._changing:
            node = self.node
            if node is None:
                return
            membership, credentials = node.membership, node.credentials
            await node.stop(back_in=BACK_IN)
            await self._end()
            if credentials.role is CertificateRole.MANAGER:
                await self._make_raft_log(credentials)
            else:
                folder = self.settings.state_dir / RAFT_FOLDER
                await trio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))
            logger.info("role changed role=%s", credentials.role)
            await self._begin(membership, credentials)


def _bad_request(text: str) -> ControlError:
    error = ControlError(text)
    error.status = 400
    return error
