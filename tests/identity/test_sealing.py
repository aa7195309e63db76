"""Seals, the wrapped storage key, unlock keys, epoch keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.identity import (
    BadSeal,
    EpochKey,
    Keyring,
    Locked,
    MistypedKey,
    derive_key,
    first_keyring,
    format_unlock_key,
    new_key,
    open_untrusted,
    parse_unlock_key,
    seal,
)
from swarmlet.identity.sealing import OVERHEAD_BYTES, WrappedKey
from tests.identity.makers import key_pair

KEY, OTHER = bytes(range(32)), bytes(32)


@given(st.binary(max_size=300), st.binary(max_size=40))
def test_seal_opens_with_its_key_and_context_only(plaintext: bytes, context: bytes) -> None:
    sealed = seal(KEY, plaintext, context)
    assert len(sealed) == len(plaintext) + OVERHEAD_BYTES
    assert open_untrusted(KEY, sealed, context) == plaintext
    for key, place in ((OTHER, context), (KEY, context + b"x")):
        with pytest.raises(BadSeal):
            open_untrusted(key, sealed, place)


@given(st.binary(max_size=60), st.data())
def test_changed_seal_stays_shut(plaintext: bytes, data: st.DataObject) -> None:
    sealed = seal(KEY, plaintext, b"row 1")
    at = data.draw(st.integers(0, len(sealed) - 1))
    bit = data.draw(st.integers(0, 7))
    changed = sealed[:at] + bytes([sealed[at] ^ 1 << bit]) + sealed[at + 1 :]
    for body in (changed, sealed[:at], sealed + b"\0"):
        with pytest.raises(BadSeal):
            open_untrusted(KEY, body, b"row 1")


@given(st.binary(max_size=100))
def test_noise_is_no_seal(noise: bytes) -> None:
    with pytest.raises(BadSeal):
        open_untrusted(KEY, noise, b"")
    with pytest.raises(BadSeal):
        WrappedKey.from_text_untrusted(b"node:ab " + noise + b"!")


def test_same_plaintext_is_sealed_differently_each_time() -> None:
    assert seal(KEY, b"x", b"") != seal(KEY, b"x", b"")


def test_purposes_have_keys_of_their_own() -> None:
    assert len({derive_key(KEY, b"log"), derive_key(KEY, b"agent"), KEY}) == 3
    assert derive_key(KEY, b"log") == derive_key(KEY, b"log")


def test_storage_key_opens_with_the_keys_it_was_wrapped_for() -> None:
    storage_key, a, b = new_key(), key_pair("a"), key_pair("b")
    wrapped = WrappedKey(()).added(storage_key, node=a)
    assert wrapped.opened(node=a) == storage_key
    with pytest.raises(Locked, match="two different nodes"):
        wrapped.opened(node=b)
    again = WrappedKey.from_text_untrusted(wrapped.to_text())
    assert again.opened(node=a) == storage_key
    assert storage_key.hex() not in repr(wrapped)


def test_renewal_opens_for_old_and_new_key_and_forgets_the_one_before() -> None:
    storage_key, a, b, c = new_key(), key_pair("a"), key_pair("b"), key_pair("c")
    wrapped = WrappedKey(()).added(storage_key, node=a).renewed(a, b)
    assert wrapped.opened(node=a) == wrapped.opened(node=b) == storage_key
    wrapped = wrapped.renewed(b, c)
    assert wrapped.opened(node=b) == wrapped.opened(node=c) == storage_key
    with pytest.raises(Locked):
        wrapped.opened(node=a)


def test_locked_storage_key_opens_with_the_unlock_key_only() -> None:
    storage_key, unlock, a = new_key(), new_key(), key_pair("a")
    wrapped = WrappedKey(()).added(storage_key, unlock=unlock)
    assert wrapped.locked
    assert wrapped.opened(node=a, unlock=unlock) == storage_key
    assert wrapped.renewed(a, key_pair("b")) == wrapped
    with pytest.raises(Locked, match="unlock key is needed"):
        wrapped.opened(node=a)
    with pytest.raises(Locked, match="not the one of this manager"):
        wrapped.opened(node=a, unlock=OTHER)


@given(st.binary(min_size=32, max_size=32))
def test_unlock_key_survives_paper(key: bytes) -> None:
    text = format_unlock_key(key)
    assert text.startswith("SWLKEY-1-")
    assert parse_unlock_key(f" {text[:30]}\n{text[30:].upper()}") == key


@pytest.mark.parametrize("text", ["", "SWLKEY-1-abc", "SWL1-abc", "SWLKEY-1-" + "a" * 56])
def test_mistyped_unlock_key_says_so(text: str) -> None:
    with pytest.raises(MistypedKey, match="copy it again"):
        parse_unlock_key(text)


def test_new_epoch_is_announced_before_it_is_sent_with() -> None:
    ring = first_keyring(b"one")
    announced = ring.announced(b"two")
    assert announced.sending_key == b"one"
    assert announced.key_of(2) == b"two"
    switched = announced.switched()
    assert switched.sending_key == b"two"
    assert switched.key_of(1) == b"one"  # whoever is a step behind is still heard
    third = switched.announced(b"three").switched()
    assert third.key_of(1) is None
    assert [key.epoch for key in third.keys] == [2, 3]


def test_announcing_twice_keeps_the_sending_key() -> None:
    ring = first_keyring(b"one").announced(b"two").announced(b"three").announced(b"four")
    assert [(key.epoch, key.key) for key in ring.keys] == [(1, b"one"), (4, b"four")]
    assert ring.sending_key == b"one"


def test_removed_node_holds_no_key_of_the_new_ring() -> None:
    ring = first_keyring(b"one").announced(b"two").revoked(b"three")
    assert [(key.epoch, key.key) for key in ring.keys] == [(3, b"three")]
    assert "three" not in repr(ring)


def test_keyring_checks_itself() -> None:
    one, two = EpochKey(epoch=1, key=b"1"), EpochKey(epoch=2, key=b"2")
    with pytest.raises(ValueError, match="in order"):
        Keyring(keys=(two, one), sending=1)
    with pytest.raises(ValueError, match="no key of its sending epoch"):
        Keyring(keys=(one, two), sending=3)
