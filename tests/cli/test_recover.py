"""What `swarmlet recover` says before it asks."""

from __future__ import annotations

from typing import Any

from swarmlet.cli.recover import describe


def raft(last: int, *, term: int = 3, commit: int | None = None, fault: str = "") -> dict[str, Any]:
    confirmed = last if commit is None else commit
    return {"LastIndex": last, "LastTerm": term, "CommitIndex": confirmed, "Fault": fault}


def other(name: str, state: dict[str, Any] | None, error: str = "") -> dict[str, Any]:
    return {"Name": name, "Addr": f"{name}:7947", "Raft": state, "Error": error}


def test_it_names_what_is_lost_and_who_has_more() -> None:
    found = {
        "Here": raft(40, commit=38),
        "Damage": "",
        "Others": [other("h2", raft(41)), other("h3", None, "it does not answer")],
    }
    assert describe(found) == [
        "This manager has a log up to entry 40 of term 3.",
        "h2 at h2:7947 has a log up to entry 41 of term 3.",
        "h3 at h3:7947 cannot be asked: it does not answer",
        "WARNING: h2 has more than this one: run it there instead.",
        "The last 2 entries here may never have been confirmed; they are kept.",
        "What only h3 had is lost; how much that is, nobody knows.",
    ]


def test_a_later_term_counts_for_more_than_a_longer_log() -> None:
    found = {"Here": raft(40), "Damage": "", "Others": [other("h2", raft(30, term=4))]}
    assert "WARNING: h2 has more than this one: run it there instead." in describe(found)


def test_a_damaged_log_is_said_to_be_damaged() -> None:
    found = {"Here": raft(40, fault="no vote"), "Damage": "byte 7 has changed", "Others": []}
    text = "\n".join(describe(found))
    assert "It takes no part now: no vote" in text
    assert "ends before that: byte 7 has changed" in text
