"""Bundles for swarmlet-oci, and the command itself, as an engine calls it."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from swarmlet.runtime import cgroups, hostside
from swarmlet.runtime.host import probe
from swarmlet.runtime.steps import RemoveCgroup
from tests.runtime.lab import cgroup_roots, make_layer

SAFE = ["nosuid", "noexec", "nodev"]
CAPABILITIES = ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
NAMESPACES = ("mount", "pid", "network", "ipc", "uts", "cgroup")
#: The least that an engine would write.
DOCUMENT: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "root": {"path": "rootfs"},
    "hostname": "box",
    "process": {
        "args": ["true"],
        "cwd": "/",
        "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0},
        "noNewPrivileges": True,
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
    },
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["newinstance", "ptmxmode=0666", "mode=0620"],
        },
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": SAFE},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*SAFE, "ro"]},
    ],
    "linux": {
        "namespaces": [{"type": kind} for kind in NAMESPACES],
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "maskedPaths": ["/proc/kcore", "/proc/keys"],
        "readonlyPaths": ["/proc/sys"],
    },
}


def document(*args: str, **process: Any) -> dict[str, Any]:
    """A copy of the document that runs *args*; *process* changes fields of its process."""
    made = copy.deepcopy(DOCUMENT)
    made["process"] |= {"args": list(args), **process}
    return made


class Bench:
    """A folder for bundles and states, and the command."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = base / "state"
        self.parent = f"swarmlet-test-oci-{os.getpid()}-{base.name}"
        self.rootfs = make_layer(base / "rootfs")
        for name in ("proc", "sys", "dev"):
            (self.rootfs / name).mkdir()

    def bundle(self, made: dict[str, Any], name: str = "bundle") -> Path:
        """Write *made* as a bundle, with groups of its own."""
        if made["root"]["path"] == "rootfs":
            made["root"]["path"] = str(self.rootfs)
        made["linux"].setdefault("cgroupsPath", f"/{self.parent}/{name}")
        folder = self.base / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(made))
        return folder

    @property
    def argv(self) -> list[str]:
        return [sys.executable, "-m", "swarmlet.runtime.oci.command", "--root", str(self.root)]

    def call(
        self, *words: str, code: int | None = 0, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run swarmlet-oci; *code* is what it must exit with, None is any."""
        with (self.base / "said").open("w+") as said, (self.base / "errors").open("w+") as errors:
            # Files: a container that goes on holds a pipe open.
            more = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": errors, **more}
            done = subprocess.run([*self.argv, *words], timeout=60, **more)
            said.seek(0)
            errors.seek(0)
            found = subprocess.CompletedProcess(words, done.returncode, said.read(), errors.read())
        assert code is None or found.returncode == code, found
        return found

    def state(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.call("state", name).stdout)
        return found

    def picture(self) -> dict[str, Any]:
        """What a container must not leave changed."""
        states = os.listdir(self.root) if self.root.exists() else []
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        return {
            "states": states,
            "groups": [str(path) for path in self.groups()],
            "mounts": [line for line in mounts if str(self.base) in line],
        }

    def groups(self) -> list[Path]:
        """The groups of containers: their parents are the engine's."""
        found = (Path(root, self.parent).glob("*/cgroup.procs") for root in cgroup_roots())
        return [path.parent for paths in found for path in paths]

    def clean(self) -> None:
        driver = cgroups.driver(probe(), self.parent)
        for group in self.groups():
            driver.kill(group.name)
            with contextlib.suppress(OSError):
                hostside.execute([RemoveCgroup(str(group))])
        for root in cgroup_roots():
            hostside.prune_cgroups(root, self.parent)
