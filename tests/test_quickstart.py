"""The story of scripts/quickstart, as it is told to a user: real daemons, a real power cut."""

from __future__ import annotations

import re

import pytest

from scripts import quickstart
from tests.lab import Host, leftovers

FIGURE = re.compile(r"^(.+?)  +([0-9.]+) s$", re.MULTILINE)


@pytest.mark.level5
async def test_three_hosts_become_a_swarm_that_loses_one_and_heals(
    capfd: pytest.CaptureFixture[str],
) -> None:
    code = await quickstart.run(3, 2, keep=False, installed_in=0.0)
    told = capfd.readouterr()
    assert code == 0, told.out[-4000:] + told.err
    assert "h1# swarmlet init" in told.out
    assert "h2# swarmlet join --token SWL1-" in told.out
    steps = dict(FIGURE.findall(told.out))
    assert "power cut until 3/3 on the others" in steps
    assert "Nothing left" in told.out


@pytest.mark.level5
async def test_a_story_that_goes_wrong_says_why_and_leaves_nothing(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = []

    def broken(self: Host, *extra: str) -> list[str]:
        numbers.append(self.lab)
        return ["sh", "-c", "echo no port is free; exit 7"]

    monkeypatch.setattr(Host, "daemon_argv", broken)
    assert await quickstart.run(3, 2, keep=False, installed_in=0.0) == 1
    told = capfd.readouterr()
    assert re.search(r"(?s)quickstart FAILED: .*exited 7.*no port is free", told.err)
    assert leftovers(numbers[0]) == []
