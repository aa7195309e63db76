"""The envelope: secret, authentic, taken once."""

from __future__ import annotations

import random

import pytest

from swarmlet.swim import sealing
from swarmlet.swim.config import PAYLOAD_BYTES_MAX
from swarmlet.swim.messages import BOOT_MAX, MemberId, short_id
from swarmlet.swim.sealing import (
    HEADER_BYTES,
    PACKET_BYTES_MAX,
    SALTS_MAX,
    WINDOW_BITS,
    BadPacket,
    Keyring,
    OldBoot,
    Opener,
    OwnPacket,
    Replayed,
    Sealer,
    UnknownEpoch,
)
from tests.swim.group import keyring

A, B = short_id(MemberId("a")), short_id(MemberId("b"))


def opener() -> Opener:
    return Opener(keyring(), B)


def test_what_is_sealed_can_be_opened_once() -> None:
    packet = Sealer(keyring(), A, 1).seal(b"hello")
    receiver = opener()
    opened = receiver.open_untrusted(packet)
    assert (opened.sender, opened.payload) == (A, b"hello")
    with pytest.raises(Replayed):
        receiver.open_untrusted(packet)


def test_payload_is_secret_and_of_bounded_size() -> None:
    packet = Sealer(keyring(), A, 1).seal(b"hello" * 40)
    assert b"hello" not in packet
    incompressible = random.Random(0).randbytes(PAYLOAD_BYTES_MAX)
    packet = Sealer(keyring(), A, 1).seal(incompressible)
    assert len(packet) == PACKET_BYTES_MAX
    assert opener().open_untrusted(packet).payload == incompressible


def test_long_payloads_are_squeezed() -> None:
    payload = b"member of the group " * 50
    packet = Sealer(keyring(), A, 1).seal(payload)
    assert len(packet) < len(payload) / 4
    assert opener().open_untrusted(packet).payload == payload


def test_bomb_is_no_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member of the group compresses more than a packet may hold."""
    monkeypatch.setattr(sealing, "PAYLOAD_BYTES_MAX", 10**6)
    bomb = Sealer(keyring(), A, 1).seal(bytes(100_000))
    monkeypatch.undo()
    assert len(bomb) < PACKET_BYTES_MAX
    with pytest.raises(BadPacket, match="longer"):
        opener().open_untrusted(bomb)


def test_every_bit_counts() -> None:
    packet = Sealer(keyring(), A, 1).seal(b"hello")
    receiver = opener()
    for position in range(len(packet) * 8):
        mutated = bytearray(packet)
        mutated[position // 8] ^= 1 << position % 8
        with pytest.raises(BadPacket):
            receiver.open_untrusted(bytes(mutated))
    assert receiver.open_untrusted(packet).payload == b"hello"


def test_packets_may_overtake_within_the_window() -> None:
    sealer, receiver = Sealer(keyring(), A, 1), opener()
    packets = [sealer.seal(str(number).encode()) for number in range(3 * WINDOW_BITS)]
    order = list(range(WINDOW_BITS))
    random.Random(1).shuffle(order)
    assert [receiver.open_untrusted(packets[n]).payload for n in order] == [
        str(n).encode() for n in order
    ]
    receiver.open_untrusted(packets[-1])
    receiver.open_untrusted(packets[-WINDOW_BITS])
    for number in (0, WINDOW_BITS - 1, len(packets) - WINDOW_BITS - 1, len(packets) - 1):
        with pytest.raises(Replayed):
            receiver.open_untrusted(packets[number])


def test_lower_boot_is_told_apart() -> None:
    old, new, receiver = Sealer(keyring(), A, 4), Sealer(keyring(), A, 5), opener()
    receiver.open_untrusted(old.seal(b"old"))
    receiver.open_untrusted(new.seal(b"new"))
    with pytest.raises(OldBoot) as caught:
        receiver.open_untrusted(old.seal(b"old"))
    assert (caught.value.sender, caught.value.newest) == (A, 5)
    old.set_boot(5)
    assert receiver.open_untrusted(old.seal(b"back")).payload == b"back"


def test_forged_boot_locks_nobody_out() -> None:
    """Only an authentic packet raises the boot that is asked for."""
    sealer, receiver = Sealer(keyring(), A, 1), opener()
    forged = bytearray(Sealer(Keyring(b"cluster", {1: bytes(32)}, 1), A, 9).seal(b"x"))
    with pytest.raises(BadPacket):
        receiver.open_untrusted(bytes(forged))
    assert receiver.open_untrusted(sealer.seal(b"y")).payload == b"y"


def test_two_lives_at_one_boot_share_no_nonce() -> None:
    """A copied disk: same member, same boot, other salt, so another key."""
    one, two = Sealer(keyring(), A, 1), Sealer(keyring(), A, 1)
    first, second = one.seal(b"same text"), two.seal(b"same text")
    assert first[HEADER_BYTES:] != second[HEADER_BYTES:]
    receiver = opener()
    assert receiver.open_untrusted(first).payload == receiver.open_untrusted(second).payload


def test_lives_are_bounded() -> None:
    receiver = opener()
    for _ in range(SALTS_MAX + 1):
        receiver.open_untrusted(Sealer(keyring(), A, 1).seal(b"x"))
    assert len(receiver._senders[A].lives) == SALTS_MAX


def test_senders_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "SENDERS_MAX", 10)
    receiver = opener()
    for number in range(20):
        name = short_id(MemberId(f"n{number}"))
        receiver.open_untrusted(Sealer(keyring(), name, 1).seal(b"x"))
    assert len(receiver._senders) == 10


def test_own_packets_are_no_news() -> None:
    with pytest.raises(OwnPacket):
        opener().open_untrusted(Sealer(keyring(), B, 1).seal(b"x"))


def test_keys_of_the_ring_and_no_other() -> None:
    sealer, receiver = Sealer(keyring(1), A, 1), opener()
    receiver.open_untrusted(sealer.seal(b"1"))
    receiver.set_keys(keyring(1, 2, 3, primary=2))
    old = sealer.seal(b"1 still")
    for epoch in (2, 3):
        sealer.set_keys(keyring(epoch))
        assert receiver.open_untrusted(sealer.seal(b"new")).payload == b"new"
    assert receiver.open_untrusted(old).payload == b"1 still"
    receiver.set_keys(keyring(2, 3))
    sealer.set_keys(keyring(1))
    with pytest.raises(UnknownEpoch) as caught:
        receiver.open_untrusted(sealer.seal(b"too old"))
    assert caught.value.epoch == 1


def test_epochs_go_on_beyond_what_a_header_holds() -> None:
    """A key for each node that was ever removed: after years the number is a large one."""
    last = sealing.EPOCH_SPACE - 1
    keys = {epoch: bytes([epoch & 0xFF]) * 32 for epoch in (last, last + 1, last + 2)}
    ring = Keyring(b"cluster", keys, last)
    sealer, receiver = Sealer(ring, A, 1), Opener(ring, B)
    assert receiver.open_untrusted(sealer.seal(b"before")).payload == b"before"
    sealer.set_keys(Keyring(b"cluster", keys, last + 2))
    assert receiver.open_untrusted(sealer.seal(b"after")).payload == b"after"


@pytest.mark.parametrize(
    ("newest", "mark", "newer"),
    [(1, 2, True), (1, 1, False), (2, 1, False), (0xFFFF, 0, True), (0x10000, 0xFFFF, False)],
)
def test_newer_epochs_are_told_across_the_end(newest: int, mark: int, newer: bool) -> None:
    assert Keyring(b"c", {newest: bytes(32)}, newest).is_newer(mark) is newer


def test_replay_is_known_under_every_key() -> None:
    """The counter goes on over a rotation, so a packet stays known after it."""
    sealer, receiver = Sealer(keyring(1), A, 1), opener()
    packet = sealer.seal(b"x")
    receiver.open_untrusted(packet)
    receiver.set_keys(keyring(1, 2, primary=2))
    with pytest.raises(Replayed):
        receiver.open_untrusted(packet)


def test_other_clusters_packets_are_foreign() -> None:
    other = Keyring(b"another cluster", keyring().keys, 1)
    with pytest.raises(BadPacket, match="not sealed with the group's key"):
        opener().open_untrusted(Sealer(other, A, 1).seal(b"x"))


def test_counter_never_wraps() -> None:
    sealer, receiver = Sealer(keyring(), A, 1), opener()
    sealer._counter = sealing.COUNTER_MAX - 1
    packets = [sealer.seal(b"x") for _ in range(3)]
    salts = {packet[16:20] for packet in packets}
    assert len(salts) == 2, "a new life begins where the counter ends"
    for packet in packets:
        receiver.open_untrusted(packet)


@pytest.mark.parametrize(
    ("keys", "primary"),
    [
        ({}, 1),
        ({e: bytes(32) for e in range(4)}, 1),
        ({1: bytes(32)}, 2),
        ({1: bytes(31)}, 1),
        ({-1: bytes(32)}, -1),
        ({1: bytes(32), 1 + sealing.EPOCH_SPACE: bytes(32)}, 1),
    ],
)
def test_keyrings_that_cannot_be(keys: dict[int, bytes], primary: int) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (each says it in its own words)
        Keyring(b"c", keys, primary)


def test_keyring_does_not_show_its_keys() -> None:
    assert "x01" not in repr(keyring())


def test_boot_beyond_all_is_refused() -> None:
    sealer = Sealer(keyring(), A, BOOT_MAX + 1)
    with pytest.raises(BadPacket):
        opener().open_untrusted(sealer.seal(b"x"))
