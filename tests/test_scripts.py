"""The scripts around the product: they parse, and what counts is counted."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from scripts import levels

ROOT = Path(__file__).parent.parent
SHELL = [
    path
    for path in [*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run"]
    if path.suffix == ".sh" or (path.is_file() and path.read_bytes().startswith(b"#!/bin/bash"))
]


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell_script_parses_and_is_executable(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    assert path.suffix == ".sh" or path.stat().st_mode & 0o111


def test_continuous_integration_is_the_test_script() -> None:
    assert "scripts/test" in (ROOT / ".ci" / "run").read_text()


SUITE = """
import pytest
def test_passes(): pass
def test_fails(): assert False
@pytest.fixture
def broken(): raise RuntimeError
def test_does_not_start(broken): pass
@pytest.mark.parametrize("n", range(3))
def test_is_skipped(n): pytest.skip("no kernel for it")
"""


def test_every_case_is_counted_and_every_skip_has_its_reason(tmp_path: Path) -> None:
    (tmp_path / "test_suite.py").write_text(SUITE)
    report = tmp_path / "report.xml"
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    subprocess.run(argv, cwd=tmp_path, capture_output=True, check=False)
    result = levels.Result("a level")
    levels.read(report, result)
    assert (result.passed, result.failed, result.skipped) == (1, 2, 3)
    assert result.reasons == {"no kernel for it": 3}


def test_a_run_that_passed_nothing_has_failed(capsys: pytest.CaptureFixture[str]) -> None:
    assert levels.show([levels.Result("1", skipped=2)]) == 1
    assert levels.show([levels.Result("1", passed=2), levels.Result("2", failed=1)]) == 1
    assert levels.show([levels.Result("1", passed=2, skipped=1)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 passed, 0 failed, 1 skipped"


def test_a_level_that_hangs_is_killed() -> None:
    assert levels.run(["python", "-c", "import time; time.sleep(600)"], 0.2) is None


def test_every_level_of_the_suite_is_run() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    marks = [
        mark.partition(":")[0] for mark in settings["tool"]["pytest"]["ini_options"]["markers"]
    ]
    by_hand = {"level6"}
    assert {marks for marks, _ in levels.LEVELS.values()} >= set(marks) - by_hand
