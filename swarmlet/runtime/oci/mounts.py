"""The mounts of a config.json: their options, as mount(8) names them. Pure."""

from __future__ import annotations

from swarmlet.runtime import syscalls as linux
from swarmlet.runtime.oci.reader import Node
from swarmlet.runtime.values import named_value

#: Option: flag to set.
SETS = {
    "ro": linux.MS_RDONLY,
    "nosuid": linux.MS_NOSUID,
    "nodev": linux.MS_NODEV,
    "noexec": linux.MS_NOEXEC,
    "noatime": linux.MS_NOATIME,
    "nodiratime": linux.MS_NODIRATIME,
    "relatime": linux.MS_RELATIME,
    "strictatime": linux.MS_STRICTATIME,
    "sync": linux.MS_SYNCHRONOUS,
    "dirsync": linux.MS_DIRSYNC,
    "mand": linux.MS_MANDLOCK,
    "silent": linux.MS_SILENT,
    "lazytime": linux.MS_LAZYTIME,
    "iversion": linux.MS_I_VERSION,
}
#: Option: flag to take back.
CLEARS = {
    "rw": linux.MS_RDONLY,
    "suid": linux.MS_NOSUID,
    "dev": linux.MS_NODEV,
    "exec": linux.MS_NOEXEC,
    "atime": linux.MS_NOATIME,
    "diratime": linux.MS_NODIRATIME,
    "norelatime": linux.MS_RELATIME,
    "nostrictatime": linux.MS_STRICTATIME,
    "async": linux.MS_SYNCHRONOUS,
    "nomand": linux.MS_MANDLOCK,
    "loud": linux.MS_SILENT,
    "nolazytime": linux.MS_LAZYTIME,
    "noiversion": linux.MS_I_VERSION,
}
PROPAGATION = {
    "private": linux.MS_PRIVATE,
    "shared": linux.MS_SHARED,
    "slave": linux.MS_SLAVE,
    "unbindable": linux.MS_UNBINDABLE,
}
#: Flag of mount(2), attribute of mount_setattr(2).
ATTRIBUTES = {
    linux.MS_RDONLY: linux.MOUNT_ATTR_RDONLY,
    linux.MS_NOSUID: linux.MOUNT_ATTR_NOSUID,
    linux.MS_NODEV: linux.MOUNT_ATTR_NODEV,
    linux.MS_NOEXEC: linux.MOUNT_ATTR_NOEXEC,
    linux.MS_NODIRATIME: linux.MOUNT_ATTR_NODIRATIME,
}
#: Words that mean nothing here, and harm nothing.
IGNORED = frozenset({"defaults", "remount", "norro"})
#: What the kernel makes anew; everything else is a file system with a source.
CGROUPS = frozenset({"cgroup", "cgroup2"})


@named_value
class BundleMount:
    """One entry of `mounts`; *path* is where it stands in the document."""

    path: str
    target: str
    source: str
    fstype: str
    flags: int = 0
    data: str = ""
    bind: bool = False
    recursive: bool = False
    propagation: int = 0  # 0 where nothing is said
    copy_up: bool = False

    @property
    def attributes(self) -> int:
        """The flags of a bind, as mount_setattr(2) counts them."""
        return sum(value for flag, value in ATTRIBUTES.items() if self.flags & flag)


def read_mount(node: Node, bundle: str) -> BundleMount:
    """Return the mount at *node*; a relative source counts from *bundle*."""
    # A relative destination is one from the root, as engines of old wrote it.
    target = node["destination"].word()
    target = target if target.startswith("/") else f"/{target}"
    fstype, source = node["type"].text(""), node["source"].text("")
    for name in ("uidMappings", "gidMappings"):
        if not node[name].missing and list(node[name].items()):
            node[name].refuse("mapped mounts are not supported")
    flags = propagation = 0
    data: list[str] = []
    bind = recursive = copy_up = False
    for option in node["options"].items():
        word = option.text()
        depth = word[:1] == "r" and word[1:] in (*PROPAGATION, "bind")
        plain = word[1:] if depth else word
        if plain == "bind":
            bind, recursive = True, recursive or depth
        elif plain in PROPAGATION:
            propagation = PROPAGATION[plain] | (linux.MS_REC if depth else 0)
        elif word in SETS:
            flags |= SETS[word]
        elif word in CLEARS:
            flags &= ~CLEARS[word]
        elif word in ("idmap", "ridmap"):
            option.refuse("mapped mounts are not supported")
        elif word == "tmpcopyup":
            copy_up = True
        elif word in ("rro",):
            flags, recursive = flags | linux.MS_RDONLY, True
        elif word not in IGNORED:
            data.append(word)
    bind = bind or fstype == "bind"
    if bind:
        if not source:
            node["source"].refuse("is required of a bind mount")
        if data:
            node["options"].refuse(f"a bind mount has no option {data[0]!r}")
        source = source if source.startswith("/") else f"{bundle}/{source}"
    elif not fstype:
        node["type"].refuse("is required of a mount that is no bind")
    if copy_up and fstype != "tmpfs":
        node["options"].refuse("tmpcopyup is for a tmpfs only")
    return BundleMount(
        path=node.path,
        target=target,
        source=source or fstype,
        fstype=fstype,
        flags=flags,
        data=",".join(data),
        bind=bind,
        recursive=recursive,
        propagation=propagation,
        copy_up=copy_up,
    )
