"""Tasks have users of their own unless the service says otherwise, and nothing is missed."""

from __future__ import annotations

import os

import pytest

from tests.lab import Host
from tests.swarm.cluster import swarm

pytestmark = pytest.mark.level5


async def uids_of(host: Host, service: str) -> list[str]:
    """The host's numbers of the users that its tasks of *service* run as."""
    words = ["docker", "inspect", "--format", "{{.State.Pid}}", await container_on(host, service)]
    pid = (await host.run(*words)).stdout.strip()
    return (await host.run("stat", "-c", "%u", f"/proc/{pid}")).stdout.split()


async def test_a_task_is_root_inside_and_nobody_outside() -> None:
    async with swarm(1, 1) as s:
        h1 = s.first
        await h1.run("swarmlet", "network", "create", "-d", "overlay", "shop")
        options = ("--mode", "global", "--network", "shop", "--publish", "8080:80")
        options += ("--update-monitor", "1s", "--stop-grace-period", "1s")
        await s.create("web", *options, "--mount", "type=volume,src=data,dst=/data")
        tasks = await s.running("web")
        for host in s.hosts:
            assert all(int(uid) >= 1 << 16 for uid in await uids_of(host, "web"))
        # The mesh and the task's port 80, which its root may bind.
        await s.ask_until(h1, {task["ID"][:12] for task in tasks})
        container = await container_on(h1, "web")
        script = "id -u; touch /data/mine; cat /proc/sys/kernel/hostname; ping -c 1 tasks.web"
        done = await h1.run("docker", "exec", container, "sh", "-c", script)
        assert done.stdout.startswith("0\n")
        assert "1 packets received" in done.stdout
        mine = os.stat(h1.state_dir / "volumes/data/_data/mine")
        assert mine.st_uid == 0, "owners on the disk do not depend on the range"
        # A task of another range finds its files.
        await h1.run("swarmlet", "service", "update", "--force", "web")
        container = await container_on(h1, "web")
        done = await h1.run("docker", "exec", container, "stat", "-c", "%u", "/data/mine")
        assert done.stdout == "0\n"
        # And without one.
        await h1.run("swarmlet", "service", "update", "--userns", "host", "web")
        assert await uids_of(h1, "web") == ["0"]


async def test_a_capability_over_the_host_takes_the_hosts_users() -> None:
    async with swarm(1, 0) as s:
        host = s.first
        for name, capability in (("clock", "SYS_TIME"), ("route", "NET_ADMIN")):
            create = ["docker", "service", "create", "-q", "--name", name]
            await host.run(*create, "--cap-add", capability, "busybox", "sleep", "1000")
        assert await uids_of(host, "clock") == ["0"]
        assert await uids_of(host, "route") != ["0"]
        container = await container_on(host, "route")
        await host.run("docker", "exec", container, "ip", "link", "set", "lo", "up")


async def container_on(host: Host, service: str) -> str:
    names = (await host.run("docker", "ps", "--format", "{{.Names}}")).stdout.split()
    (name,) = [name for name in names if name.startswith(f"{service}.")]
    return name
