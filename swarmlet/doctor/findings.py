"""What an examination finds, in words, and what follows from it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any


class Status(Enum):
    FOUND = "found"
    DEGRADED = "degraded"  # swarmlet runs, but something is worse or not there
    MISSING = "missing"  # swarmlet does not run, or not all of it
    UNKNOWN = "unknown"  # it could not be tried


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    group: str
    name: str
    status: Status
    detail: str  # what was seen
    why: str  # what it is for
    fix: str = ""  # how to get it; empty when found

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "status": self.status.value}


def feature(
    group: str,
    name: str,
    error: str | None,
    *,
    why: str,
    fix: str,
    optional: bool = False,
    detail: str = "works",
) -> Finding:
    """A feature that was tried: *error* is what went wrong, or None."""
    if error is None:
        return Finding(group=group, name=name, status=Status.FOUND, detail=detail, why=why)
    status = Status.DEGRADED if optional else Status.MISSING
    if error == NOT_TRIED:
        status = Status.UNKNOWN
    return Finding(group=group, name=name, status=status, detail=error, why=why, fix=fix)


#: The error of a feature that only root can try.
NOT_TRIED = "not tried: run it as root"


def exit_code(findings: Sequence[Finding]) -> int:
    """0: swarmlet runs here. 1: something that it needs is missing."""
    return int(any(finding.status is Status.MISSING for finding in findings))


def summary(findings: Sequence[Finding]) -> str:
    counts = {status: sum(finding.status is status for finding in findings) for status in Status}
    words = ", ".join(f"{count} {status.value}" for status, count in counts.items() if count)
    if counts[Status.MISSING]:
        return f"{words}: swarmlet does not run here, or not all of it"
    if counts[Status.UNKNOWN]:
        return f"{words}: run it as root to know"
    return f"{words}: swarmlet runs here"
