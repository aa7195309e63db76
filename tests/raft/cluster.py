"""Replicas in one process, on disks in memory, over a network that can be cut.

Runs on Trio's autojump clock: time passes only while everybody waits.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from raft.boot import bootstrap_on, create_on
from raft.config import LAN, Config
from raft.frames import SegmentHeader
from raft.machine import Committed, Outcome
from raft.messages import Message, ServerId
from raft.replica import Replica
from raft.scan import segment_names
from raft.snapshots import SnapshotHeader
from tests.raft.disks import MemoryDisk

KEY = bytes(range(32))
CLUSTER = b"cluster-of-tests"
#: Seconds that a message takes.
LATENCY = 0.001


class Journal:
    """A state machine that remembers every command, and answers with its own count."""

    def __init__(self) -> None:
        self.commands: list[bytes] = []
        self.restored_from: int | None = None

    def apply(self, index: int, position: int, term: int, command: bytes) -> object:
        self.commands.append(command)
        return len(self.commands)

    def snapshot(self) -> Callable[[], bytes]:
        commands = list(self.commands)
        return lambda: b"\n".join(commands)

    def restore(self, index: int, data: bytes) -> None:
        self.restored_from = index
        self.commands = data.split(b"\n") if data else []


class Wires:
    """The network: who can reach whom."""

    def __init__(self) -> None:
        self.replicas: dict[ServerId, Replica] = {}
        self.cut: set[tuple[ServerId, ServerId]] = set()
        self.messages: dict[str, int] = {}
        self.nursery: trio.Nursery
        self.snapshots_fail = 0
        self.snapshots = 0

    def isolate(self, server: ServerId) -> None:
        for other in self.replicas:
            self.cut |= {(server, other), (other, server)}

    def heal(self) -> None:
        self.cut = set()

    def reaches(self, sender: ServerId, to: ServerId) -> bool:
        return to in self.replicas and (sender, to) not in self.cut


class Wire:
    """The Transport of one server. Keeps the order of messages, as TCP does."""

    def __init__(self, wires: Wires, server: ServerId) -> None:
        self._wires = wires
        self._server = server

    def send(self, to: ServerId, message: Message) -> None:
        name = type(message).__name__
        self._wires.messages[name] = self._wires.messages.get(name, 0) + 1
        self._wires.nursery.start_soon(self._carry, to, message)

    async def _carry(self, to: ServerId, message: Message) -> None:
        await trio.sleep(LATENCY)
        if self._wires.reaches(self._server, to):
            self._wires.replicas[to].deliver(self._server, message)

    async def send_snapshot(
        self, to: ServerId, header: SnapshotHeader, chunks: AsyncIterator[bytes]
    ) -> None:
        await trio.sleep(LATENCY)
        self._wires.snapshots += 1
        if self._wires.snapshots_fail:
            self._wires.snapshots_fail -= 1
            raise ConnectionResetError("the stream broke")
        if not self._wires.reaches(self._server, to):
            raise ConnectionRefusedError("nobody listens")
        await self._wires.replicas[to].receive_snapshot(self._server, header, chunks)


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for exception in group.exceptions:
        if isinstance(exception, BaseExceptionGroup):
            yield from leaves(exception)
        else:
            yield exception


class Member:
    """One server: its disk outlives it."""

    def __init__(self, cluster: Cluster, disk: MemoryDisk) -> None:
        self.cluster = cluster
        self.disk = disk
        self.machine = Journal()
        self.replica: Replica
        self.server: ServerId
        self._scope: trio.CancelScope | None = None
        self._ended = trio.Event()
        self.failure: BaseException | None = None

    async def start(self) -> None:
        self.machine = Journal()
        self._ended = trio.Event()
        await self.cluster.nursery.start(self._run)

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        cluster = self.cluster
        self.server = cluster.server_of(self.disk)
        self.replica = Replica(
            directory=Path("/nowhere"),
            key=KEY,
            machine=self.machine,
            transport=Wire(cluster.wires, self.server),
            config=cluster.config,
            rng=random.Random(cluster.rng.random()),
            cluster=CLUSTER,
            disk=self.disk,
            segment_bytes=64 << 10,
            snapshot_entries=cluster.snapshot_entries,
        )
        with trio.CancelScope() as self._scope:
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(self.replica.run)
                    cluster.wires.replicas[self.server] = self.replica
                    task_status.started()
            except* OSError as failures:
                self.failure = next(iter(leaves(failures)))
        cluster.wires.replicas.pop(self.server, None)
        self._ended.set()

    async def stop(self) -> None:
        """End the process in order."""
        assert self._scope
        self._scope.cancel()
        await self.ended()

    async def ended(self) -> None:
        """Wait until the process is gone."""
        await self._ended.wait()

    async def crash(self, *, keep: bool = True) -> None:
        """Cut the power: the disk keeps what it must, and at random what else it was given."""
        survivor = self.disk.survivor(self.cluster.rng)
        await self.stop()
        self.disk = MemoryDisk(survivor if keep else {})

    @property
    def leads(self) -> bool:
        return self.replica.status.leads


class Cluster:
    def __init__(
        self, nursery: trio.Nursery, *, seed: int, config: Config, snapshot_entries: int
    ) -> None:
        self.nursery = nursery
        self.rng = random.Random(seed)
        self.config = config
        self.snapshot_entries = snapshot_entries
        self.wires = Wires()
        self.wires.nursery = nursery
        self.members: list[Member] = []

    def server_of(self, disk: MemoryDisk) -> ServerId:
        header = SegmentHeader.unpack(disk.read(segment_names(disk)[-1]))
        assert header
        return header.server

    async def first(self) -> Member:
        """Start the first server of a new cluster, and wait until it leads."""
        disk = MemoryDisk()
        bootstrap_on(
            disk, KEY, CLUSTER, context=b"first", server=ServerId(101), segment_bytes=64 << 10
        )
        member = await self._start(disk)
        await self.leader()
        return member

    async def join(self, *, promote: bool = True) -> Member:
        """Start another server, add it as a learner, and make it a voter."""
        disk = MemoryDisk()
        server = ServerId(101 + len(self.members))
        create_on(disk, KEY, CLUSTER, server=server, segment_bytes=64 << 10)
        member = await self._start(disk)
        leader = await self.leader()
        context = b"server-%d" % len(self.members)
        await leader.replica.add_learner(member.server, context, timeout=5)
        if promote:
            await leader.replica.promote(member.server, timeout=10)
        return member

    async def _start(self, disk: MemoryDisk) -> Member:
        member = Member(self, disk)
        self.members.append(member)
        await member.start()
        return member

    def running(self) -> list[Member]:
        return [m for m in self.members if m.server in self.wires.replicas]

    async def leader(self, *, among: list[Member] | None = None) -> Member:
        """Wait until exactly one running server leads in the newest term, and return it."""
        while True:
            running = among or self.running()
            newest = max(m.replica.status.term for m in running)
            leading = [m for m in running if m.leads and m.replica.status.term == newest]
            if leading:
                return leading[0]
            await trio.sleep(0.05)

    async def propose(self, command: bytes) -> Committed:
        """Propose until it is committed."""
        while True:
            outcome = await (await self.leader()).replica.propose(command, timeout=2)
            if isinstance(outcome, Committed):
                return outcome
            await trio.sleep(0.05)

    async def settled(self, members: list[Member] | None = None) -> None:
        """Wait until all *members* have applied what the leader has."""
        leader = await self.leader()
        index = leader.replica.status.last_index
        for member in members or self.running():
            await member.replica.wait_applied(index)


@asynccontextmanager
async def cluster(
    servers: int = 3,
    *,
    seed: int = 1,
    config: Config = LAN,
    snapshot_entries: int = 20_000,
) -> AsyncIterator[Cluster]:
    """A cluster of *servers* voters; all of it ends with the block."""
    async with trio.open_nursery() as nursery:
        made = Cluster(nursery, seed=seed, config=config, snapshot_entries=snapshot_entries)
        await made.first()
        for _ in range(servers - 1):
            await made.join()
        # Everybody knows of everybody: until a change is applied, the old majority decides.
        await made.settled()
        yield made
        nursery.cancel_scope.cancel()


__all__ = ["CLUSTER", "KEY", "Cluster", "Journal", "Member", "Outcome", "cluster"]
