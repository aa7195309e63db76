"""Assignments: all that one node needs to know, as items (swarmlet/session.py).

Pure. A node is told of its own tasks, of the networks that they are on, of everybody else on those
networks, of the services found there, and of every published port, which it accepts too. Every
item is packed once for all nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from swarmlet.codec import pack
from swarmlet.manager.view import View
from swarmlet.model import (
    Desired,
    Network,
    NetworkId,
    NodeId,
    PublishMode,
    Role,
    Service,
    ServiceId,
    Task,
)
from swarmlet.session import (
    ClusterView,
    EndpointView,
    ImageView,
    ItemKey,
    Kind,
    ManagerView,
    NetworkView,
    NodeView,
    ServiceNetwork,
    ServiceView,
    TaskAssignment,
)
from swarmlet.state import ClusterState

Items = Mapping[ItemKey, bytes]

MTU_OPTION = "com.docker.network.driver.mtu"


def managers_of(view: View) -> tuple[ManagerView, ...]:
    """The managers that have an address, the same order everywhere."""
    return tuple(
        ManagerView(
            node=node.id,
            address=node.facts.address,
            port=node.facts.port,
            raft_server=node.facts.raft_server,
        )
        for _, node in sorted(view.state.nodes.items())
        if node.role is Role.MANAGER and node.facts.address
    )


class Assignments:
    """The items of every node at one view; *holders* says which nodes have an image whole."""

    def __init__(self, view: View, holders: Mapping[str, frozenset[NodeId]]) -> None:
        self._view = view
        self._state = view.state
        self._holders = holders
        self._of_network: dict[NetworkId, dict[ItemKey, bytes]] = {}
        self._tasks: dict[NodeId, list[Task]] = {}
        self._on_network: dict[NetworkId, list[Task]] = {}
        for task in self._state.tasks.values():
            if task.outcome is not None or not task.node:
                continue
            self._tasks.setdefault(task.node, []).append(task)
            for endpoint in task.endpoints:
                self._on_network.setdefault(endpoint.network, []).append(task)

    def of(self, node: NodeId) -> Items:
        """Everything that *node* needs."""
        items = dict(self._common)
        for task in self._tasks.get(node, ()):
            assignment = self._assignment(task)
            if assignment is None:
                continue
            items[ItemKey(Kind.TASK, task.id)] = pack(assignment)
            for endpoint in task.endpoints:
                items.update(self._network_items(endpoint.network))
            image = assignment.template.container.image
            items.update(self._image_items(image))
        return items

    @cached_property
    def _common(self) -> dict[ItemKey, bytes]:
        """What every node is told: the cluster, the nodes, and the published ports."""
        cluster = self._state.cluster
        if cluster is None:
            return {}
        view = ClusterView(
            id=cluster.id,
            epoch=cluster.epoch,
            managers=managers_of(self._view),
            gossip_keys=cluster.gossip_keys,
            gossip_epoch=cluster.gossip_epoch,
            gossip_preset=cluster.spec.gossip_preset,
            gossip_knobs=cluster.spec.gossip_knobs,
            data_path_port=cluster.data_path_port,
            heartbeat=cluster.spec.heartbeat,
            images=_images_of(self._state),
        )
        items = {ItemKey(Kind.CLUSTER, cluster.id): pack(view)}
        for node in self._state.nodes.values():
            row = NodeView(
                id=node.id,
                name=node.spec.name or node.facts.hostname,
                address=node.facts.address,
                port=node.facts.port,
                ingress=node.ingress,
                role=node.present_role,
                underlay_mtu=node.facts.underlay_mtu,
            )
            items[ItemKey(Kind.NODE, node.id)] = pack(row)
        if self._state.ingress is not None:
            items.update(self._network_items(self._state.ingress.id))
        return items

    def _network_items(self, id_: NetworkId) -> Mapping[ItemKey, bytes]:
        items = self._of_network.get(id_)
        if items is not None:
            return items
        items = self._of_network[id_] = {}
        network = self._state.networks.get(id_)
        if network is None:
            return items
        items[ItemKey(Kind.NETWORK, id_)] = pack(_network_view(network))
        services: set[ServiceId] = set()
        for task in self._on_network.get(id_, ()):
            services.add(task.service)
            items[ItemKey(Kind.ENDPOINT, f"{task.id}.{id_}")] = pack(self._endpoint(task, id_))
        for service in self._state.services.values():
            if service.id in services or _is_on(service, network):
                items[ItemKey(Kind.SERVICE, service.id)] = pack(_service_view(service))
        return items

    def _endpoint(self, task: Task, network: NetworkId) -> EndpointView:
        (endpoint,) = (e for e in task.endpoints if e.network == network)
        return EndpointView(
            task=task.id,
            service=task.service,
            slot=task.slot,
            node=task.node,
            network=network,
            address=endpoint.address,
            mac=endpoint.mac,
            ready=self._view.is_ready(task),
        )

    def _assignment(self, task: Task) -> TaskAssignment | None:
        template = self._state.template_of(task)
        if template is None:
            return None
        service = self._state.services.get(task.service)
        ports = service.ports if service is not None else ()
        return TaskAssignment(
            id=task.id,
            service=task.service,
            service_name=service.spec.name if service is not None else task.service,
            slot=task.slot,
            spec_version=task.spec_version,
            desired=task.desired if service is not None else max(task.desired, Desired.SHUTDOWN),
            template=template,
            endpoints=task.endpoints,
            ports=tuple(port for port in ports if port.mode is PublishMode.HOST),
            service_labels=service.spec.labels if service is not None else {},
            node=task.node,
        )

    def _image_items(self, image: str) -> Mapping[ItemKey, bytes]:
        """Where the image of a task can be fetched from, if it is pinned by digest."""
        digest = image.partition("@")[2]
        nodes = self._holders.get(digest, frozenset())
        if not digest or not nodes:
            return {}
        view = ImageView(digest=digest, nodes=tuple(sorted(nodes)))
        return {ItemKey(Kind.IMAGE, digest): pack(view)}


def _images_of(state: ClusterState) -> tuple[str, ...]:
    """Digests that some spec needs, or would need again after a roll-back: nobody collects them."""
    templates = [revision.task for revision in state.revisions.values()]
    for service in state.services.values():
        templates.append(service.spec.task)
        if service.previous_spec is not None:
            templates.append(service.previous_spec.task)
    digests = {template.container.image.partition("@")[2] for template in templates}
    return tuple(sorted(digests - {""}))


def _network_view(network: Network) -> NetworkView:
    return NetworkView(
        id=network.id,
        name=network.spec.name,
        vni=network.vni,
        subnet=network.subnet,
        gateway=network.gateway,
        ingress=network.spec.ingress,
        internal=network.spec.internal,
        mtu=int(network.spec.options.get(MTU_OPTION, 0)),
    )


def _is_on(service: Service, network: Network) -> bool:
    if network.spec.ingress:
        return any(port.mode is PublishMode.INGRESS for port in service.ports)
    return any(a.target == network.id for a in service.spec.task.networks)


def _service_view(service: Service) -> ServiceView:
    virtual = {v.network: v.address for v in service.virtual_addresses}
    networks = tuple(
        ServiceNetwork(
            network=NetworkId(attachment.target),
            address=virtual.get(NetworkId(attachment.target), ""),
            aliases=attachment.aliases,
        )
        for attachment in service.spec.task.networks
    )
    ports = tuple(port for port in service.ports if port.mode is PublishMode.INGRESS)
    return ServiceView(id=service.id, name=service.spec.name, networks=networks, ports=ports)


def difference(old: Items, new: Items) -> tuple[dict[ItemKey, bytes], list[ItemKey]]:
    """What to put and what to remove to come from *old* to *new*."""
    puts = {key: body for key, body in new.items() if old.get(key) != body}
    removes = [key for key in old if key not in new]
    return puts, removes
