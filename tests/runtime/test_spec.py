"""Specs: their file form, and what is refused in them, by path."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings

from swarmlet.runtime import defaults
from swarmlet.runtime.decoding import SpecError
from swarmlet.runtime.spec import (
    Capabilities,
    ContainerSpec,
    Process,
    Root,
    User,
    signal_number,
    validate,
)
from tests.runtime.specs import container_specs

MINIMAL: dict[str, Any] = {"process": {"args": ["true"]}, "root": {"layers": ["/layer"]}}


@settings(max_examples=50, deadline=None)
@given(container_specs)
def test_json_gives_the_spec_back(spec: ContainerSpec) -> None:
    assert ContainerSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_json_holds_only_what_is_not_default() -> None:
    spec = ContainerSpec(process=Process(args=("true",)), root=Root(layers=("/layer",)))
    assert spec.to_json() == MINIMAL


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"process": {"args": []}}, "process.args: must not be empty"),
        ({"process": {"args": "true"}}, "process.args: must be a list, not str"),
        ({"process": {"args": [1]}}, "process.args[0]: must be text, not int"),
        ({"process": {}}, "process.args: is required"),
        ({"process": None}, "process: must be an object, not null"),
        ({"process": {"args": ["a\0b"]}}, "process.args[0]: holds a NUL byte"),
        ({"process": {"args": ["a"], "env": ["x"]}}, "process.env[0]: must be NAME=VALUE, not 'x'"),
        ({"process": {"args": ["a"], "cwd": "tmp"}}, "process.cwd: must be an absolute path"),
        ({"process": {"args": ["a"], "cwd": "/a/../b"}}, "process.cwd: must not climb with '..'"),
        (
            {"process": {"args": ["a"], "capabilities": {"bounding": ["CAP_FLY"]}}},
            "process.capabilities.bounding: there is no 'CAP_FLY'",
        ),
        (
            {"process": {"args": ["a"], "rlimits": [{"type": "RLIMIT_X", "soft": 1, "hard": 1}]}},
            "process.rlimits[0].type: there is no 'RLIMIT_X'",
        ),
        (
            {"process": {"args": ["a"], "rlimits": [{"type": "RLIMIT_AS", "soft": 2, "hard": 1}]}},
            "process.rlimits[0]: the soft limit 2 is above the hard limit 1",
        ),
        ({"process": {"args": ["a"], "user": {"user": "a:b"}}}, "process.user: 'a:b' is no user"),
        ({"process": {"args": ["a"], "terminal": 1}}, "process.terminal: must be true or false"),
        ({"root": {"layers": []}}, "root.layers: must not be empty"),
        ({"root": {"layers": ["x"]}}, "root.layers[0]: must be an absolute path, not 'x'"),
        ({"root": {"layers": ["/x"] * 129}}, "root.layers: has more than 128 layers"),
        ({"hostname": "x" * 65}, "hostname: is longer than 64 bytes"),
        ({"colour": "red"}, "colour: is not a known field"),
        ({"mounts": [{"target": "/x", "sauce": ""}]}, "mounts[0].sauce: is not a known field"),
        ({"mounts": [{"target": "/"}]}, "mounts[0].target: / belongs to the runtime"),
        ({"mounts": [{"target": "/proc/x"}]}, "mounts[0].target: /proc/x belongs to the runtime"),
        ({"mounts": [{"target": "/x"}]}, "mounts[0].source: must be an absolute path, not ''"),
        (
            {"mounts": [{"target": "/x", "type": "nfs"}]},
            "mounts[0].type: must be one of bind, volume, tmpfs, not 'nfs'",
        ),
        ({"files": [{"path": "/x", "content": "?"}]}, "files[0].content: must be base64 text"),
        ({"namespaces": {"pid": "mine"}}, "namespaces.pid: must be private, host or an absolute"),
        (
            {"namespaces": {"user": "private", "pid": "/proc/7/ns/pid"}},
            "namespaces.pid: is another container's: join its user namespace too",
        ),
        (
            {"uid_mappings": [{"container_id": 0, "host_id": 7, "size": 1}]},
            "uid_mappings: go with a user namespace",
        ),
        (
            {
                "namespaces": {"user": "private"},
                "uid_mappings": [{"container_id": 5, "host_id": 7, "size": 1}],
            },
            "uid_mappings: must map the container's root",
        ),
        (
            {
                "namespaces": {"user": "private"},
                "gid_mappings": [{"container_id": 0, "host_id": 4294967000, "size": 65536}],
            },
            "gid_mappings[0]: must lie within",
        ),
        ({"resources": {"memory_bytes": 4096}}, "resources.memory_bytes: is below what a process"),
        ({"resources": {"memory_bytes": 0}}, "resources.memory_bytes: must be above 0"),
        ({"resources": {"memory_bytes": True}}, "resources.memory_bytes: must be a whole number"),
        (
            {"resources": {"memory_bytes": 1 << 20, "memory_swap_bytes": 5}},
            "resources.memory_swap_bytes: is memory and swap together",
        ),
        ({"resources": {"cpu_quota_us": 1}}, "resources.cpu_quota_us: must be at least 1000"),
        ({"resources": {"cpuset_cpus": "a"}}, "resources.cpuset_cpus: must be like 0-2,4"),
        ({"resources": {"io": [{"device": "sda"}]}}, "resources.io[0].device: must be MAJOR:MINOR"),
        ({"sysctls": {"kernel.panic": "1"}}, "sysctls.kernel.panic: belongs to the whole host"),
        ({"sysctls": {"net.x/../y": "1"}}, "sysctls.net.x/../y: is no name of a sysctl"),
        (
            {"sysctls": {"net.ipv4.ip_forward": "1"}, "namespaces": {"network": "host"}},
            "sysctls.net.ipv4.ip_forward: would change the host's",
        ),
        ({"device_rules": [{"allow": True, "access": "x"}]}, "device_rules[0].access: must be of"),
        ({"stop_signal": "SIGNIFICANT"}, "stop_signal: there is no signal 'SIGNIFICANT'"),
        ({"seccomp": {"profile": "custom"}}, "seccomp.document: goes with the profile custom"),
        ({"log": {"file_bytes_max": 1}}, "log.file_bytes_max: must be at least 4096"),
    ],
)
def test_nonsense_is_named_by_path(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        ContainerSpec.from_json({**MINIMAL, **changes})
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("value", [None, [], "x", 5])
def test_a_spec_is_an_object(value: object) -> None:
    with pytest.raises(SpecError, match=r"^spec: must be an object"):
        ContainerSpec.from_json(value)


@settings(max_examples=50, deadline=None)
@given(container_specs)
def test_valid_specs_are_valid_and_lose_only_secrets(spec: ContainerSpec) -> None:
    validate(spec)
    bare = spec.without_secrets()
    assert not any(file.content for file in bare.files)
    assert [file.path for file in bare.files] == [file.path for file in spec.files]


def test_capabilities_as_docker_adds_and_drops_them() -> None:
    assert Capabilities.adjusted() == Capabilities(
        bounding=tuple(n for n in defaults.CAPABILITIES if n in defaults.DEFAULT_CAPABILITIES),
        effective=tuple(n for n in defaults.CAPABILITIES if n in defaults.DEFAULT_CAPABILITIES),
        permitted=tuple(n for n in defaults.CAPABILITIES if n in defaults.DEFAULT_CAPABILITIES),
    )
    assert Capabilities.adjusted(add=["all"]).bounding == defaults.CAPABILITIES
    assert Capabilities.adjusted(drop=["ALL"]).bounding == ()
    assert Capabilities.adjusted(add=["CAP_CHOWN"], drop=["ALL"]).bounding == ("CAP_CHOWN",)
    assert "CAP_KILL" not in Capabilities.adjusted(add=["ALL"], drop=["kill"]).bounding
    with pytest.raises(SpecError, match="there is no CAP_FLY"):
        Capabilities.adjusted(add=["fly"])


def test_users_in_dockers_form() -> None:
    assert User.parse("") == User(user="0")
    assert User.parse("app") == User(user="app")
    assert User.parse("1000:5") == User(user="1000", group="5")


def test_signals_by_any_name() -> None:
    assert [signal_number(name) for name in ("SIGTERM", "term", "15")] == [15, 15, 15]
