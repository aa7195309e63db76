"""What the host's /proc shows of a container's first process. Pure: texts in, findings out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from swarmlet.runtime import defaults
from swarmlet.runtime.values import value

#: Capabilities beyond Docker's default set.
DEFAULT_MASK = sum(1 << defaults.CAPABILITY_NUMBERS[n] for n in defaults.DEFAULT_CAPABILITIES)
NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "cgroup", "user")
#: A path on the host whose mount hands the host over.
DANGEROUS = re.compile(r"/(var/)?run/(docker|swarmlet|containerd|crio)/.*\.sock$|\.sock$")

ON_DISKS = ("ext4", "xfs", "btrfs")


@value
class Finding:
    """One row of the report: *view* is "inside" or "outside"."""

    name: str
    title: str
    held: bool
    why: str
    view: str


@value
class Look:
    """What was read of one process, and of ours for comparison."""

    status: str
    mountinfo: str
    namespaces: Mapping[str, str]
    host_namespaces: Mapping[str, str]
    uid_map: str
    descriptors: Sequence[str]  # what the links in /proc/PID/fd say
    groups: str  # /proc/PID/cgroup
    limits: Mapping[str, str]  # memory, pids: "" for none


def examine(look: Look) -> list[Finding]:
    """Return the findings, in the order in which they are shown."""
    found = []

    def add(name: str, title: str, held: bool, why: str) -> None:
        found.append(Finding(name, title, held, why, "outside"))

    for kind in NAMESPACES:
        own = look.namespaces.get(kind) != look.host_namespaces.get(kind)
        where = "one of its own" if own else "the host's"
        add(f"ns-{kind}", f"its {kind} namespace", own, where)
    first = look.uid_map.split()[1:2]
    root = first not in (["0"], [])
    add("root", "its root is nobody on the host", root, f"root is user {first[0] if first else 0}")
    of = dict(re.findall(r"^(\w+):\t(.*)$", look.status, re.MULTILINE))
    beyond = int(of.get("CapBnd", "0"), 16) & ~DEFAULT_MASK
    names = [n for n, number in defaults.CAPABILITY_NUMBERS.items() if beyond >> number & 1]
    why = (
        f"beyond Docker's default: {', '.join(names)}" if names else "none beyond Docker's default"
    )
    add("capabilities", "its capabilities", not names, why)
    filtered = of.get("Seccomp") == "2"
    add("seccomp", "a filter of system calls", filtered, "a filter" if filtered else "none")
    bound = of.get("NoNewPrivs") == "1"
    add("no-new-privs", "no_new_privs", bound, "set" if bound else "not set")
    mounts = [line.split() for line in look.mountinfo.splitlines()]
    shared = [m[4] for m in mounts if any(w.startswith("shared:") for w in m[6 : m.index("-")])]
    why = f"shared with the host: {', '.join(shared)}" if shared else "none reaches the host"
    add("propagation", "its mounts", not shared, why)
    sockets = [m[3] for m in mounts if DANGEROUS.search(m[3])]
    why = f"mounted: {', '.join(sockets)}" if sockets else "none is mounted"
    add("sockets", "sockets of the host's daemons", not sockets, why)
    whole = [
        m[4] for m in mounts if m[3] == "/" and m[m.index("-") + 1] in ("ext4", "xfs", "btrfs")
    ]
    why = f"mounted whole: {', '.join(whole)}" if whole else "none is mounted whole"
    add("disks", "file systems of the host", not whole, why)
    grouped = all(len(line.split(":", 2)[2]) > 1 for line in unified(look.groups))
    add("group", "a group of its own", grouped, "yes" if grouped else "it is in the root group")
    for kind in ("memory", "pids"):
        limit = look.limits.get(kind, "")
        add(f"limit-{kind}", f"a limit of {kind}", bool(limit), limit or "none is set")
    return found


def unified(groups: str) -> list[str]:
    return [line for line in groups.splitlines() if line.startswith("0::")]
