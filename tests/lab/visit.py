"""A lab seen from another process: by its number, through what it wrote to the disk. Sync."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tests.lab import ownership
from tests.lab.host import enter
from tests.lab.network import LabError


@dataclass(frozen=True, slots=True)
class Visit:
    """A running host of somebody's lab."""

    lab: int
    name: str
    address: str
    pid: int
    environment: dict[str, str]

    def argv(self, *command: str) -> list[str]:
        return [*enter(self.pid), *command]


def hosts_of(lab: int) -> list[Visit]:
    """The hosts of *lab* that have power, by number."""
    folder = ownership.BASE / str(lab)
    found = []
    for handle in sorted(folder.glob("h*/first"), key=lambda path: int(path.parent.name[1:])):
        pid = ownership.living(handle)
        if pid is not None:
            facts = json.loads((handle.parent / "host.json").read_text())
            found.append(
                Visit(lab, handle.parent.name, facts["address"], pid, facts["environment"])
            )
    return found


def log_of(lab: int, host: str) -> Path:
    return ownership.BASE / str(lab) / host / "daemon.log"


def the_lab(number: int | None = None) -> int:
    """The lab with *number*, or the only one there is."""
    living = [lab for lab in ownership.labs() if not ownership.is_dead(lab)]
    if number is not None:
        if number in living:
            return number
        raise LabError(f"no lab {number}: there is {living or 'none'}")
    if len(living) != 1:
        raise LabError(f"which lab? There is {living or 'none'}: say it with --lab")
    return living[0]


def the_host(lab: int, name: str) -> Visit:
    found = {visit.name: visit for visit in hosts_of(lab)}
    if name not in found:
        raise LabError(f"lab {lab} has no running host {name}: it has {', '.join(found) or 'none'}")
    return found[name]
