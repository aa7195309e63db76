"""Data at rest: AES-256-GCM seals, and the storage key that the node's key opens.

    seal = magic and version (4 bytes) nonce (12) ciphertext and tag (16)

The header and the caller's *context* are authenticated too, so a seal opens only where it was
meant to: a secret's bytes moved into another row stay shut. A nonce is random, which AES-GCM
allows for 2^32 seals of one key; a box that seals ten times a second gets there in 13 years.

A storage key is never used up by a renewal of the node's certificate: it lies on disk wrapped
by a key derived from each of the node's private keys, or from the unlock key when the cluster
locks its managers. The first guards a stray backup of the data directory without the identity,
nothing more; the second guards the whole disk.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from swarmlet.identity.keys import KeyPair, base32

MAGIC = b"SLS\x01"
KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
#: What sealing adds to the plaintext.
OVERHEAD_BYTES = len(MAGIC) + NONCE_BYTES + TAG_BYTES

_PURPOSE = b"storage key"
_CONTEXT = b"swarmlet storage key"


class BadSeal(ValueError):
    """The bytes were not sealed by this key for this context, or have been changed since."""


class Locked(Exception):
    """None of the keys at hand opens the storage key; the text says which would."""


def new_key(random_bytes: Callable[[int], bytes] = os.urandom) -> bytes:
    return random_bytes(KEY_BYTES)


def seal(key: bytes, plaintext: bytes, context: bytes) -> bytes:
    """Return *plaintext* so that only *key* and *context* open it."""
    nonce = os.urandom(NONCE_BYTES)
    return MAGIC + nonce + AESGCM(key).encrypt(nonce, plaintext, MAGIC + context)


def open_untrusted(key: bytes, sealed: bytes | memoryview, context: bytes) -> bytes:
    """Return what was sealed.

    Raises:
        BadSeal: it was not by this *key* for this *context*, or not one bit is to be trusted.
    """
    header, rest = bytes(sealed[: len(MAGIC)]), len(MAGIC) + NONCE_BYTES
    if header != MAGIC or len(sealed) < OVERHEAD_BYTES:
        raise BadSeal("not a seal of a version that is known here")
    try:
        return AESGCM(key).decrypt(
            bytes(sealed[len(MAGIC) : rest]), bytes(sealed[rest:]), MAGIC + context
        )
    except InvalidTag:
        raise BadSeal("sealed by another key or for another place, or damaged") from None


# The key that unlocks a manager: shown once, typed at every start.

UNLOCK_PREFIX = "SWLKEY-1"
_UNLOCK_LENGTH = 52  # 256 bits in base32
_CHECK_LENGTH = 4


class MistypedKey(ValueError):
    """The text is no unlock key, or one with a typing error in it."""


def format_unlock_key(key: bytes) -> str:
    """Return *key* as a person writes it down: SWLKEY-1-<52 characters><4 to check them>."""
    assert len(key) == KEY_BYTES
    body = f"{UNLOCK_PREFIX}-{base32(key)}"
    return body + _check(body)


def parse_unlock_key(text: str) -> bytes:
    """Return the key in *text*.

    Raises:
        MistypedKey: it is none; the text says why.
    """
    compact = "".join(text[:256].split())
    head, _, tail = compact.rpartition("-")
    tail = tail.lower()
    if head.upper() != UNLOCK_PREFIX or len(tail) != _UNLOCK_LENGTH + _CHECK_LENGTH:
        raise MistypedKey(
            f"an unlock key is {UNLOCK_PREFIX}- and {_UNLOCK_LENGTH + _CHECK_LENGTH} characters: "
            "copy it again, whole"
        )
    body = f"{UNLOCK_PREFIX}-{tail[:_UNLOCK_LENGTH]}"
    if not hmac.compare_digest(_check(body).encode(), tail[_UNLOCK_LENGTH:].encode()):
        raise MistypedKey("the unlock key has a typing error in it: copy it again, whole")
    try:
        return base64.b32decode(tail[:_UNLOCK_LENGTH].upper() + "====")
    except ValueError as exc:
        raise MistypedKey("the unlock key has a typing error in it: copy it again") from exc


def _check(body: str) -> str:
    return base32(hashlib.sha256(body.encode()).digest())[:_CHECK_LENGTH]


# The storage key and who may open it.


@dataclass(frozen=True, slots=True)
class Wrap:
    """One sealed copy of the storage key: *opener* names the key that opens it."""

    opener: str
    sealed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """The storage key as it lies on disk: one copy for each key that may open it."""

    wraps: tuple[Wrap, ...]

    def opened(self, *, node: KeyPair | None = None, unlock: bytes | None = None) -> bytes:
        """Return the storage key.

        Raises:
            Locked: neither key opens it.
        """
        for opener, key in _keys(node, unlock):
            for wrap in self.wraps:
                if wrap.opener == opener:
                    try:
                        return open_untrusted(key, wrap.sealed, _CONTEXT)
                    except BadSeal as exc:
                        raise Locked(f"the storage key is damaged: {exc}") from exc
        if self.locked:
            fault = "is not the one of this manager" if unlock is not None else "is needed"
            raise Locked(
                f"this manager is locked and its unlock key {fault}: `swarmlet unlock` asks for "
                "it, `swarmlet unlock-key` on another manager prints it"
            )
        raise Locked(
            "the key of this node does not open its data: identity and data are of two different "
            "nodes, put back the identity that belongs to it"
        )

    def added(
        self, storage_key: bytes, *, node: KeyPair | None = None, unlock: bytes | None = None
    ) -> WrappedKey:
        """Return it with a copy for the keys given; who could open it before still can."""
        new = tuple(
            Wrap(opener, seal(key, storage_key, _CONTEXT)) for opener, key in _keys(node, unlock)
        )
        openers = {wrap.opener for wrap in new}
        return WrappedKey((*(w for w in self.wraps if w.opener not in openers), *new))

    @property
    def locked(self) -> bool:
        """Whether no node's key opens it."""
        return not any(wrap.opener.startswith(_NODE) for wrap in self.wraps)

    def renewed(self, old: KeyPair, new: KeyPair) -> WrappedKey:
        """Return it for a node whose key *old* is about to give way to *new*: both open it, keys
        before *old* no more. A locked one stays as it is.

        Raises:
            Locked: *old* does not open it.
        """
        if self.locked:
            return self
        storage_key = self.opened(node=old)
        kept = (w for w in self.wraps if not w.opener.startswith(_NODE) or w.opener == _node(old))
        return WrappedKey(tuple(kept)).added(storage_key, node=new)

    def to_text(self) -> bytes:
        lines = (f"{w.opener} {base64.b64encode(w.sealed).decode()}\n" for w in self.wraps)
        return "".join(lines).encode()

    @classmethod
    def from_text_untrusted(cls, contents: bytes) -> WrappedKey:
        """Return the key in *contents*, or raise BadSeal."""
        wraps = []
        for line in contents.decode("ascii", "replace").removesuffix("\n").split("\n"):
            opener, _, text = line.partition(" ")
            try:
                sealed = base64.b64decode(text, validate=True)
            except ValueError as exc:
                raise BadSeal("a damaged line in the file of the storage key") from exc
            if not opener.startswith((_NODE, _UNLOCK)) or len(sealed) != KEY_BYTES + OVERHEAD_BYTES:
                raise BadSeal("a line that is no wrapped key in the file of the storage key")
            wraps.append(Wrap(opener, sealed))
        return cls(tuple(wraps))


_NODE, _UNLOCK = "node:", "unlock:"


def _node(key: KeyPair) -> str:
    return _NODE + hashlib.sha256(key.public_key).hexdigest()[:16]


def _keys(node: KeyPair | None, unlock: bytes | None) -> list[tuple[str, bytes]]:
    keys = []
    if node is not None:
        keys.append((_node(node), node.derive(_PURPOSE)))
    if unlock is not None:
        opener = _UNLOCK + hashlib.sha256(b"swarmlet opener" + unlock).hexdigest()[:16]
        keys.append((opener, hashlib.sha256(b"swarmlet unlock" + unlock).digest()))
    return keys


def derive_key(storage_key: bytes, purpose: bytes) -> bytes:
    """Return the key for one *purpose*: the log, the agent's store, each has its own."""
    return hmac.new(storage_key, b"swarmlet 1 " + purpose, hashlib.sha256).digest()
