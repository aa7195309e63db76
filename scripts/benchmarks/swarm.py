"""How long until tasks run: from nothing, ten at once, and again when a host is lost?

Every figure is the time from the request until the API of the manager shows what was waited for.
The image is in each host's store already. Hosts are namespaces of one machine: three of them share
its processors, so times that need processor time are those of a slower machine, for both sides.
"""

from __future__ import annotations

from scripts.benchmarks.report import Report
from scripts.benchmarks.sides import Side, Stopwatch
from tests.lab import Lab

REPLICAS = 10


async def measure(report: Report, side: str, *, quick: bool) -> None:
    for _ in range(1 if quick else 3):
        async with Lab(1) as lab:
            await from_nothing(report, Side(lab, side))
    async with Lab(3) as lab:
        cluster = Side(lab, side)
        await cluster.start(*lab.hosts)
        await cluster.load_image(*lab.hosts)
        await cluster.init()
        watch = Stopwatch()
        for host in lab.hosts[1:]:
            await cluster.join(host)
        report.add(side, "two workers joined and ready", "s", watch.seconds())
        # A first use of everything: what is loaded and cached once is not the question.
        await cluster.create("warm", len(lab.hosts))
        await cluster.wait_running("warm", len(lab.hosts))
        await cluster.remove("warm")
        for number in range(1 if quick else 5):
            await ten_at_once(report, cluster, f"ten{number}")
        for number in range(1 if quick else 3):
            await lose_a_worker(report, cluster, f"lost{number}")


async def from_nothing(report: Report, cluster: Side) -> None:
    watch = Stopwatch()
    await cluster.start(cluster.first)
    report.add(cluster.side, "daemon started until it answers", "s", watch.seconds())
    await cluster.load_image(cluster.first)
    watch = Stopwatch()
    await cluster.init()
    report.add(cluster.side, "init", "s", watch.seconds())
    await cluster.create("first", 1)
    await cluster.wait_running("first", 1)
    report.add(cluster.side, "init until the first task runs", "s", watch.seconds())


async def ten_at_once(report: Report, cluster: Side, name: str) -> None:
    watch = Stopwatch()
    await cluster.create(name, REPLICAS)
    await cluster.wait_running(name, REPLICAS)
    report.add(cluster.side, f"create {REPLICAS} replicas until all run", "s", watch.seconds())
    watch = Stopwatch()
    await cluster.remove(name)
    report.add(cluster.side, f"remove {REPLICAS} until none runs", "s", watch.seconds())


async def lose_a_worker(report: Report, cluster: Side, name: str) -> None:
    victim = cluster.lab.hosts[-1]
    await cluster.create(name, REPLICAS)
    await cluster.wait_running(name, REPLICAS)
    watch = Stopwatch()
    await victim.kill()
    await cluster.until(cluster.states, lambda states: states[victim.name] == "down")
    report.add(cluster.side, "worker killed until it is known to be down", "s", watch.seconds())
    await cluster.wait_running(name, REPLICAS, without=victim)
    report.add(cluster.side, "worker killed until its tasks run elsewhere", "s", watch.seconds())
    await victim.boot()
    watch = Stopwatch()
    await cluster.start(victim)
    await cluster.until(cluster.states, lambda states: states[victim.name] == "ready")
    report.add(cluster.side, "daemon started again until ready", "s", watch.seconds())
    await cluster.remove(name)
