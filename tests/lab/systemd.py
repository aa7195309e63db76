"""A real systemd as the init of a PID namespace in a lab host: for tests of units.

It runs as in a container (systemd's CONTAINER_INTERFACE), in a cgroup below the host's, and knows
no units but those in a folder of its own, which covers /etc/systemd/system. /proc/sys is read-only
for it but for the host's network: some settings that systemd makes belong to the whole machine.
As LXC does, it leaves one /proc uncovered aside: else the kernel would let no container with users
of its own have one (mount_too_revealing).
"""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.lab import kernel
from tests.lab.host import Completed, Host
from tests.lab.waiting import eventually

PROGRAM = Path("/lib/systemd/systemd")
#: What a new cpuset needs before a process can join it (cgroup v1, cpusets(7)).
CPUSET = ("cpuset.cpus", "cpuset.mems")


@dataclass(frozen=True, slots=True)
class Systemd:
    host: Host
    pid: int  # of its PID 1, as the host sees it

    async def run(self, *argv: str, check: bool = True) -> Completed:
        """Run a command where this systemd is the init."""
        enter = ["nsenter", f"--target={self.pid}", "--pid", "--mount", "--wd=/"]
        return await self.host.run(*enter, *argv, check=check)

    async def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        said = await self.run("systemctl", "show", "--value", f"--property={name}", unit)
        return said.stdout.strip()


async def boot(host: Host) -> Systemd:
    """Start systemd in *host* and wait until it answers. It ends with the host."""
    units = host.folder / "units"
    units.mkdir(exist_ok=True)
    for name in ("multi-user.target", "sysinit.target", "basic.target", "shutdown.target"):
        (units / name).write_text(f"[Unit]\nDescription=a {name} for the lab\n")
    aside = shlex.quote(str(host.folder / "proc"))
    group = f"{host.cgroup_parent}/init"
    joins = []
    for root in kernel.cgroup_roots():
        make_group(root, group)
        joins.append(f"echo $$ > {root / group}/cgroup.procs")
    script = f"""set -e
    {"; ".join(joins)}
    mount -t proc proc /proc
    mkdir -p {aside} && mount -t proc proc {aside}
    mount --bind /proc/sys /proc/sys
    mount --bind /proc/sys/net /proc/sys/net
    mount -o remount,ro,bind /proc/sys
    mount --bind {shlex.quote(str(units))} /etc/systemd/system
    exec {PROGRAM} --system --unit=multi-user.target --show-status=no
    """
    environment = {"container": "lab", "SYSTEMD_UNIT_PATH": "/etc/systemd/system"}
    namespaces = ("--pid", "--fork", "--mount", "--propagation", "private")
    with (host.folder / "systemd.log").open("ab") as log:
        unshare = await host.popen(
            "unshare", *namespaces, "sh", "-c", script, env=environment, stdout=log, stderr=log
        )
    [first] = await eventually(lambda: kernel.children_of(unshare.pid))
    systemd = Systemd(host, kernel.pid_in(first, host.pid))

    async def has_booted() -> bool:
        said = await systemd.run("systemctl", "is-active", "multi-user.target", check=False)
        return said.stdout == "active\n"

    await eventually(has_booted)
    return systemd


def make_group(root: Path, group: str) -> None:
    path = root
    for name in group.split("/"):
        parent, path = path, path / name
        path.mkdir(exist_ok=True)
        for setting in CPUSET:
            with contextlib.suppress(FileNotFoundError):  # no cpuset in this hierarchy
                (path / setting).write_text((parent / setting).read_text())
