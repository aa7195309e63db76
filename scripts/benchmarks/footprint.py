"""What does it cost to be there: memory of a manager and of each container, writes and CPU at rest?

Memory is that of the daemon and its helpers (zygote; containerd and shims), not of what runs in the
containers. Bytes are those that the processes caused to be written to the disk (`write_bytes`).
"""

from __future__ import annotations

import trio

from scripts.benchmarks.accounts import MIB, account, size_of
from scripts.benchmarks.report import Report
from scripts.benchmarks.sides import Side, Stopwatch
from tests.lab import Lab

CONTAINERS = 20
#: Seconds until a cluster that was changed counts as at rest. Docker writes for a minute.
SETTLE, SETTLE_QUICK = 60.0, 15.0
REST, REST_QUICK = 60.0, 20.0
TASKS = 10


async def measure(report: Report, side: str, *, quick: bool) -> None:
    settle, rest = (SETTLE_QUICK, REST_QUICK) if quick else (SETTLE, REST)
    async with Lab(1) as lab:
        await one_manager(report, Side(lab, side), settle=5.0 if quick else 20.0)
    async with Lab(3) as lab:
        cluster = Side(lab, side)
        await cluster.form(managers=3)
        await writes(report, cluster, settle=settle, rest=rest)


async def one_manager(report: Report, cluster: Side, *, settle: float) -> None:
    side, host = cluster.side, cluster.first
    await cluster.start(host)
    await cluster.init()
    await trio.sleep(settle)
    before = account(host)
    report.add(side, "manager: processes", "", before.processes)
    report.add(side, "manager: memory (RSS)", "MiB", before.resident_bytes / MIB)
    report.add(side, "manager: memory (PSS)", "MiB", before.proportional_bytes / MIB)
    report.add(side, "manager: state on the disk", "MiB", size_of(host.state_dir) / MIB)
    await cluster.load_image(host)
    await cluster.create("idle", CONTAINERS)
    await cluster.wait_running("idle", CONTAINERS)
    await trio.sleep(settle)
    after = account(host)
    for name, growth in (
        ("RSS", after.resident_bytes - before.resident_bytes),
        ("PSS", after.proportional_bytes - before.proportional_bytes),
    ):
        per_container = growth / CONTAINERS / MIB
        report.add(side, f"each further container: memory ({name})", "MiB", per_container)


async def writes(report: Report, cluster: Side, *, settle: float, rest: float) -> None:
    side, hosts = cluster.side, cluster.lab.hosts
    await cluster.create("warm", len(hosts))
    await cluster.wait_running("warm", len(hosts))
    await cluster.remove("warm")
    await trio.sleep(settle)
    before = account(*hosts)
    watch = Stopwatch()
    await trio.sleep(rest)
    after, seconds = account(*hosts), watch.seconds()
    written = (after.written_bytes - before.written_bytes) / 1024 * 60 / seconds
    report.add(side, "three managers at rest: written in a minute", "KiB", written)
    used = (after.cpu_seconds - before.cpu_seconds) / seconds / len(hosts) * 100
    report.add(side, "three managers at rest: CPU of each", "% of a core", used)

    before = account(*hosts)
    await cluster.create("tasks", TASKS)
    await cluster.wait_running("tasks", TASKS)
    await trio.sleep(3)
    after = account(*hosts)
    written = (after.written_bytes - before.written_bytes) / 1024 / TASKS
    report.add(side, "three managers: written for each task start", "KiB", written)
