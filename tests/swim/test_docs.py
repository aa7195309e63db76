"""docs/gossip.md says what is so: every knob with every preset's value, and commands that exist."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from swarmlet.swim.config import PRESETS, Config, configure_from_text
from tests.cli.world import open_shell

PAGE = Path(__file__).parent.parent.parent / "docs" / "gossip.md"


def test_the_table_has_every_knob_and_the_values_of_every_preset() -> None:
    table = PAGE.read_text().partition("<!-- knobs -->\n")[2].partition("<!-- end")[0]
    heads, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
    ]
    assert [row[0] for row in rows] == [field.name for field in dataclasses.fields(Config)]
    for preset in PRESETS:
        column = heads.index(preset)
        shown = {row[0]: row[column] for row in rows}
        assert configure_from_text("lan", shown) == PRESETS[preset], preset


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line[2:] for line in PAGE.read_text().splitlines() if line.startswith("$ ")]
    assert len(lines) > 10
    with open_shell(tmp_path, monkeypatch) as shell:
        for line in lines:
            code, _, stderr = shell.type(line)
            assert code == 0, f"{line}: {stderr}"
