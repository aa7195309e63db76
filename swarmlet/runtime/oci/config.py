"""config.json of a bundle as one frozen value; what is wrong in it is said by its path.

Pure. The words are those of the OCI runtime specification (config.md, config-linux.md), version
1.2. What this runtime cannot do is refused by name where it would change what the process may do,
and never passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from swarmlet.runtime import defaults
from swarmlet.runtime.oci.mounts import PROPAGATION, BundleMount, read_mount
from swarmlet.runtime.oci.reader import Node
from swarmlet.runtime.oci.resources import check_resources, read_resources, read_rules
from swarmlet.runtime.parts import (
    Capabilities,
    Device,
    DeviceRule,
    IdMapping,
    Namespaces,
    Process,
    Resources,
    Rlimit,
    User,
)
from swarmlet.runtime.validation import (
    MAPPINGS_MAX,
    RLIMITS,
    validate_process,
    validate_sysctls,
)
from swarmlet.runtime.values import field, named_value, value

VERSION = "1.2.0"
#: Name in the document, name in a spec.
NAMESPACES = {
    "pid": "pid",
    "network": "network",
    "ipc": "ipc",
    "uts": "uts",
    "user": "user",
    "cgroup": "cgroup",
}
HOOKS = (
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
)
#: What is refused where it says something, since it would be silently missing.
UNSUPPORTED = (
    ("linux", "intelRdt"),
    ("linux", "personality"),
    ("process", "scheduler"),
    ("process", "ioPriority"),
    ("process", "execCPUAffinity"),
)


@value
class Hook:
    path: str
    args: tuple[str, ...]
    env: tuple[str, ...]
    timeout: int  # seconds; 0 for ever


@named_value
class Config:
    """What a bundle asks for. *seccomp* is the JSON text of the filter, "" for none."""

    root: str
    readonly: bool = False
    process: Process | None = None
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[BundleMount, ...] = ()
    namespaces: Namespaces = Namespaces()
    time: str = ""  # "private", or the path of a time namespace
    time_offsets: tuple[tuple[str, int, int], ...] = ()
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    resources: Resources = Resources()
    unified: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[Device, ...] = ()
    device_rules: tuple[DeviceRule, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    seccomp: str = ""
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    propagation: int = 0
    cgroups_path: str = ""
    hooks: Mapping[str, tuple[Hook, ...]] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


def read_config(document: object, bundle: str) -> Config:
    """Return the config of *bundle* (its absolute path) from what json.loads returned."""
    top = Node(document)
    version = top["ociVersion"].text()
    if not re.match(r"1\.\d+\.\d+", version):
        top["ociVersion"].refuse(f"{version!r} is not supported: this is a runtime for 1.x")
    linux = top["linux"]
    for parent, name in UNSUPPORTED:
        if not top[parent][name].missing:
            top[parent][name].refuse("is not supported")
    for name in ("windows", "solaris", "vm", "zos"):
        if not top[name].missing:
            top[name].refuse("this is a runtime for Linux")
    root = top["root"]["path"].word()
    namespaces, time = _namespaces(linux)
    uids, gids = (_mappings(linux[name]) for name in ("uidMappings", "gidMappings"))
    if namespaces.user == "private" and not (uids and gids):
        linux["uidMappings"].refuse("a new user namespace needs uidMappings and gidMappings")
    sysctls = linux["sysctl"].mapping()
    validate_sysctls(sysctls, namespaces, "linux.sysctl")
    propagation = linux["rootfsPropagation"].text("")
    word = propagation.removeprefix("r")
    if propagation and word not in PROPAGATION:
        linux["rootfsPropagation"].refuse(f"there is no {propagation!r}")
    resources, unified = read_resources(linux["resources"])
    check_resources(resources, "linux.resources")
    for name, kind in (("hostname", "uts"), ("domainname", "uts")):
        if top[name].text("") and getattr(namespaces, kind) == "host":
            top[name].refuse("needs a UTS namespace of the container's own")
    return Config(
        root=root if root.startswith("/") else f"{bundle}/{root}",
        readonly=top["root"]["readonly"].flag(),
        process=None if top["process"].missing else read_process(top["process"]),
        hostname=top["hostname"].text(""),
        domainname=top["domainname"].text(""),
        mounts=tuple(read_mount(node, bundle) for node in top["mounts"].items()),
        namespaces=namespaces,
        time=time,
        time_offsets=tuple(_offsets(linux["timeOffsets"])),
        uid_mappings=uids,
        gid_mappings=gids,
        resources=resources,
        unified=unified,
        devices=tuple(_device(node) for node in linux["devices"].items()),
        device_rules=tuple(read_rules(linux["resources"]["devices"])),
        sysctls=sysctls,
        seccomp=_seccomp(linux["seccomp"]),
        masked_paths=_paths(linux["maskedPaths"]),
        readonly_paths=_paths(linux["readonlyPaths"]),
        propagation=PROPAGATION[word] if propagation else 0,
        cgroups_path=_cgroups_path(linux["cgroupsPath"]),
        hooks={kind: tuple(_hooks(top["hooks"][kind])) for kind in HOOKS},
        annotations=top["annotations"].mapping(),
    )


def read_process(node: Node) -> Process:
    """Return the process at *node*: of a config.json, or a file of its own for an exec."""
    user, size = node["user"], node["consoleSize"]
    for name in ("apparmorProfile", "selinuxLabel"):
        if node[name].text("") not in ("", "unconfined"):
            node[name].refuse("this kernel has no such security module")
    umask = user["umask"].optional(least=0, most=0o777)
    groups = tuple(str(_id(item)) for item in user["additionalGids"].items())
    score = node["oomScoreAdj"].optional(least=-1000, most=1000)
    process = Process(
        args=node["args"].texts(),
        env=node["env"].texts(),
        cwd=node["cwd"].path_name(),
        user=User(
            user=str(_id(user["uid"])),
            group=str(_id(user["gid"])),
            additional_groups=groups,
            umask=0o022 if umask is None else umask,
        ),
        capabilities=_capabilities(node["capabilities"]),
        no_new_privileges=node["noNewPrivileges"].flag(),
        rlimits=tuple(_rlimits(node["rlimits"])),
        terminal=node["terminal"].flag(),
        console_rows=size["height"].number(0, least=0, most=65535),
        console_columns=size["width"].number(0, least=0, most=65535),
        oom_score_adj=score or 0,
    )
    validate_process(process, node.path or "process")
    return process


def _id(node: Node) -> int:
    return node.number(0, least=0, most=2**32 - 2)


def _capabilities(node: Node) -> Capabilities:
    sets = {}
    for name in ("bounding", "effective", "permitted", "inheritable", "ambient"):
        names = []
        for item in node[name].items():
            word = item.text()
            if word not in defaults.CAPABILITY_NUMBERS:
                item.refuse(f"there is no {word!r}")
            names.append(word)
        sets[name] = tuple(names)
    return Capabilities(**sets)


def _rlimits(node: Node) -> Iterator[Rlimit]:
    seen = set()
    for item in node.items():
        kind = item["type"].text()
        if kind not in RLIMITS:
            item["type"].refuse(f"there is no {kind!r}")
        if kind in seen:
            item["type"].refuse(f"{kind} is there twice")
        seen.add(kind)
        soft, hard = (_limit(item[name]) for name in ("soft", "hard"))
        if hard >= 0 and not 0 <= soft <= hard:
            item.refuse(f"the soft limit {soft} is above the hard limit {hard}")
        yield Rlimit(type=kind, soft=soft, hard=hard)


def _limit(node: Node) -> int:
    """A limit as setrlimit(2) counts: beyond what fits it is none, -1."""
    value = node.number(least=-1)
    return -1 if value >= 2**63 - 1 else value


def _namespaces(linux: Node) -> tuple[Namespaces, str]:
    found = dict.fromkeys(NAMESPACES.values(), "host")
    seen = set()
    time = ""
    for item in linux["namespaces"].items():
        kind, path = item["type"].word(), item["path"].text("")
        if kind in seen:
            item["type"].refuse(f"the {kind} namespace is there twice")
        seen.add(kind)
        if path and not path.startswith("/"):
            item["path"].refuse(f"must be an absolute path, not {path!r}")
        if kind == "mount":
            if path:
                item["path"].refuse("a mount namespace cannot be joined, only made")
        elif kind == "time":
            time = path or "private"
        elif kind in NAMESPACES:
            found[NAMESPACES[kind]] = path or "private"
        else:
            item["type"].refuse(f"there is no {kind!r}")
    if "mount" not in seen:
        linux["namespaces"].refuse("a mount namespace is required")
    return Namespaces(**found), time


def _offsets(node: Node) -> Iterator[tuple[str, int, int]]:
    for clock in ("monotonic", "boottime"):
        if not node[clock].missing:
            seconds = node[clock]["secs"].number(0)
            yield clock, seconds, node[clock]["nanosecs"].number(0, least=0, most=999_999_999)


def _mappings(node: Node) -> tuple[IdMapping, ...]:
    found = []
    for item in node.items():
        first, host = (_id(item[name]) for name in ("containerID", "hostID"))
        size = item["size"].number(least=1, most=2**32 - 1)
        found.append(IdMapping(container_id=first, host_id=host, size=size))
    if len(found) > MAPPINGS_MAX:
        node.refuse(f"the kernel takes {MAPPINGS_MAX} at most")
    return tuple(found)


#: What a type of a device is here; "u" is an unbuffered character device (mknod(1)).
DEVICE_TYPES = {"c": "c", "u": "c", "b": "b"}


def _device(node: Node) -> Device:
    kind = node["type"].word()
    if kind not in DEVICE_TYPES:
        node["type"].refuse(f"must be c, u or b, not {kind!r}")
    mode = node["fileMode"].optional(least=0, most=0o177777)
    return Device(
        path=node["path"].path_name(),
        type="b" if kind == "b" else "c",
        major=node["major"].number(least=0, most=2**12 - 1),
        minor=node["minor"].number(least=0, most=2**20 - 1),
        mode=(0o666 if mode is None else mode) & 0o7777,
        uid=_id(node["uid"]),
        gid=_id(node["gid"]),
    )


def _seccomp(node: Node) -> str:
    if node.missing:
        return ""
    node["defaultAction"].word()
    for name in ("listenerPath", "listenerMetadata"):
        if node[name].text(""):
            node[name].refuse("notifications are not supported")
    for call in node["syscalls"].items():
        call["action"].word()
        for named in call["names"].items():
            named.word()
        for argument in call["args"].items():
            argument["op"].word()
            argument["index"].number(least=0, most=5)
            argument["value"].number(least=0)
    return json.dumps(node.value)


def _paths(node: Node) -> tuple[str, ...]:
    return tuple(item.path_name() for item in node.items())


def _cgroups_path(node: Node) -> str:
    """Return the group from the root of the hierarchies, without a slash in front; "" for none.

    systemd's form `SLICE:PREFIX:NAME` becomes the path that systemd would give it.
    """
    text = node.text("")
    if not text.startswith("/") and text.count(":") == 2:
        slice_, prefix, name = text.split(":")
        unit = name if name.endswith(".slice") else f"{prefix}-{name}.scope" if prefix else name
        text = f"{_slice_path(slice_)}/{unit}"
    path = "/".join(part for part in text.split("/") if part not in ("", "."))
    if ".." in path.split("/"):
        node.refuse(f"{text!r} leads out of the hierarchy")
    return path


def _slice_path(name: str) -> str:
    """a-b.slice is below a.slice (systemd.slice(5))."""
    stem = name.removesuffix(".slice")
    if stem in ("", "-"):
        return "system.slice" if not stem else ""
    parts = stem.split("-")
    return "/".join(f"{'-'.join(parts[: n + 1])}.slice" for n in range(len(parts)))


def _hooks(node: Node) -> Iterator[Hook]:
    for item in node.items():
        timeout = item["timeout"].optional(least=1)
        env = item["env"].texts()
        for index, entry in enumerate(env):
            if "=" not in entry:
                Node(entry, f"{item.path}.env[{index}]").refuse("must be NAME=VALUE")
        yield Hook(item["path"].path_name(), item["args"].texts(), env, timeout or 0)
