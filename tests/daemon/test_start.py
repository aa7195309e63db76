"""From `swarmlet daemon` to the daemon: another program in the same process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import swarmlet.daemon
from swarmlet.cli.daemon import DEFAULTS
from swarmlet.daemon.__main__ import settings_of
from swarmlet.daemon.config import Settings


@pytest.mark.parametrize("name", ["", "h1", "a=b --c d"])
def test_every_option_arrives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {**DEFAULTS, "state_dir": "/a b", "data_path_port": 4790, "name": name}
    words: list[str] = []
    monkeypatch.setattr(os, "execv", lambda path, argv: words.extend(argv))
    swarmlet.daemon.run(**given)
    assert words[:3] == [sys.executable, "-Pm", "swarmlet.daemon"]
    paths = {"state_dir": Path("/a b"), "run_dir": Path(str(given["run_dir"]))}
    assert settings_of(words[3:]) == Settings(**{**given, **paths})


def test_what_keeps_it_from_starting_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "trio.py").write_text("raise SystemExit('not ours')")  # and started from there
    words = ["daemon", "--state-dir", str(tmp_path / "file" / "state")]
    words += ["--run-dir", str(tmp_path / "run")]
    run = subprocess.run(
        [sys.executable, "-Pm", "swarmlet.cli.main", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert run.returncode == 1
    assert run.stderr.startswith("swarmlet: the daemon cannot run: ")
    assert str(tmp_path / "file" / "state") in run.stderr
    assert run.stderr.count("\n") == 1
