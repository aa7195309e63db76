"""The log: what matches, what gives way, what is committed, what may be applied."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raft.config import UNLIMITED, entry_bytes
from raft.log import Log, MemoryStorage
from raft.messages import Configuration, Entry, SnapshotMeta
from raft.trace import Trace


def make(*terms: int, applying_bytes_max: int = UNLIMITED) -> Log:
    """A log whose unstable entries, from 1 on, have *terms*."""
    log = Log(
        MemoryStorage(),
        applying_bytes_max=applying_bytes_max,
        apply_unstable=False,
        entry_bytes=entry_bytes,
        trace=ignore,
    )
    log.append(run(1, *terms))
    return log


def ignore(_: Trace) -> None:
    pass


def run(first: int, *terms: int) -> list[Entry]:
    return [Entry(first + position, term) for position, term in enumerate(terms)]


def terms_of(log: Log) -> list[int]:
    return [entry.term for entry in log.entries(log.first_index, UNLIMITED) or ()]


def store(log: Log) -> None:
    """Do what a shell does with unstable entries."""
    storage = log.storage
    assert isinstance(storage, MemoryStorage)
    entries = log.next_unstable()
    log.accept_unstable()
    storage.append(entries)
    log.stable_to(log.last_index, log.last_term)


def test_entries_are_refused_without_the_one_before() -> None:
    log = make(1, 1)
    assert log.try_append(3, 1, 0, run(4, 2)) is None
    assert log.try_append(2, 2, 0, run(3, 2)) is None
    assert terms_of(log) == [1, 1]


def test_only_a_conflict_truncates() -> None:
    log = make(1, 1, 2, 2)
    assert log.try_append(0, 0, 0, run(1, 1, 1)) == 2
    assert terms_of(log) == [1, 1, 2, 2]
    assert log.try_append(2, 1, 0, run(3, 3)) == 3
    assert terms_of(log) == [1, 1, 3]


def test_an_append_commits_no_further_than_it_reaches() -> None:
    """What stands behind it here may be something else than the leader has (figure 2)."""
    log = make(1, 1, 1, 1)
    assert log.try_append(1, 1, 4, run(2, 1)) == 2
    assert log.committed == 2


def test_only_the_current_term_is_committed_by_counting() -> None:
    log = make(1, 2)
    assert not log.try_commit(1, 2)
    assert log.try_commit(2, 2)
    assert log.committed == 2


def test_what_is_not_on_disk_here_is_not_applied() -> None:
    log = make(1, 1, 1)
    log.commit_to(2)
    assert not log.has_next_committed
    store(log)
    assert [entry.index for entry in log.take_committed()] == [1, 2]
    assert not log.has_next_committed


def test_entries_to_apply_are_limited_until_answers_come() -> None:
    log = make(*[1] * 10, applying_bytes_max=50)
    log.commit_to(10)
    store(log)
    first = log.take_committed()
    assert [entry.index for entry in first] == [1, 2, 3]
    assert not log.has_next_committed
    log.applied_entries(first)
    assert [entry.index for entry in log.take_committed()] == [4, 5, 6]


def test_the_better_log_has_the_later_term_or_is_longer() -> None:
    log = make(1, 2, 2)
    assert log.up_to_date(1, 3)
    assert log.up_to_date(3, 2)
    assert log.up_to_date(4, 2)
    assert not log.up_to_date(2, 2)
    assert not log.up_to_date(9, 1)


def test_a_snapshot_replaces_everything() -> None:
    log = make(1, 1)
    log.restore(SnapshotMeta(9, 4, Configuration()))
    assert (log.first_index, log.last_index, log.last_term, log.committed) == (10, 9, 4, 9)
    assert log.term(9) == 4
    assert log.term(2) is None
    log.append(run(10, 5))
    assert log.last_index == 10


def test_compacted_entries_need_a_snapshot() -> None:
    log = make(1, 1, 1)
    store(log)
    storage = log.storage
    assert isinstance(storage, MemoryStorage)
    storage.compact(2)
    assert log.entries(2, UNLIMITED) is None
    assert [entry.index for entry in log.entries(3, UNLIMITED) or ()] == [3]
    assert log.term(2) == 1


def test_storage_may_begin_before_its_snapshot() -> None:
    snapshot = SnapshotMeta(5, 2, Configuration())
    storage = MemoryStorage(snapshot, run(3, 1, 2, 2, 3))
    assert (storage.first_index, storage.last_index) == (4, 6)
    assert [storage.term(index) for index in range(2, 8)] == [None, 1, 2, 2, 3, None]


def test_what_is_kept_behind_a_snapshot_is_bounded_in_entries_and_in_bytes() -> None:
    storage = MemoryStorage()
    storage.append([Entry(index, 1, data=bytes(84)) for index in range(1, 11)])
    assert storage.index_before(10, entries_max=3, bytes_max=UNLIMITED) == 7
    assert storage.index_before(10, entries_max=20, bytes_max=250) == 8
    assert storage.index_before(10, entries_max=20, bytes_max=UNLIMITED) == 0
    storage.compact(4)
    assert storage.index_before(10, entries_max=20, bytes_max=UNLIMITED) == 4


TERMS = st.lists(st.integers(1, 4), max_size=8).map(sorted)


@given(mine=TERMS, theirs=TERMS)
def test_hints_lead_to_where_two_logs_part(mine: list[int], theirs: list[int]) -> None:
    """A leader who follows the hints finds the last common entry, and never skips it."""
    follower, leader = make(*mine), make(*theirs)
    common = 0
    while common < min(len(mine), len(theirs)) and mine[common] == theirs[common]:
        common += 1
    # Entries of the same index and term are the same entry only if all before them are.
    probe = leader.last_index
    for _ in range(20):
        term = leader.term(probe)
        assert term is not None
        if probe <= common:
            break
        index, hint_term = follower.hint(min(probe, follower.last_index), term)
        guess, _ = leader.hint(index, hint_term) if hint_term else (index, 0)
        following = max(min(probe - 1, guess), 0)
        assert following >= min(common, following)
        assert following < probe
        probe = following
    assert probe <= common or leader.term(probe) == follower.term(probe)


@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.lists(st.integers(1, 3), min_size=1, max_size=4)),
        max_size=12,
    ),
    st.data(),
)
def test_storage_and_unstable_together_are_one_log(
    appends: list[tuple[int, list[int]]], data: st.DataObject
) -> None:
    """Whatever is stored when, the log reads as if it were one list."""
    log = make()
    expected: list[int] = []
    for back, terms in appends:
        keep = max(0, len(expected) - back)
        expected = [*expected[:keep], *terms]
        log.append(run(keep + 1, *terms))
        assert terms_of(log) == expected
        if data.draw(st.booleans()):
            store(log)
        assert terms_of(log) == expected
        assert [log.term(i + 1) for i in range(len(expected))] == expected
