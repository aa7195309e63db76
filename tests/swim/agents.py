"""Groups of processes that gossip, in a network namespace of their own that can be spoiled.

All members have addresses of the loopback, 127.77.0.N, so a packet costs what it costs on one
machine; faults are rules of nftables on what comes in. The namespace ends with the last process.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import trio

ROOT = Path(__file__).parent.parent.parent
PORT = 7946


def host_of(number: int) -> str:
    return f"127.77.0.{number}"


@dataclass(eq=False)
class Agent:
    """One process; *events* are (time of arrival, kind, whom it is about), oldest first."""

    number: int
    process: trio.Process
    events: list[tuple[float, str, str]] = field(default_factory=list)
    ready: trio.Event = field(default_factory=trio.Event)

    @property
    def name(self) -> str:
        return f"n{self.number}"

    def holds(self) -> dict[str, str]:
        """The latest state of every member that it knows, itself included."""
        return {self.name: "alive", **{name: kind for _, kind, name in self.events}}

    def when(self, kind: str, name: str, after: float) -> float | None:
        times = [at for at, k, n in self.events if (k, n) == (kind, name) and at >= after]
        return times[0] if times else None


class Program(Protocol):
    """What the agents of a group are."""

    def command(self, number: int) -> Sequence[str]: ...

    def read(self, line: str) -> tuple[str, str] | None:
        """Return (kind, member) of what *line* of the output tells, ("ready", "") when it is up."""
        ...

    async def join(self, group: Group, agent: Agent, host: str) -> None: ...


class OurProgram:
    def __init__(self, preset: str = "lan") -> None:
        self._preset = preset

    def command(self, number: int) -> Sequence[str]:
        words = [sys.executable, "-m", "tests.swim.agent", f"n{number}", host_of(number)]
        return [*words, str(PORT), self._preset]

    def read(self, line: str) -> tuple[str, str] | None:
        match line.split():
            case ["ready"]:
                return "ready", ""
            case ["alive" | "suspect" | "dead" | "left" | "forgotten" as kind, name]:
                return kind, name
        return None

    async def join(self, group: Group, agent: Agent, host: str) -> None:
        await group.say(agent, f"join {host}")


class Group:
    """Agents in one namespace."""

    def __init__(self, nursery: trio.Nursery, namespace: int, program: Program) -> None:
        self._nursery = nursery
        self._namespace = namespace
        self.program = program
        self._changed = trio.Event()
        self._losses = 0
        self._silent: set[int] = set()
        self.agents: dict[int, Agent] = {}

    def enter(self, *argv: str) -> list[str]:
        return ["nsenter", f"--net=/proc/{self._namespace}/ns/net", *argv]

    async def start(self, number: int) -> Agent:
        """Start a member that knows nobody yet; it may take a while until it is ready."""
        command = self.program.command(number)
        process = await trio.lowlevel.open_process(
            self.enter(*command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
        )
        agent = self.agents[number] = Agent(number, process)
        self._nursery.start_soon(self._follow, agent)
        return agent

    async def _follow(self, agent: Agent) -> None:
        assert agent.process.stdout is not None
        rest = b""
        async for piece in agent.process.stdout:
            now = time.monotonic()
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                text = line.decode(errors="replace")
                event = self.program.read(text)
                if event == ("ready", ""):
                    agent.ready.set()
                elif event is not None:
                    agent.events.append((now, *event))
                elif "Traceback" in text:
                    print(b"\n".join(lines).decode(errors="replace"), file=sys.stderr)
            self._changed.set()
            self._changed = trio.Event()

    async def start_all(self, count: int) -> None:
        for number in range(1, count + 1):
            await self.start(number)
        for agent in self.agents.values():
            await agent.ready.wait()

    async def join_all(self, *, at: int = 1) -> None:
        async with trio.open_nursery() as nursery:
            for agent in list(self.agents.values()):
                if agent.number != at:
                    nursery.start_soon(self.program.join, self, agent, host_of(at))

    async def add(self, number: int, *, at: int = 1) -> Agent:
        """Start one more, and have it join; return when it is about to."""
        agent = await self.start(number)
        await agent.ready.wait()
        await self.program.join(self, agent, host_of(at))
        return agent

    async def until(self, holds: Callable[[], bool], within: float) -> float:
        """Wait until *holds*, which looks at events; return the time at which it did."""
        with trio.move_on_after(within):
            while not holds():
                await self._changed.wait()
            return time.monotonic()
        raise AssertionError(f"not within {within:g} s; held: {self.summary()}")

    def summary(self) -> dict[str, dict[str, str]]:
        names = {agent.name for agent in self.agents.values()}
        return {
            a.name: {n: a.holds().get(n, "-") for n in sorted(names) if a.holds().get(n) != "alive"}
            for a in self.agents.values()
        }

    def all_hold(self, state: str, *names: str, by: Collection[Agent] = ()) -> bool:
        observers = by or list(self.agents.values())
        return all(a.holds().get(n) == state for a in observers for n in names if n != a.name)

    def all_alive(self) -> bool:
        return self.all_hold("alive", *(agent.name for agent in self.agents.values()))

    async def kill(self, agent: Agent, number: int = signal.SIGKILL) -> None:
        """End the process; its host refuses what comes for it."""
        del self.agents[agent.number]
        agent.process.send_signal(number)
        agent.process.send_signal(signal.SIGCONT)
        await agent.process.wait()

    async def say(self, agent: Agent, text: str) -> None:
        assert agent.process.stdin is not None
        await agent.process.stdin.send_all(text.encode() + b"\n")

    # Faults.

    async def spoil(
        self, *, loss: int | None = None, silent: Collection[int] | None = None
    ) -> None:
        """Lose *loss* percent of all packets; let the hosts in *silent* neither say nor hear."""
        self._losses = self._losses if loss is None else loss
        self._silent = self._silent if silent is None else set(silent)
        rules = [
            f"ip {side} {host_of(n)} drop" for n in self._silent for side in ("saddr", "daddr")
        ]
        if self._losses:
            rules.append(f"ip daddr 127.77.0.0/16 numgen random mod 100 < {self._losses} drop")
        body = "\n".join(rules)
        text = (
            "table inet faults\ndelete table inet faults\ntable inet faults {\nchain in {\n"
            f"type filter hook input priority 0;\n{body}\n}}\n}}\n"
        )
        await trio.run_process(self.enter("nft", "-f", "-"), stdin=text.encode())

    def bytes_so_far(self) -> int:
        """What has come in on the loopback, headers and all."""
        for line in Path(f"/proc/{self._namespace}/net/dev").read_text().splitlines():
            name, _, counts = line.partition(":")
            if name.strip() == "lo":
                return int(counts.split()[0])
        raise AssertionError("no loopback")


@asynccontextmanager
async def group(program: Program) -> AsyncIterator[Group]:
    """A group without members. At the end every process that was started is gone."""
    holder = subprocess.Popen(  # noqa: ASYNC220 (it starts in a moment, and once)
        ["unshare", "--net", "sh", "-c", "ip link set lo up && echo ready && exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        await trio.to_thread.run_sync(holder.stdout.readline)
        async with trio.open_nursery() as nursery:
            agents = Group(nursery, holder.pid, program)
            try:
                yield agents
            finally:
                with trio.CancelScope(shield=True):
                    for agent in list(agents.agents.values()):
                        await agents.kill(agent)
                nursery.cancel_scope.cancel()
    finally:
        holder.kill()
        holder.wait()
        for stream in (holder.stdin, holder.stdout):
            assert stream is not None
            stream.close()
