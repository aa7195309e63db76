"""Rules of the core that a script cannot show: each by direct calls."""

from __future__ import annotations

import random

from raft.config import Config
from raft.core import Raft
from raft.log import MemoryStorage
from raft.membership import Change, ChangeKind, ServerChange, encode_change
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
    InstallSnapshot,
    ReadReply,
    ReadRequest,
    Ready,
    Role,
    ServerId,
    SnapshotMeta,
    TimeoutNow,
    VoteReply,
)

A, B, C, D = (ServerId(n) for n in (1, 2, 3, 4))
THREE = Configuration(voters=(A, B, C))


def core(
    configuration: Configuration = THREE,
    *,
    config: Config | None = None,
    entries: tuple[Entry, ...] = (),
    hard_state: HardState | None = None,
) -> tuple[Raft, MemoryStorage]:
    """Server A, restarted from a snapshot at entry 1 and *entries*."""
    storage = MemoryStorage(SnapshotMeta(1, 1, configuration))
    storage.append(entries)
    config = config or Config(pre_vote=False, check_quorum=False)
    raft = Raft(
        config,
        A,
        storage,
        hard_state=hard_state or HardState(1, NOBODY, 1),
        configuration=configuration,
        applied=1,
        rng=random.Random(0),
    )
    return raft, storage


def drain(raft: Raft, storage: MemoryStorage, *, apply: bool = True) -> list[Ready]:
    """Do everything Ready asks for, and return what that was."""
    done = []
    while raft.has_ready():
        ready = raft.ready()
        done.append(ready)
        if ready.snapshot is not None:
            storage.restore(ready.snapshot)
        storage.append(ready.entries)
        for to, message in ready.after_sync:
            if to == raft.server:
                raft.step(to, message)
        if ready.stored:
            raft.stored(ready.stored)
        if apply and ready.committed:
            for entry in ready.committed:
                if entry.kind == CHANGE:
                    raft.apply_change(entry.index, entry.data)
            raft.applied(ready.committed)
    return done


def lead(raft: Raft, storage: MemoryStorage) -> None:
    """Make *raft* the leader of the next term, with its no-op committed."""
    raft.campaign()
    drain(raft, storage)
    raft.step(B, VoteReply(raft.term))
    assert raft.role is Role.LEADER
    drain(raft, storage)
    raft.step(B, AppendReply(raft.term, raft.log.last_index))
    drain(raft, storage)
    assert raft.log.committed == raft.log.last_index


def role(raft: Raft) -> Role:
    return raft.role


def add(server: ServerId) -> bytes:
    return encode_change(Change((ServerChange(ChangeKind.ADD_VOTER, server),)))


def messages(readies: list[Ready], kind: type) -> list[tuple[ServerId, object]]:
    return [(to, m) for ready in readies for to, m in ready.messages if isinstance(m, kind)]


def append_sizes(readies: list[Ready], server: ServerId) -> list[int]:
    """The bytes of data in each append to *server*."""
    return [
        sum(len(entry.data) for entry in m.entries)
        for ready in readies
        for to, m in ready.messages
        if to == server and isinstance(m, AppendEntries)
    ]


def test_a_change_older_than_the_configuration_is_not_applied() -> None:
    """It was on its way to the state machine when a snapshot brought a newer configuration."""
    raft, storage = core()
    newer = Configuration(voters=(A, B, D))
    raft.step(B, InstallSnapshot(2, SnapshotMeta(10, 2, newer)))
    assert raft.apply_change(9, add(C)) == newer
    drain(raft, storage)
    assert raft.apply_change(11, add(C)).voters == (A, B, C, D)


def test_a_server_with_an_unapplied_change_does_not_campaign() -> None:
    """Its own configuration may be the old one, with another majority."""
    raft, storage = core(entries=(Entry(2, 1, CHANGE, add(D)),), hard_state=HardState(1, NOBODY, 2))
    raft.campaign()
    assert role(raft) is Role.FOLLOWER
    drain(raft, storage)
    raft.campaign()
    assert role(raft) is Role.CANDIDATE


def test_no_snapshot_goes_to_a_silent_server() -> None:
    raft, storage = core()
    lead(raft, storage)
    storage.note_snapshot(SnapshotMeta(raft.log.applied, raft.term, THREE))
    storage.compact(raft.log.applied)
    assert messages(drain(raft, storage), InstallSnapshot) == []
    # Found to be far behind: nobody knows if it is there at all.
    raft.progress[C].next_index = 1
    raft.progress[C].paused_probe = False
    raft.propose(b"x")
    assert messages(drain(raft, storage), InstallSnapshot) == []
    raft.step(C, HeartbeatReply(raft.term))
    assert [to for to, _ in messages(drain(raft, storage), InstallSnapshot)] == [C]


def test_a_committed_change_that_cannot_be_read_does_nothing() -> None:
    raft, _ = core()
    assert raft.apply_change(2, b"\x93garbage") == THREE
    assert raft.apply_change(3, b"") == THREE  # leaves a joint configuration that is none


def test_answers_of_strangers_count_for_nothing() -> None:
    raft, storage = core()
    raft.campaign()
    drain(raft, storage)
    raft.step(D, VoteReply(raft.term))
    assert raft.role is Role.CANDIDATE
    raft.step(D, AppendReply(raft.term + 5))
    assert raft.term == 2
    raft.step(D, ReadReply(raft.term + 5, 1, b""))
    assert raft.term == 2


def test_a_learner_votes_for_a_candidate_who_knows_better() -> None:
    """The candidate may have the entry that promotes it (etcd-raft's campaign_learner case)."""
    raft, storage = core(Configuration(voters=(B, C), learners=(A,)))
    raft.campaign()
    assert raft.role is Role.FOLLOWER
    raft.step(B, TimeoutNow(1))
    assert raft.role is Role.FOLLOWER
    drain(raft, storage)


def test_appends_are_limited_in_size_and_in_number() -> None:
    config = Config(
        pre_vote=False,
        check_quorum=False,
        message_bytes_max=100,
        in_flight_messages_max=3,
        in_flight_bytes_max=200,
    )
    raft, storage = core(config=config)
    lead(raft, storage)
    for _ in range(20):
        raft.propose(b"x" * 40)
    sizes = [size for size in append_sizes(drain(raft, storage), B) if size]
    assert len(sizes) == 3
    raft.step(B, AppendReply(raft.term, raft.progress[B].next_index - 1))
    more = append_sizes(drain(raft, storage), B)
    assert 1 <= len(more) <= 3
    assert max(more) <= 100


def test_a_server_that_cannot_trust_its_disk_neither_votes_nor_campaigns() -> None:
    raft, storage = core()
    raft.recovering = True
    raft.campaign()
    assert raft.role is Role.FOLLOWER
    raft.step(B, AppendEntries(2, 1, 1, 1, (Entry(2, 2),)))
    replies = [m for ready in drain(raft, storage) for _, m in ready.after_sync]
    assert replies == [AppendReply(2, 2, recovering=True)]


def test_a_recovering_server_commits_nothing_on_the_word_of_a_heartbeat() -> None:
    """The leader remembers what matched before the loss; what is here may be older than that."""
    raft, storage = core(
        entries=(Entry(2, 1), Entry(3, 1)), hard_state=HardState(2, NOBODY, 1, recovering=True)
    )
    raft.step(B, Heartbeat(2, 3))
    asked = messages(drain(raft, storage), ReadRequest)
    assert asked == [(B, ReadRequest(b"", recovering=True))]
    assert raft.log.committed == 1
    raft.step(B, ReadReply(2, 3, b""))
    raft.step(B, AppendEntries(2, 1, 1, 3, (Entry(2, 2), Entry(3, 2))))
    drain(raft, storage)
    raft.step(B, Heartbeat(2, 3))
    assert raft.log.committed == 3
    assert not raft.recovering
    assert drain(raft, storage)[0].hard_state == HardState(2, NOBODY, 3)


def test_a_server_that_lacks_what_it_acknowledged_notices() -> None:
    """Its disk is an older image: the leader counts on entries that are not here."""
    raft, storage = core()
    raft.step(B, Heartbeat(1, 40))
    ready = drain(raft, storage)[0]
    assert ready.hard_state == HardState(1, NOBODY, 1, recovering=True)
    assert ready.must_sync
    assert (B, HeartbeatReply(1, 0, recovering=True)) in ready.messages


def test_acknowledgements_of_a_recovering_server_commit_nothing() -> None:
    raft, storage = core()
    lead(raft, storage)
    raft.propose(b"x")
    drain(raft, storage)
    last = raft.log.last_index
    raft.step(C, AppendReply(raft.term, last, recovering=True))
    drain(raft, storage)
    assert raft.log.committed < last
    raft.step(C, AppendReply(raft.term, last))
    drain(raft, storage)
    assert raft.log.committed == last


def test_election_timeouts_are_spread() -> None:
    """Servers that time out together split the vote together (paper section 5.2)."""
    timeouts = set()
    for seed in range(200):
        raft = Raft(
            Config(pre_vote=False),
            A,
            MemoryStorage(SnapshotMeta(1, 1, THREE)),
            hard_state=HardState(1, NOBODY, 1),
            configuration=THREE,
            applied=1,
            rng=random.Random(seed),
        )
        ticks = 0
        while role(raft) is Role.FOLLOWER:
            raft.tick()
            ticks += 1
        timeouts.add(ticks)
    assert timeouts == set(range(10, 20))


def test_a_write_of_an_earlier_term_shows_nothing() -> None:
    """The ABA problem: what it wrote may have been replaced, by a write still under way."""
    raft, storage = core()
    raft.step(B, AppendEntries(1, 1, 1, 1, (Entry(2, 1), Entry(3, 1))))
    first = raft.ready()
    raft.step(C, AppendEntries(2, 1, 1, 1, (Entry(2, 2),)))
    second = raft.ready()
    raft.step(B, AppendEntries(3, 1, 1, 1, (Entry(2, 1), Entry(3, 1))))
    third = raft.ready()
    for ready in (first, second, third):
        assert ready.stored
    storage.append(first.entries)
    raft.stored(first.stored)  # type: ignore[arg-type]
    assert raft.log.unstable == [Entry(2, 1), Entry(3, 1)]
    storage.append(second.entries)
    raft.stored(second.stored)  # type: ignore[arg-type]
    storage.append(third.entries)
    raft.stored(third.stored)  # type: ignore[arg-type]
    assert raft.log.unstable == []
    assert list(storage.entries(2, 4)) == [Entry(2, 1), Entry(3, 1)]
