"""What a benchmark found: rows of samples, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
OURS = "swarmlet"


@dataclass
class Row:
    """One measured thing: samples of ours and of the peer."""

    name: str
    unit: str
    better: str  # "less" or "more"
    peer_name: str = ""  # when it is another one than the report's
    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)

    def as_json(self, peer_name: str) -> dict[str, Any]:
        ours, peer = median(self.ours), median(self.peer)
        return {
            "row": self.name,
            "unit": self.unit,
            "better": self.better,
            "ours": ours,
            "peer": peer,
            "peer_name": self.peer_name or peer_name,
            "ratio": round(ours / peer, 3) if ours is not None and peer else None,
            "runs": max(len(self.ours), len(self.peer)),
        }


def median(samples: list[float]) -> float | None:
    return round(statistics.median(samples), 4) if samples else None


@dataclass
class Report:
    """The rows of one benchmark, in the order in which they were first measured."""

    peer_name: str
    rows: dict[str, Row] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def add(self, side: str, name: str, unit: str, value: float, *, better: str = "less") -> None:
        assert better in ("less", "more"), better
        row = self.rows.setdefault(name, Row(name, unit, better))
        if side not in (OURS, self.peer_name):
            row.peer_name = side
        (row.ours if side == OURS else row.peer).append(value)
        print(f"  {side:14s} {name}: {value:.4g} {unit}", flush=True)

    def remark(self, text: str) -> None:
        """Something that a reader of the figures must know."""
        self.remarks.append(text)
        print(f"  NOTE: {text}", flush=True)

    def as_json(self) -> dict[str, Any]:
        rows = [row.as_json(self.peer_name) for row in self.rows.values()]
        return {**circumstances(), "rows": rows, "remarks": self.remarks}

    def table(self) -> str:
        heads = ["", "unit", OURS, self.peer_name, "ratio", "better", "runs"]
        lines = [heads]
        for row in self.rows.values():
            entry = row.as_json(self.peer_name)
            cells = [entry["row"], entry["unit"]]
            cells += [show(entry[key]) for key in ("ours", "peer", "ratio")]
            lines.append([*cells, entry["better"], str(entry["runs"])])
        widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
        text = [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([*text, *(f"NOTE: {remark}" for remark in self.remarks)])


def show(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def circumstances() -> dict[str, Any]:
    """The machine and the commit: without them a figure means nothing."""
    git = ["git", "-C", str(ROOT)]
    commit = output([*git, "rev-parse", "--short=12", "HEAD"]) or "unknown"
    if output([*git, "status", "--porcelain", "--untracked-files=no"]):
        commit += "+changes"
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "machine": {
            "cpus": os.cpu_count(),
            "cpu": cpu,
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "load": round(os.getloadavg()[0], 2),
        },
        "commit": commit,
    }


def output(argv: list[str]) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def save(report: Report, path: Path) -> None:
    path.write_text(json.dumps(report.as_json(), indent=2) + "\n")
