"""Supervisors on this machine: a busybox root, folders and a cgroup of their own, no remains."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import select
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import trio

from swarmlet.runtime import cgroups, hostside
from swarmlet.runtime.host import probe
from swarmlet.runtime.plan import Place, removal
from swarmlet.runtime.spec import ContainerSpec, Process, Root
from swarmlet.runtime.supervisor import Supervisor

#: Seconds after which a test hangs rather than waits.
TEST_TIMEOUT = 120.0
BUSYBOX = Path("/bin/busybox")
_APPLETS = """
    [ cat chmod chown cut date dd df echo env expr false grep head hostname id ip kill ls
    mkdir mknod mount nc nproc od ping printf ps pwd readlink rm sed seq sh sleep sort stat
    stty tail test top touch tr true tty umount uname unshare wc yes
"""
APPLETS = _APPLETS.split()
PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"
GROUP = "root:x:0:\napp:x:1000:\nextra:x:2000:app\n"


def make_layer(path: Path) -> Path:
    """Make a root file system of busybox."""
    for folder in ("bin", "etc", "root", "tmp", "home/app"):
        (path / folder).mkdir(parents=True)
    (path / "tmp").chmod(0o1777)
    shutil.copy(BUSYBOX, path / "bin/busybox")
    for applet in APPLETS:
        (path / "bin" / applet).symlink_to("busybox")
    (path / "etc/passwd").write_text(PASSWD)
    (path / "etc/group").write_text(GROUP)
    return path


class Lab:
    """One host's worth of containers under *base*."""

    def __init__(self, base: Path, layer: Path) -> None:
        self.base = base
        self.layer = layer
        self.run_dir = base / "run"
        self.state_dir = base / "state"
        self.parent = f"swarmlet-test-{secrets.token_hex(4)}"
        self.zygotes: set[int] = set()

    def spec(self, *args: str, **fields: Any) -> ContainerSpec:
        """Return a spec that runs *args*; *fields* of Process or ContainerSpec change it."""
        of_process = {field.name for field in dataclasses.fields(Process)}
        process_fields = {name: fields.pop(name) for name in list(fields) if name in of_process}
        process = Process(args=args, **process_fields)
        fields.setdefault("root", Root(layers=(str(self.layer),)))
        return ContainerSpec(process=process, **fields)

    @contextlib.asynccontextmanager
    async def supervisor(self) -> AsyncIterator[Supervisor]:
        """A daemon's life: its end leaves zygote and containers."""
        supervisor = Supervisor(
            run_dir=self.run_dir, state_dir=self.state_dir, cgroup_parent=self.parent
        )
        with trio.fail_after(TEST_TIMEOUT):
            async with self._run(supervisor):
                yield supervisor

    @contextlib.asynccontextmanager
    async def _run(self, supervisor: Supervisor) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            self.zygotes.add(supervisor.zygote_pid)
            try:
                yield
            finally:
                self.zygotes.add(supervisor.zygote_pid)
                nursery.cancel_scope.cancel()

    async def run(self, *args: str, **fields: Any) -> tuple[int, str]:
        """Run *args* in a container; return its exit code and all it wrote."""
        async with self.supervisor() as supervisor:
            return await run(supervisor, self.spec(*args, **fields))

    def clean(self) -> None:
        """End what a test, also a failed one, has left."""
        for pid in self.zygotes:
            kill_zygote(pid)
        driver = cgroups.driver(probe(), self.parent)
        folder = self.state_dir / "containers"
        for name in os.listdir(folder) if folder.exists() else ():
            place = Place(name, str(folder / name), str(self.run_dir / "containers" / name))
            hostside.execute(removal(driver, place))
        for root in cgroup_roots():
            hostside.prune_cgroups(root, self.parent)


async def run(supervisor: Supervisor, spec: ContainerSpec, name: str = "c") -> tuple[int, str]:
    """Run one container from creation to removal; return its exit code and all it wrote."""
    await supervisor.create(name, spec)
    await supervisor.start(name)
    status = await supervisor.wait(name)
    text = await output(supervisor, name)
    await supervisor.remove(name)
    return status.code, text


async def output(supervisor: Supervisor, name: str, **options: Any) -> str:
    return "".join([line.data.decode() async for line in supervisor.logs(name, **options)])


async def wait_for_output(supervisor: Supervisor, name: str, text: str) -> None:
    """Wait until *text* stands in the container's log."""
    with trio.fail_after(30):
        async with contextlib.aclosing(supervisor.logs(name, follow=True)) as lines:
            async for line in lines:
                if text in line.data.decode():
                    return
    raise AssertionError(f"{text!r} never came")


def kill_zygote(pid: int) -> None:
    """Kill the zygote *pid*, when it is one, and wait until it is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if Path(f"/proc/{pid}/comm").read_text().strip() == "swarmlet-zygote":
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            assert poll.poll(10_000), f"the zygote {pid} does not die"
    except (ProcessLookupError, FileNotFoundError):
        pass
    finally:
        os.close(pidfd)


def cgroup_roots() -> list[str]:
    host = probe()
    return [host.unified, *(item.path for item in host.hierarchies)]


def host_picture(lab: Lab) -> dict[str, list[str]]:
    """Return what a container must not leave changed: mounts and cgroups, as far as ours."""
    groups = [root for root in cgroup_roots() if Path(root, lab.parent).exists()]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return {
        "mounts": sorted(line for line in mounts if str(lab.base) in line),
        "cgroups": groups,
        "containers": os.listdir(folder)
        if (folder := lab.state_dir / "containers").exists()
        else [],
        "run": os.listdir(folder) if (folder := lab.run_dir / "containers").exists() else [],
    }


def own_descriptors() -> list[str]:
    """Return what this process has open, by kind."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(name.split(":")[0] for name in found)


def each_line(text: str) -> Iterator[tuple[str, str]]:
    """Split `name: value` lines, as of /proc/self/status."""
    for line in text.splitlines():
        name, separator, value = line.partition(":")
        if separator:
            yield name, value.strip()
