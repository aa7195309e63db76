"""What a node's gossip says of it beside its address: 256 bytes at most, and no right in them.

Pure. Fields are appended only: an older node reads those that it knows, a newer one takes defaults.
"""

from __future__ import annotations

from dataclasses import dataclass

from swarmlet import VERSION
from swarmlet.codec import BadMessage, pack, unpack_untrusted
from swarmlet.session import PROTOCOL

FORMAT = 1
VERSION_BYTES_MAX = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """*protocol_min*, *protocol_max*: the versions of the session's protocol that it speaks."""

    format: int
    is_manager: bool
    version: str = ""
    protocol_min: int = 1
    protocol_max: int = 1


def own_facts(*, is_manager: bool) -> bytes:
    return pack(
        Facts(
            format=FORMAT,
            is_manager=is_manager,
            version=VERSION[:VERSION_BYTES_MAX],
            protocol_min=PROTOCOL,
            protocol_max=PROTOCOL,
        )
    )


def read_facts(facts: bytes) -> Facts | None:
    """Return what *facts*, of another node, says; None if that cannot be read."""
    try:
        return unpack_untrusted(Facts, facts)
    except BadMessage:
        return None
