"""The shell: real datagrams between members, virtual time."""

from __future__ import annotations

import socket as stdlib_socket
from contextlib import suppress

import trio
import trio.testing

from swarmlet.swim.config import TICK
from swarmlet.swim.events import Reason
from swarmlet.swim.messages import Ack, Alive, MemberId, Ping, State, short_id
from swarmlet.swim.sealing import Opener, Sealer
from swarmlet.swim.views import Reachability
from tests.swim.group import Agent, Group, PlainCodec, eventually, group, keyring


async def start_three(members: Group) -> tuple[Agent, Agent, Agent]:
    a, b, c = [await members.start(name) for name in "abc"]
    b.gossip.join([a.address])
    c.gossip.join([a.address])
    await eventually(lambda: all(len(x.gossip.members) == 3 for x in (a, b, c)), within=5)
    return a, b, c


async def test_members_find_each_other(autojump_clock: trio.testing.MockClock) -> None:
    async with group() as members:
        a = await members.start("a", facts=b"one")
        b = await members.start("b", facts=b"two")
        b.gossip.join([a.address])
        await eventually(lambda: b.state_of(a) is a.state_of(b) is State.ALIVE, within=5)
        seen = a.gossip.members[b.gossip.member]
        assert (seen.address, seen.facts, seen.incarnation) == (b.address, b"two", 1 << 32)
        await trio.sleep(3)
        assert a.gossip.members[b.gossip.member].rtt is not None


async def test_since_is_the_time_in_a_state(autojump_clock: trio.testing.MockClock) -> None:
    async with group() as members:
        a, b, c = await start_three(members)
        await trio.sleep(10)
        b.gossip.set_facts(b"other facts, same state")
        await members.kill(c)
        await eventually(lambda: a.state_of(c) is State.DEAD, within=5)
        await trio.sleep(2)
        views = a.gossip.members
        assert views[b.gossip.member].facts
        assert 10 < views[b.gossip.member].since < 25
        assert 2 <= views[c.gossip.member].since < 3


async def test_facts_reach_all(autojump_clock: trio.testing.MockClock) -> None:
    async with group() as members:
        a, b, c = await start_three(members)
        c.gossip.set_facts(b"new")
        await eventually(
            lambda: all(x.gossip.members[c.gossip.member].facts == b"new" for x in (a, b)),
            within=3,
        )


async def test_killed_member_is_refused_and_soon_dead(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with group() as members:
        a, b, c = await start_three(members)
        with a.gossip.subscribe() as transitions:
            await members.kill(c)
            await eventually(
                lambda: a.state_of(c) is b.state_of(c) is State.DEAD,
                within=4,
            )
            suspected = await transitions.receive()
            buried = await transitions.receive()
        assert (suspected.before, suspected.after) == (State.ALIVE, State.SUSPECT)
        assert (buried.before, buried.after) == (State.SUSPECT, State.DEAD)
        assert Reason.REFUSED in (suspected.reason, buried.reason)
        assert a.gossip.statistics().refusals > 0


async def test_silent_member_is_dead_later(autojump_clock: trio.testing.MockClock) -> None:
    async with group() as members:
        a, b, c = await start_three(members)
        members.silence(c)
        await eventually(lambda: a.state_of(c) is b.state_of(c) is State.DEAD, within=40)
        assert a.state_of(b) is b.state_of(a) is State.ALIVE


async def test_leave_is_told_from_death(autojump_clock: trio.testing.MockClock) -> None:
    async with group() as members:
        a, b, c = await start_three(members)
        await c.gossip.leave()
        await eventually(lambda: a.state_of(c) is b.state_of(c) is State.LEFT, within=2)


async def test_leave_before_run_returns() -> None:
    async with group() as members:
        a = await members.start("a")
        a.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        await a.gossip.leave()


async def test_restarted_member_is_back_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with group() as members:
        a, b, c = await start_three(members)
        await members.kill(c)
        await eventually(lambda: a.state_of(c) is State.DEAD, within=5)
        again = await members.start("c", boot=2)
        again.gossip.join([b.address])
        await eventually(lambda: a.state_of(again) is State.ALIVE, within=5)
        assert a.gossip.members[again.gossip.member].address == again.address


async def test_known_members_need_no_seed(autojump_clock: trio.testing.MockClock) -> None:
    async with group() as members:
        a, b = await members.start("a"), await members.start("b")
        a.gossip.set_known({b.gossip.member: b.address, a.gossip.member: a.address})
        await eventually(lambda: b.state_of(a) is a.state_of(b) is State.ALIVE, within=15)


async def test_join_by_stream_alone(autojump_clock: trio.testing.MockClock) -> None:
    """Datagrams to the seed's address go nowhere, streams get through."""
    async with group() as members:
        a, b = await members.start("a"), await members.start("b")
        nowhere = ("127.0.0.1", 9)
        members.agents[nowhere] = a
        b.gossip.join([nowhere])
        await eventually(lambda: b.state_of(a) is a.state_of(b) is State.ALIVE, within=5)


async def test_confirm(autojump_clock: trio.testing.MockClock) -> None:
    async with group() as members:
        a, b, c = await start_three(members)
        names = {x: x.gossip.member for x in (a, b, c)}
        assert await a.gossip.confirm(names[b], b.address, timeout=1) is Reachability.ALIVE
        # Somebody else has the address now.
        assert await a.gossip.confirm(names[c], b.address, timeout=1) is Reachability.SILENT
        members.silence(b)
        assert await a.gossip.confirm(names[b], b.address, timeout=1) is Reachability.SILENT
        await members.kill(c)
        with trio.fail_after(0.5):
            answer = await a.gossip.confirm(names[c], c.address, timeout=1)
        assert answer is Reachability.REFUSED


async def test_doubt_finds_a_dead_member_early(autojump_clock: trio.testing.MockClock) -> None:
    async with group() as members:
        a, b, c = await start_three(members)
        await members.kill(c)
        a.gossip.doubt(c.gossip.member)
        took = await eventually(lambda: b.state_of(c) is State.DEAD, within=5)
        assert took < 2, "no round of probes was waited for"


async def test_rotation_leaves_no_gap(autojump_clock: trio.testing.MockClock) -> None:
    async with group() as members:
        agents = await start_three(members)
        steps = [keyring(1, 2), keyring(1, 2, primary=2), keyring(2)]
        for ring in steps:
            for agent in agents:
                agent.gossip.set_keys(ring)
                await trio.sleep(1)
        await trio.sleep(10)
        for agent in agents:
            assert {view.state for view in agent.gossip.members.values()} == {State.ALIVE}
            assert not agent.gossip.statistics().rejected


async def test_missed_rotation_is_noticed(autojump_clock: trio.testing.MockClock) -> None:
    async with group() as members:
        a, b, _ = await start_three(members)
        b.gossip.set_keys(keyring(2))
        with trio.fail_after(10):
            await a.gossip.wait_key_missing()
        assert a.gossip.statistics().rejected["unknown epoch"] > 0


async def test_member_from_a_backup_counts_on(autojump_clock: trio.testing.MockClock) -> None:
    """Its packets are of an old start, so nobody takes them; it is told, and goes on."""
    async with group() as members:
        a, b, c = await start_three(members)
        later = await members.start("d", boot=7)
        later.gossip.join([a.address])
        await eventually(lambda: b.state_of(later) is State.ALIVE, within=5)
        await members.kill(later)
        await eventually(lambda: b.state_of(later) is State.DEAD, within=10)
        restored = await members.start("d", boot=3)
        members.no_streams_to |= {a.address, b.address, c.address}
        restored.gossip.join([a.address])
        await eventually(lambda: b.state_of(restored) is State.ALIVE, within=10)
        assert restored.gossip.boot == 7
        assert members.boots == {MemberId("d"): 7}, "what the disk should remember"


async def test_user_event_comes_once(autojump_clock: trio.testing.MockClock) -> None:
    async with group() as members:
        a, b, c = await start_three(members)
        with b.gossip.subscribe_user_events() as at_b, c.gossip.subscribe_user_events() as at_c:
            a.gossip.broadcast("deploy", b"web")
            assert (await at_b.receive()).payload == (await at_c.receive()).payload == b"web"
            await trio.sleep(5)
            assert at_b.statistics().current_buffer_used == 0


async def test_slow_subscriber_loses_and_holds_up_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with group() as members:
        a, b, _ = await start_three(members)
        with a.gossip.subscribe():
            for number in range(300):
                b.gossip.set_facts(number.to_bytes(2, "big"))
                await trio.sleep(0.25)
        assert a.gossip.statistics().transitions_lost > 0
        assert a.state_of(b) is State.ALIVE


async def test_pause_of_this_process_accuses_nobody(mock_clock: trio.testing.MockClock) -> None:
    async with group() as members:
        a = await members.start("a")
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(8)
        await trio.testing.wait_all_tasks_blocked()
        statistics = a.gossip.statistics()
        assert (statistics.pauses, statistics.health) == (1, 7)
        assert 70 <= statistics.ticks_missed < 80, "but for the sleep that was planned"


async def test_answer_that_waits_in_the_socket_is_heard_before_the_verdict(
    mock_clock: trio.testing.MockClock,
) -> None:
    """Process and answer are late together: b's Ack came while a's host was busy."""
    async with group() as members:
        a = await members.start("a")
        codec, sealer = PlainCodec(), Sealer(keyring(), short_id(MemberId("b")), 1)
        opener = Opener(keyring(), short_id(MemberId("b")))
        with stdlib_socket.socket(stdlib_socket.AF_INET, stdlib_socket.SOCK_DGRAM) as b:
            b.bind(("127.0.0.1", 0))
            b.setblocking(False)
            members.no_answer_from.add(b.getsockname())
            alive = Alive(MemberId("b"), 1 << 32, b.getsockname())
            b.sendto(sealer.seal(codec.encode([alive])), a.address)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(20):
                while (sequence := ping_in(b, opener, codec)) is None:
                    mock_clock.jump(TICK)
                    await trio.testing.wait_all_tasks_blocked()
                for _ in range(9):  # to the last tick of the probe
                    mock_clock.jump(TICK)
                    await trio.testing.wait_all_tasks_blocked()
                b.sendto(sealer.seal(codec.encode([Ack(sequence, 1 << 32)])), a.address)
                mock_clock.jump(0.4)
                await trio.testing.wait_all_tasks_blocked()
                assert a.gossip.members[MemberId("b")].state is State.ALIVE


def ping_in(b: stdlib_socket.socket, opener: Opener, codec: PlainCodec) -> int | None:
    """Return the sequence of the last ping that has come to *b*."""
    sequence = None
    with suppress(BlockingIOError):
        while True:
            payload = opener.open_untrusted(b.recv(2_000)).payload
            for message in codec.decode_untrusted(payload):
                if isinstance(message, Ping):
                    sequence = message.sequence
    return sequence


class Wakeups(trio.abc.Instrument):
    def __init__(self) -> None:
        self.count = 0

    def after_io_wait(self, timeout: float) -> None:
        self.count += 1


async def test_idle_members_sleep(autojump_clock: trio.testing.MockClock) -> None:
    """Each wakes up for its own probe, the other's, and the answer: not for every tick."""
    async with group() as members:
        a, b = await members.start("a"), await members.start("b")
        b.gossip.join([a.address])
        await trio.sleep(30)
        sent = a.gossip.statistics().packets_sent
        wakeups = Wakeups()
        trio.lowlevel.add_instrument(wakeups)
        await trio.sleep(60)
        trio.lowlevel.remove_instrument(wakeups)
        assert a.gossip.statistics().packets_sent - sent >= 100, "it does its work"
        # Virtual time jumps in a wake-up of its own, so each counts twice.
        assert wakeups.count < 60 * 2 * 4 * 2


async def test_members_is_frozen_and_current(autojump_clock: trio.testing.MockClock) -> None:
    async with group() as members:
        a, _, c = await start_three(members)
        before = a.gossip.members
        await c.gossip.leave()
        await eventually(lambda: a.state_of(c) is State.LEFT, within=2)
        assert before[c.gossip.member].state is State.ALIVE
        assert not a.gossip.members[c.gossip.member].alive
