"""docs/raft.md: it names every world, fault and bug, and its commands are ones that there are."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from scripts import chaos, simulate
from tests.local.test_docs import examples
from tests.raft.chaos import FAULTS
from tests.raft.modes import MODES
from tests.raft.mutants import MUTANTS

PAGE = Path(__file__).parent.parent.parent / "docs" / "raft.md"
TYPED = [line for line, _ in examples(PAGE.read_text())]


def test_the_page_names_all_worlds_faults_and_bugs() -> None:
    text = PAGE.read_text()
    for mode in MODES:
        assert f"| `raft:{mode}` |" in text
    for fault in FAULTS:
        assert f"`{fault}`" in text
    for bug in MUTANTS:
        name = bug.name.replace("_", " ")
        assert f"| {name} | `raft/{bug.file}` | `{bug.caught_by}` |" in text


@pytest.mark.parametrize("typed", TYPED)
def test_the_commands_of_the_page_are_there(typed: str) -> None:
    """What takes minutes is only read; `swarmlet recover` runs in tests/swarm/test_recovery.py."""
    program, *arguments = shlex.split(typed)
    match program:
        case "scripts/simulate":
            options = simulate.parse(arguments)
            assert simulate.chosen(options.worlds)
        case "scripts/chaos":
            chaos.parse(arguments)
        case _:
            assert typed == "swarmlet recover --yes"
