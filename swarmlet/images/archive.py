"""Image archives: what `docker save`, skopeo and podman write, and what they read.

Sync: call it in a worker thread. One tar may hold both layouts, and ours does:

    oci-layout, index.json, blobs/sha256/…      OCI image layout (docker save since 25)
    manifest.json, and the files it names       Docker's own (docker load of every version)

Loading is one pass, whatever the order of the members: each file goes into the blob store as it
comes, and what the JSON at the end does not speak of goes again. The compressed form of an
archive is found out by its first bytes.
"""

from __future__ import annotations

import contextlib
import io
import json
import posixpath
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from swarmlet.images.blobs import BLOCK_BYTES, Blobs, BlobWriter
from swarmlet.images.compression import (
    CHUNK_BYTES,
    GZIP_LEVEL,
    GZIP_WBITS,
    MAGIC_BYTES,
    Pushback,
    decompress,
    sniff,
)
from swarmlet.images.config import decode_config_untrusted
from swarmlet.images.document import DOCUMENT_BYTES_MAX, Field, read_document
from swarmlet.images.errors import BadArchive, BadLayer, BadManifest, BadReference
from swarmlet.images.manifest import (
    INDEXES,
    MANIFESTS,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    encode_manifest,
    read_descriptor,
)
from swarmlet.images.placing import Limits
from swarmlet.images.reference import Digest, Reference, digest_of, is_digest, parse_reference
from swarmlet.images.table import FULL_NAME, LAYOUT, SHORT_NAME, encode_table
from swarmlet.images.tarstream import BLOCK, Blocks, Entry, Kind, TarReader
from swarmlet.images.unpack import LayerFacts, Readable, check_layer

#: Files in an archive, and images that it may name.
FILES_MAX = 50_000
IMAGES_MAX = 1_000
BLOBS_FOLDER = "blobs/sha256/"


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image of an archive: its manifest or index, which is a blob now, and its names."""

    target: Descriptor
    names: tuple[Reference, ...]


def load_archive(
    source: Readable,
    blobs: Blobs,
    hold: Callable[[Digest], bool],
    pulse: Callable[[], None] = lambda: None,
) -> list[Loaded]:
    """Store the blobs of the archive *source* and return its images.

    The caller checks the manifests and holds the blobs (*hold*) until its table names them; what it
    does not take, it discards.

    Raises:
        BadArchive: It is none, or something that it promises is missing.
    """
    contents = _Contents(blobs, hold, pulse)
    try:
        contents.read(source)
        if contents.find("index.json") is not None:
            return _read_oci(contents)
        if contents.find("manifest.json") is not None:
            return _read_docker(contents, blobs, hold)
    except (BadLayer, BadManifest) as error:
        raise BadArchive(f"the archive cannot be read: {error}") from error
    raise BadArchive(
        "the archive has neither an index.json nor a manifest.json, so it is no image;"
        " a root file system goes in by `image import`"
    )


class _Contents:
    """The files of an archive, each a blob by now, by their names."""

    def __init__(
        self, blobs: Blobs, hold: Callable[[Digest], bool], pulse: Callable[[], None]
    ) -> None:
        self._blobs = blobs
        self._hold = hold
        self._pulse = pulse
        self._files: dict[str, tuple[Digest, int]] = {}
        self._links: dict[str, str] = {}

    def read(self, source: Readable) -> None:
        chunks = decompress(source.read)
        with contextlib.closing(chunks):
            reader = TarReader(Blocks(lambda: next(chunks, b"")), entries_max=FILES_MAX)
            for entry in reader:
                self._pulse()
                path = _text(entry)
                if entry.kind is Kind.FILE:
                    self._files[path] = self._store(path, entry, reader.content())
                elif entry.kind is Kind.SYMLINK:
                    target = posixpath.join(posixpath.dirname(path), _decode(entry.link))
                    self._links[path] = posixpath.normpath(target)
                elif entry.kind is Kind.HARDLINK:
                    self._links[path] = posixpath.normpath(_decode(entry.link))
            for _ in chunks:  # tar's padding, and gzip's checksum
                self._pulse()

    def _store(self, path: str, entry: Entry, content: Iterator[memoryview]) -> tuple[Digest, int]:
        """Store one file; one that is named by its digest has to have it."""
        promised = f"sha256:{path.removeprefix(BLOBS_FOLDER)}"
        expected = Digest(promised) if is_digest(promised) else None
        if expected and self._hold(expected) and self._blobs.size(expected) == entry.size:
            return expected, entry.size
        self._blobs.check_space(entry.size)
        with self._blobs.write(expected, entry.size) as writer:
            if writer.offset:
                writer.restart()
            for part in rechunk(content):
                self._pulse()
                writer.write(part)
            self._hold(writer.digest)
            return writer.commit(), entry.size

    def find(self, path: str) -> tuple[Digest, int] | None:
        """Return a file's digest and size. Old archives say "the same layer" by a link."""
        path = posixpath.normpath(path)
        return self._files.get(self._links.get(path, path))

    def require(self, path: str) -> tuple[Digest, int]:
        found = self.find(path)
        if found is None:
            raise BadArchive(f"the archive speaks of {path!r} but does not hold it")
        return found

    def document(self, path: str) -> bytes:
        digest, _ = self.require(path)
        return self._blobs.read(digest, DOCUMENT_BYTES_MAX)

    def head(self, digest: Digest) -> bytes:
        with self._blobs.open(digest) as file:
            return file.read(4)

    def holds(self, digest: Digest) -> bool:
        return BLOBS_FOLDER + digest.removeprefix("sha256:") in self._files


def _read_oci(contents: _Contents) -> list[Loaded]:
    document = read_document(contents.document("index.json"), what="index.json")
    images: dict[Digest, Loaded] = {}
    for entry in document["manifests"].items(most=IMAGES_MAX):
        target = read_descriptor(entry)
        if target.media_type not in MANIFESTS | INDEXES:
            continue
        if not contents.holds(target.digest):
            raise BadArchive(f"the archive speaks of {target.digest} but does not hold it")
        known = images.get(target.digest, Loaded(_plain(target), ()))
        names = dict.fromkeys((*known.names, *_oci_names(target)))
        images[target.digest] = Loaded(known.target, tuple(names))
    return list(images.values())


def _oci_names(target: Descriptor) -> Iterator[Reference]:
    """docker and containerd give the whole name; others only what stands behind the colon.

    A short name that is only a tag ("latest") names no repository, so it names nothing here.
    """
    short = target.annotations.get(SHORT_NAME, "")
    text = target.annotations.get(FULL_NAME) or (short if set(short) & set("/:") else "")
    if text:
        yield _name(text)


def _read_docker(contents: _Contents, blobs: Blobs, hold: Callable[[Digest], bool]) -> list[Loaded]:
    data = contents.document("manifest.json")
    try:
        images = Field(json.loads(data), "manifest.json")
    except (ValueError, RecursionError) as error:
        raise BadArchive(f"manifest.json is no JSON: {error}") from None
    found = []
    for image in images.items(most=IMAGES_MAX):
        config, config_size = contents.require(image["Config"].text())
        decoded = decode_config_untrusted(blobs.read(config, DOCUMENT_BYTES_MAX))
        layers = []
        for layer in image["Layers"].items(most=len(decoded.diff_ids)):
            digest, size = contents.require(layer.text())
            kind = sniff(contents.head(digest))
            layers.append(Descriptor(digest, size, f"{OCI_LAYER}+{kind}" if kind else OCI_LAYER))
        manifest = encode_manifest(
            Manifest(Descriptor(config, config_size, OCI_CONFIG), tuple(layers))
        )
        hold(digest_of(manifest))
        target = blobs.put(manifest)
        names = tuple(_name(tag.text()) for tag in _optional_items(image["RepoTags"]))
        found.append(Loaded(Descriptor(target, len(manifest), OCI_MANIFEST), names))
    return found


def import_layer(
    source: Readable,
    blobs: Blobs,
    hold: Callable[[Digest], bool],
    limits: Limits,
    pulse: Callable[[], None] = lambda: None,
) -> tuple[Descriptor, LayerFacts]:
    """Store a root file system's tar as one layer, and read it to its end on the way.

    A plain tar is compressed: it will cross the network once for each node. What came compressed
    stays as it is.

    Raises:
        BadLayer: It is no tar, or one that would not be unpacked.
    """
    head = source.read(CHUNK_BYTES)
    while 0 < len(head) < MAGIC_BYTES and (more := source.read(CHUNK_BYTES)):
        head += more
    kind = sniff(head)
    with blobs.write() as writer:
        stored = _Stored(Pushback(head, source.read), writer, plain=not kind)
        facts = check_layer(stored, limits, pulse)
        stored.finish()
        hold(writer.digest)
        digest, size = writer.commit(), writer.offset
    return Descriptor(digest, size, f"{OCI_LAYER}+{kind or 'gzip'}"), facts


class _Stored:
    """A file whose bytes are stored while somebody else reads them."""

    def __init__(self, source: Pushback, writer: BlobWriter, *, plain: bool) -> None:
        self._source = source
        self._writer = writer
        self._compressor = zlib.compressobj(GZIP_LEVEL, wbits=GZIP_WBITS) if plain else None

    def read(self, count: int, /) -> bytes:
        data = self._source.read(count)
        if data:
            self._writer.write(self._compressor.compress(data) if self._compressor else data)
        return data

    def finish(self) -> None:
        if self._compressor:
            self._writer.write(self._compressor.flush())


def save_archive(
    images: Sequence[tuple[Descriptor, Manifest, Sequence[Reference]]], blobs: Blobs
) -> Iterator[bytes]:
    """Yield an archive of *images*: for each its manifest, what that holds, and its names.

    The same images give the same bytes. Raises BlobNotFound when a blob went away meanwhile.
    """
    yield from _member("oci-layout", [LAYOUT], len(LAYOUT))
    written: set[Digest] = set()
    for target, manifest, _ in images:
        for blob in (target, manifest.config, *manifest.layers):
            if blob.digest not in written:
                written.add(blob.digest)
                with blobs.open(blob.digest) as file:
                    yield from _member(_blob_path(blob), _blocks(file), blob.size)
    index = encode_table((target, names) for target, _, names in images)
    yield from _member("index.json", [index], len(index))
    listed = [
        {
            "Config": _blob_path(manifest.config),
            "RepoTags": [name.familiar for name in names if name.tag] or None,
            "Layers": [_blob_path(layer) for layer in manifest.layers],
        }
        for _, manifest, names in images
    ]
    docker = json.dumps(listed, separators=(",", ":")).encode()
    yield from _member("manifest.json", [docker], len(docker))
    yield bytes(2 * BLOCK)


def _member(name: str, chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    import tarfile  # only who saves an image needs it

    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o644
    yield header.tobuf(tarfile.USTAR_FORMAT if size < 8 << 30 else tarfile.PAX_FORMAT)
    yield from chunks
    yield bytes(-size % BLOCK)


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(BLOCK_BYTES):
        yield block


def _blob_path(blob: Descriptor) -> str:
    return BLOBS_FOLDER + blob.digest.removeprefix("sha256:")


def _plain(target: Descriptor) -> Descriptor:
    return Descriptor(target.digest, target.size, target.media_type)


def _optional_items(entry: Field) -> Iterator[Field]:
    return entry.items(most=IMAGES_MAX) if entry.exists else iter(())


def _name(text: str) -> Reference:
    try:
        return parse_reference(text)
    except BadReference as error:
        raise BadArchive(f"the archive names an image wrongly: {error}") from None


def _text(entry: Entry) -> str:
    return _decode(b"/".join(entry.path))


def _decode(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise BadArchive("the archive has a file name that is no UTF-8") from None


def rechunk(parts: Iterable[bytes | memoryview]) -> Generator[bytes, None, None]:
    """Join small parts, so that a write to the disk is worth its call."""
    buffer = io.BytesIO()
    for part in parts:
        buffer.write(part)
        if buffer.tell() >= BLOCK_BYTES:
            yield buffer.getvalue()
            buffer = io.BytesIO()
    if buffer.tell():
        yield buffer.getvalue()
