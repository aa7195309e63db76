"""Ranges of user and group ids for user namespaces: where they come from, which is free.

A range is a container's for its life and nothing on the disk depends on it (layers and volumes
are mapped, not shifted), so any will do: they are given in turn. The ids come from the line of
`swarmlet` in /etc/subuid and /etc/subgid (subuid(5)), or are those that no other software claims:
between what systemd-nspawn takes (up to 1879048191) and what does not fit in a signed number.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from swarmlet.runtime import syscalls
from swarmlet.runtime.cloning import owner_of
from swarmlet.runtime.decoding import SpecError
from swarmlet.runtime.host import Host
from swarmlet.runtime.parts import IdMapping

OWNER = "swarmlet"
#: Ids of one container: those of the traditional 16 bits, `nobody` (65534) among them.
RANGE_SIZE = 65536
DEFAULT_BASE = 0x7000_0000
#: Up to 0x7FFDFFFF: below systemd's "foreign" ids.
DEFAULT_COUNT = 4094 * RANGE_SIZE

#: File system, first kernel that maps the owners of a mount of it and lets overlayfs write there.
MAPPED_SINCE = {
    "ext4": (5, 12),
    "xfs": (5, 12),
    "btrfs": (5, 15),
    "f2fs": (5, 18),
    "tmpfs": (6, 6),  # idmapped since 6.3, user xattrs since 6.6
}

#: Folders of proc and sysfs that the kernel keeps empty, for a file system to be mounted on.
MOUNT_POINTS = (
    "/sys/fs/binfmt_misc",
    "/fs/nfsd",
    "/fs/bpf",
    "/fs/cgroup",
    "/fs/fuse/connections",
    "/fs/pstore",
    "/fs/selinux",
    "/fs/smackfs",
    "/fs/resctrl",
    "/kernel/config",
    "/kernel/debug",
    "/kernel/security",
    "/kernel/tracing",
    "/firmware/efi/efivars",
    "/hypervisor/s390",
)


@dataclass(frozen=True, slots=True)
class IdRanges:
    """*count* ids from *base* on, cut into ranges of *size*."""

    base: int = DEFAULT_BASE
    count: int = DEFAULT_COUNT
    size: int = RANGE_SIZE

    def free(self, used: Iterable[int], *, after: int = -1) -> IdMapping:
        """Return the next range after the one that begins at *after* in which none of *used* is."""
        taken = {(first - self.base) // self.size for first in used}
        ranges = self.count // self.size
        start = (after - self.base) // self.size + 1 if after >= self.base else 0
        for number in (*range(start, ranges), *range(min(start, ranges))):
            if number not in taken:
                host_id = self.base + number * self.size
                return IdMapping(container_id=0, host_id=host_id, size=self.size)
        raise SpecError(
            f"namespaces.user: all {ranges} ranges of ids are in use: give "
            f"{OWNER} more in /etc/subuid and /etc/subgid, or use namespaces.user=host"
        )


def read_ranges(folder: Path = Path("/etc")) -> IdRanges:
    """Return the ids that *folder*/subuid and subgid give to swarmlet, or the default ones."""
    uids, gids = (_read(folder / name) for name in ("subuid", "subgid"))
    if uids is None or gids is None:
        return IdRanges()
    # One map for both: what both files give.
    first = max(uids[0], gids[0])
    count = min(uids[0] + uids[1], gids[0] + gids[1]) - first
    return IdRanges(first, count) if count >= RANGE_SIZE else IdRanges()


def _read(file: Path) -> tuple[int, int] | None:
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    for line in lines:
        match line.split(":"):
            case [name, base, count] if name == OWNER and base.isdecimal() and count.isdecimal():
                return int(base), int(count)
    return None


def read_owner(network: str, folder: str) -> IdMapping | None:
    """Return the ids of the user namespace that owns the network namespace at *network*. Sync.

    None if that is the host's own. The kernel shows a map by the processes in a namespace, and
    there need be none: but a mount that is mapped shows what the owner of *folder* becomes.
    """
    fd = os.open(network, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        users = owner_of(fd)
    finally:
        os.close(fd)
    try:
        if os.fstat(users).st_ino == os.stat("/proc/self/ns/user").st_ino:
            return None
        flags = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC
        tree = syscalls.open_tree(folder, flags)
        try:
            syscalls.mount_setattr(tree, "", attr_set=syscalls.MOUNT_ATTR_IDMAP, userns_fd=users)
            mapped = os.fstat(tree)
        finally:
            os.close(tree)
    finally:
        os.close(users)
    # The folder is root's: its owner in the mapped mount is the namespace's root.
    return IdMapping(container_id=0, host_id=mapped.st_uid, size=RANGE_SIZE)


def refusal(host: Host, state_dir: str) -> str:
    """Return why user namespaces cannot be used with layers in *state_dir*; "" if they can."""
    if not host.user_namespaces:
        return "the kernel has no user namespaces with idmapped layers (5.19 or newer)"
    mountinfo = Path("/proc/self/mountinfo").read_text()
    fstype = file_system_of(state_dir, mountinfo)
    if host.kernel < MAPPED_SINCE.get(fstype, (999, 0)):
        release = ".".join(map(str, host.kernel))
        return f"{state_dir} is on {fstype}, whose owners kernel {release} cannot map"
    for fstype in ("proc", "sysfs"):
        if not is_visible(fstype, mountinfo):
            return f"no {fstype} that is mounted here shows all of it (is this a container?)"
    return ""


def is_visible(fstype: str, mountinfo: str) -> bool:
    """Whether a user namespace may mount *fstype* (proc, sysfs) anew.

    The kernel lets it if one such mount, which can be written to, shows everything already, so
    that no other mount covers any of its files (mount_too_revealing in fs/namespace.c). Those on
    folders that are there to be mounted on do not count.
    """
    whole, covered = set(), set()
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        number, parent, _, root, target, options, *_ = left.split()
        if right.split()[0] == fstype and root == "/" and "ro" not in options.split(","):
            whole.add(number)
        if not target.endswith(MOUNT_POINTS):
            covered.add(parent)
    return not whole <= covered


def file_system_of(path: str, mountinfo: str) -> str:
    """Return the type of the file system that *path* is on, from /proc/self/mountinfo."""
    best, found = "", ""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        target = left.split()[4].replace("\\040", " ")
        inside = f"{path}/".startswith(f"{target.rstrip('/')}/")
        if inside and len(target) >= len(best):
            best, found = target, right.split()[0]
    return found
