"""The stock docker client against the API, over a Unix socket: what issue 2 needs of it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from swarmlet.model import NodeId, OfflinePolicy, Outcome, TaskState
from tests.api.fake import H1, H2, H3, NOW, Fake
from tests.api.serving import open_sockets

DOCKER = shutil.which("docker")

pytestmark = pytest.mark.skipif(DOCKER is None, reason="the docker client is not installed")


class Docker:
    def __init__(self, fake: Fake, paths: dict[NodeId, Path]) -> None:
        self.fake = fake
        self._paths = paths

    async def run(self, line: str, *, on: NodeId = H1, code: int = 0) -> str:
        """Run `docker LINE` against the daemon *on*; return what it printed, both streams."""
        path = self._paths[on]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(path.parent),
            "DOCKER_HOST": f"unix://{path}",
        }
        with trio.fail_after(60):
            done = await trio.run_process(
                [str(DOCKER), *line.split()],
                env=environment,
                check=False,
                capture_stdout=True,
                stderr=subprocess.STDOUT,
            )
        text = done.stdout.decode()
        assert done.returncode == code, text
        return text


@pytest.fixture
async def docker(tmp_path: Path) -> AsyncIterator[Docker]:
    async with open_sockets(tmp_path) as (fake, paths):
        yield Docker(fake, paths)


def rows(table: str) -> list[list[str]]:
    """The lines of a table without its head, each split at two blanks and more."""
    lines = [line for line in table.splitlines()[1:] if line.strip()]
    return [[cell for cell in line.replace("   ", "\t").split("\t") if cell] for line in lines]


def tail(word: str) -> str:
    return word.strip().splitlines()[-1]


async def test_version_and_info_name_the_node_and_its_swarm(docker: Docker) -> None:
    assert "API version:      1.50 (minimum version 1.24)" in await docker.run("version")
    for node in (H1, H2):
        text = await docker.run("info", on=node)
        assert "Swarm: active" in text
        assert "Is Manager: true" in text
        assert "Managers: 2" in text
        assert "Nodes: 3" in text
    text = await docker.run("info", on=H3)
    assert "Is Manager: false" in text
    assert "10.0.0.2:2377" in text


async def test_nodes_are_listed_inspected_updated_and_removed(docker: Docker) -> None:
    text = await docker.run("node ls")
    assert [line.split() for line in text.splitlines()[1:]] == [
        [H1, "*", "h1", "Ready", "Active", "Leader", "0.1.0"],
        [H2, "h2", "Ready", "Active", "Reachable", "0.1.0"],
        [H3, "h3", "Ready", "Active", "0.1.0"],
    ]
    await docker.run("node update --availability drain --label-add zone=north h3")
    shown = json.loads(await docker.run("node inspect h3"))[0]
    assert shown["Spec"]["Availability"] == "drain"
    assert shown["Spec"]["Labels"] == {"zone": "north"}
    await docker.run("node promote h3")
    assert docker.fake.cluster.state.nodes[H3].spec.role == "manager"
    await docker.run("node demote h3")
    assert "is not down; use --force" in await docker.run("node rm h3", code=1)
    await docker.run("node rm --force h3")
    assert H3 not in docker.fake.cluster.state.nodes


async def test_service_lives_from_create_to_rm(docker: Docker) -> None:
    network = tail(await docker.run("network create -d overlay shop"))
    text = await docker.run(
        "service create --name web --replicas 3 --network shop --publish 8080:80 "
        "--env A=b --limit-memory 64m --constraint node.role==worker --update-delay 2s "
        "--restart-max-attempts 3 --health-cmd true --mount type=tmpfs,target=/t busybox httpd -f"
    )
    assert "3/3" in text
    assert "converged" in text
    line = (await docker.run("service ls")).splitlines()[1].split()
    assert line[1:] == ["web", "replicated", "3/3", "busybox:latest", "*:8080->80/tcp"]
    table = (await docker.run("service ps web")).splitlines()
    assert [row.split()[1] for row in table[1:]] == ["web.1", "web.2", "web.3"]
    spec = json.loads(await docker.run("service inspect web"))[0]["Spec"]
    template = spec["TaskTemplate"]
    assert template["ContainerSpec"]["Env"] == ["A=b"]
    assert template["ContainerSpec"]["Args"] == ["httpd", "-f"]
    assert template["Resources"]["Limits"] == {"MemoryBytes": 64 << 20}
    assert template["Networks"] == [{"Target": network}]
    assert template["RestartPolicy"]["MaxAttempts"] == 3
    assert "Replicas:\t3" in await docker.run("service inspect --pretty web")

    await docker.run("service scale --detach web=5")
    assert "5/5" in await docker.run("service ls")
    await docker.run("service update --detach --image busybox:2 --publish-add 81:81 web")
    assert "busybox:2" in await docker.run("service ls")
    await docker.run("service rollback --detach web")
    assert "busybox:latest" in await docker.run("service ls")
    assert tail(await docker.run("service rm web")) == "web"
    assert len((await docker.run("service ls")).splitlines()) == 1
    await docker.run("network rm shop")


async def test_update_by_docker_keeps_what_docker_does_not_know(docker: Docker) -> None:
    api = docker.fake.cluster
    await docker.run("service create --detach --name web busybox")
    (service,) = api.state.services.values()
    spec = dataclasses.replace(service.spec, offline=OfflinePolicy.PIN, replace_after=30.0)
    await api.update_service(service.id, spec, version=service.version)
    await docker.run("service update --detach --label-add a=b web")
    (service,) = api.state.services.values()
    assert service.spec.offline is OfflinePolicy.PIN
    assert service.spec.replace_after == 30.0
    assert service.spec.labels == {"a": "b"}


async def test_worker_looks_through_the_leader_and_may_not_change(docker: Docker) -> None:
    await docker.run("service create --detach --name web --env KEY=secret busybox")
    assert "1/1" in await docker.run("service ls", on=H3)
    assert "KEY=secret" in await docker.run("service inspect web", on=H2)
    shown = await docker.run("service inspect web", on=H3)
    assert "KEY=********" in shown
    assert "secret" not in shown
    text = await docker.run("service rm web", on=H3, code=1)
    assert "This node is not a swarm manager" in text
    assert "Run this on a manager: h1 (10.0.0.1), h2 (10.0.0.2)." in text
    await docker.run("service rm web", on=H2)


async def test_failed_task_shows_its_error_and_its_last_words(docker: Docker) -> None:
    await docker.run("service create --detach --name web busybox")
    (task,) = docker.fake.cluster.state.tasks.values()
    outcome = Outcome(
        state=TaskState.FAILED,
        at=NOW,
        error="task: non-zero exit (127)",
        exit_code=127,
        log_tail=("starting", "sh: httpd: not found"),
    )
    docker.fake.cluster.end_task(task.id, outcome)
    text = await docker.run("service ps --no-trunc web")
    assert "task: non-zero exit (127); its last words: sh: httpd: not found" in text


async def test_what_is_not_built_is_refused_by_name(docker: Docker) -> None:
    text = await docker.run("secret ls", code=1)
    assert "secrets are not built yet" in text
    text = await docker.run("service create --mode replicated-job busybox", code=1)
    assert "Mode.ReplicatedJob: jobs are not built yet" in text
    text = await docker.run("network create -d macvlan solo", code=1)
    assert "Driver: 'macvlan' is not built; there are bridge and overlay" in text
    text = await docker.run("service create --generic-resource gpu=1 busybox", code=1)
    assert "TaskTemplate.Resources.Reservations.GenericResources" in text


async def test_swarm_is_made_joined_and_left(docker: Docker) -> None:
    assert "docker swarm join --token SWL1-digest-worker-1 10.0.0.1:2377" in await docker.run(
        "swarm join-token worker"
    )
    assert "SWL1-digest-manager-2" in await docker.run("swarm join-token --rotate -q manager")
    await docker.run("swarm update --task-history-limit 7")
    cluster = docker.fake.cluster.state.cluster
    assert cluster is not None
    assert cluster.spec.task_history == 7
    text = await docker.run("swarm init", code=1)
    assert "already part of a swarm" in text
    await docker.run("swarm leave", on=H3)
    assert "This node is not part of a swarm" in await docker.run("swarm leave", on=H3, code=1)
    text = await docker.run("service ls", on=H3, code=1)
    assert "Use `swarmlet init` to make a new swarm here" in text
    await docker.run("swarm join --token SWL1-digest-worker-1 10.0.0.1:2377", on=H3)
    assert docker.fake.nodes[H3].joined[0].addresses == ("10.0.0.1:2377",)
    assert "Ready" in await docker.run("node ls", on=H3)


async def test_logs_of_service_and_container(docker: Docker) -> None:
    await docker.run("service create --detach --name web --replicas 2 busybox")
    docker.fake.run_containers()
    for node, line, at in ((H1, "first", NOW), (H2, "second", NOW + 1), (H1, "third", NOW + 2)):
        supervisor = docker.fake.nodes[node].supervisor
        (id_,) = supervisor.containers
        supervisor.write(id_, line, at=at)
    text = await docker.run("service logs --no-trunc web", on=H3)
    one, two = docker.fake.cluster.state.tasks
    assert [line.split() for line in text.splitlines()] == [
        [f"web.1.{one}@h1", "|", "first"],
        [f"web.2.{two}@h2", "|", "second"],
        [f"web.1.{one}@h1", "|", "third"],
    ]
    assert "web.1." in await docker.run("ps")
    assert await docker.run(f"logs --tail 1 web.1.{one}") == "third\n"
    assert "running" in await docker.run(f"inspect --format {{{{.State.Status}}}} web.1.{one}")
    docker.fake.unreachable.add(H2)
    text = await docker.run("service logs web")
    assert "warning: the log on h2 (10.0.0.2) is not whole: node h2 cannot be reached" in text
