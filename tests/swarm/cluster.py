"""A swarm in the lab: real daemons on hosts that can be cut and killed, and words for stories."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.images.busybox import busybox_rootfs
from tests.lab import Completed, Host, Lab, eventually

#: What a task's web server answers with: its own name.
SERVE_NAME = ("sh", "-c", "hostname > /tmp/index.html; exec httpd -f -p 80 -h /tmp")

#: As the first of its namespace, none of the programs used here heeds SIGTERM.
STOPS_SOON = ("--stop-grace-period", "1s")


class Swarm:
    """The hosts of a lab as one cluster; h1 is its first manager."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    @property
    def hosts(self) -> list[Host]:
        return self.lab.hosts

    @property
    def first(self) -> Host:
        return self.lab.hosts[0]

    async def token(self, role: str, host: Host | None = None) -> str:
        return (await (host or self.first).run("swarmlet", "token", role, "-q")).stdout.strip()

    async def join(self, host: Host, role: str, *, at: Host | None = None) -> None:
        target = at or self.first
        token = await self.token(role)
        await host.run("swarmlet", "join", "--token", token, f"{target.address}:7947")

    async def load_busybox(self, host: Host | None = None) -> None:
        tar = busybox_rootfs(Path(self.lab.folder) / "busybox.tar")
        await (host or self.first).run("swarmlet", "image", "import", str(tar), "busybox")

    async def create(
        self, name: str, *options: str, command: Sequence[str] = SERVE_NAME, on: Host | None = None
    ) -> Completed:
        """Create a service and wait until it has converged."""
        words = ["swarmlet", "service", "create", "--name", name, *STOPS_SOON, *options]
        words += ["busybox", *command]
        return await (on or self.first).run(*words)

    async def tasks(self, service: str, *, on: Host | None = None) -> list[dict[str, Any]]:
        """The service's tasks as the API shows them."""
        host = on or self.first
        filters = json.dumps({"service": {service: True}})
        answer = await host.api("GET", f"/tasks?filters={filters}".replace(" ", "%20"))
        assert answer.status == 200, answer.body
        found: list[dict[str, Any]] = json.loads(answer.body)
        return found

    async def running(self, service: str, *, on: Host | None = None) -> list[dict[str, Any]]:
        return [
            task
            for task in await self.tasks(service, on=on)
            if task["Status"]["State"] == "running" and task["DesiredState"] == "running"
        ]

    async def nodes(self, *, on: Host | None = None) -> dict[str, dict[str, Any]]:
        """Nodes by host name."""
        answer = await (on or self.first).api("GET", "/nodes")
        assert answer.status == 200, answer.body
        return {node["Description"]["Hostname"]: node for node in json.loads(answer.body)}

    async def wait_running(
        self, service: str, count: int, *, on: Host | None = None, within: float = 40.0
    ) -> list[dict[str, Any]]:
        return await eventually(
            lambda: self.running(service, on=on),
            until=lambda tasks: len(tasks) == count,
            within=within,
        )

    async def hosts_of(self, service: str, *, on: Host | None = None) -> list[str]:
        names = {node["ID"]: name for name, node in (await self.nodes(on=on)).items()}
        return sorted(names[task["NodeID"]] for task in await self.running(service, on=on))

    async def ask(self, host: Host, port: int = 8080) -> str:
        """What the published *port* of *host* answers to a client on the LAN."""
        url = f"http://{host.address}:{port}/"
        words = ["curl", "--silent", "--show-error", "--max-time", "3", url]
        return (await self.lab.client(*words)).stdout.strip()

    async def ask_until(
        self, host: Host, wanted: set[str], port: int = 8080, *, within: float = 20.0
    ) -> None:
        """Ask again and again until each of *wanted* has answered."""
        seen: set[str] = set()

        async def look() -> set[str]:
            seen.add(await self.ask(host, port))
            return seen

        await eventually(look, until=lambda found: wanted <= found, within=within)

    def logs(self) -> str:
        return "\n".join(f"===== {host.name}\n{host.last_words(80)}" for host in self.hosts)


@asynccontextmanager
async def swarm(managers: int = 1, workers: int = 2, *, image: bool = True) -> AsyncIterator[Swarm]:
    """A cluster of fresh hosts. What the daemons said is printed when the story fails."""
    async with Lab(managers + workers) as lab:
        story = Swarm(lab)
        try:
            async with trio.open_nursery() as nursery:
                for host in lab.hosts:
                    nursery.start_soon(_start, host)
            await story.first.run("swarmlet", "init")
            for host in lab.hosts[1:managers]:
                await story.join(host, "manager")
            async with trio.open_nursery() as nursery:
                for host in lab.hosts[managers:]:
                    nursery.start_soon(story.join, host, "worker")
            if image:
                await story.load_busybox()
            yield story
        except BaseException:
            print(story.logs())
            raise


async def _start(host: Host) -> None:
    await host.start_daemon()
    await host.wait_ready()
