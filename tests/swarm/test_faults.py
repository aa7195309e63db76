"""What goes wrong in the field: hosts that die, daemons that restart, managers that are away."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
import trio

from tests.lab import Host, eventually
from tests.swarm.cluster import Swarm, swarm

pytestmark = pytest.mark.level5


async def test_a_killed_hosts_tasks_run_on_the_others() -> None:
    async with swarm(1, 2) as s:
        await s.create("web", "--replicas", "3", "--publish", "8080:80")
        assert await s.hosts_of("web") == ["h1", "h2", "h3"]
        await s.hosts[2].kill()
        await eventually(
            lambda: s.hosts_of("web"),
            until=lambda on: len(on) == 3 and "h3" not in on,
        )
        nodes = await s.nodes()
        assert nodes["h3"]["Status"]["State"] == "down"
        names = {task["ID"][:12] for task in await s.running("web")}
        await s.ask_until(s.hosts[1], names)


async def test_a_host_that_is_cut_off_and_back_has_restarted_nothing() -> None:
    """Containers go on, and nobody replaces them: for a blink, and as long as was asked for."""
    async with swarm(1, 2) as s:
        h3 = s.hosts[2]
        await s.create("web", "--replicas", "3", command=("sleep", "1000"))
        wait = ("--replace-after", "10m", "--constraint", "node.hostname==h3")
        await s.create("line", *wait, command=("sleep", "1000"))
        before = await _lives(s, "web", "line")
        await h3.cut()
        await trio.sleep(1)  # its session lives on: it would be DOWN after four
        await h3.heal()
        await eventually(s.nodes, until=lambda nodes: _is_ready(nodes["h3"]))
        assert await _lives(s, "web", "line") == before
        await h3.cut()
        await eventually(
            s.nodes, until=lambda nodes: nodes["h3"]["Status"]["State"] == "down", within=60
        )
        await h3.heal()
        await eventually(s.nodes, until=lambda nodes: _is_ready(nodes["h3"]))
        await s.wait_running("web", 3)
        await s.wait_running("line", 1)
        assert await _lives(s, "line") == {"line": before["line"]}


async def test_containers_survive_their_daemon_and_are_adopted() -> None:
    async with swarm(1, 1) as s:
        h2 = s.hosts[1]
        on_h2 = ["--constraint", "node.hostname==h2"]
        await s.create("web", *on_h2, "--publish", "8080:80")
        (task,) = await s.running("web")
        pids = h2.container_pids()
        assert pids
        for number in (signal.SIGKILL, signal.SIGTERM):
            await h2.stop_daemon(number)
            assert h2.container_pids() == pids
            assert await s.ask(s.first) == task["ID"][:12], "it serves without its daemon"
            await h2.start_daemon()
            await h2.wait_ready()
            await eventually(s.nodes, until=lambda nodes: _is_ready(nodes["h2"]))
            await eventually(
                lambda: s.running("web"),
                until=lambda tasks: [_identity(t) for t in tasks] == [_identity(task)],
            )
            assert h2.container_pids() == pids
        await s.first.run("swarmlet", "service", "rm", "web")
        await eventually(h2.container_pids, until=lambda left: not left)


async def test_a_worker_that_boots_with_no_manager_in_reach_runs_its_work_again() -> None:
    async with swarm(1, 2) as s:
        h1, h2, h3 = s.hosts
        await h1.run("swarmlet", "network", "create", "-d", "overlay", "shop")
        on_workers = ["--constraint", "node.role==worker", "--network", "shop"]
        await s.create("web", "--replicas", "2", *on_workers)
        request = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 web 80 | tail -n 1"
        ask = f"while :; do {request}; sleep 1; done"
        await s.create("ask", "--mode", "global", *on_workers, command=("sh", "-c", ask))
        before = {task["ID"]: _addresses(task) for task in await s.running("web")}
        await h1.kill()
        await h2.kill()
        await h3.kill()
        for host in (h2, h3):
            await host.boot()
            await host.start_daemon()
            await host.wait_ready()
        for host in (h2, h3):
            await eventually(host.container_pids, until=lambda pids: len(pids) >= 2, within=20.0)
        # With their addresses and names: each host's task finds the other's by the service's name.
        names = {id_[:12] for id_ in before}
        for host in (h2, h3):
            await eventually(
                lambda host=host: _said(host, "ask"),
                until=lambda text: all(name in text for name in names),
                within=20.0,
            )
        listed = [await host.run("swarmlet", "ps", "--format", "{{.Names}}") for host in (h2, h3)]
        assert {n.split(".")[2] for done in listed for n in done.stdout.split()} >= before.keys()
        # And when the manager is back, nothing is started anew.
        containers = [await _containers(host) for host in (h2, h3)]
        await h1.boot()
        await h1.start_daemon()
        await h1.wait_ready()
        await s.wait_running("web", 2)
        assert {task["ID"]: _addresses(task) for task in await s.running("web")} == before
        assert [await _containers(host) for host in (h2, h3)] == containers


async def test_the_leader_dies_and_another_manager_goes_on() -> None:
    async with swarm(3, 1) as s:
        h1, h2, _, _ = s.hosts
        await eventually(
            lambda: h2.run("swarmlet", "node", "ls"),
            until=lambda done: done.stdout.count("Reachable") == 2,
        )
        # Let the third vote: a cluster of three managers survives one.
        await s.create("web", "--replicas", "4", command=("sleep", "1000"))
        await h1.kill()
        done = await eventually(
            lambda: h2.run(
                "swarmlet", "service", "create", "-d", "--name", "late", "busybox", "sleep", "1000"
            ),
            until=lambda done: done.code == 0,
        )
        assert done.stdout
        await s.wait_running("late", 1, on=h2)
        await s.wait_running("web", 4, on=h2)
        assert "h1" not in await s.hosts_of("web", on=h2)


async def test_a_follower_and_a_worker_answer_what_they_may() -> None:
    async with swarm(2, 1) as s:
        _, h2, h3 = s.hosts
        await s.create("web", command=("sleep", "1000"), on=h2)
        assert await s.hosts_of("web", on=h2)
        shown = await h3.run("swarmlet", "service", "ls")
        assert "web" in shown.stdout
        refused = await h3.run("swarmlet", "service", "rm", "web", check=False)
        assert refused.code == 1
        assert "not a" in refused.stderr
        assert "manager" in refused.stderr
        assert await s.running("web")


async def test_a_whole_cluster_that_loses_its_power_comes_back() -> None:
    async with swarm(3, 0) as s:
        await s.first.run("swarmlet", "network", "create", "-d", "overlay", "shop")
        await s.create("web", "--replicas", "3", "--network", "shop", "--publish", "8080:80")
        before = {task["ID"]: _addresses(task) for task in await s.running("web")}
        async with trio.open_nursery() as nursery:
            for host in s.hosts:
                nursery.start_soon(host.kill)
        for host in s.hosts:
            await host.boot()
            await host.start_daemon()
        for host in s.hosts:
            await host.wait_ready()
        await s.wait_running("web", 3)
        assert {task["ID"]: _addresses(task) for task in await s.running("web")} == before
        for host in s.hosts:
            await s.ask_until(host, {id_[:12] for id_ in before})


async def test_a_fifth_of_all_packets_lost_is_no_reason_to_give_up_a_node() -> None:
    async with swarm(1, 2) as s:
        await s.create("web", "--replicas", "3", command=("sleep", "1000"))
        before = {task["ID"]: _pid(task) for task in await s.running("web")}
        await s.lab.lose(20)
        for _ in range(20):
            await trio.sleep(1)
            nodes = await s.nodes()
            assert all(node["Status"]["State"] != "down" for node in nodes.values())
        await s.lab.mend()
        await eventually(s.nodes, until=lambda nodes: all(map(_is_ready, nodes.values())))
        await s.wait_running("web", 3)
        assert {task["ID"]: _pid(task) for task in await s.running("web")} == before


async def test_the_kernel_is_healed_when_somebody_takes_a_piece_away() -> None:
    async with swarm(1, 1) as s:
        await s.create("web", "--publish", "8080:80", "--replicas", "2")
        names = {task["ID"][:12] for task in await s.running("web")}
        await s.ask_until(s.first, names)
        await s.first.run("nft", "flush", "ruleset")
        await s.ask_until(s.first, names, within=45.0)  # the kernel is looked at every 30 s


async def test_a_manager_is_demoted_a_worker_promoted_and_a_node_removed() -> None:
    async with swarm(1, 2) as s:
        h1, h2, h3 = s.hosts
        for host in (h2, h3):
            await h1.run("swarmlet", "node", "promote", host.name)
        await eventually(
            lambda: h1.run("swarmlet", "node", "ls"),
            until=lambda done: done.stdout.count("Reachable") == 2,
        )
        refused = await h1.run("swarmlet", "node", "rm", "h3", check=False)
        assert "demote it first" in refused.stderr
        await h1.run("swarmlet", "node", "demote", "h3")
        # Of two managers one votes. The leader: so the other votes before it goes.
        await h1.run("swarmlet", "node", "demote", "h1")
        await eventually(
            lambda: h2.run("swarmlet", "node", "ls", check=False),
            until=lambda done: done.stdout.count("Leader") == 1 and "Reachable" not in done.stdout,
        )
        managers = [
            name for name, node in (await s.nodes(on=h2)).items() if "ManagerStatus" in node
        ]
        assert managers == ["h2"]
        await eventually(
            lambda: h1.run("swarmlet", "node", "update", "--label-add", "a=b", "h1", check=False),
            until=lambda done: "manager" in done.stderr,
        )
        await h2.run("swarmlet", "node", "promote", "h1")
        await eventually(
            lambda: h1.run("swarmlet", "node", "ls", check=False),
            until=lambda done: "Reachable" in done.stdout,
        )
        await h2.run("swarmlet", "node", "demote", "h2")
        await eventually(
            lambda: h1.run("swarmlet", "node", "ls", check=False),
            until=lambda done: "Leader" in done.stdout and "Reachable" not in done.stdout,
        )
        last = await h1.run("swarmlet", "node", "demote", "h1", check=False)
        assert "last manager" in last.stderr
        await h3.run("swarmlet", "leave")
        await eventually(s.nodes, until=lambda nodes: nodes["h3"]["Status"]["State"] == "down")
        await h1.run("swarmlet", "node", "rm", "h3")
        assert sorted(await s.nodes()) == ["h1", "h2"]
        # What was removed may come again with a token.
        await s.join(h3, "worker")
        await eventually(s.nodes, until=lambda nodes: _is_ready(nodes.get("h3")))


def _is_ready(node: dict[str, Any] | None) -> bool:
    return node is not None and node["Status"]["State"] == "ready"


def _pid(task: dict[str, Any]) -> int:
    return int(task["Status"]["ContainerStatus"]["PID"])


async def _lives(s: Swarm, *services: str) -> dict[str, dict[str, int]]:
    """The tasks that run, each with the process that would be another after a restart."""
    return {name: {t["ID"]: _pid(t) for t in await s.running(name)} for name in services}


def _identity(task: dict[str, Any]) -> tuple[str, str]:
    return task["ID"], task["Status"]["ContainerStatus"]["ContainerID"]


def _addresses(task: dict[str, Any]) -> list[str]:
    attachments = task.get("NetworksAttachments") or []
    return sorted(address for a in attachments for address in a["Addresses"])


async def _containers(host: Host) -> dict[str, int]:
    """Containers on *host* with the pid of their process."""
    found = {}
    for listed in json.loads((await host.api("GET", "/containers/json")).body):
        shown = json.loads((await host.api("GET", f"/containers/{listed['Id']}/json")).body)
        found[listed["Id"]] = shown["State"]["Pid"]
    return found


async def _said(host: Host, service: str) -> str:
    """What the task of *service* on *host* wrote, asked of that host alone."""
    listed = await host.run("swarmlet", "ps", "--format", "{{.Names}} {{.ID}}", "--no-trunc")
    lines = [line.split() for line in listed.stdout.splitlines() if line.startswith(service)]
    return (await host.run("swarmlet", "logs", lines[0][1])).stdout
