"""What is promised for long use: limits that bite, hosts left as they were, no growth.

SWARMLET_SCALE=25 makes each as long as the promise: 1,000 containers in a loop, 100 restarts of the
daemon, 300 containers at once. Without it a slice of each runs.
"""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarmlet.runtime.cgroups import read_control
from swarmlet.runtime.host import probe
from swarmlet.runtime.spec import (
    ContainerSpec,
    File,
    HugetlbLimit,
    IoLimit,
    Mount,
    Namespaces,
    Resources,
    Rlimit,
    User,
)
from swarmlet.runtime.supervisor import Supervisor
from tests.runtime.lab import (
    Lab,
    host_picture,
    make_layer,
    output,
    own_descriptors,
    run,
    wait_for_output,
)

pytestmark = pytest.mark.level4
SCALE = int(os.environ.get("SWARMLET_SCALE", "1"))
LOOP = 40 * SCALE
RESTARTS = 4 * SCALE
AT_ONCE = 12 * SCALE
#: Bytes that a process may grow by in a loop: what malloc keeps for later use.
GROWTH_BYTES_MAX = 1 << 20
#: Bytes a second, and what is written: the limit is met when it takes the time that it must.
RATE, WRITTEN = 4 << 20, 8 << 20


def resident(pid: int | str) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def block_device(folder: Path) -> str:
    device = os.stat(folder).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    if not Path(f"/sys/dev/block/{number}").exists():
        pytest.skip(f"{folder} is on no block device")
    return number


# Limits.


async def test_a_disk_is_written_no_faster_than_its_limit(lab: Lab) -> None:
    limit = IoLimit(device=block_device(lab.base), write_bytes_per_second=RATE)
    size = WRITTEN >> 20
    script = f"dd if=/dev/zero of=/file bs=1M count={size} oflag=direct 2>/dev/null || echo none"
    times = []
    async with lab.supervisor() as supervisor:
        for resources in (Resources(), Resources(io=(limit,))):
            spec = lab.spec("sh", "-c", script, resources=resources)
            began = time.monotonic()
            code, said = await run(supervisor, spec)
            times.append(time.monotonic() - began)
            assert (code, said) == (0, "")
    # Load can only make it slower. The first second's worth may be let through at once.
    assert times[1] >= WRITTEN / RATE - 1, times


async def test_half_a_core_is_half_a_core(lab: Lab) -> None:
    resources = Resources(cpu_quota_us=50_000)
    async with lab.supervisor() as supervisor:
        spec = lab.spec("sh", "-c", "echo go; while :; do :; done", resources=resources)
        await supervisor.create("c", spec, start=True)
        await wait_for_output(supervisor, "c", "go")
        before, began = await supervisor.stats(["c"]), time.monotonic()
        await trio.sleep(2)
        after = await supervisor.stats(["c"])
        elapsed = time.monotonic() - began
        used = after[0].group.cpu_usage_us - before[0].group.cpu_usage_us
        # One period may be in each end of the measurement.
        assert used / 1e6 <= 0.5 * (elapsed + 0.2), (used, elapsed)
        assert after[0].group.throttled_periods > before[0].group.throttled_periods
        await supervisor.remove("c", force=True)


# The host is left as it was.

USERS = st.builds(lambda user: User(user=user), st.sampled_from(["0", "app", "1000", "4711"]))
RESOURCES = st.builds(
    Resources,
    memory_bytes=st.sampled_from([None, 32 << 20]),
    pids_max=st.sampled_from([None, 20]),
    cpu_quota_us=st.sampled_from([None, 20_000]),
    cpuset_cpus=st.sampled_from([None, "0"]),
)
MOUNTS = st.lists(
    st.one_of(
        st.builds(
            Mount,
            type=st.just("tmpfs"),
            target=st.sampled_from(["/t", "/new/t", "/tmp"]),
            readonly=st.booleans(),
        ),
        st.builds(
            Mount,
            type=st.just("bind"),
            source=st.just("/etc"),
            target=st.sampled_from(["/host", "/mnt/deep/host"]),
            readonly=st.booleans(),
            propagation=st.sampled_from(["private", "slave"]),
        ),
    ),
    max_size=3,
)
CHANGES = st.fixed_dictionaries(
    {
        "hostname": st.sampled_from(["", "box"]),
        "user": USERS,
        "resources": RESOURCES,
        "mounts": MOUNTS.map(tuple),
        "terminal": st.booleans(),
        "stdin": st.booleans(),
        "cwd": st.sampled_from(["/", "/tmp", "/made/for/it"]),
        "files": st.sampled_from([(), (File(path="/run/secrets/a", content=b"x"),)]),
        "rlimits": st.sampled_from([(), (Rlimit(type="RLIMIT_NOFILE", soft=64, hard=64),)]),
        "namespaces": st.builds(
            Namespaces,
            user=st.sampled_from(["host", "private"]),
            network=st.sampled_from(["private", "host"]),
            ipc=st.sampled_from(["private", "host"]),
            uts=st.just("private"),
        ),
    }
)
COMMANDS = st.sampled_from([("true",), ("sh", "-c", "exit 3"), ("nosuch",), ("sleep", "1000")])


@contextlib.contextmanager
def temporary_lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="swl", ignore_cleanup_errors=True) as folder:
        made = Lab(Path(folder), make_layer(Path(folder) / "layer"))
        try:
            yield made
        finally:
            made.clean()


@settings(max_examples=12 * SCALE, deadline=None, suppress_health_check=list(HealthCheck))
@given(specs=st.lists(st.tuples(COMMANDS, CHANGES), min_size=1, max_size=4))
def test_whatever_runs_the_host_is_as_before(specs: list[tuple[Any, dict[str, Any]]]) -> None:
    with temporary_lab() as lab:
        trio.run(_leave_nothing, lab, specs)


async def _leave_nothing(lab: Lab, specs: list[tuple[Any, dict[str, Any]]]) -> None:
    before = host_picture(lab)
    async with lab.supervisor() as supervisor:
        await run(supervisor, lab.spec("true"))  # what is made once
        open_before = (own_descriptors(), descriptors(supervisor.zygote_pid))
        for command, changes in specs:
            await _one_life(supervisor, lab.spec(*command, **changes), ends=command[0] != "sleep")
        gc.collect()
        assert (own_descriptors(), descriptors(supervisor.zygote_pid)) == open_before
        assert children(supervisor.zygote_pid) == []
    assert host_picture(lab) == before


async def _one_life(supervisor: Supervisor, spec: ContainerSpec, *, ends: bool) -> None:
    await supervisor.create("c", spec)
    with contextlib.suppress(Exception):
        await supervisor.start("c")
        if ends:
            await supervisor.wait("c")
    await supervisor.remove("c", force=True)


# No growth.


async def test_nothing_grows_in_a_loop(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        spec = lab.spec("sh", "-c", "echo hello", resources=Resources(memory_bytes=64 << 20))
        sizes = []
        for number in range(LOOP):
            assert await run(supervisor, spec, f"c{number}") == (0, "hello\n")
            if number in (LOOP // 4, LOOP - 1):
                gc.collect()
                zygote = supervisor.zygote_pid
                sizes.append(
                    {
                        "descriptors": (len(own_descriptors()), descriptors(zygote)),
                        "picture": host_picture(lab),
                        "memory": (resident("self"), resident(zygote)),
                    }
                )
        first, last = sizes
        assert last["descriptors"] == first["descriptors"]
        assert last["picture"] == first["picture"]
        grown = [b - a for a, b in zip(first["memory"], last["memory"], strict=True)]
        assert max(grown) <= GROWTH_BYTES_MAX, grown


async def test_containers_outlive_restarts_of_the_daemon(lab: Lab) -> None:
    """With their pids, their logs, their exit codes and what is yet to come."""
    async with lab.supervisor() as supervisor:
        script = "n=0; while read line; do n=$((n+1)); echo $line $n; done; exit 7"
        spec = lab.spec("sh", "-c", script, stdin=True)
        await supervisor.create("c", spec, start=True)
        pid = supervisor.containers["c"].pid
    for number in range(1, RESTARTS + 1):
        async with lab.supervisor() as supervisor:
            assert supervisor.containers["c"].pid == pid
            async with await supervisor.attach("c") as session:
                await session.stdin.send_all(b"life\n")
                await wait_for_output(supervisor, "c", f"life {number}")
    async with lab.supervisor() as supervisor:
        async with await supervisor.attach("c") as session:
            await session.close_stdin()
            assert (await supervisor.wait("c")).code == 7
        said = await output(supervisor, "c")
        assert said.splitlines() == [f"life {n}" for n in range(1, RESTARTS + 1)]
        await supervisor.remove("c")


async def test_many_containers_at_once(lab: Lab) -> None:
    before = host_picture(lab)
    async with lab.supervisor() as supervisor:

        async def live(name: str) -> None:
            await supervisor.create(name, lab.spec("sleep", "1000"), start=True)

        async with trio.open_nursery() as nursery:
            for number in range(AT_ONCE):
                nursery.start_soon(live, f"c{number}")
        states = supervisor.containers.values()
        assert sum(state.status.running for state in states) == AT_ONCE
        assert len(await supervisor.stats()) == AT_ONCE
        async with trio.open_nursery() as nursery:
            for number in range(AT_ONCE):
                nursery.start_soon(lambda n=f"c{number}": supervisor.remove(n, force=True))
    assert host_picture(lab) == before


async def test_huge_pages_are_limited(lab: Lab) -> None:
    pages = HugetlbLimit(page_size="2MB", limit_bytes=4 << 20)
    host = probe()
    if "hugetlb" not in host.unified_controllers and host.hierarchy("hugetlb") is None:
        pytest.skip("this kernel has no hugetlb controller")
    async with lab.supervisor() as supervisor:
        resources = Resources(hugetlb=(pages,))
        await supervisor.create("c", lab.spec("sleep", "1000", resources=resources), start=True)
        (limit,) = [
            write.path
            for write in supervisor.driver.limits("c", resources)
            if "hugetlb" in write.path
        ]
        assert read_control(limit).strip() == str(4 << 20)
        await supervisor.update("c", Resources())
        assert read_control(limit).strip() == "max"
        await supervisor.remove("c", force=True)
    assert host_picture(lab)["cgroups"] == []
