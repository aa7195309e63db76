"""A reading of a container's groups as Docker's `stats` shows it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from swarmlet.api.fields import timestamp
from swarmlet.runtime.statistics import ContainerStats

MICROSECOND_NS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look: *stats* is None of a container that does not run."""

    at: float
    stats: ContainerStats | None
    host_cpu_ns: int  # all processors', since the boot
    cpus: int
    memory_bytes: int  # of the host


def write_stats(id_: str, name: str, before: Reading | None, now: Reading) -> dict[str, Any]:
    """*before* is the reading that percentages are counted from."""
    document: dict[str, Any] = {
        "name": f"/{name}",
        "id": id_,
        "read": timestamp(now.at if now.stats is not None else 0),
        "preread": timestamp(before.at if before is not None and before.stats is not None else 0),
        "num_procs": 0,
        "storage_stats": {},
        "pids_stats": {},
        "blkio_stats": _write_blkio(now),
        "cpu_stats": _write_cpu(now),
        "precpu_stats": _write_cpu(before),
        "memory_stats": {},
    }
    if now.stats is None:
        return document
    group = now.stats.group
    document["pids_stats"] = {
        "current": group.pids,
        "limit": group.pids_limit if group.pids_limit is not None else 2**64 - 1,
    }
    document["memory_stats"] = {
        "usage": group.memory_usage_bytes,
        # The names of both kinds of cgroups: clients choose by the one that is there.
        "stats": {
            "inactive_file": group.memory_inactive_file_bytes,
            "total_inactive_file": group.memory_inactive_file_bytes,
        },
        "limit": group.memory_limit_bytes or now.memory_bytes,
    }
    if now.stats.interfaces:
        document["networks"] = {
            interface.name: {
                "rx_bytes": interface.received_bytes,
                "rx_packets": interface.received_packets,
                "rx_errors": interface.received_errors,
                "rx_dropped": interface.received_dropped,
                "tx_bytes": interface.sent_bytes,
                "tx_packets": interface.sent_packets,
                "tx_errors": interface.sent_errors,
                "tx_dropped": interface.sent_dropped,
            }
            for interface in now.stats.interfaces
        }
    return document


def _write_cpu(reading: Reading | None) -> dict[str, Any]:
    if reading is None or reading.stats is None:
        return {
            "cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0},
            "throttling_data": {"periods": 0, "throttled_periods": 0, "throttled_time": 0},
        }
    group = reading.stats.group
    return {
        "cpu_usage": {
            "total_usage": group.cpu_usage_us * MICROSECOND_NS,
            "usage_in_kernelmode": group.cpu_system_us * MICROSECOND_NS,
            "usage_in_usermode": group.cpu_user_us * MICROSECOND_NS,
        },
        "system_cpu_usage": reading.host_cpu_ns,
        "online_cpus": reading.cpus,
        "throttling_data": {
            "periods": 0,
            "throttled_periods": group.throttled_periods,
            "throttled_time": group.throttled_us * MICROSECOND_NS,
        },
    }


def _write_blkio(reading: Reading) -> dict[str, Any]:
    rows = []
    if reading.stats is not None:
        group = reading.stats.group
        for operation, value in (("read", group.read_bytes), ("write", group.written_bytes)):
            rows.append({"major": 0, "minor": 0, "op": operation, "value": value})
    return {"io_service_bytes_recursive": rows or None}
