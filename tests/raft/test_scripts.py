"""The golden scripts: one for each rule of the paper, and for each place where we differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden import run_script
from tests.raft.script import Script

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script(path: Path, request: pytest.FixtureRequest) -> None:
    run_script(path, Script().execute, rewrite=request.config.getoption("--rewrite"))
