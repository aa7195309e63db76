"""Manifests, indexes and configurations, as strangers write them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.images.config import (
    Healthcheck,
    History,
    ImageConfig,
    decode_config_untrusted,
    encode_config,
)
from swarmlet.images.document import DOCUMENT_BYTES_MAX
from swarmlet.images.errors import BadManifest, NoPlatform
from swarmlet.images.manifest import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    Platform,
    chain_ids,
    decode_manifest_untrusted,
    encode_index,
    encode_manifest,
    host_platform,
    rank,
    select_platform,
)
from swarmlet.images.reference import Digest, digest_of

A, B, C = (digest_of(name) for name in (b"a", b"b", b"c"))


def document(**changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": A, "size": 10},
        "layers": [{"mediaType": OCI_LAYER + "+gzip", "digest": B, "size": 20}],
    }
    return {key: value for key, value in (plain | changes).items() if value is not None}


def decode(value: Any, media_type: str | None = None) -> Manifest | Index:
    return decode_manifest_untrusted(json.dumps(value).encode(), media_type)


def test_manifest_is_read() -> None:
    expected = Manifest(
        Descriptor(A, 10, OCI_CONFIG), (Descriptor(B, 20, OCI_LAYER + "+gzip"),), OCI_MANIFEST
    )
    assert decode(document()) == expected
    assert decode(document(mediaType=None), OCI_MANIFEST) == expected
    assert decode(document(mediaType=None)) == expected


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"schemaVersion": 1}, "schema 1"),
        ({"schemaVersion": 3}, "schemaVersion"),
        ({"schemaVersion": True}, "schemaVersion: a number is wanted, a truth value is there"),
        ({"mediaType": DOCKER_MANIFEST}, "announced as"),
        ({"manifests": []}, "both an index and a manifest"),
        ({"config": None}, "config: an object is wanted, nothing is there"),
        ({"config": {"mediaType": OCI_CONFIG, "digest": A, "size": 1 << 30}}, "config: 10737"),
        ({"config": {"mediaType": "x/helm", "digest": A, "size": 1}}, "no container image"),
        ({"layers": "x"}, "layers: a list is wanted, a string is there"),
        ({"layers": [{"mediaType": "x", "digest": B, "size": 1}]}, r"layers\[0\]: x is no layer"),
        ({"layers": [{"mediaType": OCI_LAYER, "digest": B, "size": -1}]}, r"layers\[0\].size: -1"),
        ({"layers": [{"mediaType": OCI_LAYER, "digest": "../../x", "size": 1}]}, "no SHA-256"),
        ({"layers": [{"mediaType": OCI_LAYER, "digest": B, "size": 1}] * 501}, "500 are allowed"),
        ({"annotations": {"a": 1}}, r"annotations\['a'\]: a string is wanted"),
    ],
)
def test_bad_manifest_is_refused_by_its_path(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadManifest, match=complaint):
        decode(document(**changes), OCI_MANIFEST)


def test_document_of_another_kind_is_refused() -> None:
    with pytest.raises(BadManifest, match="text/html is neither an image's manifest nor an index"):
        decode(document(mediaType="text/html"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe",
        b'{"a":' * 50_000,
        b'{"schemaVersion":2,"mediaType":"\\ud800"}',
        b'{"schemaVersion":2,"mediaType":"a\\u0000b"}',
        b'{"schemaVersion":' + b"9" * 5000 + b"}",
        b" " * (DOCUMENT_BYTES_MAX + 1),
    ],
    ids=lambda data: repr(data[:20]),
)
def test_what_is_no_document_is_refused(data: bytes) -> None:
    with pytest.raises(BadManifest):
        decode_manifest_untrusted(data)
    with pytest.raises(BadManifest):
        decode_config_untrusted(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["digest", "size", "mediaType", "platform", "os", "Env", "Test"])
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.sampled_from(
            ["schemaVersion", "mediaType", "config", "layers", "manifests", "annotations"]
        ),
        json_values | st.sampled_from([2, OCI_MANIFEST, OCI_INDEX]),
    )
)
def test_any_document_is_a_manifest_or_a_complaint(value: dict[str, Any]) -> None:
    try:
        decoded = decode(value)
    except BadManifest:
        return
    encode = encode_manifest if isinstance(decoded, Manifest) else encode_index
    assert decode_manifest_untrusted(encode(decoded)) == decoded  # type: ignore[operator]


@given(
    st.dictionaries(
        st.sampled_from(["architecture", "os", "created", "config", "rootfs", "history"]),
        json_values,
    )
)
def test_any_document_is_a_configuration_or_a_complaint(value: dict[str, Any]) -> None:
    try:
        config = decode_config_untrusted(json.dumps(value).encode())
    except BadManifest:
        return
    assert decode_config_untrusted(encode_config(config)) == config
    assert isinstance(config.created_at, float)


# Configurations.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
named = texts.filter(lambda text: not text.startswith("="))
counts = st.integers(0, 2**40)
configs = st.builds(
    ImageConfig,
    architecture=texts,
    os=texts.filter(bool),
    variant=texts,
    created=texts,
    author=texts,
    user=texts,
    env=st.lists(named, max_size=3).map(tuple),
    entrypoint=st.none() | st.lists(texts, max_size=3).map(tuple),
    cmd=st.none() | st.lists(texts, max_size=3).map(tuple),
    working_dir=texts,
    labels=st.dictionaries(texts, texts, max_size=3),
    exposed_ports=st.sets(texts, max_size=3).map(lambda found: tuple(sorted(found))),
    volumes=st.sets(texts, max_size=3).map(lambda found: tuple(sorted(found))),
    stop_signal=texts,
    healthcheck=st.none()
    | st.builds(
        Healthcheck,
        test=st.lists(texts, max_size=3).map(tuple),
        interval=counts,
        timeout=counts,
        start_period=counts,
        start_interval=counts,
        retries=counts,
    ),
    on_build=st.lists(texts, max_size=2).map(tuple),
    shell=st.none() | st.lists(texts, max_size=3).map(tuple),
    diff_ids=st.lists(st.binary(max_size=2).map(digest_of), max_size=3).map(tuple),
    history=st.lists(st.builds(History, texts, texts, texts, texts, st.booleans()), max_size=3).map(
        tuple
    ),
)


@given(configs)
def test_configuration_that_is_written_is_read_back(config: ImageConfig) -> None:
    assert decode_config_untrusted(encode_config(config)) == config


def test_configuration_of_docker() -> None:
    config = decode_config_untrusted(
        json.dumps(
            {
                "architecture": "arm",
                "variant": "v7",
                "os": "linux",
                "created": "2024-05-01T10:20:30.123456789Z",
                "config": {
                    "Env": ["PATH=/bin"],
                    "Entrypoint": ["/entry"],
                    "Cmd": ["-f"],
                    "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
                    "Volumes": {"/data": {}},
                    "Healthcheck": {"Test": ["CMD", "true"], "Interval": 3 * 10**9},
                    "ArgsEscaped": True,
                    "OnBuild": None,
                },
                "docker_version": "20.10",
                "rootfs": {"type": "layers", "diff_ids": [A]},
                "history": [{"created_by": "ADD x", "empty_layer": True}],
            }
        ).encode()
    )
    assert config.argv == ("/entry", "-f")
    assert config.exposed_ports == ("53/udp", "80/tcp")
    assert config.healthcheck == Healthcheck(("CMD", "true"), interval=3 * 10**9)
    assert config.platform == Platform("linux", "arm", "v7")
    assert config.created_at == pytest.approx(1714558830.123456)
    assert config.history == (History(created_by="ADD x", empty_layer=True),)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"config": {"Env": ["=x"]}}, r"config.Env\[0\]: a variable without a name"),
        ({"config": {"Cmd": "sh"}}, "config.Cmd: a list is wanted"),
        ({"rootfs": {"type": "squash"}}, "rootfs.type"),
        ({"rootfs": {"diff_ids": ["sha512:00"]}}, r"rootfs.diff_ids\[0\]"),
        ({"rootfs": {}, "history": {}}, "history: a list is wanted"),
        ({}, "rootfs: an object is wanted, nothing is there"),
    ],
)
def test_bad_configuration_is_refused_by_its_path(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadManifest, match=complaint):
        decode_config_untrusted(json.dumps(config).encode())


# Platforms.
def index_of(*platforms: str) -> Index:
    entries = []
    for text in platforms:
        os, architecture, variant = (*text.split("/"), "")[:3]
        where = Platform(os, architecture, variant)
        entries.append(Descriptor(digest_of(text.encode()), 1, OCI_MANIFEST, where))
    return Index(tuple(entries))


@pytest.mark.parametrize(
    ("machine", "offered", "chosen"),
    [
        ("x86_64", ["linux/arm64", "linux/amd64"], "linux/amd64"),
        ("x86_64", ["linux/386", "linux/amd64"], "linux/amd64"),
        ("x86_64", ["windows/amd64", "linux/386"], "linux/386"),
        ("x86_64", ["linux/amd64/v3", "linux/amd64/v1"], "linux/amd64/v1"),
        ("aarch64", ["linux/arm/v7", "linux/arm64"], "linux/arm64"),
        ("aarch64", ["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7"),
        ("armv7l", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"], "linux/arm/v7"),
        ("armv7l", ["linux/arm/v8", "linux/arm/v6"], "linux/arm/v6"),
        ("armv6l", ["linux/arm", "linux/arm/v5", "linux/arm/v6"], "linux/arm/v6"),
        ("armv7l", ["linux/arm"], "linux/arm"),
        ("riscv64", ["linux/amd64", "linux/riscv64"], "linux/riscv64"),
    ],
)
def test_best_platform_is_selected(machine: str, offered: list[str], chosen: str) -> None:
    selected = select_platform(index_of(*offered), host_platform(machine))
    assert selected.digest == digest_of(chosen.encode())


def test_index_without_our_platform_says_what_there_is() -> None:
    index = index_of("linux/arm64/v8", "windows/amd64", "unknown/unknown")
    with pytest.raises(NoPlatform, match="linux/arm64/v8, unknown/unknown, windows/amd64"):
        select_platform(index, host_platform("x86_64"))
    with pytest.raises(NoPlatform, match="nothing at all"):
        select_platform(Index(()), host_platform("x86_64"))


def test_attestations_are_no_images() -> None:
    index = index_of("unknown/unknown", "linux/amd64")
    lone = Index((Descriptor(A, 1, OCI_MANIFEST),))
    assert select_platform(index, host_platform("x86_64")).digest == digest_of(b"linux/amd64")
    assert select_platform(lone, host_platform("x86_64")).digest == A


def test_every_host_runs_its_own_best() -> None:
    for machine in ("x86_64", "i686", "aarch64", "armv7l", "armv6l", "riscv64", "s390x", "new"):
        host = host_platform(machine)
        assert rank(host, host) == 0, machine
        assert rank(host, Platform("windows", host.architecture, host.variant)) is None


def test_docker_index_is_read() -> None:
    value = {
        "schemaVersion": 2,
        "mediaType": DOCKER_INDEX,
        "manifests": [
            {
                "mediaType": DOCKER_MANIFEST,
                "digest": A,
                "size": 1,
                "platform": {"os": "linux", "architecture": "arm", "variant": "v7"},
            }
        ],
    }
    index = decode(value, DOCKER_INDEX)
    assert isinstance(index, Index)
    assert index.manifests[0].platform == Platform("linux", "arm", "v7")


# Chain ids.
def test_chain_ids_are_those_of_the_specification() -> None:
    assert chain_ids([]) == ()
    assert chain_ids([A]) == (A,)
    first, second, third = chain_ids([A, B, C])
    assert second == digest_of(f"{A} {B}".encode())
    assert third == digest_of(f"{second} {C}".encode())
    assert first == A


@given(st.lists(st.binary(max_size=2).map(digest_of), max_size=6))
def test_chain_of_a_prefix_is_a_prefix_of_the_chain(diff_ids: list[Digest]) -> None:
    chain = chain_ids(diff_ids)
    for length in range(len(diff_ids)):
        assert chain_ids(diff_ids[:length]) == chain[:length]
    assert len(set(chain)) == len(chain)
