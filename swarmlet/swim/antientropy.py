"""Digests of a table, so that two members exchange only what differs.

Pure. A table is cut into BUCKETS_MAX buckets by the first byte of the short id. A bucket's digest
is the XOR of its members' hashes, so one changed member costs two XORs. Small tables fold
their buckets to BUCKETS_SMALL, 512 bytes, before they send them.

A suspicion is not part of the hash: it is over before an exchange would matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

from swarmlet.swim.messages import (
    BUCKETS_MAX,
    DIGEST_BYTES,
    RECORDS_MAX,
    Address,
    MemberId,
    Record,
    ShortId,
    State,
    SyncRecords,
)

BUCKETS_SMALL = 64
#: Above so many members a bucket of the small form would hold too many for one difference.
SMALL_TABLE_MAX = 4096


def bucket_of(short: ShortId, count: int = BUCKETS_MAX) -> int:
    return short[0] * count // BUCKETS_MAX


def record_hash(
    member: MemberId, incarnation: int, state: State, address: Address, facts: bytes
) -> int:
    """Return 64 bits that two members agree on exactly when they hold the same."""
    shown = State.ALIVE if state is State.SUSPECT else state
    head = f"{member}\0{incarnation}\0{int(shown)}\0{address[0]}\0{address[1]}\0"
    hashed = hashlib.blake2b(head.encode(errors="replace") + facts, digest_size=DIGEST_BYTES)
    return int.from_bytes(hashed.digest(), "big")


def bucket_count(members: int) -> int:
    return BUCKETS_SMALL if members <= SMALL_TABLE_MAX else BUCKETS_MAX


def fold(buckets: Sequence[int], count: int) -> bytes:
    """Return the digests of *count* buckets made from the BUCKETS_MAX of a table."""
    width = len(buckets) // count
    folded = []
    for start in range(0, len(buckets), width):
        digest = 0
        for value in buckets[start : start + width]:
            digest ^= value
        folded.append(digest.to_bytes(DIGEST_BYTES, "big"))
    return b"".join(folded)


def differing(ours: bytes, theirs: bytes) -> bytes:
    """Return the numbers of the buckets that differ, one byte each."""
    assert len(ours) == len(theirs)
    return bytes(
        start // DIGEST_BYTES
        for start in range(0, len(ours), DIGEST_BYTES)
        if ours[start : start + DIGEST_BYTES] != theirs[start : start + DIGEST_BYTES]
    )


def frames(records: Iterable[Record], buckets: bytes = b"") -> Iterator[SyncRecords]:
    """Cut *records* into frames, one at least; the first one names the *buckets*."""
    rest = list(records)
    while True:
        head, rest = rest[:RECORDS_MAX], rest[RECORDS_MAX:]
        yield SyncRecords(tuple(head), buckets, more=bool(rest))
        buckets = b""
        if not rest:
            return
