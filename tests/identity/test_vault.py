"""The identity on disk: cut at every step, damaged, locked."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swarmlet.identity import (
    BadCertificate,
    Credentials,
    DamagedIdentity,
    KeyPair,
    Locked,
    NodeCertificate,
    Role,
    Vault,
    new_key,
)
from swarmlet.identity.vault import CURRENT, PENDING, STORAGE, TRUST
from tests.identity.makers import NOW, Cluster

CLUSTER = Cluster()


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "identity")


def issue(key: KeyPair, node: str | None = None, role: Role = Role.WORKER) -> tuple[bytes, ...]:
    node = node or key.node_id
    return (CLUSTER.authority.issue(key.public_key, node=node, role=role, now=NOW),)


def join(vault: Vault) -> Credentials:
    vault.store_pending(issue(vault.pending_key()), CLUSTER.trust)
    return vault.promote_pending()


def renew(vault: Vault) -> Credentials:
    current = vault.load()
    assert current is not None
    vault.store_pending(issue(vault.pending_key(), current.node), CLUSTER.trust)
    return vault.promote_pending()


def test_new_node_has_no_identity(vault: Vault) -> None:
    assert vault.load() is None
    assert vault.load_pending() is None
    assert vault.trust() is None
    assert not vault.locked


def test_joined_node_keeps_its_identity(vault: Vault) -> None:
    joined = join(vault)
    again = Vault(vault.folder).load()
    assert again is not None
    assert again.certificate == joined.certificate
    assert again.key.public_key == joined.key.public_key
    assert again.trust == CLUSTER.trust
    assert vault.load_pending() is None


def test_retried_join_asks_with_the_same_key(vault: Vault) -> None:
    """The answer was lost, or the daemon died: the same node asks again, not a twin."""
    assert vault.pending_key().node_id == Vault(vault.folder).pending_key().node_id


def test_renewal_has_a_new_key_and_the_same_node(vault: Vault) -> None:
    joined = join(vault)
    storage_key = vault.storage_key()
    renewed = renew(vault)
    assert renewed.node == joined.node
    assert renewed.key.public_key != joined.key.public_key
    assert vault.storage_key() == storage_key
    renew(vault)
    assert vault.storage_key() == storage_key


def test_certificate_for_another_key_is_not_kept(vault: Vault) -> None:
    with pytest.raises(BadCertificate, match="another key"):
        vault.store_pending(issue(KeyPair.generate()), CLUSTER.trust)
    assert vault.load_pending() is None


def test_promoting_twice_is_promoting_once(vault: Vault) -> None:
    first = join(vault)
    assert vault.promote_pending().certificate == first.certificate


def test_older_bundle_does_not_replace_a_newer_one(vault: Vault) -> None:
    newer = CLUSTER.trust.with_root(Cluster().authority.certificate)
    vault.store_trust(newer)
    vault.store_trust(CLUSTER.trust)
    assert vault.trust() == newer


def test_erased_node_is_nobody(vault: Vault) -> None:
    join(vault)
    vault.storage_key()
    vault.erase()
    assert vault.load() is None
    assert list(vault.folder.iterdir()) == []
    vault.erase()


def test_nobody_else_can_read_it(vault: Vault) -> None:
    join(vault)
    vault.storage_key()
    vault.pending_key()
    assert stat.S_IMODE(vault.folder.stat().st_mode) == 0o700
    files = sorted(path.name for path in vault.folder.iterdir())
    assert files == sorted([CURRENT, PENDING, STORAGE, TRUST])
    assert {stat.S_IMODE(path.stat().st_mode) for path in vault.folder.iterdir()} == {0o600}


def test_openssl_reads_the_files(vault: Vault) -> None:
    credentials = join(vault)
    for name, text in ((CURRENT, credentials.node), (TRUST, CLUSTER.id)):
        done = subprocess.run(
            ["openssl", "x509", "-noout", "-subject", "-in", vault.folder / name],
            capture_output=True,
            text=True,
            check=True,
        )
        assert text in done.stdout


# Damage:


def read_all(vault: Vault) -> None:
    vault.load()
    vault.storage_key()


@pytest.mark.parametrize("name", [CURRENT, TRUST, STORAGE])
@pytest.mark.parametrize("position", [0, 12, 100, -40])
def test_flipped_bit_is_named_and_advised(vault: Vault, name: str, position: int) -> None:
    join(vault)
    vault.storage_key()
    path = vault.folder / name
    text = bytearray(path.read_bytes())
    text[position] ^= 1
    path.write_bytes(text)
    with pytest.raises(DamagedIdentity, match=f"{name} cannot be read.*swarmlet leave --force"):
        read_all(vault)


@pytest.mark.parametrize("name", [CURRENT, TRUST, STORAGE])
@pytest.mark.parametrize("contents", [b"", b"\0" * 5000, b"-----BEGIN PRIVATE KEY-----\n"])
def test_foreign_contents_are_named(vault: Vault, name: str, contents: bytes) -> None:
    join(vault)
    vault.storage_key()
    (vault.folder / name).write_bytes(contents)
    with pytest.raises(DamagedIdentity, match="does not begin as"):
        read_all(vault)


def test_file_of_a_newer_version_is_not_guessed_at(vault: Vault) -> None:
    join(vault)
    path = vault.folder / CURRENT
    path.write_bytes(path.read_bytes().replace(b"identity 1\n", b"identity 2\n"))
    with pytest.raises(DamagedIdentity, match="newer swarmlet"):
        vault.load()


def test_identity_without_its_trust_is_damaged(vault: Vault) -> None:
    join(vault)
    (vault.folder / TRUST).unlink()
    with pytest.raises(DamagedIdentity, match="it is missing"):
        vault.load()


# Locks:


def test_locked_manager_needs_its_unlock_key(vault: Vault) -> None:
    join(vault)
    storage_key, unlock = vault.storage_key(), new_key()
    vault.lock(unlock)
    assert vault.locked
    with pytest.raises(Locked, match="unlock key is needed"):
        vault.storage_key()
    assert vault.storage_key(unlock=unlock) == storage_key
    renew(vault)  # a renewal opens nothing
    assert vault.locked
    rotated = new_key()
    vault.lock(rotated, unlock=unlock)
    with pytest.raises(Locked):
        vault.storage_key(unlock=unlock)
    vault.unlock_for_good(rotated)
    assert vault.storage_key() == storage_key


def test_data_of_another_node_stay_shut(vault: Vault, tmp_path: Path) -> None:
    other = Vault(tmp_path / "other")
    join(vault)
    join(other)
    vault.storage_key()
    (other.folder / STORAGE).write_bytes((vault.folder / STORAGE).read_bytes())
    with pytest.raises(Locked, match="two different nodes"):
        other.storage_key()


# Crashes:


class PowerCut(BaseException):
    """The machine stops here."""


#: What changes a disk or makes a change durable; the machine may stop before any of them.
STEPS = ("open", "write", "fsync", "replace", "unlink", "mkdir")


def cut_before(step: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Stop the machine before the *step*th call; an odd cut in a write tears it in the middle.

    Returns a function that says how many calls there have been.
    """
    count = 0

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count >= step:
                if name == "write" and count == step:
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                raise PowerCut
            return real(*args, **kwargs)

        return call

    for name in STEPS:
        monkeypatch.setattr(os, name, wrapped(name, getattr(os, name)))
    return lambda: count


def states(vault: Vault) -> tuple[bytes | None, bytes | None]:
    """What a node that wakes up finds: the key in use and the storage key."""
    credentials = vault.load()
    if credentials is None:
        return None, None
    return credentials.key.public_key, vault.storage_key()


@pytest.mark.parametrize("locked", [False, True])
def test_renewal_cut_anywhere_leaves_a_usable_identity(tmp_path: Path, locked: bool) -> None:
    """Stop before each step; then the old key or the new one is in use, both are known to the
    store (keys_after_renewal), the storage key opens, and the renewal can be finished.
    """
    step = 0
    while True:
        step += 1
        vault = Vault(tmp_path / f"cut-{step}")
        joined = join(vault)
        storage_key = vault.storage_key()
        unlock = new_key() if locked else None
        if unlock is not None:
            vault.lock(unlock)
        asked_for = None
        with pytest.MonkeyPatch.context() as monkeypatch:
            calls = cut_before(step, monkeypatch)
            try:
                asked_for = vault.pending_key().public_key
                renew(vault)
                finished = True
            except PowerCut:
                finished = False
        woken = Vault(vault.folder)
        credentials = woken.load()
        assert credentials is not None
        assert credentials.node == joined.node
        assert credentials.key.public_key in (joined.key.public_key, asked_for)
        assert woken.storage_key(unlock=unlock) == storage_key
        again = renew(woken)
        assert again.node == joined.node
        assert (
            asked_for is None
            or again.key.public_key == asked_for
            or credentials.key.public_key == asked_for
        )
        assert woken.storage_key(unlock=unlock) == storage_key
        if finished:
            assert step > calls() > 5
            break


def test_join_cut_anywhere_is_the_same_node_when_retried(tmp_path: Path) -> None:
    step = 0
    while True:
        step += 1
        vault = Vault(tmp_path / f"cut-{step}")
        asked = None
        with pytest.MonkeyPatch.context() as monkeypatch:
            cut_before(step, monkeypatch)
            try:
                asked = vault.pending_key().node_id
                join(vault)
                finished = True
            except PowerCut:
                finished = False
        woken = Vault(vault.folder)
        credentials = woken.load() or join(woken)
        assert asked is None or credentials.node == asked
        assert NodeCertificate.from_der_untrusted(credentials.chain[0]).cluster == CLUSTER.id
        if finished:
            break
    assert step > 8


def test_full_disk_leaves_the_old_identity(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = join(vault)

    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        vault.pending_key()
    monkeypatch.undo()
    again = vault.load()
    assert again is not None
    assert again.certificate == joined.certificate
    assert not [path for path in vault.folder.iterdir() if path.name.startswith(".")]
