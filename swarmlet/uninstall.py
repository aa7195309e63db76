"""Take swarmlet off this machine: its service, processes, network, mounts, cgroups and folders.

Needs no daemon that answers and no state that can be read: what is ours is known by where it is
(below the state and run folders, in the cgroup) or by its name (links whose alias begins with the
prefix, nft tables of that name, routing rules with our marks). So it also clears up after a daemon
that crashed. Twice is as good as once. Nothing that is not ours is touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from swarmlet import nft
from swarmlet.install import BOOTED, UNIT, InstallError, Places, systemctl

#: Seconds that the daemon gets to end by itself, and a killed process to be gone.
STOP_SECONDS = 15.0
#: Our connection marks and routing tables: 'S' in the top byte (overlay.naming.MARK_BASE).
MARK_BASE, MARK_MASK = 0x53000000, 0xFF000000
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8  # <sys/mount.h>

_libc = ctypes.CDLL(None, use_errno=True)

Report = Callable[[str], None]


def uninstall(places: Places, *, purge: bool, report: Report) -> list[str]:
    """Remove everything, with *purge* the state too; return what could not be removed, in words.

    Raises:
        InstallError: no root, or systemd would not stop the service.
    """
    if os.geteuid() != 0:
        raise InstallError("root is needed to remove the service and its containers: use sudo")
    remove_unit(report)
    left = stop_processes(places, report)
    left += remove_mounts(places, report)
    left += remove_network(places, report)
    left += remove_cgroups(places.cgroup_parent, report)
    for folder in (places.run_dir, *([places.state_dir] if purge else ())):
        left += remove_folder(folder, mounts_below(places), report)
    return left


def remove_folder(folder: Path, mounts: list[str], report: Report) -> list[str]:
    """Remove a folder with its contents; not one with a mount in it, whose files are not ours."""
    if not folder.exists():
        return []
    if not any(mount.startswith(f"{folder}/") for mount in mounts):
        shutil.rmtree(folder, ignore_errors=True)
    # A folder on which a disk is mounted is emptied, and stays.
    if folder.exists() and any(folder.iterdir()):
        return [f"folder {folder}"]
    report(f"removed {folder}")
    return []


def remove_unit(report: Report) -> None:
    if BOOTED.is_dir() and UNIT.exists():
        systemctl("disable", "--now", UNIT.name)
        report(f"stopped and disabled {UNIT.name}")
    if UNIT.exists():
        UNIT.unlink()
        report(f"removed {UNIT}")
        if BOOTED.is_dir():
            systemctl("daemon-reload")


# Processes.


def stop_processes(places: Places, report: Report) -> list[str]:
    """End the daemon in order, then its containers, then the zygote, which saw them end."""
    daemons = [pid for pid in holders(places) if not is_zygote(pid)]
    if daemons:
        end(daemons, signal.SIGTERM)
        report("stopped the daemon")
    before: set[int] = set()
    while contained := pids_in(places.cgroup_parent):
        if contained <= before:  # killed and not gone: it hangs in the kernel
            break
        before = contained
        thaw(places.cgroup_parent)  # on cgroup v1 a frozen process does not even die
        end(contained, signal.SIGKILL)
        report(f"killed {len(contained)} processes in containers")
    rest = holders(places)
    if rest:
        end(rest, signal.SIGKILL)
        report("stopped the zygote")
    rest = sorted({*holders(places), *pids_in(places.cgroup_parent)})
    return [f"process {pid} {' '.join(words_of(pid))}" for pid in rest]


def holders(places: Places) -> list[int]:
    """The daemon and the zygote: programs of ours with something open below our folders.

    A shell or an editor of the user's that has a file of ours open is not ours.
    """
    below = tuple(f"{folder}/" for folder in (places.state_dir, places.run_dir))
    sockets = sockets_below(below)
    here = os.stat("/proc/self/ns/pid").st_ino
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(OSError):
            # A daemon in a container or a lab sees the same paths, and is another machine's.
            if os.stat(f"/proc/{pid}/ns/pid").st_ino != here or pid == os.getpid():
                continue
            if is_ours(pid) and any(
                name.startswith(below) or name in sockets for name in open_files(pid)
            ):
                found.append(pid)
    return found


def is_ours(pid: int) -> bool:
    """By its name, or as `python3 …/swarmlet daemon`."""
    names = [name_of(pid), *(os.path.basename(word) for word in words_of(pid)[:3])]
    return any(name.startswith("swarmlet") for name in names)


def is_zygote(pid: int) -> bool:
    return name_of(pid) == "swarmlet-zygote"


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except OSError:
        return ""


def words_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def open_files(pid: int) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            yield os.readlink(f"{folder}/{name}")


def sockets_below(below: tuple[str, ...]) -> set[str]:
    """What /proc/PID/fd calls the Unix sockets that are bound below these folders."""
    found = set()
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)  # proc_net(5): the seventh is the inode, then the path
        if len(fields) == 8 and fields[7].startswith(below):
            found.add(f"socket:[{fields[6]}]")
    return found


def end(targets: Iterable[int], number: signal.Signals) -> None:
    """Signal processes and wait until they are gone; those that do not go are killed."""
    # By descriptor: a pid may come back as somebody else's.
    descriptors = []
    for pid in targets:
        with contextlib.suppress(ProcessLookupError):
            descriptors.append(os.pidfd_open(pid))
    try:
        rest = signal_and_wait(descriptors, number)
        if rest and number != signal.SIGKILL:
            signal_and_wait(rest, signal.SIGKILL)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def signal_and_wait(descriptors: list[int], number: signal.Signals) -> list[int]:
    """Return those that were not gone after STOP_SECONDS."""
    waiting = select.poll()
    for descriptor in descriptors:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, number)
        waiting.register(descriptor, select.POLLIN)
    rest = set(descriptors)
    deadline = time.monotonic() + STOP_SECONDS
    while rest and (seconds := deadline - time.monotonic()) > 0:
        for descriptor, _ in waiting.poll(seconds * 1000):
            waiting.unregister(descriptor)
            rest.discard(descriptor)
    return sorted(rest)


# Control groups: folders below some mounts, on version 1, version 2 and the mixture alike.


def groups(parent: str) -> Iterator[Path]:
    """Every cgroup below and including *parent* in every hierarchy, children before parents."""
    assert parent.strip("/"), "the root is not ours"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ")[0] in ("cgroup", "cgroup2"):
            root = Path(unescaped(before.split(" ")[4]))
            for folder, _, _ in os.walk(root / parent.strip("/"), topdown=False):
                yield Path(folder)


def pids_in(parent: str) -> set[int]:
    found: set[int] = set()
    for folder in groups(parent):
        with contextlib.suppress(OSError):
            found |= {int(pid) for pid in (folder / "cgroup.procs").read_text().split()}
    return found - {0, os.getpid()}  # 0: in no namespace that we can see


def thaw(parent: str) -> None:
    for folder in groups(parent):
        for file, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            if (folder / file).exists():
                with contextlib.suppress(OSError):
                    (folder / file).write_text(value)


def remove_cgroups(parent: str, report: Report) -> list[str]:
    """Remove *parent* and all below it. A group stays busy until its last zombie is reaped."""
    removed = False
    deadline = time.monotonic() + STOP_SECONDS
    while True:
        left = []
        for folder in groups(parent):
            try:
                folder.rmdir()
                removed = True
            except FileNotFoundError:
                pass
            except OSError as error:
                left.append(f"cgroup {folder}: {os.strerror(error.errno or 0)}")
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.05)  # noqa: TID251 (a command of the user's, not the daemon)
    if removed:
        report(f"removed the cgroup {parent}")
    return left


# Mounts.


def unescaped(text: str) -> str:
    """proc_pid_mountinfo(5): space, tab, newline and backslash are written in octal."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)


def mounts_below(places: Places) -> list[str]:
    """Mount points within our folders, the newest first.

    Not the folders themselves: a disk that the user mounted there is the user's.
    """
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = unescaped(line.split(" ")[4])
        if point.startswith((f"{places.state_dir}/", f"{places.run_dir}/")):
            found.append(point)
    return found[::-1]


def remove_mounts(places: Places, report: Report) -> list[str]:
    removed = 0
    for point in mounts_below(places):
        if _libc.umount2(os.fsencode(point), MNT_DETACH | UMOUNT_NOFOLLOW) == 0:
            removed += 1
    if removed:
        report(f"unmounted {removed} mounts")
    return [f"mount {point}" for point in mounts_below(places)]


# The network of the host's own namespace. What is in other namespaces goes with them.


def remove_network(places: Places, report: Report) -> list[str]:
    from pyroute2 import IPRoute, NetlinkError  # which is no OSError

    left = []
    with IPRoute() as routing:
        marked = list(rules_of_ours(routing))
        for rule, table in marked:
            with contextlib.suppress(NetlinkError):  # what stays is in the list at the end
                routing.rule("del", **rule)
                routing.flush_routes(table=table)
        for index, name in links_of_ours(routing, places.prefix):
            # It may go with its peer, or with the namespace of a container that was just killed.
            with contextlib.suppress(NetlinkError):
                routing.link("del", index=index)
                report(f"removed the link {name}")
        if marked:
            report(f"removed {len(marked)} routing rules")
        left += [f"link {name}" for _, name in links_of_ours(routing, places.prefix)]
        left += [f"routing rule {rule}" for rule, _ in rules_of_ours(routing)]
    return left + remove_tables(places.prefix, report)


def links_of_ours(routing: Any, prefix: str) -> list[tuple[int, str]]:
    return [
        (link["index"], link.get_attr("IFLA_IFNAME"))
        for link in routing.get_links()
        if (link.get_attr("IFLA_IFALIAS") or "").startswith(f"{prefix}:")
    ]


def rules_of_ours(routing: Any) -> Iterator[tuple[dict[str, Any], int]]:
    """Rules that lead marked packets to a table of ours, each as the words that delete it."""
    for rule in routing.get_rules():
        mark, table = rule.get_attr("FRA_FWMARK") or 0, rule.get_attr("FRA_TABLE") or 0
        if mark & MARK_MASK == MARK_BASE and table & MARK_MASK == MARK_BASE:
            words = {"family": rule["family"], "priority": rule.get_attr("FRA_PRIORITY") or 0}
            mask = rule.get_attr("FRA_FWMASK") or 0xFFFFFFFF
            yield {**words, "fwmark": mark, "fwmask": mask, "table": table}, table


def remove_tables(prefix: str, report: Report) -> list[str]:
    """Delete the nft tables of our name, of whatever family, through libnftables."""
    try:
        run = nft.connect()
    except OSError as error:
        return [f"nft table {prefix}, if there is one: {error}"]
    for family in tables_named(run, prefix):
        run(f"delete table {family} {prefix}")
        report(f"removed the nft table {family} {prefix}")
    return [f"nft table {family} {prefix}" for family in tables_named(run, prefix)]


def tables_named(run: Callable[[str], str], name: str) -> list[str]:
    listed = json.loads(run("list tables") or '{"nftables": []}')["nftables"]
    tables = [entry["table"] for entry in listed if "table" in entry]
    return [str(table["family"]) for table in tables if table["name"] == name]
