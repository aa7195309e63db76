"""Two clusters in one lab's hosts that answer the same Docker API: ours and Docker Swarm.

Everything is asked of the API, of both in the same words, so what is measured are the daemons and
not the start of a command line. dockerd gets its socket where the lab expects a daemon's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import trio

from scripts.benchmarks.report import OURS
from tests.lab import Host, Lab, LabError, eventually
from tests.lab.host import PORT
from tests.lab.rootfs import write_rootfs

IMAGE = "busybox"
#: How often the API is asked while a stopwatch runs.
LOOK_EVERY = 0.02
#: Seconds after which a measurement is given up: the peer needed 33 for a start, once.
PATIENCE = 60.0
DOCKER_PORT = 2377


class Side:
    """One cluster on the hosts of a lab; the first host is the manager that is asked."""

    def __init__(self, lab: Lab, side: str) -> None:
        self.lab = lab
        self.side = side
        self.first = lab.hosts[0]

    async def start(self, *hosts: Host) -> None:
        for host in hosts:
            if self.side == OURS:
                await host.start_daemon()
            else:
                await host.run("mkdir", "-p", str(host.run_dir))
                await host.start_daemon(command=dockerd(host))
        for host in hosts:
            await host.wait_ready(within=PATIENCE)

    async def load_image(self, *hosts: Host) -> None:
        """Have the image in each host's own store, as after an earlier use."""
        tar = write_rootfs(self.lab.folder / "busybox.tar").read_bytes()
        for host in hosts:
            target = f"/images/create?fromSrc=-&repo={IMAGE}&tag=latest"
            await self.call(host, "POST", target, raw=tar)

    async def init(self) -> None:
        port = PORT if self.side == OURS else DOCKER_PORT
        address = f"{self.first.address}:{port}"
        request = {"ListenAddr": address, "AdvertiseAddr": address, "ForceNewCluster": False}
        await self.call(self.first, "POST", "/swarm/init", request)

    async def join(self, host: Host, *, manager: bool = False) -> None:
        swarm = await self.call(self.first, "GET", "/swarm")
        port = PORT if self.side == OURS else DOCKER_PORT
        request = {
            "ListenAddr": f"{host.address}:{port}",
            "AdvertiseAddr": f"{host.address}:{port}",
            "RemoteAddrs": [f"{self.first.address}:{port}"],
            "JoinToken": swarm["JoinTokens"]["Manager" if manager else "Worker"],
        }
        await self.call(host, "POST", "/swarm/join", request)
        await self.until(self.states, lambda states: states.get(host.name) == "ready")

    async def form(self, *, managers: int = 1) -> None:
        """All hosts of the lab in one cluster, with the image everywhere."""
        await self.start(*self.lab.hosts)
        await self.load_image(*self.lab.hosts)
        await self.init()
        for number, host in enumerate(self.lab.hosts[1:], 2):
            await self.join(host, manager=number <= managers)

    async def create(self, name: str, replicas: int) -> None:
        template = {
            "ContainerSpec": {
                "Image": IMAGE,
                "Args": ["sleep", "100000"],
                "StopSignal": "SIGKILL",
            }
        }
        mode = {"Replicated": {"Replicas": replicas}}
        request = {"Name": name, "TaskTemplate": template, "Mode": mode}
        await self.call(self.first, "POST", "/services/create", request)

    async def wait_running(self, name: str, replicas: int, *, without: Host | None = None) -> None:
        nodes = await self.nodes()
        names = {node["ID"]: node["Description"]["Hostname"] for node in nodes}
        lost = without.name if without else None

        def is_done(tasks: list[dict[str, Any]]) -> bool:
            running = [
                task
                for task in tasks
                if task["Status"]["State"] == task["DesiredState"] == "running"
                and names.get(task["NodeID"]) != lost
            ]
            return len(running) >= replicas

        await self.until(lambda: self.tasks(name), is_done)

    async def remove(self, name: str) -> None:
        """Remove a service and wait until none of its containers runs anywhere."""
        await self.call(self.first, "DELETE", f"/services/{name}")
        hosts = [host for host in self.lab.hosts if host.running]
        await self.until(
            lambda: sum(len(host.container_pids()) for host in hosts), lambda count: count == 0
        )

    async def nodes(self) -> list[dict[str, Any]]:
        return list(await self.call(self.first, "GET", "/nodes"))

    async def states(self) -> dict[str, str]:
        nodes = await self.nodes()
        return {node["Description"]["Hostname"]: node["Status"]["State"] for node in nodes}

    async def tasks(self, name: str) -> list[dict[str, Any]]:
        filters = quote(json.dumps({"service": {name: True}}))
        return list(await self.call(self.first, "GET", f"/tasks?filters={filters}"))

    async def until(self, look: Callable[[], Any], is_done: Callable[[Any], bool]) -> None:
        await eventually(look, until=is_done, within=PATIENCE, every=LOOK_EVERY)

    async def call(
        self, host: Host, method: str, target: str, body: Any = None, *, raw: bytes = b""
    ) -> Any:
        data = raw or (b"" if body is None else json.dumps(body).encode())
        answer = await host.api(method, f"/v1.41{target}", data, within=PATIENCE)
        if answer.status >= 400:
            said = answer.body.decode(errors="replace").strip()
            raise LabError(f"{self.side}: {method} {target}: {answer.status} {said}")
        try:
            return json.loads(answer.body)
        except ValueError:  # progress of an import, or nothing
            return None


def dockerd(host: Host) -> list[str]:
    """Docker's daemon, with all it has inside the host: its runtime folders are in its /run."""
    return [
        *("dockerd", "--host", f"unix://{host.run_dir}/swarmlet.sock"),
        *("--data-root", str(host.state_dir / "docker"), "--exec-root", "/run/docker"),
        *("--pidfile", "/run/docker.pid", "--userland-proxy=false"),
        *("--exec-opt", "native.cgroupdriver=cgroupfs"),
        *("--cgroup-parent", f"/{host.cgroup_parent}"),
    ]


class Stopwatch:
    """Seconds since it was made, on the clock of the loop."""

    def __init__(self) -> None:
        self._began = trio.current_time()

    def seconds(self) -> float:
        return trio.current_time() - self._began
