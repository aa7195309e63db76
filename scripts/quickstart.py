"""Three hosts become a swarm, run a service, lose a host and heal: what a user would type.

Every command that is typed is printed with its answer. Any failure ends it with the reason and a
non-zero exit; whatever the end, nothing is left behind, unless --keep asks for it.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from urllib.parse import quote

import trio

from tests.lab import Completed, Host, Lab, LabError, eventually, residue
from tests.lab.rootfs import write_rootfs

PORT = 8080
REPLICAS = 3
#: `/` of this server says who answered, and the address that it sees as the client's.
SERVER = ["busybox", "httpd", "-f", "-p", "80", "-h", "/www"]
#: A task that asks for http://web/ again and again; busybox-static's wget crashes, nc does not.
ASK = r"while sleep 0.2; do printf 'GET / HTTP/1.0\r\n\r\n' | nc web 80 | tail -n 1; done"
ANSWER = re.compile(r"hello (\S+) from (\S+)")
#: Seconds after which a step that makes no progress has failed.
PATIENCE = 45.0


class Failure(Exception):
    """The story did not go as told."""


class Story:
    """The commands in order, on the hosts of one lab, with the time that each step took."""

    def __init__(self, lab: Lab, managers: int) -> None:
        self.lab = lab
        self.first = lab.hosts[0]
        self.managers = lab.hosts[:managers]
        self.victim = lab.hosts[-1]
        self.timings: list[tuple[str, float]] = []

    # The steps.

    async def tell(self) -> None:
        await self.timed("daemons started and ready", self.start_daemons)
        await self.timed("swarmlet init", self.initialise)
        await self.timed(f"{len(self.lab.hosts) - 1} hosts joined and ready", self.join)
        await self.timed("image imported, network created", self.prepare)
        await self.timed(f"service create until {REPLICAS}/{REPLICAS}", self.create)
        await self.timed("published port of every host answered", self.request_ports)
        await self.timed("asked by name from inside a task", self.request_by_name)
        await self.timed("docker client", self.use_docker)
        await self.lose_a_host()

    async def start_daemons(self) -> None:
        for host in self.lab.hosts:
            print(f"\n{host.name}# {shlex.join(host.daemon_argv())} &", flush=True)
            await host.start_daemon()
        for host in self.lab.hosts:
            await host.wait_ready()

    async def initialise(self) -> None:
        await self.type(self.first, "swarmlet", "init")

    async def join(self) -> None:
        commands = {}
        for role in ("manager", "worker"):
            said = await self.type(self.first, "swarmlet", "token", role)
            commands[role] = self.join_command(said.stdout)
        for host in self.lab.hosts[1:]:
            role = "manager" if host in self.managers else "worker"
            await self.type(host, *commands[role])
        await eventually(
            self.states_of_nodes,
            until=lambda states: list(states.values()) == ["ready"] * len(self.lab.hosts),
            within=PATIENCE,
        )
        await self.type(self.first, "swarmlet", "node", "ls")

    def join_command(self, said: str) -> list[str]:
        """What `token` tells the user to type elsewhere."""
        told = re.search(r"swarmlet join .*", said)
        if told:
            return shlex.split(told[0])
        token = re.search(r"SWL1-\S+", said)
        if not token:
            raise Failure(f"swarmlet token printed no token: {said!r}")
        return ["swarmlet", "join", "--token", token[0], self.first.address]

    async def prepare(self) -> None:
        tar = write_rootfs(self.lab.folder / "busybox.tar")
        await self.type(self.first, "swarmlet", "image", "import", str(tar), "busybox")
        await self.type(self.first, "swarmlet", "network", "create", "-d", "overlay", "shop")

    async def create(self) -> None:
        options = f"--name web --replicas {REPLICAS} --network shop --publish {PORT}:80"
        words = ["swarmlet", "service", "create", *options.split()]
        await self.type(self.first, *words, *SERVER)
        await eventually(
            self.nodes_of_tasks, until=lambda nodes: len(nodes) == REPLICAS, within=PATIENCE
        )
        await self.type(self.first, "swarmlet", "service", "ps", "web")
        nodes = set(await self.nodes_of_tasks())
        if len(nodes) != min(REPLICAS, len(self.lab.hosts)):
            raise Failure(f"the tasks are not spread over the hosts: {sorted(nodes)}")

    async def request_ports(self) -> None:
        tasks = set()
        for host in self.lab.hosts:
            for _ in range(REPLICAS):
                tasks.add(await self.request(host))
        if len(tasks) != REPLICAS:
            raise Failure(f"{len(tasks)} of {REPLICAS} tasks answered: {sorted(tasks)}")

    async def request(self, host: Host) -> str:
        """Ask a host's published port from the LAN; the name of the task that answered."""
        url = f"http://{host.address}:{PORT}/"
        said = await self.type_outside("curl", "--silent", "--show-error", "--max-time", "5", url)
        found = ANSWER.search(said.stdout)
        if not found:
            raise Failure(f"{url}: not our server's answer: {said.stdout!r}")
        if self.lab.client_address not in found[1]:
            raise Failure(f"the task saw {found[1]}, not the client {self.lab.client_address}")
        return found[2]

    async def request_by_name(self) -> None:
        # A shell that is a task's first process ignores SIGTERM; nobody wants to wait for it.
        options = ["--detach", "--name", "ask", "--network", "shop", "--stop-grace-period", "1s"]
        place = f"--constraint node.hostname=={self.first.name}"
        words = ["swarmlet", "service", "create", *options, *place.split()]
        await self.type(self.first, *words, "busybox", "sh", "-c", ASK)
        logs = ("swarmlet", "service", "logs", "--tail", "6", "ask")

        async def answerers() -> set[str]:
            said = await self.first.run(*logs, check=False)
            return {found[2] for found in ANSWER.finditer(said.stdout)}

        # One of the three is on the asker's host: two answerers, and one came over the VXLAN.
        await eventually(answerers, until=lambda names: len(names) >= 2, within=PATIENCE)
        await self.type(self.first, *logs)
        await self.type(self.first, "swarmlet", "service", "rm", "ask")

    async def use_docker(self) -> None:
        program = shutil.which("docker")
        if program is None:
            print("\nSKIPPED: no docker client on this machine")
            return
        for words in (["service", "ls"], ["service", "ps", "web"], ["node", "ls"]):
            said = await self.type(self.first, "docker", *words)
            expected = self.victim.name if words[0] == "node" else "web"
            if expected not in said.stdout:
                raise Failure(f"docker {shlex.join(words)} does not show {expected}")

    async def lose_a_host(self) -> None:
        survivors = [host for host in self.lab.hosts if host is not self.victim]
        began = time.monotonic()
        print(f"\n{self.victim.name}: power cut", flush=True)
        await self.victim.kill()
        await eventually(
            self.states_of_nodes,
            until=lambda states: states[self.victim.name] == "down",
            within=PATIENCE,
            every=0.05,
        )
        self.note("power cut until the node is known to be down", began)
        names = {host.name for host in survivors}
        await eventually(
            self.nodes_of_tasks,
            until=lambda nodes: len(nodes) == REPLICAS and set(nodes) <= names,
            within=PATIENCE,
            every=0.05,
        )
        self.note(f"power cut until {REPLICAS}/{REPLICAS} on the others", began)
        await self.type(self.first, "swarmlet", "node", "ls")
        await self.type(self.first, "swarmlet", "service", "ps", "web")
        for host in survivors:
            await self.request(host)

    async def remove(self) -> None:
        """Stop and uninstall on the hosts that still run, and look whether anything is left."""
        left = []
        for host in self.lab.hosts:
            if not host.running:
                continue
            code = await host.stop_daemon()
            if code != 0:
                raise Failure(f"{host.name}: the daemon ended with {code}:\n{host.last_words()}")
            places = {
                "--state-dir": str(host.state_dir),
                "--run-dir": str(host.run_dir),
                "--cgroup-parent": host.cgroup_parent,
            }
            words = [word for option in places.items() for word in option]
            await self.type(host, "swarmlet", "uninstall", "--purge", *words)
            left += [f"{host.name}: {entry}" for entry in await residue(host, purged=True)]
        if left:
            raise Failure("left behind:\n" + "\n".join(left))

    # How it is told.

    async def type(self, host: Host, *argv: str) -> Completed:
        """Type a command in a host, and print it and its answer as it comes."""
        print(f"\n{host.name}# {shlex.join(argv)}", flush=True)
        pipe = subprocess.PIPE
        process = await host.popen(*argv, stdout=pipe, stderr=subprocess.STDOUT)
        said = b""
        with trio.move_on_after(PATIENCE) as scope:
            assert process.outer.stdout is not None
            async with process.outer.stdout as stream:
                async for chunk in stream:
                    said += chunk
                    sys.stdout.write(chunk.decode(errors="replace"))
                    sys.stdout.flush()
            await process.wait()
        if scope.cancelled_caught:
            await process.kill()
            raise Failure(f"{shlex.join(argv)}: no end within {PATIENCE:g} s")
        if process.code:
            raise Failure(f"{shlex.join(argv)}: exit {process.code}")
        return Completed(argv, 0, said.decode(errors="replace"), "")

    async def type_outside(self, *argv: str) -> Completed:
        print(f"\nclient# {shlex.join(argv)}", flush=True)
        said = await self.lab.client(*argv)
        print(said.stdout, end="", flush=True)
        return said

    async def timed(self, what: str, step: Callable[[], Awaitable[None]]) -> None:
        began = time.monotonic()
        await step()
        self.note(what, began)

    def note(self, what: str, began: float) -> None:
        self.timings.append((what, time.monotonic() - began))

    # What the daemon says, by Docker's API.

    async def ask(self, target: str, **filters: list[str]) -> list[dict[str, Any]]:
        query = f"?filters={quote(json.dumps(filters))}" if filters else ""
        answer = await self.first.api("GET", f"/v1.41/{target}{query}")
        if answer.status != 200:
            raise LabError(f"GET {target}: {answer.status} {answer.body.decode()}")
        return list(json.loads(answer.body))

    async def states_of_nodes(self) -> dict[str, str]:
        nodes = await self.ask("nodes")
        return {node["Description"]["Hostname"]: node["Status"]["State"] for node in nodes}

    async def nodes_of_tasks(self) -> list[str]:
        """The names of the nodes where web's tasks run, once for each task."""
        nodes = await self.ask("nodes")
        names = {node["ID"]: node["Description"]["Hostname"] for node in nodes}
        tasks = await self.ask("tasks", service=["web"])
        states = {node["Description"]["Hostname"]: node["Status"]["State"] for node in nodes}
        return [
            names[task["NodeID"]]
            for task in tasks
            if task["Status"]["State"] == task["DesiredState"] == "running"
            and states[names[task["NodeID"]]] == "ready"
        ]


def table(timings: list[tuple[str, float]]) -> str:
    width = max(len(what) for what, _ in timings)
    return "\n".join(f"{what:{width}s}  {seconds:7.2f} s" for what, seconds in timings)


def how_to_go_on(lab: Lab) -> str:
    return "\n".join(
        [
            f"lab {lab.number} is kept:",
            *(f"  {host.name}  {host.address}  log {host.log}" for host in lab.hosts),
            f"  a shell in a host:  scripts/lab --lab {lab.number} --enter h1",
            f"  from a client:      {shlex.join(lab.network.enter())} "
            f"curl http://{lab.hosts[0].address}:{PORT}/",
            f"  remove it all:      scripts/lab --remove {lab.number}",
        ]
    )


async def run(hosts: int, managers: int, *, keep: bool, installed_in: float) -> int:
    timings = [("install", installed_in)]
    began = time.monotonic()
    try:
        async with Lab(hosts, kept=keep) as lab:
            timings.append((f"{hosts} hosts laid out", time.monotonic() - began))
            story = Story(lab, managers)
            await story.tell()
            if not keep:
                await story.timed("stopped and uninstalled", story.remove)
            timings += story.timings
            if keep:
                print("\n" + how_to_go_on(lab))
    except (Failure, AssertionError, LabError, OSError) as error:
        print(f"\nquickstart FAILED: {error}", file=sys.stderr)
        return 1
    timings.append(("all but the install", time.monotonic() - began))
    print("\n" + table(timings))
    if not keep:
        print("\nNothing left: no process, namespace, mount, cgroup, link or nft table.")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/quickstart", description=__doc__)
    parser.add_argument("--hosts", type=int, default=3, help="how many hosts (default 3)")
    parser.add_argument("--managers", type=int, default=2, help="how many of them are managers")
    parser.add_argument("--keep", action="store_true", help="leave the cluster up, and say how")
    parser.add_argument("--installed-in", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not 1 <= options.managers < options.hosts:
        parser.error("the last host is a worker, and is lost: fewer managers than hosts")
    settings = {"keep": options.keep, "installed_in": options.installed_in}
    try:
        return trio.run(partial(run, options.hosts, options.managers, **settings))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
