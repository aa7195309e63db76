"""Raft over the daemon's transport: real streams, two servers in one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from raft.config import Config
from tests.lab import eventually
from tests.raft import node, nodes

HOSTS = ("127.79.0.1", "127.79.0.2")


async def test_a_follower_finds_out_that_its_leader_is_gone_without_a_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It only ever answers, so it has to make the broken stream anew by itself to be refused."""
    for_hours = Config(election_ticks=100_000)
    monkeypatch.setitem(node.CONFIGS, "patient", for_hours)
    nodes.make(tmp_path, HOSTS, preset="patient")
    leader, follower = (node.Node(tmp_path / name) for name in ("n1", "n2"))
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            life = trio.CancelScope()

            async def lead() -> None:
                with life:
                    await leader.run()

            nursery.start_soon(lead)
            nursery.start_soon(follower.run)
            await eventually(lambda: follower.replica.server)
            status = follower.replica.status
            while len(status.voters) < len(HOSTS) or status.leader != leader.replica.server:
                status = await follower.replica.wait_for_change(status)
            life.cancel()
            while status.leader is not None:
                status = await follower.replica.wait_for_change(status)
            nursery.cancel_scope.cancel()
