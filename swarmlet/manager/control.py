"""Control: what users ask of the cluster, checked and written. Exists on the leader only.

Every refusal is a ControlError or SpecError whose text says what, why and what to do; nothing was
changed then. What is computed from the state is computed again when somebody else was first.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import trio

from swarmlet.identity import Role as CertificateRole
from swarmlet.identity import new_issued_token, secret_digest, standing_token
from swarmlet.identity.certificates import digest_of
from swarmlet.manager.allocator import INGRESS_NAME, Allocator, Exhausted
from swarmlet.manager.changes import delete_service, new_id, put_spec
from swarmlet.manager.errors import Conflicting, ControlError, NotFound, OutOfSequence, Unavailable
from swarmlet.manager.gossipkeys import revoked, rotated
from swarmlet.manager.leadership import Leadership, new_gossip_key
from swarmlet.manager.view import View
from swarmlet.model import (
    Cluster,
    ClusterSpec,
    JoinToken,
    Network,
    NetworkAttachment,
    NetworkId,
    NetworkSpec,
    Node,
    NodeId,
    NodeSpec,
    NodeState,
    PublishMode,
    Role,
    Service,
    ServiceId,
    ServiceSpec,
    Table,
    UpdatePhase,
    UpdateStatus,
)
from swarmlet.model.validation import (
    SpecError,
    check_network_spec,
    check_node,
    check_service,
)
from swarmlet.state import ClusterState, Draft
from swarmlet.store import ChangeConflict, NotLeader, OutcomeUnknown

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: How often a writer that was not first computes its change anew.
ATTEMPTS_MAX = 5
TOKEN_LIFE_MAX = 365 * 86400.0
#: Seconds that the removal of a network waits for tasks that are stopping.
STOPPING_PATIENCE = 30.0

#: Gives an image its digest ("busybox:1@sha256:..."), or raises ControlError.
PinImage = Callable[[str], Awaitable[str]]
#: Raises ValueError if gossip has no such preset or knobs, or they do not go together.
CheckGossip = Callable[[str, Mapping[str, str]], object]


class Control:
    """The writing side of the API, for one term of leadership."""

    def __init__(
        self,
        leadership: Leadership,
        *,
        own: NodeId,
        pin_image: PinImage,
        check_gossip: CheckGossip,
    ) -> None:
        self._leadership = leadership
        self._own = own
        self._pin_image = pin_image
        self._check_gossip = check_gossip

    @property
    def view(self) -> View:
        return self._leadership.view

    # Services.

    async def create_service(self, spec: ServiceSpec, *, request: str = "") -> Service:
        check_service(spec)
        spec = await self._pinned(spec)

        def write(state: ClusterState, draft: Draft) -> Service:
            _refuse_taken_name(state.services, spec.name, "service")
            wanted = _with_network_ids(state, spec)
            allocator = self._allocator(state)
            _see_to_ingress(state, wanted, draft, allocator, self._leadership)
            now = self._leadership.now()
            service = Service(
                id=ServiceId(new_id(self._leadership.rng)),
                spec=wanted,
                virtual_addresses=allocator.virtual_addresses(wanted, None),
                ports=allocator.ports(wanted, None),
                created_at=now,
                updated_at=now,
            )
            draft.put(service)
            return service

        service = await self._write(write, request=request)
        logger.info("service created id=%s name=%s", service.id, spec.name)
        return service

    async def update_service(
        self, service: ServiceId, spec: ServiceSpec, *, version: int, rollback: bool = False
    ) -> Service:
        """Replace the spec of *service*; *rollback* goes back to the one before instead."""
        if not rollback:
            check_service(spec)
            spec = await self._pinned(spec)

        def write(state: ClusterState, draft: Draft) -> Service:
            current = _find(state, Table.SERVICE, service, "service")
            _check_version("service", current, version)
            now = self._leadership.now()
            if rollback:
                if current.previous_spec is None:
                    raise ControlError(
                        f"service {current.spec.name} has no previous spec to go back to"
                    )
                wanted: ServiceSpec = current.previous_spec
                phase = UpdatePhase.ROLLBACK_STARTED
            else:
                _check_unchangeable(current, spec)
                wanted = _with_network_ids(state, spec)
                phase = UpdatePhase.UPDATING
            allocator = self._allocator(state)
            _see_to_ingress(state, wanted, draft, allocator, self._leadership)
            update = UpdateStatus(phase=phase, started_at=now, message="update in progress")
            return put_spec(draft, current, wanted, allocator, now, update=update)

        changed = await self._write(write)
        logger.info("service updated id=%s spec_version=%d", service, changed.spec_version)
        return changed

    async def remove_service(self, service: ServiceId) -> None:
        def write(state: ClusterState, draft: Draft) -> Service:
            current: Service = _find(state, Table.SERVICE, service, "service")
            delete_service(draft, current, self._leadership.now())
            return current

        removed = await self._write(write)
        logger.info("service removed id=%s name=%s", service, removed.spec.name)

    # Networks.

    async def create_network(self, spec: NetworkSpec) -> Network:
        check_network_spec(spec)

        def write(state: ClusterState, draft: Draft) -> Network:
            _refuse_taken_name(state.networks, spec.name, "network")
            if spec.ingress and state.ingress is not None:
                raise Conflicting(
                    f"network {state.ingress.spec.name} is the ingress network already; a cluster "
                    "has one"
                )
            return _new_network(state, spec, draft, self._allocator(state), self._leadership)

        network = await self._write(write)
        logger.info("network created id=%s name=%s vni=%d", network.id, spec.name, network.vni)
        return network

    async def remove_network(self, network: NetworkId) -> None:
        """Remove it; tasks of removed services may still be stopping on it, for those it waits."""

        def write(state: ClusterState, draft: Draft) -> Network:
            current: Network = _find(state, Table.NETWORK, network, "network")
            name = current.spec.name
            users = [s for s in state.services.values() if _uses(s, current)]
            if users:
                names = ", ".join(sorted(service.spec.name for service in users))
                raise Conflicting(f"network {name} is in use by service {names}; remove that first")
            if _has_tasks(state, network):
                raise Conflicting(
                    f"network {name} has tasks that are still stopping; try again in a moment"
                )
            draft.delete(current)
            if current.spec.ingress:
                for node in state.nodes.values():
                    draft.put(dataclasses.replace(node, ingress=None))
            return current

        await self._wait_until_without_tasks(network)
        removed = await self._write(write)
        logger.info("network removed id=%s name=%s", network, removed.spec.name)

    async def _wait_until_without_tasks(self, network: NetworkId) -> None:
        store = self._leadership.store
        with trio.move_on_after(STOPPING_PATIENCE):
            while _has_tasks(state := store.state, network) and not any(
                _uses(service, state.networks[network]) for service in state.services.values()
            ):
                await store.wait_beyond(state.index)

    # Nodes.

    async def update_node(self, node: NodeId, spec: NodeSpec, *, version: int) -> Node:
        check_node(spec)

        def write(state: ClusterState, draft: Draft) -> Node:
            current: Node = _find(state, Table.NODE, node, "node")
            _check_version("node", current, version)
            if spec.role is Role.WORKER and current.spec.role is Role.MANAGER:
                _refuse_losing_quorum(state, current, self.view)
            changed = dataclasses.replace(current, spec=spec, updated_at=self._leadership.now())
            draft.put(changed)
            return changed

        changed = await self._write(write)
        logger.info(
            "node updated id=%s role=%s availability=%s", node, spec.role, spec.availability
        )
        return changed

    async def remove_node(self, node: NodeId, *, force: bool) -> None:
        def write(state: ClusterState, draft: Draft) -> Node:
            current: Node = _find(state, Table.NODE, node, "node")
            name = current.spec.name or current.facts.hostname
            if current.spec.role is Role.MANAGER or current.role is Role.MANAGER:
                raise ControlError(
                    f"node {name} is a manager: demote it first with `node demote {name}`"
                )
            if current.state is NodeState.READY and not force:
                raise ControlError(
                    f"node {name} is not down and can't be removed: run `swarmlet leave` on it, "
                    "or remove it with --force"
                )
            draft.delete(current)
            # It knows the keys of gossip: others take their place, one step after the other.
            draft.put(revoked(_cluster(state), self._leadership.now(), new_gossip_key))
            return current

        await self._write(write)
        logger.info("node removed id=%s", node)

    # The cluster.

    async def update_cluster(
        self,
        spec: ClusterSpec,
        *,
        version: int,
        rotate: frozenset[Role] = frozenset(),
        gossip_key: bool = False,
    ) -> Cluster:
        """Change the settings; the standing join tokens of the roles in *rotate* get new ones.

        *gossip_key*: the next key of gossip is handed out, and soon takes the place of this one.
        """
        try:
            self._check_gossip(spec.gossip_preset, spec.gossip_knobs)
        except ValueError as exc:
            raise SpecError("gossip", str(exc)) from exc

        def write(state: ClusterState, draft: Draft) -> Cluster:
            current = _cluster(state)
            _check_version("cluster", current, version)
            generations = dict(current.token_generation)
            for role in rotate:
                generations[role.value] = generations.get(role.value, 1) + 1
            changed = dataclasses.replace(
                current,
                spec=spec,
                token_generation=generations,
                updated_at=self._leadership.now(),
            )
            if gossip_key:
                changed = rotated(changed, changed.updated_at, new_gossip_key)
            draft.put(changed)
            return changed

        changed = await self._write(write)
        if gossip_key:
            logger.info("gossip key handed out epoch=%d", changed.gossip_keys[-1].epoch)
        for role in sorted(rotate):
            logger.info("join token rotated role=%s", role)
        return changed

    def token(self, role: Role) -> str:
        """The standing join token of *role*."""
        cluster = _cluster(self._leadership.store.state)
        generation = cluster.token_generation.get(role.value, 1)
        digest = digest_of(cluster.ca_certificate)
        token = standing_token(digest, cluster.token_key, CertificateRole(role.value), generation)
        return str(token)

    async def create_token(
        self, role: Role, *, ttl: float, uses: int, labels: Mapping[str, str]
    ) -> str:
        """Issue a token that ends after *ttl* seconds or *uses* joins, shown this once."""
        if not 0 < ttl <= TOKEN_LIFE_MAX:
            raise SpecError("ttl", f"{ttl} seconds; a token lives up to a year")
        if not 1 <= uses <= 10_000:
            raise SpecError("uses", f"{uses} is not 1 to 10000")
        digest = digest_of(_cluster(self._leadership.store.state).ca_certificate)
        token = new_issued_token(digest, secrets.token_bytes)

        def write(state: ClusterState, draft: Draft) -> None:
            now = self._leadership.now()
            draft.put(
                JoinToken(
                    id=token.id,
                    role=role,
                    secret_digest=secret_digest(token),
                    expires_at=now + ttl,
                    uses_left=uses,
                    labels=labels,
                    created_at=now,
                    updated_at=now,
                )
            )

        await self._write(write)
        logger.info("join token issued id=%s role=%s uses=%d", token.id, role, uses)
        return str(token)

    # How all of it is written.

    async def _write(self, write: Callable[[ClusterState, Draft], T], *, request: str = "") -> T:
        """Let *write* fill a draft against the state, and commit it; again if it conflicts."""
        leadership = self._leadership
        for _ in range(ATTEMPTS_MAX):
            async with leadership.writing:
                state = leadership.store.state
                draft = Draft(state)
                try:
                    result = write(state, draft)
                    index = await leadership.commit(draft, request=request)
                except ChangeConflict:
                    continue
                except Exhausted as exc:
                    raise ControlError(str(exc)) from exc
                except NotLeader as exc:
                    raise Unavailable(
                        f"the change was not made: {exc}; mend that, or try again in a moment"
                    ) from exc
                except OutcomeUnknown as exc:
                    raise Unavailable(
                        f"the change may or may not have been made ({exc}); look before you "
                        "repeat it"
                    ) from exc
            return _versioned(result, index)
        raise Unavailable("others changed the same thing again and again; try again")

    def _allocator(self, state: ClusterState) -> Allocator:
        return Allocator(state, self._leadership.rng)

    async def _pinned(self, spec: ServiceSpec) -> ServiceSpec:
        container = spec.task.container
        image = await self._pin_image(container.image)
        if image == container.image:
            return spec
        container = dataclasses.replace(container, image=image)
        return dataclasses.replace(spec, task=dataclasses.replace(spec.task, container=container))


def _versioned(result: T, index: int) -> T:
    """The object as the store has it now."""
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        replaced: Any = dataclasses.replace(result, version=index)
        return replaced  # type: ignore[no-any-return]
    return result


def _cluster(state: ClusterState) -> Cluster:
    assert state.cluster is not None, "a leader has a cluster"
    return state.cluster


def _find(state: ClusterState, table: Table, id_: str, kind: str) -> Any:
    row = state.find(table, id_)
    if row is None:
        raise NotFound(kind, id_)
    return row


def _check_version(kind: str, row: Any, version: int) -> None:
    if row.version != version:
        raise OutOfSequence(kind, version, row.version)


def _refuse_taken_name(rows: Mapping[Any, Any], name: str, kind: str) -> None:
    for row in rows.values():
        if row.spec.name == name:
            raise Conflicting(f"{kind} {name} exists already (id {row.id}); choose another name")


def _check_unchangeable(current: Service, spec: ServiceSpec) -> None:
    if spec.name != current.spec.name:
        raise SpecError("name", "a service cannot be renamed; create another one")
    if type(spec.mode) is not type(current.spec.mode):
        raise SpecError("mode", "the mode of a service cannot be changed; create another one")


def _with_network_ids(state: ClusterState, spec: ServiceSpec) -> ServiceSpec:
    """*spec* with each network's name or id replaced by its id."""
    by_name = {network.spec.name: network.id for network in state.networks.values()}
    attachments: list[NetworkAttachment] = []
    for position, attachment in enumerate(spec.task.networks):
        path = f"task_template.networks[{position}].target"
        target = attachment.target
        id_ = target if target in state.networks else by_name.get(target)
        if id_ is None:
            raise SpecError(
                path,
                f"network {target} not found; create it with `network create -d overlay {target}`",
            )
        if state.networks[NetworkId(id_)].spec.ingress:
            raise SpecError(path, "the ingress network is for published ports, not for services")
        if any(id_ == other.target for other in attachments):
            raise SpecError(path, f"network {target} is given twice")
        attachments.append(dataclasses.replace(attachment, target=id_))
    task = dataclasses.replace(spec.task, networks=tuple(attachments))
    return dataclasses.replace(spec, task=task)


def _see_to_ingress(
    state: ClusterState,
    spec: ServiceSpec,
    draft: Draft,
    allocator: Allocator,
    leadership: Leadership,
) -> None:
    """Make the ingress network when the first service publishes a port through it."""
    if state.ingress is None and any(p.mode is PublishMode.INGRESS for p in spec.endpoint.ports):
        ingress = NetworkSpec(name=INGRESS_NAME, ingress=True)
        _new_network(state, ingress, draft, allocator, leadership)


def _new_network(
    state: ClusterState,
    spec: NetworkSpec,
    draft: Draft,
    allocator: Allocator,
    leadership: Leadership,
) -> Network:
    subnet, gateway = allocator.subnet(spec, _cluster(state))
    now = leadership.now()
    network = Network(
        id=NetworkId(new_id(leadership.rng)),
        spec=spec,
        subnet=subnet,
        gateway=gateway,
        vni=allocator.vni(),
        created_at=now,
        updated_at=now,
    )
    draft.put(network)
    allocator.network(network)
    return network


def _has_tasks(state: ClusterState, network: NetworkId) -> bool:
    return network in state.networks and any(
        task.outcome is None and endpoint.network == network
        for task in state.tasks.values()
        for endpoint in task.endpoints
    )


def _uses(service: Service, network: Network) -> bool:
    if network.spec.ingress:
        return any(port.mode is PublishMode.INGRESS for port in service.ports)
    return any(a.target == network.id for a in service.spec.task.networks)


def _refuse_losing_quorum(state: ClusterState, demoted: Node, view: View) -> None:
    managers = [n for n in state.nodes.values() if n.spec.role is Role.MANAGER]
    name = demoted.spec.name or demoted.facts.hostname
    if len(managers) == 1:
        raise ControlError(
            f"node {name} is the last manager: promote another node first, or end the cluster "
            "with `swarmlet leave --force`"
        )
    left = [manager for manager in managers if manager.id != demoted.id]
    alive = [manager for manager in left if view.is_up(manager.id)]
    if len(alive) * 2 <= len(left):
        raise ControlError(
            f"without node {name} only {len(alive)} of {len(left)} managers would be up, which is "
            "no quorum: bring the others back or remove them first"
        )
