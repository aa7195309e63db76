"""From a spec to the steps of a container's birth, launch and removal.

Pure, and the documentation of the order: each list below is one function whose lines stand in
the order in which they happen, each with the reason for its place.

Paths of one container:

    <state>/containers/<id>/    state.json exit.json <id>-json.log* hosts hostname resolv.conf
                            upper/ work/      the writable layer
                            rootfs/           where the root is put together (child's mounts only)
                            files/            where the tmpfs of the secrets is (likewise)
    <run>/containers/<id>/      stdin stdout stderr   FIFOs
"""

from __future__ import annotations

import posixpath
import stat
from dataclasses import dataclass

from swarmlet.runtime import defaults
from swarmlet.runtime import spec as specs
from swarmlet.runtime import syscalls as linux
from swarmlet.runtime.cgroups import Driver
from swarmlet.runtime.devices import assemble
from swarmlet.runtime.host import Host
from swarmlet.runtime.spec import (
    ContainerSpec,
    DeviceRule,
    Namespace,
    Process,
    validate,
    validate_process,
)
from swarmlet.runtime.steps import (
    AllowDevices,
    AttachTree,
    BecomeUser,
    BirthStep,
    ChangeDirectory,
    CloneTree,
    DropBounding,
    EnsureDirectory,
    EnterContainer,
    EnterNamespace,
    Execute,
    HostStep,
    JoinCgroup,
    KillCgroup,
    LaunchStep,
    LoadSeccomp,
    LoopbackUp,
    MakeDirectory,
    MakeFifo,
    MakeLink,
    MakeNode,
    MakeReadonly,
    MakeRootReadonly,
    MaskPaths,
    Mount,
    MountOverlay,
    NewSession,
    OpenStdio,
    OpenTerminal,
    PivotRoot,
    RemoveCgroup,
    RemoveTree,
    ResolveUser,
    SetCapabilities,
    SetDomainname,
    SetHostname,
    SetNoNewPrivileges,
    SetOomScore,
    SetPropagation,
    SetRlimit,
    SetSysctl,
    SetTree,
    TakeStdio,
    Unshare,
    WriteSecret,
    WriteText,
)

#: namespace of the spec, its clone flag; the ones that clone3 makes or setns joins.
NAMESPACE_FLAGS = {
    "pid": linux.CLONE_NEWPID,
    "network": linux.CLONE_NEWNET,
    "ipc": linux.CLONE_NEWIPC,
    "uts": linux.CLONE_NEWUTS,
}
PROPAGATION = {"private": linux.MS_PRIVATE, "slave": linux.MS_SLAVE, "shared": linux.MS_SHARED}
ATTRIBUTES = {
    "nosuid": linux.MOUNT_ATTR_NOSUID,
    "nodev": linux.MOUNT_ATTR_NODEV,
    "noexec": linux.MOUNT_ATTR_NOEXEC,
}
MOUNT_FLAGS = {"nosuid": linux.MS_NOSUID, "nodev": linux.MS_NODEV, "noexec": linux.MS_NOEXEC}
SAFE = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything to do for one container: on the host, then in the child."""

    prepare: tuple[HostStep, ...]
    clone_flags: int
    pid_namespace: str  # path of the namespace to be born in, or ""
    birth: tuple[BirthStep, ...]
    launch: tuple[LaunchStep, ...]


def plan(
    spec: ContainerSpec, host: Host, driver: Driver, place: Place, seccomp: bytes | None
) -> Plan:
    """Return the plan for *spec*; *seccomp* is the filter for its profile, None for unconfined.

    Raises SpecError for what cannot be meant or what this host does not have.
    """
    validate(spec)
    namespaces = spec.namespaces
    flags = linux.CLONE_NEWNS
    for name, flag in NAMESPACE_FLAGS.items():
        if getattr(namespaces, name) == "private":
            flags |= flag
    return Plan(
        prepare=tuple(prepare(spec, driver, place)),
        clone_flags=flags,
        pid_namespace=_path(namespaces.pid),
        birth=tuple(birth(spec, host, driver, place)),
        launch=tuple(launch(spec.process, host, seccomp)),
    )


def prepare(spec: ContainerSpec, driver: Driver, place: Place) -> list[HostStep]:
    """Return what must exist on the host before the child is born.

    The caller has written the state file before: from here on everything can be found again.
    """
    steps: list[HostStep] = [
        MakeDirectory(f"{place.state}/rootfs"),
        MakeDirectory(place.run),
        MakeFifo(place.stdout),
        MakeFifo(place.stderr),
    ]
    if spec.process.stdin and not spec.process.terminal:
        steps.append(MakeFifo(place.stdin))
    # 0755: the upper directory's mode is the mode of "/" in the container.
    if spec.root.upper is None:
        steps += [MakeDirectory(f"{place.state}/upper", 0o755), MakeDirectory(_work(spec, place))]
    else:
        steps += [MakeDirectory(spec.root.upper, 0o755), MakeDirectory(_work(spec, place))]
    if spec.files:
        steps.append(MakeDirectory(f"{place.state}/files"))
    steps += [WriteText(f"{place.state}/{name}", text) for name, _, text in _texts(spec)]
    steps += [MakeDirectory(m.source, 0o755) for m in spec.mounts if m.type == "volume"]
    steps += driver.groups(place.id, spec.resources)
    steps += driver.limits(place.id, spec.resources)
    steps.append(AllowDevices(driver.unified(place.id), assemble(device_rules(spec))))
    return steps


def birth(spec: ContainerSpec, host: Host, driver: Driver, place: Place) -> list[BirthStep]:
    """Return what the child does until it is "created"."""
    namespaces, root = spec.namespaces, f"{place.state}/rootfs"
    steps: list[BirthStep] = []
    # Limits first: v1 does not move a charge that was made before the join.
    steps += [JoinCgroup(path) for path in driver.joins(place.id, spec.resources)]
    if namespaces.cgroup == "private":
        # After the join, or the namespace's root would be the zygote's group.
        steps.append(Unshare(linux.CLONE_NEWCGROUP))
    # Namespace files are host paths, so before the root changes.
    for name in ("network", "ipc", "uts"):
        if path := _path(getattr(namespaces, name)):
            steps.append(EnterNamespace(path, NAMESPACE_FLAGS[name]))
    if path := _path(namespaces.cgroup):
        steps.append(EnterNamespace(path, linux.CLONE_NEWCGROUP))
    # A keyring and a session of its own: the zygote's are not for a container.
    steps.append(NewSession(host.keyrings))
    stdin = place.stdin if spec.process.stdin and not spec.process.terminal else ""
    steps.append(OpenStdio(stdin, place.stdout, place.stderr))
    steps += _host_trees(spec, place)
    steps += _root(spec, place, root)
    # Everything below happens inside the new root: no symbolic link of the image, however it is
    # made, leads out of it.
    steps.append(PivotRoot(root))
    steps += _kernel_file_systems(spec, host, driver, place)
    steps += _devices(spec)
    steps += _user_mounts(spec)
    steps += _inner_settings(spec)
    # Last, since each would refuse something above.
    if spec.readonly_paths:
        steps.append(MakeReadonly(spec.readonly_paths))
    if spec.masked_paths:
        steps.append(MaskPaths(spec.masked_paths))
    if spec.root.readonly:
        steps.append(MakeRootReadonly())
    return steps


def launch(process: Process, host: Host, seccomp: bytes | None) -> list[LaunchStep]:
    """Return what the child does from "start" to execve, the same for a container and an exec."""
    capabilities = process.capabilities
    steps: list[LaunchStep] = [SetRlimit(r.type, r.soft, r.hard) for r in process.rlimits]
    user = process.user
    steps.append(ResolveUser(user.user, user.group, user.additional_groups))
    # While still root: the streams are given to the user.
    steps.append(TakeStdio())
    # The bounding set needs CAP_SETPCAP, so before the capabilities go.
    steps.append(DropBounding(_mask(capabilities.bounding, host), host.last_capability))
    if seccomp is not None and not process.no_new_privileges:
        # seccomp(2): without no_new_privs a filter needs CAP_SYS_ADMIN, which is still here.
        steps.append(LoadSeccomp(seccomp))
    steps.append(BecomeUser(user.umask))
    # As the user, so that its rights decide; before the capabilities, as runc.
    steps.append(ChangeDirectory(process.cwd))
    steps.append(
        SetCapabilities(
            _mask(capabilities.effective, host),
            _mask(capabilities.permitted, host),
            _mask(capabilities.inheritable, host),
            tuple(defaults.CAPABILITY_NUMBERS[name] for name in capabilities.ambient),
        )
    )
    if process.no_new_privileges:
        steps.append(SetNoNewPrivileges())
        if seccomp is not None:
            # As late as can be: the filter need not allow what the steps above call.
            steps.append(LoadSeccomp(seccomp))
    has_path = any(entry.startswith("PATH=") for entry in process.env)
    env = process.env if has_path else (f"PATH={defaults.PATH}", *process.env)
    steps.append(Execute(process.args, env))
    return steps


def exec_plan(
    process: Process,
    spec: ContainerSpec,
    host: Host,
    driver: Driver,
    container_id: str,
    seccomp: bytes | None,
) -> tuple[list[BirthStep], list[LaunchStep]]:
    """Return birth and launch of a further *process* in the running container of *spec*.

    The zygote bears it in the container's PID namespace and cgroup2 and passes it its streams;
    the rest of the confinement is the same as the container's own.
    """
    validate_process(process)
    flags = linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS
    steps: list[BirthStep] = []
    steps += [JoinCgroup(path) for path in driver.joins(container_id, spec.resources)]
    steps.append(EnterContainer(flags | linux.CLONE_NEWCGROUP))
    steps.append(NewSession(host.keyrings))
    if process.terminal:
        steps.append(OpenTerminal(process.console_rows, process.console_columns, console=False))
    if process.oom_score_adj != spec.process.oom_score_adj:
        steps.append(SetOomScore(process.oom_score_adj))
    return steps, launch(process, host, seccomp)


def removal(driver: Driver, place: Place) -> list[HostStep]:
    """Return what removes a container: any of it may be gone already.

    It needs neither the spec nor the zygote. The folder with the state file goes last, so that a
    removal that was cut off is found and finished.
    """
    steps: list[HostStep] = [KillCgroup(driver.unified(place.id))]
    steps += [RemoveCgroup(path) for path in driver.all_paths(place.id)]
    steps += [RemoveTree(place.run), RemoveTree(place.state)]
    return steps


def device_rules(spec: ContainerSpec) -> list[DeviceRule]:
    """Return the rules of *spec*, of which the last that fits an access decides."""
    rules = [
        DeviceRule(allow=True, type=kind, major=major, minor=minor, access=access)  # type: ignore[arg-type]
        for kind, major, minor, access in defaults.DEVICE_RULES
    ]
    rules += [
        DeviceRule(allow=True, type=d.type, major=d.major, minor=d.minor, access=d.access)
        for d in spec.devices
    ]
    return [*rules, *spec.device_rules]


def _path(namespace: Namespace) -> str:
    return namespace if namespace.startswith("/") else ""


def _mask(names: tuple[str, ...], host: Host) -> int:
    """Return the mask of *names*, as far as the daemon has them itself to give."""
    return host.capabilities & sum(1 << defaults.CAPABILITY_NUMBERS[name] for name in set(names))


def _work(spec: ContainerSpec, place: Place) -> str:
    # overlayfs: the work directory is on the same file system as the upper one.
    return f"{spec.root.upper}.work" if spec.root.upper else f"{place.state}/work"


def _texts(spec: ContainerSpec) -> list[tuple[str, str, str]]:
    """Return (name in the state folder, path in the container, text)."""
    texts = []
    if spec.hostname:
        texts.append(("hostname", "/etc/hostname", f"{spec.hostname}\n"))
    if spec.hosts is not None:
        texts.append(("hosts", "/etc/hosts", spec.hosts))
    if spec.resolv_conf is not None:
        texts.append(("resolv.conf", "/etc/resolv.conf", spec.resolv_conf))
    return texts


def _host_trees(spec: ContainerSpec, place: Place) -> list[BirthStep]:
    """Take hold of what comes from the host, while the host's root is still there."""
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
    steps += [CloneTree(n, f"{place.state}/{n}", recursive=False) for n, _, _ in _texts(spec)]
    if spec.namespaces.ipc == "host":
        steps.append(CloneTree("shm", "/dev/shm", recursive=False))
    if spec.files:
        folder, size = f"{place.state}/files", sum(len(file.content) for file in spec.files)
        data = f"mode=0700,size={size + 4096 * (len(spec.files) + 1)}"
        steps.append(Mount("tmpfs", folder, "tmpfs", SAFE, data))
        attributes = linux.MOUNT_ATTR_RDONLY | sum(ATTRIBUTES.values())
        for index, file in enumerate(spec.files):
            path, slot = f"{folder}/{index}", f"file{index}"
            steps.append(WriteSecret(path, file.content, file.uid, file.gid, file.mode))
            steps.append(CloneTree(slot, path, recursive=False))
            steps.append(SetTree(slot, attributes, linux.MS_PRIVATE, recursive=False))
    return steps


def _bind(slot: str, mount: specs.Mount) -> list[BirthStep]:
    attributes = sum(ATTRIBUTES[option] for option in set(mount.options))
    if mount.readonly:
        attributes |= linux.MOUNT_ATTR_RDONLY
    propagation = 0 if mount.propagation == "shared" else PROPAGATION[mount.propagation]
    return [
        CloneTree(slot, mount.source, mount.recursive),
        SetTree(slot, attributes, propagation, mount.recursive),
    ]


def _root(spec: ContainerSpec, place: Place, root: str) -> list[BirthStep]:
    upper = spec.root.upper or f"{place.state}/upper"
    return [MountOverlay(spec.root.layers, upper, _work(spec, place), root)]


def _kernel_file_systems(
    spec: ContainerSpec, host: Host, driver: Driver, place: Place
) -> list[BirthStep]:
    steps: list[BirthStep] = [
        EnsureDirectory("/proc", 0o755),
        Mount("proc", "/proc", "proc", SAFE),
        EnsureDirectory("/sys", 0o755),
        Mount("sysfs", "/sys", "sysfs", SAFE | linux.MS_RDONLY),
    ]
    # Its own groups, to read: programs size themselves by them.
    cgroups = "/sys/fs/cgroup"
    readonly = SAFE | linux.MS_RDONLY
    if not host.hybrid:
        steps.append(Mount("cgroup", cgroups, "cgroup2", readonly))
    elif spec.namespaces.cgroup == "private":
        steps.append(Mount("tmpfs", cgroups, "tmpfs", SAFE, "mode=755,size=4k"))
        for path in driver.joins(place.id, spec.resources):
            hierarchy = next(h for h in host.hierarchies if path.startswith(f"{h.path}/"))
            name = ",".join(hierarchy.controllers)
            steps.append(EnsureDirectory(f"{cgroups}/{name}", 0o755))
            steps.append(Mount("cgroup", f"{cgroups}/{name}", "cgroup", readonly, name))
        steps.append(EnsureDirectory(f"{cgroups}/unified", 0o755))
        steps.append(Mount("cgroup", f"{cgroups}/unified", "cgroup2", readonly))
    return steps


def _devices(spec: ContainerSpec) -> list[BirthStep]:
    steps: list[BirthStep] = [
        EnsureDirectory("/dev", 0o755),
        Mount("tmpfs", "/dev", "tmpfs", linux.MS_NOSUID, "mode=755,size=65536k"),
    ]
    for name, major, minor in defaults.DEVICES:
        steps.append(MakeNode(f"/dev/{name}", stat.S_IFCHR | 0o666, major, minor))
    kinds = {"c": stat.S_IFCHR, "b": stat.S_IFBLK}
    for d in spec.devices:
        steps.append(EnsureDirectory(posixpath.dirname(d.path), 0o755))
        steps.append(MakeNode(d.path, kinds[d.type] | d.mode, d.major, d.minor, d.uid, d.gid))
    steps += [MakeLink(f"/dev/{name}", target) for name, target in defaults.DEVICE_LINKS]
    steps.append(EnsureDirectory("/dev/pts", 0o755))
    # gid 5 is tty: login(1) and mesg(1) expect it.
    data = "newinstance,ptmxmode=0666,mode=0620,gid=5"
    steps.append(Mount("devpts", "/dev/pts", "devpts", linux.MS_NOSUID | linux.MS_NOEXEC, data))
    steps.append(EnsureDirectory("/dev/mqueue", 0o755))
    steps.append(Mount("mqueue", "/dev/mqueue", "mqueue", SAFE))
    steps.append(EnsureDirectory("/dev/shm", 0o1777))
    if spec.namespaces.ipc == "host":
        steps.append(AttachTree("shm", "/dev/shm"))
    else:
        data = f"mode=1777,size={spec.shm_bytes}"
        steps.append(Mount("shm", "/dev/shm", "tmpfs", SAFE, data))
    if spec.process.terminal:
        process = spec.process
        steps.append(OpenTerminal(process.console_rows, process.console_columns, console=True))
    return steps


def _user_mounts(spec: ContainerSpec) -> list[BirthStep]:
    """Attach what the spec asks for: shallow targets first, so that none hides another."""
    entries: list[tuple[str, list[BirthStep]]] = []
    for name, path, _ in _texts(spec):
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


def _inner_settings(spec: ContainerSpec) -> list[BirthStep]:
    steps: list[BirthStep] = []
    if spec.hostname and spec.namespaces.uts != "host":
        steps.append(SetHostname(spec.hostname))
    if spec.domainname and spec.namespaces.uts != "host":
        steps.append(SetDomainname(spec.domainname))
    if spec.namespaces.network == "private":
        steps.append(LoopbackUp())
    # While /proc/sys is writable.
    steps += [SetSysctl(name, value) for name, value in spec.sysctls.items()]
    steps.append(SetOomScore(spec.process.oom_score_adj))
    # Docker makes a missing working directory; the root may become read-only right after.
    steps.append(EnsureDirectory(spec.process.cwd, 0o755))
    return steps
