"""Running servers: proposals, reads, leadership, and disks that fail."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from raft.machine import Committed, Dropped, Outcome, ReadTimedOut, TransferFailed, Unknown
from raft.messages import Configuration, InstallSnapshot, Role, SnapshotMeta
from raft.proposals import COMMAND_BYTES_MAX, WAITING_MAX
from tests.raft.cluster import Cluster, Member, cluster


def numbers(count: int) -> list[bytes]:
    return [b"%d" % n for n in range(count)]


async def others(c: Cluster, member: Member) -> list[Member]:
    return [m for m in c.members if m is not member]


# Proposals.
async def test_a_lone_server_leads_and_commits(autojump_clock: MockClock) -> None:
    async with cluster(1) as c:
        outcome = await c.members[0].replica.propose(b"one", timeout=1)
        assert isinstance(outcome, Committed)
        assert (outcome.position, outcome.result) == (0, 1)
        assert c.members[0].machine.commands == [b"one"]


async def test_a_lone_server_leads_at_once_after_a_restart(autojump_clock: MockClock) -> None:
    """There is nobody whose vote or silence it would have to wait for."""
    async with cluster(1) as c:
        await c.propose(b"x")
        await c.members[0].stop()
        start = trio.current_time()
        await c.members[0].start()
        await c.propose(b"y")
        assert trio.current_time() - start < 0.2
        assert c.members[0].machine.commands == [b"x", b"y"]


async def test_three_servers_apply_the_same_commands(autojump_clock: MockClock) -> None:
    async with cluster(3) as c:
        for command in numbers(10):
            await c.propose(command)
        await c.settled()
        assert [m.machine.commands for m in c.members] == [numbers(10)] * 3


async def test_a_commit_index_goes_along_with_the_next_entry(autojump_clock: MockClock) -> None:
    """On its own it would double the messages; when nothing comes, it is told soon all the same."""
    async with cluster(3) as c:
        sent = c.wires.messages
        before = sent["AppendEntries"]
        for command in numbers(50):
            await c.propose(command)
        assert sent["AppendEntries"] - before <= 2 * 51
        await c.settled()
        assert [m.machine.commands for m in c.members] == [numbers(50)] * 3


async def test_a_follower_says_who_leads(autojump_clock: MockClock) -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        follower = (await others(c, leader))[0]
        outcome = await follower.replica.propose(b"x", timeout=1)
        assert outcome == Dropped("this server does not lead", leader.server)


async def test_commands_of_one_turn_share_an_entry_and_get_their_own_results(
    autojump_clock: MockClock,
) -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        first = leader.replica.status.last_index
        outcomes: dict[bytes, Outcome] = {}

        async def propose(command: bytes) -> None:
            outcomes[command] = await leader.replica.propose(command, timeout=1)

        async with trio.open_nursery() as nursery:
            for command in numbers(300):
                nursery.start_soon(propose, command)
        assert leader.replica.status.last_index - first <= 3
        commands = leader.machine.commands
        for command, outcome in outcomes.items():
            assert isinstance(outcome, Committed)
            assert commands[int(str(outcome.result)) - 1] == command


async def test_too_large_and_too_many_commands_are_dropped_with_the_reason(
    autojump_clock: MockClock,
) -> None:
    async with cluster(1) as c:
        replica = c.members[0].replica
        outcome = await replica.propose(bytes(COMMAND_BYTES_MAX + 1), timeout=1)
        assert isinstance(outcome, Dropped)
        assert "larger" in outcome.reason
        assert isinstance(await replica.propose(bytes(COMMAND_BYTES_MAX), timeout=1), Committed)
        reasons: list[str] = []

        async def propose() -> None:
            outcome = await replica.propose(b"x", timeout=1)
            if isinstance(outcome, Dropped):
                reasons.append(outcome.reason)

        async with trio.open_nursery() as nursery:
            for _ in range(WAITING_MAX + 5):
                nursery.start_soon(propose)
        assert reasons == ["too many commands are waiting"] * 5


async def test_without_a_majority_the_answer_is_unknown_and_later_true(
    autojump_clock: MockClock,
) -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        c.wires.isolate(leader.server)
        outcome = await leader.replica.propose(b"lonely", timeout=0.5)
        assert outcome == Unknown("no majority has confirmed it within 0.5 s")
        c.wires.heal()
        await c.propose(b"after")
        await c.settled()
        commands = {tuple(m.machine.commands) for m in c.members}
        assert commands in ({(b"after",)}, {(b"lonely", b"after")})


async def test_a_proposal_that_another_leader_overwrote_was_dropped(
    autojump_clock: MockClock,
) -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        c.wires.isolate(leader.server)
        outcome: list[Outcome] = []

        async def propose() -> None:
            outcome.append(await leader.replica.propose(b"lost", timeout=60))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(propose)
            successor = await c.leader(among=await others(c, leader))
            assert isinstance(await successor.replica.propose(b"won", timeout=2), Committed)
            c.wires.heal()
        assert outcome == [Dropped("another leader's entry took its place")]
        await c.settled()
        assert [m.machine.commands for m in c.members] == [[b"won"]] * 3


async def test_stopping_answers_everybody(autojump_clock: MockClock) -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        c.wires.isolate(leader.server)
        outcome: list[Outcome] = []

        async def propose() -> None:
            outcome.append(await leader.replica.propose(b"x", timeout=60))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(propose)
            await trio.sleep(0.2)
            await leader.stop()
        assert outcome == [Unknown("the server stops")]


# Crashes.
async def test_another_leads_when_the_leader_is_gone_and_nothing_is_lost(
    autojump_clock: MockClock,
) -> None:
    async with cluster(3) as c:
        for command in numbers(5):
            await c.propose(command)
        old = await c.leader()
        await old.crash()
        for command in numbers(10)[5:]:
            await c.propose(command)
        await old.start()
        await c.settled()
        assert [m.machine.commands for m in c.members] == [numbers(10)] * 3


@pytest.mark.parametrize("seed", range(8))
async def test_a_power_cut_of_all_servers_loses_nothing_that_was_answered(
    seed: int, autojump_clock: MockClock
) -> None:
    async with cluster(3, seed=seed, snapshot_entries=15) as c:
        acknowledged = []
        for command in numbers(40):
            await c.propose(command)
            acknowledged.append(command)
        for member in c.members:
            await member.crash()
        for member in c.members:
            await member.start()
        await c.propose(b"again")
        await c.settled()
        assert [m.machine.commands for m in c.members] == [[*acknowledged, b"again"]] * 3


async def test_a_leader_without_a_majority_steps_down(autojump_clock: MockClock) -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        c.wires.isolate(leader.server)
        status = leader.replica.status
        while status.leads:
            status = await leader.replica.wait_for_change(status)
        assert status.leader is None
        assert status.role is Role.FOLLOWER


async def test_a_refused_connection_makes_the_next_leader_soon(autojump_clock: MockClock) -> None:
    """Well within the shortest election timeout, a second: the leader's port refuses."""
    async with cluster(3) as c:
        leader = await c.leader()
        rest = await others(c, leader)
        await leader.crash()
        start = trio.current_time()
        for member in rest:
            member.replica.connection_refused(leader.server)
        await c.leader(among=rest)
        assert trio.current_time() - start < 0.6


async def test_a_refused_connection_to_a_living_leader_changes_nothing(
    autojump_clock: MockClock,
) -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        term = leader.replica.status.term
        (await others(c, leader))[0].replica.connection_refused(leader.server)
        await trio.sleep(3)
        assert leader.leads
        assert leader.replica.status.term == term


# Reads.
async def test_a_read_at_any_server_sees_what_was_answered_before(
    autojump_clock: MockClock,
) -> None:
    async with cluster(3) as c:
        for number, command in enumerate(numbers(5), start=1):
            committed = await c.propose(command)
            for member in c.members:
                assert await member.replica.read_index(timeout=1) >= committed.index
                assert len(member.machine.commands) >= number


async def test_reads_of_one_turn_share_a_round(autojump_clock: MockClock) -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        await leader.replica.read_index(timeout=1)
        before = c.wires.messages["Heartbeat"]
        async with trio.open_nursery() as nursery:
            for _ in range(500):
                nursery.start_soon(lambda: leader.replica.read_index(timeout=1))
        assert c.wires.messages["Heartbeat"] - before <= 4


async def test_a_cut_off_leader_answers_no_reads(autojump_clock: MockClock) -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        c.wires.isolate(leader.server)
        with pytest.raises(ReadTimedOut):
            await leader.replica.read_index(timeout=0.5)


async def test_a_read_survives_the_loss_of_its_leader(autojump_clock: MockClock) -> None:
    async with cluster(3) as c:
        committed = await c.propose(b"x")
        leader = await c.leader()
        follower = (await others(c, leader))[0]
        c.wires.isolate(leader.server)
        assert await follower.replica.read_index(timeout=20) >= committed.index


# Leadership.
async def test_leadership_is_handed_over_without_an_election_timeout(
    autojump_clock: MockClock,
) -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        start = trio.current_time()
        await leader.replica.transfer_leadership()
        successor = await c.leader()
        assert successor is not leader
        assert trio.current_time() - start < 0.5
        await c.propose(b"goes on")


async def test_a_transfer_to_a_server_that_is_away_fails_and_leading_goes_on(
    autojump_clock: MockClock,
) -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        away = (await others(c, leader))[0]
        c.wires.isolate(away.server)
        with pytest.raises(TransferFailed):
            await leader.replica.transfer_leadership(away.server)
        assert isinstance(await leader.replica.propose(b"x", timeout=1), Committed)


async def test_proposals_wait_while_leadership_moves(autojump_clock: MockClock) -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        away = (await others(c, leader))[0]
        c.wires.isolate(away.server)
        outcome: list[Outcome] = []

        async def propose() -> None:
            await trio.sleep(0.1)
            outcome.append(await leader.replica.propose(b"patient", timeout=5))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(propose)
            with pytest.raises(TransferFailed):
                await leader.replica.transfer_leadership(away.server)
        assert isinstance(outcome[0], Committed)


# Disks.
async def test_an_entry_costs_one_sync_and_an_idle_cluster_writes_nothing(
    autojump_clock: MockClock,
) -> None:
    async with cluster(3) as c:
        await c.propose(b"warm up")
        await trio.sleep(1)
        syncs = [m.disk.syncs for m in c.members]
        for command in numbers(20):
            await c.propose(command)
        await trio.sleep(1)
        assert [m.disk.syncs - s for m, s in zip(c.members, syncs, strict=True)] == [20] * 3
        written = [m.disk.bytes_written for m in c.members]
        await trio.sleep(60)
        assert [m.disk.bytes_written for m in c.members] == written


async def test_a_full_disk_stops_answers_until_there_is_room(autojump_clock: MockClock) -> None:
    async with cluster(1) as c:
        member = c.members[0]
        member.disk.full = True
        replica = member.replica
        size = 8_000
        while not replica.status.disk_full:
            outcome = await replica.propose(bytes(size), timeout=3)
        assert isinstance(outcome, Unknown)
        assert await replica.propose(b"x", timeout=1) == Dropped("the disk of the leader is full")
        member.disk.full = False
        status = replica.status
        while status.disk_full:
            status = await replica.wait_for_change(status)
        assert isinstance(await replica.propose(b"y", timeout=1), Committed)


async def test_a_leader_with_a_full_disk_hands_over(autojump_clock: MockClock) -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        leader.disk.full = True
        while leader.leads:
            await leader.replica.propose(bytes(8_000), timeout=1)
            await trio.sleep(0.1)
        assert await c.leader() is not leader
        await c.propose(b"goes on")


async def test_a_failed_sync_ends_the_server_and_the_others_go_on(
    autojump_clock: MockClock,
) -> None:
    async with cluster(3) as c:
        leader = await c.leader()
        leader.disk.broken = True
        outcome = await leader.replica.propose(b"x", timeout=1)
        assert isinstance(outcome, Unknown)
        await leader.ended()
        assert isinstance(leader.failure, OSError)
        await c.propose(b"y")


async def test_a_snapshot_without_its_state_is_not_taken_in(autojump_clock: MockClock) -> None:
    async with cluster(1) as c:
        replica = c.members[0].replica
        await trio.sleep(1)
        before = replica.status
        meta = SnapshotMeta(1_000, 9, Configuration(voters=(replica.server,)))
        replica.deliver(replica.server, InstallSnapshot(9, meta))
        await trio.sleep(0.5)
        assert replica.status == before


async def test_a_server_whose_disk_has_rotted_is_made_whole_by_the_others(
    autojump_clock: MockClock,
) -> None:
    async with cluster(3) as c:
        for command in numbers(20):
            await c.propose(command)
        await c.settled()
        leader = await c.leader()
        victim = (await others(c, leader))[0]
        await victim.stop()
        (name,) = (n for n in victim.disk.names() if n.startswith("wal-"))
        victim.disk.files[name].current[900] ^= 1
        await victim.start()
        assert victim.replica.status.recovering
        status = victim.replica.status
        while status.recovering:
            status = await victim.replica.wait_for_change(status)
        assert victim.machine.commands == numbers(20)
        # It counts again: with it there is a majority.
        third = next(m for m in c.members if m not in (leader, victim))
        await third.stop()
        await c.propose(b"goes on")


async def test_a_server_that_recovers_is_no_part_of_a_majority(
    autojump_clock: MockClock,
) -> None:
    async with cluster(3) as c:
        for command in numbers(20):
            await c.propose(command)
        await c.settled()
        leader = await c.leader()
        victim, third = await others(c, leader)
        await third.stop()
        await victim.stop()
        (name,) = (n for n in victim.disk.names() if n.startswith("wal-"))
        victim.disk.files[name].current[900] ^= 1
        await victim.start()
        await trio.sleep(30)
        assert not any(m.leads for m in c.running())
        assert victim.replica.status.recovering
        await third.start()
        await c.propose(b"now there is one")
        status = victim.replica.status
        while status.recovering:
            status = await victim.replica.wait_for_change(status)
