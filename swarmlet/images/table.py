"""The table of images: which manifests this store holds on purpose, and what they are called.

Pure. On disk it is the `index.json` of an OCI image layout, so skopeo and umoci read the store as
it is. An image has an entry for each of its names, or one without a name. Names are canonical; one
with a digest in the place of its tag (`docker.io/library/web@sha256:…`) says where a pinned image
came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from swarmlet.images.document import read_document, write_document
from swarmlet.images.manifest import Descriptor, describe, read_descriptor
from swarmlet.images.reference import Digest, Reference, parse_reference

LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
#: containerd's annotation: the whole name. OCI's: what `oci:DIRECTORY:NAME` is looked up by.
FULL_NAME = "io.containerd.image.name"
SHORT_NAME = "org.opencontainers.image.ref.name"
#: Entries, so that the document stays below its bound (an entry has about 400 bytes).
ENTRIES_MAX = 8_000


def encode_table(entries: Iterable[tuple[Descriptor, Sequence[Reference]]]) -> bytes:
    """Return the document for images (each with its names), in the given order."""
    listed = []
    for descriptor, names in entries:
        plain = replace(descriptor, annotations={}, platform=None)
        if not names:
            listed.append(plain)
        for name in names:
            annotations = {FULL_NAME: str(name), SHORT_NAME: name.familiar}
            listed.append(replace(plain, annotations=annotations))
    assert len(listed) <= ENTRIES_MAX, len(listed)
    document = {"schemaVersion": 2, "manifests": [describe(entry) for entry in listed]}
    return write_document(document)


def decode_table(data: bytes) -> dict[Digest, tuple[Descriptor, tuple[Reference, ...]]]:
    """Return the images and their names. Raises BadManifest, BadReference."""
    document = read_document(data, what="the table of images")
    table: dict[Digest, tuple[Descriptor, tuple[Reference, ...]]] = {}
    for entry in document["manifests"].items(most=ENTRIES_MAX):
        descriptor = read_descriptor(entry)
        _, names = table.get(descriptor.digest, (descriptor, ()))
        if name := descriptor.annotations.get(FULL_NAME):
            names = (*names, parse_reference(name))
        plain = replace(descriptor, annotations={}, platform=None)
        table[descriptor.digest] = (plain, names)
    return table
