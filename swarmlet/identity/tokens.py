"""Join tokens: what a person carries to a new node so that it and the cluster trust each other.

    SWL1-<digest>-<id>-<secret><check>

    digest  SHA-256 of the root certificate: the joiner checks the CA before it sends anything
    id      w1, m7: standing token of that role and generation; t…: issued token of the store
    secret  128 bits; a standing token's is derived, so that it can be shown again
    check   20 bits over all before it: a mistyped token is told from a wrong one

All but SWL1 is lower-case base32. Parsing forgives case and white space, for tokens are
pasted from terminals that wrap. Pure; chance comes as bytes from the caller.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from swarmlet.identity.certificates import Role
from swarmlet.identity.keys import base32

PREFIX = "SWL1"
SECRET_BYTES = 16
DIGEST_LENGTH = 52  # 256 bits in base32
SECRET_LENGTH = 26  # 128 bits
CHECK_LENGTH = 4
ISSUED_ID_BYTES = 5
#: The longest id: w and a generation of nine digits, or t and eight characters.
ID_LENGTH_MAX = 10
#: Nothing longer is looked at.
TOKEN_LENGTH_MAX = 256

_STANDING = re.compile(r"(?P<role>[wm])(?P<generation>[1-9][0-9]{0,8})")
_ISSUED = re.compile(r"t[a-z2-7]{8}")
_LETTERS = {Role.WORKER: "w", Role.MANAGER: "m"}
_ROLES = {letter: role for role, letter in _LETTERS.items()}


class MistypedToken(ValueError):
    """The text is no token at all, or one with a typing error in it."""


class TokenFault(enum.StrEnum):
    """Why a well-formed token does not let anybody in. Its value travels: only add to it."""

    OLD_GENERATION = "old-generation"
    UNKNOWN = "unknown"
    EXPIRED = "expired"
    USED_UP = "used-up"
    FOREIGN_CLUSTER = "foreign-cluster"


class InvalidToken(Exception):
    """A token that the cluster does not take; the text says what to do."""

    def __init__(self, reason: TokenFault, text: str) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text


@dataclass(frozen=True, slots=True)
class Token:
    """A token as its parts. The secret is kept out of logs by its repr."""

    digest: str  # of the root certificate, hex
    id: str
    secret: bytes = field(repr=False)

    def __str__(self) -> str:
        body = f"{PREFIX}-{base32(bytes.fromhex(self.digest))}-{self.id}-{base32(self.secret)}"
        return body + _check(body)


class IssuedToken(Protocol):
    """What the store keeps of an issued token."""

    @property
    def id(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def secret_digest(self) -> bytes: ...
    @property
    def expires_at(self) -> float: ...
    @property
    def uses_left(self) -> int: ...
    @property
    def labels(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a token gives: the store takes one use off *issued* in the same transaction."""

    role: Role
    token: str  # its id, for the audit record
    issued: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)


def standing_token(root_digest: str, key: bytes, role: Role, generation: int) -> Token:
    """Return the standing token of *role*: the same for the same *key* and *generation*."""
    assert len(key) >= 32
    assert 1 <= generation <= 999_999_999, generation
    return Token(
        digest=root_digest,
        id=f"{_LETTERS[role]}{generation}",
        secret=_standing_secret(key, role, generation),
    )


def new_issued_token(root_digest: str, random_bytes: Callable[[int], bytes]) -> Token:
    """Return a new token with a random id and secret. Show it once and keep secret_digest()."""
    return Token(
        digest=root_digest,
        id=f"t{base32(random_bytes(ISSUED_ID_BYTES))}",
        secret=random_bytes(SECRET_BYTES),
    )


def secret_digest(token: Token) -> bytes:
    """Return what the store keeps of an issued token; 128 random bits need no slow hash."""
    return hashlib.sha256(token.secret).digest()


def parse_token(text: str) -> Token:
    """Return the token that a person typed or pasted.

    Raises:
        MistypedToken: it is none; the text says where it went wrong.
    """
    compact = "".join(text[:TOKEN_LENGTH_MAX].split())
    if compact.upper().startswith("SWMTKN-"):
        raise MistypedToken(
            "this is a token of Docker Swarm; on a swarmlet manager `swarmlet token worker` "
            "prints the one that is needed here"
        )
    if compact.upper().startswith("SWLKEY-"):
        raise MistypedToken(
            "this is the key that unlocks a manager, not a join token; `swarmlet token worker` on "
            "a manager prints one"
        )
    parts = compact.lower().split("-")
    if parts[0] != PREFIX.lower():
        raise MistypedToken(
            f"a join token begins with {PREFIX}-; `swarmlet token worker` on a manager prints one"
        )
    if len(parts) != 4 or len(text) > TOKEN_LENGTH_MAX:
        raise MistypedToken(
            f"a join token has four parts with a dash between them ({PREFIX}-…-…-…), this has "
            f"{len(parts)}: copy it again, whole"
        )
    _, digest, id_, tail = parts
    _check_length("second", digest, DIGEST_LENGTH)
    _check_length("last", tail, SECRET_LENGTH + CHECK_LENGTH)
    body = f"{PREFIX}-{digest}-{id_}-{tail[:SECRET_LENGTH]}"
    if not hmac.compare_digest(_check(body).encode(), tail[SECRET_LENGTH:].encode()):
        raise MistypedToken("the token has a typing error in it: copy it again, whole")
    if not (_STANDING.fullmatch(id_) or _ISSUED.fullmatch(id_)):
        raise MistypedToken(
            f"the token is of a kind ({id_[:ID_LENGTH_MAX]}) that this version does not know: "
            "update swarmlet on this node"
        )
    return Token(digest=_unbase32(digest).hex(), id=id_, secret=_unbase32(tail[:SECRET_LENGTH]))


def verify_token(
    token: Token,
    *,
    roots: frozenset[str],
    key: bytes,
    generations: Mapping[str, int],
    find_issued: Callable[[str], IssuedToken | None],
    now: float,
) -> Grant:
    """Return what *token* gives.

    *roots* are the digests that a token may name (TrustBundle.digests), *generations* the
    present generation of each role's standing token (0 or absent: there is none).
    Every comparison of secrets takes the same time wherever they differ, and an unknown id is
    not told from a wrong secret.

    Raises:
        InvalidToken: it gives nothing; the text says what to do.
    """
    if token.digest not in roots:
        raise InvalidToken(
            TokenFault.FOREIGN_CLUSTER,
            "the token is for another cluster (or for a root of this one that is long gone): "
            "`swarmlet token worker` on a manager of this cluster prints the right one",
        )
    if standing := _STANDING.fullmatch(token.id):
        role, generation = _ROLES[standing["role"]], int(standing["generation"])
        return _verify_standing(token, role, generation, key, generations.get(role, 0))
    record = find_issued(token.id)
    expected = record.secret_digest if record is not None else bytes(32)
    if not hmac.compare_digest(secret_digest(token), expected) or record is None:
        raise _unknown()
    if record.expires_at <= now:
        raise InvalidToken(
            TokenFault.EXPIRED,
            f"token {token.id} ended {_ago(now - record.expires_at)} ago: make a new one with "
            "`swarmlet token create` on a manager",
        )
    if record.uses_left <= 0:
        raise InvalidToken(
            TokenFault.USED_UP,
            f"token {token.id} has been used as often as it may: make a new one with "
            "`swarmlet token create` on a manager",
        )
    return Grant(role=Role(record.role), token=token.id, issued=True, labels=dict(record.labels))


def _verify_standing(token: Token, role: Role, generation: int, key: bytes, current: int) -> Grant:
    expected = _standing_secret(key, role, generation)
    if not hmac.compare_digest(token.secret, expected) or generation > current:
        raise _unknown()
    if generation < current:
        raise InvalidToken(
            TokenFault.OLD_GENERATION,
            f"the {role} token was replaced since this one was printed: `swarmlet token {role}` "
            "on a manager prints the present one",
        )
    return Grant(role=role, token=token.id)


def _unknown() -> InvalidToken:
    return InvalidToken(
        TokenFault.UNKNOWN,
        "the cluster knows no such token (it was revoked, or never made): `swarmlet token worker` "
        "on a manager prints a good one",
    )


def _standing_secret(key: bytes, role: Role, generation: int) -> bytes:
    message = f"swarmlet join token {role} {generation}".encode()
    return hmac.new(key, message, hashlib.sha256).digest()[:SECRET_BYTES]


def _check(body: str) -> str:
    return base32(hashlib.sha256(body.encode()).digest())[:CHECK_LENGTH]


def _check_length(which: str, part: str, length: int) -> None:
    if len(part) != length:
        fault = "is cut short" if len(part) < length else "has something added"
        raise MistypedToken(
            f"the token {fault}: its {which} part has {len(part)} characters, not {length}; copy "
            "it again, whole"
        )


def _unbase32(text: str) -> bytes:
    try:
        return base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except binascii.Error as exc:
        raise MistypedToken("the token has a typing error in it: copy it again, whole") from exc


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"
