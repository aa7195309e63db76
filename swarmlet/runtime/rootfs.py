"""What a container sees as its file system: the steps that put its root together.

Pure, in the order of plan.py's `birth`. There are two layouts:

| | the host's users | a user namespace |
| --- | --- | --- |
| layers, writable layer | paths of the host | held by the daemon, mapped by the zygote |
| overlay | mounted by the host's root | by the namespace's own, from the workshop |
| binds, volumes, texts | cloned by the child | held and mapped, where it is possible |
| proc, sysfs, mqueue | mounted inside | made before the pivot, attached inside |
| device nodes | mknod | the host's, bound |

On the disk both are the same: owners count from 0, nothing is shifted. proc and sysfs are made
early because the kernel lets a user namespace have them only while it sees the host's.

The workshop is `<run>/mnt`: empty folders that every child mounts on, each in its own namespace.
"""

from __future__ import annotations

import posixpath
import stat

from swarmlet.runtime import defaults
from swarmlet.runtime import spec as specs
from swarmlet.runtime import syscalls as linux
from swarmlet.runtime.cgroups import Driver
from swarmlet.runtime.host import Host
from swarmlet.runtime.spec import ContainerSpec
from swarmlet.runtime.steps import (
    AttachTree,
    BirthStep,
    CloneTree,
    EnsureDirectory,
    HoldTree,
    HostStep,
    LoopbackUp,
    MakeDirectory,
    MakeFolder,
    MakeHostNode,
    MakeLink,
    MakeNode,
    MakeTree,
    Mount,
    MountOverlay,
    OpenTerminal,
    PlaceTree,
    SetDomainname,
    SetHostname,
    SetPropagation,
    SetTree,
    WriteSecret,
)
from swarmlet.runtime.values import value

PROPAGATION = {"private": linux.MS_PRIVATE, "slave": linux.MS_SLAVE, "shared": linux.MS_SHARED}
ATTRIBUTES = {
    "nosuid": linux.MOUNT_ATTR_NOSUID,
    "nodev": linux.MOUNT_ATTR_NODEV,
    "noexec": linux.MOUNT_ATTR_NOEXEC,
}
MOUNT_FLAGS = {"nosuid": linux.MS_NOSUID, "nodev": linux.MS_NODEV, "noexec": linux.MS_NOEXEC}
SAFE = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
SAFE_ATTRIBUTES = sum(ATTRIBUTES.values())
KINDS = {"c": stat.S_IFCHR, "b": stat.S_IFBLK}
#: Group of terminals: login(1) and mesg(1) expect it.
TTY_GROUP = 5


@value
class Place:
    """Where the container with *id* has its files; both folders are its own."""

    id: str
    state: str
    run: str

    @property
    def log(self) -> str:
        return f"{self.state}/{self.id}-json.log"

    @property
    def stdin(self) -> str:
        return f"{self.run}/stdin"

    @property
    def stdout(self) -> str:
        return f"{self.run}/stdout"

    @property
    def stderr(self) -> str:
        return f"{self.run}/stderr"

    @property
    def workshop(self) -> str:
        """Folders to mount on, the same for every container: each has its own mounts."""
        return f"{posixpath.dirname(posixpath.dirname(self.run))}/mnt"


def texts(spec: ContainerSpec) -> list[tuple[str, str, str]]:
    """Return (name in the state folder, path in the container, text)."""
    found = []
    if spec.hostname:
        found.append(("hostname", "/etc/hostname", f"{spec.hostname}\n"))
    if spec.hosts is not None:
        found.append(("hosts", "/etc/hosts", spec.hosts))
    if spec.resolv_conf is not None:
        found.append(("resolv.conf", "/etc/resolv.conf", spec.resolv_conf))
    return found


def upper_of(spec: ContainerSpec, place: Place) -> tuple[str, str]:
    """Return the writable layer and overlayfs's work directory, on the same file system."""
    if spec.root.upper is not None:
        return spec.root.upper, f"{spec.root.upper}.work"
    return f"{place.state}/upper", f"{place.state}/work"


def prepare(spec: ContainerSpec, place: Place) -> list[HostStep]:
    """Return the folders and nodes that the root needs on the host."""
    upper, work = upper_of(spec, place)
    # 0755: the upper directory's mode is the mode of "/" in the container.
    steps: list[HostStep] = [MakeDirectory(upper, 0o755), MakeDirectory(work)]
    # The workshop is entered by the root of a user namespace, who is nobody on the host.
    steps += [MakeDirectory(place.workshop, 0o711), MakeDirectory(f"{place.workshop}/root")]
    if spec.files:
        steps.append(MakeDirectory(f"{place.workshop}/files"))
    steps += [MakeDirectory(m.source, 0o755) for m in spec.mounts if m.type == "volume"]
    if not spec.own_users:
        return steps
    steps.append(MakeDirectory(f"{place.workshop}/upper"))
    steps += [MakeDirectory(f"{place.workshop}/{slot}") for slot, _ in _layers(spec)]
    for index, device in enumerate(spec.devices):
        node = f"{place.state}/devices/{index}"
        uid, gid = spec.host_uid(device.uid), spec.host_gid(device.gid)
        mode = KINDS[device.type] | device.mode
        steps.append(MakeDirectory(posixpath.dirname(node)))
        steps.append(MakeHostNode(node, mode, device.major, device.minor, uid, gid))
    return steps


def held(spec: ContainerSpec, place: Place) -> list[tuple[HoldTree, str]]:
    """Return what the daemon takes hold of for a user namespace, each with how it is mapped.

    "must": without it the container cannot run; "try": a file system that cannot be mapped (a
    network's, or proc) is shown as it is, with owners that are nobody; "no": owners do not matter.
    """
    trees = [(HoldTree(slot, path), "must") for slot, path in _layers(spec)]
    trees.append((HoldTree("upper", posixpath.dirname(upper_of(spec, place)[0])), "must"))
    for name, _, _ in texts(spec):
        trees.append((HoldTree(name, f"{place.state}/{name}"), "must"))
    for index, mount in enumerate(spec.mounts):
        if mount.type != "tmpfs":
            tree = HoldTree(
                f"mount{index}",
                mount.source,
                mount.recursive,
                _attributes(mount),
                0 if mount.propagation == "shared" else PROPAGATION[mount.propagation],
            )
            trees.append((tree, "try"))
    trees += [
        (HoldTree(f"device{index}", f"{place.state}/devices/{index}"), "no")
        for index in range(len(spec.devices))
    ]
    return trees


def _layers(spec: ContainerSpec) -> list[tuple[str, str]]:
    return [(f"layer{index}", path) for index, path in enumerate(spec.root.layers)]


def host_trees(spec: ContainerSpec, host: Host, place: Place) -> list[BirthStep]:
    """Take hold of what comes from the host, while its root is still there; then cut off."""
    if spec.own_users:
        return _host_trees_of_own_users(spec, host, place)
    steps: list[BirthStep] = []
    binds = [(f"mount{i}", m) for i, m in enumerate(spec.mounts) if m.type != "tmpfs"]
    # A shared mount is one only if it is cloned before the whole tree is cut off the host.
    shared = [(slot, mount) for slot, mount in binds if mount.propagation == "shared"]
    others = [(slot, mount) for slot, mount in binds if mount.propagation != "shared"]
    for slot, mount in shared:
        steps += _bind(slot, mount)
    # Nothing that is mounted below may reach the host; with slaves its mounts still reach us.
    slaves = any(mount.propagation == "slave" for _, mount in others)
    cut = linux.MS_SLAVE if slaves else linux.MS_PRIVATE
    steps.append(SetPropagation(linux.MS_REC | cut))
    for slot, mount in others:
        steps += _bind(slot, mount)
    steps += [CloneTree(n, f"{place.state}/{n}", recursive=False) for n, _, _ in texts(spec)]
    if spec.namespaces.ipc == "host":
        steps.append(CloneTree("shm", "/dev/shm", recursive=False))
    return steps


def _host_trees_of_own_users(spec: ContainerSpec, host: Host, place: Place) -> list[BirthStep]:
    namespaces = spec.namespaces
    steps: list[BirthStep] = [SetPropagation(linux.MS_REC | linux.MS_PRIVATE)]
    # A user namespace can make no node (mknod(2)), and need not: the host has these.
    steps += [CloneTree(f"dev/{n}", f"/dev/{n}", recursive=False) for n, _, _ in defaults.DEVICES]
    # Only the owner of a namespace may mount its view: of the host's there is a bind.
    if namespaces.pid == "host":
        steps.append(CloneTree("proc", "/proc", recursive=True))
    else:
        steps.append(MakeTree("proc", "proc", SAFE_ATTRIBUTES))
    if namespaces.network == "private":
        steps.append(MakeTree("sysfs", "sysfs", SAFE_ATTRIBUTES | linux.MOUNT_ATTR_RDONLY))
    if namespaces.ipc == "private":
        steps.append(MakeTree("mqueue", "mqueue", SAFE_ATTRIBUTES))
    if namespaces.ipc == "host":
        steps.append(CloneTree("shm", "/dev/shm", recursive=False))
    if namespaces.cgroup != "private" and not host.hybrid:
        readonly = SAFE_ATTRIBUTES | linux.MOUNT_ATTR_RDONLY
        steps.append(CloneTree("cgroup", host.unified, recursive=False))
        steps.append(SetTree("cgroup", readonly, linux.MS_PRIVATE, recursive=False))
    return steps


def made_by_zygote(spec: ContainerSpec) -> list[tuple[str, str, int]]:
    """Return (slot, file system, attributes) of the views of namespaces that are not its own."""
    if not spec.own_users:
        return []
    views = []
    if spec.namespaces.network != "private":
        views.append(("sysfs", "sysfs", SAFE_ATTRIBUTES | linux.MOUNT_ATTR_RDONLY))
    if spec.namespaces.ipc != "private":
        views.append(("mqueue", "mqueue", SAFE_ATTRIBUTES))
    return views


def placed(spec: ContainerSpec, place: Place) -> list[BirthStep]:
    """Put the held layers where the overlay finds them, in the workshop."""
    return [
        PlaceTree(slot, f"{place.workshop}/{slot}") for slot, _ in (*_layers(spec), ("upper", ""))
    ]


def secrets(spec: ContainerSpec, place: Place) -> list[BirthStep]:
    """Write secret files to a tmpfs and keep a tree of each."""
    if not spec.files:
        return []
    folder = "files" if spec.own_users else f"{place.workshop}/files"
    size = sum(len(file.content) for file in spec.files)
    data = f"mode=0700,size={size + 4096 * (len(spec.files) + 1)}"
    steps: list[BirthStep] = [Mount("tmpfs", folder, "tmpfs", SAFE, data)]
    attributes = linux.MOUNT_ATTR_RDONLY | SAFE_ATTRIBUTES
    for index, file in enumerate(spec.files):
        path, slot = f"{folder}/{index}", f"file{index}"
        steps.append(WriteSecret(path, file.content, file.uid, file.gid, file.mode))
        steps.append(CloneTree(slot, path, recursive=False))
        steps.append(SetTree(slot, attributes, linux.MS_PRIVATE, recursive=False))
    return steps


def root(spec: ContainerSpec, place: Place) -> tuple[BirthStep, str]:
    """Return the step that mounts the root, and where it is."""
    upper, work = upper_of(spec, place)
    if not spec.own_users:
        target = f"{place.workshop}/root"
        return MountOverlay(spec.root.layers, upper, work, target, user_xattrs=False), target
    layers = tuple(slot for slot, _ in _layers(spec))
    upper, work = (f"upper/{posixpath.basename(path)}" for path in (upper, work))
    return MountOverlay(layers, upper, work, "root", user_xattrs=True), "root"


# Inside of the root.


def kernel_file_systems(
    spec: ContainerSpec, host: Host, driver: Driver, place: Place
) -> list[BirthStep]:
    steps: list[BirthStep] = [EnsureDirectory("/proc", 0o755), EnsureDirectory("/sys", 0o755)]
    if spec.own_users:
        steps += [AttachTree("proc", "/proc"), AttachTree("sysfs", "/sys")]
    else:
        steps.append(Mount("proc", "/proc", "proc", SAFE))
        steps.append(Mount("sysfs", "/sys", "sysfs", SAFE | linux.MS_RDONLY))
    # Its own groups, to read: programs size themselves by them.
    cgroups = "/sys/fs/cgroup"
    readonly = SAFE | linux.MS_RDONLY
    if not host.hybrid:
        if spec.own_users and spec.namespaces.cgroup != "private":
            steps.append(AttachTree("cgroup", cgroups))
        else:
            steps.append(Mount("cgroup", cgroups, "cgroup2", readonly))
    elif spec.namespaces.cgroup == "private":
        steps.append(Mount("tmpfs", cgroups, "tmpfs", SAFE, "mode=755,size=4k"))
        for path in driver.joins(place.id, spec.resources):
            hierarchy = next(h for h in host.hierarchies if path.startswith(f"{h.path}/"))
            name = ",".join(hierarchy.controllers)
            steps.append(MakeFolder(f"{cgroups}/{name}", 0o755))
            steps.append(Mount("cgroup", f"{cgroups}/{name}", "cgroup", readonly, name))
        steps.append(MakeFolder(f"{cgroups}/unified", 0o755))
        steps.append(Mount("cgroup", f"{cgroups}/unified", "cgroup2", readonly))
    return steps


def devices(spec: ContainerSpec) -> list[BirthStep]:
    steps: list[BirthStep] = [
        EnsureDirectory("/dev", 0o755),
        Mount("tmpfs", "/dev", "tmpfs", linux.MS_NOSUID, "mode=755,size=65536k"),
    ]
    for name, major, minor in defaults.DEVICES:
        if spec.own_users:
            steps.append(AttachTree(f"dev/{name}", f"/dev/{name}"))
        else:
            steps.append(MakeNode(f"/dev/{name}", stat.S_IFCHR | 0o666, major, minor))
    for index, d in enumerate(spec.devices):
        steps.append(EnsureDirectory(posixpath.dirname(d.path), 0o755))
        if spec.own_users:
            steps.append(AttachTree(f"device{index}", d.path))
        else:
            steps.append(MakeNode(d.path, KINDS[d.type] | d.mode, d.major, d.minor, d.uid, d.gid))
    steps += [MakeLink(f"/dev/{name}", target) for name, target in defaults.DEVICE_LINKS]
    steps.append(MakeFolder("/dev/pts", 0o755))
    group = f",gid={TTY_GROUP}" if spec.maps_group(TTY_GROUP) else ""
    data = f"newinstance,ptmxmode=0666,mode=0620{group}"
    steps.append(Mount("devpts", "/dev/pts", "devpts", linux.MS_NOSUID | linux.MS_NOEXEC, data))
    steps.append(MakeFolder("/dev/mqueue", 0o755))
    if spec.own_users:
        steps.append(AttachTree("mqueue", "/dev/mqueue"))
    else:
        steps.append(Mount("mqueue", "/dev/mqueue", "mqueue", SAFE))
    steps.append(MakeFolder("/dev/shm", 0o1777))
    if spec.namespaces.ipc == "host":
        steps.append(AttachTree("shm", "/dev/shm"))
    else:
        data = f"mode=1777,size={spec.shm_bytes}"
        steps.append(Mount("shm", "/dev/shm", "tmpfs", SAFE, data))
    if spec.process.terminal:
        process = spec.process
        steps.append(OpenTerminal(process.console_rows, process.console_columns, console=True))
    return steps


def user_mounts(spec: ContainerSpec) -> list[BirthStep]:
    """Attach what the spec asks for: shallow targets first, so that none hides another."""
    entries: list[tuple[str, list[BirthStep]]] = []
    for name, path, _ in texts(spec):
        entries.append((path, [AttachTree(name, path)]))
    for index, mount in enumerate(spec.mounts):
        target = posixpath.normpath(mount.target)
        if mount.type == "tmpfs":
            flags = sum(MOUNT_FLAGS[option] for option in set(mount.options))
            flags |= linux.MS_RDONLY if mount.readonly else 0
            size = f",size={mount.size_bytes}" if mount.size_bytes else ""
            data = f"mode={mount.mode:o}{size}"
            made: list[BirthStep] = [
                EnsureDirectory(target, 0o755),
                Mount("tmpfs", target, "tmpfs", flags, data),
            ]
        else:
            made = [AttachTree(f"mount{index}", target)]
        entries.append((target, made))
    for index, file in enumerate(spec.files):
        path = posixpath.normpath(file.path)
        entries.append((path, [AttachTree(f"file{index}", path)]))
    # Stable: of two for one target the later is on top, and a user's /etc/hosts beats ours.
    entries.sort(key=lambda entry: entry[0].count("/"))
    return [step for _, made in entries for step in made]


def inner_settings(spec: ContainerSpec) -> list[BirthStep]:
    steps: list[BirthStep] = []
    if spec.hostname and spec.namespaces.uts != "host":
        steps.append(SetHostname(spec.hostname))
    if spec.domainname and spec.namespaces.uts != "host":
        steps.append(SetDomainname(spec.domainname))
    if spec.namespaces.network == "private":
        steps.append(LoopbackUp())
    # Docker makes a missing working directory; the root may become read-only right after.
    steps.append(EnsureDirectory(spec.process.cwd, 0o755))
    return steps


def _bind(slot: str, mount: specs.Mount) -> list[BirthStep]:
    propagation = 0 if mount.propagation == "shared" else PROPAGATION[mount.propagation]
    return [
        CloneTree(slot, mount.source, mount.recursive),
        SetTree(slot, _attributes(mount), propagation, mount.recursive),
    ]


def _attributes(mount: specs.Mount) -> int:
    attributes = sum(ATTRIBUTES[option] for option in set(mount.options))
    return attributes | (linux.MOUNT_ATTR_RDONLY if mount.readonly else 0)
