"""The doctor: what it judges, and what it finds on real hosts with real faults."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from swarmlet.cli.doctor import doctor as command
from swarmlet.doctor import Finding, Status, exit_code, kernel, machine, summary
from swarmlet.doctor.findings import NOT_TRIED, feature
from tests.lab import Host, Lab, eventually, residue

ROOT = Path(__file__).parent.parent
GIB = 1 << 30


def status_of(findings: list[Finding], name: str) -> Status:
    [status] = [finding.status for finding in findings if finding.name == name]
    return status


# Judgements.


@pytest.mark.parametrize(
    ("release", "status"),
    [
        ("6.1.0-28-amd64", Status.FOUND),
        ("5.14.0", Status.FOUND),
        ("5.10.0-34-arm64", Status.DEGRADED),
        ("4.19.0", Status.MISSING),
    ],
)
def test_an_old_kernel_is_named_with_what_is_better(release: str, status: Status) -> None:
    found = kernel.version(release)
    assert found.status is status
    assert bool(found.fix) == (status is not Status.FOUND)


def test_a_feature_that_failed_says_why_and_what_to_do() -> None:
    results: dict[str, str | None] = dict.fromkeys(kernel.FEATURES)
    results |= {"vxlan": "Unknown device type", "wireguard": "Operation not supported"}
    found = kernel.features(results)
    assert status_of(found, "veth") is Status.FOUND
    assert status_of(found, "vxlan") is Status.MISSING
    assert status_of(found, "wireguard") is Status.DEGRADED
    assert exit_code(found) == 1
    [vxlan] = [finding for finding in found if finding.name == "vxlan"]
    assert vxlan.detail == "Unknown device type"
    assert "modprobe vxlan" in vxlan.fix


def test_what_only_root_can_try_is_unknown_and_not_missing() -> None:
    found = kernel.features(dict.fromkeys(kernel.FEATURES, NOT_TRIED))
    assert {finding.status for finding in found} == {Status.UNKNOWN}
    assert exit_code(found) == 0
    assert "run it as root" in summary(found)


VERSION_2 = "30 23 0:26 / {root} rw shared:4 - cgroup2 cgroup2 rw,nsdelegate"
VERSION_1 = "31 23 0:27 / /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}"


def test_layouts_of_cgroups(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    pure = kernel.cgroups(VERSION_2.format(root=tmp_path))
    assert {finding.status for finding in pure} == {Status.FOUND}

    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io pids\n")  # a Raspberry Pi
    pi = kernel.cgroups(VERSION_2.format(root=tmp_path))
    assert status_of(pi, "memory") is Status.MISSING
    assert any("cgroup_enable=memory" in finding.fix for finding in pi)

    names = ["cpu,cpuacct", "memory", "pids", "cpuset", "blkio"]
    (tmp_path / "cgroup.controllers").write_text("")
    lines = [VERSION_2.format(root=tmp_path), *(VERSION_1.format(name=name) for name in names)]
    hybrid = kernel.cgroups("\n".join(lines))
    assert status_of(hybrid, "layout") is Status.DEGRADED
    assert status_of(hybrid, "io") is Status.FOUND

    assert status_of(kernel.cgroups("\n".join(lines[1:])), "layout") is Status.MISSING


def test_a_clock_that_was_never_set_or_that_nobody_corrects() -> None:
    assert machine.clock(0.0, False).detail == "it is 1970 here: the clock was never set"
    assert machine.clock(1.8e9, False).status is Status.DEGRADED
    assert machine.clock(1.8e9, True).status is Status.FOUND
    assert machine.clock(1.8e9, None).status is Status.FOUND


def test_disks() -> None:
    folder = Path("/var/lib/swarmlet")
    good = machine.disk(folder, "ext4", 10 * GIB, 1000, 0.001)
    assert {finding.status for finding in good} == {Status.FOUND}
    full = machine.disk(folder, "nfs4", GIB // 10, 1000, 0.2)
    assert [finding.status for finding in full] == [
        Status.MISSING,
        Status.MISSING,
        Status.DEGRADED,
    ]
    assert status_of(machine.disk(folder, "tmpfs", GIB, 0, 0), "space") is Status.MISSING
    assert status_of(machine.disk(folder, "tmpfs", GIB, 5, 0), "file system") is Status.DEGRADED


def test_the_file_system_is_the_one_mounted_last_and_deepest() -> None:
    mounts = "\n".join(
        f"1 1 0:1 / {point} rw - {kind} none rw"
        for point, kind in (("/", "ext4"), ("/var", "xfs"), ("/var", "btrfs"), ("/v", "nfs"))
    )
    assert machine.file_system_of(Path("/var/lib"), mounts) == "btrfs"
    assert machine.file_system_of(Path("/etc"), mounts) == "ext4"


def test_only_chains_that_drop_on_the_way_in_or_through_matter() -> None:
    chain = {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward"}
    entries: list[dict[str, Any]] = [
        {"metainfo": {}},
        {"chain": {**chain, "policy": "drop"}},
        {"chain": {**chain, "name": "INPUT", "hook": "input", "policy": "accept"}},
        {"chain": {**chain, "name": "OUTPUT", "hook": "output", "policy": "drop"}},
        {"chain": {"family": "ip", "table": "filter", "name": "DOCKER"}},
    ]
    assert machine.dropping(entries) == ["ip filter FORWARD"]


def test_a_finding_that_is_amiss_has_its_reason_and_its_remedy() -> None:
    found = feature("tools", "x", "not there", why="y", fix="z", optional=True)
    assert found.as_json() == {
        "group": "tools",
        "name": "x",
        "status": "degraded",
        "detail": "not there",
        "why": "y",
        "fix": "z",
    }


def test_without_root_it_tells_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = CliRunner().invoke(command, ["--json", "--port", "0", "--data-path-port", "0"])
    told = json.loads(done.output)
    states = {one["name"]: one["status"] for one in told["findings"]}
    assert states["vxlan"] == "unknown"
    assert states["libnftables.so.1"] == "found"
    assert "root" in told["summary"]


# Real hosts.


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with Lab(1) as lab:
        yield lab.hosts[0]


async def examine(host: Host, *options: str) -> tuple[int, dict[str, dict[str, str]]]:
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from swarmlet.cli.doctor import doctor; doctor()"
    )
    argv = [sys.executable, "-c", program, "--json", *options]
    environment = {"PYTHONPATH": str(ROOT)}
    done = await host.run(*argv, check=False, env=environment)
    told = json.loads(done.stdout)
    assert told["exit_code"] == done.code
    return done.code, {one["name"]: one for one in told["findings"]}


@pytest.mark.level4
async def test_a_host_of_the_lab_can_run_swarmlet_and_is_not_changed_by_the_question(
    host: Host,
) -> None:
    code, found = await examine(host, "--state-dir", str(host.state_dir / "new" / "folder"))
    assert code == 0, [one for one in found.values() if one["status"] == "missing"]
    for name in ("overlayfs", "vxlan", "nftables", "PID namespace", "memory", "port 7947/TCP"):
        assert found[name]["status"] == "found", found[name]
    assert await residue(host, purged=True) == []


@pytest.mark.level4
async def test_real_faults_are_found(host: Host) -> None:
    listen = "import socket, time; s = socket.create_server(('', 7947)); time.sleep(600)"
    await host.popen(sys.executable, "-c", listen)
    script = """set -e
    ip link add vx9 type vxlan id 9 dstport 4789 local 127.0.0.1
    ip link set vx9 up
    nft add table inet guard
    nft 'add chain inet guard in { type filter hook input priority 0; policy drop; }'
    hostname localhost
    mkdir /run/state
    """
    await host.run("sh", "-c", script)

    async def is_taken() -> bool:
        return (await host.run("ss", "-Hltn", "sport = 7947")).stdout != ""

    await eventually(is_taken)
    code, found = await examine(host, "--state-dir", "/run/state")
    assert code == 1
    assert found["port 7947/TCP"]["status"] == "missing"
    assert found["port 7947/TCP"]["detail"] == "in use"
    assert found["port 7947/UDP"]["status"] == "found"
    assert found["port 4789/UDP"]["status"] == "missing"
    assert "inet guard in" in found["firewall"]["detail"]
    assert found["host name"]["status"] == "degraded"
    assert found["file system"]["detail"].endswith("forgets its swarm when it reboots")


@pytest.mark.level4
async def test_a_right_that_was_taken_away_is_missed(host: Host) -> None:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + (
        "from swarmlet.cli.doctor import doctor; doctor(['--json'])"
    )
    less = ("setpriv", "--bounding-set=-sys_admin", "--")
    done = await host.run(
        *less, sys.executable, "-c", program, env={"PYTHONPATH": str(ROOT)}, check=False
    )
    found = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
    assert done.code == 1
    for name in ("CAP_SYS_ADMIN", "mount namespace", "overlayfs", "vxlan"):
        assert found[name]["status"] == "missing", found[name]
