"""A lab: its network, its hosts, and the end of both."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import trio

from tests.lab import ownership
from tests.lab.host import Completed, Host
from tests.lab.network import CLIENT, LabError, Network, address, between

#: Hosts that the addresses of a lab have room for; memory ends sooner.
HOSTS_MAX = 100


class Lab:
    """*hosts* running hosts on one network, from `async with` on to its end.

    With *kept* they outlive the process that made them, until `scripts/lab --remove`.
    """

    def __init__(self, hosts: int = 3, *, kept: bool = False) -> None:
        assert 0 <= hosts <= HOSTS_MAX, f"a lab has up to {HOSTS_MAX} hosts, not {hosts}"
        self.kept = kept
        self.number = 0
        self.folder = Path()
        self.hosts: list[Host] = []
        self._wanted = hosts
        self._network: Network | None = None

    @property
    def network(self) -> Network:
        assert self._network is not None, "the lab is not up"
        return self._network

    @property
    def client_address(self) -> str:
        """Where `client` runs: a machine on the LAN that is no host."""
        return address(self.number, CLIENT)

    async def __aenter__(self) -> Lab:
        await trio.to_thread.run_sync(ownership.reap_dead_labs)
        self.number, self.folder = ownership.claim(self.kept)
        self._network = Network(self.number, self.folder)
        try:
            await self._network.up(kept=self.kept)
            ownership.write_handle(self.folder / "network", self._network.pid)
            for _ in range(self._wanted):
                self._furnish()
            async with trio.open_nursery() as nursery:
                for host in self.hosts:
                    nursery.start_soon(host.boot)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            for host in self.hosts:
                if words := host.last_words():
                    print(f"-- the end of {host.name}'s log:\n{words}", file=sys.stderr)
        if self.kept and error is None:
            self.leave()
        else:
            with trio.CancelScope(shield=True):
                await self.close()

    async def add_host(self) -> Host:
        """One more machine, booted."""
        host = self._furnish()
        await host.boot()
        return host

    def _furnish(self) -> Host:
        number = len(self.hosts) + 1
        folder = self.folder / f"h{number}"
        host = Host(self.number, number, folder, self.network, kept=self.kept)
        (folder / "etc").mkdir(parents=True)
        names = "".join(
            f"{address(self.number, n)} h{n}\n" for n in range(1, max(self._wanted, number) + 1)
        )
        (folder / "etc" / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        (folder / "etc" / "hostname").write_text(f"{host.name}\n")
        # No name server: a question that swarmlet does not answer itself fails at once.
        (folder / "etc" / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        self.hosts.append(host)
        return host

    async def close(self) -> None:
        """Cut every host's power and remove the lab; an error says what would not go."""
        try:
            async with trio.open_nursery() as nursery:
                for host in self.hosts:
                    nursery.start_soon(host.kill)
        finally:
            for host in self.hosts:
                host.bury()
            self.network.down()
            await trio.to_thread.run_sync(ownership.remove, self.number)

    def leave(self) -> None:
        """Let go of a kept lab: it goes on without this process."""
        for host in self.hosts:
            host.release()
        self.network.release()

    # A machine on the LAN that is no host.

    async def client(self, *argv: str, check: bool = True, within: float = 60.0) -> Completed:
        """Run a command on the LAN, outside of all hosts."""
        with trio.move_on_after(within):
            process = await trio.run_process(
                [*self.network.enter(), *argv],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
            out, err = process.stdout.decode(errors="replace"), process.stderr.decode()
            completed = Completed(argv, process.returncode, out, err)
            if check and completed.code:
                raise LabError(f"client: {completed}")
            return completed
        raise LabError(f"client: {argv}: no end within {within:g} s")

    # Faults of the network between hosts; those of one cable are the host's.

    async def partition(self, *groups: Iterable[Host]) -> None:
        """Drop all that goes from one group to another; within a group all is well."""
        self.network.cuts |= between([host.number for host in group] for group in groups)
        await self.network.spoil()

    async def cut_one_way(self, source: Host, target: Host) -> None:
        """Drop what *source* sends to *target*; the answers' way stays open."""
        self.network.cuts.add((source.number, target.number))
        await self.network.spoil()

    async def lose(self, percent: int, *hosts: Host) -> None:
        """Drop a share of the packets on their way to *hosts*, or to all of them."""
        for host in hosts or self.hosts:
            self.network.losses[host.number] = percent
        await self.network.spoil()

    async def mend(self) -> None:
        """End partitions, one-way cuts and losses. Pulled cables stay pulled: `host.heal`."""
        self.network.cuts.clear()
        self.network.losses.clear()
        await self.network.spoil()

    def pairs(self) -> list[tuple[Host, Host]]:
        return list(itertools.permutations(self.hosts, 2))
