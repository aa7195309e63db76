"""Manifests and indexes: what an image consists of, by digest.

Pure. Read are the OCI image specification 1.1 and Docker's schema 2; what we write is OCI. All
input is a stranger's: it comes from a registry, a peer or an archive.

    Index -> Manifest for each platform -> config blob, layer blobs (bottom first)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from swarmlet.images.document import DOCUMENT_BYTES_MAX, Field, read_document, write_document
from swarmlet.images.errors import BadManifest, NoPlatform
from swarmlet.images.reference import Digest, is_digest

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

INDEXES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})
LAYERS = frozenset(
    {OCI_LAYER, f"{OCI_LAYER}+gzip", f"{OCI_LAYER}+zstd"}
    | {DOCKER_LAYER, f"{DOCKER_LAYER}.gzip", f"{DOCKER_LAYER}.zstd"}
)
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"

#: overlayfs takes no more lower directories (fs/overlayfs: OVL_MAX_STACK).
LAYERS_MAX = 500
PLATFORMS_MAX = 500
#: Bytes of one blob: larger than any layer in sight, far from overflow when they are summed.
BLOB_BYTES_MAX = 1 << 40


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image runs on, in Go's words: linux, amd64; linux, arm, v7."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        parts = (self.os, self.architecture, self.variant)
        return "/".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob that a document points at: where (digest), how long, what it is."""

    digest: Digest
    size: int
    media_type: str
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image for one platform. *layers* are bottom first, as in the document."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = OCI_MANIFEST
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Index:
    """The same image for several platforms."""

    manifests: tuple[Descriptor, ...]
    media_type: str = OCI_INDEX
    annotations: Mapping[str, str] = field(default_factory=dict)


def decode_manifest_untrusted(data: bytes, media_type: str | None = None) -> Manifest | Index:
    """Return the manifest or index that *data* is.

    *media_type* is what the one who pointed here said; where the document says something else,
    or reads as both kinds, it is refused: its meaning must not depend on the reader
    (CVE-2021-41190).

    Raises:
        BadManifest: With the path of what is wrong.
    """
    document = read_document(data, what="a manifest")
    inner = document["mediaType"].text_or()
    version = document["schemaVersion"].number(least=1, most=2)
    if inner.startswith(SCHEMA_1) or version == 1:
        raise BadManifest(
            "the manifest is of Docker's schema 1, which no longer proves its content;"
            " push the image again with a client from 2017 or later"
        )
    if inner and media_type and inner != media_type:
        raise BadManifest(f"mediaType: {inner} was announced as {media_type}")
    has_manifests, has_layers = document["manifests"].exists, document["layers"].exists
    if has_manifests and (has_layers or document["config"].exists):
        raise BadManifest("the document is both an index and a manifest")
    kind = inner or media_type or (OCI_INDEX if has_manifests else OCI_MANIFEST)
    if kind in INDEXES:
        return _read_index(document, kind)
    if kind in MANIFESTS:
        return _read_manifest(document, kind)
    raise BadManifest(f"mediaType: {kind} is neither an image's manifest nor an index")


def _read_index(document: Field, kind: str) -> Index:
    entries = document["manifests"].items(most=PLATFORMS_MAX)
    descriptors = tuple(read_descriptor(entry) for entry in entries)
    return Index(descriptors, kind, document["annotations"].text_map())


def _read_manifest(document: Field, kind: str) -> Manifest:
    config = read_descriptor(document["config"])
    if config.media_type not in CONFIGS:
        raise document["config"].fail(
            f"{config.media_type} belongs to no container image (a chart, a signature?)"
        )
    if config.size > DOCUMENT_BYTES_MAX:
        raise document["config"].fail(f"{config.size} bytes; {DOCUMENT_BYTES_MAX} are allowed")
    layers = []
    for entry in document["layers"].items(most=LAYERS_MAX):
        layer = read_descriptor(entry)
        if layer.media_type not in LAYERS:
            raise entry.fail(f"{layer.media_type} is no layer that Linux can use")
        layers.append(layer)
    return Manifest(config, tuple(layers), kind, document["annotations"].text_map())


def read_descriptor(entry: Field) -> Descriptor:
    text = entry["digest"].text()
    if not is_digest(text):
        raise entry["digest"].fail(f"{text[:80]!r} is no SHA-256 digest")
    return Descriptor(
        Digest(text),
        entry["size"].number(most=BLOB_BYTES_MAX),
        entry["mediaType"].text(),
        _read_platform(entry["platform"]) if entry["platform"].exists else None,
        entry["annotations"].text_map(),
    )


def _read_platform(entry: Field) -> Platform:
    return Platform(
        entry["os"].text_or(), entry["architecture"].text_or(), entry["variant"].text_or()
    )


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the document of *manifest*; decoding gives it back."""
    return write_document(
        {
            "schemaVersion": 2,
            "mediaType": manifest.media_type,
            "config": describe(manifest.config),
            "layers": [describe(layer) for layer in manifest.layers],
            **_annotations(manifest.annotations),
        }
    )


def encode_index(index: Index) -> bytes:
    return write_document(
        {
            "schemaVersion": 2,
            "mediaType": index.media_type,
            "manifests": [describe(entry) for entry in index.manifests],
            **_annotations(index.annotations),
        }
    )


def describe(descriptor: Descriptor) -> dict[str, Any]:
    """Return *descriptor* as it stands in a document."""
    document: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    if descriptor.platform is not None:
        platform = {
            "architecture": descriptor.platform.architecture,
            "os": descriptor.platform.os,
            "variant": descriptor.platform.variant,
        }
        document["platform"] = {key: value for key, value in platform.items() if value}
    return document | _annotations(descriptor.annotations)


def _annotations(annotations: Mapping[str, str]) -> dict[str, Any]:
    return {"annotations": dict(annotations)} if annotations else {}


# Platforms.
#: uname's machine -> Go's architecture and variant.
MACHINES: dict[str, tuple[str, str]] = {
    "x86_64": ("amd64", ""),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", "v8"),
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
    "riscv64": ("riscv64", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "loongarch64": ("loong64", ""),
}
#: ARM's variants, best first; each processor runs its own and all that follow.
_ARM = ("v8", "v7", "v6", "v5")


def host_platform(machine: str) -> Platform:
    """Return the platform of a Linux host whose uname says *machine*."""
    architecture, variant = MACHINES.get(machine, (machine, ""))
    return Platform("linux", architecture, variant)


def rank(host: Platform, offered: Platform) -> int | None:
    """Say how well *host* runs *offered*: 0 is best, None is not at all.

    An index that gives no variant for ARM means v7 mostly (containerd reads it so), which an
    older processor would find out the hard way; it is the last choice there.
    """
    wanted = _runnable(host)
    variant = offered.variant
    if offered.architecture == "arm64":
        variant = variant or "v8"
    elif offered.architecture == "amd64" and variant == "v1":
        variant = ""
    if offered.os != host.os or (offered.architecture, variant) not in wanted:
        return None
    return wanted.index((offered.architecture, variant))


def _runnable(host: Platform) -> list[tuple[str, str]]:
    arms = [("arm", variant) for variant in _ARM]
    if host.architecture == "arm64":
        return [("arm64", "v8"), *arms, ("arm", "")]
    if host.architecture == "arm":
        first = _ARM.index(host.variant) if host.variant in _ARM else 1
        return [*arms[first:], ("arm", "")]
    if host.architecture == "amd64":
        return [("amd64", ""), ("386", "")]
    return [(host.architecture, host.variant)]


def select_platform(index: Index, host: Platform) -> Descriptor:
    """Return the manifest of *index* that *host* runs best; the earlier one of equals.

    Raises:
        NoPlatform: With the platforms that there are.
    """
    best: tuple[int, Descriptor] | None = None
    for entry in index.manifests:
        if entry.media_type not in MANIFESTS or entry.platform is None:
            continue  # an attestation, a nested index: not this image
        place = rank(host, entry.platform)
        if place is not None and (best is None or place < best[0]):
            best = place, entry
    if best is not None:
        return best[1]
    plain = [entry for entry in index.manifests if entry.media_type in MANIFESTS]
    if len(plain) == 1 and plain[0].platform is None:
        return plain[0]
    there = sorted({str(entry.platform) for entry in plain if entry.platform})
    raise NoPlatform(
        f"the image is not made for {host}; it is for {', '.join(there) or 'nothing at all'}"
    )


# Layers.
def chain_ids(diff_ids: Sequence[Digest]) -> tuple[Digest, ...]:
    """Return for each layer the name of it and all below (OCI image spec, "Layer ChainID")."""
    chain: list[Digest] = []
    for diff_id in diff_ids:
        if chain:
            both = f"{chain[-1]} {diff_id}"
            chain.append(Digest(f"sha256:{hashlib.sha256(both.encode()).hexdigest()}"))
        else:
            chain.append(diff_id)
    return tuple(chain)
