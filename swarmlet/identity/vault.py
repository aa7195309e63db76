"""The identity on disk: two slots for the key pair, the trust, the storage key.

Sync: a write takes two fsyncs, so call it in a worker thread.

    identity/            0700, every file 0600
      current.pem        key and chain that are in use
      pending.pem        key of a join or a renewal under way; with a chain once it was issued
      trust.pem          the bundle of roots
      storage.key        the storage key, wrapped (sealing.py)

    file = "swarmlet <kind> 1" line, contents, "sha256 <hex of all before>" line

PEM readers skip the first line and the last, so `openssl x509 -in current.pem -text` works.
Every change is one file, written to a temporary name, fsynced and renamed, and the folder
fsynced: whatever the moment of a crash, each file is the old one or the new one.

The life of a slot, for a join and a renewal alike, and where a crash leaves it:

    key made             pending has a key only: the retry uses it, so the retry is the same node
    certificate issued   pending has a chain: it is tried, and current still works
    handshake worked     pending became current by a rename
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from swarmlet.identity.certificates import BadCertificate
from swarmlet.identity.credentials import Credentials
from swarmlet.identity.keys import BadKey, KeyPair
from swarmlet.identity.sealing import BadSeal, WrappedKey, new_key
from swarmlet.identity.trust import TrustBundle, der_of, from_pem_untrusted, pem_of, to_pem

VERSION = 1
#: Nothing longer is read: 32 roots and a chain are about 30 KB.
FILE_BYTES_MAX = 256 * 1024

CURRENT, PENDING = "current.pem", "pending.pem"
TRUST, STORAGE = "trust.pem", "storage.key"
_KINDS = {CURRENT: "identity", PENDING: "identity", TRUST: "trust", STORAGE: "storage-key"}


class DamagedIdentity(Exception):
    """A file of the identity cannot be read; the text names it and says what to do."""


class Vault:
    """The folder <state>/identity. One process uses it at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self) -> Credentials | None:
        """Return the credentials in use, None if this node has none yet.

        Raises:
            DamagedIdentity: they are there and cannot be read.
        """
        return self._credentials(CURRENT)

    def load_pending(self) -> Credentials | None:
        """Return the credentials of a renewal that was issued and not tried yet, if any."""
        return self._credentials(PENDING)

    def trust(self) -> TrustBundle | None:
        """Return the roots that this node trusts, None if it never joined."""
        text = self._read(TRUST)
        if text is None:
            return None
        try:
            return from_pem_untrusted(text)
        except BadCertificate as exc:
            raise self._damaged(TRUST, exc) from exc

    def store_trust(self, bundle: TrustBundle) -> None:
        """Keep *bundle*, unless a newer one is kept already."""
        known = self.trust()
        if known is None or known.version < bundle.version:
            self._write(TRUST, to_pem(bundle))

    def pending_key(self) -> KeyPair:
        """Return the key to ask a certificate for: the one of an unfinished try, or a new one.

        It is on disk before it is returned, so an answer that is lost can be asked for again.
        """
        slot = self._slot(PENDING)
        if slot is not None:
            return slot.key
        key = KeyPair.generate()
        self._write(PENDING, key.pem)
        return key

    def store_pending(self, chain: tuple[bytes, ...], trust: TrustBundle) -> Credentials:
        """Keep the *chain* that was issued for the pending key, and return both.

        Raises:
            BadCertificate: it is for another key; nothing was changed.
        """
        key = self.pending_key()
        credentials = Credentials(key, chain, trust)
        self.store_trust(trust)
        self._write(PENDING, key.pem + b"".join(pem_of(der) for der in chain))
        return credentials

    def promote_pending(self) -> Credentials:
        """Make the pending credentials the current ones, as soon as they have worked once.

        The storage key opens with the new key before the old key is gone. Promoting twice is
        promoting once.
        """
        pending = self.load_pending()
        if pending is None:
            in_use = self.load()
            assert in_use is not None, "there is nothing to promote"
            return in_use
        current, wrapped = self._slot(CURRENT), self._wrapped()
        if current is not None and wrapped is not None:
            # The rename is still to come, so both keys open it until the next promotion.
            self._store_wrapped(wrapped.renewed(current.key, pending.key))
        os.replace(self.folder / PENDING, self.folder / CURRENT)
        self._sync_folder()
        return pending

    def discard_pending(self) -> None:
        """Forget an unfinished join or renewal."""
        with suppress(FileNotFoundError):
            os.unlink(self.folder / PENDING)
            self._sync_folder()

    def storage_key(self, *, unlock: bytes | None = None) -> bytes:
        """Return the key that this node's data are sealed with, made on first use.

        Raises:
            Locked: the keys at hand do not open it.
        """
        current = self._slot(CURRENT)
        assert current is not None, "a node without an identity has nothing to seal"
        wrapped = self._wrapped()
        if wrapped is not None:
            return wrapped.opened(node=current.key, unlock=unlock)
        storage_key = new_key()
        self._store_wrapped(WrappedKey(()).added(storage_key, node=current.key))
        return storage_key

    @property
    def locked(self) -> bool:
        """Whether only an unlock key opens the storage key."""
        wrapped = self._wrapped()
        return wrapped is not None and wrapped.locked

    def lock(self, new: bytes, *, unlock: bytes | None = None) -> None:
        """Let only the unlock key *new* open the storage key from now on (autolock).

        *unlock* is the unlock key until now, if there was one.
        """
        storage_key = self.storage_key(unlock=unlock)
        self._store_wrapped(WrappedKey(()).added(storage_key, unlock=new))

    def unlock_for_good(self, unlock: bytes) -> None:
        """Let this node's own key open the storage key again, and the unlock key no more."""
        storage_key = self.storage_key(unlock=unlock)
        current = self._slot(CURRENT)
        assert current is not None
        self._store_wrapped(WrappedKey(()).added(storage_key, node=current.key))

    def erase(self) -> None:
        """Forget who this node is: what was sealed with its storage key stays shut for ever."""
        for name in (STORAGE, PENDING, CURRENT, TRUST):
            with suppress(FileNotFoundError):
                os.unlink(self.folder / name)
        if self.folder.exists():
            self._sync_folder()

    # Slots:

    def _credentials(self, name: str) -> Credentials | None:
        slot = self._slot(name)
        if slot is None or not slot.chain:
            return None
        trust = self.trust()
        if trust is None:
            raise self._damaged(TRUST, "it is missing")
        try:
            return Credentials(slot.key, slot.chain, trust)
        except BadCertificate as exc:
            raise self._damaged(name, exc) from exc

    def _slot(self, name: str) -> _Slot | None:
        text = self._read(name)
        if text is None:
            return None
        try:
            key, *chain = _pem_blocks(text)
            return _Slot(KeyPair.from_pem_untrusted(key), tuple(der_of(pem) for pem in chain))
        except (BadKey, BadCertificate, ValueError) as exc:
            raise self._damaged(name, exc) from exc

    def _wrapped(self) -> WrappedKey | None:
        text = self._read(STORAGE)
        if text is None:
            return None
        try:
            return WrappedKey.from_text_untrusted(text)
        except BadSeal as exc:
            raise self._damaged(STORAGE, exc) from exc

    def _store_wrapped(self, wrapped: WrappedKey) -> None:
        self._write(STORAGE, wrapped.to_text())

    # Files:

    def _read(self, name: str) -> bytes | None:
        try:
            with open(self.folder / name, "rb") as file:
                text = file.read(FILE_BYTES_MAX + 1)
        except FileNotFoundError:
            return None
        head, _, rest = text.partition(b"\n")
        contents, _, tail = rest.rpartition(b"sha256 ")
        version = head.removeprefix(f"swarmlet {_KINDS[name]} ".encode())
        if version == head or not version.isdigit():
            raise self._damaged(name, f"it does not begin as a file of kind {_KINDS[name]!r}")
        if int(version) > VERSION:
            raise self._damaged(name, f"a newer swarmlet wrote it (version {int(version)})")
        covered = text[: len(text) - len(tail) - len(b"sha256 ")]
        if hashlib.sha256(covered).hexdigest().encode() != tail.strip():
            raise self._damaged(name, "its checksum does not match")
        return contents

    def _write(self, name: str, contents: bytes) -> None:
        text = f"swarmlet {_KINDS[name]} {VERSION}\n".encode() + contents
        text += f"sha256 {hashlib.sha256(text).hexdigest()}\n".encode()
        assert len(text) <= FILE_BYTES_MAX
        self._make_folder()
        write_atomically(self.folder / name, text)

    def _make_folder(self) -> None:
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, mode=0o700)
            sync_folder(self.folder.parent)

    def _sync_folder(self) -> None:
        sync_folder(self.folder)

    def _damaged(self, name: str, why: object) -> DamagedIdentity:
        return DamagedIdentity(
            f"{self.folder / name} cannot be read: {why}; put back a copy of the folder, or make "
            "this a new node with `swarmlet leave --force` and join again"
        )


@dataclass(frozen=True, slots=True)
class _Slot:
    key: KeyPair
    chain: tuple[bytes, ...]


def write_atomically(path: Path, contents: bytes) -> None:
    """Make *path* hold *contents*, mode 0600: after a crash it is the old file or the new one.

    Raises:
        OSError: the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.new")  # one name: a crash leaves at most one
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(contents)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in *folder* durable: a rename is not before its folder is (fsync(2))."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _pem_blocks(text: bytes) -> list[bytes]:
    blocks = []
    lines: list[bytes] = []
    for line in text.splitlines(keepends=True):
        lines.append(line)
        if line.startswith(b"-----END "):
            blocks.append(b"".join(lines))
            lines = []
    return blocks
