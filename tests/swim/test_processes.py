"""Twenty processes on a network that can be spoiled: killed, stopped, cut, moved, losing packets.

What must hold whatever the machine is busy with: who is gone is dead for all in the end, who is
there and awake is buried by nobody, and afterwards all agree. SWARMLET_LONG=1 adds the long stops.
"""

from __future__ import annotations

import os
import signal
import time

import pytest
import trio

from tests.swim.agents import Agent, Group, OurProgram, group, host_of

pytestmark = pytest.mark.level5

MEMBERS = 20
#: Far more than any of it takes on a machine that does nothing else.
PATIENCE = 90.0


async def test_twenty_processes_through_all_that_happens_in_the_field() -> None:
    async with group(OurProgram()) as g:
        await g.start_all(MEMBERS)
        await g.join_all()
        await g.until(g.all_alive, PATIENCE)
        await stopped(g, 1.0)
        await stopped(g, 5.0)
        if os.environ.get("SWARMLET_LONG"):
            await stopped(g, 30.0)
            await stopped(g, 30.0, count=8)
            await losing(g, 20, 120.0)
        await killed(g, g.agents[20])
        await cut(g, g.agents[19])
        await moved(g, g.agents[18])
        await losing(g, 20, 8.0)


async def stopped(g: Group, seconds: float, count: int = 5) -> None:
    """Some are stopped for a while: nobody else is buried, and all find together again."""
    began = time.monotonic()
    sleepers = [agent for agent in g.agents.values() if agent.number <= count]
    for agent in sleepers:
        agent.process.send_signal(signal.SIGSTOP)
    await trio.sleep(seconds)
    for agent in sleepers:
        agent.process.send_signal(signal.SIGCONT)
    await g.until(g.all_alive, PATIENCE)
    names = {agent.name for agent in sleepers}
    assert not [name for name in buried(g, began) if name not in names], f"{seconds} s"


async def killed(g: Group, victim: Agent) -> None:
    began = time.monotonic()
    await g.kill(victim)
    await g.until(lambda: g.all_hold("dead", victim.name), PATIENCE)
    assert set(buried(g, began)) == {victim.name}
    await g.add(victim.number, at=3)
    await g.until(g.all_alive, PATIENCE)


async def cut(g: Group, victim: Agent) -> None:
    """Nobody hears it, and it hears nobody; when it does again, all agree without an operator."""
    began = time.monotonic()
    others = [agent for agent in g.agents.values() if agent is not victim]
    await g.spoil(silent={victim.number})
    await g.until(lambda: g.all_hold("dead", victim.name, by=others), PATIENCE)
    assert {n for a in others for n in deaths_by(a, began)} == {victim.name}
    healed = time.monotonic()
    await g.spoil(silent=())
    await g.until(g.all_alive, PATIENCE)
    late = [name for a in others for name in deaths_by(a, healed) if name != victim.name]
    assert not late, "what the cut one concluded alone is believed by nobody"


async def moved(g: Group, mover: Agent) -> None:
    """Another address by DHCP: the same node, dead for nobody, and reached where it is now."""
    began = time.monotonic()
    await g.say(mover, f"move {host_of(MEMBERS + 30)}")
    # Were it asked at its old address for longer, it would be suspected there and buried.
    await trio.sleep(5)
    await g.until(g.all_alive, PATIENCE)
    assert not buried(g, began)
    # The proof that the others talk to the new address: nobody hears it there, and it is dead.
    await g.spoil(silent={MEMBERS + 30})
    others = [agent for agent in g.agents.values() if agent is not mover]
    await g.until(lambda: g.all_hold("dead", mover.name, by=others), PATIENCE)
    await g.spoil(silent=())
    await g.until(g.all_alive, PATIENCE)


async def losing(g: Group, percent: int, seconds: float) -> None:
    began = time.monotonic()
    await g.spoil(loss=percent)
    await trio.sleep(seconds)
    await g.spoil(loss=0)
    await g.until(g.all_alive, PATIENCE)
    assert not buried(g, began)


def buried(g: Group, after: float) -> list[str]:
    return [name for agent in g.agents.values() for name in deaths_by(agent, after)]


def deaths_by(agent: Agent, after: float) -> list[str]:
    return [name for at, kind, name in agent.events if kind == "dead" and at >= after]
