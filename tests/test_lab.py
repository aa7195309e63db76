"""The lab itself: whoever tests with it must be able to trust it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.lab import (
    Host,
    Lab,
    LabError,
    eventually,
    kernel,
    leftovers,
    reap_dead_labs,
    remove,
    residue,
    visit,
)
from tests.lab.network import between, rules
from tests.lab.rootfs import write_rootfs

ROOT = Path(__file__).parent.parent

#: A daemon as small as one can be: it answers the ping on the socket where the lab expects it.
STAND_IN = """
import http.server, os, socketserver
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"OK")
    def log_message(self, *words): print("answered", self.path, flush=True)
    def address_string(self): return "-"
os.makedirs("/run/swarmlet")
socketserver.ThreadingUnixStreamServer("/run/swarmlet/swarmlet.sock", Handler).serve_forever()
"""
PYTHON = (sys.executable, "-I", "-S", "-c")


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with Lab(2) as lab:
        yield lab


async def reaches(source: Host, target: Host) -> bool:
    ping = ("busybox", "ping", "-c1", "-W1", target.address)
    return (await source.run(*ping, check=False)).code == 0


# The pure parts.


def test_a_partition_cuts_both_ways_between_groups_and_nothing_within_them() -> None:
    assert between([[1], [2, 3]]) == {(1, 2), (1, 3), (2, 1), (3, 1)}


def test_a_cut_in_one_direction_lets_arp_pass() -> None:
    one_way = rules({(1, 2)}, {})
    assert "iifname p1 oifname p2 ether type != arp drop" in one_way
    both = rules({(1, 2), (2, 1)}, {})
    assert "iifname p1 oifname p2 drop" in both
    assert "iifname p2 oifname p1 drop" in both


async def test_eventually_tells_what_it_saw_last() -> None:
    seen = iter("abc")
    assert await eventually(lambda: next(seen), until=lambda value: value == "b", every=0) == "b"
    with pytest.raises(AssertionError, match="2 of 3 nodes"):
        await eventually(lambda: "2 of 3 nodes", until=lambda _: False, within=0.01, every=0.001)
    with pytest.raises(AssertionError, match="did not end"):
        await eventually(trio.sleep_forever, within=0.01)


# A host is like a machine.


@pytest.mark.level4
async def test_a_host_sees_itself_and_its_neighbours_and_no_way_out(lab: Lab) -> None:
    h1, h2 = lab.hosts
    assert (await h1.run("hostname")).stdout == "h1\n"
    assert (await h1.run("ls", "/sys/class/net")).stdout.split() == ["eth0", "lo"]
    assert (await h1.run("ip", "route")).stdout.splitlines() == [
        f"10.77.{lab.number}.0/24 dev eth0 proto kernel scope link src {h1.address} "
    ]
    assert (await h1.run("cat", "/proc/1/comm")).stdout == "cat\n"
    assert (await h1.run("ls", "/sys/fs/cgroup")).stdout.split() == sorted(
        os.listdir("/sys/fs/cgroup")
    )
    assert await reaches(h1, h2)
    assert (await lab.client("busybox", "ping", "-c1", "-W1", h2.address)).code == 0
    assert (await h1.run("busybox", "ping", "-c1", "-W1", "h2")).code == 0  # /etc/hosts


@pytest.mark.level4
async def test_orphans_are_reaped(lab: Lab) -> None:
    h1 = lab.hosts[0]
    await h1.run("sh", "-c", "(sleep 0.01 &) ; (sleep 600 >/dev/null 2>&1 &)")
    left = await eventually(h1.processes, until=lambda found: len(found) == 1)
    assert left[0].command == "sleep 600"


@pytest.mark.level4
async def test_a_power_cut_spares_the_disk_and_nothing_else(lab: Lab) -> None:
    h1, h2 = lab.hosts
    card = (await h1.run("cat", "/sys/class/net/eth0/address")).stdout
    await h1.run("sh", "-c", f"echo kept > {h1.state_dir}/file; echo lost > /run/file")
    await h1.run("sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & ip link add v0 type veth")
    await h1.run("unshare", "--net=/run/other", "true", check=False)
    running = await h1.popen("sleep", "600")
    inner = [process.pid for process in h1.processes()]
    await h1.kill()
    assert running.code == -signal.SIGKILL
    assert not any(kernel.start_time(pid) for pid in inner)
    assert not await reaches(h2, h1)
    await h1.boot()
    assert (await h1.run("cat", f"{h1.state_dir}/file")).stdout == "kept\n"
    assert (await h1.run("cat", "/run/file", check=False)).code == 1
    assert (await h1.run("ls", "/sys/class/net")).stdout.split() == ["eth0", "lo"]
    assert (await h1.run("cat", "/sys/class/net/eth0/address")).stdout == card
    assert await reaches(h2, h1)


@pytest.mark.level4
async def test_a_frozen_container_does_not_survive_a_power_cut(lab: Lab) -> None:
    h1 = lab.hosts[0]
    sleeper = await h1.popen("sleep", "600")
    freezers = []
    for root in kernel.cgroup_roots():
        for file, value in (("freezer.state", "FROZEN"), ("cgroup.freeze", "1")):
            group = root / h1.cgroup_parent / "container"
            group.mkdir(parents=True, exist_ok=True)
            if (group / file).exists():
                (group / "cgroup.procs").write_text(str(sleeper.pid))
                freezers.append(group / file)
                freezers[-1].write_text(value)
    assert freezers, "this machine has no freezer"
    await h1.kill()
    assert not [path for path in freezers if path.exists()]


@pytest.mark.level4
async def test_a_container_is_known_by_its_pid_namespace(lab: Lab) -> None:
    h1, h2 = lab.hosts
    await h1.popen("unshare", "--pid", "--fork", "unshare", "--pid", "--fork", "sleep", "600")
    nested = await eventually(h1.container_pids, until=lambda pids: len(pids) == 2)
    assert "sleep 600" in [kernel.command_of(pid) for pid in nested]
    assert h2.container_pids() == []


# Commands.


@pytest.mark.level4
async def test_a_failed_command_shows_what_it_said(lab: Lab) -> None:
    h1 = lab.hosts[0]
    with pytest.raises(LabError, match=r"(?s)\$ sh -c .*no such image.*exit 3"):
        await h1.run("sh", "-c", "echo no such image >&2; exit 3")
    assert (await h1.run("cat", stdin="given")).stdout == "given"
    assert (await h1.run("sh", "-c", "exit 3", check=False)).code == 3


@pytest.mark.level4
async def test_a_command_that_hangs_is_killed_whole(lab: Lab) -> None:
    h1 = lab.hosts[0]
    with pytest.raises(LabError, match=r"(?s)no end within 0.2 s.*so far"):
        await h1.run("sh", "-c", "echo so far; exec sleep 600", within=0.2)
    assert h1.processes() == []


# The daemon's life, with a stand-in for the daemon.


@pytest.mark.level4
async def test_daemon_is_started_found_ready_paused_and_stopped(lab: Lab) -> None:
    h1 = lab.hosts[0]
    assert not await h1.is_ready()
    await h1.start_daemon(command=(*PYTHON, STAND_IN))
    await h1.wait_ready()
    assert (await h1.api("GET", "/_ping")).body == b"OK"
    h1.pause()
    assert not await h1.is_ready()
    h1.resume()
    await h1.wait_ready()
    assert await h1.stop_daemon() == -signal.SIGTERM
    assert "answered /_ping" in h1.last_words(1000)  # the ping that nobody waited for says more


@pytest.mark.level4
async def test_a_daemon_that_ends_at_once_is_reported_with_its_last_words(lab: Lab) -> None:
    h1 = lab.hosts[0]
    await h1.start_daemon(command=("sh", "-c", "echo port in use; exit 4"))
    with pytest.raises(LabError, match=r"(?s)h1: daemon exited 4:.*port in use"):
        await h1.wait_ready()


@pytest.mark.level4
async def test_the_image_serves_who_answers_and_who_asks(lab: Lab, tmp_path: Path) -> None:
    h1, h2 = lab.hosts
    with tarfile.open(write_rootfs(tmp_path / "image.tar")) as tar:
        tar.extractall(tmp_path / "root", filter="fully_trusted")
    chroot = ("chroot", str(tmp_path / "root"))
    await h1.popen(*chroot, "httpd", "-f", "-p", "80", "-h", "/www")
    url = f"http://{h1.address}/"
    said = await eventually(lambda: lab.client("curl", "--silent", url))
    assert said.stdout == f"hello [::ffff:{lab.client_address}] from h1\n"
    request = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc {h1.address} 80"
    answer = await h2.run(*chroot, "sh", "-c", request)
    assert f"hello [::ffff:{h2.address}] from h1" in answer.stdout


# Faults of the network.


@pytest.mark.level4
async def test_a_pulled_cable_and_a_new_address(lab: Lab) -> None:
    h1, h2 = lab.hosts
    await h1.cut()
    assert not await reaches(h2, h1)
    await h1.heal()
    await eventually(lambda: reaches(h2, h1))
    old = h1.address
    await h1.renumber(f"10.77.{lab.number}.77")
    assert await reaches(h2, h1)
    assert (await h2.run("busybox", "ping", "-c1", "-W1", old, check=False)).code


@pytest.mark.level4
async def test_partition_one_way_cut_and_mending(lab: Lab) -> None:
    h1, h2 = lab.hosts
    await lab.partition([h1], [h2])
    assert not await reaches(h1, h2)
    await lab.mend()
    # A neighbour that did not answer is asked again each second, as long as a ping waits.
    await eventually(lambda: reaches(h1, h2))
    await lab.cut_one_way(h1, h2)
    assert await _datagrams(h2, h1, 10) == 10
    assert await _datagrams(h1, h2, 10) == 0


@pytest.mark.level4
async def test_loss_drops_some_packets_and_tells_no_sender(lab: Lab) -> None:
    h1, h2 = lab.hosts
    await lab.lose(50, h2)
    assert 0 < await _datagrams(h1, h2, 200) < 200
    assert await _datagrams(h2, h1, 200) == 200


async def _datagrams(source: Host, target: Host, count: int) -> int:
    """How many of *count* datagrams arrive. The sender fails if the network tells it anything.

    The socket's buffer holds some 270 of them, so *count* must be less: it is read afterwards.
    """
    receiver = await target.popen(
        *PYTHON,
        "import socket, sys\n"
        "s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 9999))\n"
        "print('bound', flush=True); sys.stdin.read(); s.settimeout(0.2); n = 0\n"
        "try:\n"
        "    while True: s.recv(9); n += 1\n"
        "except TimeoutError: print(n)",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    given, said = receiver.outer.stdin, receiver.outer.stdout
    assert given is not None
    assert said is not None
    async with said:
        assert await said.receive_some(6) == b"bound\n"
        await source.run(
            *PYTHON,
            "import socket\n"
            "s = socket.socket(type=socket.SOCK_DGRAM)\n"
            f"for _ in range({count}): s.sendto(b'x', ({target.address!r}, 9999))",
        )
        await given.aclose()
        number = b"".join([chunk async for chunk in said])
    await receiver.wait()
    return int(number)


# Nothing is left behind.


@pytest.mark.level4
async def test_residue_names_everything_that_was_left(lab: Lab) -> None:
    h1 = lab.hosts[0]
    assert await residue(h1, purged=True) == []
    await h1.run("ip", "link", "add", "swlx", "type", "bridge")
    await h1.run("ip", "address", "add", "10.9.9.9/24", "dev", "swlx")
    await h1.run("ip", "rule", "add", "fwmark", "7", "table", "77")
    await h1.run("ip", "route", "add", "10.9.8.0/24", "dev", "eth0", "table", "77")
    await h1.run("nft", "add", "table", "inet", "swarmlet")
    await h1.run("sh", "-c", f"mkdir /run/swarmlet; touch {h1.state_dir}/wal /run/swarmlet/ns")
    await h1.run("unshare", "--net=/run/swarmlet/ns", "true")
    await h1.popen("sleep", "600")
    group = next(iter(kernel.cgroup_roots())) / h1.cgroup_parent
    group.mkdir(parents=True)
    left = await residue(h1, purged=True)
    kinds = {entry.split(" ")[0] for entry in left}
    assert kinds == {
        *("address", "cgroup", "file", "link", "mount", "nft", "process", "route", "rule", "state")
    }
    for expected in (
        "address 10.9.9.9 on swlx",
        f"cgroup {group}",
        "file /run/swarmlet/ns",
        "link swlx",
        "mount /run/swarmlet/ns",
        "nft table inet swarmlet",
        "route 10.9.8.0/24 eth0 77",
        f"state {h1.state_dir}/wal",
    ):
        assert expected in left


@pytest.mark.level4
async def test_a_lab_leaves_nothing_also_after_a_failure() -> None:
    numbers: list[int] = []

    async def failing() -> None:
        async with Lab(2) as lab:
            numbers.append(lab.number)
            await lab.hosts[0].popen("sleep", "600")
            assert leftovers(lab.number)
            raise RuntimeError("the test failed")

    with pytest.raises(RuntimeError, match="the test failed"):
        await failing()
    assert leftovers(numbers[0]) == []


@pytest.mark.level4
async def test_two_labs_do_not_meet() -> None:
    async with Lab(1) as one, Lab(1) as other:
        assert one.number != other.number
        assert one.hosts[0].address != other.hosts[0].address
        assert not await reaches(one.hosts[0], other.hosts[0])


def _owner(program: str) -> subprocess.Popen[str]:
    """Another process that owns a lab, and says its number."""
    return subprocess.Popen(
        [sys.executable, "-c", f"import trio\nfrom tests.lab import Lab\n{program}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.level4
async def test_a_killed_owner_takes_its_hosts_along_and_the_next_lab_clears_up() -> None:
    owner = _owner(
        "async def main():\n"
        "    async with Lab(1) as lab:\n"
        "        await lab.hosts[0].popen('sleep', '600')\n"
        "        print(lab.number, lab.hosts[0].pid, flush=True)\n"
        "        await trio.sleep_forever()\n"
        "trio.run(main)"
    )
    with owner:
        assert owner.stdout is not None
        line = await trio.to_thread.run_sync(owner.stdout.readline)
        number, first = map(int, line.split())
        owner.kill()
    await eventually(lambda: kernel.start_time(first) is None)
    # Another run of tests on this machine may clear up first: what counts is that it is gone.
    await trio.to_thread.run_sync(reap_dead_labs)
    assert await eventually(lambda: leftovers(number), until=lambda found: not found) == []


@pytest.mark.level4
async def test_a_kept_lab_outlives_its_owner_until_it_is_removed() -> None:
    owner = _owner(
        "async def main():\n"
        "    async with Lab(1, kept=True) as lab:\n"
        "        await lab.hosts[0].popen('sleep', '600')\n"
        "        print(lab.number, lab.hosts[0].pid, flush=True)\n"
        "trio.run(main)"
    )
    with owner:
        out, _ = await trio.to_thread.run_sync(owner.communicate)
    number, first = map(int, out.split())
    try:
        assert owner.returncode == 0
        assert number not in await trio.to_thread.run_sync(reap_dead_labs)
        assert kernel.start_time(first)
        host = visit.the_host(visit.the_lab(number), "h1")
        assert (host.pid, host.address) == (first, f"10.77.{number}.1")
        argv = host.argv("sh", "-c", "hostname; echo $SWARMLET_HOST")
        said = await trio.run_process(argv, env=host.environment, capture_stdout=True)
        assert said.stdout.decode().split() == ["h1", "unix:///run/swarmlet/swarmlet.sock"]
        with pytest.raises(LabError, match="no running host h2: it has h1"):
            visit.the_host(number, "h2")
    finally:
        await trio.to_thread.run_sync(remove, number)
    assert await eventually(lambda: leftovers(number), until=lambda found: not found) == []
