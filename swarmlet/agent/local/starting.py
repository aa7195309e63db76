"""What a container needs before its process can be made: files, volumes, devices, a spec.

A shell around specs.py. Everything here may be done again: a start that was cut off leaves folders
and volumes, which the next one finds.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from posixpath import normpath

import trio

from swarmlet.agent.local.container import Container
from swarmlet.agent.local.errors import Conflict, Invalid
from swarmlet.agent.local.networks import has_sandbox
from swarmlet.agent.local.owners import HOST_OWNERS, Owners
from swarmlet.agent.local.records import (
    HOST_NETWORK,
    NO_NETWORK,
    OF_CONTAINER,
    ContainerConfig,
    ContainerRecord,
    DeviceRequest,
    MountKind,
    MountPoint,
)
from swarmlet.agent.local.rootfs import Bind, Live, Stored, Subject, View, fill_volume
from swarmlet.agent.local.specs import Surroundings, build, mount_of
from swarmlet.agent.local.store import remove_all
from swarmlet.agent.local.volumes import BadVolume, Volumes, check_name
from swarmlet.images.reference import Digest
from swarmlet.images.store import ImageStore
from swarmlet.runtime import spec as oci
from swarmlet.runtime.defaults import DEVICES
from swarmlet.runtime.rootfs import Place, upper_of
from swarmlet.runtime.state import ContainerState

RESOLVER_ADDRESS = "127.0.0.11"
UPPER, LOG_FOLDER, VIEW_FOLDER = "upper", "log", "view"
#: Folders that views of stopped containers are mounted at; each only in its thread's namespace.
VIEWS_MAX = 8
#: Nodes of a device folder, or of the host's /dev for a privileged container.
DEVICES_MAX = 4096


class Starter:
    """*find* gives the container that another one names; it raises NoSuch."""

    def __init__(
        self,
        *,
        images: ImageStore,
        volumes: Volumes,
        folder: Path,
        runtime_folder: Path,
        netns_of: Callable[[str], str],
        address_of: Callable[[ContainerRecord], str],
        host_name: str,
        host_gateway: str,
        find: Callable[[str], Container],
    ) -> None:
        self._images = images
        self._volumes = volumes
        self._folder = folder  # of the containers' records
        self._runtime_folder = runtime_folder  # of the supervisor's containers
        self._netns_of = netns_of
        self._address_of = address_of
        self._host_name = host_name
        self._host_gateway = host_gateway
        self._find = find

    def place(self, record: ContainerRecord) -> Path:
        return self._folder / record.id

    def upper(self, record: ContainerRecord) -> str:
        return str(self.place(record) / UPPER)

    async def layers(self, record: ContainerRecord) -> tuple[str, ...]:
        """The image's layers, base first, unpacked. Raises ImageError."""
        layers = await self._images.unpack(Digest(record.image))
        return tuple(str(path) for path in reversed(layers))

    async def prepare(self, record: ContainerRecord, layers: tuple[str, ...]) -> None:
        """Have volumes and the sources of binds there, and new volumes filled from the image.

        Raises:
            Invalid: a source cannot be had.
            OSError: the disk said no.
        """
        await trio.to_thread.run_sync(self._prepare, record, layers)

    def _prepare(self, record: ContainerRecord, layers: tuple[str, ...]) -> None:
        for point in record.config.mounts:
            if point.kind is MountKind.VOLUME:
                self._prepare_volume(record, point, layers)
            elif point.kind is MountKind.BIND:
                check_source(point)

    def _prepare_volume(
        self, record: ContainerRecord, point: MountPoint, layers: tuple[str, ...]
    ) -> None:
        self._volumes.create(
            point.source, labels=point.labels, options={}, anonymous=point.anonymous
        )
        if not point.no_copy:
            view = Stored(layers=layers, place=self._view_place(record))
            fill_volume(view, point.target, self._volumes.data(point.source))

    async def spec(self, record: ContainerRecord, layers: tuple[str, ...]) -> oci.ContainerSpec:
        """Return what the supervisor shall make. Raises LocalError, UnusableTemplate, SpecError."""
        config = record.config
        devices, limits = await trio.to_thread.run_sync(_devices_and_limits, record)
        hosts, resolv_conf = await trio.to_thread.run_sync(_read_host_files)
        own = has_sandbox(record)
        around = Surroundings(
            layers=layers,
            upper=self.upper(record),
            netns=self._netns(record),
            address=self._address_of(record) if own else "",
            resolver=RESOLVER_ADDRESS if own else "",
            host_name=self._host_name,
            host_gateway=self._host_gateway,
            host_hosts=hosts,
            host_resolv_conf=resolv_conf,
            ipc=self._namespace(config.ipc, "ipc"),
            pid=self._namespace(config.pid, "pid"),
            mounts=tuple(mount_of(m, str(self._volumes.folder)) for m in config.mounts),
            devices=devices,
            io=limits,
        )
        spec = build(record, around)
        if config.network_of:
            # Docker: who shares a network shares its names, too.
            other = self._find(config.network_of)
            theirs = other.state.spec if other.state is not None else spec
            spec = replace(spec, hosts=theirs.hosts, resolv_conf=theirs.resolv_conf)
        return spec

    def _netns(self, record: ContainerRecord) -> str:
        mode = record.config.network
        if mode == HOST_NETWORK:
            return "host"
        if mode == NO_NETWORK:
            return "private"
        if not record.config.network_of:
            return self._netns_of(record.id)
        other = self._running(record.config.network_of, "network")
        if has_sandbox(other.record):
            return self._netns_of(other.id)
        is_host = other.record.config.network == HOST_NETWORK
        return HOST_NETWORK if is_host else f"/proc/{other.pid}/ns/net"

    def _namespace(self, mode: str, kind: str) -> str:
        if mode.startswith(OF_CONTAINER):
            other = self._running(mode.removeprefix(OF_CONTAINER), kind)
            return f"/proc/{other.pid}/ns/{kind}"
        return HOST_NETWORK if mode == HOST_NETWORK else "private"

    def _running(self, reference: str, kind: str) -> Container:
        other = self._find(reference)
        if not other.runs:
            raise Conflict(
                f"cannot join the {kind} namespace of container {other.name}, which is not "
                "running: start that one first"
            )
        return other

    def view(self, container: Container, layers: tuple[str, ...]) -> View:
        """The root of the container as it is now."""
        state = container.state
        if container.runs and state is not None:
            return Live(state.pid, state.start_ticks)
        record = container.record
        binds = []
        for point in record.config.mounts:
            if point.kind is MountKind.TMPFS:
                continue
            mount = mount_of(point, str(self._volumes.folder))
            if os.path.exists(mount.source):
                binds.append(Bind(mount.source, point.target, point.read_only))
        binds.sort(key=lambda bind: bind.target.count("/"))
        return Stored(
            layers=layers,
            place=self._view_place(record),
            upper=self.upper(record),
            binds=tuple(binds),
        )

    def subject_of_task(self, state: ContainerState) -> Subject:
        """The files of a container that the agent made."""
        spec, folder = state.spec, self._runtime_folder / state.id
        layers = spec.root.layers
        place = Place(id=state.id, state=str(folder), run="")
        upper = upper_of(spec, place)[0]
        view: View
        if state.status.running:
            owners = HOST_OWNERS
            if spec.own_users and spec.uid_mappings:
                owners = Owners(spec.uid_mappings[0].host_id, spec.uid_mappings[0].size)
            view = Live(state.pid, state.start_ticks, owners)
        else:
            empty = folder / VIEW_FOLDER
            empty.mkdir(mode=0o700, parents=True, exist_ok=True)
            view = Stored(layers=layers, place=str(empty), upper=upper)
        return Subject(view, Path(upper), layers)

    def _view_place(self, record: ContainerRecord) -> str:
        place = self.place(record) / VIEW_FOLDER
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        return str(place)

    # At creation.

    def all_mounts(
        self, config: ContainerConfig, new_name: Callable[[], str]
    ) -> tuple[MountPoint, ...]:
        """What was asked for, what other containers lend, and a volume for each that the image
        declares. Raises LocalError."""
        mounts = {normpath(point.target): point for point in config.mounts}
        if len(mounts) < len(config.mounts):
            targets = [normpath(point.target) for point in config.mounts]
            twice = next(target for target in targets if targets.count(target) > 1)
            raise Invalid(f"Duplicate mount point: {twice}")
        for text in config.volumes_from:
            reference, _, mode = text.partition(":")
            for point in self._find(reference).record.config.mounts:
                read_only = point.read_only or "ro" in mode.split(",")
                lent = replace(point, read_only=read_only, anonymous=False)
                mounts.setdefault(normpath(point.target), lent)
        for target in config.volumes:
            mounts.setdefault(
                normpath(target), MountPoint(kind=MountKind.VOLUME, target=normpath(target))
            )
        return tuple(_named(point, new_name) for point in mounts.values())

    def check(self, record: ContainerRecord) -> None:
        """Refuse what no start could do. Raises LocalError, UnusableTemplate, SpecError."""
        for point in record.config.mounts:
            if point.kind is MountKind.BIND and not point.make_source:
                check_source(point)
            elif point.kind is MountKind.VOLUME:
                try:
                    check_name(point.source)
                except BadVolume as exc:
                    raise Invalid(str(exc)) from exc
        around = Surroundings(
            layers=("/",),
            upper="/",
            netns="host" if record.config.network == HOST_NETWORK else "private",
            address="",
            resolver="",
            host_name=self._host_name,
            host_gateway=self._host_gateway,
            host_hosts="",
            host_resolv_conf="",
            ipc=HOST_NETWORK if record.config.ipc == HOST_NETWORK else "private",
            mounts=tuple(mount_of(m, str(self._volumes.folder)) for m in record.config.mounts),
        )
        build(record, around)

    # The log goes from one run to the next, as one set of files with one bound.

    def save_log(self, record: ContainerRecord) -> None:
        """Take the log out of the supervisor's folder, which goes away with the last run."""
        safe = self.place(record) / LOG_FOLDER
        for path in (self._runtime_folder / record.id).glob(f"{record.id}-json.log*"):
            safe.mkdir(mode=0o700, exist_ok=True)
            path.rename(safe / path.name)

    def restore_log(self, record: ContainerRecord) -> None:
        """Put it where the next run goes on writing it."""
        safe = self.place(record) / LOG_FOLDER
        if not safe.is_dir():
            return
        folder = self._runtime_folder / record.id
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in safe.iterdir():
            path.rename(folder / path.name)
        safe.rmdir()

    def log_path(self, record: ContainerRecord) -> Path:
        return self._runtime_folder / record.id / f"{record.id}-json.log"

    def remove_layers(self, record: ContainerRecord) -> None:
        """Remove all of the container's files but its record."""
        for path in self.place(record).iterdir():
            if path.name != "record":
                remove_all(path)

    def remove_place(self, record: ContainerRecord) -> None:
        self.remove_remains(self.place(record))

    def remove_remains(self, place: Path) -> None:
        if place.is_dir():
            remove_all(place)


def _named(point: MountPoint, new_name: Callable[[], str]) -> MountPoint:
    if point.kind is MountKind.VOLUME and not point.source:
        return replace(point, source=new_name(), anonymous=True)
    return point


def check_source(point: MountPoint) -> None:
    """Have the source of a bind there, if it may be made. Raises Invalid."""
    source = Path(point.source)
    if source.exists():
        return
    if not point.make_source:
        raise Invalid(
            f'invalid mount config for type "bind": bind source path does not exist: {point.source}'
        )
    try:
        source.mkdir(parents=True)
    except OSError as exc:
        text = f"the source {point.source} of a mount cannot be made: {exc.strerror}"
        raise Invalid(f"{text}; make it, or name another") from exc


def _devices_and_limits(
    record: ContainerRecord,
) -> tuple[tuple[oci.Device, ...], tuple[oci.IoLimit, ...]]:
    config = record.config
    devices: dict[str, oci.Device] = {}
    if config.privileged:
        # What every container has is made anyway.
        own = {f"/dev/{name}" for name, _, _ in DEVICES} | {"/dev/ptmx", "/dev/console"}
        for device in _nodes_below("/dev", "/dev", "rwm", strict=False):
            if device.path not in own:
                devices[device.path] = device
    for request in config.devices:
        for device in _requested(request):
            devices[device.path] = device
    limits = []
    for limit in config.limits.io:
        found = _stat_device(limit.path)
        if not stat.S_ISBLK(found.st_mode):
            raise Invalid(f"{limit.path} is no block device: limits are of a disk, not of a file")
        limits.append(
            oci.IoLimit(
                device=f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}",
                read_bytes_per_second=limit.read_bytes or None,
                write_bytes_per_second=limit.write_bytes or None,
                read_operations_per_second=limit.read_operations or None,
                write_operations_per_second=limit.write_operations or None,
            )
        )
    return tuple(devices.values()), tuple(limits)


def _requested(request: DeviceRequest) -> Iterable[oci.Device]:
    found = _stat_device(request.source)
    if stat.S_ISDIR(found.st_mode):
        return _nodes_below(request.source, request.target, request.access, strict=True)
    device = _device(found, request.target, request.access)
    if device is None:
        raise Invalid(f"{request.source} is no device node")
    return [device]


def _stat_device(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as exc:
        # Not in the kernel's words: Docker's client would take them for the command's.
        missing = isinstance(exc, FileNotFoundError)
        reason = "is not on this host" if missing else f"cannot be looked at ({exc.strerror})"
        raise Invalid(f"error gathering device information: {path} {reason}") from exc


def _nodes_below(source: str, target: str, access: str, *, strict: bool) -> Iterable[oci.Device]:
    found: list[oci.Device] = []
    for folder, folders, names in os.walk(source):
        # The container has its own of these.
        folders[:] = [name for name in folders if name not in ("pts", "shm", "mqueue", "fd")]
        for name in names:
            path = f"{folder}/{name}"
            with suppress(OSError):
                device = _device(os.lstat(path), target + path.removeprefix(source), access)
                if device is not None and len(found) < DEVICES_MAX:
                    found.append(device)
    if strict and not found:
        raise Invalid(f"{source} holds no device node")
    return found


def _device(found: os.stat_result, target: str, access: str) -> oci.Device | None:
    if stat.S_ISCHR(found.st_mode):
        kind = "c"
    elif stat.S_ISBLK(found.st_mode):
        kind = "b"
    else:
        return None
    return oci.Device(
        path=target,
        type=kind,  # type: ignore[arg-type]
        major=os.major(found.st_rdev),
        minor=os.minor(found.st_rdev),
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        access=access,
    )


def _read_host_files() -> tuple[str, str]:
    texts = []
    for path in ("/etc/hosts", "/etc/resolv.conf"):
        try:
            texts.append(Path(path).read_text(errors="replace"))
        except OSError:
            texts.append("")
    return texts[0], texts[1]


def port_is_free(protocol: str, address: str, port: int) -> bool:
    """Whether no program of this host listens at the port."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as probe:
        if protocol == "tcp":
            # Connections that linger are no reason to refuse.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True
