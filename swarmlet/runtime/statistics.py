"""What a container used: frozen values. Pure."""

from __future__ import annotations

import re

from swarmlet.runtime.values import named_value, value


@value
class Pressure:
    """Percent of the last 10 s in which some, or all, processes waited (PSI)."""

    some_percent: float = 0.0
    full_percent: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Pressure:
        """Read a *.pressure file (Documentation/accounting/psi.rst); no text is no pressure."""
        found = dict(re.findall(r"^(some|full) avg10=([0-9.]+)", text, re.MULTILINE))
        return cls(float(found.get("some", 0)), float(found.get("full", 0)))


@named_value
class CgroupStats:
    """Counters of one group since it was made; limits are None where there is none."""

    cpu_usage_us: int
    cpu_user_us: int
    cpu_system_us: int
    throttled_periods: int
    throttled_us: int
    memory_usage_bytes: int  # with page cache
    memory_inactive_file_bytes: int  # page cache that goes first
    memory_limit_bytes: int | None
    oom_kills: int
    pids: int  # threads, as the pids controller counts
    pids_limit: int | None
    read_bytes: int
    written_bytes: int
    cpu_pressure: Pressure
    memory_pressure: Pressure
    io_pressure: Pressure

    @property
    def memory_bytes(self) -> int:
        """What docker stats shows: usage without the page cache that is easily given back."""
        return max(0, self.memory_usage_bytes - self.memory_inactive_file_bytes)


@value
class InterfaceStats:
    """Counters of a network interface in the container's own namespace."""

    name: str
    received_bytes: int
    received_packets: int
    received_errors: int
    received_dropped: int
    sent_bytes: int
    sent_packets: int
    sent_errors: int
    sent_dropped: int


@value
class ContainerStats:
    """One reading of one container; *read_at* is Unix time."""

    id: str
    read_at: float
    group: CgroupStats
    interfaces: tuple[InterfaceStats, ...]


def parse_interfaces(text: str) -> tuple[InterfaceStats, ...]:
    """Read /proc/PID/net/dev (proc_pid_net(5)); the loopback is left out."""
    interfaces = []
    for line in text.splitlines()[2:]:
        name, _, numbers = line.partition(":")
        values = [int(number) for number in numbers.split()]
        if name.strip() != "lo" and len(values) >= 12:
            interfaces.append(InterfaceStats(name.strip(), *values[0:4], *values[8:12]))
    return tuple(interfaces)
