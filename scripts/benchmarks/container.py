"""How fast does a container start and end, and what does one that idles cost?

Through the zygote: `Supervisor.create(start=True)`, wait, remove, with all namespaces, an overlay,
memory, CPU and pids limits and the seccomp filter, called in this process. runc and crun run a
bundle with the same namespaces and limits, but no overlay and no filter, for which they have no
profile of their own. The command lines run against daemons of their own on hosts of the lab.

crun and podman refuse the hybrid layout of cgroups, so for them cgroup2 is covered by a tmpfs.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from scripts.benchmarks.accounts import MIB, cpu_of, memory_of
from scripts.benchmarks.report import OURS, Report
from scripts.benchmarks.sides import IMAGE, Side, Stopwatch
from swarmlet.runtime.spec import ContainerSpec, Namespaces, Resources
from swarmlet.runtime.supervisor import Supervisor
from tests.lab import Lab, LabError
from tests.runtime import lab as runtime_lab

RUNS, RUNS_QUICK = 40, 8
AT_ONCE = 50
IDLE, IDLE_QUICK = 100, 20
REST, REST_QUICK = 60.0, 10.0
LIMITS = Resources(memory_bytes=256 << 20, cpu_quota_us=100_000, pids_max=100)
#: The OCI runtimes, and whether they want cgroup2 covered.
RUNTIMES = {"crun": True, "runc": False}
CLOCK = str(Path(__file__).with_name("container_clock.py"))
COVER = 'mount -t tmpfs none /sys/fs/cgroup/unified && exec "$@"'

START = "start to exit of true"
OWN_USERS = "the same, with users of its own"
PARALLEL = f"{AT_ONCE} of them at once"
EXEC = "exec of true in a running container"
COMMAND = "run --rm of true, network none"
OCI = "swarmlet-oci run of the same bundle"


class Figures:
    """The report, with a row for each peer that a figure of ours stands next to."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def ours(self, row: str, values: list[float], *peers: str, unit: str = "ms") -> None:
        for peer in peers:
            for value in values:
                self._report.add(OURS, f"{row} / {peer}", unit, value)

    def peer(self, name: str, row: str, values: list[float], unit: str = "ms") -> None:
        for value in values:
            self._report.add(name, f"{row} / {name}", unit, value)

    def remark(self, text: str) -> None:
        self._report.remark(text)


async def measure(report: Report, side: str, *, quick: bool) -> None:
    figures = Figures(report)
    runs = RUNS_QUICK if quick else RUNS
    if side == OURS:
        await through_the_zygote(figures, runs)
    folder = Path(tempfile.mkdtemp(prefix="swarmlet-bench-"))
    try:
        if side == OURS:
            await through_runtime(figures, "swarmlet-oci", folder, runs)
        else:
            for name in RUNTIMES:
                await through_runtime(figures, name, folder / name, runs)
            await through_podman(figures, folder / "podman", runs)
    finally:
        shutil.rmtree(folder)
    await through_daemons(figures, side, quick=quick)


# The zygote.


async def through_the_zygote(figures: Figures, runs: int) -> None:
    base = Path(tempfile.mkdtemp(prefix="swarmlet-bench-"))
    lab = runtime_lab.Lab(base, runtime_lab.make_layer(base / "layer"))
    try:
        async with lab.supervisor() as supervisor:
            for row, users in ((START, "host"), (OWN_USERS, "private")):
                spec = lab.spec("true", resources=LIMITS, namespaces=Namespaces(user=users))
                figures.ours(row, await one_by_one(supervisor, spec, runs), *RUNTIMES)
            spec = lab.spec("true", resources=LIMITS)
            rounds = [await at_once(supervisor, spec) for _ in range(max(2, runs // 8))]
            figures.ours(PARALLEL, rounds, *RUNTIMES)
            await supervisor.create("idle", lab.spec("sleep", "1000"), start=True)
            figures.ours(EXEC, await execs(supervisor, spec, runs), *RUNTIMES)
            await supervisor.remove("idle", force=True)
    finally:
        lab.clean()
        shutil.rmtree(base, ignore_errors=True)


async def one_by_one(supervisor: Supervisor, spec: ContainerSpec, runs: int) -> list[float]:
    times = []
    for number in range(runs + 3):
        began = time.perf_counter()
        await whole_life(supervisor, f"c{number}", spec)
        times.append((time.perf_counter() - began) * 1000)
    return times[3:]


async def whole_life(supervisor: Supervisor, name: str, spec: ContainerSpec) -> None:
    await supervisor.create(name, spec, start=True)
    status = await supervisor.wait(name)
    assert status.code == 0, status
    await supervisor.remove(name)


async def at_once(supervisor: Supervisor, spec: ContainerSpec) -> float:
    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for number in range(AT_ONCE):
            nursery.start_soon(whole_life, supervisor, f"p{number}", spec)
    return (time.perf_counter() - began) * 1000


async def execs(supervisor: Supervisor, spec: ContainerSpec, runs: int) -> list[float]:
    times = []
    for _ in range(runs + 3):
        began = time.perf_counter()
        session = await supervisor.exec("idle", spec.process)
        assert (await session.wait()).code == 0
        await session.aclose()
        times.append((time.perf_counter() - began) * 1000)
    return times[3:]


# Runtimes with the OCI's command line.


async def through_runtime(figures: Figures, name: str, folder: Path, runs: int) -> None:
    program = runtime_program(name)
    if program is None:
        figures.remark(f"no {name} on this machine: not measured")
        return
    bundle(folder, ["true"])
    run = [program, "run", "--bundle", str(folder), "swarmlet-bench-{}"]
    found = {
        OCI if name == "swarmlet-oci" else START: await clock(name, runs, 1, run),
        PARALLEL: await clock(name, max(2, runs // 8), AT_ONCE, run),
    }
    idle = folder / "idle"
    bundle(idle, ["sleep", "1000"])
    box = "swarmlet-bench-idle"
    await command(name, [program, "run", "--detach", "--bundle", str(idle), box])
    try:
        found[EXEC] = await clock(name, runs, 1, [program, "exec", box, "true"])
    finally:
        await command(name, [program, "delete", "--force", box])
    for row, values in found.items():
        if name != "swarmlet-oci":
            figures.peer(name, row, values)
        elif row == OCI:
            figures.ours(row, values, *RUNTIMES)
        else:
            figures.ours(f"swarmlet-oci: {row}", values, *RUNTIMES)
        if row == START:
            for more in (OCI, OWN_USERS):
                figures.peer(name, more, values)
        elif name != "swarmlet-oci":
            figures.peer(name, f"swarmlet-oci: {row}", values)


def runtime_program(name: str) -> str | None:
    if name == "swarmlet-oci":
        path = Path(sys.executable).with_name(name)
        return str(path) if path.exists() else None
    return shutil.which(name)


def covered(name: str, argv: list[str]) -> list[str]:
    """*argv* as the peer *name* can be run here."""
    if name in ("crun", "podman") and Path("/sys/fs/cgroup/unified").exists():
        return ["unshare", "-m", "--propagation", "private", "sh", "-c", COVER, "sh", *argv]
    return argv


async def clock(name: str, runs: int, at_once: int, argv: list[str]) -> list[float]:
    timed = [sys.executable, "-IS", CLOCK, str(runs), str(at_once), *argv]
    found: list[float] = json.loads(await command(name, timed))
    return found


async def command(name: str, argv: list[str]) -> bytes:
    # A file for what it says: a detached container holds a pipe open for its life.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        done = await trio.run_process(
            covered(name, argv), stdin=b"", check=False, stdout=out, stderr=err
        )
        out.seek(0)
        err.seek(0)
        if done.returncode:
            raise LabError(f"{' '.join(argv)}: exit {done.returncode}\n{err.read().decode()}")
        return out.read()


def bundle(folder: Path, args: list[str]) -> None:
    """Make a bundle: the busybox root of the tests, and the limits of ours."""
    if not (folder / "rootfs").exists():
        runtime_lab.make_layer(folder / "rootfs")
        for name in ("proc", "sys", "dev"):
            (folder / "rootfs" / name).mkdir()
    capabilities = ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID"]
    namespaces = ("mount", "pid", "network", "ipc", "uts", "cgroup")
    safe = ["nosuid", "noexec", "nodev"]
    config: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "hostname": "bench",
        "process": {
            "args": args,
            "cwd": "/",
            "env": ["PATH=/bin"],
            "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": True,
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": safe},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": safe},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*safe, "ro"]},
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in namespaces],
            "resources": {
                "memory": {"limit": LIMITS.memory_bytes},
                "cpu": {"quota": LIMITS.cpu_quota_us, "period": LIMITS.cpu_period_us},
                "pids": {"limit": LIMITS.pids_max},
            },
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
        },
    }
    (folder / "config.json").write_text(json.dumps(config))


async def through_podman(figures: Figures, folder: Path, runs: int) -> None:
    if shutil.which("podman") is None:
        figures.remark("no podman on this machine: not measured")
        return
    runtime_lab.make_layer(folder / "image")
    await command("tar", ["tar", "-C", str(folder / "image"), "-cf", str(folder / "i.tar"), "."])
    podman = ["podman", "--root", str(folder / "root"), "--runroot", str(folder / "run")]
    podman += ["--tmpdir", str(folder / "tmp"), "--cgroup-manager", "cgroupfs"]
    podman += ["--events-backend", "file"]
    await command("podman", [*podman, "import", str(folder / "i.tar"), "bench:1"])
    limits = ["--ulimit", "nofile=1024:20000", "--ulimit", "nproc=4096:4096"]
    try:
        run = [*podman, "run", "--rm", *limits, "--network", "none", "bench:1", "/bin/true"]
        figures.peer("podman", COMMAND, await clock("podman", max(5, runs // 2), 1, run))
    finally:
        await command("podman", [*podman, "rmi", "--all", "--force"])
        await trio.run_process(["umount", str(folder / "root/overlay")], check=False)


# Daemons.


async def through_daemons(figures: Figures, side: str, *, quick: bool) -> None:
    runs = (RUNS_QUICK if quick else RUNS) // 2
    idle, rest = (IDLE_QUICK, REST_QUICK) if quick else (IDLE, REST)
    async with Lab(1) as lab:
        cluster = Side(lab, OURS if side == OURS else "docker")
        await cluster.start(cluster.first)
        await cluster.load_image(cluster.first)
        words = ["run", "--rm", "--network", "none", IMAGE, "true"]
        if side == OURS:
            for client in ("swarmlet", "docker"):
                try:
                    values = await timed(cluster, runs, client, *words)
                except LabError as refused:
                    figures.remark(f"{client} run: {refused}")
                    continue
                row = COMMAND if client == "swarmlet" else f"docker's client on ours: {COMMAND}"
                figures.ours(row, values, "docker", "podman")
        else:
            values = await timed(cluster, runs, "docker", *words)
            figures.peer("docker", COMMAND, values)
            figures.peer("docker", f"docker's client on ours: {COMMAND}", values)
        await resting(figures, cluster, idle, rest)


async def timed(cluster: Side, runs: int, client: str, *words: str) -> list[float]:
    argv = [sys.executable, "-IS", CLOCK, str(runs), "1", client, *words]
    found: list[float] = json.loads((await cluster.first.run(*argv)).stdout)
    return found


async def resting(figures: Figures, cluster: Side, count: int, rest: float) -> None:
    """What *count* containers that sleep cost the programs that look after them."""
    before = memory(cluster, lambda _: True)
    watchers_before = memory(cluster, is_watcher)
    body = {"Image": IMAGE, "Cmd": ["sleep", "100000"], "HostConfig": {"NetworkMode": "none"}}
    for number in range(count):
        await cluster.call(cluster.first, "POST", f"/containers/create?name=idle{number}", body)
        await cluster.call(cluster.first, "POST", f"/containers/idle{number}/start")
    await trio.sleep(5)
    ours = cluster.side == OURS
    add: Callable[[str, float, str], None] = lambda row, value, unit: (  # noqa: E731
        figures.ours(row, [value], "docker", unit=unit)
        if ours
        else figures.peer("docker", row, [value], unit)
    )
    watchers = memory(cluster, is_watcher)
    row = "each idle container: PSS of its watcher (zygote; shims)"
    add(row, (watchers - watchers_before) / count / MIB, "MiB")
    row = "each idle container: PSS of all but itself"
    add(row, (memory(cluster, lambda _: True) - before) / count / MIB, "MiB")
    if ours:
        figures.ours("the zygote with them: PSS", [watchers / MIB], "docker", unit="MiB")
    watch, used = Stopwatch(), cpu(cluster)
    await trio.sleep(rest)
    share = (cpu(cluster) - used) / watch.seconds() * 100
    add(f"{count} idle containers: CPU", share, "% of a core")


def is_watcher(comm: str) -> bool:
    return comm.startswith(("swarmlet-zygote", "containerd-shim"))


def watched(cluster: Side, wanted: Callable[[str], bool]) -> list[int]:
    found = []
    for process in cluster.first.processes():
        try:
            comm = Path(f"/proc/{process.pid}/comm").read_text().strip()
        except OSError:
            continue
        if not process.nested and wanted(comm):
            found.append(process.pid)
    return found


def memory(cluster: Side, wanted: Callable[[str], bool]) -> int:
    return sum(memory_of(pid)[1] for pid in watched(cluster, wanted))


def cpu(cluster: Side) -> float:
    return sum(cpu_of(pid) for pid in watched(cluster, lambda _: True))
