"""How soon does a group see who is lost, and what does it cost to look?

Twenty agents in a namespace of their own, on addresses of the loopback; nftables decides which
packets are lost. Ours: swarmlet's gossip alone in a process. Theirs: serf's agent with its LAN
profile and a key. Both seal their packets, both talk plain TCP. "Killed": kill -9, and the host
answers that nobody listens. "Cut": no packet to or from it arrives. What a member learns counts
when the line that it prints arrives. They join when all are up: how long programs take to start
is not measured.
"""

from __future__ import annotations

import re
import signal
import statistics
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import trio

from scripts.benchmarks.accounts import MIB, cpu_of, memory_of
from scripts.benchmarks.report import OURS, Report
from tests.lab import eventually
from tests.swarm.cluster import swarm
from tests.swim.agents import PORT, Agent, Group, OurProgram, Program, group, host_of

MEMBERS = 20
ROUNDS, ROUNDS_QUICK = 5, 1
#: Seconds of rest for CPU and bytes, and of watching for false alarms.
IDLE, IDLE_QUICK = 60.0, 15.0
WATCH, WATCH_QUICK = 60.0, 20.0
LOSSES = (10, 20)
SLEEPERS = 8
#: Seconds that they are stopped at a time, and awake in between.
SLEEP, WAKE = 8.0, 2.0
PATIENCE = 120.0
RPC_PORT = 7373


class Serf:
    """Debian's agent."""

    def __init__(self) -> None:
        keygen = subprocess.run(["serf", "keygen"], check=True, capture_output=True, text=True)
        self._key = keygen.stdout.strip()

    def command(self, number: int) -> Sequence[str]:
        return [
            "serf", "agent", f"-node=n{number}", f"-bind={host_of(number)}:{PORT}",
            f"-rpc-addr={host_of(number)}:{RPC_PORT}", "-profile=lan", "-log-level=info",
            f"-encrypt={self._key}",
        ]  # fmt: skip

    def read(self, line: str) -> tuple[str, str] | None:
        if "Serf agent starting" in line:
            return "ready", ""
        found = re.search(r"EventMember(Join|Failed|Leave|Reap): (\S+)", line)
        if found is None:
            return None
        kinds = {"Join": "alive", "Failed": "dead", "Leave": "left", "Reap": "forgotten"}
        return kinds[found[1]], found[2]

    async def join(self, group: Group, agent: Agent, host: str) -> None:
        rpc = f"-rpc-addr={host_of(agent.number)}:{RPC_PORT}"
        command = group.enter("serf", "join", rpc, f"{host}:{PORT}")
        for _ in range(50):
            done = await trio.run_process(command, check=False, capture_stdout=True, stderr=-2)
            if done.returncode == 0:
                return
            await trio.sleep(0.1)  # its RPC port is not open yet


class Measuring:
    def __init__(self, report: Report, side: str, quick: bool) -> None:
        self._report = report
        self._side = side
        self._rounds = ROUNDS_QUICK if quick else ROUNDS
        self._idle = IDLE_QUICK if quick else IDLE
        self._watch = WATCH_QUICK if quick else WATCH

    def add(self, row: str, unit: str, value: float) -> None:
        self._report.add(self._side, row, unit, value)

    async def all(self) -> None:
        for _ in range(self._rounds):
            async with group(self._program()) as g:
                await self._joins(g)
        async with group(self._program()) as g:
            await self._whole(g)
            await self._rest(g)
            for _ in range(self._rounds):
                await self._losses_of_members(g, "")
            for percent in LOSSES:
                await g.spoil(loss=percent)
                under = f", {percent} % of packets lost"
                await self._false_alarms(g, under)
                for _ in range(self._rounds):
                    await self._losses_of_members(g, under)
                await g.spoil(loss=0)
            await self._paused(g)
        if self._side == OURS:
            await self._leader()

    def _program(self) -> Program:
        return OurProgram() if self._side == OURS else Serf()

    async def _whole(self, g: Group) -> None:
        await g.start_all(MEMBERS)
        await g.join_all()
        await g.until(g.all_alive, PATIENCE)
        await trio.sleep(3)

    async def _joins(self, g: Group) -> None:
        await g.start_all(MEMBERS)
        began = time.monotonic()
        await g.join_all()
        took = await g.until(g.all_alive, PATIENCE) - began
        self.add(f"{MEMBERS} join one: all see all", "s", took)
        await trio.sleep(1)
        more = await g.start(MEMBERS + 1)
        await more.ready.wait()
        began = time.monotonic()
        await g.program.join(g, more, host_of(2))
        took = await g.until(g.all_alive, PATIENCE) - began
        self.add("one more joins: all see it, it sees all", "s", took)

    async def _rest(self, g: Group) -> None:
        pids = [agent.process.pid for agent in g.agents.values()]
        cpu, sent, began = sum(map(cpu_of, pids)), g.bytes_so_far(), time.monotonic()
        await trio.sleep(self._idle)
        seconds = (time.monotonic() - began) * len(pids)
        self.add(
            "idle: CPU of an agent", "% of a core", 100 * (sum(map(cpu_of, pids)) - cpu) / seconds
        )
        self.add("idle: bytes a second of an agent", "B/s", (g.bytes_so_far() - sent) / seconds)
        memory = [memory_of(pid) for pid in pids]
        self.add(
            "resident memory of an agent", "MiB", statistics.median(r for r, _ in memory) / MIB
        )
        self.add(
            "the same, shared pages divided", "MiB", statistics.median(p for _, p in memory) / MIB
        )

    async def _losses_of_members(self, g: Group, under: str) -> None:
        victim = g.agents[MEMBERS]
        began = time.monotonic()
        await g.kill(victim)
        await self._seen(g, victim, began, f"killed{under}")
        await self._back(g, MEMBERS)
        victim = g.agents[MEMBERS - 1]
        began = time.monotonic()
        await g.spoil(silent={victim.number})
        await self._seen(g, victim, began, f"cut{under}")
        await g.kill(victim)
        await g.spoil(silent=())
        await self._back(g, MEMBERS - 1)

    async def _seen(self, g: Group, victim: Agent, began: float, row: str) -> None:
        observers = [agent for agent in g.agents.values() if agent is not victim]

        def times() -> list[float]:
            found = [agent.when("dead", victim.name, began) for agent in observers]
            return [at - began for at in found if at is not None]

        await g.until(lambda: len(times()) == len(observers), PATIENCE)
        self.add(f"{row}: first sees it", "s", min(times()))
        self.add(f"{row}: half see it", "s", statistics.median(times()))
        self.add(f"{row}: all see it", "s", max(times()))

    async def _back(self, g: Group, number: int) -> None:
        agent = await g.add(number)
        await g.until(lambda: g.all_hold("alive", agent.name) and g.all_alive(), PATIENCE)
        await trio.sleep(2)

    async def _false_alarms(self, g: Group, under: str) -> None:
        began = time.monotonic()
        await trio.sleep(self._watch)
        self.add(f"verdicts on the living in {self._watch:g} s{under}", "", deaths(g, began))
        await g.until(g.all_alive, PATIENCE)

    async def _paused(self, g: Group) -> None:
        began = time.monotonic()
        sleepers = [g.agents[number] for number in range(2, 2 + SLEEPERS)]
        names = {agent.name for agent in sleepers}
        for _ in range(max(1, round(self._watch / (SLEEP + WAKE)))):
            for agent in sleepers:
                agent.process.send_signal(signal.SIGSTOP)
            await trio.sleep(SLEEP)
            for agent in sleepers:
                agent.process.send_signal(signal.SIGCONT)
            await trio.sleep(WAKE)
        row = f"{SLEEPERS} of {MEMBERS} stopped for {SLEEP:g} s again and again: verdicts on the"
        self.add(f"{row} others", "", deaths(g, began, but=names))
        self.add(f"{row} stopped", "", deaths(g, began) - deaths(g, began, but=names))

    async def _leader(self) -> None:
        """A verdict that moves tasks is the leader's, who asks others first. serf has none."""
        async with swarm(1, 2, image=False) as s:
            for _ in range(self._rounds):
                await trio.sleep(3)
                began = time.monotonic()
                await s.hosts[2].cut()
                await eventually(s.nodes, until=partial(is_in, "down"), within=60, every=0.05)
                took = time.monotonic() - began
                self.add("cut: the leader of three daemons says DOWN", "s", took)
                await s.hosts[2].heal()
                await eventually(s.nodes, until=partial(is_in, "ready"), within=60)


def is_in(state: str, nodes: dict[str, dict[str, Any]]) -> bool:
    return bool(nodes["h3"]["Status"]["State"] == state)


def deaths(g: Group, after: float, but: set[str] | frozenset[str] = frozenset()) -> int:
    return sum(
        1
        for agent in g.agents.values()
        for at, kind, name in agent.events
        if kind == "dead" and at >= after and name not in but
    )


async def measure(report: Report, side: str, *, quick: bool) -> None:
    await Measuring(report, side, quick).all()
