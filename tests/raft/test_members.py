"""Who takes part: joining, snapshots for those who are late, promotion, removal, refusals."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock

from raft.config import Config
from raft.machine import ChangeRefused, Committed, NotLeader
from raft.membership import Change, ChangeKind, ServerChange
from raft.messages import ServerId
from raft.repair import recover_alone_on
from tests.raft.cluster import CLUSTER, KEY, Member, cluster


def commands(count: int) -> list[bytes]:
    return [b"%d" % n for n in range(count)]


async def test_contexts_travel_with_the_configuration(autojump_clock: MockClock) -> None:
    async with cluster(3) as c:
        await c.settled()
        for member in c.members:
            configuration = member.replica.status.configuration
            contexts = [configuration.context_of(m.server) for m in c.members]
            assert contexts == [b"first", b"server-2", b"server-3"]
        leader = await c.leader()
        await leader.replica.add_learner(c.members[1].server, b"moved", timeout=2)
        await c.settled()
        assert c.members[2].replica.status.configuration.context_of(c.members[1].server) == b"moved"
        assert len(c.members[2].replica.status.voters) == 3


async def test_a_learner_gets_everything_and_has_no_vote(autojump_clock: MockClock) -> None:
    async with cluster(1) as c:
        for command in commands(5):
            await c.propose(command)
        learner = await c.join(promote=False)
        await c.settled()
        assert learner.machine.commands == commands(5)
        await learner.crash()
        await c.propose(b"one voter is enough")


async def test_a_late_server_gets_a_snapshot(autojump_clock: MockClock) -> None:
    async with cluster(1, snapshot_entries=10) as c:
        big = [b"%04d" % n * 500 for n in range(60)]
        for command in big:
            await c.propose(command)
        member = await c.join()
        await c.settled()
        assert member.machine.restored_from is not None
        assert member.machine.commands == big
        await c.propose(b"more")
        await c.settled()
        await member.crash()
        await member.start()
        await c.settled()
        assert member.machine.commands == [*big, b"more"]


async def test_a_snapshot_takes_no_more_of_the_link_than_its_share(
    autojump_clock: MockClock,
) -> None:
    """So slow here that the core asks for it again and again: it is sent once all the same."""
    config = Config(snapshot_bytes_per_second=5_000, snapshot_ticks_max=20)
    async with cluster(1, snapshot_entries=10, config=config) as c:
        rng = random.Random(1)
        big = [rng.randbytes(5_000).hex().encode() for _ in range(40)]
        for command in big:
            await c.propose(command)
        started = trio.current_time()
        await c.join(promote=False)
        await c.settled()
        assert 20 < trio.current_time() - started < 80
        assert c.wires.snapshots == 1


async def test_a_snapshot_that_does_not_arrive_is_sent_again(autojump_clock: MockClock) -> None:
    async with cluster(1, snapshot_entries=10) as c:
        for command in commands(40):
            await c.propose(command)
        c.wires.snapshots_fail = 3
        member = await c.join()
        await c.settled()
        assert member.machine.commands == commands(40)


async def test_a_follower_that_was_away_for_long_is_brought_back_by_a_snapshot(
    autojump_clock: MockClock,
) -> None:
    async with cluster(3, snapshot_entries=20) as c:
        leader = await c.leader()
        away = next(m for m in c.members if m is not leader)
        await away.crash()
        big = [b"%04d" % n * 1000 for n in range(6_000 // 60)]
        for command in big:
            await c.propose(command)
        await away.start()
        await c.settled()
        assert away.machine.commands == big


async def test_the_disk_does_not_grow_with_the_number_of_commands(
    autojump_clock: MockClock,
) -> None:
    async with cluster(1, snapshot_entries=50) as c:
        member = c.members[0]
        for number in range(400):
            await c.propose(bytes([number % 250]) * 1000)
            member.machine.commands = member.machine.commands[-5:]
        await trio.sleep(1)
        assert sum(member.disk.size(name) for name in member.disk.names()) < 600_000


async def test_removed_servers_are_not_needed_and_disturb_nobody(autojump_clock: MockClock) -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        gone = next(m for m in c.members if m is not leader)
        configuration = await leader.replica.remove(gone.server, timeout=2)
        assert gone.server not in configuration
        term = leader.replica.status.term
        await trio.sleep(10)
        assert leader.leads
        assert leader.replica.status.term == term
        await c.propose(b"x")


async def test_a_removal_that_breaks_the_majority_is_refused_with_the_reason(
    autojump_clock: MockClock,
) -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        follower, silent = (m for m in c.members if m is not leader)
        await silent.crash()
        await trio.sleep(3)
        with pytest.raises(ChangeRefused, match=f"silent: {silent.server}"):
            await leader.replica.remove(follower.server, timeout=2)
        await leader.replica.remove(silent.server, timeout=2)


async def test_a_leader_that_is_to_remove_itself_hands_over_first(
    autojump_clock: MockClock,
) -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        with pytest.raises(NotLeader):
            await leader.replica.remove(leader.server, timeout=2)
        successor = await c.leader()
        configuration = await successor.replica.remove(leader.server, timeout=2)
        assert leader.server not in configuration


async def test_the_last_voter_stays(autojump_clock: MockClock) -> None:
    async with cluster(1) as c:
        member = c.members[0]
        with pytest.raises(ChangeRefused, match="no voters would remain"):
            await member.replica.remove(member.server, timeout=2)


async def test_a_removed_leader_stays_until_another_leads(autojump_clock: MockClock) -> None:
    """Even if it is removed without a transfer: lame, but it hands its longer log on."""
    async with cluster(2) as c:
        leader = await c.leader()
        other = next(m for m in c.members if m is not leader)
        change = Change((ServerChange(ChangeKind.REMOVE, leader.server),))
        await leader.replica.change_membership(change, timeout=2)
        assert await c.leader(among=[other]) is other
        assert isinstance(await other.replica.propose(b"x", timeout=2), Committed)


async def test_several_servers_are_replaced_at_once_by_joint_consensus(
    autojump_clock: MockClock,
) -> None:
    async with cluster(3) as c:
        for command in commands(5):
            await c.propose(command)
        spares = [await c.join(promote=False) for _ in range(2)]
        leader = await c.leader()
        old = [m for m in c.members[:3] if m is not leader]
        change = Change(
            (
                *(ServerChange(ChangeKind.REMOVE, m.server) for m in old),
                *(ServerChange(ChangeKind.ADD_VOTER, m.server) for m in spares),
            )
        )
        configuration = await leader.replica.change_membership(change, timeout=5)
        assert configuration.voters == tuple(sorted([leader.server, *(m.server for m in spares)]))
        assert not configuration.joint
        for member in old:
            await member.stop()
        await c.propose(b"with the new ones")


async def test_only_learners_are_promoted_and_only_by_the_leader(autojump_clock: MockClock) -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        with pytest.raises(ChangeRefused, match="add it as one first"):
            await leader.replica.promote(ServerId(5), timeout=1)
        learner = await c.join(promote=False)
        follower = next(m for m in c.members[:3] if not m.leads)
        await c.settled()
        with pytest.raises(NotLeader):
            await follower.replica.promote(learner.server, timeout=1)


async def test_a_learner_that_cannot_be_reached_is_not_promoted(autojump_clock: MockClock) -> None:
    async with cluster(1) as c:
        leader = await c.leader()
        await leader.replica.add_learner(ServerId(12345), b"nowhere", timeout=1)
        with pytest.raises(ChangeRefused, match="not caught up"):
            await leader.replica.promote(ServerId(12345), timeout=5)


async def test_two_changes_at_once_are_not_made(autojump_clock: MockClock) -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        refused: list[str] = []

        async def remove(member: Member) -> None:
            try:
                await leader.replica.remove(member.server, timeout=5)
            except ChangeRefused as refusal:
                refused.append(str(refusal))

        async with trio.open_nursery() as nursery:
            for member in c.members:
                if member is not leader:
                    nursery.start_soon(remove, member)
        assert len(refused) == 1
        assert "another change" in refused[0]


async def test_lease_reads_work_where_they_are_asked_for(autojump_clock: MockClock) -> None:
    async with cluster(3, config=Config(lease_reads=True)) as c:
        committed = await c.propose(b"x")
        before = c.wires.messages.get("Heartbeat", 0)
        leader = await c.leader()
        assert await leader.replica.read_index(timeout=1) >= committed.index
        assert c.wires.messages.get("Heartbeat", 0) - before <= 2


async def test_a_survivor_of_a_lost_majority_goes_on_alone(autojump_clock: MockClock) -> None:
    """It is another server, so that the old ones, when they come back, cannot disturb it."""
    async with cluster(3, snapshot_entries=20) as c:
        for command in commands(50):
            await c.propose(command)
        await c.settled()
        for member in c.members:
            await member.stop()
        survivor, *lost = c.members
        old = survivor.server
        server = recover_alone_on(
            survivor.disk, KEY, CLUSTER, context=b"alone", segment_bytes=64 << 10
        )
        await survivor.start()
        assert survivor.server == server != old
        await c.settled([survivor])
        configuration = survivor.replica.status.configuration
        assert configuration.voters == (server,)
        assert configuration.context_of(server) == b"alone"
        assert survivor.machine.commands == commands(50)
        for member in lost:
            await member.start()
        term = survivor.replica.status.term
        await trio.sleep(20)
        assert survivor.leads
        assert survivor.replica.status.term == term
        outcome = await survivor.replica.propose(b"on", timeout=2)
        assert isinstance(outcome, Committed)
        for member in lost:
            await member.stop()
        fresh = await c.join()
        await c.settled([survivor, fresh])
        assert fresh.machine.commands == [*commands(50), b"on"]


async def test_a_survivor_without_a_snapshot_goes_on_alone(autojump_clock: MockClock) -> None:
    async with cluster(3) as c:
        for command in commands(5):
            await c.propose(command)
        await c.settled()
        for member in c.members:
            await member.stop()
        survivor = c.members[1]
        recover_alone_on(survivor.disk, KEY, CLUSTER, segment_bytes=64 << 10)
        await survivor.start()
        await c.settled([survivor])
        assert survivor.machine.commands == commands(5)
        assert len(survivor.replica.status.voters) == 1
