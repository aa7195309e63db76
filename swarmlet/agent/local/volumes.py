"""Named volumes of this host: folders that outlive containers.

Sync: call it in a worker thread. <folder>/<name>/_data is the volume, <folder>/<name>/volume its
record. A task's volume is a folder that the runtime made, without a record; it is as good as any.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

from swarmlet.agent.local.records import VolumeRecord
from swarmlet.agent.local.store import (
    DamagedRecord,
    read_record,
    remove_all,
    sync_folder,
    write_record,
)

RECORD, DATA = "volume", "_data"
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}\Z")
#: Beside the name, what a volume is on its way out is called.
GOING = ".going"


class BadVolume(ValueError):
    """What was asked of a volume cannot be; the text says what to do."""


class Volumes:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def data(self, name: str) -> Path:
        return self.folder / name / DATA

    def recover(self) -> None:
        """Finish the removals that were cut off."""
        if self.folder.is_dir():
            for path in self.folder.glob(f"*{GOING}"):
                with contextlib.suppress(OSError):
                    remove_all(path)

    def all(self) -> dict[str, VolumeRecord]:
        """Every volume by name."""
        if not self.folder.is_dir():
            return {}
        found = {}
        for path in sorted(self.folder.iterdir()):
            if path.is_dir() and not path.name.endswith(GOING) and NAME.match(path.name):
                found[path.name] = self._read(path.name)
        return found

    def find(self, name: str) -> VolumeRecord | None:
        if not NAME.match(name) or not (self.folder / name).is_dir():
            return None
        return self._read(name)

    def create(
        self,
        name: str,
        *,
        labels: Mapping[str, str],
        options: Mapping[str, str],
        anonymous: bool = False,
    ) -> VolumeRecord:
        """Make the volume, or return the one that is there. Raises BadVolume, OSError."""
        check_name(name)
        if options:
            raise BadVolume(
                f"volume {name}: the option {min(options)!r} is not built; bind a folder that is "
                "mounted as you want it"
            )
        if (known := self.find(name)) is not None:
            return known
        record = VolumeRecord(
            name=name, created_at=time.time(), labels=dict(labels), anonymous=anonymous
        )
        self.folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        place = self.folder / name
        place.mkdir(mode=0o711, exist_ok=True)
        write_record(place / RECORD, record)
        # 0755 whatever the umask is: it is the folder that the container sees.
        self.data(name).mkdir(exist_ok=True)
        self.data(name).chmod(0o755)
        sync_folder(self.folder)
        return record

    def remove(self, name: str) -> int:
        """Remove the volume and return its size. Raises OSError."""
        place, going = self.folder / name, self.folder / f"{name}{GOING}"
        size = size_of(place)
        place.rename(going)  # at once and for good; what is inside may take its time
        sync_folder(self.folder)
        remove_all(going)
        return size

    def _read(self, name: str) -> VolumeRecord:
        place = self.folder / name
        try:
            record = read_record(place / RECORD, VolumeRecord)
        except DamagedRecord:
            record = None
        if record is not None:
            return record
        return VolumeRecord(name=name, created_at=place.stat().st_mtime)


def check_name(name: str) -> None:
    if not NAME.match(name) or name.endswith(GOING):
        raise BadVolume(
            f"{name!r} is no name of a volume: letters, digits, '_', '.' and '-', at most 128; a "
            "folder of the host is given by its whole path"
        )


def size_of(place: Path) -> int:
    """Bytes of all files below *place*, as far as they can be seen."""
    total = 0
    for folder, _, names in os.walk(place):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(f"{folder}/{name}").st_size
    return total
