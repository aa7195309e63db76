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
from typing import Any, TypeAlias

from swarmlet.runtime import syscalls as linux
from swarmlet.runtime.values import value

# Steps on the host: files and cgroups around the container.


@value
class MakeDirectory:
    path: str
    mode: int = 0o700


@value
class MakeFifo:
    path: str
    mode: int = 0o600


@value
class MakeHostNode:
    """Make a device node that a user namespace cannot make; *uid* and *gid* are the host's."""

    path: str
    mode: int  # with the type: S_IFCHR or S_IFBLK
    major: int
    minor: int
    uid: int
    gid: int


@value
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


@value
class WriteText:
    path: str
    text: str


@value
class MakeCgroup:
    """Make *name* below the hierarchy at *root*, parents first.

    *inherit* are files that a new group copies from its parent (cpuset of v1 starts empty);
    *controllers* are enabled for every child on the way (v2).
    """

    root: str
    name: str
    inherit: tuple[str, ...] = ()
    controllers: tuple[str, ...] = ()


@value
class SetLimit:
    path: str
    value: str


@value
class AllowDevices:
    """Attach the eBPF device *program* to the cgroup2 at *cgroup*."""

    cgroup: str
    program: bytes


@value
class KillCgroup:
    """Kill every process in the cgroup2 at *path* and wait until it is empty."""

    path: str


@value
class RemoveCgroup:
    path: str


@value
class PruneCgroups:
    """Remove the groups of the path *name* below *root* as far up as they are empty."""

    root: str
    name: str


@value
class RemoveTree:
    path: str


# Steps of the child: from a clone of the zygote to "created".


@value
class JoinCgroup:
    path: str


@value
class EnterContainer:
    """Join the namespaces *flags* of the running container whose pidfd the zygote passed."""

    flags: int


@value
class Unshare:
    flags: int


@value
class NewSession:
    """setsid, and a session keyring of its own where the kernel has keyrings."""

    keyring: bool


@value
class OpenStdio:
    """Open the container's ends of its standard streams; *stdin* "" is /dev/null."""

    stdin: str
    stdout: str
    stderr: str


@value
class SetPropagation:
    flags: int


@value
class EnterFolder:
    """Make the host's folder *path* the current one: later steps name what is in it."""

    path: str


@value
class BecomeRoot:
    """Become root of the own user namespace: until then the child is nobody in it.

    Before it, files of the host's root can be opened; after it, files are made with the right
    owner.
    """


@value
class CloneTree:
    """Keep a detached copy of the mount at *source* in *slot*."""

    slot: str
    source: str
    recursive: bool


@value
class SetTree:
    """Set mount attributes and propagation of the detached tree in *slot*."""

    slot: str
    attributes: int
    propagation: int
    recursive: bool


@value
class MakeTree:
    """Keep a new, detached file system of *fstype* in *slot*."""

    slot: str
    fstype: str
    attributes: int


@value
class PlaceTree:
    """Attach the tree in *slot* at *target*, a folder of the host's that is there."""

    slot: str
    target: str


@value
class AttachTree:
    """Attach the tree in *slot* at *target*, made when missing as what the tree's root is."""

    slot: str
    target: str


@value
class Mount:
    source: str
    target: str
    fstype: str
    flags: int
    data: str = ""


@value
class MountOverlay:
    """Mount *layers*, base first, under *upper* at *target*.

    *user_xattrs*: overlayfs keeps its marks in user.overlay.*, as it must in a user namespace.
    """

    layers: tuple[str, ...]
    upper: str
    work: str
    target: str
    user_xattrs: bool


@value
class PivotRoot:
    """Make *root* the root directory and let go of the old one."""

    root: str


@value
class EnsureDirectory:
    """Make *path* inside the root, with parents, when it is not there."""

    path: str
    mode: int


@value
class MakeFolder:
    """Make the folder *path* on a file system of our own, where nothing else can be."""

    path: str
    mode: int


@value
class MakeNode:
    path: str
    mode: int  # with the type: S_IFCHR or S_IFBLK
    major: int
    minor: int
    uid: int = 0
    gid: int = 0


@value
class MakeLink:
    path: str
    target: str


@value
class WriteSecret:
    path: str
    content: bytes
    uid: int
    gid: int
    mode: int


@value
class SetSysctl:
    name: str
    value: str


@value
class SetOomScore:
    value: int


@value
class MaskPaths:
    """Hide each path that exists: a file behind /dev/null, a directory behind an empty tmpfs."""

    paths: tuple[str, ...]


@value
class MakeReadonly:
    """Make each path that exists read-only, with what is mounted below."""

    paths: tuple[str, ...]


@value
class MakeRootReadonly:
    pass


@value
class SetHostname:
    name: str


@value
class SetDomainname:
    name: str


@value
class LoopbackUp:
    pass


@value
class OpenTerminal:
    """Open a pseudo terminal of this container and hand its master to the zygote."""

    rows: int
    columns: int
    console: bool  # also bind it to /dev/console


# Steps of the launch: from "start" to execve. What they do cannot be undone.


@value
class SetRlimit:
    type: str
    soft: int
    hard: int


@value
class ResolveUser:
    """Turn names into numbers by the root's own /etc/passwd and /etc/group."""

    user: str
    group: str
    additional_groups: tuple[str, ...]


@value
class TakeStdio:
    """Put the streams in place as 0, 1, 2, owned by the user, and take the terminal."""


@value
class ChangeDirectory:
    path: str


@value
class DropBounding:
    """Drop every capability that is not in the mask *keep* from the bounding set."""

    keep: int
    last: int  # the kernel's highest capability number


@value
class BecomeUser:
    umask: int


@value
class SetCapabilities:
    effective: int
    permitted: int
    inheritable: int
    ambient: tuple[int, ...]


@value
class SetNoNewPrivileges:
    pass


@value
class LoadSeccomp:
    program: bytes


@value
class BecomeInit:
    """Go on as a child of oneself, which forwards signals to it, reaps orphans and ends as it."""


@value
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
    | BecomeInit
    | Execute
)
ChildStep: TypeAlias = BirthStep | LaunchStep
Step: TypeAlias = HostStep | ChildStep


def wire(steps: Sequence[Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return *steps* as plain values, which marshal can carry."""
    found = []
    for step in steps:
        kind = type(step)
        if kind not in _shapes:
            _shapes[kind] = (wire_name(kind), kind._fields)
        name, names = _shapes[kind]
        found.append((name, {field: getattr(step, field) for field in names}))
    return found


_shapes: dict[type[Any], tuple[str, tuple[str, ...]]] = {}


def wire_name(kind: type[Any]) -> str:
    """Return the name of a kind of step on the wire: make_node for MakeNode."""
    return re.sub("(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
