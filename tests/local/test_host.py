"""What a host's containers use and keep: top, stats, volumes, df, prune, with the docker client."""

from __future__ import annotations

import json

import pytest

from tests.lab import eventually
from tests.local.box import both_clients, box

pytestmark = pytest.mark.level5


@both_clients
async def test_top_and_stats_show_what_runs_and_what_it_uses(client: str) -> None:
    async with box(client) as b:
        busy = "dd if=/dev/zero of=/f bs=1M count=4; sleep 1000 & while :; do :; done"
        options = ["--name", "busy", "--memory", "64m", "--pids-limit", "30"]
        await b.docker("run", "-d", *options, "busybox", "sh", "-c", busy)
        top = await eventually(
            lambda: b.out("top", "busy"), until=lambda said: "sleep 1000" in said
        )
        assert " ".join(top.split()[:8]) == "UID PID PPID C STIME TTY TIME CMD"
        assert len(top.splitlines()) == 3
        pid = str((await b.inspect("busy"))["State"]["Pid"])
        assert pid in top.split()
        assert "COMMAND" in await b.out("top", "busy", "-o", "pid,comm")
        assert "Couldn't find PID" in await b.refused("top", "busy", "-o", "comm")
        await b.docker("create", "--name", "idle", "busybox", "true")
        assert "is not running" in await b.refused("top", "idle")

        async def row() -> dict[str, str]:
            said = await b.out("stats", "--no-stream", "--format", "json", "busy")
            found: dict[str, str] = json.loads(said)
            return found

        found = await eventually(row, until=lambda r: float(r["CPUPerc"].rstrip("%")) > 1)
        assert found["MemUsage"].endswith("/ 64MiB")
        assert found["PIDs"] == "2"
        assert found["Name"] == "busy"
        assert "/" in found["NetIO"]
        said = await b.out("stats", "--no-stream", "--no-trunc", "-a")
        assert "busy" in said
        assert "idle" in said


@both_clients
async def test_volumes_are_made_used_kept_and_pruned(client: str) -> None:
    async with box(client) as b:
        assert await b.out("volume", "create", "--label", "k=v", "data") == "data"
        assert await b.out("volume", "create", "data") == "data"
        shown = json.loads(await b.out("volume", "inspect", "data"))[0]
        assert (shown["Name"], shown["Driver"], shown["Labels"]) == ("data", "local", {"k": "v"})
        script = ["busybox", "sh", "-c", "echo kept > /data/f"]
        await b.docker("run", "--rm", "-v", "data:/data", *script)
        await b.docker("run", "--name", "user", "-v", "data:/data", "-v", "/anon", *script)
        assert await b.out("run", "--rm", "-v", "data:/x:ro", "busybox", "cat", "/x/f") == "kept"
        assert "volume is in use" in await b.refused("volume", "rm", "data")
        assert len((await b.out("volume", "ls", "-q")).split()) == 2
        assert await b.out("volume", "ls", "-q", "-f", "dangling=true") == ""
        assert await b.out("volume", "ls", "-q", "-f", "label=k=v") == "data"
        await b.docker("rm", "user")
        said = await b.out("volume", "prune", "-f")
        assert "Deleted Volumes" in said
        assert await b.out("volume", "ls", "-q") == "data"
        await b.docker("volume", "prune", "-f", "-a", "--filter", "label!=k=v")
        assert await b.out("volume", "ls", "-q") == "data"
        assert await b.out("volume", "rm", "data") == "data"
        assert "No such volume: data" in await b.refused("volume", "inspect", "data")
        assert "no name of a volume" in await b.refused("volume", "create", "a/b")
        said = await b.refused("volume", "create", "-o", "type=nfs", "net")
        assert "the option 'type' is not built" in said
        assert "Driver: 'ceph'" in await b.refused("volume", "create", "-d", "ceph", "net")


@both_clients
async def test_df_counts_and_prune_gives_back_what_nothing_needs(client: str) -> None:
    async with box(client) as b:
        fill = ["busybox", "dd", "if=/dev/zero", "of=/f", "bs=1M", "count=3"]
        await b.docker("run", "--name", "done", *fill)
        await b.docker("run", "-d", "--name", "runs", "busybox", "sleep", "1000")
        rows = [
            json.loads(line)
            for line in (await b.out("system", "df", "--format", "json")).split("\n")
        ]
        by_type = {row["Type"]: row for row in rows}
        assert by_type["Containers"]["TotalCount"] == "2"
        assert by_type["Containers"]["Active"] == "1"
        assert "3.1" in by_type["Containers"]["Size"]
        assert by_type["Images"]["Active"] == "1"
        assert "done" in await b.out("system", "df", "-v")
        assert "3.15MB" in await b.out("ps", "-a", "-s", "--filter", "name=done")
        # An image without a name that a container was made of stays; one that nothing needs goes.
        await b.docker("commit", "done", "made:1")
        await b.docker("create", "--name", "of-made", "made:1")
        await b.docker("commit", "runs", "made:1")
        await b.docker("image", "prune", "-f")
        assert "of-made" in await b.names("-a")
        await b.docker("start", "of-made")
        assert await b.out("wait", "of-made") == "0"
        await b.docker("rm", "of-made")
        assert "sha256:" in await b.out("image", "prune", "-f")
        said = await b.out("container", "prune", "-f")
        assert "Total reclaimed space: 3.1" in said
        assert await b.names("-a") == ["runs"]
        await b.docker("image", "prune", "-f", "-a")
        assert await b.out("image", "ls", "--format", "{{.Repository}}") == "busybox"
        await b.docker("network", "create", "unused")
        said = await b.out("system", "prune", "-f", "--volumes")
        assert "unused" in said
        assert await b.names() == ["runs"]
