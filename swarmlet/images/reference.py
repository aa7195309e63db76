"""Names of images: `registry:port/repository:tag@digest`, as Docker writes them.

Pure. The grammar is that of distribution/reference; the reading of short names is Docker's:

    busybox                      docker.io/library/busybox:latest
    grafana/grafana:11           docker.io/grafana/grafana:11
    localhost:5000/web@sha256:…  itself, by digest: no tag is assumed
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import NewType

from swarmlet.images.errors import BadReference

Digest = NewType("Digest", str)
"""`sha256:` and 64 lower-case hex digits. Made by parse_digest or digest_of alone."""

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
#: The older name of Docker Hub, still in many files.
LEGACY_REGISTRY = "index.docker.io"
#: Where Docker Hub keeps the images that have no owner.
OFFICIAL = "library/"
#: distribution/reference: NameTotalLengthMax, of registry and repository together.
NAME_LENGTH_MAX = 255
#: A tag of 128, a digest of 71, two separators, and the name.
TEXT_LENGTH_MAX = NAME_LENGTH_MAX + 201

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|__|_|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_BARE_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A complete name: which registry, which repository, and a tag, a digest or both.

    With both the digest decides and the tag is for the reader.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    def __str__(self) -> str:
        """The canonical text; parse_reference gives this reference back."""
        return f"{self.registry}/{self.repository}{self._suffix}"

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def familiar(self) -> str:
        """The shortest text that means this reference, as `docker image ls` shows it."""
        return f"{self.familiar_name}{self._suffix}"

    @property
    def familiar_name(self) -> str:
        first, slash, rest = self.repository.partition("/")
        # An owner at Docker Hub whose name looks like a host's can only be written out.
        if self.registry != DEFAULT_REGISTRY or (slash and _is_registry(first)):
            return self.name
        return rest if f"{first}/" == OFFICIAL and "/" not in rest else self.repository

    @property
    def tagged(self) -> Reference:
        """This reference by its tag alone (`latest` when it has none)."""
        return replace(self, tag=self.tag or DEFAULT_TAG, digest=None)

    def at(self, digest: Digest) -> Reference:
        """This reference, pinned."""
        return replace(self, digest=digest)

    @property
    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{tag}@{self.digest}" if self.digest else tag


def parse_reference(text: str) -> Reference:
    """Return what *text* names; `latest` is meant where it has neither tag nor digest.

    Raises:
        BadReference: With what is wrong and, where it is clear, the right form.
    """
    if not text:
        raise BadReference("an image needs a name, such as busybox or registry.example/team/web:1")
    if len(text) > TEXT_LENGTH_MAX:
        raise BadReference(f"{text[:40]!r}… is longer than any image name ({TEXT_LENGTH_MAX})")
    rest, at, digest_text = text.partition("@")
    digest = None
    if at:
        if not _DIGEST.fullmatch(digest_text):
            raise BadReference(
                f"{text!r}: {digest_text!r} is no digest; write @sha256: and 64 hex digits"
            )
        digest = Digest(digest_text)
    name, tag = _split_tag(rest)
    if tag is not None and not _TAG.fullmatch(tag):
        raise BadReference(
            f"{text!r}: {tag!r} is no tag; a tag has 1 to 128 letters, digits, '_', '.' and '-',"
            " and begins with none of the last two"
        )
    registry, repository = _split_registry(name, text)
    if len(registry) + 1 + len(repository) > NAME_LENGTH_MAX:
        raise BadReference(f"{text[:40]!r}… has a name longer than {NAME_LENGTH_MAX} characters")
    if tag is None and digest is None:
        tag = DEFAULT_TAG
    return Reference(registry, repository, tag, digest)


def parse_digest(text: str) -> Digest:
    """Return *text* as a digest, or raise BadReference. SHA-256 is the one algorithm."""
    if not _DIGEST.fullmatch(text):
        shown = text if len(text) <= 80 else f"{text[:80]}…"
        raise BadReference(f"{shown!r} is no digest: sha256: and 64 lower-case hex digits are")
    return Digest(text)


def digest_of(data: bytes) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def _split_tag(text: str) -> tuple[str, str | None]:
    """A colon behind the last slash begins a tag; one before it belongs to a port."""
    head, colon, tail = text.rpartition(":")
    if not colon or "/" in tail:
        return text, None
    return head, tail


def _split_registry(name: str, text: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if slash and _is_registry(first):
        registry, repository = first, rest
    else:
        registry, repository = DEFAULT_REGISTRY, name
    if registry == LEGACY_REGISTRY:
        registry = DEFAULT_REGISTRY
    if not _REGISTRY.fullmatch(registry):
        raise BadReference(f"{text!r}: {registry!r} is no host name of a registry")
    if not repository:
        raise BadReference(f"{text!r} names no repository")
    if registry == DEFAULT_REGISTRY and _BARE_ID.fullmatch(repository):
        raise BadReference(f"{text!r} is an image id; a name may not look like one")
    if repository != repository.lower():
        raise BadReference(f"{text!r}: a repository has no capitals; try {text.lower()!r}")
    for component in repository.split("/"):
        if not _COMPONENT.fullmatch(component):
            raise BadReference(
                f"{text!r}: {component!r} cannot be part of a repository; use lower-case letters"
                " and digits, with '.', '_', '__' or '-' between them"
            )
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = OFFICIAL + repository
    return registry, repository


def _is_registry(first: str) -> bool:
    """Docker's rule: what comes before the first slash is a host when it looks like one."""
    return "." in first or ":" in first or first == "localhost" or first != first.lower()
