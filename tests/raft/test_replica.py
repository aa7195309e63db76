"""Running servers: proposals, reads, leadership, membership, snapshots, disks that fail."""

from __future__ import annotations

import trio
import trio.testing

from raft.machine import Committed, Dropped
from tests.raft.cluster import cluster


async def test_a_lone_server_leads_and_commits(autojump_clock: trio.testing.MockClock) -> None:
    async with cluster(1) as c:
        outcome = await c.members[0].replica.propose(b"one", timeout=1)
        assert outcome == Committed(outcome.index, 0, 2, 1)  # type: ignore[union-attr]
        assert c.members[0].machine.commands == [b"one"]


async def test_three_servers_apply_the_same_commands(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with cluster(3) as c:
        for number in range(10):
            await c.propose(b"%d" % number)
        await c.settled()
        assert [m.machine.commands for m in c.members] == [[b"%d" % n for n in range(10)]] * 3


async def test_a_follower_says_who_leads(autojump_clock: trio.testing.MockClock) -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        follower = next(m for m in c.members if m is not leader)
        outcome = await follower.replica.propose(b"x", timeout=1)
        assert outcome == Dropped("this server does not lead", leader.server)
