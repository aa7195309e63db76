"""What members say: every message survives the wire, and none is made of nonsense."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet import wire
from swarmlet.codec import BadMessage, pack, unpack_untrusted
from swarmlet.swim.messages import (
    ACCUSERS_MAX,
    ANYBODY,
    CLOCK_MAX,
    EVENT_BYTES_MAX,
    FACTS_BYTES_MAX,
    INCARNATION_MAX,
    SEQUENCE_MAX,
    Ack,
    Alive,
    Dead,
    Evidence,
    Left,
    MemberId,
    Message,
    Nack,
    Ping,
    PingReq,
    Record,
    ShortId,
    State,
    Suspect,
    SyncDigest,
    SyncRecords,
    UserEvent,
    boot_of,
    first_incarnation,
    size_of,
)
from tests.swim.group import Frame, PlainCodec

CODEC = PlainCodec()
B = ShortId(b"bbbbbbbb")

sequences = st.integers(0, SEQUENCE_MAX)
incarnations = st.integers(0, INCARNATION_MAX)
shorts = st.binary(min_size=8, max_size=8).map(ShortId)
addresses = st.tuples(
    st.one_of(
        st.ip_addresses(v=4, network="10.0.0.0/8"), st.ip_addresses(v=6, network="fd00::/8")
    ).map(str),
    st.integers(1, 65535),
)
members = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FF, categories=["L", "N"]),
    min_size=1,
    max_size=26,
).map(MemberId)
facts = st.binary(max_size=FACTS_BYTES_MAX)
states = st.sampled_from(State)
messages = st.one_of(
    st.builds(Ping, sequences, shorts | st.just(ANYBODY), incarnations, states),
    st.builds(Ack, sequences, incarnations),
    st.builds(PingReq, sequences, shorts, incarnations, states),
    st.builds(Nack, sequences, st.booleans()),
    st.builds(Alive, members, incarnations, addresses, facts),
    st.builds(
        Suspect,
        shorts,
        incarnations,
        st.lists(shorts, min_size=1, max_size=ACCUSERS_MAX).map(tuple),
        st.sampled_from(Evidence),
    ),
    st.builds(Dead, shorts, incarnations, shorts),
    st.builds(Left, shorts, incarnations),
    st.builds(
        UserEvent,
        st.integers(1, CLOCK_MAX),
        shorts,
        st.text("abcä", min_size=1, max_size=16),
        st.binary(max_size=EVENT_BYTES_MAX),
    ),
)
records = st.builds(
    Record, members, incarnations, states, addresses, facts, st.integers(0, 1 << 40)
)


@given(st.lists(messages, max_size=10))
def test_messages_survive_the_wire(sent: list[Message]) -> None:
    assert list(CODEC.decode_untrusted(CODEC.encode(sent))) == sent


@given(
    st.one_of(
        st.builds(SyncDigest, records, st.just(bytes(512))),
        st.builds(
            SyncRecords,
            st.lists(records, max_size=5).map(tuple),
            st.binary(max_size=64),
            st.booleans(),
        ),
    )
)
def test_frames_survive_the_wire(sent: Any) -> None:
    assert unpack_untrusted(Frame, pack(Frame(sent))).message == sent


@given(st.lists(messages, max_size=10))
def test_sizes_are_never_underestimated(sent: list[Message]) -> None:
    """The core fills packets by this estimate: one byte too few and a packet would not fit."""
    assert len(CODEC.encode(sent)) <= sum(map(size_of, sent)) + 8
    assert len(wire.encode_many(sent)) <= sum(map(size_of, sent)) + 8


def test_every_kind_is_generated() -> None:
    kinds = {Ping, Ack, PingReq, Nack, Alive, Suspect, Dead, Left, UserEvent}
    assert set(get_args(Message)) == kinds


HERE = ("10.0.0.1", 7947)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (Ping, (-1, B)),
        (Ping, (SEQUENCE_MAX + 1, B)),
        (Ping, (1, ShortId(b"short"))),
        (Ping, (1, B, -1)),
        (Ack, (1, INCARNATION_MAX + 1)),
        (PingReq, (1, ANYBODY, 0)),
        (Alive, (MemberId(""), 0, HERE)),
        (Alive, (MemberId("x" * 65), 0, HERE)),
        (Alive, (MemberId("a\nb"), 0, HERE)),
        (Alive, (MemberId("a"), 0, ("example.org", 1))),
        (Alive, (MemberId("a"), 0, ("10.0.0.1", 0))),
        (Alive, (MemberId("a"), 0, ("10.0.0.1", 65536))),
        (Alive, (MemberId("a"), 0, ("224.0.0.1", 1))),
        (Alive, (MemberId("a"), 0, ("255.255.255.255", 1))),
        (Alive, (MemberId("a"), 0, ("0.0.0.0", 1))),
        (Alive, (MemberId("a"), 0, ("ff02::1", 1))),
        (Alive, (MemberId("a"), 0, ("fe80::1%" + "x" * 9_000, 1))),
        (Alive, (MemberId("a"), 0, HERE, bytes(257))),
        (Suspect, (B, 0, ())),
        (Suspect, (B, 0, (B,) * 9)),
        (Suspect, (B, 0, (ShortId(b""),))),
        (Dead, (ANYBODY, 0, B)),
        (Dead, (B, 0, ANYBODY)),
        (Left, (ANYBODY, 0)),
        (UserEvent, (0, B, "x")),
        (UserEvent, (CLOCK_MAX + 1, B, "x")),
        (UserEvent, (1, B, "")),
        (UserEvent, (1, B, "x", bytes(513))),
        (Record, (MemberId("a"), 0, State.DEAD, HERE, b"", -1)),
        (SyncRecords, ((), bytes(257))),
    ],
)
def test_nonsense_is_refused(kind: Any, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (each says it in its own words)
        kind(*arguments)


@pytest.mark.parametrize("length", [0, 8 * 3, 511, 8 * 512])
def test_digests_of_no_number_of_buckets(length: int) -> None:
    me = Record(MemberId("a"), 0, State.ALIVE, HERE)
    with pytest.raises(ValueError, match="digests of"):
        SyncDigest(me, bytes(length))


def test_what_cannot_be_made_cannot_be_received() -> None:
    good = CODEC.encode([Alive(MemberId("a"), 0, HERE)])
    with pytest.raises(BadMessage):
        CODEC.decode_untrusted(good.replace(b"10.0.0.1", b"224.0.0."))


def test_incarnations_count_starts_first() -> None:
    assert first_incarnation(3) > first_incarnation(2) + (1 << 32) - 1
    assert boot_of(first_incarnation(3) + 9) == 3
