"""Services: Docker's JSON to a ServiceSpec and back, and the record of a Service as JSON.

Pure. What Docker's vocabulary has no word for travels in one more object, Spec.Swarmlet:

    "Swarmlet": {"Offline": "keep" | "pin", "ReplaceAfter": nanoseconds, "PullPolicy": "...",
                 "Userns": "host" | "private",
                 "Ports": [{"Target", "Published", "Protocol", "IP", "Interface"}]}

The stock docker client updates a service by sending back the spec it was shown, less what it
does not know. So in an update a spec without that object keeps what the service had.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from swarmlet.api.convert_container import read_container, write_container
from swarmlet.api.fields import Fields, nanoseconds, timestamp, without_empty
from swarmlet.model import (
    EndpointMode,
    EndpointSpec,
    FailureAction,
    Global,
    LogDriver,
    NetworkAttachment,
    OfflinePolicy,
    Placement,
    PortConfig,
    Protocol,
    PublishMode,
    Replicated,
    Resources,
    RestartCondition,
    RestartPolicy,
    Service,
    ServiceMode,
    ServiceSpec,
    TaskTemplate,
    UpdateConfig,
    UpdateOrder,
    UpdateStatus,
)
from swarmlet.model.validation import SpecError

JOBS = "jobs are not built yet; use a replicated service with --restart-condition none"

# Reading.


def read_service_spec(body: Any, current: ServiceSpec | None = None) -> ServiceSpec:
    """Return the spec that *body* writes; *current* is the one it replaces, in an update.

    Raises SpecError with the path to the first field that cannot be.
    """
    fields = Fields(body)
    template = fields.child("TaskTemplate")
    if template is None:
        raise SpecError("TaskTemplate", "is missing: it says what to run")
    task = _read_task(template)
    # Networks beside the template is how clients before API 1.25 wrote them.
    older = tuple(_read_attachment(network) for network in fields.children("Networks"))
    spec = ServiceSpec(
        name=fields.text("Name"),
        labels=fields.text_map("Labels"),
        task=task if task.networks or not older else dataclasses.replace(task, networks=older),
        mode=_read_mode(fields.child("Mode")),
        update=_read_update(fields.child("UpdateConfig")),
        rollback=_read_update(fields.child("RollbackConfig")),
        endpoint=_read_endpoint(fields.child("EndpointSpec")),
    )
    extension = fields.child("Swarmlet")
    fields.done()
    if extension is not None:
        return _read_extension(extension, spec)
    return _keep_extension(spec, current) if current is not None else spec


def _read_task(fields: Fields) -> TaskTemplate:
    container = fields.child("ContainerSpec")
    if container is None:
        raise SpecError(fields.at("ContainerSpec"), "is missing: only containers can run here")
    limits, reservations = _read_resources(fields.child("Resources"))
    task = TaskTemplate(
        container=read_container(container),
        limits=limits,
        reservations=reservations,
        restart=_read_restart(fields.child("RestartPolicy")),
        placement=_read_placement(fields.child("Placement")),
        networks=tuple(_read_attachment(network) for network in fields.children("Networks")),
        log_driver=_read_log_driver(fields.child("LogDriver")),
        force_update=fields.integer("ForceUpdate", least=0),
    )
    runtime = fields.text("Runtime", "container")
    if runtime not in ("", "container"):
        raise SpecError(fields.at("Runtime"), f"{runtime!r}: only containers can run here")
    fields.refuse("PluginSpec", "Docker plugins are not built")
    fields.refuse("NetworkAttachmentSpec", "is for the engine's own use")
    fields.done()
    return task


def _read_resources(fields: Fields | None) -> tuple[Resources, Resources]:
    if fields is None:
        return Resources(), Resources()
    limits, reservations = fields.child("Limits"), fields.child("Reservations")
    fields.refuse("SwapBytes", "a limit for swap is not built yet; leave it out")
    fields.refuse("MemorySwappiness", "is not built yet; leave it out")
    fields.done()
    return _read_limit(limits), _read_limit(reservations)


def _read_limit(fields: Fields | None) -> Resources:
    if fields is None:
        return Resources()
    resources = Resources(
        nano_cpus=fields.integer("NanoCPUs"),
        memory_bytes=fields.integer("MemoryBytes"),
        pids=fields.integer("Pids"),
    )
    fields.refuse(
        "GenericResources", "not built yet; label the nodes and use a constraint (node.labels.gpu)"
    )
    fields.done()
    return resources


def _read_restart(fields: Fields | None) -> RestartPolicy:
    if fields is None:
        return RestartPolicy()
    policy = RestartPolicy(
        condition=fields.choice("Condition", RestartCondition, RestartCondition.ANY),
        delay=fields.seconds("Delay", RestartPolicy().delay),
        max_attempts=fields.integer("MaxAttempts", least=0),
        window=fields.seconds("Window"),
    )
    fields.done()
    return policy


def _read_placement(fields: Fields | None) -> Placement:
    if fields is None:
        return Placement()
    spreads = []
    for preference in fields.children("Preferences"):
        spread = preference.child("Spread")
        preference.done()
        if spread is None:
            raise SpecError(preference.at("Spread"), "is missing: spread is the only preference")
        spreads.append(spread.text("SpreadDescriptor"))
        spread.done()
    placement = Placement(
        constraints=fields.texts("Constraints"),
        spread=tuple(spreads),
        max_replicas_per_node=fields.integer("MaxReplicas", least=0),
    )
    fields.refuse("Platforms", "not built yet; use a constraint such as node.platform.arch==arm64")
    fields.done()
    return placement


def _read_attachment(fields: Fields) -> NetworkAttachment:
    attachment = NetworkAttachment(target=fields.text("Target"), aliases=fields.texts("Aliases"))
    fields.refuse("DriverOpts", "options of an attachment are not built; leave them out")
    fields.done()
    return attachment


def _read_log_driver(fields: Fields | None) -> LogDriver | None:
    if fields is None:
        return None
    driver = LogDriver(name=fields.text("Name"), options=fields.text_map("Options"))
    fields.done()
    return driver


def _read_mode(fields: Fields | None) -> ServiceMode:
    if fields is None:
        return Replicated()
    for job in ("ReplicatedJob", "GlobalJob"):
        if fields.has(job):  # an empty object asks for one, too
            raise SpecError(fields.at(job), JOBS)
    replicated, everywhere = fields.child("Replicated"), fields.child("Global")
    fields.done()
    if replicated is not None and everywhere is not None:
        raise SpecError(fields.path, "has two modes; give Replicated or Global")
    if everywhere is not None:
        everywhere.done()
        return Global()
    if replicated is None:
        return Replicated()
    replicas = replicated.integer("Replicas", 1, least=0)
    replicated.done()
    return Replicated(replicas)


def _read_update(fields: Fields | None) -> UpdateConfig:
    default = UpdateConfig()
    if fields is None:
        return default
    config = UpdateConfig(
        # As in Docker, parallelism 0 is "all at once", and so is a config that leaves it out.
        parallelism=fields.integer("Parallelism", least=0),
        delay=fields.seconds("Delay"),
        failure_action=fields.choice("FailureAction", FailureAction, default.failure_action),
        monitor=fields.seconds("Monitor", default.monitor),
        max_failure_ratio=fields.number("MaxFailureRatio"),
        order=fields.choice("Order", UpdateOrder, default.order),
    )
    fields.done()
    return config


def _read_endpoint(fields: Fields | None) -> EndpointSpec:
    if fields is None:
        return EndpointSpec()
    endpoint = EndpointSpec(
        mode=fields.choice("Mode", EndpointMode, EndpointMode.VIP),
        ports=tuple(_read_port(port) for port in fields.children("Ports")),
    )
    fields.done()
    return endpoint


def _read_port(fields: Fields) -> PortConfig:
    port = PortConfig(
        name=fields.text("Name"),
        protocol=fields.choice("Protocol", Protocol, Protocol.TCP),
        target=fields.integer("TargetPort", least=0),
        published=fields.integer("PublishedPort", least=0),
        mode=fields.choice("PublishMode", PublishMode, PublishMode.INGRESS),
    )
    fields.done()
    return port


def _read_extension(fields: Fields, spec: ServiceSpec) -> ServiceSpec:
    bindings = {}
    for binding in fields.children("Ports"):
        target, published = binding.integer("Target"), binding.integer("Published")
        protocol = binding.choice("Protocol", Protocol, Protocol.TCP)
        key = (target, published, protocol)
        if key not in {_port_key(port) for port in spec.endpoint.ports}:
            raise SpecError(binding.path, "binds a port that EndpointSpec.Ports does not publish")
        bindings[key] = (binding.text("IP"), binding.text("Interface"))
        binding.done()
    spec = dataclasses.replace(
        spec,
        offline=fields.choice("Offline", OfflinePolicy, OfflinePolicy.KEEP),
        replace_after=fields.seconds("ReplaceAfter"),
        task=_with_extension(spec.task, fields.text("PullPolicy"), fields.text("Userns")),
        endpoint=_bind(spec.endpoint, bindings),
    )
    fields.done()
    return spec


def _keep_extension(spec: ServiceSpec, current: ServiceSpec) -> ServiceSpec:
    bindings = {_port_key(port): (port.ip, port.iface) for port in current.endpoint.ports}
    kept = current.task.container
    return dataclasses.replace(
        spec,
        offline=current.offline,
        replace_after=current.replace_after,
        task=_with_extension(spec.task, kept.pull_policy, kept.userns),
        endpoint=_bind(spec.endpoint, bindings),
    )


def _port_key(port: PortConfig) -> tuple[int, int, Protocol]:
    return (port.target, port.published, port.protocol)


def _with_extension(task: TaskTemplate, pull_policy: str, userns: str) -> TaskTemplate:
    container = dataclasses.replace(task.container, pull_policy=pull_policy, userns=userns)
    return dataclasses.replace(task, container=container)


def _bind(
    endpoint: EndpointSpec, bindings: Mapping[tuple[int, int, Protocol], tuple[str, str]]
) -> EndpointSpec:
    ports = []
    for port in endpoint.ports:
        ip, iface = bindings.get(_port_key(port), ("", ""))
        ports.append(dataclasses.replace(port, ip=ip, iface=iface))
    return dataclasses.replace(endpoint, ports=tuple(ports))


# Writing.


def write_service(service: Service) -> dict[str, Any]:
    """The record of *service* as Docker shows it."""
    document: dict[str, Any] = {
        "ID": service.id,
        "Version": {"Index": service.version},
        "CreatedAt": timestamp(service.created_at),
        "UpdatedAt": timestamp(service.updated_at),
        "Spec": write_service_spec(service.spec),
        "Endpoint": _write_endpoint_of(service),
    }
    if service.previous_spec is not None:
        document["PreviousSpec"] = write_service_spec(service.previous_spec)
    if service.update is not None:
        document["UpdateStatus"] = _write_update_status(service.update)
    return document


def write_service_spec(spec: ServiceSpec) -> dict[str, Any]:
    document = {
        "Name": spec.name,
        "Labels": dict(spec.labels),
        "TaskTemplate": write_task_template(spec.task),
        "Mode": _write_mode(spec.mode),
        "UpdateConfig": _write_update(spec.update),
        "RollbackConfig": _write_update(spec.rollback),
        "EndpointSpec": _write_endpoint(spec.endpoint),
    }
    if extension := _write_extension(spec):
        document["Swarmlet"] = extension
    return document


def write_task_template(task: TaskTemplate) -> dict[str, Any]:
    resources = {
        "Limits": _write_limit(task.limits),
        "Reservations": _write_limit(task.reservations),
    }
    placement = {
        "Constraints": list(task.placement.constraints),
        "Preferences": [{"Spread": {"SpreadDescriptor": s}} for s in task.placement.spread],
        "MaxReplicas": task.placement.max_replicas_per_node,
    }
    document: dict[str, Any] = {
        "ContainerSpec": write_container(task.container),
        "Resources": resources,
        "RestartPolicy": {
            "Condition": str(task.restart.condition),
            "Delay": nanoseconds(task.restart.delay),
            "MaxAttempts": task.restart.max_attempts,
            "Window": nanoseconds(task.restart.window),
        },
        "Placement": without_empty(placement),
        "Networks": [
            {"Target": n.target, **without_empty({"Aliases": list(n.aliases)})}
            for n in task.networks
        ],
        "ForceUpdate": task.force_update,
        "Runtime": "container",
    }
    if not document["Networks"]:
        del document["Networks"]
    if task.log_driver is not None:
        options = dict(task.log_driver.options)
        document["LogDriver"] = {"Name": task.log_driver.name, "Options": options}
    return document


def write_port(port: PortConfig) -> dict[str, Any]:
    named = {"Name": port.name} if port.name else {}
    return {
        **named,
        "Protocol": str(port.protocol),
        "TargetPort": port.target,
        "PublishedPort": port.published,
        "PublishMode": str(port.mode),
    }


def _write_limit(resources: Resources) -> dict[str, int]:
    return without_empty(
        {
            "NanoCPUs": resources.nano_cpus,
            "MemoryBytes": resources.memory_bytes,
            "Pids": resources.pids,
        }
    )


def _write_mode(mode: ServiceMode) -> dict[str, Any]:
    match mode:
        case Replicated(replicas):
            return {"Replicated": {"Replicas": replicas}}
        case Global():
            return {"Global": {}}


def _write_update(config: UpdateConfig) -> dict[str, Any]:
    return {
        "Parallelism": config.parallelism,
        "Delay": nanoseconds(config.delay),
        "FailureAction": str(config.failure_action),
        "Monitor": nanoseconds(config.monitor),
        "MaxFailureRatio": config.max_failure_ratio,
        "Order": str(config.order),
    }


def _write_endpoint(endpoint: EndpointSpec) -> dict[str, Any]:
    ports = [write_port(port) for port in endpoint.ports]
    return {"Mode": str(endpoint.mode), **({"Ports": ports} if ports else {})}


def _write_endpoint_of(service: Service) -> dict[str, Any]:
    # Docker's VirtualIPs carry the prefix; a client takes what stands before the slash.
    addresses = [
        {"NetworkID": vip.network, "Addr": f"{vip.address}/32"} for vip in service.virtual_addresses
    ]
    endpoint = {
        "Spec": _write_endpoint(service.spec.endpoint),
        "Ports": [write_port(port) for port in service.ports],
        "VirtualIPs": addresses,
    }
    return {name: value for name, value in endpoint.items() if value}


def _write_extension(spec: ServiceSpec) -> dict[str, Any]:
    """Nothing, when a spec says no more than Docker could."""
    ports = [
        {
            "Target": port.target,
            "Published": port.published,
            "Protocol": str(port.protocol),
            **without_empty({"IP": port.ip, "Interface": port.iface}),
        }
        for port in spec.endpoint.ports
        if port.ip or port.iface
    ]
    shown = {
        "Offline": "" if spec.offline is OfflinePolicy.KEEP else str(spec.offline),
        "ReplaceAfter": nanoseconds(spec.replace_after),
        "PullPolicy": spec.task.container.pull_policy,
        "Userns": spec.task.container.userns,
        "Ports": ports,
    }
    return without_empty(shown)


def _write_update_status(status: UpdateStatus) -> dict[str, Any]:
    document: dict[str, Any] = {"State": str(status.phase), "Message": status.message}
    if status.started_at:
        document["StartedAt"] = timestamp(status.started_at)
    if status.completed_at:
        document["CompletedAt"] = timestamp(status.completed_at)
    return document
