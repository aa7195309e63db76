"""A disk that refuses keeps no node from its work, and gets everything when there is room."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest
import trio
import trio.testing

from swarmlet.agent.assignment import Assignment, Difference
from swarmlet.agent.journal import Journal, JournalRefused
from swarmlet.agent.storing import RETRY_SECONDS, Storing, merge
from swarmlet.session import ItemKey, Kind

BIG = b"x" * 100_000


class Plain:
    """No seal: what is sealed is not what is tested."""

    def seal(self, plaintext: bytes, context: bytes) -> bytes:
        return plaintext

    def open_untrusted(self, sealed: bytes, context: bytes) -> bytes:
        return sealed


def key(name: str) -> ItemKey:
    return ItemKey(Kind.TASK, name)


def put(*names: str, body: bytes = BIG) -> Difference:
    return Difference({key(name): body for name in names}, frozenset())


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal", Plain())


def fill(journal: Journal) -> None:
    """Let sqlite find its disk full: it may not grow."""
    (pages,) = journal._db.execute("PRAGMA page_count").fetchone()
    journal._db.execute(f"PRAGMA max_page_count={pages}")


def make_room(journal: Journal) -> None:
    journal._db.execute("PRAGMA max_page_count=100000")


def names(journal: Journal) -> set[str]:
    """What is committed: the journal's own connection would see what is under way in a thread."""
    with contextlib.closing(sqlite3.connect(journal._path)) as db:
        return {id_ for (id_,) in db.execute("SELECT id FROM item")}


def test_a_full_disk_refuses_whole_transactions_and_takes_them_later(journal: Journal) -> None:
    journal.store_assignment(Assignment(index=1), put("a"))
    fill(journal)
    with pytest.raises(JournalRefused, match="make room"):
        journal.store_assignment(Assignment(index=2), put("b"))
    assert names(journal) == {"a"}
    make_room(journal)
    journal.store_assignment(Assignment(index=2), put("b"))
    assert names(journal) == {"a", "b"}
    assert journal.number("index") == 2


def test_differences_add_up() -> None:
    older = Difference({key("a"): b"1", key("b"): b"1"}, frozenset({key("c"), key("d")}))
    newer = Difference({key("a"): b"2", key("c"): b"2"}, frozenset({key("b")}))
    assert merge(older, newer) == Difference(
        {key("a"): b"2", key("c"): b"2"}, frozenset({key("b"), key("d")})
    )


async def test_what_the_disk_refused_is_stored_when_there_is_room(
    journal: Journal, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    storing = Storing(journal)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(storing.run)
        await storing.store(Assignment(index=1), put("a"))
        fill(journal)
        await storing.store(Assignment(index=2), put("b"))
        await storing.store(Assignment(index=3), Difference({key("c"): BIG}, frozenset({key("a")})))
        await trio.sleep(3 * RETRY_SECONDS)
        assert names(journal) == {"a"}
        assert caplog.text.count("assignment not stored") == 1
        make_room(journal)
        with trio.fail_after(600):
            while names(journal) != {"b", "c"}:  # noqa: ASYNC110 (the clock jumps)
                await trio.sleep(RETRY_SECONDS)
        nursery.cancel_scope.cancel()


def test_a_number_that_cannot_be_stored_holds_while_the_process_lives(journal: Journal) -> None:
    assert journal.next_boot() == 1
    journal.store_assignment(Assignment(index=1), put("a"))
    (pages,) = journal._db.execute("PRAGMA page_count").fetchone()
    journal._db.execute(f"PRAGMA max_page_count={pages}")
    for number in range(2, 500):
        journal.set_number(f"n{number}", number)
    assert journal.number("n499") == 499
    rows = journal._db.execute("SELECT count(*) FROM meta").fetchone()
    assert rows[0] < 500
