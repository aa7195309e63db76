"""Gossip of real daemons: its settings and keys change while it runs, and what is shown of it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from tests.lab import Host, eventually
from tests.lab.host import Running
from tests.swarm.cluster import Swarm, swarm

pytestmark = pytest.mark.level5


async def test_settings_and_keys_change_while_it_runs_and_everybody_hears_of_it() -> None:
    async with swarm(1, 2, image=False) as s:
        await _wait_alive(s, 3)
        h1, h2, h3 = s.hosts
        await h1.run("swarmlet", "update", "--gossip-preset", "fast", "--gossip-set", "helpers=2")
        for host in s.hosts:
            await _wait_logged(host, "gossip configured preset=fast")
        refused = await h1.run("swarmlet", "update", "--gossip-set", "helper=2", check=False)
        assert (refused.code, refused.stderr.strip()) == (
            1,
            "swarmlet: gossip: no such knob: helper",
        )

        await h1.run("swarmlet", "update", "--rotate-gossip-key")
        await _wait_logged(h1, "gossip key switched epoch=2")
        async with _monitored(h3) as (news, _):
            await _heard(h1, news)
        await _wait_alive(s, 3)

        shown = (await h1.run("swarmlet", "node", "ls", "--rtt")).stdout.splitlines()
        assert shown[0].endswith("RTT")
        assert sum(line.endswith(" ms") for line in shown) == 2, "of all but itself"
        async with _monitored(h2) as (news, monitor):
            await _heard(h1, news)
            await h2.run("swarmlet", "leave")
            with trio.fail_after(30):
                assert await monitor.wait() == 0, "no gossip, no news"
        refused = await h2.run("swarmlet", "monitor", check=False)
        assert "not part of a swarm" in refused.stderr
        await _wait_state(h3, "h2", "left")
        # It knows the keys: two steps after another it knows them no more.
        await h1.run("swarmlet", "node", "rm", "--force", "h2")
        await _wait_logged(h1, "gossip key retired epoch=3", within=60)
        await _wait_alive(s, 2, hosts=[h1, h3])
        counters = json.loads(
            (await h3.run("swarmlet", "members", "--counters", "--format", "json")).stdout
        )
        assert counters["Conflicts"] == []
        assert counters["Rejected"].get("unknown epoch", 0) == 0, "a gap while keys changed"


async def _wait_alive(s: Swarm, count: int, *, hosts: list[Host] | None = None) -> None:
    for host in hosts or s.hosts:
        await eventually(
            lambda host=host: _members(host),  # type: ignore[misc]
            until=lambda found: sum(m["State"] == "alive" for m in found) == count,
        )


async def _wait_state(host: Host, name: str, state: str) -> None:
    await eventually(
        lambda: _members(host),
        until=lambda found: {m["Name"]: m["State"] for m in found}.get(name) == state,
    )


async def _members(host: Host) -> list[dict[str, Any]]:
    answer = await host.api("GET", "/swarmlet/members")
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = json.loads(answer.body)
    return found


async def _wait_logged(host: Host, text: str, *, within: float = 30.0) -> None:
    await eventually(
        lambda: host.log.read_text(errors="replace"), until=lambda log: text in log, within=within
    )


async def _heard(speaker: Host, news: list[str]) -> None:
    """Broadcast until one that listens has heard it: it may not have begun yet."""
    await eventually(
        lambda: speaker.run("swarmlet", "broadcast", "deploy", "release 7"),
        until=lambda _: any("event deploy 'release 7' clock=" in line for line in news),
    )


@asynccontextmanager
async def _monitored(host: Host) -> AsyncIterator[tuple[list[str], Running]]:
    """What `swarmlet monitor` on *host* has printed so far, and its process."""
    process = await host.popen("swarmlet", "monitor", stdout=subprocess.PIPE)
    lines: list[str] = []

    async def read() -> None:
        assert process.outer.stdout is not None
        rest = ""
        async for piece in process.outer.stdout:
            *whole, rest = (rest + piece.decode()).split("\n")
            lines.extend(whole)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        try:
            yield lines, process
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await process.kill()
