"""Converters: what is written is read back the same, and nothing is ever ignored."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmlet.api.convert_container import read_container, write_container
from swarmlet.api.convert_network import read_network_spec, write_network
from swarmlet.api.convert_node import read_node_spec, write_node_spec
from swarmlet.api.convert_service import read_service_spec, write_service, write_service_spec
from swarmlet.api.convert_swarm import (
    read_cluster_spec,
    read_init,
    read_join,
    write_cluster,
    write_cluster_spec,
)
from swarmlet.api.fields import Fields, parse_timestamp, timestamp
from swarmlet.api.masking import mask_service
from swarmlet.model import (
    Availability,
    Cluster,
    ClusterId,
    ClusterSpec,
    ContainerTemplate,
    EndpointMode,
    EndpointSpec,
    FailureAction,
    Global,
    Healthcheck,
    LogDriver,
    Mount,
    MountType,
    Network,
    NetworkAttachment,
    NetworkId,
    NetworkSpec,
    NodeSpec,
    OfflinePolicy,
    Placement,
    PortConfig,
    Protocol,
    PublishMode,
    Replicated,
    Resources,
    RestartCondition,
    RestartPolicy,
    Role,
    Service,
    ServiceId,
    ServiceSpec,
    TaskTemplate,
    Ulimit,
    UpdateConfig,
    UpdateOrder,
)
from swarmlet.model.validation import SpecError

#: A few kinds of character each; the whole of Unicode is drawn in test_any_text_survives.
text = st.text('a"\n,=é', max_size=3)
words = st.text("abcxyz", min_size=1, max_size=6)
texts = st.lists(text, max_size=3).map(tuple)
maps = st.dictionaries(words, text, max_size=3)
counts = st.integers(0, 10_000)
#: milliseconds: what a person writes, and what nanoseconds and floats both hold exactly enough
seconds = st.integers(0, 10_000_000).map(lambda ms: ms / 1000)

mounts = st.builds(
    Mount,
    type=st.sampled_from(MountType),
    target=text,
    source=text,
    read_only=st.booleans(),
    propagation=text,
    tmpfs_bytes=counts,
    tmpfs_mode=counts,
    no_copy=st.booleans(),
    labels=maps,
    driver=text,
    driver_options=maps,
)
healthchecks = st.builds(
    Healthcheck,
    test=texts,
    interval=seconds,
    timeout=seconds,
    retries=counts,
    start_period=seconds,
    start_interval=seconds,
)
containers = st.builds(
    ContainerTemplate,
    image=text,
    command=texts,
    args=texts,
    env=texts,
    hostname=text,
    directory=text,
    user=text,
    groups=texts,
    labels=maps,
    tty=st.booleans(),
    open_stdin=st.booleans(),
    read_only=st.booleans(),
    mounts=st.lists(mounts, max_size=2).map(tuple),
    stop_signal=text,
    stop_grace=seconds,
    healthcheck=st.none() | healthchecks,
    hosts=texts,
    dns_servers=texts,
    dns_search=texts,
    dns_options=texts,
    init=st.booleans(),
    sysctls=maps,
    capabilities_add=texts,
    capabilities_drop=texts,
    ulimits=st.lists(st.builds(Ulimit, text, counts, counts), max_size=2).map(tuple),
    oom_score_adj=st.integers(-1000, 1000),
    seccomp=st.sampled_from(["", "unconfined", '{"defaultAction":"SCMP_ACT_ERRNO"}']),
    pull_policy=st.sampled_from(["", "always", "never"]),
)
resources = st.builds(Resources, nano_cpus=counts, memory_bytes=counts, pids=counts)
templates = st.builds(
    TaskTemplate,
    container=containers,
    limits=resources,
    reservations=resources,
    restart=st.builds(
        RestartPolicy,
        condition=st.sampled_from(RestartCondition),
        delay=seconds,
        max_attempts=counts,
        window=seconds,
    ),
    placement=st.builds(Placement, constraints=texts, spread=texts, max_replicas_per_node=counts),
    networks=st.lists(st.builds(NetworkAttachment, target=text, aliases=texts), max_size=2).map(
        tuple
    ),
    log_driver=st.none() | st.builds(LogDriver, name=text, options=maps),
    force_update=counts,
)
updates = st.builds(
    UpdateConfig,
    parallelism=counts,
    delay=seconds,
    failure_action=st.sampled_from(FailureAction),
    monitor=seconds,
    max_failure_ratio=st.floats(0, 1),
    order=st.sampled_from(UpdateOrder),
)
ports = st.builds(
    PortConfig,
    target=st.integers(1, 65535),
    published=st.integers(0, 65535),
    protocol=st.sampled_from(Protocol),
    mode=st.sampled_from(PublishMode),
    name=text,
    ip=st.sampled_from(["", "10.0.0.1"]),
    iface=st.sampled_from(["", "eth0"]),
)
services = st.builds(
    ServiceSpec,
    name=text,
    task=templates,
    mode=st.builds(Replicated, counts) | st.just(Global()),
    labels=maps,
    update=updates,
    rollback=updates,
    endpoint=st.builds(
        EndpointSpec,
        mode=st.sampled_from(EndpointMode),
        ports=st.lists(
            ports, max_size=3, unique_by=lambda p: (p.target, p.published, p.protocol)
        ).map(tuple),
    ),
    offline=st.sampled_from(OfflinePolicy),
    replace_after=seconds,
)


def wire(document: Any) -> Any:
    """What is left of a document after JSON."""
    return json.loads(json.dumps(document))


@settings(max_examples=50, deadline=None)
@given(services)
def test_service_spec_survives_the_api(spec: ServiceSpec) -> None:
    assert read_service_spec(wire(write_service_spec(spec))) == spec


@settings(max_examples=50, deadline=None)
@given(services)
def test_update_by_a_client_that_knows_docker_only_keeps_the_rest(spec: ServiceSpec) -> None:
    document = wire(write_service_spec(spec))
    document.pop("Swarmlet", None)
    assert read_service_spec(document, spec) == spec


@settings(max_examples=50, deadline=None)
@given(containers)
def test_container_survives_the_api(container: ContainerTemplate) -> None:
    fields = Fields(wire(write_container(container)))
    assert read_container(fields) == dataclasses.replace(container, pull_policy="")


@given(
    st.builds(
        NodeSpec,
        role=st.sampled_from(Role),
        name=text,
        labels=maps,
        availability=st.sampled_from(Availability),
    )
)
def test_node_spec_survives_the_api(spec: NodeSpec) -> None:
    assert read_node_spec(wire(write_node_spec(spec))) == spec


@given(
    st.builds(
        ClusterSpec,
        labels=maps,
        task_history=counts,
        heartbeat=seconds.filter(bool),
        certificate_life=seconds.filter(bool),
        gossip_preset=words,
        gossip_key_life=seconds,
        gossip_knobs=maps,
    )
)
def test_cluster_spec_survives_the_api(spec: ClusterSpec) -> None:
    assert read_cluster_spec(wire(write_cluster_spec(spec)), ClusterSpec()) == spec


@given(
    st.builds(
        NetworkSpec,
        name=text,
        labels=maps,
        internal=st.booleans(),
        attachable=st.booleans(),
        ingress=st.booleans(),
        options=maps,
    )
)
def test_network_record_can_be_created_again(spec: NetworkSpec) -> None:
    network = Network(
        id=NetworkId("n"), spec=spec, subnet="10.0.1.0/24", gateway="10.0.1.1", vni=4097
    )
    shown = wire(write_network(network))
    for name in ("Id", "Created", "Containers"):
        del shown[name]
    del shown["Options"]["com.docker.network.driver.overlay.vxlanid_list"]
    expected = dataclasses.replace(spec, subnet="10.0.1.0/24", gateway="10.0.1.1")
    assert read_network_spec(shown) == expected


FULL: dict[str, Any] = {
    "Name": "web",
    "TaskTemplate": {
        "ContainerSpec": {
            "Image": "busybox",
            "Mounts": [{"Type": "bind", "Target": "/t", "BindOptions": {}}],
            "Healthcheck": {"Test": []},
            "DNSConfig": {},
            "Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}],
            "Privileges": {"Seccomp": {"Mode": "default"}, "NoNewPrivileges": False},
        },
        "Resources": {"Limits": {}, "Reservations": {}},
        "RestartPolicy": {},
        "Placement": {"Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.a"}}]},
        "Networks": [{"Target": "n"}],
        "LogDriver": {"Name": "json-file"},
    },
    "Mode": {"Replicated": {"Replicas": 2}},
    "UpdateConfig": {},
    "EndpointSpec": {"Ports": [{"TargetPort": 80}]},
    "Swarmlet": {"Ports": [{"Target": 80, "Published": 0}]},
}


def objects_in(value: Any, path: str = "") -> list[tuple[str, Any]]:
    found = []
    if isinstance(value, dict):
        found.append((path, value))
        for key, item in value.items():
            found += objects_in(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += objects_in(item, f"{path}[{index}]")
    return found


@pytest.mark.parametrize("path", [path for path, _ in objects_in(FULL)])
def test_unknown_field_is_refused_with_its_path_at_every_depth(path: str) -> None:
    document = wire(FULL)
    read_service_spec(document)
    document = wire(FULL)
    target = dict(objects_in(document))[path]
    target["Imagee"] = "typo"
    expected = f"{path}.Imagee" if path else "Imagee"
    with pytest.raises(SpecError) as caught:
        read_service_spec(document)
    assert caught.value.path == expected


@pytest.mark.parametrize("path", [path for path, _ in objects_in(FULL) if path])
def test_value_of_another_type_is_refused_with_its_path(path: str) -> None:
    document = wire(FULL)
    parent, key = _parent(document, path)
    parent[key] = "text"
    with pytest.raises(SpecError) as caught:
        read_service_spec(document)
    assert path.startswith(caught.value.path)


def _parent(document: Any, path: str) -> tuple[Any, Any]:
    steps: list[Any] = []
    for part in path.split("."):
        name, bracket, index = part.partition("[")
        steps.append(name)
        if bracket:
            steps.append(int(index[:-1]))
    for step in steps[:-1]:
        document = document[step]
    return document, steps[-1]


@pytest.mark.parametrize(
    ("where", "value", "reason"),
    [
        ("Secrets", [{"SecretName": "x"}], "secrets are not built yet"),
        ("Configs", [{}, {"a": 1}], "configs are not built yet"),
        ("Isolation", "hyperv", "exists on Windows only"),
        ("Mounts", [{"Type": "npipe"}], "is not one of bind, volume, tmpfs"),
        ("Mounts", [{"BindOptions": {"NonRecursive": True}}], "every bind mount is recursive"),
        ("Privileges", {"SELinuxContext": {"Type": "x"}}, "SELinux is not built yet"),
        ("Privileges", {"Seccomp": {"Mode": "custom", "Profile": "e30"}}, "is not base64"),
        ("Privileges", {"Seccomp": {"Mode": "custom", "Profile": "e3t7"}}, "not a seccomp"),
        ("StopGracePeriod", -1, "-1 is less than 0"),
        ("StopGracePeriod", 1 << 70, "more than fits in 63 bits"),
        ("Image", "\ud800", "is not text in UTF-8"),
        ("Labels", {"a": None}, "must be text"),
        ("Env", ["a", 1], "must be text"),
        ("TTY", "true", "must be true or false"),
    ],
)
def test_what_cannot_be_is_refused_by_name(where: str, value: Any, reason: str) -> None:
    document = wire(FULL)
    document["TaskTemplate"]["ContainerSpec"][where] = value
    with pytest.raises(SpecError) as caught:
        read_service_spec(document)
    assert caught.value.path.startswith(f"TaskTemplate.ContainerSpec.{where}")
    assert reason in caught.value.reason


def test_what_the_client_always_sends_empty_is_taken() -> None:
    document = wire(FULL)
    container = document["TaskTemplate"]["ContainerSpec"]
    container |= {"Secrets": None, "Configs": [], "Isolation": "default"}
    document["TaskTemplate"]["Placement"]["Platforms"] = []
    document["TaskTemplate"]["Resources"]["Reservations"] = {"GenericResources": None}
    document["RollbackConfig"] = None
    read_service_spec(document)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "Name",
                    "TaskTemplate",
                    "ContainerSpec",
                    "Image",
                    "Mode",
                    "Replicated",
                    "Spec",
                    "x",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(JSON)
def test_any_json_is_a_spec_or_a_spec_error(document: Any) -> None:
    readers: list[Any] = [
        read_service_spec,
        read_network_spec,
        read_node_spec,
        read_init,
        read_join,
        lambda body: read_cluster_spec(body, ClusterSpec()),
    ]
    for read in readers:
        with contextlib.suppress(SpecError):
            read(document)


def test_docker_init_and_join_mean_the_daemons_own_address() -> None:
    request = read_init({"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "", "Spec": {}})
    assert (request.listen, request.advertise) == ("", "")
    request = read_init({"DefaultAddrPool": ["10.1.0.0/16"], "SubnetSize": 26})
    assert (request.pools, request.subnet_bits) == (("10.1.0.0/16",), 26)
    for body, path in (
        ({"ForceNewCluster": True}, "ForceNewCluster"),
        ({"DataPathPort": 70000}, "DataPathPort"),
        ({"Spec": {"EncryptionConfig": {"AutoLockManagers": True}}}, "Spec.EncryptionConfig"),
        ({"Spec": {"Raft": {"ElectionTick": 7}}}, "Spec.Raft.ElectionTick"),
    ):
        with pytest.raises(SpecError) as caught:
            read_init(body)
        assert caught.value.path.startswith(path)
    with pytest.raises(SpecError, match="JoinToken: is missing"):
        read_join({"RemoteAddrs": ["10.0.0.1"]})


def test_record_of_the_cluster_holds_no_secret() -> None:
    cluster = Cluster(
        id=ClusterId("c"),
        ca_certificate=b"CERTIFICATE",
        ca_key=b"SECRET-CA",
        token_key=b"SECRET-TOKEN",
    )
    shown = json.dumps(write_cluster(cluster))
    assert "CERTIFICATE" in shown
    assert "SECRET" not in shown


@settings(max_examples=25, deadline=None)
@given(services, services)
def test_masked_service_shows_no_value_of_env_or_options(
    spec: ServiceSpec, previous: ServiceSpec
) -> None:
    def with_secrets(given: ServiceSpec) -> ServiceSpec:
        container = given.task.container
        mount = Mount(type=MountType.VOLUME, target="/t", driver_options={"o": "password=S3CRET"})
        container = dataclasses.replace(
            container, env=("A=S3CRET", "B"), mounts=(*container.mounts, mount)
        )
        driver = LogDriver(name="splunk", options={"splunk-token": "S3CRET"})
        task = dataclasses.replace(given.task, container=container, log_driver=driver)
        return dataclasses.replace(given, task=task)

    service = Service(
        id=ServiceId("s"), spec=with_secrets(spec), previous_spec=with_secrets(previous)
    )
    shown = write_service(mask_service(service))
    assert "S3CRET" not in json.dumps(shown)
    env = shown["Spec"]["TaskTemplate"]["ContainerSpec"]["Env"]
    assert env == ["A=********", "B"]


@given(st.integers(1, 4_000_000_000_000_000).map(lambda us: us / 1_000_000))
def test_timestamp_is_read_back_to_the_microsecond(at: float) -> None:
    assert parse_timestamp(timestamp(at), "since") == pytest.approx(at, abs=1e-6)


def test_zero_is_gos_zero_time() -> None:
    assert timestamp(0.0) == "0001-01-01T00:00:00Z"


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives(value: str) -> None:
    container = ContainerTemplate(image="busybox", env=(value,), labels={value: value})
    assert read_container(Fields(wire(write_container(container)))) == container
