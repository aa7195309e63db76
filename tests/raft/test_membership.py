"""Configurations and majorities: laws that hold for all of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft import quorum
from raft.membership import (
    Change,
    ChangeKind,
    InvalidChange,
    Refusal,
    ServerChange,
    Transition,
    change_configuration,
    decode_change,
    encode_change,
)
from raft.messages import Configuration, ServerId
from raft.quorum import Vote
from raft.records import pack_configuration, unpack_configuration

SERVERS = st.integers(1, 7).map(ServerId)
CHANGES = st.builds(
    Change,
    st.lists(
        st.builds(ServerChange, st.sampled_from(ChangeKind), SERVERS, st.binary(max_size=4)),
        max_size=5,
    ).map(tuple),
    st.sampled_from(Transition),
)
VOTERS = st.sets(SERVERS, min_size=1, max_size=7).map(lambda s: tuple(sorted(s)))


@given(CHANGES)
def test_changes_are_read_back(change: Change) -> None:
    assert decode_change(encode_change(change)) == change


@given(st.binary(min_size=1, max_size=40))
def test_garbage_is_an_invalid_change_and_nothing_worse(data: bytes) -> None:
    refusal = Refusal.UNREADABLE
    try:
        decode_change(data)
    except InvalidChange as invalid:
        refusal = invalid.refusal
    assert refusal is Refusal.UNREADABLE


@given(VOTERS, st.lists(CHANGES, max_size=12))
def test_every_way_through_changes_keeps_the_laws(
    voters: tuple[ServerId, ...], changes: list[Change]
) -> None:
    """There are voters, nobody is voter and learner, and consecutive majorities overlap."""
    configuration = Configuration(voters=voters)
    for change in changes:
        try:
            changed = change_configuration(configuration, change)
        except InvalidChange:
            continue
        after = changed.configuration
        assert after.voters
        assert not set(after.all_voters()) & set(after.learners)
        assert changed.fresh <= set(after.servers())
        assert {m.server for m in after.members} <= set(after.servers())
        assert unpack_configuration(pack_configuration(after)) == after
        check_overlap(configuration, after)
        configuration = after


def check_overlap(before: Configuration, after: Configuration) -> None:
    """No set of voters decides under *before* while its complement decides under *after*."""
    servers = sorted({*before.all_voters(), *after.all_voters()})
    for bits in range(1 << len(servers)):
        yes = {s: bool(bits >> i & 1) for i, s in enumerate(servers)}
        no = {s: not v for s, v in yes.items()}
        both = (
            quorum.joint_vote_result(before.voters, before.outgoing, yes) is Vote.WON
            and quorum.joint_vote_result(after.voters, after.outgoing, no) is Vote.WON
        )
        assert not both, f"{before} and {after} need not agree"


@given(VOTERS, st.dictionaries(SERVERS, st.integers(0, 20)))
def test_the_committed_index_is_the_highest_that_a_majority_has(
    voters: tuple[ServerId, ...], acknowledged: dict[ServerId, int]
) -> None:
    index = quorum.committed_index(voters, acknowledged)
    have = sum(acknowledged.get(v, 0) >= index for v in voters)
    more = sum(acknowledged.get(v, 0) > index for v in voters)
    assert have >= quorum.majority(len(voters)) > more


@pytest.mark.parametrize(
    ("count", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4)]
)
def test_majorities(count: int, needed: int) -> None:
    assert quorum.majority(count) == needed


def test_contexts_come_and_go_with_their_servers() -> None:
    def add(server: int, context: bytes) -> Change:
        return Change((ServerChange(ChangeKind.ADD_LEARNER, ServerId(server), context),))

    start = Configuration(voters=(ServerId(1),))
    two = change_configuration(start, add(2, b"a")).configuration
    assert two.context_of(ServerId(2)) == b"a"
    moved = change_configuration(two, add(2, b"b")).configuration
    assert moved.context_of(ServerId(2)) == b"b"
    gone = change_configuration(
        moved, Change((ServerChange(ChangeKind.REMOVE, ServerId(2)),))
    ).configuration
    assert gone == start
