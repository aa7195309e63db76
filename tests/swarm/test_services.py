"""The life of a service on three hosts, by the command line and by the docker client."""

from __future__ import annotations

import json

import pytest
import trio

from tests.lab import eventually
from tests.swarm.cluster import STOPS_SOON, swarm

pytestmark = pytest.mark.level5

QUICK_UPDATE = ("--update-monitor", "1s", "--update-parallelism", "1")


async def test_a_replicated_service_on_a_network_with_a_published_port() -> None:
    async with swarm() as s:
        h1, _, h3 = s.hosts
        await h1.run("swarmlet", "network", "create", "-d", "overlay", "shop")
        await s.create("web", "--replicas", "3", "--network", "shop", "--publish", "8080:80")
        assert await s.hosts_of("web") == ["h1", "h2", "h3"]
        names = {task["ID"][:12] for task in await s.running("web")}
        for host in s.hosts:
            await s.ask_until(host, names)
        # By name and over the VXLAN, from a task on another host than the one that answers.
        fetch = "while :; do nc -w 2 web 80 < /req | tail -n 1; sleep 0.2; done"
        script = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' > /req; {fetch}"
        await s.create("ask", "--network", "shop", command=("sh", "-c", script))
        await eventually(
            lambda: h3.run("swarmlet", "service", "logs", "ask"),
            until=lambda done: all(name in done.stdout for name in names),
        )


async def test_the_stock_docker_client_does_the_same() -> None:
    async with swarm(1, 1) as s:
        h1 = s.first
        await h1.run("docker", "network", "create", "-d", "overlay", "shop")
        create = ["docker", "service", "create", "--name", "web", "--replicas", "2", *STOPS_SOON]
        options = ["--network", "shop", "-p", "8080:80", "busybox"]
        done = await h1.run(*create, *options, "sh", "-c", "echo ready; exec httpd -f -p 80")
        assert "converged" in done.stdout, done
        assert "2/2" in (await h1.run("docker", "service", "ls")).stdout
        assert (await h1.run("docker", "service", "ps", "web")).stdout.count("Running") == 4
        for words in (
            ["version"],
            ["info"],
            ["node", "inspect", "h2"],
            ["node", "ps", "h2"],
            ["service", "inspect", "--pretty", "web"],
            ["network", "inspect", "shop"],
            ["network", "ls"],
            ["image", "ls"],
            ["ps"],
        ):
            await h1.run("docker", *words)
        listed = (await h1.run("docker", "ps", "--format", "{{.Names}}")).stdout.split()
        assert len(listed) == 1
        assert listed[0].startswith("web.")
        assert "ready" in (await h1.run("docker", "logs", listed[0])).stdout
        logs = await h1.run("docker", "service", "logs", "web")
        assert logs.stdout.count("ready") == 2, logs
        await h1.run("docker", "service", "scale", "web=3")
        assert len(await s.running("web")) == 3
        await h1.run("docker", "service", "update", "--env-add", "X=1", *QUICK_UPDATE, "web")
        spec = json.loads((await h1.run("docker", "service", "inspect", "web")).stdout)[0]
        assert spec["Spec"]["TaskTemplate"]["ContainerSpec"]["Env"] == ["X=1"]
        await h1.run("docker", "node", "update", "--availability", "drain", "h2")
        await eventually(lambda: s.hosts_of("web"), until=lambda on: on == ["h1"] * 3)
        await h1.run("docker", "service", "rm", "web")
        await eventually(lambda: s.tasks("web"), until=lambda tasks: not tasks)
        await h1.run("docker", "network", "rm", "shop")


async def test_scale_update_and_roll_back() -> None:
    async with swarm(1, 1) as s:
        h1 = s.first
        await s.create("web", "--replicas", "2", *QUICK_UPDATE, "--env", "COLOUR=red")
        await h1.run("swarmlet", "service", "scale", "web=4")
        before = {task["ID"] for task in await s.running("web")}
        assert len(before) == 4
        await h1.run("swarmlet", "service", "update", "--env-add", "COLOUR=blue", "web")
        after = await s.running("web")
        assert len(after) == 4
        assert before.isdisjoint(task["ID"] for task in after)
        assert all(t["Spec"]["ContainerSpec"]["Env"] == ["COLOUR=blue"] for t in after)
        await h1.run("swarmlet", "service", "rollback", "web")
        back = await s.running("web")
        assert all(t["Spec"]["ContainerSpec"]["Env"] == ["COLOUR=red"] for t in back)


async def test_a_global_service_follows_the_nodes() -> None:
    async with swarm(1, 2) as s:
        await s.create("agent", "--mode", "global", command=("sleep", "1000"))
        assert await s.hosts_of("agent") == ["h1", "h2", "h3"]
        await s.first.run("swarmlet", "node", "update", "--availability", "drain", "h2")
        await eventually(lambda: s.hosts_of("agent"), until=lambda on: on == ["h1", "h3"])
        await s.first.run("swarmlet", "node", "update", "--availability", "active", "h2")
        await s.wait_running("agent", 3)


async def test_a_task_that_fits_nowhere_says_why() -> None:
    async with swarm(1, 1) as s:
        constraint = ["--constraint", "node.hostname==nowhere"]
        words = ["swarmlet", "service", "create", "-d", "--name", "lost", *constraint]
        await s.first.run(*words, "busybox", "sleep", "1000")
        shown = await eventually(
            lambda: s.first.run("swarmlet", "service", "ps", "--no-trunc", "lost"),
            until=lambda done: "no suitable node" in done.stdout,
        )
        assert "constraint node.hostname==nowhere on 2 nodes" in shown.stdout


async def test_what_a_failed_task_said_is_seen_from_every_node() -> None:
    async with swarm(2, 1) as s:
        command = ["sh", "-c", "echo one; echo the disk is on fire >&2; exit 3"]
        words = ["swarmlet", "service", "create", "-d", "--name", "bad", "--restart-condition"]
        await s.first.run(*words, "none", "--constraint", "node.role==worker", "busybox", *command)
        for host in s.hosts:
            shown = await eventually(
                lambda host=host: host.run("swarmlet", "service", "ps", "--no-trunc", "bad"),
                until=lambda done: "Failed" in done.stdout,
            )
            assert "non-zero exit (3)" in shown.stdout
            said = await host.run("swarmlet", "service", "logs", "bad", check=False)
            assert "the disk is on fire" in said.stdout + said.stderr, said


async def test_a_command_that_the_image_lacks_is_named() -> None:
    async with swarm(1, 0) as s:
        words = ["swarmlet", "service", "create", "-d", "--name", "bad", "busybox", "/bin/nothere"]
        await s.first.run(*words)
        await eventually(
            lambda: s.first.run("swarmlet", "service", "ps", "--no-trunc", "bad"),
            until=lambda done: 'command "/bin/nothere" not found in the image' in done.stdout,
        )


async def test_a_task_over_its_memory_limit_is_named_as_such() -> None:
    async with swarm(1, 0) as s:
        # busybox's dd keeps one block in memory: 64 MB of it do not fit into 16.
        command = ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"]
        words = ["swarmlet", "service", "create", "-d", "--name", "fat", "--limit-memory", "16m"]
        await s.first.run(*words, "--restart-condition", "none", "busybox", *command)
        shown = await eventually(
            lambda: s.first.run("swarmlet", "service", "ps", "--no-trunc", "fat"),
            until=lambda done: "Failed" in done.stdout,
        )
        assert "OOM" in shown.stdout
        assert "--limit-memory" in shown.stdout


async def test_a_crashing_task_is_started_again_and_writes_nothing_to_the_log() -> None:
    async with swarm(1, 0) as s:
        words = ["swarmlet", "service", "create", "-d", "--name", "crash", "--restart-delay", "1s"]
        await s.first.run(*words, "busybox", "sh", "-c", "echo again; sleep 1; exit 1")
        await s.wait_running("crash", 1)
        index = json.loads((await s.first.api("GET", "/services/crash")).body)["Version"]["Index"]
        (task,) = await s.tasks("crash")
        await eventually(
            lambda: s.first.run("swarmlet", "ps", "-a", "--no-trunc"),
            until=lambda done: f"{task['ID']}.2" in done.stdout or "crash.1" in done.stdout,
        )
        await trio.sleep(4)  # two more crashes: the same task, and the same object in the store
        (again,) = await s.tasks("crash")
        assert again["ID"] == task["ID"]
        assert again["Version"] == task["Version"]
        now = json.loads((await s.first.api("GET", "/services/crash")).body)["Version"]["Index"]
        assert now == index


async def test_a_task_serves_once_it_is_healthy_and_is_replaced_when_it_is_not() -> None:
    async with swarm(1, 0) as s:
        h1 = s.first
        serve = "mkdir /www; hostname > /www/index.html; exec httpd -f -p 80 -h /www"
        check = ("--health-cmd", "test -e /www/good", "--health-interval", "500ms")
        create = ["swarmlet", "service", "create", "--detach", "--name", "web", *STOPS_SOON]
        options = ["--health-retries", "2", "--health-start-period", "1m", "--publish", "8080:80"]
        start = ["--health-start-interval", "300ms", "--restart-delay", "0s"]
        await h1.run(*create, *check, *options, *start, "busybox", "sh", "-c", serve)

        async def status() -> str:
            listed = await h1.run("docker", "ps", "--format", "{{.ID}} {{.Status}}")
            return listed.stdout.strip()

        said = await eventually(status, until=lambda text: "(health: starting)" in text)
        container = said.split()[0]
        # It runs, but nobody is sent to it, and it does not count.
        assert "0/1" in (await h1.run("swarmlet", "service", "ls")).stdout
        url = f"http://{h1.address}:8080/"
        assert (await s.lab.client("curl", "--max-time", "2", url, check=False)).code != 0
        await h1.run("docker", "exec", container, "touch", "/www/good")
        await eventually(status, until=lambda text: "(healthy)" in text)
        await s.wait_running("web", 1)
        await eventually(
            lambda: h1.run("swarmlet", "service", "ls"), until=lambda done: "1/1" in done.stdout
        )
        assert await s.ask(h1)
        (task,) = await s.running("web")
        await h1.run("docker", "exec", container, "rm", "/www/good")
        # A new container of the same task, for nothing is wrong with this node.
        await eventually(status, until=lambda text: "(health: starting)" in text)
        count = ("docker", "inspect", "--format", "{{.RestartCount}}", container)
        assert (await h1.run(*count)).stdout.strip() == "1"
        assert "container unhealthy" in h1.log.read_text()
        await h1.run("docker", "exec", container, "touch", "/www/good")
        await eventually(status, until=lambda text: "(healthy)" in text)
        assert [t["ID"] for t in await s.running("web")] == [task["ID"]]
