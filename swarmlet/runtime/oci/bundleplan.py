"""From a config to the steps of a bundle's birth, launch and removal.

Pure, as plan.py, whose launch it shares. The root is a folder that the engine made, and the mounts
are the document's, in its order. They are attached after the pivot, so that no link of the image
leads out of it: what comes from the host was taken hold of before, as detached trees.

Where we differ from runc: its hooks of the second and third kind find the mounts of config.json
under the root; here they find the root with what the engine mounted below it, and what they add to
/dev, /proc or /sys is covered. Nothing that a hook mounts elsewhere is lost.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from typing import Any

from swarmlet.runtime import defaults
from swarmlet.runtime import plan as containers
from swarmlet.runtime import syscalls as linux
from swarmlet.runtime.cgroups import Driver
from swarmlet.runtime.decoding import SpecError
from swarmlet.runtime.devices import assemble
from swarmlet.runtime.host import Host
from swarmlet.runtime.oci.config import Config, Hook
from swarmlet.runtime.oci.mounts import CGROUPS, BundleMount
from swarmlet.runtime.oci.steps import (
    CallHooks,
    CheckCommand,
    EnsureLink,
    EnsureNode,
    HookCall,
    MountCopy,
    Synchronize,
)
from swarmlet.runtime.parts import DeviceRule, Process
from swarmlet.runtime.plan import Clone
from swarmlet.runtime.steps import (
    AllowDevices,
    AttachTree,
    BecomeRoot,
    CloneTree,
    EnsureDirectory,
    EnterContainer,
    EnterFolder,
    HoldTree,
    HostStep,
    JoinCgroup,
    LoopbackUp,
    MakeFolder,
    MakeReadonly,
    MakeRootReadonly,
    MakeTree,
    MaskPaths,
    Mount,
    NewSession,
    OpenTerminal,
    PivotRoot,
    PlaceTree,
    SetDomainname,
    SetHostname,
    SetLimit,
    SetOomScore,
    SetPropagation,
    SetSysctl,
    Unshare,
)
from swarmlet.runtime.values import value

#: The root is mounted on this folder of the container's state when it has users of its own, who
#: cannot enter the engine's.
WORKSHOP = "root"
#: File systems of which a user namespace gets a view of its own.
VIEWS = frozenset({"proc", "sysfs"})


@value
class BundlePlan:
    prepare: tuple[HostStep, ...]
    clone: Clone
    birth: tuple[Any, ...]
    launch: tuple[Any, ...]


def bundle_plan(
    config: Config,
    host: Host,
    driver: Driver,
    group: str,
    state: str,
    seccomp: bytes | None,
    *,
    keyring: bool = True,
) -> BundlePlan:
    """Return the plan of *config*; *group* is its name below the driver's parent.

    *state* is the container's own folder on the host. Raises SpecError for what cannot be meant.
    """
    if config.process is None:
        raise SpecError("process: is required to create a container")
    if not config.process.args:
        raise SpecError("process.args: must not be empty")
    return BundlePlan(
        prepare=tuple(prepare(config, driver, group)),
        clone=clone(config),
        birth=tuple(birth(config, config.process, host, driver, group, state, keyring=keyring)),
        launch=tuple(launch(config, config.process, host, seccomp)),
    )


def own_users(config: Config) -> bool:
    return config.namespaces.user != "host"


def prepare(config: Config, driver: Driver, group: str) -> list[HostStep]:
    steps: list[HostStep] = [*driver.groups(group, config.resources, whole=True)]
    steps += limits(config, driver, group)
    steps.append(AllowDevices(driver.unified(group), assemble(device_rules(config))))
    steps += [tree for tree, _ in held(config)]
    return steps


def limits(config: Config, driver: Driver, group: str) -> list[SetLimit]:
    steps = driver.limits(group, config.resources)
    for name, wanted in config.unified.items():
        controller = name.partition(".")[0]
        if controller not in (*driver.host.unified_controllers, "cgroup"):
            text = f"this host has no {controller} controller on cgroup v2"
            raise SpecError(f"linux.resources.unified.{name}: {text}")
        steps.append(SetLimit(f"{driver.unified(group)}/{name}", wanted))
    return steps


def device_rules(config: Config) -> list[DeviceRule]:
    """The document's rules, then what every container may open (config-linux.md)."""
    allowed = [
        DeviceRule(allow=True, type=kind, major=major, minor=minor, access=access)  # type: ignore[arg-type]
        for kind, major, minor, access in defaults.DEVICE_RULES
    ]
    return [*config.device_rules, *allowed]


def held(config: Config) -> list[tuple[HoldTree, str]]:
    """Return what is taken hold of on the host: the root and the binds, in their order."""
    trees = [(HoldTree("root", config.root, True, 0, linux.MS_PRIVATE), "no")]
    for index, mount in enumerate(config.mounts):
        if mount.bind:
            kind = mount.propagation & ~linux.MS_REC or linux.MS_PRIVATE
            # A tree that was cloned of a shared mount is shared with it.
            propagation = 0 if kind == linux.MS_SHARED else kind
            tree = HoldTree(
                f"mount{index}", mount.source, mount.recursive, mount.attributes, propagation
            )
            trees.append((tree, "no"))
    return trees


def clone(config: Config) -> Clone:
    namespaces = config.namespaces
    flags = linux.CLONE_NEWNS
    for name, flag in containers.NAMESPACE_FLAGS.items():
        if getattr(namespaces, name) == "private":
            flags |= flag
    joined = containers.JOINED
    process = config.process
    private = namespaces.user == "private"
    return Clone(
        flags=flags,
        joins=tuple(
            (name, getattr(namespaces, name))
            for name in joined
            if getattr(namespaces, name).startswith("/")
        ),
        user=namespaces.user if namespaces.user.startswith("/") else "",
        uid_map=containers.map_text(config.uid_mappings) if private else "",
        gid_map=containers.map_text(config.gid_mappings) if private else "",
        trees=tuple((tree.slot, mapped) for tree, mapped in held(config)),
        rlimits=tuple((limit.type, limit.hard) for limit in (process.rlimits if process else ())),
    )


def birth(
    config: Config,
    process: Process,
    host: Host,
    driver: Driver,
    group: str,
    state: str,
    *,
    keyring: bool,
) -> list[Any]:
    namespaces = config.namespaces
    steps: list[Any] = [
        JoinCgroup(path) for path in driver.joins(group, config.resources, whole=True)
    ]
    if namespaces.cgroup == "private":
        steps.append(Unshare(linux.CLONE_NEWCGROUP))
    steps.append(NewSession(host.keyrings and keyring))
    if process.oom_score_adj:
        steps.append(SetOomScore(process.oom_score_adj))
    # Mounts of the host reach the container or not, but never the other way round.
    cut = linux.MS_PRIVATE if config.propagation == linux.MS_PRIVATE else linux.MS_SLAVE
    steps.append(SetPropagation(linux.MS_REC | cut))
    root = config.root
    if own_users(config):
        steps += [CloneTree(f"dev/{n}", f"/dev/{n}", False) for n, _, _ in defaults.DEVICES]
        steps += [
            CloneTree(f"device{index}", device.path, False)
            for index, device in enumerate(config.devices)
        ]
        # The kernel gives a new view only to who sees a whole one, so before the pivot.
        steps += [
            MakeTree(f"mount{index}", mount.fstype, mount.attributes)
            for index, mount in enumerate(config.mounts)
            if mount.fstype in VIEWS and not mount.bind
        ]
        root = WORKSHOP
        steps += [EnterFolder(state), BecomeRoot()]
    steps += [SetSysctl(name, value) for name, value in config.sysctls.items()]
    steps.append(PlaceTree("root", root))
    steps.append(Synchronize())
    if config.hooks.get("createContainer"):
        steps.append(CallHooks("createContainer", calls(config.hooks["createContainer"])))
    steps.append(PivotRoot(root))
    for index, mount in enumerate(config.mounts):
        steps += mounted(f"mount{index}", mount, config, host, driver, group)
    steps += devices(config)
    if process.terminal:
        rows, columns = process.console_rows, process.console_columns
        steps.append(OpenTerminal(rows, columns, console=True))
    if config.hostname and namespaces.uts != "host":
        steps.append(SetHostname(config.hostname))
    if config.domainname and namespaces.uts != "host":
        steps.append(SetDomainname(config.domainname))
    if namespaces.network == "private":
        steps.append(LoopbackUp())
    steps.append(EnsureDirectory(process.cwd, 0o755))
    # Last, since each would refuse something above.
    if config.readonly_paths:
        steps.append(MakeReadonly(config.readonly_paths))
    if config.masked_paths:
        steps.append(MaskPaths(config.masked_paths))
    if config.propagation and config.propagation != linux.MS_PRIVATE:
        steps.append(SetPropagation(config.propagation))
    if config.readonly:
        steps.append(MakeRootReadonly())
    steps.append(CheckCommand(process.args, process.env))
    return steps


def mounted(
    slot: str, mount: BundleMount, config: Config, host: Host, driver: Driver, group: str
) -> list[Any]:
    """Return what puts one mount of the document in its place."""
    if mount.bind or (own_users(config) and mount.fstype in VIEWS):
        return [AttachTree(slot, mount.target)]
    if mount.copy_up:
        return [MountCopy(mount.target, mount.flags, mount.data)]
    steps: list[Any] = [EnsureDirectory(mount.target, 0o755)]
    if mount.fstype in CGROUPS:
        return steps + groups(mount, config, host, driver, group)
    steps.append(Mount(mount.source, mount.target, mount.fstype, mount.flags, mount.data))
    return steps


def groups(mount: BundleMount, config: Config, host: Host, driver: Driver, group: str) -> list[Any]:
    """The view of the groups: of cgroup v2, or of each hierarchy of v1 that the container is in."""
    target = mount.target
    if not host.hybrid:
        return [Mount("cgroup", target, "cgroup2", mount.flags)]
    safe = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    steps: list[Any] = [Mount("tmpfs", target, "tmpfs", safe, "mode=755,size=4k")]
    if config.namespaces.cgroup != "private":
        # Without a namespace of groups they would be the host's, all of them.
        return steps
    for path in driver.joins(group, config.resources, whole=True):
        hierarchy = next(h for h in host.hierarchies if path.startswith(f"{h.path}/"))
        name = ",".join(hierarchy.controllers)
        steps.append(MakeFolder(f"{target}/{name}", 0o755))
        steps.append(Mount("cgroup", f"{target}/{name}", "cgroup", mount.flags, name))
    steps.append(MakeFolder(f"{target}/unified", 0o755))
    steps.append(Mount("cgroup", f"{target}/unified", "cgroup2", mount.flags))
    return steps


KINDS = {"c": stat.S_IFCHR, "b": stat.S_IFBLK}


def devices(config: Config) -> list[Any]:
    """The devices of every container, those of the document, and the links in /dev."""
    if any(mount.bind and mount.target.rstrip("/") == "/dev" for mount in config.mounts):
        return []  # it is somebody's /dev already
    steps: list[Any] = []
    if own_users(config):
        # A user namespace can make no node (mknod(2)): the host's are shown.
        steps += [AttachTree(f"dev/{n}", f"/dev/{n}") for n, _, _ in defaults.DEVICES]
        steps += [AttachTree(f"device{i}", d.path) for i, d in enumerate(config.devices)]
    else:
        named = {device.path for device in config.devices}
        steps += [
            EnsureNode(f"/dev/{name}", stat.S_IFCHR | 0o666, major, minor, 0, 0)
            for name, major, minor in defaults.DEVICES
            if f"/dev/{name}" not in named
        ]
        steps += [
            EnsureNode(d.path, KINDS[d.type] | d.mode, d.major, d.minor, d.uid, d.gid)
            for d in config.devices
        ]
    return steps + [EnsureLink(f"/dev/{name}", to) for name, to in defaults.DEVICE_LINKS]


def launch(config: Config, process: Process, host: Host, seccomp: bytes | None) -> list[Any]:
    steps: list[Any] = []
    if config.hooks.get("startContainer"):
        steps.append(CallHooks("startContainer", calls(config.hooks["startContainer"])))
    return steps + containers.launch(process, host, seccomp)


def calls(hooks: Sequence[Hook]) -> tuple[HookCall, ...]:
    return tuple((h.path, h.args, h.env, float(h.timeout)) for h in hooks)


def exec_plan(
    config: Config,
    process: Process,
    host: Host,
    driver: Driver,
    group: str,
    seccomp: bytes | None,
) -> tuple[list[Any], list[Any]]:
    """Return birth and launch of a further *process* in the running container of *config*."""
    if not process.args:
        raise SpecError("process.args: must not be empty")
    flags = linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS
    flags |= linux.CLONE_NEWCGROUP
    flags |= linux.CLONE_NEWUSER if own_users(config) else 0
    flags |= linux.CLONE_NEWTIME if config.time else 0
    steps: list[Any] = [
        JoinCgroup(path) for path in driver.joins(group, config.resources, whole=True)
    ]
    if process.oom_score_adj:
        steps.append(SetOomScore(process.oom_score_adj))
    steps.append(EnterContainer(flags))
    if own_users(config):
        steps.append(BecomeRoot())
    steps.append(NewSession(host.keyrings))
    if process.terminal:
        rows, columns = process.console_rows, process.console_columns
        steps.append(OpenTerminal(rows, columns, console=False))
    return steps, containers.launch(process, host, seccomp)
