"""What this host's kernel can do, found out once at start.

A fallback is never a `try` around a system call: it is another plan, chosen by these facts.
`probe` is the only function here that looks; the dataclasses are pure and made by hand in tests.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from swarmlet.runtime.values import named_value, value

#: open_tree, move_mount, mount_setattr, clone3 into a cgroup, cgroup.kill: syscalls.py.
KERNEL_MIN = (5, 14)
#: overlayfs takes idmapped layers (5.19).
KERNEL_MIN_USER_NAMESPACES = (5, 19)
MACHINES = ("x86_64", "aarch64")


class HostError(RuntimeError):
    """This host cannot run containers; the text says what is missing and what to do."""


@value
class Hierarchy:
    """One mounted cgroup v1 hierarchy."""

    path: str
    controllers: tuple[str, ...]


@named_value
class Host:
    """Facts that plans depend on."""

    machine: str = "x86_64"
    kernel: tuple[int, int] = (6, 1)
    #: where cgroup2 is mounted: the whole of it on a v2 host, beside v1 on a hybrid one.
    unified: str = "/sys/fs/cgroup"
    unified_controllers: tuple[str, ...] = ("cpuset", "cpu", "io", "memory", "pids")
    hierarchies: tuple[Hierarchy, ...] = ()
    swap_accounting: bool = True
    last_capability: int = 40
    capabilities: int = (1 << 41) - 1  # the daemon's own permitted set, as a mask
    keyrings: bool = True
    user_namespaces: bool = True  # with idmapped layers below an overlay of their own

    @property
    def hybrid(self) -> bool:
        """Whether limits live in v1 hierarchies."""
        return bool(self.hierarchies)

    def hierarchy(self, controller: str) -> Hierarchy | None:
        """Return the v1 hierarchy of *controller*, if the host has it."""
        found = [item for item in self.hierarchies if controller in item.controllers]
        return found[0] if found else None


def probe() -> Host:
    """Look at the running kernel; raise HostError for what nothing can make up for."""
    release = os.uname().release
    kernel = parse_kernel(release)
    if kernel < KERNEL_MIN:
        wanted = ".".join(map(str, KERNEL_MIN))
        raise HostError(f"kernel {release} is too old: swarmlet needs {wanted} or newer")
    machine = os.uname().machine
    if machine not in MACHINES:
        raise HostError(f"no container support for {machine}: only {' and '.join(MACHINES)}")
    unified, hierarchies = parse_cgroup_mounts(_text("/proc/self/mountinfo"))
    if unified is None:
        raise HostError(
            "no cgroup2 file system is mounted: boot with systemd.unified_cgroup_hierarchy=1, "
            "or mount -t cgroup2 none /sys/fs/cgroup/unified"
        )
    controllers = tuple(_text(f"{unified}/cgroup.controllers").split())
    if "memory" in controllers:
        hierarchies = ()
    elif not any("memory" in item.controllers for item in hierarchies):
        raise HostError(
            "the kernel has no memory cgroup controller: on a Raspberry Pi add "
            "cgroup_enable=memory to /boot/firmware/cmdline.txt and reboot"
        )
    memory = next((item.path for item in hierarchies if "memory" in item.controllers), "")
    return Host(
        machine=machine,
        kernel=kernel,
        unified=unified,
        unified_controllers=controllers,
        hierarchies=hierarchies,
        swap_accounting=_has_swap_accounting(memory),
        last_capability=int(_text("/proc/sys/kernel/cap_last_cap")),
        capabilities=_permitted(_text("/proc/self/status")),
        keyrings=os.path.exists("/proc/keys"),
        user_namespaces=kernel >= KERNEL_MIN_USER_NAMESPACES and _has_user_namespaces(),
    )


def parse_kernel(release: str) -> tuple[int, int]:
    """Return (major, minor) of a kernel release such as 6.1.0-13-amd64."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def parse_cgroup_mounts(mountinfo: str) -> tuple[str | None, tuple[Hierarchy, ...]]:
    """Return the mount point of cgroup2 and the v1 hierarchies, from /proc/self/mountinfo.

    The first whole mount (root "/") of each wins: a container engine on the host may have
    mounted more. See proc_pid_mountinfo(5) for the fields.
    """
    unified: str | None = None
    hierarchies: dict[tuple[str, ...], Hierarchy] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, (fstype, _, options) = left.split(), right.split(" ", 2)
        root, target = fields[3], fields[4]
        if root != "/":
            continue
        if fstype == "cgroup2" and unified is None:
            unified = target
        elif fstype == "cgroup":
            controllers = tuple(_controllers(options.split(",")))
            if controllers:
                hierarchies.setdefault(controllers, Hierarchy(target, controllers))
    return unified, tuple(hierarchies.values())


_V1_NAMES = (
    "cpu cpuacct cpuset memory devices freezer blkio pids hugetlb net_cls net_prio perf_event"
)
_V1_CONTROLLERS = frozenset(_V1_NAMES.split())


def _controllers(options: Iterable[str]) -> Iterable[str]:
    return (option for option in options if option in _V1_CONTROLLERS)


def _permitted(status: str) -> int:
    found = re.search(r"^CapPrm:\s*([0-9a-f]+)", status, re.MULTILINE)
    return int(found[1], 16) if found else 0


def _has_user_namespaces() -> bool:
    try:
        return int(_text("/proc/sys/user/max_user_namespaces")) > 0
    except FileNotFoundError:
        return False


def _has_swap_accounting(v1_memory: str) -> bool:
    if v1_memory:
        return os.path.exists(f"{v1_memory}/memory.memsw.limit_in_bytes")
    # memory.swap.max is missing in the root group and, with swapaccount=0, everywhere. A host
    # without swap does not miss it.
    return len(_text("/proc/swaps").splitlines()) > 1


def _text(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()
