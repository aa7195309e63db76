"""The service: a real systemd runs the unit, and an uninstall leaves a living host as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from swarmlet import install
from swarmlet.cli.install import install as install_command
from swarmlet.cli.install import uninstall as uninstall_command
from swarmlet.install import Places
from swarmlet.uninstall import unescaped
from tests.lab import Host, Lab, eventually, kernel, residue, systemd
from tests.lab.rootfs import write_rootfs

ROOT = Path(__file__).parent.parent


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with Lab(1) as lab:
        yield lab.hosts[0]


# The unit, as text.


def test_places_are_read_back_from_the_unit_and_the_configuration() -> None:
    command = ["/opt/my apps/swarmlet", "daemon", "--state-dir", "/data/100% $sure"]
    text = install.unit([*command, "--name", 'a"b'])
    config = 'state_dir = "/elsewhere"\ncgroup-parent = "machine/swl"\ndata_path_port = 1\n'
    assert install.places_of(text, config) == Places(
        state_dir=Path("/data/100% $sure"), cgroup_parent="machine/swl"
    )
    assert install.places_of("", "") == install.places_of("", "no = [toml") == Places()


@pytest.mark.level4
def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    path = tmp_path / "swarmlet.service"
    path.write_text(install.unit(["/bin/true", "--name", "two words", "--state-dir", "/a%b"]))
    if not Path("/usr/bin/systemd-analyze").exists():
        pytest.skip("no systemd-analyze on this machine")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True, check=False
    )
    assert "swarmlet.service" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr


def test_a_word_of_the_unit_stays_one_word() -> None:
    assert install.quoted("/usr/bin/x") == "/usr/bin/x"
    assert install.quoted("two words") == '"two words"'
    assert install.quoted("100%") == "100%%"
    assert install.quoted("$HOME") == '"$$HOME"'
    assert install.quoted("") == '""'


# Refusals that say what to do.


def test_without_systemd_install_tells_what_to_run_instead(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(install, "BOOTED", tmp_path / "absent")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    done = CliRunner().invoke(install_command, ["--advertise", "10.0.0.5"])
    assert done.exit_code == 1
    assert "does not run systemd" in done.output
    assert "swarmlet daemon --advertise 10.0.0.5" in done.output


@pytest.mark.parametrize("command", [install_command, uninstall_command], ids=lambda c: c.name)
def test_without_root_it_says_so(command: click.Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = CliRunner().invoke(command)
    assert done.exit_code == 1
    assert "root is needed" in done.output


def test_mount_points_are_read_as_the_kernel_writes_them() -> None:
    assert unescaped(r"/a\040b\134c") == r"/a b\c"


# A daemon as small as one can be, with systemd's protocol, our socket, a zygote and its containers.

STAND_IN = """#!{python}
import os, socket, subprocess, sys
import trio
from swarmlet.sdnotify import Supervisor

state, run, parent = (sys.argv[sys.argv.index(name) + 1] for name in
                      ("--state-dir", "--run-dir", "--cgroup-parent"))
os.makedirs(run, exist_ok=True); os.makedirs(state, exist_ok=True)
listener = socket.socket(socket.AF_UNIX)
if os.path.exists(run + "/swarmlet.sock"): os.unlink(run + "/swarmlet.sock")
listener.bind(run + "/swarmlet.sock")
wal = open(state + "/wal", "a")
if not os.path.exists(run + "/zygote.log"):
    os.mkfifo(run + "/fifo")
    zygote = "printf swarmlet-zygote > /proc/self/comm; read _ <> " + run + "/fifo"
    log = open(run + "/zygote.log", "a")
    subprocess.Popen(["sh", "-c", zygote], stdout=log, start_new_session=True)

async def main():
    supervisor = Supervisor.from_environment(os.environ)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.feed_watchdog)
        supervisor.ready("worker")
        while not os.path.exists(state + "/hang"): await trio.sleep(0.05)
        os.unlink(state + "/hang")
        import signal; signal.pause()
trio.run(main)
"""


@pytest.fixture
def program(host: Host) -> Path:
    path = host.folder / "swarmlet"
    path.write_text(STAND_IN.format(python=sys.executable))
    path.chmod(0o755)
    return path


def words(host: Host, below: str = "") -> list[str]:
    places = ["--state-dir", str(host.state_dir), "--run-dir", str(host.run_dir)]
    return [*places, "--cgroup-parent", host.cgroup_parent + below]


def command(*argv: str, program: Path | None = None, watchdog: int = 30) -> list[str]:
    """One of our commands, run by the code of this tree, with the stand-in as the daemon."""
    lines = [
        f"import sys; sys.path.insert(0, {str(ROOT)!r})",
        "from swarmlet import install",
        f"install.WATCHDOG_SECONDS = {watchdog}",
        f"install.program = lambda: {str(program)!r}",
        f"from swarmlet.cli.install import {argv[0]}",
        f"{argv[0]}({list(argv[1:])!r}, prog_name='swarmlet')",
    ]
    return [sys.executable, "-c", "\n".join(lines)]


@pytest.mark.level4
async def test_systemd_starts_restarts_and_forgets_the_daemon(host: Host, program: Path) -> None:
    if not systemd.PROGRAM.exists():
        pytest.skip("no systemd on this machine")
    init = await systemd.boot(host)
    name = install.UNIT.name
    done = await init.run(
        *command("install", *words(host, "/containers"), program=program, watchdog=1)
    )
    assert "started" in done.stdout
    assert await init.show(name, "ActiveState") == "active"
    assert await init.show(name, "StatusText") == "worker"
    assert (await init.run("systemctl", "is-enabled", name)).stdout == "enabled\n"
    first = await init.show(name, "MainPID")

    async def main_pid() -> str:
        return await init.show(name, "MainPID")

    def zygotes() -> list[int]:
        names = {p.pid: Path(f"/proc/{p.pid}/comm").read_text() for p in host.processes()}
        return [pid for pid, name in names.items() if name == "swarmlet-zygote\n"]

    zygote = zygotes()
    # A daemon that was killed is started again; the zygote does not notice.
    await init.run("kill", "-9", first)
    second = await eventually(main_pid, until=lambda pid: pid not in ("0", first))
    # One whose loop hangs is killed by the watchdog, and started again.
    (host.state_dir / "hang").touch()
    await eventually(main_pid, until=lambda pid: pid not in ("0", first, second))
    assert await init.show(name, "NRestarts") == "2"
    assert zygotes() == zygote != []
    # The same install again changes nothing; another one is refused without --force.
    await init.run(
        *command("install", "--no-start", *words(host, "/containers"), program=program, watchdog=1)
    )
    refused = await init.run(*command("install", program=program, watchdog=1), check=False)
    assert refused.code == 1
    assert "--force" in refused.stderr

    done = await init.run(*command("uninstall", "--purge"))
    assert "swarmlet is gone" in done.stdout
    assert zygotes() == []
    assert not (host.folder / "units" / name).exists()
    assert await init.show(name, "LoadState") == "not-found"
    assert list(host.state_dir.parent.glob("state")) == []


@pytest.mark.level4
async def test_uninstall_leaves_a_living_host_as_it_was(host: Host, program: Path) -> None:
    await host.start_daemon(command=(str(program), "daemon", *words(host)))
    await eventually((host.outside(host.run_dir) / "swarmlet.sock").exists)
    await make_everything(host)
    kinds = {entry.split(" ")[0] for entry in await residue(host, purged=True)}
    everything = "process mount cgroup file link address route rule nft state"
    assert kinds == set(everything.split()), "not all that can be left is there to be removed"
    theirs = await host.popen("tail", "-f", str(host.state_dir / "wal"))
    done = await host.run(*command("uninstall", "--purge", *words(host)))
    assert "swarmlet is gone" in done.stdout
    assert theirs.code is None, "a stranger's process was killed"
    await theirs.kill()
    assert await residue(host, purged=True) == []
    # Again, with nothing there: nothing to do, and no complaint.
    assert "gone" in (await host.run(*command("uninstall", "--purge", *words(host)))).stdout


@pytest.mark.level4
async def test_uninstall_keeps_the_state_and_what_is_not_ours(host: Host) -> None:
    (host.state_dir / "node.key").write_text("secret")
    for argv in (
        ("ip", "link", "add", "swlx", "type", "bridge"),  # our name, but not our alias
        ("nft", "add", "table", "inet", "swl2"),
        ("ip", "rule", "add", "fwmark", "0x53", "table", "77"),
    ):
        await host.run(*argv)
    before = await residue(host, purged=True)
    done = await host.run(*command("uninstall", *words(host)))
    assert f"kept {host.state_dir}" in done.stdout
    assert await residue(host, purged=True) == before


async def make_everything(host: Host) -> None:
    """What a daemon with tasks leaves when it crashes, by the names of the overlay and runtime."""
    run = host.run_dir
    script = f"""set -e
    mkdir -p {run}/netns {host.state_dir}/merged {host.state_dir}/volumes/shop
    touch {run}/netns/overlay@shop
    unshare --net={run}/netns/overlay@shop ip link add vx0 type vxlan id 7 dstport 4789
    mount -t tmpfs tmpfs {host.state_dir}/merged
    mount -t tmpfs tmpfs {host.state_dir}/merged
    ip link add swl-gw type bridge
    ip link set swl-gw alias swl:bridge up
    ip address add 10.200.0.1/16 dev swl-gw
    ip link add swl-1 type veth peer name gw0 netns {run}/netns/overlay@shop
    ip link set swl-1 alias swl:gw0@task
    ip link add swl-2 type veth peer name swl-3
    ip link set swl-2 alias swl:one-end
    ip link set swl-3 alias swl:other-end
    ip rule add fwmark 0x53000002/0xffffffff table 1392508930 priority 5000
    ip route add 10.99.0.0/16 dev swl-gw table 1392508930
    nft add table ip swl
    """
    await host.run("sh", "-c", script)
    await host.popen("unshare", "--pid", "--fork", "sleep", "600")
    contained = await eventually(host.container_pids)
    frozen = await host.popen("sleep", "600")
    for root in kernel.cgroup_roots():
        for name, pids in (("one", contained), ("frozen", [frozen.pid])):
            systemd.make_group(root, f"{host.cgroup_parent}/{name}")
            for pid in pids:
                (root / host.cgroup_parent / name / "cgroup.procs").write_text(str(pid))
    for root in kernel.cgroup_roots():
        for file, value in (("freezer.state", "FROZEN"), ("cgroup.freeze", "1")):
            path = root / host.cgroup_parent / "frozen" / file
            if path.exists():
                path.write_text(value)


# The real daemon under the real systemd.


@pytest.mark.level5
async def test_a_restart_of_the_service_is_not_noticed_by_its_containers(
    host: Host, tmp_path: Path
) -> None:
    if not systemd.PROGRAM.exists():
        pytest.skip("no systemd on this machine")
    init = await systemd.boot(host)
    name = install.UNIT.name
    options = [
        "--listen",
        f"{host.address}:7947",
        "--advertise",
        host.address,
        *words(host, "/swl"),
    ]
    swarmlet = ("env", f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}", "swarmlet")
    await init.run(*swarmlet, "install", "--name", host.name, *options)
    assert await init.show(name, "ActiveState") == "active"
    await init.run(*swarmlet, "init")
    image = write_rootfs(tmp_path / "image.tar")
    await init.run(*swarmlet, "image", "import", str(image), "busybox")
    create = ("service", "create", "--detach", "--name", "web", "--replicas", "2")
    await init.run(*swarmlet, *create, "busybox", "sleep", "100000")

    def sleepers() -> list[int]:
        commands = {pid: kernel.command_of(pid) for pid in host.container_pids()}
        return sorted(pid for pid, command in commands.items() if command == "sleep 100000")

    before = await eventually(sleepers, until=lambda found: len(found) == 2)
    daemon = await init.show(name, "MainPID")
    await init.run("systemctl", "restart", name)
    assert await init.show(name, "MainPID") != daemon

    async def replicas() -> str:
        return (await init.run(*swarmlet, "service", "ls", check=False)).stdout

    await eventually(replicas, until=lambda said: "2/2" in said)
    assert sleepers() == before
    await init.run(*swarmlet, "uninstall", "--purge")
    assert sleepers() == []
    assert list(host.state_dir.parent.glob("state")) == []
