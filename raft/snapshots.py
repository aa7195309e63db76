"""Snapshot files: the state machine as of an entry, sealed, in chunks.

Sync: call it in a worker thread. A file is named snap-<index>-<term> and holds

    header   magic 8, format 4, length 4 | msgpack [cluster, id of the key, salt, index, term,
             configuration] | CRC
    chunk    length 4 | AES-256-GCM of zlib of up to 64 KiB of state | ...
    last     the same, of msgpack [bytes of state, SHA-256 of the state]

All chunks are sealed under HKDF(key, salt). A chunk's nonce is its position and whether it is
the last, so that none can be missing, moved, or come from another file. The newest two files are
kept: if one rots, the other and the log from there on bring the same state.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgpack
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from raft.disk import Draft, DurableDir
from raft.frames import SALT_BYTES, TAG_BYTES, WrongKey, derive_cipher, key_id
from raft.messages import SnapshotMeta
from raft.records import pack_snapshot, unpack_snapshot

MAGIC: Final = b"RAFTSNAP"
FORMAT: Final = 1
CHUNK_BYTES: Final = 64 << 10
#: What zlib may add to a chunk that does not compress, and the tag.
CHUNK_OVERHEAD_BYTES: Final = 64 + TAG_BYTES
KEEP: Final = 2
#: A state larger than this is refused when a leader sends it.
STATE_BYTES_MAX: Final = 1 << 30
#: Fast: half the bytes for a third of the time that the default level takes.
COMPRESSION_LEVEL: Final = 1
SNAPSHOT_NAME: Final = re.compile(r"snap-([0-9a-f]{16})-([0-9a-f]{16})")
_PREFIX: Final = struct.Struct("<8sII")
_LENGTH: Final = struct.Struct("<I")


class SnapshotDamaged(Exception):
    """The file cannot be trusted; the other one, or another server, may have what it held."""


@dataclass(frozen=True, slots=True)
class SnapshotHeader:
    """What a leader tells a follower before the chunks of a snapshot."""

    term: int  # the leader's
    snapshot: SnapshotMeta
    state_bytes: int
    sha256: bytes


def snapshot_name(snapshot: SnapshotMeta) -> str:
    return f"snap-{snapshot.index:016x}-{snapshot.term:016x}"


def compress(state: bytes) -> bytes:
    """Return a piece of the state as it is stored and sent."""
    return zlib.compress(state, COMPRESSION_LEVEL)


def expand_untrusted(chunk: bytes) -> bytes:
    """Return what was compressed into *chunk*, which came from outside.

    Raises:
        SnapshotDamaged: it is no such chunk, or expands beyond its bound.
    """
    expander = zlib.decompressobj()
    try:
        state = expander.decompress(chunk, CHUNK_BYTES)
    except zlib.error as exc:
        raise SnapshotDamaged(f"a chunk is not compressed state: {exc}") from exc
    if not expander.eof or expander.unconsumed_tail or expander.unused_data:
        raise SnapshotDamaged("a chunk does not end where it should")
    return state


class SnapshotWriter:
    """A snapshot file while it is being made, from chunks in order.

    finish() makes it exist; discard() leaves nothing.
    """

    def __init__(self, store: SnapshotStore, snapshot: SnapshotMeta) -> None:
        self._store = store
        self._snapshot = snapshot
        salt = os.urandom(SALT_BYTES)
        self._cipher = derive_cipher(store.key, salt, b"snapshot")
        self._count = 0
        self.state_bytes = 0
        self._digest = hashlib.sha256()
        fields = [store.cluster, key_id(store.key), salt, *pack_snapshot(snapshot)]
        header: bytes = msgpack.packb(fields)
        prefix = _PREFIX.pack(MAGIC, FORMAT, len(header))
        crc = _LENGTH.pack(zlib.crc32(prefix + header))
        self._draft: Draft = store.directory.draft(snapshot_name(snapshot))
        self._draft.write(prefix + header + crc)

    def add(self, state: bytes) -> None:
        """Take the next piece of the state, of at most CHUNK_BYTES."""
        self._take(state, compress(state))

    def add_untrusted(self, chunk: bytes) -> None:
        """Take the next compressed chunk, which another server has sent.

        Raises: SnapshotDamaged.
        """
        state = expand_untrusted(chunk)
        if self.state_bytes + len(state) > STATE_BYTES_MAX:
            raise SnapshotDamaged(f"the state is larger than {STATE_BYTES_MAX} bytes")
        self._take(state, chunk)

    def _take(self, state: bytes, chunk: bytes) -> None:
        self.state_bytes += len(state)
        self._digest.update(state)
        self._put(chunk, last=False)

    def _put(self, chunk: bytes, *, last: bool) -> None:
        sealed = self._cipher.encrypt(_nonce(self._count, last=last), chunk, None)
        self._draft.write(_LENGTH.pack(len(sealed)) + sealed)
        self._count += 1

    @property
    def sha256(self) -> bytes:
        return self._digest.digest()

    def finish(self) -> None:
        """Make the file durable under its name.

        Raises: DiskFull.
        """
        self._put(msgpack.packb([self.state_bytes, self.sha256]), last=True)
        self._draft.publish()

    def discard(self) -> None:
        self._draft.discard()


def _nonce(position: int, *, last: bool) -> bytes:
    return position.to_bytes(11, "big") + (b"\1" if last else b"\0")


class SnapshotStore:
    """The snapshot files of one server."""

    def __init__(self, directory: DurableDir, key: bytes, *, cluster: bytes) -> None:
        self.directory = directory
        self.key = key
        self.cluster = cluster

    def names(self) -> list[str]:
        """The files, newest first."""
        names = [name for name in self.directory.names() if SNAPSHOT_NAME.fullmatch(name)]
        return sorted(names, reverse=True)

    def write(self, snapshot: SnapshotMeta, state: bytes) -> None:
        """Make the file of *snapshot*, durable when this returns.

        Raises:
            DiskFull: there was no room; the older files are still there.
        """
        writer = SnapshotWriter(self, snapshot)
        try:
            for start in range(0, len(state), CHUNK_BYTES):
                writer.add(state[start : start + CHUNK_BYTES])
            writer.finish()
        except BaseException:
            writer.discard()
            raise

    def receive(self, snapshot: SnapshotMeta) -> SnapshotWriter:
        """Return a writer for a snapshot that comes from elsewhere."""
        return SnapshotWriter(self, snapshot)

    def open(self, name: str) -> SnapshotFile:
        """Raises: SnapshotDamaged, WrongKey."""
        return SnapshotFile(self.directory.read(name), name, self.key, self.cluster)

    def retain(self, names: Iterable[str]) -> None:
        """Remove all files but the newest KEEP and *names*."""
        spared = {*self.names()[:KEEP], *names}
        for name in self.names():
            if name not in spared:
                self.directory.remove(name)


class SnapshotFile:
    """A snapshot that was read into memory; the chunks are opened one by one."""

    def __init__(self, data: bytes, name: str, key: bytes, cluster: bytes) -> None:
        self._data = data
        self._name = name
        header = self._read_header()
        try:
            owner, sealed_with, salt, *fields = header
            self.snapshot = unpack_snapshot(fields)
        except (ValueError, TypeError) as exc:
            raise self._damaged("its header makes no sense") from exc
        if owner != cluster:
            raise self._damaged("it belongs to another cluster")
        if sealed_with != key_id(key):
            raise WrongKey(f"{name} was sealed with another key than the one given")
        self._cipher: AESGCM = derive_cipher(key, salt, b"snapshot")
        self._positions = self._index()
        trailer = self._chunk(len(self._positions) - 1, last=True)
        self.state_bytes, self.sha256 = msgpack.unpackb(trailer)

    def _damaged(self, what: str) -> SnapshotDamaged:
        return SnapshotDamaged(f"{self._name}: {what}")

    def _read_header(self) -> list[Any]:
        data = self._data
        if len(data) < _PREFIX.size:
            raise self._damaged("it is too short")
        magic, version, length = _PREFIX.unpack_from(data)
        self._start = _PREFIX.size + length + _LENGTH.size
        crc = data[_PREFIX.size + length : self._start]
        if magic != MAGIC or version != FORMAT or len(crc) != _LENGTH.size:
            raise self._damaged("it is no snapshot of a format that we know")
        if _LENGTH.unpack(crc)[0] != zlib.crc32(data[: _PREFIX.size + length]):
            raise self._damaged("its header has rotted")
        header: list[Any] = msgpack.unpackb(data[_PREFIX.size : _PREFIX.size + length])
        return header

    def _index(self) -> list[tuple[int, int]]:
        """Find where each chunk starts and ends."""
        positions, offset = [], self._start
        while offset < len(self._data):
            if offset + _LENGTH.size > len(self._data):
                raise self._damaged("it ends within a chunk")
            (length,) = _LENGTH.unpack_from(self._data, offset)
            start, offset = offset + _LENGTH.size, offset + _LENGTH.size + length
            if offset > len(self._data) or length > CHUNK_BYTES + CHUNK_OVERHEAD_BYTES:
                raise self._damaged("it ends within a chunk")
            positions.append((start, offset))
        if not positions:
            raise self._damaged("it has no end")
        return positions

    def _chunk(self, position: int, *, last: bool) -> bytes:
        start, end = self._positions[position]
        try:
            return self._cipher.decrypt(_nonce(position, last=last), self._data[start:end], None)
        except InvalidTag:
            raise self._damaged(f"chunk {position} has rotted") from None

    @property
    def chunk_count(self) -> int:
        return len(self._positions) - 1

    def chunk(self, position: int) -> bytes:
        """Return the compressed chunk at *position*.

        Raises: SnapshotDamaged.
        """
        return self._chunk(position, last=False)

    def state(self) -> bytes:
        """Return the whole state, verified.

        Raises: SnapshotDamaged.
        """
        parts = [expand_untrusted(self.chunk(i)) for i in range(self.chunk_count)]
        state = b"".join(parts)
        if len(state) != self.state_bytes or hashlib.sha256(state).digest() != self.sha256:
            raise self._damaged("the state is not what its end says")
        return state

    def header(self, term: int) -> SnapshotHeader:
        """Return what a leader of *term* sends before the chunks."""
        return SnapshotHeader(term, self.snapshot, self.state_bytes, self.sha256)
