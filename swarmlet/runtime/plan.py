"""From a spec to the steps of a container's birth, launch and removal.

Pure, and the documentation of the order: each list below is one function whose lines stand in
the order in which they happen, each with the reason for its place. What makes the root file system
is in rootfs.py.

Paths of one container:

    <state>/containers/<id>/    state.json exit.json <id>-json.log* hosts hostname resolv.conf
                            upper/ work/      the writable layer
                            devices/          nodes for a user namespace
    <run>/containers/<id>/      stdin stdout stderr   FIFOs
    <run>/mnt/                  empty folders to mount on, of all containers
"""

from __future__ import annotations

from collections.abc import Mapping

from swarmlet.runtime import defaults, rootfs
from swarmlet.runtime import syscalls as linux
from swarmlet.runtime.cgroups import Driver
from swarmlet.runtime.decoding import SpecError
from swarmlet.runtime.devices import assemble
from swarmlet.runtime.host import Host
from swarmlet.runtime.rootfs import Place
from swarmlet.runtime.spec import (
    ContainerSpec,
    DeviceRule,
    IdMapping,
    Process,
    validate,
    validate_process,
)
from swarmlet.runtime.steps import (
    AllowDevices,
    BecomeInit,
    BecomeRoot,
    BecomeUser,
    BirthStep,
    ChangeDirectory,
    DropBounding,
    EnterContainer,
    EnterFolder,
    Execute,
    HostStep,
    JoinCgroup,
    KillCgroup,
    LaunchStep,
    LoadSeccomp,
    MakeDirectory,
    MakeFifo,
    MakeReadonly,
    MakeRootReadonly,
    MaskPaths,
    NewSession,
    OpenStdio,
    OpenTerminal,
    PivotRoot,
    RemoveCgroup,
    RemoveTree,
    ResolveUser,
    SetCapabilities,
    SetNoNewPrivileges,
    SetOomScore,
    SetRlimit,
    SetSysctl,
    TakeStdio,
    Unshare,
    WriteText,
)
from swarmlet.runtime.values import changed, field, named_value, value

__all__ = ["Clone", "Place", "Plan", "exec_plan", "plan", "removal"]

#: namespace of the spec, its clone flag; the ones that clone3 makes.
NAMESPACE_FLAGS = {
    "pid": linux.CLONE_NEWPID,
    "network": linux.CLONE_NEWNET,
    "ipc": linux.CLONE_NEWIPC,
    "uts": linux.CLONE_NEWUTS,
    "user": linux.CLONE_NEWUSER,
}
#: Namespaces that the zygote steps into for the clone when they have a path.
JOINED = ("pid", "network", "ipc", "uts", "cgroup")
#: Detached trees of one container: they travel as descriptors (unix(7): SCM_MAX_FD is 253).
TREES_MAX = 200
#: Groups that may ping without a raw socket: all (the kernel takes no more).
PING_GROUP_MAX = 2**31 - 1


@named_value
class Clone:
    """What the zygote does for a child that the child cannot do itself."""

    flags: int
    #: (name, path) of the namespaces that the child is born in
    joins: tuple[tuple[str, str], ...] = ()
    #: the path of a user namespace to be born in, "network" for the joined network's owner, or ""
    user: str = ""
    #: contents of uid_map and gid_map of a new user namespace, or ""
    uid_map: str = ""
    gid_map: str = ""
    #: (slot, "must", "try" or "no") of each tree that goes with the request, in their order
    trees: tuple[tuple[str, str], ...] = ()
    #: (slot, file system, attributes) to be made in the joined namespaces
    views: tuple[tuple[str, str, int], ...] = ()
    #: to be written in the joined network namespace, which the child has no rights over
    sysctls: Mapping[str, str] = field(default_factory=dict)
    #: (RLIMIT_…, hard limit) that may be more than the zygote's own
    rlimits: tuple[tuple[str, int], ...] = ()

    @property
    def own_users(self) -> bool:
        return bool(self.user or self.uid_map)


@value
class Plan:
    """Everything to do for one container: on the host, in the zygote, then in the child."""

    prepare: tuple[HostStep, ...]
    clone: Clone
    birth: tuple[BirthStep, ...]
    launch: tuple[LaunchStep, ...]


def plan(
    spec: ContainerSpec, host: Host, driver: Driver, place: Place, seccomp: bytes | None
) -> Plan:
    """Return the plan for *spec*; *seccomp* is the filter for its profile, None for unconfined.

    A private user namespace must have its mappings. Raises SpecError for what cannot be meant or
    what this host does not have.
    """
    validate(spec)
    if spec.own_users and not host.user_namespaces:
        text = "this host's kernel has no user namespaces with idmapped layers (5.19 or newer)"
        raise SpecError(f"namespaces.user: {text}; use host")
    return Plan(
        prepare=tuple(prepare(spec, driver, place)),
        clone=clone(spec, place),
        birth=tuple(birth(spec, host, driver, place)),
        launch=tuple(launch(spec.process, host, seccomp)),
    )


def prepare(spec: ContainerSpec, driver: Driver, place: Place) -> list[HostStep]:
    """Return what must exist on the host before the child is born.

    The caller has written the state file before: from here on everything can be found again.
    """
    # In a folder of root's, so open to all: the root of a user namespace, who is not the owner,
    # opens its own /dev/stdout again by the descriptor.
    fifo_mode = 0o666 if spec.own_users else 0o600
    steps: list[HostStep] = [
        MakeDirectory(place.state),
        MakeDirectory(place.run),
        MakeFifo(place.stdout, fifo_mode),
        MakeFifo(place.stderr, fifo_mode),
    ]
    if spec.process.stdin and not spec.process.terminal:
        steps.append(MakeFifo(place.stdin, fifo_mode))
    steps += rootfs.prepare(spec, place)
    steps += [WriteText(f"{place.state}/{name}", text) for name, _, text in rootfs.texts(spec)]
    steps += driver.groups(place.id, spec.resources)
    steps += driver.limits(place.id, spec.resources)
    steps.append(AllowDevices(driver.unified(place.id), assemble(device_rules(spec))))
    if spec.own_users:
        # Last: what they take hold of is there.
        steps += [tree for tree, _ in rootfs.held(spec, place)]
    return steps


def clone(spec: ContainerSpec, place: Place) -> Clone:
    """Return what the zygote does around the birth."""
    namespaces = spec.namespaces
    flags = linux.CLONE_NEWNS
    for name, flag in NAMESPACE_FLAGS.items():
        if getattr(namespaces, name) == "private":
            flags |= flag
    joins = tuple((n, getattr(namespaces, n)) for n in JOINED if getattr(namespaces, n)[:1] == "/")
    if not spec.own_users:
        return Clone(flags=flags, joins=joins)
    private = namespaces.user == "private"
    assert spec.uid_mappings or not private, "the caller picks a range"
    trees = tuple((tree.slot, mapped) for tree, mapped in rootfs.held(spec, place))
    if len(trees) > TREES_MAX:
        text = f"{len(trees)} mounts and layers are more than a user namespace takes ({TREES_MAX})"
        raise SpecError(f"mounts: {text}; use namespaces.user=host")
    sysctls = {}
    if namespaces.network.startswith("/"):
        sysctls = {n: v for n, v in sysctls_of(spec).items() if n.startswith("net.")}
    return Clone(
        flags=flags,
        joins=joins,
        user="" if private else namespaces.user,
        uid_map=map_text(spec.uid_mappings) if private else "",
        gid_map=map_text(spec.gid_mappings or spec.uid_mappings) if private else "",
        trees=trees,
        views=tuple(rootfs.made_by_zygote(spec)),
        sysctls=sysctls,
        rlimits=tuple((limit.type, limit.hard) for limit in spec.process.rlimits),
    )


def birth(spec: ContainerSpec, host: Host, driver: Driver, place: Place) -> list[BirthStep]:
    """Return what the child does until it is "created"."""
    steps: list[BirthStep] = []
    # Limits first: v1 does not move a charge that was made before the join.
    steps += [JoinCgroup(path) for path in driver.joins(place.id, spec.resources)]
    if spec.namespaces.cgroup == "private":
        # After the join, or the namespace's root would be the zygote's group.
        steps.append(Unshare(linux.CLONE_NEWCGROUP))
    # A keyring and a session of its own: the zygote's are not for a container.
    steps.append(NewSession(host.keyrings))
    stdin = place.stdin if spec.process.stdin and not spec.process.terminal else ""
    steps.append(OpenStdio(stdin, place.stdout, place.stderr))
    # By the host's /proc: in the container's own it belongs to the host's root.
    steps.append(SetOomScore(spec.process.oom_score_adj))
    steps += rootfs.host_trees(spec, host, place)
    if spec.own_users:
        steps += rootfs.placed(spec, place)
        # Entered while it may be, since nobody is nobody on the host.
        steps.append(EnterFolder(place.workshop))
        # Now, since what is made from here on belongs to the container's root.
        steps.append(BecomeRoot())
    steps += rootfs.secrets(spec, place)
    steps += [SetSysctl(name, value) for name, value in inner_sysctls(spec).items()]
    mount_root, root = rootfs.root(spec, place)
    steps.append(mount_root)
    # Everything below happens inside the new root: no symbolic link of the image, however it is
    # made, leads out of it.
    steps.append(PivotRoot(root))
    steps += rootfs.kernel_file_systems(spec, host, driver, place)
    steps += rootfs.devices(spec)
    steps += rootfs.user_mounts(spec)
    steps += rootfs.inner_settings(spec)
    # Last, since each would refuse something above.
    if spec.readonly_paths:
        steps.append(MakeReadonly(spec.readonly_paths))
    if spec.masked_paths:
        steps.append(MaskPaths(spec.masked_paths))
    if spec.root.readonly:
        steps.append(MakeRootReadonly())
    return steps


def sysctls_of(spec: ContainerSpec) -> dict[str, str]:
    """Return the sysctls of *spec*, after those that Docker sets in every network of a container.

    With them nobody needs a capability to listen on a low port, nor a raw socket to ping.
    """
    network = spec.namespaces.network
    if network == "host":
        return dict(spec.sysctls)
    last_group = PING_GROUP_MAX
    if spec.namespaces.user == "private" and network == "private":
        # icmp(7): the range must exist in the namespace of the one who writes it.
        last_group = next(m.size for m in spec.uid_mappings if m.container_id == 0) - 1
    return {
        "net.ipv4.ip_unprivileged_port_start": "0",
        "net.ipv4.ping_group_range": f"0 {last_group}",
        **spec.sysctls,
    }


def inner_sysctls(spec: ContainerSpec) -> dict[str, str]:
    """Return those of them that the child can write itself."""
    beyond = spec.own_users and spec.namespaces.network.startswith("/")
    return {
        name: value
        for name, value in sysctls_of(spec).items()
        if not (beyond and name.startswith("net."))
    }


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
    if process.init:
        # Confined as the command is: it is a process of the container's like any other.
        steps.append(BecomeInit())
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
    flags |= linux.CLONE_NEWUSER if spec.own_users else 0
    steps: list[BirthStep] = []
    steps += [JoinCgroup(path) for path in driver.joins(container_id, spec.resources)]
    if process.oom_score_adj != spec.process.oom_score_adj:
        steps.append(SetOomScore(process.oom_score_adj))
    steps.append(EnterContainer(flags | linux.CLONE_NEWCGROUP))
    if spec.own_users:
        steps.append(BecomeRoot())
    steps.append(NewSession(host.keyrings))
    if process.terminal:
        steps.append(OpenTerminal(process.console_rows, process.console_columns, console=False))
    return steps, launch(changed(process, init=False), host, seccomp)


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


def map_text(mappings: tuple[IdMapping, ...]) -> str:
    """Return the text of /proc/PID/uid_map (user_namespaces(7))."""
    return "".join(f"{m.container_id} {m.host_id} {m.size}\n" for m in mappings)


def _mask(names: tuple[str, ...], host: Host) -> int:
    """Return the mask of *names*, as far as the daemon has them itself to give."""
    return host.capabilities & sum(1 << defaults.CAPABILITY_NUMBERS[name] for name in set(names))
