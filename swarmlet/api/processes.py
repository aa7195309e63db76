"""The processes of a container as `ps -ef` shows them, without ps: small hosts have none.

Sync: call it in a worker thread. Reads /proc/<pid>/stat, status and cmdline (proc(5)); a process
that ends meanwhile is left out.
"""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Iterable
from pathlib import Path

FULL = "-ef"
TITLES = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
COMMAND_CHARACTERS_MAX = 4096
DAY = 86400


def read_processes(pids: Iterable[int]) -> tuple[list[str], list[list[str]]]:
    ticks = os.sysconf("SC_CLK_TCK")
    now = time.time()
    up = float(Path("/proc/uptime").read_text().split()[0])
    rows = []
    for pid in sorted(pids):
        try:
            rows.append(_row(pid, ticks, now, up))
        except (OSError, ValueError, IndexError):
            continue
    return list(TITLES), rows


def _row(pid: int, ticks: int, now: float, up: float) -> list[str]:
    stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    name = stat[stat.index("(") + 1 : stat.rindex(")")]
    fields = stat[stat.rindex(")") + 2 :].split()  # from the third on
    command = Path(f"/proc/{pid}/cmdline").read_bytes()[:COMMAND_CHARACTERS_MAX]
    text = command.replace(b"\0", b" ").decode(errors="replace").strip() or f"[{name}]"
    used = (int(fields[11]) + int(fields[12])) / ticks
    lived = max(up - int(fields[19]) / ticks, 1e-9)
    return [
        _owner(os.stat(f"/proc/{pid}").st_uid),
        str(pid),
        fields[1],
        str(min(99, int(100 * used / lived))),
        _started(now - lived, now),
        _terminal(int(fields[4])),
        f"{int(used) // 3600:02d}:{int(used) % 3600 // 60:02d}:{int(used) % 60:02d}",
        "".join(c if c.isprintable() else "?" for c in text),
    ]


def _owner(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _started(at: float, now: float) -> str:
    moment = time.localtime(at)
    return time.strftime("%H:%M" if now - at < DAY else "%b%d", moment)


def _terminal(device: int) -> str:
    """The terminal of a device number; the container's own are pts/N."""
    if device == 0:
        return "?"
    major, minor = os.major(device), os.minor(device)
    return f"pts/{minor}" if 136 <= major <= 143 else f"{major}:{minor}"
