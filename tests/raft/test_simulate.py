"""scripts/simulate: it counts what it plays, and names the run that breaks a promise."""

from __future__ import annotations

import pytest

from scripts import simulate

pytestmark = pytest.mark.level3


def test_each_world_is_played_from_each_seed(capsys: pytest.CaptureFixture[str]) -> None:
    worlds = ["raft:stable", "swim:loss", "manager"]
    assert simulate.main(["--worlds", *worlds, "--seeds", "1", "--jobs", "1"]) == 0
    said = capsys.readouterr().out
    assert "3 runs" in said
    assert "0 failed" in said


def test_a_run_that_fails_is_told_with_how_to_replay_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(seed: int) -> None:
        assert seed != 8, "a promise"

    monkeypatch.setitem(simulate.WORLDS, "raft:broken", breaks)
    argv = ["--worlds", "raft:broken", "--first", "7", "--seeds", "3", "--jobs", "1"]
    assert simulate.main(argv) == 1
    said = capsys.readouterr().out
    assert "a promise" in said
    assert "scripts/simulate --worlds raft:broken --first 8 --seeds 1" in said


def test_a_world_that_is_not_there_is_refused() -> None:
    with pytest.raises(SystemExit, match="raft:chaos"):
        simulate.main(["--worlds", "weather"])
