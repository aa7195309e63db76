"""Time: servers sleep over ticks that do nothing, and a pause is nobody's fault."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from raft.config import LAN, Config
from raft.driver import ticks_of_pause
from raft.messages import Configuration, Heartbeat, Role
from tests.raft.cluster import cluster
from tests.raft.test_core import A, B, core, drain

CONFIG = Config(election_ticks=10, heartbeat_ticks=3)


# The core says which tick acts.
@pytest.mark.parametrize("term", range(1, 6))
def test_a_follower_acts_with_the_tick_of_its_election_timeout(term: int) -> None:
    raft, storage = core(config=CONFIG)
    for _ in range(4):
        raft.tick()
    raft.step(B, Heartbeat(term, 1, 0))  # each term has another timeout
    drain(raft, storage)
    quiet = raft.ticks_to_act - 1
    assert 10 <= quiet + 1 < 20
    for _ in range(quiet):
        assert raft.ticks_to_act > 1
        raft.tick()
        assert not raft.has_ready()
    raft.tick()
    assert raft.role is Role.PRE_CANDIDATE


def test_a_leader_acts_with_the_tick_of_its_heartbeat() -> None:
    raft, storage = core(Configuration(voters=(A,)), config=CONFIG)
    raft.campaign()
    drain(raft, storage)
    assert raft.role is Role.LEADER
    seen = []
    for _ in range(30):
        seen.append(raft.ticks_to_act)
        raft.tick()
    # Three ticks from heartbeat to heartbeat, and the check of the quorum after ten.
    assert seen[:13] == [3, 2, 1, 3, 2, 1, 3, 2, 1, 1, 2, 1, 3]
    assert min(seen) == 1


def test_a_learner_never_acts_and_sleeps_well() -> None:
    raft, _ = core(Configuration(voters=(B,), learners=(A,)), config=CONFIG)
    for _ in range(50):
        assert raft.ticks_to_act == CONFIG.election_ticks
        raft.tick()
        assert not raft.has_ready()


@pytest.mark.parametrize(("planned", "counted"), [(1, 1), (2, 1), (3, 1), (12, 6), (19, 9)])
def test_a_pause_counts_half_of_what_was_planned(planned: int, counted: int) -> None:
    assert ticks_of_pause(planned) == counted


# The shell sleeps until then.
class Turns(trio.abc.Instrument):
    """Counts how often the jobs that own a core ran."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task.name.endswith("Driver._drive")


async def test_an_idle_cluster_wakes_for_heartbeats_only(autojump_clock: MockClock) -> None:
    async with cluster(3) as c:
        await trio.sleep(1)  # what the last change still has to do
        seconds, turns = 60, Turns()
        trio.lowlevel.add_instrument(turns)
        await trio.sleep(seconds)
        trio.lowlevel.remove_instrument(turns)
        heartbeats = seconds / (LAN.tick * LAN.heartbeat_ticks)
        # A round: the leader's tick, two answers, a turn at each follower. The leader's check of
        # the quorum and what is left of the followers' timers come once a second.
        assert turns.count <= 5 * heartbeats + 4 * seconds
        assert len({m.replica.status.leader for m in c.members}) == 1


async def test_a_machine_that_was_asleep_keeps_its_leader(autojump_clock: MockClock) -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        term = leader.replica.status.term
        for _ in range(20):
            autojump_clock.jump(3600)
            await trio.sleep(2.5)
        assert leader.leads
        assert leader.replica.status.term == term
