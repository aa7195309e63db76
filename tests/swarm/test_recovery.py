"""Managers that lose their logs, and a cluster that loses most of its managers."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from tests.lab import Host, eventually
from tests.local.test_docs import examples, matches
from tests.raft.test_docs import PAGE
from tests.swarm.cluster import STOPS_SOON, Swarm, swarm

pytestmark = pytest.mark.level5


async def info(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await host.api("GET", "/info")).body)["Swarm"]
    return found


async def raft(host: Host) -> dict[str, Any]:
    answer = await host.api("GET", "/swarmlet/raft")
    assert answer.status == 200, answer.body
    found: dict[str, Any] = json.loads(answer.body)
    return found


async def voters(host: Host, count: int) -> None:
    """Wait until *host* sees so many voters, and a leader."""
    await eventually(
        lambda: raft(host), until=lambda state: state["Voters"] == count and state["Leader"]
    )


async def role_on_disk(host: Host, *, has_log: bool) -> None:
    """Wait until *host* has a log of Raft, or none."""
    await eventually(lambda: (host.state_dir / "raft").exists() is has_log, until=bool)


async def test_the_last_manager_goes_on_alone_and_the_others_come_back() -> None:
    async with swarm(3, 1) as s:
        h1, h2, h3, h4 = s.hosts
        await voters(h1, 3)
        await s.create("web", "--replicas", "2", "--constraint", "node.role==worker", on=h1)
        (before,) = {task["NodeID"] for task in await s.running("web", on=h1)}
        refused = await h1.run("swarmlet", "recover", "--yes", check=False)
        assert refused.code == 1
        assert "has a leader" in refused.stderr

        await h2.kill()
        await h3.kill()
        await eventually(lambda: raft(h1), until=lambda state: not state["Leader"])
        asked = await h1.run("swarmlet", "recover", check=False)  # and no answer is a no
        assert asked.code != 0
        assert "This manager has a log up to entry" in asked.stdout
        assert "What only h2, h3 had is lost" in asked.stdout
        told = dict(examples(PAGE.read_text()))
        done = await h1.run("swarmlet", "recover", "--yes")
        assert matches(told["swarmlet recover --yes"], done.stdout), done.stdout

        await voters(h1, 1)
        nodes = await eventually(s.nodes)
        assert {name: node["Spec"]["Role"] for name, node in nodes.items()} == {
            "h1": "manager",
            "h2": "worker",
            "h3": "worker",
            "h4": "worker",
        }
        # The worker goes on with what it had, and heeds what the new epoch removes.
        assert {task["NodeID"] for task in await s.wait_running("web", 2)} == {before}
        await s.create("more", *STOPS_SOON, "--constraint", "node.hostname==h4")
        await s.wait_running("more", 1)
        await h1.run("swarmlet", "service", "rm", "more", "web")
        await eventually(lambda: h4.container_pids(), until=lambda pids: not pids)

        # One that was a manager comes back: it finds out that it is none, and may be one again.
        await h2.boot()
        await h2.start_daemon()
        await h2.wait_ready()
        await role_on_disk(h2, has_log=False)
        await h1.run("swarmlet", "node", "promote", "h2")
        await h1.run("swarmlet", "node", "promote", "h4")
        await voters(h1, 3)
        await voters(h2, 3)


async def test_a_manager_whose_log_is_gone_says_so_and_begins_anew() -> None:
    """The node goes on: gossip, containers, the API; only its vote is missing."""
    async with swarm(3, 0) as s:
        h1, _, h3 = s.hosts
        await voters(h1, 3)
        await s.create("web", "--constraint", "node.hostname==h3")
        (pid,) = h3.container_pids()
        await h3.stop_daemon()
        shutil.rmtree(h3.state_dir / "raft")
        await h3.start_daemon()
        await h3.wait_ready()
        said = await eventually(lambda: info(h3), until=lambda state: state["Error"])
        assert "is gone" in said["Error"]
        assert "swarmlet node promote" in said["Error"]
        assert (await raft(h3))["Fault"] == said["Error"]
        assert "manager takes no part" in h3.last_words(200)
        assert h3.container_pids() == [pid]
        assert set(await eventually(lambda: _members(h3))) == {"h1", "h2", "h3"}

        await h1.run("swarmlet", "node", "demote", "h3")
        await role_on_disk(h3, has_log=False)
        await eventually(lambda: info(h3), until=lambda state: not state["Error"])
        await _until_done(s, h1, "swarmlet", "node", "promote", "h3")
        await voters(h3, 3)
        assert h3.container_pids() == [pid]


async def _members(host: Host) -> list[str]:
    answer = await host.api("GET", "/swarmlet/members")
    names = [member["Name"] for member in json.loads(answer.body) if member["State"] == "alive"]
    assert len(names) == 3, names
    return names


async def _until_done(s: Swarm, host: Host, *argv: str) -> None:
    async def attempt() -> bool:
        await host.run(*argv)
        return True

    await eventually(attempt, until=bool)
