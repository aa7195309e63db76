"""What a container has at its paths: `-v`, `--mount` and `--tmpfs`, in Docker's forms, and back.

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from posixpath import normpath
from typing import Any

from swarmlet.agent.local.records import MountKind, MountPoint
from swarmlet.api.fields import Fields
from swarmlet.model.validation import SpecError

PROPAGATIONS = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
#: Of `-v SRC:DST:MODE`; the z's are SELinux's, consistent and the like macOS's.
MEANINGLESS = ("rw", "z", "Z", "consistent", "cached", "delegated", "volume-nocopy=false")
TMPFS_DEFAULTS = ("nosuid", "nodev", "noexec")
SIZE = re.compile(r"(\d+)([kmg]?)b?", re.IGNORECASE)
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def read_bind(text: str, path: str) -> MountPoint:
    """`/host:/in[:ro]`, `name:/in`, `/in`."""
    parts = text.split(":")
    if not 1 <= len(parts) <= 3 or not all(parts):
        raise SpecError(path, f"invalid volume specification: '{text[:120]}'")
    if len(parts) == 1:
        parts = ["", *parts]
    source, target = parts[0], parts[1]
    if not target.startswith("/"):
        raise SpecError(
            path,
            f"invalid volume specification: '{text[:120]}': the path in the container must be "
            "absolute",
        )
    is_path = source.startswith("/")
    point = MountPoint(
        kind=MountKind.BIND if is_path else MountKind.VOLUME,
        source=normpath(source) if is_path else source,
        target=normpath(target),
        make_source=is_path,
    )
    for mode in parts[2].split(",") if len(parts) == 3 else ():
        if mode == "ro":
            point = replace(point, read_only=True)
        elif mode == "nocopy" and not is_path:
            point = replace(point, no_copy=True)
        elif mode in PROPAGATIONS and is_path:
            point = replace(point, propagation=mode)
        elif mode not in MEANINGLESS:
            raise SpecError(path, f"invalid mode: {mode[:40]} (in '{text[:80]}')")
    if not is_path and source.startswith((".", "~")):
        raise SpecError(path, f"{source!r} is no absolute path and no name of a volume")
    return point


def read_mount(fields: Fields) -> MountPoint:
    """One of HostConfig.Mounts. Raises SpecError."""
    kind_text = fields.text("Type")
    if kind_text not in set(MountKind):
        reason = "is not built; there are bind, volume and tmpfs"
        raise SpecError(fields.at("Type"), f"{kind_text!r} {reason}")
    kind = MountKind(kind_text)
    point = MountPoint(
        kind=kind,
        target=fields.text("Target"),
        source=fields.text("Source"),
        read_only=fields.flag("ReadOnly"),
        options=TMPFS_DEFAULTS if kind is MountKind.TMPFS else (),
    )
    point = _read_options(point, fields)
    fields.ignore("Consistency")
    fields.refuse("ImageOptions", "image mounts are not built yet")
    fields.refuse("ClusterOptions", "cluster volumes are not built yet")
    fields.done()
    if not point.target.startswith("/"):
        raise SpecError(fields.at("Target"), f"{point.target[:80]!r} is no absolute path")
    if kind is MountKind.BIND and not point.source.startswith("/"):
        raise SpecError(fields.at("Source"), f"{point.source[:80]!r} is no absolute path")
    if kind is MountKind.TMPFS and point.source:
        raise SpecError(fields.at("Source"), "a tmpfs has none")
    return replace(point, target=normpath(point.target))


def _read_options(point: MountPoint, fields: Fields) -> MountPoint:
    bind, volume, tmpfs = (fields.child(f"{k}Options") for k in ("Bind", "Volume", "Tmpfs"))
    for options, kind in (
        (bind, MountKind.BIND),
        (volume, MountKind.VOLUME),
        (tmpfs, MountKind.TMPFS),
    ):
        if options is not None and kind is not point.kind and _says_something(options):
            raise SpecError(options.path, f"does not go with a mount of type {point.kind}")
    if bind is not None and point.kind is MountKind.BIND:
        propagation = bind.text("Propagation")
        if propagation and propagation not in PROPAGATIONS:
            raise SpecError(bind.at("Propagation"), f"{propagation[:40]!r} is no propagation")
        point = replace(
            point,
            propagation=propagation,
            recursive=not bind.flag("NonRecursive"),
            make_source=bind.flag("CreateMountpoint"),
        )
        bind.refuse("ReadOnlyNonRecursive", "a read-only mount is so with all below it")
        bind.ignore("ReadOnlyForceRecursive")
        bind.done()
    if volume is not None and point.kind is MountKind.VOLUME:
        point = replace(point, no_copy=volume.flag("NoCopy"), labels=volume.text_map("Labels"))
        volume.refuse("Subpath", "is not built; mount the whole volume")
        if (driver := volume.child("DriverConfig")) is not None:
            name, wishes = driver.text("Name"), driver.text_map("Options")
            driver.done()
            if name not in ("", "local") or wishes:
                reason = "volumes are folders of this host: local without options is the driver"
                raise SpecError(driver.path, reason)
        volume.done()
    if tmpfs is not None and point.kind is MountKind.TMPFS:
        size, mode = tmpfs.integer("SizeBytes", least=0), tmpfs.integer("Mode", least=0)
        point = replace(point, size_bytes=size, mode=mode or point.mode)
        value = tmpfs.take("Options")
        words = [w for entry in value or [] for w in entry] if isinstance(value, list) else []
        for word in words:
            point = _tmpfs_option(point, str(word), tmpfs.at("Options"))
        tmpfs.done()
    return point


def _says_something(options: Fields) -> bool:
    """Compose sends empty objects of the other kinds."""
    try:
        options.done()
    except SpecError:
        return True
    return False


def read_tmpfs(target: str, text: str) -> MountPoint:
    """`--tmpfs /run:size=64m,mode=755`."""
    path = f"HostConfig.Tmpfs.{target}"
    if not target.startswith("/"):
        raise SpecError(path, "is no absolute path")
    point = MountPoint(kind=MountKind.TMPFS, target=normpath(target), options=TMPFS_DEFAULTS)
    for word in filter(None, text.split(",")):
        point = _tmpfs_option(point, word, path)
    return point


def _tmpfs_option(point: MountPoint, word: str, path: str) -> MountPoint:
    key, _, value = word.partition("=")
    if key == "size" and (match := SIZE.fullmatch(value)):
        return replace(point, size_bytes=int(match[1]) * UNITS[match[2].lower()])
    if key == "mode" and re.fullmatch(r"[0-7]{1,4}", value):
        return replace(point, mode=int(value, 8))
    if word in ("ro", "rw"):
        return replace(point, read_only=word == "ro")
    if word in TMPFS_DEFAULTS:
        return replace(point, options=tuple(dict.fromkeys((*point.options, word))))
    if f"no{word}" in TMPFS_DEFAULTS:
        return replace(point, options=tuple(o for o in point.options if o != f"no{word}"))
    raise SpecError(path, f"{word[:40]!r} is not built; there are size, mode, ro, exec, dev, suid")


# Back to Docker's JSON.


def write_points(mounts: Iterable[MountPoint], volumes: str) -> list[dict[str, Any]]:
    """What `inspect` shows at Mounts; *volumes* is the folder of the named ones."""
    shown = []
    for point in mounts:
        if point.kind is MountKind.TMPFS:
            continue  # Docker shows them in HostConfig only
        entry: dict[str, Any] = {"Type": str(point.kind)}
        if point.kind is MountKind.VOLUME:
            entry |= {
                "Name": point.source,
                "Source": f"{volumes}/{point.source}/_data",
                "Destination": point.target,
                "Driver": "local",
            }
        else:
            entry |= {"Source": point.source, "Destination": point.target}
        mode = "ro" if point.read_only else ("z" if point.kind is MountKind.VOLUME else "")
        propagation = point.propagation or ("rprivate" if point.kind is MountKind.BIND else "")
        entry |= {"Mode": mode, "RW": not point.read_only, "Propagation": propagation}
        shown.append(entry)
    return shown


def write_binds(mounts: Iterable[MountPoint]) -> list[str] | None:
    """HostConfig.Binds: those that `-v` says, and that are no anonymous volumes."""
    binds = []
    for point in mounts:
        if point.kind is MountKind.TMPFS or point.anonymous:
            continue
        modes = (["ro"] if point.read_only else []) + (["nocopy"] if point.no_copy else [])
        modes += [point.propagation] if point.propagation else []
        text = f"{point.source}:{point.target}"
        binds.append(f"{text}:{','.join(modes)}" if modes else text)
    return binds or None


def write_tmpfs(mounts: Iterable[MountPoint]) -> dict[str, str] | None:
    found = {}
    for point in mounts:
        if point.kind is MountKind.TMPFS:
            words = [*point.options]
            words += [f"size={point.size_bytes}"] if point.size_bytes else []
            words += [f"mode={point.mode:o}"] if point.mode != 0o1777 else []
            found[point.target] = ",".join(words)
    return found or None
