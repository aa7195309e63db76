"""linux.resources of a config.json, and the file of `update --resources`: limits. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from swarmlet.runtime.decoding import SpecError
from swarmlet.runtime.oci.reader import Node
from swarmlet.runtime.parts import DeviceRule, HugetlbLimit, IoLimit, Resources
from swarmlet.runtime.validation import validate_resources

#: Shorter: 0 is "nothing said" for these in every engine's document.
_THROTTLES = {
    "throttleReadBpsDevice": "read_bytes_per_second",
    "throttleWriteBpsDevice": "write_bytes_per_second",
    "throttleReadIOPSDevice": "read_operations_per_second",
    "throttleWriteIOPSDevice": "write_operations_per_second",
}


def read_resources(node: Node) -> tuple[Resources, Mapping[str, str]]:
    """Return the limits at *node*, and those that name a file of cgroup v2 (`unified`)."""
    memory, cpu, pids = node["memory"], node["cpu"], node["pids"]
    for part, name in ((cpu, "realtimeRuntime"), (cpu, "realtimePeriod"), (memory, "kernel")):
        if (part[name].optional() or 0) > 0:
            part[name].refuse("is not supported")
    resources = Resources(
        memory_bytes=_positive(memory["limit"]),
        memory_swap_bytes=_swap(memory["swap"], memory["limit"]),
        memory_reservation_bytes=_positive(memory["reservation"]),
        cpu_quota_us=_positive(cpu["quota"]),
        cpu_period_us=_positive(cpu["period"]) or 100_000,
        cpu_shares=_positive(cpu["shares"]),
        cpuset_cpus=cpu["cpus"].text("") or None,
        cpuset_mems=cpu["mems"].text("") or None,
        pids_max=_positive(pids["limit"]),
        io=tuple(_throttles(node["blockIO"])),
        hugetlb=tuple(_huge_pages(node["hugepageLimits"])),
    )
    unified = node["unified"].mapping()
    for name in unified:
        if not re.fullmatch(r"[a-z]+\.[A-Za-z0-9_.]+", name):
            Node(name, f"{node.path}.unified").refuse(f"{name!r} is no file of a group")
    return resources, unified


#: A limit's name in a spec, and in the document.
_NAMES = {
    "memory_bytes": "memory.limit",
    "memory_swap_bytes": "memory.swap",
    "memory_reservation_bytes": "memory.reservation",
    "cpu_quota_us": "cpu.quota",
    "cpu_period_us": "cpu.period",
    "cpu_shares": "cpu.shares",
    "cpuset_cpus": "cpu.cpus",
    "cpuset_mems": "cpu.mems",
    "pids_max": "pids.limit",
}


def check_resources(resources: Resources, path: str) -> None:
    """Raise SpecError, in the document's words, for a limit that the kernel could not keep."""
    try:
        validate_resources(resources, path)
    except SpecError as refused:
        text = str(refused)
        for ours, theirs in _NAMES.items():
            text = re.sub(rf"\b{ours}\b", theirs, text)
        raise SpecError(text) from None


def _positive(node: Node) -> int | None:
    """A limit, where 0 and -1 both say that there is none."""
    value = node.optional()
    return value if value is not None and value > 0 else None


def _swap(node: Node, limit: Node) -> int | None:
    value = node.optional()
    if value is None or value == 0:
        # Nothing said is no limit: only Docker makes twice the memory of it.
        return -1 if _positive(limit) is not None else None
    return value


def _throttles(node: Node) -> Iterator[IoLimit]:
    found: dict[str, dict[str, int]] = {}
    for name, field in _THROTTLES.items():
        for item in node[name].items():
            major, minor = (item[n].number(least=0, most=2**20 - 1) for n in ("major", "minor"))
            found.setdefault(f"{major}:{minor}", {})[field] = item["rate"].number(least=0)
    for device, limits in found.items():
        values = {name: value or None for name, value in limits.items()}
        yield IoLimit(device=device, **values)


def _huge_pages(node: Node) -> Iterator[HugetlbLimit]:
    for item in node.items():
        size = item["pageSize"].word()
        if not re.fullmatch(r"[1-9][0-9]*[KMG]B", size):
            item["pageSize"].refuse(f"must be like 2MB, not {size!r}")
        yield HugetlbLimit(page_size=size, limit_bytes=item["limit"].number(least=0))


def read_rules(node: Node) -> Iterator[DeviceRule]:
    """Return the device rules at *node*, of which the last that fits an access decides."""
    for item in node.items():
        kind = item["type"].text("a") or "a"
        if kind not in ("a", "b", "c"):
            item["type"].refuse(f"must be a, b or c, not {kind!r}")
        access = item["access"].text("rwm") or "rwm"
        if set(access) - set("rwm"):
            item["access"].refuse(f"must be of the letters r, w and m, not {access!r}")
        numbers = (item[name].optional(least=-1) for name in ("major", "minor"))
        major, minor = (None if n is None or n < 0 else n for n in numbers)
        yield DeviceRule(
            allow=item["allow"].flag(),
            type="a" if kind == "a" else "b" if kind == "b" else "c",
            major=major,
            minor=minor,
            access=access,
        )
