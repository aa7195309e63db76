"""The known ways out of a container, and over its limits: all held, and shown when they are not."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from swarmlet.runtime.audit import probes
from swarmlet.runtime.audit.outside import NAMESPACES, Look, examine
from swarmlet.runtime.spec import Namespaces, Resources
from tests.local.box import box
from tests.runtime.lab import Lab, cgroup_roots

#: What --privileged opens on any kernel; a module or a disk may not be there to be reached.
OPENED = {
    "mount",
    "fsopen",
    "open-tree",
    "release-agent",
    "core-pattern",
    "kmsg",
    "bpf",
    "userfaultfd",
    "keyring",
    "keys",
    "mount-namespace",
    "file-handle",
    "syslog",
    "clock",
    "hostname",
    "capability",
    "setuid",
    "exe",
    "ns-user",
    "root",
    "capabilities",
    "seccomp",
    "no-new-privs",
}
#: What only a network of one's own, users, or limits that were asked for hold.
LIMITS = {"limit-memory", "limit-pids"}


def audit(*words: str, code: int) -> dict[str, Any]:
    argv = [sys.executable, "-m", "swarmlet.runtime.audit.command", "--json", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def opened(found: dict[str, Any]) -> dict[str, str]:
    return {f["name"]: f["why"] for f in found["findings"] if f["result"] == "open"}


@pytest.mark.level4
def test_all_is_held_by_default() -> None:
    parent = "swarmlet-test-audit"
    found = audit("--cgroup-parent", parent, code=0)
    assert opened(found) == {}
    names = {f["name"] for f in found["findings"]}
    assert {name for name, _, _ in probes.PROBES} <= names
    assert found["held"] == len(found["findings"]) > 60
    why = {f["name"]: f["why"] for f in found["findings"]}
    assert "killed at the limit of 64 MiB" in why["memory"]
    assert "refused after" in why["processes"]
    assert not [root for root in cgroup_roots() if Path(root, parent).exists()]
    assert not list(Path("/var/tmp").glob("swarmlet-audit-*"))


@pytest.mark.level4
def test_privileged_shows_what_it_opens() -> None:
    """And so the audit is one that can fail."""
    found = opened(audit("--privileged", "--cgroup-parent", "swarmlet-test-audit", code=1))
    assert set(found) >= OPENED
    assert "memory" not in found
    assert "processes" not in found


@pytest.mark.level4
@pytest.mark.parametrize("users", ["private", "host"])
async def test_a_container_that_runs_is_audited_as_it_is(lab: Lab, users: str) -> None:
    namespaces = Namespaces(user=users)
    resources = Resources(memory_bytes=64 << 20, pids_max=20)
    async with lab.supervisor() as supervisor:
        spec = lab.spec("sleep", "1000", resources=resources, namespaces=namespaces)
        await supervisor.create("c", spec, start=True)
        pid = supervisor.containers["c"].pid
        state = str(lab.state_dir)
        expected = {"ns-user", "root"} if users == "host" else set()
        found = opened(audit("--pid", str(pid), "--state-dir", state, code=1 if expected else 0))
        assert set(found) == expected
        assert supervisor.containers["c"].status.running
        # What is shared with the host is said.
        await supervisor.create(
            "d",
            lab.spec("sleep", "1000", namespaces=Namespaces(pid="host", ipc="host")),
            start=True,
        )
        pid = supervisor.containers["d"].pid
        found = opened(audit("--pid", str(pid), "--state-dir", state, code=1))
        assert {"ns-pid", "ns-ipc", "host-processes", *LIMITS} <= set(found)
        for name in ("c", "d"):
            await supervisor.remove(name, force=True)


@pytest.mark.level5
async def test_the_command_audits_what_docker_run_has_made() -> None:
    async with box() as b:
        # As Docker's own: without being asked, setuid programs of the image work.
        limits = ("--memory", "64m", "--pids-limit", "30", "--security-opt", "no-new-privileges")
        await b.docker("run", "-d", "--name", "web", *limits, "busybox", "sleep", "1000")
        done = await b.swarmlet("audit", "--json", "web", check=False)
        found = json.loads(done.stdout)
        assert set(opened(found)) <= {"ns-user", "root"}
        await b.docker("run", "-d", "--name", "all", "--privileged", "busybox", "sleep", "1000")
        done = await b.swarmlet("audit", "all", check=False)
        assert done.code == 1
        assert "OPEN  a filter of system calls" in done.stdout
        refused = await b.swarmlet("audit", "nosuch", check=False)
        assert "No such container: nosuch" in refused.stderr
        refused = await b.swarmlet("audit", "--privileged", "web", check=False)
        assert "that the audit makes" in refused.stderr


# What is seen from outside, and how a probe's end is read.

STATUS = "Name:\tsleep\nCapBnd:\t00000000a80425fb\nNoNewPrivs:\t1\nSeccomp:\t2\n"
MOUNTS = "1 0 0:1 / / rw - overlay overlay rw\n2 1 0:2 / /proc rw - proc proc rw\n"


def look(**changes: Any) -> Look:
    fields: dict[str, Any] = {
        "status": STATUS,
        "mountinfo": MOUNTS,
        "namespaces": {name: f"{name}:[2]" for name in NAMESPACES},
        "host_namespaces": {name: f"{name}:[1]" for name in NAMESPACES},
        "uid_map": "         0     100000      65536\n",
        "descriptors": [],
        "groups": "4:memory:/swarmlet/c\n0::/swarmlet/c\n",
        "limits": {"memory": "64 MiB", "pids": "20"},
    }
    return Look(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"namespaces": {n: f"{n}:[{1 if n == 'net' else 2}]" for n in NAMESPACES}}, "ns-net"),
        ({"uid_map": "         0          0 4294967295\n"}, "root"),
        ({"status": STATUS.replace("a80425fb", "a82425fb")}, "capabilities"),
        ({"status": STATUS.replace("Seccomp:\t2", "Seccomp:\t0")}, "seccomp"),
        ({"status": STATUS.replace("NoNewPrivs:\t1", "NoNewPrivs:\t0")}, "no-new-privs"),
        ({"mountinfo": MOUNTS + "3 1 8:1 /x /x rw shared:5 - ext4 /dev/a rw\n"}, "propagation"),
        (
            {"mountinfo": MOUNTS + "3 1 0:9 /docker.sock /run/docker.sock rw - tmpfs tmpfs rw\n"},
            "sockets",
        ),
        ({"mountinfo": MOUNTS + "3 1 8:1 / /host rw - ext4 /dev/a rw\n"}, "disks"),
        ({"groups": "0::/\n"}, "group"),
        ({"limits": {"memory": "", "pids": "20"}}, "limit-memory"),
    ],
)
def test_what_is_seen_from_outside(changes: dict[str, Any], name: str) -> None:
    assert [f.name for f in examine(look()) if not f.held] == []
    assert [f.name for f in examine(look(**changes)) if not f.held] == [name]


def test_a_probe_is_held_only_if_it_was_refused() -> None:
    facts = probes.Facts(limits=False)

    def fails(code: int) -> Any:
        def probe(_: probes.Facts) -> None:
            raise OSError(code, "so")

        return probe

    assert probes.attempt(fails(errno.EPERM), facts) == (True, "so")
    assert probes.attempt(fails(errno.EINVAL), facts) == (False, "so")
    assert probes.attempt(lambda _: None, facts) == (False, "the kernel let it")
    assert probes.attempt(lambda f: f["nothing"], facts)[0] is False
