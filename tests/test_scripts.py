"""The scripts around the product: they parse, and what counts is counted."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from scripts import levels
from scripts.benchmarks.__main__ import NAMES, module_of, question
from scripts.benchmarks.accounts import account, size_of
from scripts.benchmarks.report import Report, save
from tests.lab import Lab, eventually

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


def test_a_report_has_medians_and_the_ratio_of_ours_to_the_peers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report = Report("Docker Swarm")
    for ours, peer in ((1.0, 4.0), (3.0, 5.0), (2.0, 30.0)):
        report.add("swarmlet", "start", "s", ours)
        report.add("Docker Swarm", "start", "s", peer)
    report.add("swarmlet", "puts", "1/s", 5000.0, better="more")
    save(report, tmp_path / "figures.json")
    told = json.loads((tmp_path / "figures.json").read_text())
    assert told["rows"] == [
        {
            "row": "start",
            "unit": "s",
            "better": "less",
            "ours": 2.0,
            "peer": 5.0,
            "peer_name": "Docker Swarm",
            "ratio": 0.4,
            "runs": 3,
        },
        {
            "row": "puts",
            "unit": "1/s",
            "better": "more",
            "ours": 5000.0,
            "peer": None,
            "peer_name": "Docker Swarm",
            "ratio": None,
            "runs": 1,
        },
    ]
    assert told["machine"]["cpus"] >= 1
    assert told["commit"]
    lines = report.table().splitlines()
    assert lines[1].split() == ["start", "s", "2", "5", "0.4", "less", "3"]
    assert "swarmlet" in capsys.readouterr().out


def test_a_row_may_have_a_peer_of_its_own() -> None:
    report = Report("crun")
    for side, name in (("swarmlet", "a / crun"), ("crun", "a / crun"), ("runc", "a / runc")):
        report.add(side, name, "ms", 1.0)
    assert [row["peer_name"] for row in report.as_json()["rows"]] == ["crun", "runc"]


def test_every_benchmark_has_a_question_and_its_peer_a_package() -> None:
    packages = (ROOT / "scripts" / "benchmarks" / "peers.txt").read_text()
    written = [name for name in NAMES if module_of(name)]
    assert {"swarm", "footprint"} <= set(written)
    for name in written:
        assert question(name).endswith("?")
        assert f"{name}: " in packages


@pytest.mark.level4
async def test_what_a_host_costs_is_counted_without_its_containers(tmp_path: Path) -> None:
    async with Lab(1) as lab:
        host = lab.hosts[0]
        assert account(host).processes == 0
        await host.popen("sleep", "600")
        await host.popen("unshare", "--pid", "--fork", "sleep", "600")
        await eventually(host.container_pids)
        counted = account(host)
        assert counted.processes == 2  # sleep and unshare, not what unshare contains
        assert 0 < counted.proportional_bytes <= counted.resident_bytes
        write = f"open('{host.state_dir}/x', 'wb').write(b'x' * 32768)"
        await host.popen(sys.executable, "-c", f"{write}; import time; time.sleep(600)")
        found = await eventually(
            lambda: account(host), until=lambda one: one.written_bytes >= 32768
        )
        assert found.cpu_seconds > 0
    (tmp_path / "file").write_bytes(b"x" * 10_000)
    assert size_of(tmp_path) >= 10_000
