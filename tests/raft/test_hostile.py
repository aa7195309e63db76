"""A server that is broken or hostile must not break another one."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from raft.config import Config
from raft.core import ProposalDropped, Raft
from raft.log import MemoryStorage
from raft.messages import (
    CHANGE,
    NOBODY,
    AppendEntries,
    AppendReply,
    Configuration,
    Entry,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Message,
    Propose,
    ReadReply,
    ReadRequest,
    RequestVote,
    ServerId,
    SnapshotMeta,
    TimeoutNow,
    TransferLeadership,
    VoteReply,
    is_well_formed,
)
from raft.snapshots import SnapshotDamaged, SnapshotHeader, compress
from tests.raft.cluster import cluster

NUMBERS = st.one_of(st.integers(0, 8), st.integers(-2, 1 << 70))
SERVERS = st.integers(0, 5).map(ServerId)
BYTES = st.binary(max_size=9)
ENTRIES = st.lists(st.builds(Entry, NUMBERS, NUMBERS, st.integers(0, 2), BYTES), max_size=3).map(
    tuple
)
#: Appends that fit together more often than chance would have it.
FITTING = st.builds(
    lambda term, index, count, commit: AppendEntries(
        term, index, min(term, 1), commit, tuple(Entry(index + i, term) for i in range(1, count))
    ),
    st.integers(1, 5),
    st.integers(0, 6),
    st.integers(1, 4),
    NUMBERS,
)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    FITTING,
    st.builds(AppendEntries, NUMBERS, NUMBERS, NUMBERS, NUMBERS, ENTRIES),
    st.builds(AppendReply, NUMBERS, NUMBERS, st.booleans(), NUMBERS, NUMBERS, st.booleans()),
    st.builds(Heartbeat, NUMBERS, NUMBERS, NUMBERS),
    st.builds(HeartbeatReply, NUMBERS, NUMBERS, st.booleans()),
    st.builds(RequestVote, NUMBERS, NUMBERS, NUMBERS, st.booleans(), st.booleans()),
    st.builds(VoteReply, NUMBERS, st.booleans(), st.booleans()),
    st.builds(TimeoutNow, NUMBERS),
    st.builds(TransferLeadership, NUMBERS, SERVERS),
    st.builds(ReadRequest, BYTES, st.booleans()),
    st.builds(ReadReply, NUMBERS, NUMBERS, BYTES),
    st.builds(Propose, ENTRIES),
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["step", "tick"]), SERVERS, MESSAGES), max_size=40),
    st.integers(),
)
def test_no_sequence_of_messages_breaks_the_core(
    events: list[tuple[str, ServerId, Message]], seed: int
) -> None:
    configuration = Configuration(voters=(ServerId(1), ServerId(2), ServerId(3)))
    storage = MemoryStorage(SnapshotMeta(1, 1, configuration))
    raft = Raft(
        Config(election_ticks=2),
        ServerId(1),
        storage,
        hard_state=HardState(1, NOBODY, 1),
        configuration=configuration,
        applied=1,
        rng=random.Random(seed),
    )
    committed = 1
    for kind, sender, message in events:
        if kind == "tick":
            raft.tick()
        elif is_well_formed(message) and sender != raft.server:
            with suppress(ProposalDropped):
                raft.step(sender, message)
        settle(raft, storage)
        assert committed <= raft.log.committed <= raft.log.last_index
        committed = raft.log.committed


def settle(raft: Raft, storage: MemoryStorage) -> None:
    while raft.has_ready():
        ready = raft.ready()
        storage.append(ready.entries)
        for to, message in ready.after_sync:
            if to == raft.server:
                raft.step(to, message)
        if ready.stored:
            raft.stored(ready.stored)
        for entry in ready.committed:
            if entry.kind == CHANGE:
                raft.apply_change(entry.index, entry.data)
        if ready.committed:
            raft.applied(ready.committed)


async def test_nonsense_is_ignored_and_the_cluster_goes_on(autojump_clock: MockClock) -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        term = leader.replica.status.term
        for message in (
            Heartbeat(1 << 63, 0),
            Heartbeat(term, 0),
            AppendEntries(term, 1, 1, 1, (Entry(7, 1),)),
            AppendReply(term, 1 << 40),
            ReadReply(term, 1, b"short"),
            RequestVote(-1, 0, 0),
        ):
            for member in c.members:
                member.replica.deliver(ServerId(999), message)
        await trio.sleep(1)
        assert leader.leads
        assert leader.replica.status.term == term
        await c.propose(b"x")


async def test_a_snapshot_that_is_not_what_it_says_is_refused(autojump_clock: MockClock) -> None:
    async with cluster(1) as c:
        replica = c.members[0].replica
        status = replica.status
        snapshot = SnapshotMeta(1_000, status.term, status.configuration)

        async def refuse(header: SnapshotHeader, *chunks: bytes) -> None:
            async def sent() -> AsyncIterator[bytes]:
                for chunk in chunks:
                    yield chunk

            with pytest.raises(SnapshotDamaged):
                await replica.receive_snapshot(ServerId(999), header, sent())

        chunk = compress(b"state")
        good = SnapshotHeader(status.term, snapshot, 5, bytes(32))
        await refuse(good, chunk)
        await refuse(good, b"not compressed")
        await refuse(SnapshotHeader(status.term, SnapshotMeta(-5, 1, Configuration()), 5, b""))
        assert not [name for name in c.members[0].disk.names() if name.startswith("snap-")]
        await c.propose(b"goes on")
