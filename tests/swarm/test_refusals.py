"""Bad input and faults: each gets an error that says what to do, and nothing crashes."""

from __future__ import annotations

import os
import random
import socket

import pytest
import trio

from tests.lab import Completed, Host, eventually
from tests.seeds import fresh
from tests.swarm.cluster import Swarm, swarm

pytestmark = pytest.mark.level5

#: Random and mutated datagrams, and connections that begin with noise.
DATAGRAMS, CONNECTIONS = 10_000, 300


async def refused(host: Host, *words: str) -> str:
    """Run a command that must fail, and return what it said: one line, no traceback."""
    done: Completed = await host.run(*words, check=False)
    assert done.code in (1, 2), done
    assert "Traceback" not in done.stderr, done
    return done.stderr


async def test_tokens_that_let_nobody_in() -> None:
    async with swarm(1, 1, image=False) as s:
        h1 = s.first
        new = await s.lab.add_host()
        await new.start_daemon()
        await new.wait_ready()
        at = f"{h1.address}:7947"
        good = await s.token("worker")

        text = await refused(new, "swarmlet", "join", "--token", good[:-3] + "aaa", at)
        assert "typ" in text, "a typing error is told from a wrong token"
        text = await refused(new, "swarmlet", "join", "--token", "nonsense", at)
        assert "token" in text

        await h1.run("swarmlet", "token", "worker", "--rotate")
        text = await refused(new, "swarmlet", "join", "--token", good, at)
        assert "swarmlet token worker" in text

        # A token of another cluster: its CA is not the one that answers.
        other = await s.lab.add_host()
        await other.start_daemon()
        await other.wait_ready()
        await other.run("swarmlet", "init")
        foreign = await s.token("worker", other)
        text = await refused(new, "swarmlet", "join", "--token", foreign, at)
        assert "another cluster" in text

        # Nobody there, and no swarm there.
        fresh = await s.token("worker")
        nowhere = f"{h1.address.rsplit('.', 1)[0]}.250:7947"
        text = await refused(new, "swarmlet", "join", "--token", fresh, nowhere)
        assert ".250:7947" in text
        worker = f"{s.hosts[1].address}:7947"
        text = await refused(new, "swarmlet", "join", "--token", fresh, worker)
        assert "manager" in text

        # After all that it joins as if nothing had been, and twice is once too often.
        await new.run("swarmlet", "join", "--token", fresh, at)
        for words in (["join", "--token", fresh, at], ["init"]):
            text = await refused(new, "swarmlet", *words)
            assert "already part of a swarm" in text
            assert "swarmlet leave" in text
        assert len(await s.nodes()) == 3


async def test_what_cannot_be_asked_for() -> None:
    async with swarm(1, 0) as s:
        h1 = s.first
        create = ["swarmlet", "service", "create", "-d"]
        text = await refused(h1, *create, "--name", "x", "nosuchimage")
        assert "no node of this cluster has it" in text
        assert "swarmlet image load" in text
        await h1.run(*create, "--name", "one", "--publish", "8080:80", "busybox", "sleep", "99")
        text = await refused(h1, *create, "--name", "two", "--publish", "8080:80", "busybox")
        assert "8080/tcp is already published by service one" in text
        assert "exists already" in await refused(h1, *create, "--name", "one", "busybox")
        text = await refused(h1, *create, "--name", "y", "--network", "nowhere", "busybox")
        assert "network create -d overlay nowhere" in text
        text = await refused(h1, *create, "--name", "y", "--constraint", "zone=north", "busybox")
        assert "constraint" in text
        text = await refused(h1, *create, "--name", "y", "--limit-memory", "1k", "busybox")
        assert "6 MiB" in text
        text = await refused(h1, *create, "--nam", "y", "busybox")
        assert "--name" in text, "an unknown flag is named, with a suggestion"
        assert "not found" in await refused(h1, "swarmlet", "service", "rm", "nothere")
        text = await refused(h1, "swarmlet", "leave")
        assert "--force" in text
        container = b'{"ContainerSpec": {"Image": "busybox", "Wrong": 1}}'
        body = b'{"Name": "z", "TaskTemplate": ' + container + b"}"
        answer = await h1.api("POST", "/services/create", body)
        assert answer.status == 400
        assert b"TaskTemplate.ContainerSpec.Wrong" in answer.body
        assert len(await s.tasks("one")) == 1


async def test_garbage_on_every_port_changes_nothing() -> None:
    async with swarm(1, 1) as s:
        await s.create("web", "--replicas", "2", command=("sleep", "1000"))
        before = {task["ID"] for task in await s.running("web")}
        (seed,) = fresh("garbage")
        rng = random.Random(seed)
        for host in s.hosts:
            await _throw_datagrams(s, host, rng)
            await _throw_connections(s, host, rng)
        for host in s.hosts:
            assert host.daemon is not None
            assert host.daemon.code is None, host.last_words()
        nodes = await s.nodes()
        assert all(node["Status"]["State"] == "ready" for node in nodes.values())
        assert {task["ID"] for task in await s.running("web")} == before
        await s.create("more", command=("sleep", "1000"))


async def _throw_datagrams(s: Swarm, host: Host, rng: random.Random) -> None:
    """Noise at the gossip port and the VXLAN port, from the LAN."""
    script = (
        "import random, socket, sys\n"
        f"rng = random.Random({rng.getrandbits(32)})\n"
        "out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        f"for _ in range({DATAGRAMS}):\n"
        "    head = b'\\x01' if rng.random() < 0.5 else b''\n"
        "    body = head + rng.randbytes(rng.randint(0, 1400))\n"
        f"    out.sendto(body, ('{host.address}', 7947 if rng.random() < 0.8 else 4789))\n"
    )
    await s.lab.client("python3", "-c", script)


async def _throw_connections(s: Swarm, host: Host, rng: random.Random) -> None:
    """Noise, half a handshake, silence and plain HTTP at the TCP port; noise at the socket."""
    script = (
        "import random, socket\n"
        f"rng = random.Random({rng.getrandbits(32)})\n"
        f"for _ in range({CONNECTIONS}):\n"
        "    kind = rng.randrange(4)\n"
        f"    out = socket.create_connection(('{host.address}', 7947))\n"
        "    try:\n"
        "        if kind == 0: out.sendall(rng.randbytes(rng.randint(1, 4000)))\n"
        "        if kind == 1: out.sendall(b'\\x16\\x03\\x01' + rng.randbytes(200))\n"
        "        if kind == 2: out.sendall(b'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')\n"
        "    except OSError: pass\n"
        "    out.close()\n"
    )
    await s.lab.client("python3", "-c", script)
    for _ in range(CONNECTIONS):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(host.socket))
            client.sendall(rng.randbytes(rng.randint(1, 2000)))


async def test_a_full_disk_stops_the_answers_and_room_brings_them_back() -> None:
    async with swarm(1, 0, image=False) as s:
        h1 = s.first
        await h1.run("swarmlet", "network", "create", "-d", "overlay", "before")
        await h1.stop_daemon()
        # A disk of its own, as small as a state with room for little more.
        size = await h1.run("du", "-sk", h1.state_dir)
        kilobytes = int(size.stdout.split()[0]) + 6000  # one segment of the log, and a little
        script = f"mount -t tmpfs -o size={kilobytes}k none /mnt && cp -a {h1.state_dir}/. /mnt/"
        await h1.run("sh", "-c", f"{script} && mount --move /mnt {h1.state_dir}")
        await h1.start_daemon()
        await h1.wait_ready()
        await eventually(s.nodes, until=lambda nodes: nodes["h1"]["Status"]["State"] == "ready")
        fill = f"dd if=/dev/zero of={h1.state_dir}/ballast bs=4k 2>/dev/null; true"
        await h1.run("sh", "-c", fill)

        async def create_until_refused() -> Completed:
            name = f"n{os.urandom(4).hex()}"
            # Large ones: the log's segments are as large as they will be from the start.
            labels = [word for n in range(100) for word in ("--label", f"l{n}={'x' * 4000}")]
            return await h1.run(
                "swarmlet", "network", "create", "-d", "overlay", *labels, name, check=False
            )

        done = await eventually(
            create_until_refused, until=lambda d: "disk" in d.stderr, within=60.0
        )
        assert "Traceback" not in done.stderr
        await h1.run("rm", f"{h1.state_dir}/ballast")
        await eventually(create_until_refused, until=lambda d: d.code == 0, within=30.0)
        assert "before" in (await h1.run("swarmlet", "network", "ls")).stdout


async def test_an_idle_cluster_writes_nothing() -> None:
    async with swarm(3, 0) as s:
        await s.create("web", "--replicas", "3", command=("sleep", "10000"))
        await trio.sleep(10)  # snapshots of what came before, and the last facts
        before = [_written(host) for host in s.hosts]
        await trio.sleep(30)
        assert [_written(host) for host in s.hosts] == before


def _written(host: Host) -> dict[int, int]:
    """Bytes that each process of the host has sent to the disk (proc(5), io)."""
    found = {}
    for process in host.processes():
        with open(f"/proc/{process.pid}/io") as file:
            counters = dict(line.split(": ") for line in file.read().splitlines())
        found[process.pid] = int(counters["write_bytes"])
    return found
