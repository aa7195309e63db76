"""Which images there are, what they are called, and what each of them needs.

Pure. A Catalog is frozen: a change gives a new one, which the store writes to the disk and only
then puts in the place of the old.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from swarmlet.images.config import ImageConfig
from swarmlet.images.errors import AmbiguousImage, BadReference, ImageNotFound
from swarmlet.images.manifest import Descriptor, Manifest, chain_ids
from swarmlet.images.reference import Digest, Reference, is_digest, parse_reference

#: Hex digits of an id that are shown, as Docker does, and the shortest that is taken for one.
SHORT_ID = 12
PREFIX_MIN = 4


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image of this node.

    Attributes:
        target: Its manifest, or the index when it exists for several platforms. The digest of
            this is what the cluster pins.
        manifest_digest: The manifest for this host; the same as the target's without an index.
        content: All blobs that belong to it, the target first.
        names: Canonical; a name with a digest instead of a tag came with a pinned image.
    """

    target: Descriptor
    manifest_digest: Digest
    manifest: Manifest
    config: ImageConfig
    content: tuple[Descriptor, ...]
    names: tuple[Reference, ...] = ()

    @property
    def digest(self) -> Digest:
        return self.target.digest

    @property
    def id(self) -> Digest:
        """What Docker calls the image's id."""
        return self.manifest.config.digest

    @property
    def references(self) -> tuple[str, ...]:
        """The names that users gave it, as they write them."""
        return tuple(name.familiar for name in self.names if name.tag)

    @property
    def size(self) -> int:
        """Bytes of its blobs: what it costs to store and to send."""
        return sum(blob.size for blob in self.content)

    @property
    def chain(self) -> tuple[Digest, ...]:
        """The chain ids of its layers, bottom first."""
        return chain_ids(self.config.diff_ids)

    def answers_to(self, digest: str) -> bool:
        return digest in (self.digest, self.manifest_digest, self.id)


@dataclass(frozen=True, slots=True)
class Catalog:
    """Images by the digest of their target, in the order in which they came.

    Invariant: no name belongs to two images.
    """

    images: Mapping[Digest, ImageRecord] = field(default_factory=dict)

    def __iter__(self) -> Iterator[ImageRecord]:
        return iter(self.images.values())

    # Finding.
    def by_digest(self, digest: Digest) -> ImageRecord | None:
        """Return the image with this target, manifest or id; the newest where an id has several."""
        if digest in self.images:
            return self.images[digest]
        found = [image for image in self if image.answers_to(digest)]
        return found[-1] if found else None

    def resolve(self, text: str) -> ImageRecord:
        """Return the image that *text* means: a name, a digest, or an id or its beginning.

        A name wins over the beginning of an id (there may be an image called `cafe`); a digest in
        a name wins over the name, which may have moved on.

        Raises:
            ImageNotFound, AmbiguousImage: With what to do.
        """
        if is_digest(text) or is_digest(f"sha256:{text}"):
            digest = Digest(text if is_digest(text) else f"sha256:{text}")
            found = self.by_digest(digest)
            if found is None:
                raise ImageNotFound(f"no image on this node has the id or digest {text}")
            return found
        prefix = text.removeprefix("sha256:")
        try:
            reference = parse_reference(text)
        except BadReference:
            if not _is_prefix(prefix):
                raise
            reference = None
        if reference is not None:
            found = self.by_digest(reference.digest) if reference.digest else self._named(reference)
            if found is not None:
                return found
        matches = {image.id: image for image in self if _begins(image, prefix)}
        if len(matches) > 1:
            ids = ", ".join(sorted(digest[7 : 7 + SHORT_ID] for digest in matches))
            raise AmbiguousImage(f"{text} begins the ids of {len(matches)} images: {ids}")
        if matches:
            return next(iter(matches.values()))
        raise ImageNotFound(
            f"no image {reference.familiar if reference else text} on this node; bring it with"
            " `image load`, `image import` or `image pull`"
        )

    def _named(self, reference: Reference) -> ImageRecord | None:
        return next((image for image in self if reference in image.names), None)

    # Changing.
    def with_image(self, image: ImageRecord) -> Catalog:
        """Add *image*; its names move here from whoever had them, and it keeps those it had."""
        known = self.images.get(image.digest)
        kept = known.names if known else ()
        names = tuple(dict.fromkeys((*kept, *image.names)))
        others = self._without_names(image.names)
        return Catalog({**others, image.digest: replace(image, names=names)})

    def with_name(self, digest: Digest, name: Reference) -> Catalog:
        return self.with_image(replace(self.images[digest], names=(name,)))

    def without_names(self, names: Collection[Reference]) -> Catalog:
        return Catalog(self._without_names(names))

    def without(self, digests: Collection[Digest]) -> Catalog:
        return Catalog({key: image for key, image in self.images.items() if key not in digests})

    def _without_names(self, names: Collection[Reference]) -> dict[Digest, ImageRecord]:
        return {
            key: replace(image, names=tuple(n for n in image.names if n not in names))
            for key, image in self.images.items()
        }

    # Keeping.
    def unwanted(self, pins: Collection[Digest], *, tagged_too: bool = False) -> set[Digest]:
        """Return the images that no pin and no tag asks to keep; with *tagged_too* no pin alone.

        A pin is a target's, a manifest's or a configuration's digest.
        """
        return {
            image.digest
            for image in self
            if not is_pinned(image, pins) and (tagged_too or not image.references)
        }

    def blobs(self) -> set[Digest]:
        return {blob.digest for image in self for blob in image.content}

    def chains(self) -> set[Digest]:
        return {chain_id for image in self for chain_id in image.chain}


def is_pinned(image: ImageRecord, pins: Collection[Digest]) -> bool:
    return image.digest in pins or image.manifest_digest in pins or image.id in pins


def _is_prefix(text: str) -> bool:
    return PREFIX_MIN <= len(text) <= 64 and all(c in "0123456789abcdef" for c in text)


def _begins(image: ImageRecord, prefix: str) -> bool:
    return _is_prefix(prefix) and image.id.startswith(f"sha256:{prefix}")
