"""Control groups: limits, life cycle and statistics on cgroup v2 and on the v1-hybrid layout.

Two drivers with one set of names. Each container has the group `<parent>/<container id>`:

| | v2 | v1-hybrid |
| --- | --- | --- |
| limits | in the one group | in the v1 hierarchies of the controllers that have a limit |
| memory, OOM kills | memory.current, memory.events | the same of v1, which is always joined |
| CPU used | cpu.stat | cpu.stat of the unified tree, which needs no controller |
| kill, freeze, emptiness, pressure, devices | cgroup.kill and so on, eBPF | in the unified tree |

Joining a v1 hierarchy costs each process, so only those with a limit are joined; into the cgroup2
the child is born (CLONE_INTO_CGROUP).

The planning methods are pure; reading and changing a running group is sync: call it in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from swarmlet.runtime.decoding import SpecError
from swarmlet.runtime.host import Host
from swarmlet.runtime.spec import Resources
from swarmlet.runtime.statistics import CgroupStats, Pressure
from swarmlet.runtime.steps import MakeCgroup, PruneCgroups, SetLimit

#: Bytes of a control file in one read; longer ones (cgroup.procs) take more.
CONTROL_READ_BYTES = 16 * 1024
#: Seconds for the processes of a group to stop.
FREEZE_TIMEOUT = 10.0
#: cgroups(7): what the kernel shows for "no limit" on v1, in pages and in bytes.
V1_UNLIMITED = 1 << 62


class Driver(ABC):
    """The groups of one host's containers, all below *parent*."""

    def __init__(self, host: Host, parent: str) -> None:
        self.host = host
        self.parent = parent.strip("/")

    # Planning: pure.

    def name(self, container_id: str) -> str:
        return f"{self.parent}/{container_id}"

    def unified(self, container_id: str) -> str:
        """Return the container's cgroup2, in which its processes are born."""
        return f"{self.host.unified}/{self.name(container_id)}"

    @abstractmethod
    def groups(
        self, container_id: str, resources: Resources, *, whole: bool = False
    ) -> list[MakeCgroup]:
        """Return the groups that *resources* need; *whole* for those that an engine reads too."""

    @abstractmethod
    def joins(self, container_id: str, resources: Resources, *, whole: bool = False) -> list[str]:
        """Return the groups that a process must join after its birth."""

    @abstractmethod
    def limits(self, container_id: str, resources: Resources) -> list[SetLimit]:
        """Return what to write where, in order; a limit that is None is not written."""

    @abstractmethod
    def all_paths(self, container_id: str) -> list[str]:
        """Return every group that the container may have on this host."""

    @abstractmethod
    def resets(self, container_id: str, old: Resources, new: Resources) -> list[SetLimit]:
        """Return what lifts the limits that *old* has and *new* has not."""

    def prunes(self) -> list[PruneCgroups]:
        """Return what removes the parent groups when they are empty."""
        roots = dict.fromkeys([self.host.unified, *(item.path for item in self.host.hierarchies)])
        return [PruneCgroups(root, self.parent) for root in roots]

    # Acting: sync, in a thread.

    def kill(self, container_id: str) -> None:
        """SIGKILL every process of the group, also the frozen ones. Gone is fine."""
        with contextlib.suppress(FileNotFoundError, OSError):
            write_control(f"{self.unified(container_id)}/cgroup.kill", "1")

    def freeze(self, container_id: str, *, frozen: bool) -> None:
        """Freeze or thaw every process of the group, and wait until they are."""
        group = self.unified(container_id)
        wanted = b"frozen 1" if frozen else b"frozen 0"
        events = os.open(f"{group}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        try:
            write_control(f"{group}/cgroup.freeze", "1" if frozen else "0")
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            deadline = time.monotonic() + FREEZE_TIMEOUT
            while wanted not in os.pread(events, 256, 0):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise OSError(errno.EBUSY, "a process does not stop (in the kernel?)", group)
                poll.poll(left * 1000)
        finally:
            os.close(events)

    def processes(self, container_id: str) -> list[int]:
        """Return the pids in the container's group; none when it is gone."""
        try:
            text = read_control(f"{self.unified(container_id)}/cgroup.procs")
        except FileNotFoundError:
            return []
        return [int(pid) for pid in text.split()]

    @abstractmethod
    def oom_kills(self, container_id: str) -> int:
        """Return how many processes the memory limit has killed."""

    @abstractmethod
    def read_stats(self, container_id: str) -> CgroupStats:
        """Return what the group used; raise FileNotFoundError when it is gone."""

    def _missing(self, field: str, controller: str) -> SpecError:
        return SpecError(
            f"resources.{field}: this host's kernel has no {controller} cgroup controller"
        )

    def _pressure(self, container_id: str) -> tuple[Pressure, Pressure, Pressure]:
        group = self.unified(container_id)
        cpu, memory, io = (
            Pressure.parse(_read(f"{group}/{name}.pressure")) for name in ("cpu", "memory", "io")
        )
        return cpu, memory, io


def driver(host: Host, parent: str) -> Driver:
    return HybridDriver(host, parent) if host.hybrid else UnifiedDriver(host, parent)


class UnifiedDriver(Driver):
    """cgroup v2 (Documentation/admin-guide/cgroup-v2.rst)."""

    CONTROLLERS = ("cpuset", "cpu", "io", "memory", "pids", "hugetlb")

    def groups(
        self, container_id: str, resources: Resources, *, whole: bool = False
    ) -> list[MakeCgroup]:
        needed = {
            "cpu_quota_us": "cpu",
            "cpu_shares": "cpu",
            "cpuset_cpus": "cpuset",
            "cpuset_mems": "cpuset",
            "memory_bytes": "memory",
            "pids_max": "pids",
        }
        for field, controller in needed.items():
            if getattr(resources, field) is not None:
                self._require(field, controller)
        for field, controller in (("io", "io"), ("hugetlb", "hugetlb")):
            if getattr(resources, field):
                self._require(field, controller)
        enabled = tuple(c for c in self.CONTROLLERS if c in self.host.unified_controllers)
        return [MakeCgroup(self.host.unified, self.name(container_id), controllers=enabled)]

    def _require(self, field: str, controller: str) -> None:
        if controller not in self.host.unified_controllers:
            raise self._missing(field, controller)

    def joins(self, container_id: str, resources: Resources, *, whole: bool = False) -> list[str]:
        return []

    def limits(self, container_id: str, resources: Resources) -> list[SetLimit]:
        values: list[tuple[str, str]] = []
        if resources.memory_bytes is not None:
            values.append(("memory.max", str(resources.memory_bytes)))
        swap = _swap_total(resources)
        if swap is not None and self.host.swap_accounting:
            # v2 counts swap alone, the OCI's number is memory and swap together.
            only = "max" if swap == -1 else str(swap - (resources.memory_bytes or 0))
            values.append(("memory.swap.max", only))
        if resources.memory_reservation_bytes is not None:
            values.append(("memory.low", str(resources.memory_reservation_bytes)))
        if resources.cpu_quota_us is not None:
            values.append(("cpu.max", f"{resources.cpu_quota_us} {resources.cpu_period_us}"))
        if resources.cpu_shares is not None:
            values.append(("cpu.weight", str(weight_of_shares(resources.cpu_shares))))
        if resources.cpuset_cpus is not None:
            values.append(("cpuset.cpus", resources.cpuset_cpus))
        if resources.cpuset_mems is not None:
            values.append(("cpuset.mems", resources.cpuset_mems))
        if resources.pids_max is not None:
            values.append(("pids.max", str(resources.pids_max)))
        for limit in resources.io:
            pairs = {
                "rbps": limit.read_bytes_per_second,
                "wbps": limit.write_bytes_per_second,
                "riops": limit.read_operations_per_second,
                "wiops": limit.write_operations_per_second,
            }
            text = " ".join(f"{key}={value or 'max'}" for key, value in pairs.items())
            values.append(("io.max", f"{limit.device} {text}"))
        values += _huge_pages(resources)
        group = self.unified(container_id)
        return [SetLimit(f"{group}/{name}", value) for name, value in values]

    def resets(self, container_id: str, old: Resources, new: Resources) -> list[SetLimit]:
        unlimited = {
            "memory_bytes": [("memory.max", "max"), ("memory.swap.max", "max")],
            "memory_reservation_bytes": [("memory.low", "0")],
            "cpu_quota_us": [("cpu.max", "max 100000")],
            "cpu_shares": [("cpu.weight", "100")],
            "cpuset_cpus": [("cpuset.cpus", "")],
            "cpuset_mems": [("cpuset.mems", "")],
            "pids_max": [("pids.max", "max")],
        }
        group = self.unified(container_id)
        lifted = [
            SetLimit(f"{group}/{name}", value)
            for field, writes in unlimited.items()
            if getattr(old, field) is not None and getattr(new, field) is None
            for name, value in writes
            if name != "memory.swap.max" or self.host.swap_accounting
        ]
        kept = {limit.device for limit in new.io}
        for limit in old.io:
            if limit.device not in kept:
                everything = "rbps=max wbps=max riops=max wiops=max"
                lifted.append(SetLimit(f"{group}/io.max", f"{limit.device} {everything}"))
        return lifted + _lifted_huge_pages(group, old, new)

    def all_paths(self, container_id: str) -> list[str]:
        return [self.unified(container_id)]

    def oom_kills(self, container_id: str) -> int:
        events = _read_flat(f"{self.unified(container_id)}/memory.events", missing_ok=True)
        return events.get("oom_kill", 0)

    def read_stats(self, container_id: str) -> CgroupStats:
        group = self.unified(container_id)
        cpu = _read_flat(f"{group}/cpu.stat")
        memory = _read_flat(f"{group}/memory.stat", missing_ok=True)
        usage = _read_number(f"{group}/memory.current")
        pressure = self._pressure(container_id)
        read, written = _io_totals(_read(f"{group}/io.stat"))
        return CgroupStats(
            cpu_usage_us=cpu.get("usage_usec", 0),
            cpu_user_us=cpu.get("user_usec", 0),
            cpu_system_us=cpu.get("system_usec", 0),
            throttled_periods=cpu.get("nr_throttled", 0),
            throttled_us=cpu.get("throttled_usec", 0),
            memory_usage_bytes=usage or 0,
            memory_inactive_file_bytes=memory.get("inactive_file", 0),
            memory_limit_bytes=_read_number(f"{group}/memory.max"),
            oom_kills=self.oom_kills(container_id),
            pids=_read_number(f"{group}/pids.current") or 0,
            pids_limit=_read_number(f"{group}/pids.max"),
            read_bytes=read,
            written_bytes=written,
            cpu_pressure=pressure[0],
            memory_pressure=pressure[1],
            io_pressure=pressure[2],
        )


class HybridDriver(Driver):
    """Limits in cgroup v1 (Documentation/admin-guide/cgroup-v1/), life cycle in cgroup2."""

    #: What engines read their figures from.
    COUNTED = ("cpu", "cpuacct", "pids", "blkio")

    def _controllers(self, resources: Resources, *, whole: bool = False) -> list[str]:
        wanted = {"memory": "memory_bytes"}
        if whole:
            wanted |= {name: name for name in self.COUNTED if self.host.hierarchy(name)}
        if resources.cpu_quota_us is not None or resources.cpu_shares is not None:
            wanted["cpu"] = "cpu_quota_us"
        if resources.cpuset_cpus is not None or resources.cpuset_mems is not None:
            wanted["cpuset"] = "cpuset_cpus"
        if resources.pids_max is not None:
            wanted["pids"] = "pids_max"
        if resources.io:
            wanted["blkio"] = "io"
        if resources.hugetlb and "hugetlb" not in self.host.unified_controllers:
            wanted["hugetlb"] = "hugetlb"
        for controller, field in wanted.items():
            if self.host.hierarchy(controller) is None:
                raise self._missing(field, controller)
        return list(wanted)

    def path(self, controller: str, container_id: str) -> str:
        """Return the container's group in the hierarchy of *controller*."""
        hierarchy = self.host.hierarchy(controller)
        assert hierarchy is not None, controller
        return f"{hierarchy.path}/{self.name(container_id)}"

    def groups(
        self, container_id: str, resources: Resources, *, whole: bool = False
    ) -> list[MakeCgroup]:
        # Of all controllers this one may be left to cgroup2, if no hierarchy of v1 has it.
        unified = "hugetlb" in self.host.unified_controllers and resources.hugetlb
        enabled = ("hugetlb",) if unified else ()
        made = [MakeCgroup(self.host.unified, self.name(container_id), controllers=enabled)]
        roots: list[str] = []
        for controller in self._controllers(resources, whole=whole):
            hierarchy = self.host.hierarchy(controller)
            assert hierarchy is not None
            if hierarchy.path not in roots:
                roots.append(hierarchy.path)
                # cpuset(7): a new group has no CPUs and no process can join it.
                cpuset = "cpuset" in hierarchy.controllers
                inherit = ("cpuset.cpus", "cpuset.mems") if cpuset else ()
                made.append(MakeCgroup(hierarchy.path, self.name(container_id), inherit=inherit))
        return made

    def joins(self, container_id: str, resources: Resources, *, whole: bool = False) -> list[str]:
        paths = [self.path(c, container_id) for c in self._controllers(resources, whole=whole)]
        return list(dict.fromkeys(paths))

    def limits(self, container_id: str, resources: Resources) -> list[SetLimit]:
        values: list[tuple[str, str, str]] = []
        if resources.memory_bytes is not None:
            values.append(("memory", "memory.limit_in_bytes", str(resources.memory_bytes)))
        swap = _swap_total(resources)
        if swap is not None and self.host.swap_accounting:
            values.append(("memory", "memory.memsw.limit_in_bytes", str(swap)))
        if resources.memory_reservation_bytes is not None:
            reservation = str(resources.memory_reservation_bytes)
            values.append(("memory", "memory.soft_limit_in_bytes", reservation))
        if resources.cpu_quota_us is not None:
            values.append(("cpu", "cpu.cfs_period_us", str(resources.cpu_period_us)))
            values.append(("cpu", "cpu.cfs_quota_us", str(resources.cpu_quota_us)))
        if resources.cpu_shares is not None:
            values.append(("cpu", "cpu.shares", str(resources.cpu_shares)))
        if resources.cpuset_cpus is not None:
            values.append(("cpuset", "cpuset.cpus", resources.cpuset_cpus))
        if resources.cpuset_mems is not None:
            values.append(("cpuset", "cpuset.mems", resources.cpuset_mems))
        if resources.pids_max is not None:
            values.append(("pids", "pids.max", str(resources.pids_max)))
        for limit in resources.io:
            numbers = {
                "read_bps": limit.read_bytes_per_second,
                "write_bps": limit.write_bytes_per_second,
                "read_iops": limit.read_operations_per_second,
                "write_iops": limit.write_operations_per_second,
            }
            for name, number in numbers.items():
                if number is not None:
                    file = f"blkio.throttle.{name}_device"
                    values.append(("blkio", file, f"{limit.device} {number}"))
        limits = [SetLimit(f"{self.path(c, container_id)}/{f}", value) for c, f, value in values]
        if "hugetlb" in self.host.unified_controllers:
            group = self.unified(container_id)
            return limits + [SetLimit(f"{group}/{f}", v) for f, v in _huge_pages(resources)]
        for pages in resources.hugetlb:
            file = f"hugetlb.{pages.page_size}.limit_in_bytes"
            path = f"{self.path('hugetlb', container_id)}/{file}"
            limits.append(SetLimit(path, str(pages.limit_bytes)))
        return limits

    def resets(self, container_id: str, old: Resources, new: Resources) -> list[SetLimit]:
        unlimited = {
            "memory_bytes": [
                ("memory", "memory.memsw.limit_in_bytes", "-1"),
                ("memory", "memory.limit_in_bytes", "-1"),
            ],
            "memory_reservation_bytes": [("memory", "memory.soft_limit_in_bytes", "-1")],
            "cpu_quota_us": [("cpu", "cpu.cfs_quota_us", "-1")],
            "cpu_shares": [("cpu", "cpu.shares", "1024")],
            "pids_max": [("pids", "pids.max", "max")],
        }
        lifted = [
            SetLimit(f"{self.path(controller, container_id)}/{name}", value)
            for field, writes in unlimited.items()
            if getattr(old, field) is not None and getattr(new, field) is None
            for controller, name, value in writes
            if "memsw" not in name or self.host.swap_accounting
        ]
        kept = {limit.device for limit in new.io}
        for limit in old.io:
            if limit.device not in kept:
                for name in ("read_bps", "write_bps", "read_iops", "write_iops"):
                    file = f"{self.path('blkio', container_id)}/blkio.throttle.{name}_device"
                    lifted.append(SetLimit(file, f"{limit.device} 0"))
        if "hugetlb" in self.host.unified_controllers:
            lifted += _lifted_huge_pages(self.unified(container_id), old, new)
        return lifted

    def all_paths(self, container_id: str) -> list[str]:
        paths = [f"{item.path}/{self.name(container_id)}" for item in self.host.hierarchies]
        return [self.unified(container_id), *paths]

    def oom_kills(self, container_id: str) -> int:
        file = f"{self.path('memory', container_id)}/memory.oom_control"
        return _read_flat(file, missing_ok=True).get("oom_kill", 0)

    def read_stats(self, container_id: str) -> CgroupStats:
        unified = self.unified(container_id)
        cpu = _read_flat(f"{unified}/cpu.stat")
        memory_group = self.path("memory", container_id)
        memory = _read_flat(f"{memory_group}/memory.stat", missing_ok=True)
        throttling: dict[str, int] = {}
        if self.host.hierarchy("cpu"):
            file = f"{self.path('cpu', container_id)}/cpu.stat"
            throttling = _read_flat(file, missing_ok=True)
        limit = _read_number(f"{memory_group}/memory.limit_in_bytes")
        pids_limit = None
        if self.host.hierarchy("pids"):
            pids_limit = _read_number(f"{self.path('pids', container_id)}/pids.max")
        read = written = 0
        if self.host.hierarchy("blkio"):
            group = self.path("blkio", container_id)
            read, written = _v1_io_totals(_read(f"{group}/blkio.throttle.io_service_bytes"))
        pressure = self._pressure(container_id)
        return CgroupStats(
            cpu_usage_us=cpu.get("usage_usec", 0),
            cpu_user_us=cpu.get("user_usec", 0),
            cpu_system_us=cpu.get("system_usec", 0),
            throttled_periods=throttling.get("nr_throttled", 0),
            throttled_us=throttling.get("throttled_time", 0) // 1000,
            memory_usage_bytes=_read_number(f"{memory_group}/memory.usage_in_bytes") or 0,
            memory_inactive_file_bytes=memory.get("total_inactive_file", 0),
            memory_limit_bytes=None if limit is None or limit >= V1_UNLIMITED else limit,
            oom_kills=self.oom_kills(container_id),
            pids=len(_read(f"{unified}/cgroup.threads").split()),
            pids_limit=pids_limit,
            read_bytes=read,
            written_bytes=written,
            cpu_pressure=pressure[0],
            memory_pressure=pressure[1],
            io_pressure=pressure[2],
        )


def _huge_pages(resources: Resources) -> list[tuple[str, str]]:
    """Return what to write in which file of cgroup v2."""
    return [(f"hugetlb.{p.page_size}.max", str(p.limit_bytes)) for p in resources.hugetlb]


def _lifted_huge_pages(group: str, old: Resources, new: Resources) -> list[SetLimit]:
    kept = {pages.page_size for pages in new.hugetlb}
    gone = (pages.page_size for pages in old.hugetlb if pages.page_size not in kept)
    return [SetLimit(f"{group}/hugetlb.{size}.max", "max") for size in gone]


def weight_of_shares(shares: int) -> int:
    """Convert v1's cpu.shares (2 to 262144) to v2's cpu.weight (1 to 10000), as runc does."""
    return 1 + (shares - 2) * 9999 // 262142


def apply_limits(writes: Sequence[SetLimit]) -> None:
    """Write limits of a running group. Sync.

    v1 wants memory+swap >= memory at every moment, so which of the two comes first depends on
    whether they grow: a write that is refused is put off until the others are done, once.
    """
    put_off: list[SetLimit] = []
    for write in writes:
        try:
            write_control(write.path, write.value)
        except OSError as failure:
            if failure.errno != errno.EINVAL:
                raise
            put_off.append(write)
    for write in reversed(put_off):
        write_control(write.path, write.value)
    if put_off:
        for write in writes:
            write_control(write.path, write.value)


def move_processes(source: str, targets: Sequence[str]) -> None:
    """Move every process of the cgroup2 *source* into the v1 groups *targets*. Sync.

    A fork during the move may put a child in the old group, so it goes round until nothing is
    left outside; the bound is against a fork bomb.
    """
    for target in targets:
        for _ in range(100):
            here = set(_read(f"{source}/cgroup.procs").split())
            outside = here - set(_read(f"{target}/cgroup.procs").split())
            if not outside:
                break
            for pid in outside:
                with contextlib.suppress(ProcessLookupError):
                    write_control(f"{target}/cgroup.procs", pid)


def _swap_total(resources: Resources) -> int | None:
    """Return memory and swap together; with a memory limit alone twice that, as Docker does."""
    if resources.memory_swap_bytes is not None:
        return resources.memory_swap_bytes
    return None if resources.memory_bytes is None else 2 * resources.memory_bytes


def write_control(path: str, value: str) -> None:
    """Write *value* to a control file; an OSError names the path."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode() or b"\n")
    except OSError as failure:
        failure.filename = path
        raise
    finally:
        os.close(fd)


def read_control(path: str) -> str:
    """Return the text of a control file."""
    # Not Path.read_text: statistics read a dozen of these for each container.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while chunk := os.read(fd, CONTROL_READ_BYTES):
            text += chunk
    finally:
        os.close(fd)
    return text.decode()


def _read(path: str) -> str:
    """Return the text of a control file, "" when the group does not have it."""
    try:
        return read_control(path)
    except OSError:
        return ""


def _read_number(path: str) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdecimal() else None


def _read_flat(path: str, *, missing_ok: bool = False) -> dict[str, int]:
    """Read a flat-keyed file: lines of a name and a number."""
    try:
        text = read_control(path)
    except FileNotFoundError:
        if missing_ok:
            return {}
        raise
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _io_totals(text: str) -> tuple[int, int]:
    totals = {"rbytes": 0, "wbytes": 0}
    for line in text.splitlines():
        for item in line.split()[1:]:
            key, _, value = item.partition("=")
            if key in totals:
                totals[key] += int(value)
    return totals["rbytes"], totals["wbytes"]


def _v1_io_totals(text: str) -> tuple[int, int]:
    totals = {"Read": 0, "Write": 0}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[1] in totals:
            totals[fields[1]] += int(fields[2])
    return totals["Read"], totals["Write"]
