"""The vocabulary of plans: every step of a container's life as a value.

Pure. Three places execute steps, each only its own kind:

| steps of | where they run | executed by |
| --- | --- | --- |
| `Plan.prepare`, `removal()` | the host, a worker thread of the daemon | hostside.py |
| `Plan.birth` | the child, between clone3 and "created" | child.py |
| `Plan.launch` | the child, between "start" and execve | child.py |

`wire` turns steps into plain values for the zygote: `[("make_node", {"path": …}), …]`. child.py
has one method of the same name and parameters for each child's step (a test compares them).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from swarmlet.runtime import syscalls as linux

# Steps on the host: files and cgroups around the container.


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    path: str
    mode: int = 0o700


@dataclass(frozen=True, slots=True)
class MakeFifo:
    path: str
    mode: int = 0o600


@dataclass(frozen=True, slots=True)
class MakeHostNode:
    """Make a device node that a user namespace cannot make; *uid* and *gid* are the host's."""

    path: str
    mode: int  # with the type: S_IFCHR or S_IFBLK
    major: int
    minor: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class HoldTree:
    """Keep a detached copy of the mount at *source*: it goes to the child under the name *slot*.

    For a user namespace: only the host can shift the owners of what the child gets. So it is
    taken here, not by the child, and the zygote maps it.
    """

    slot: str
    source: str
    recursive: bool = False
    attributes: int = 0
    propagation: int = linux.MS_PRIVATE


@dataclass(frozen=True, slots=True)
class WriteText:
    path: str
    text: str


@dataclass(frozen=True, slots=True)
class MakeCgroup:
    """Make *name* below the hierarchy at *root*, parents first.

    *inherit* are files that a new group copies from its parent (cpuset of v1 starts empty);
    *controllers* are enabled for every child on the way (v2).
    """

    root: str
    name: str
    inherit: tuple[str, ...] = ()
    controllers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SetLimit:
    path: str
    value: str


@dataclass(frozen=True, slots=True)
class AllowDevices:
    """Attach the eBPF device *program* to the cgroup2 at *cgroup*."""

    cgroup: str
    program: bytes


@dataclass(frozen=True, slots=True)
class KillCgroup:
    """Kill every process in the cgroup2 at *path* and wait until it is empty."""

    path: str


@dataclass(frozen=True, slots=True)
class RemoveCgroup:
    path: str


@dataclass(frozen=True, slots=True)
class PruneCgroups:
    """Remove the groups of the path *name* below *root* as far up as they are empty."""

    root: str
    name: str


@dataclass(frozen=True, slots=True)
class RemoveTree:
    path: str


# Steps of the child: from a clone of the zygote to "created".


@dataclass(frozen=True, slots=True)
class JoinCgroup:
    path: str


@dataclass(frozen=True, slots=True)
class EnterContainer:
    """Join the namespaces *flags* of the running container whose pidfd the zygote passed."""

    flags: int


@dataclass(frozen=True, slots=True)
class Unshare:
    flags: int


@dataclass(frozen=True, slots=True)
class NewSession:
    """setsid, and a session keyring of its own where the kernel has keyrings."""

    keyring: bool


@dataclass(frozen=True, slots=True)
class OpenStdio:
    """Open the container's ends of its standard streams; *stdin* "" is /dev/null."""

    stdin: str
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class SetPropagation:
    flags: int


@dataclass(frozen=True, slots=True)
class EnterFolder:
    """Make the host's folder *path* the current one: later steps name what is in it."""

    path: str


@dataclass(frozen=True, slots=True)
class BecomeRoot:
    """Become root of the own user namespace: until then the child is nobody in it.

    Before it, files of the host's root can be opened; after it, files are made with the right
    owner.
    """


@dataclass(frozen=True, slots=True)
class CloneTree:
    """Keep a detached copy of the mount at *source* in *slot*."""

    slot: str
    source: str
    recursive: bool


@dataclass(frozen=True, slots=True)
class SetTree:
    """Set mount attributes and propagation of the detached tree in *slot*."""

    slot: str
    attributes: int
    propagation: int
    recursive: bool


@dataclass(frozen=True, slots=True)
class MakeTree:
    """Keep a new, detached file system of *fstype* in *slot*."""

    slot: str
    fstype: str
    attributes: int


@dataclass(frozen=True, slots=True)
class PlaceTree:
    """Attach the tree in *slot* at *target*, a folder of the host's that is there."""

    slot: str
    target: str


@dataclass(frozen=True, slots=True)
class AttachTree:
    """Attach the tree in *slot* at *target*, made when missing as what the tree's root is."""

    slot: str
    target: str


@dataclass(frozen=True, slots=True)
class Mount:
    source: str
    target: str
    fstype: str
    flags: int
    data: str = ""


@dataclass(frozen=True, slots=True)
class MountOverlay:
    """Mount *layers*, base first, under *upper* at *target*.

    *user_xattrs*: overlayfs keeps its marks in user.overlay.*, as it must in a user namespace.
    """

    layers: tuple[str, ...]
    upper: str
    work: str
    target: str
    user_xattrs: bool


@dataclass(frozen=True, slots=True)
class PivotRoot:
    """Make *root* the root directory and let go of the old one."""

    root: str


@dataclass(frozen=True, slots=True)
class EnsureDirectory:
    """Make *path* inside the root, with parents, when it is not there."""

    path: str
    mode: int


@dataclass(frozen=True, slots=True)
class MakeFolder:
    """Make the folder *path* on a file system of our own, where nothing else can be."""

    path: str
    mode: int


@dataclass(frozen=True, slots=True)
class MakeNode:
    path: str
    mode: int  # with the type: S_IFCHR or S_IFBLK
    major: int
    minor: int
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class MakeLink:
    path: str
    target: str


@dataclass(frozen=True, slots=True)
class WriteSecret:
    path: str
    content: bytes
    uid: int
    gid: int
    mode: int


@dataclass(frozen=True, slots=True)
class SetSysctl:
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class SetOomScore:
    value: int


@dataclass(frozen=True, slots=True)
class MaskPaths:
    """Hide each path that exists: a file behind /dev/null, a directory behind an empty tmpfs."""

    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MakeReadonly:
    """Make each path that exists read-only, with what is mounted below."""

    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MakeRootReadonly:
    pass


@dataclass(frozen=True, slots=True)
class SetHostname:
    name: str


@dataclass(frozen=True, slots=True)
class SetDomainname:
    name: str


@dataclass(frozen=True, slots=True)
class LoopbackUp:
    pass


@dataclass(frozen=True, slots=True)
class OpenTerminal:
    """Open a pseudo terminal of this container and hand its master to the zygote."""

    rows: int
    columns: int
    console: bool  # also bind it to /dev/console


# Steps of the launch: from "start" to execve. What they do cannot be undone.


@dataclass(frozen=True, slots=True)
class SetRlimit:
    type: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class ResolveUser:
    """Turn names into numbers by the root's own /etc/passwd and /etc/group."""

    user: str
    group: str
    additional_groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TakeStdio:
    """Put the streams in place as 0, 1, 2, owned by the user, and take the terminal."""


@dataclass(frozen=True, slots=True)
class ChangeDirectory:
    path: str


@dataclass(frozen=True, slots=True)
class DropBounding:
    """Drop every capability that is not in the mask *keep* from the bounding set."""

    keep: int
    last: int  # the kernel's highest capability number


@dataclass(frozen=True, slots=True)
class BecomeUser:
    umask: int


@dataclass(frozen=True, slots=True)
class SetCapabilities:
    effective: int
    permitted: int
    inheritable: int
    ambient: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SetNoNewPrivileges:
    pass


@dataclass(frozen=True, slots=True)
class LoadSeccomp:
    program: bytes


@dataclass(frozen=True, slots=True)
class Execute:
    args: tuple[str, ...]
    env: tuple[str, ...]


HostStep: TypeAlias = (
    MakeDirectory
    | MakeFifo
    | MakeHostNode
    | HoldTree
    | WriteText
    | MakeCgroup
    | SetLimit
    | AllowDevices
    | KillCgroup
    | RemoveCgroup
    | PruneCgroups
    | RemoveTree
)
BirthStep: TypeAlias = (
    JoinCgroup
    | EnterContainer
    | Unshare
    | NewSession
    | OpenStdio
    | SetPropagation
    | EnterFolder
    | BecomeRoot
    | CloneTree
    | SetTree
    | MakeTree
    | PlaceTree
    | AttachTree
    | Mount
    | MountOverlay
    | PivotRoot
    | EnsureDirectory
    | MakeFolder
    | MakeNode
    | MakeLink
    | WriteSecret
    | SetSysctl
    | SetOomScore
    | MaskPaths
    | MakeReadonly
    | MakeRootReadonly
    | SetHostname
    | SetDomainname
    | LoopbackUp
    | OpenTerminal
)
LaunchStep: TypeAlias = (
    SetRlimit
    | ResolveUser
    | TakeStdio
    | ChangeDirectory
    | DropBounding
    | BecomeUser
    | SetCapabilities
    | SetNoNewPrivileges
    | LoadSeccomp
    | Execute
)
ChildStep: TypeAlias = BirthStep | LaunchStep
Step: TypeAlias = HostStep | ChildStep


def wire(steps: Sequence[ChildStep]) -> list[tuple[str, dict[str, Any]]]:
    """Return *steps* as plain values, which marshal can carry."""
    found = []
    for step in steps:
        kind = type(step)
        if kind not in _shapes:
            _shapes[kind] = (wire_name(kind), tuple(field.name for field in fields(kind)))
        name, names = _shapes[kind]
        found.append((name, {field: getattr(step, field) for field in names}))
    return found


_shapes: dict[type[Step], tuple[str, tuple[str, ...]]] = {}


def wire_name(kind: type[Step]) -> str:
    """Return the name of a kind of step on the wire: make_node for MakeNode."""
    return re.sub("(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
