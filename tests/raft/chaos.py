"""Real servers on the hosts of a lab, clients who write it all down, and who breaks things.

Servers are node.py's processes: the daemon's Raft, transport and disk, without the rest. The log
of the last server is on a small tmpfs of its own, which can be filled.
"""

from __future__ import annotations

import os
import queue
import random
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import trio

from swarmlet.runtime import syscalls
from tests.lab import Host, Lab, Running, eventually
from tests.raft import kv, nodes
from tests.raft.clients import Clients, Connection
from tests.raft.nodes import CLIENT_PORT, ROOT

CLIENTS: Final = 8
#: Segments are small as well, so that a log soon wants another one.
SMALL_DISK: Final = "8m"
SEGMENT_BYTES: Final = 16 << 10
SMALL_DISK_PATH: Final = Path("/mnt")
#: So many entries between snapshots: some are taken and sent in every run.
SNAPSHOT_ENTRIES: Final = 500
#: Answers after a fault has begun, or ended, before the story goes on: work goes on meanwhile.
ANSWERS: Final = 100
#: Seconds until a cluster must answer again, or be whole again. Generous: machines are busy.
PATIENCE: Final = 120.0
STATUS_PATIENCE: Final = 2.0


class Door:
    """Makes sockets in the lab's network, which this process is not in.

    A socket belongs to the namespace of the thread that makes it, whoever uses it then.
    """

    def __init__(self, namespace: str) -> None:
        self._wanted: queue.SimpleQueue[Future[socket.socket] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, args=(namespace,), daemon=True)
        self._thread.start()

    def _work(self, namespace: str) -> None:
        fd = os.open(namespace, os.O_RDONLY)
        syscalls.setns(fd, syscalls.CLONE_NEWNET)
        os.close(fd)
        while (wanted := self._wanted.get()) is not None:
            wanted.set_result(socket.socket())

    async def connect(self, host: str, port: int) -> trio.SocketStream:
        wanted: Future[socket.socket] = Future()
        self._wanted.put(wanted)
        made = trio.socket.from_stdlib_socket(wanted.result())  # a thread that only makes sockets
        try:
            await made.connect((host, port))
        except BaseException:
            made.close()
            raise
        return trio.SocketStream(made)

    def close(self) -> None:
        self._wanted.put(None)
        self._thread.join()


class Server:
    """One server on its host."""

    def __init__(self, number: int, host: Host, folder: Path, door: Door) -> None:
        self.number = number
        self.host = host
        self.folder = folder
        self._door = door
        self.process: Running | None = None

    async def start(self) -> None:
        if self.process is not None:
            return
        with (self.folder / "errors").open("ab") as errors:
            self.process = await self.host.popen(
                sys.executable,
                "-m",
                "tests.raft.node",
                str(self.folder),
                env={"PYTHONPATH": str(ROOT)},
                stdout=errors,
                stderr=errors,
            )

    async def kill(self) -> None:
        if self.process is not None:
            await self.process.kill()
            self.process = None

    def send(self, number: int) -> None:
        if self.process is not None:
            self.process.send(number)

    async def status(self) -> dict[str, Any]:
        """Raises: OSError."""
        with trio.move_on_after(STATUS_PATIENCE):
            try:
                async with await self._door.connect(self.host.address, CLIENT_PORT) as stream:
                    _, status = await Connection(stream).ask([kv.STATUS, b""])
            except trio.BrokenResourceError as exc:
                raise OSError(str(exc)) from exc
            assert isinstance(status, dict)
            return status
        raise TimeoutError(f"server {self.number} does not answer")

    def last_words(self) -> str:
        words = [(self.folder / name) for name in ("log", "errors")]
        return "\n".join(word.read_text()[-3000:] for word in words if word.exists())


class Chaos:
    """A cluster with clients, and the faults that can be made in it."""

    def __init__(
        self, lab: Lab, servers: list[Server], clients: Clients, seed: int, answers: int
    ) -> None:
        self.lab = lab
        self.servers = servers
        self.clients = clients
        self._answers = answers
        self.rng = random.Random(seed)

    # Looking.
    async def leader(self) -> Server:
        """Wait for a leader, and return the one of the newest term."""
        found: Server = await eventually(self._find_leader, within=PATIENCE)
        return found

    async def _find_leader(self) -> Server:
        found = [(s["term"], s["number"]) for s in await self.statuses() if s["leads"]]
        assert found, "nobody leads"
        _, number = max(found)
        return self.servers[int(number) - 1]

    async def statuses(self) -> list[dict[str, Any]]:
        """Of those who answer."""
        found: list[dict[str, Any]] = []

        async def look(server: Server) -> None:
            with suppress(OSError):
                found.append({**await server.status(), "number": server.number})

        async with trio.open_nursery() as nursery:
            for server in self.servers:
                if server.process is not None:
                    nursery.start_soon(look, server)
        return found

    async def whole(self) -> None:
        """Wait until all servers vote, and have applied the same to the same state."""

        async def look() -> bool:
            statuses = await self.statuses()
            assert len(statuses) == len(self.servers), statuses
            assert all(s["voters"] == len(self.servers) for s in statuses), statuses
            assert len({(s["applied"], s["digest"]) for s in statuses}) == 1, statuses
            assert sum(s["leads"] for s in statuses) == 1, statuses
            assert not any(s["recovering"] or s["disk_full"] for s in statuses), statuses
            return True

        await eventually(look, within=PATIENCE)

    async def answers(self) -> None:
        """Wait until clients have been answered so many times more."""
        more = self._answers
        with trio.move_on_after(PATIENCE):
            await self.clients.wait_answered(more)
            return
        raise AssertionError(f"no {more} answers in {PATIENCE:g} s: {await self.statuses()}")

    # Breaking and mending. A majority goes on answering, unless nobody is left.
    async def kill(self) -> None:
        await self._kill(self.rng.choice(self.servers))

    async def kill_leader(self) -> None:
        await self._kill(await self.leader())

    async def _kill(self, server: Server) -> None:
        await server.kill()
        await self.answers()
        await server.start()

    async def kill_all(self) -> None:
        for server in self.servers:
            await server.kill()
        for server in self.servers:
            await server.start()

    async def pause_leader(self) -> None:
        """It comes back into a cluster that has another leader, and believes to be it still."""
        leader = await self.leader()
        leader.send(signal.SIGSTOP)
        try:
            await self.answers()
        finally:
            leader.send(signal.SIGCONT)

    async def isolate_leader(self) -> None:
        leader = await self.leader()
        others = [server.host for server in self.servers if server is not leader]
        await self._cut([leader.host], others)

    async def partition(self) -> None:
        """A minority of any servers is cut off."""
        hosts = [server.host for server in self.servers]
        self.rng.shuffle(hosts)
        few = (len(hosts) - 1) // 2
        await self._cut(hosts[:few], hosts[few:])

    async def _cut(self, few: list[Host], many: list[Host]) -> None:
        await self.lab.partition(few, many)
        try:
            await self.answers()
        finally:
            await self.lab.mend()

    async def one_way(self) -> None:
        """The leader is not heard by one of the others, or does not hear it."""
        leader = (await self.leader()).host
        other = self.rng.choice([s.host for s in self.servers if s.host is not leader])
        ends = [leader, other]
        self.rng.shuffle(ends)
        await self.lab.cut_one_way(*ends)
        try:
            await self.answers()
        finally:
            await self.lab.mend()

    async def loss(self) -> None:
        """A fifth of all packets is lost."""
        await self.lab.lose(20)
        try:
            await self.answers()
        finally:
            await self.lab.mend()

    async def full_disk(self) -> None:
        """The disk of the last server fills up under it."""
        server = self.servers[-1]
        ballast = server.host.outside(SMALL_DISK_PATH / "ballast")
        await trio.to_thread.run_sync(fill, ballast)
        try:
            await self.answers()
            await eventually(lambda: self._some_disk_is_full(ballast), within=PATIENCE)
            await self.answers()
        finally:
            ballast.unlink()

    async def _some_disk_is_full(self, ballast: Path) -> bool:
        # A snapshot lets go of old segments: with that room a server may get by for ever.
        await trio.to_thread.run_sync(fill, ballast)
        return any(status["disk_full"] for status in await self.statuses())

    # A whole story.
    async def play(self, faults: list[str]) -> None:
        """Make one fault after the other, mend it, and go on when clients are answered again."""
        for name in faults:
            await FAULTS[name](self)
            await self.answers()

    async def finish(self) -> None:
        """Let everything heal; then all that was answered must be there, and make sense."""
        for server in self.servers:
            await server.start()
        await self.answers()

    async def judge(self) -> None:
        """With the clients at rest: look at every key once more, then at the whole history."""
        await self.whole()
        await self.clients.read_all(self.clients.keys())
        await trio.to_thread.run_sync(self.clients.history.check)


FAULTS: Final[dict[str, Callable[[Chaos], Awaitable[None]]]] = {
    "kill": Chaos.kill,
    "kill_leader": Chaos.kill_leader,
    "kill_all": Chaos.kill_all,
    "pause_leader": Chaos.pause_leader,
    "isolate_leader": Chaos.isolate_leader,
    "partition": Chaos.partition,
    "one_way": Chaos.one_way,
    "loss": Chaos.loss,
    "full_disk": Chaos.full_disk,
}


def fill(ballast: Path) -> None:
    """Write until there is no room, behind what was written before."""
    with ballast.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


@asynccontextmanager
async def cluster(
    servers: int, *, seed: int, preset: str = "default", answers: int = ANSWERS
) -> AsyncIterator[Chaos]:
    """A cluster of *servers* in a lab of its own, with clients at work.

    At the end it is judged. *answers*: how many there are while a fault lasts, and after it.
    """
    async with Lab(servers) as lab:
        last = lab.hosts[-1]
        await last.run(
            "mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "small", str(SMALL_DISK_PATH)
        )
        small = SMALL_DISK_PATH / "raft"
        made = nodes.make(
            lab.folder,
            [host.address for host in lab.hosts],
            preset=preset,
            snapshot_entries=SNAPSHOT_ENTRIES,
            segment_bytes=SEGMENT_BYTES,
            disks={servers: (last.outside(small), small)},
        )
        door = Door(f"/proc/{lab.network.pid}/ns/net")
        here = [
            Server(process.number, host, process.folder, door)
            for process, host in zip(made, lab.hosts, strict=True)
        ]
        clients = Clients(
            lambda number: door.connect(here[number - 1].host.address, CLIENT_PORT),
            servers,
            random.Random(seed),
        )
        chaos = Chaos(lab, here, clients, seed, answers)
        try:
            for server in here:
                await server.start()
            await chaos.whole()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(clients.run, CLIENTS)
                yield chaos
                await chaos.finish()
                nursery.cancel_scope.cancel()
            await chaos.judge()
        except BaseException:
            for server in here:
                print(f"-- server {server.number}:\n{server.last_words()}", file=sys.stderr)
            raise
        finally:
            door.close()
