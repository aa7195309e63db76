"""What a runtime without a daemon remembers: one folder a container, below `--root`.

Sync. Files of a container:

    state.json   what `state` shows, and the names of its groups; written whole, then renamed
    config.json  the document as it was when the container was made
    start        the socket at which its first process waits; there until it was started
    root/        where its root is mounted, in its own mount namespace
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from swarmlet.runtime import birth, hostside
from swarmlet.runtime.cgroups import Driver, driver
from swarmlet.runtime.failures import NoSuchContainer
from swarmlet.runtime.host import Host
from swarmlet.runtime.oci.config import VERSION, Config, read_config
from swarmlet.runtime.values import named_value

STATE, CONFIG, START = "state.json", "config.json", "start"
#: The parent of groups of containers for which the engine names none.
DEFAULT_PARENT = "swarmlet-oci"


@named_value
class Record:
    """One container; *pid* is 0 before its process is there."""

    id: str
    bundle: str
    parent: str  # of its groups, from the root of each hierarchy
    group: str
    created: str  # RFC 3339
    owner: str = ""
    pid: int = 0
    start_ticks: int = 0

    @property
    def alive(self) -> bool:
        """Whether the first process is there and no zombie."""
        if not self.pid:
            return False
        with contextlib.suppress(OSError):
            fields = birth.read_stat(self.pid)
            return int(fields[19]) == self.start_ticks and fields[0] not in ("Z", "X")
        return False

    def driver(self, host: Host) -> Driver:
        return driver(host, self.parent)


class Store:
    """The records below *root*."""

    def __init__(self, root: str) -> None:
        self.root = root

    def folder(self, container_id: str) -> str:
        return f"{self.root}/{container_id}"

    def make(self, container_id: str) -> str:
        """Make the folder of a new container; FileExistsError if there is one."""
        hostside.make_directory(self.root, 0o711)
        folder = self.folder(container_id)
        os.mkdir(folder)
        # The root of a user namespace, who is nobody here, passes through to root/.
        os.chmod(folder, 0o711)
        os.mkdir(f"{folder}/root")
        os.chmod(f"{folder}/root", 0o755)
        return folder

    def write(self, record: Record, config: object = None) -> None:
        folder = self.folder(record.id)
        if config is not None:
            _write(f"{folder}/{CONFIG}", config)
        _write(f"{folder}/{STATE}", vars(record))

    def read(self, container_id: str) -> Record:
        try:
            value = _read(f"{self.folder(container_id)}/{STATE}")
            return Record(**value)
        except (OSError, ValueError, TypeError):
            # What podman and containerd look for, to tell this from a failure.
            text = f"container does not exist: {container_id}"
            raise NoSuchContainer(container_id, text) from None

    def config(self, record: Record) -> Config:
        return read_config(_read(f"{self.folder(record.id)}/{CONFIG}"), record.bundle)

    def names(self) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())
        except FileNotFoundError:
            return []

    def status(self, record: Record, host: Host) -> str:
        """creating, created, running, paused or stopped (runtime.md, "State")."""
        if not record.pid:
            return "creating"
        if not record.alive:
            return "stopped"
        if os.path.exists(f"{self.folder(record.id)}/{START}"):
            return "created"
        group = record.driver(host).unified(record.group)
        with contextlib.suppress(OSError), open(f"{group}/cgroup.events") as events:
            if "frozen 1" in events.read():
                return "paused"
        return "running"

    @contextmanager
    def locked(self, container_id: str) -> Iterator[None]:
        """Exclude other calls that change the same container."""
        try:
            fd = os.open(self.folder(container_id), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            text = f"container does not exist: {container_id}"
            raise NoSuchContainer(container_id, text) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def state_of(record: Record, status: str, annotations: Any) -> dict[str, Any]:
    """Return the state as the specification has it (runtime.md, "State")."""
    return {
        "ociVersion": VERSION,
        "id": record.id,
        "status": status,
        "pid": record.pid if status != "stopped" else 0,
        "bundle": record.bundle,
        "annotations": dict(annotations),
        "created": record.created,
        "owner": record.owner,
    }


def _write(path: str, value: object) -> None:
    fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w") as file:
        json.dump(value, file)
    os.replace(f"{path}.new", path)


def _read(path: str) -> Any:
    with open(path, "rb") as file:
        return json.load(file)
