"""Making layers, images and archives for tests, by the standard library and not by our own code."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from swarmlet.images.manifest import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from swarmlet.images.reference import Digest

#: The owner of all files in test layers: whoever runs the tests may chown to itself.
UID, GID = os.getuid(), os.getgid()


def digest_of(data: bytes) -> Digest:
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.uid, info.gid, info.mtime = kind, UID, GID, 1_700_000_000
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def directory(name: str, **fields: Any) -> tarfile.TarInfo:
    return member(name, tarfile.DIRTYPE, **fields)


def symlink(name: str, target: str) -> tarfile.TarInfo:
    return member(name, tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str) -> tarfile.TarInfo:
    return member(name, tarfile.LNKTYPE, linkname=target)


Part = tarfile.TarInfo | tuple[str, bytes] | tuple[tarfile.TarInfo, bytes]


def tar_of(*parts: Part, form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar of bare members and of (name or member, content) pairs."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for part in parts:
            if isinstance(part, tarfile.TarInfo):
                tar.addfile(part)
                continue
            head, data = part
            info = member(head) if isinstance(head, str) else head
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


@dataclass
class MadeImage:
    """An image as blobs, with the digest of its manifest (or index)."""

    digest: Digest
    manifest: bytes
    config: bytes
    blobs: dict[Digest, bytes] = field(default_factory=dict)

    @property
    def id(self) -> Digest:
        return digest_of(self.config)


def make_image(
    *layers: bytes,
    compress: bool = True,
    architecture: str = "amd64",
    variant: str = "",
    config: Mapping[str, Any] | None = None,
    diff_ids: Iterable[str] | None = None,
) -> MadeImage:
    """Make an OCI image of plain layer tars."""
    stored = [gzip.compress(layer, mtime=0) if compress else layer for layer in layers]
    document = {
        "architecture": architecture,
        "os": "linux",
        "created": "2024-01-01T00:00:00Z",
        "config": dict(config or {"Cmd": ["/bin/sh"]}),
        "rootfs": {
            "type": "layers",
            "diff_ids": list(diff_ids or map(digest_of, layers)),
        },
    }
    if variant:
        document["variant"] = variant
    config_data = json.dumps(document).encode()
    kind = OCI_LAYER + "+gzip" if compress else OCI_LAYER
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": describe(config_data, OCI_CONFIG),
            "layers": [describe(layer, kind) for layer in stored],
        }
    ).encode()
    blobs = {digest_of(data): data for data in (manifest, config_data, *stored)}
    return MadeImage(digest_of(manifest), manifest, config_data, blobs)


def make_index(*images: tuple[MadeImage, str]) -> MadeImage:
    """Make an index of (image, "architecture" or "architecture/variant") pairs."""
    entries = []
    blobs: dict[Digest, bytes] = {}
    for image, platform in images:
        architecture, _, variant = platform.partition("/")
        where = {"os": "linux", "architecture": architecture}
        if variant:
            where["variant"] = variant
        entries.append(describe(image.manifest, OCI_MANIFEST) | {"platform": where})
        blobs |= image.blobs
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    data = json.dumps(document).encode()
    return MadeImage(digest_of(data), data, b"", blobs | {digest_of(data): data})


def describe(data: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def oci_archive(image: MadeImage, *names: str, media_type: str = OCI_MANIFEST) -> bytes:
    """Return the tar of an OCI layout, index last, as some tools write it."""
    listed = []
    for name in names or (None,):
        entry = describe(image.manifest, media_type)
        if name:
            entry["annotations"] = {"io.containerd.image.name": name}
        listed.append(entry)
    index = json.dumps({"schemaVersion": 2, "manifests": listed}).encode()
    blobs = [(f"blobs/sha256/{digest[7:]}", data) for digest, data in image.blobs.items()]
    return tar_of(
        directory("blobs/"),
        directory("blobs/sha256/"),
        *blobs,
        ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
        ("index.json", index),
    )


def docker_archive(config: bytes, layers: Iterable[bytes], *names: str) -> bytes:
    """Return the tar of `docker save` before version 25: layer directories, manifest last."""
    parts: list[Part] = []
    paths = []
    for place, layer in enumerate(layers):
        paths.append(f"{place:064x}/layer.tar")
        parts += [directory(f"{place:064x}/"), (f"{place:064x}/VERSION", b"1.0")]
        parts.append((paths[-1], layer))
    config_name = digest_of(config)[7:] + ".json"
    manifest = [{"Config": config_name, "RepoTags": list(names) or None, "Layers": paths}]
    return tar_of(
        *parts,
        (config_name, config),
        ("manifest.json", json.dumps(manifest).encode()),
        ("repositories", b"{}"),
    )


async def stream(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    """Yield *data* in pieces that fit nowhere."""
    for at in range(0, len(data), size):
        yield data[at : at + size]
