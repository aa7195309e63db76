"""Blobs by digest: verified while they are written, there whole or not at all.

Sync: call it in a worker thread, but for `size` and `hold`, which touch no disk. Safe to use from
several threads.

    blobs/sha256/HEX     a blob; its name was true when it came here, and it is durable
    ingest/HEX           the beginning of a blob, to go on from
    ingest/new-…         a blob whose digest is not known yet; thrown away at the next start
    ingest/old-…         a blob on its way out; likewise

A blob is fsynced before it gets its name. The name itself is made durable by sync_names, which
the store calls once before the table of images speaks of new blobs.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator
from pathlib import Path
from typing import BinaryIO

from swarmlet.images.errors import BlobNotFound, DigestMismatch, NoSpace
from swarmlet.images.files import sync_directory
from swarmlet.images.manifest import BLOB_BYTES_MAX
from swarmlet.images.reference import Digest, digest_of, is_digest, parse_digest

logger = logging.getLogger(__name__)

#: Bytes that are read, hashed and written at once.
BLOCK_BYTES = 1024 * 1024
#: Bytes that are given to a peer at once.
SEND_BYTES = 256 * 1024
#: A beginning that nobody went on with for so long is given up (seconds).
PARTIAL_AGE_MAX = 24 * 3600.0


class Blobs:
    def __init__(self, root: Path, *, free_bytes_min: int) -> None:
        self._folder = root / "blobs" / "sha256"
        self._ingest = root / "ingest"
        self._free_bytes_min = free_bytes_min
        self._lock = threading.Lock()
        self._sizes: dict[Digest, int] = {}
        self._held: Counter[Digest] = Counter()
        self._names = itertools.count()

    def recover(self) -> None:
        """Make the folders, throw away what a crash left, and learn what is here."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._ingest.mkdir(parents=True, exist_ok=True, mode=0o700)
        oldest = time.time() - PARTIAL_AGE_MAX
        for leftover in self._ingest.iterdir():
            if leftover.name.startswith(("new-", "old-")) or leftover.stat().st_mtime < oldest:
                leftover.unlink()
        with os.scandir(self._folder) as found, self._lock:
            self._sizes = {
                Digest(f"sha256:{entry.name}"): entry.stat().st_size
                for entry in found
                if is_digest(f"sha256:{entry.name}")
            }

    # Reading.
    def size(self, digest: Digest) -> int | None:
        """Return the bytes of a blob, None when it is not here."""
        return self._sizes.get(digest)

    @property
    def total_bytes(self) -> int:
        return sum(self._sizes.values())

    def digests(self) -> list[Digest]:
        return list(self._sizes)

    def open(self, digest: Digest) -> BinaryIO:
        """Return the blob as a file, or raise BlobNotFound."""
        if digest in self._sizes:
            with contextlib.suppress(FileNotFoundError):
                return open(self._path(digest), "rb", buffering=0)
            self._sizes.pop(digest, None)  # somebody else removed it
        raise BlobNotFound(f"{digest} is not on this node")

    def read(self, digest: Digest, bytes_max: int) -> bytes:
        """Return a small blob, verified. Raises BlobNotFound when it is rotten, as when absent."""
        with self.open(digest) as file:
            data = file.read(bytes_max + 1)
        if len(data) > bytes_max or digest_of(data) != digest:
            self.quarantine(digest)
            raise BlobNotFound(f"{digest} was damaged on this node's disk and is gone")
        return data

    def read_blocks(self, digest: Digest, offset: int) -> Generator[bytes, None, None]:
        """Yield a blob from *offset* on. Read from its start it is verified on the way.

        Raises:
            DigestMismatch: In the place of the last block, when the blob is rotten; it is gone.
        """
        total = hashlib.sha256()
        last = b""
        with self.open(digest) as file:
            file.seek(offset)
            while block := file.read(SEND_BYTES):
                if offset == 0:
                    total.update(block)
                if last:
                    yield last
                last = block
        if offset == 0 and f"sha256:{total.hexdigest()}" != digest:
            self.quarantine(digest)
            raise DigestMismatch(f"{digest} is damaged on this node's disk")
        if last:
            yield last

    def verify(self, digest: Digest) -> bool:
        """Read the whole blob and say whether its name is still true; if not, it is gone."""
        total = hashlib.sha256()
        with self.open(digest) as file:
            while block := file.read(BLOCK_BYTES):
                total.update(block)
        if f"sha256:{total.hexdigest()}" == digest:
            return True
        self.quarantine(digest)
        return False

    def quarantine(self, digest: Digest) -> None:
        """Take a rotten blob out of use, so that it is fetched again."""
        logger.warning("image blob damaged digest=%s action=removed", digest)
        with self._lock:
            self._sizes.pop(digest, None)
            self._path(digest).unlink(missing_ok=True)

    # Writing.
    def partial_size(self, digest: Digest) -> int:
        """Return how many bytes of a blob came before its transfer broke off."""
        try:
            return os.stat(self._partial(digest)).st_size
        except FileNotFoundError:
            return 0

    def write(self, expected: Digest | None = None, size: int | None = None) -> BlobWriter:
        """Begin a blob, or go on with *expected*, whose beginning may be here.

        Raises:
            NoSpace: The disk has no room for *size* bytes more beside its reserve.
        """
        partial = self._partial(expected) if expected else self._ingest / self._name("new")
        self.check_space((size or 0) - (self.partial_size(expected) if expected else 0))
        return BlobWriter(partial, expected, size, self._admit)

    def put(self, data: bytes) -> Digest:
        """Store a small blob."""
        with self.write() as writer:
            writer.write(data)
            return writer.commit()

    def check_space(self, wanted: int) -> None:
        disk = os.statvfs(self._ingest)
        free = disk.f_bavail * disk.f_frsize
        if free - wanted < self._free_bytes_min:
            raise NoSpace(
                f"{max(wanted, 0) >> 20} MiB do not fit: {free >> 20} MiB are free on the disk of"
                f" {self._folder.parent.parent}, of which {self._free_bytes_min >> 20} MiB are kept"
                " free; remove images (`image prune`) or data"
            )

    def sync_names(self) -> None:
        sync_directory(self._folder)

    def _admit(self, temporary: Path, digest: Digest, size: int) -> None:
        """Give a blob its name. Of two that come at once one replaces the other: they are equal."""
        with self._lock:
            os.replace(temporary, self._path(digest))
            self._sizes[digest] = size

    # Keeping and removing.
    def hold(self, digest: Digest) -> bool:
        """Forbid to discard a blob, there or not yet; say whether it is there. release() it."""
        with self._lock:
            self._held[digest] += 1
            return digest in self._sizes

    def release(self, digests: Collection[Digest]) -> None:
        with self._lock:
            self._held.subtract(digests)
            self._held = +self._held

    def discard(self, unwanted: Collection[Digest]) -> tuple[list[Path], int]:
        """Take those that nobody holds out of use; return what is left to unlink, and its bytes.

        Renaming is fast and done under the lock; the unlinking of gigabytes is the caller's.
        """
        doomed, freed = [], 0
        with self._lock:
            for digest in unwanted:
                if digest in self._held or digest not in self._sizes:
                    continue
                freed += self._sizes.pop(digest)
                path = self._ingest / self._name("old")
                with contextlib.suppress(FileNotFoundError):
                    os.rename(self._path(digest), path)
                    doomed.append(path)
        return doomed, freed

    def older(self, digests: Collection[Digest], age: float) -> list[Digest]:
        """Return those that came more than *age* seconds ago."""
        oldest = time.time() - age
        found = []
        for digest in digests:
            with contextlib.suppress(FileNotFoundError):
                if self._path(digest).stat().st_mtime <= oldest:
                    found.append(digest)
        return found

    def discard_partials(self) -> None:
        """Give up the beginnings that are old and that nobody goes on with."""
        oldest = time.time() - PARTIAL_AGE_MAX
        for path in self._ingest.iterdir():
            if path.name.startswith(("new-", "old-")):
                continue
            with self._lock, contextlib.suppress(FileNotFoundError):
                if f"sha256:{path.name}" not in self._held and path.stat().st_mtime < oldest:
                    path.unlink()

    def _path(self, digest: Digest) -> Path:
        return self._folder / parse_digest(digest).removeprefix("sha256:")

    def _partial(self, digest: Digest) -> Path:
        return self._ingest / parse_digest(digest).removeprefix("sha256:")

    def _name(self, kind: str) -> str:
        return f"{kind}-{os.getpid()}-{next(self._names)}"


class BlobWriter:
    """One blob on its way in. Use it in a `with`: leaving without commit() keeps a beginning.

    (A beginning is kept only when the digest is known, to go on with it.)
    """

    def __init__(
        self,
        temporary: Path,
        expected: Digest | None,
        size: int | None,
        admit: Callable[[Path, Digest, int], None],
    ) -> None:
        self._temporary = temporary
        self._expected = expected
        self._size = size
        self._admit = admit
        self._sum = hashlib.sha256()
        self._done = False
        self._file = open(temporary, "ab+", buffering=0, opener=_private)  # noqa: SIM115
        self.offset = 0
        self._file.seek(0)
        while block := self._file.read(BLOCK_BYTES):
            self._sum.update(block)
            self.offset += len(block)
        if size is not None and self.offset > size:
            self.restart()

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if not self._done and self._expected is None:
            self._temporary.unlink(missing_ok=True)

    def restart(self) -> None:
        """Forget the beginning: the source cannot go on in the middle."""
        self._file.truncate(0)
        self._sum = hashlib.sha256()
        self.offset = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append *data*. Raises DigestMismatch when there is more of it than was announced."""
        limit = BLOB_BYTES_MAX if self._size is None else self._size
        if self.offset + len(data) > limit:
            self.throw_away()
            raise DigestMismatch(f"{self._expected or 'a blob'} is longer than {limit} bytes")
        self._sum.update(data)
        self.offset += len(data)
        view = memoryview(data)
        with self._full_disk_is_no_space():
            while view:
                view = view[self._file.write(view) :]

    @property
    def digest(self) -> Digest:
        """The digest of what came so far."""
        return Digest(f"sha256:{self._sum.hexdigest()}")

    def commit(self) -> Digest:
        """Make the blob durable and give it its name.

        Raises:
            DigestMismatch: It is not what was expected; it was thrown away.
        """
        digest = self.digest
        if self._expected not in (None, digest):
            self.throw_away()
            raise DigestMismatch(f"{self._expected} was wanted, but the bytes are {digest}")
        if self._size not in (None, self.offset):
            self.throw_away()
            raise DigestMismatch(f"{digest} has {self.offset} bytes, not {self._size}")
        with self._full_disk_is_no_space():
            os.fdatasync(self._file.fileno())
            self._admit(self._temporary, digest, self.offset)
        self._done = True
        return digest

    @contextlib.contextmanager
    def _full_disk_is_no_space(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.throw_away()
            raise NoSpace(f"the disk is full: {self._expected or 'a blob'} does not fit") from error

    def throw_away(self) -> None:
        self._temporary.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


@contextlib.contextmanager
def holding(blobs: Blobs) -> Iterator[Callable[[Digest], bool]]:
    """Give a `hold` whose blobs are all released at the end."""
    held: list[Digest] = []

    def hold(digest: Digest) -> bool:
        held.append(digest)
        return blobs.hold(digest)

    try:
        yield hold
    finally:
        blobs.release(held)
