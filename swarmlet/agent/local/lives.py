"""The lives of this host's own containers: a loop for each, from its start to its removal.

The lower half of the engine: what happens by itself. The operations are in engine.py. A shell
around lifecycle.py: look, decide, do, look again.
"""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Protocol

import trio

from overlay.topology import IPNetwork
from swarmlet.agent.container import UnusableTemplate, with_default_times
from swarmlet.agent.health import Health, watch_health
from swarmlet.agent.local import networks as nets
from swarmlet.agent.local.container import Check, Container, HealthLog, Phase
from swarmlet.agent.local.errors import Invalid, LocalError, NoSuch, StartFailed
from swarmlet.agent.local.lifecycle import Again, Follows, Remove, after_boot, after_exit
from swarmlet.agent.local.nettable import NetworkTable
from swarmlet.agent.local.records import ContainerRecord, Ended, MountKind
from swarmlet.agent.local.specs import MARK
from swarmlet.agent.local.starting import Starter, port_is_free
from swarmlet.agent.local.store import DamagedRecord, read_record, remove_record, write_record
from swarmlet.agent.local.uses import uses_of_assignment
from swarmlet.agent.local.volumes import BadVolume, Volumes, size_of
from swarmlet.agent.network import HostNetwork, NetworkFailed
from swarmlet.images.errors import ImageError
from swarmlet.images.reference import Digest
from swarmlet.images.store import ImageStore
from swarmlet.runtime.failures import RuntimeFailure
from swarmlet.runtime.spec import SpecError
from swarmlet.runtime.state import Status
from swarmlet.runtime.supervisor import Supervisor
from swarmlet.waiting import Bell, wait_any

logger = logging.getLogger(__name__)

#: Starts at once after a reboot: the disk and two cores have more to do then.
STARTS_MAX = 4
#: What a shell says of a command that is not there, that cannot be run, of all else.
NOT_FOUND, NOT_EXECUTABLE, FAILED = 127, 126, 128
#: What the world may do to a start.
WORLD = (
    RuntimeFailure,
    SpecError,
    NetworkFailed,
    ImageError,
    UnusableTemplate,
    BadVolume,
    LocalError,
    nets.Taken,
    OSError,
)


class Publish(Protocol):
    """Tells what happened to whoever listens to events."""

    def __call__(
        self, kind: str, action: str, id_: str, attributes: Mapping[str, str], /
    ) -> None: ...


class Lives:
    """One a host. load() first, then run(); everything else may be called from any task."""

    def __init__(
        self,
        *,
        supervisor: Supervisor,
        images: ImageStore,
        network: HostNetwork,
        state_dir: Path,
        host_name: str,
        publish: Publish,
        rng: random.Random,
    ) -> None:
        self._supervisor = supervisor
        self._images = images
        self._network = network
        self._folder = state_dir / "local" / "containers"
        self._publish = publish
        self._rng = rng
        self._nursery: trio.Nursery | None = None
        self._starts = trio.Semaphore(STARTS_MAX)
        self._table: dict[str, Container] = {}
        self._removed = Bell()
        self.volumes = Volumes(state_dir / "volumes")
        self.networks = NetworkTable(
            state_dir / "local" / "networks", network, self._records, publish, rng
        )
        self.starter = Starter(
            images=images,
            volumes=self.volumes,
            folder=self._folder,
            runtime_folder=supervisor.state_dir / "containers",
            netns_of=network.path_of,
            address_of=self.address_of,
            host_name=host_name,
            host_gateway=str(network.gateway[1]),
            find=self.find,
        )

    # Life.

    async def load(self) -> None:
        """Read what is on the disk, and take over what runs. Before the network is opened."""
        await trio.to_thread.run_sync(self.volumes.recover)
        await self.networks.load()
        for record in await trio.to_thread.run_sync(self._read_all):
            container = self._table[record.id] = Container(record)
            container.state = self._supervisor.containers.get(record.id)
            container.is_up = container.runs
        for state in list(self._supervisor.containers.values()):
            if MARK in state.spec.annotations and state.id not in self._table:
                logger.warning("container without a record removed id=%s", state.id)
                await self._remove_from_runtime(state.id)
        self._show_network()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Live with every container until cancelled, which leaves them running."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self._follow_supervisor)
            for container in list(self._table.values()):
                nursery.start_soon(self._live, container, True)
            task_status.started()
            await trio.sleep_forever()

    async def _follow_supervisor(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with self._supervisor.subscribe() as changes:
            task_status.started()
            async for id_, state in changes:
                container = self._table.get(id_)
                if container is not None:
                    container.state = state
                    container.bell.ring()

    def _read_all(self) -> list[ContainerRecord]:
        if not self._folder.is_dir():
            return []
        found = []
        for place in sorted(self._folder.iterdir()):
            try:
                record = read_record(place / "record", ContainerRecord)
            except DamagedRecord as exc:
                logger.error("container not read reason=%s", exc)
                continue
            if record is None:
                # Its record goes last, or never came: the rest is nobody's.
                self.starter.remove_remains(place)
            else:
                found.append(record)
        return found

    # Looking.

    @property
    def containers(self) -> Mapping[str, Container]:
        return self._table

    def _records(self) -> list[ContainerRecord]:
        return [container.record for container in self._table.values()]

    def find(self, reference: str) -> Container:
        """By id, by name, by the beginning of the id. Raises NoSuch, Invalid."""
        if (container := self._table.get(reference)) is not None:
            return container
        name = reference.removeprefix("/")
        for container in self._table.values():
            if container.name == name:
                return container
        found = [c for id_, c in self._table.items() if reference and id_.startswith(reference)]
        if len(found) > 1:
            raise Invalid(f"container {reference} is ambiguous: {len(found)} ids begin so")
        if not found:
            raise NoSuch("container", reference)
        return found[0]

    @property
    def images_in_use(self) -> set[str]:
        """Digests of the images that containers were made from."""
        return {container.record.image for container in self._table.values()}

    def address_of(self, record: ContainerRecord) -> str:
        """The first address of the container; "" if it has none now."""
        for a in record.config.attachments:
            if a.address:
                return a.address
        address = self._network.gateway_address_of(record.id)
        return str(address) if address is not None else ""

    @property
    def gateway(self) -> IPNetwork:
        return self._network.gateway

    def bridge_address_of(self, container: Container) -> str:
        """Its address on the host's bridge; "" if it has none."""
        address = self._network.gateway_address_of(container.id)
        return str(address) if address is not None else ""

    async def size_of(self, container: Container) -> tuple[int, int]:
        """Bytes of the container's own layer, and of its image."""
        upper = Path(self.starter.upper(container.record))
        own = await trio.to_thread.run_sync(size_of, upper)
        try:
            image = self._images.find(Digest(container.record.image))
        except ImageError:
            return own, 0
        return own, self._images.summary(image).unpacked_size or image.size

    def log_path(self, container: Container) -> str:
        return str(self.starter.log_path(container.record))

    # Starting.

    async def _start(self, container: Container) -> None:
        """The caller has the lock."""
        before = container.record
        container.is_starting = True
        try:
            await self._make(container)
        except WORLD as exc:
            failure = _start_failure(exc)
            await self._unmake(container, before, failure)
            if failure is exc:
                raise
            raise failure from exc
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._unmake(container, before, None)
            raise
        finally:
            container.is_starting = False
            container.bell.ring()
        logger.info("local container started id=%s name=%s", container.id, container.name)
        self._tell(container, "start")

    async def _make(self, container: Container) -> None:
        record = container.record
        layers = await self.starter.layers(record)
        await self.starter.prepare(record, layers)
        await self._connect(container)
        container.record = container.record.changed(wanted=True, ended=None)
        container.error = ""
        await self._store(container)
        spec = await self.starter.spec(container.record, layers)
        if container.id in self._supervisor.containers:
            await trio.to_thread.run_sync(self.starter.save_log, record)
            await self._supervisor.remove(container.id, force=True)
        await trio.to_thread.run_sync(self.starter.restore_log, record)
        await self._supervisor.create(container.id, spec)
        for attacher in container.attachers:
            attacher.give(await self._supervisor.attach(container.id))
        container.attachers.clear()
        await self._supervisor.start(container.id)
        container.state = self._supervisor.containers[container.id]
        container.record = container.record.changed(started_at=container.state.started_at)
        container.health = HealthLog(
            Health.STARTING if _has_check(container.record) else Health.NONE
        )

    async def _connect(self, container: Container) -> None:
        """Give the container its addresses and ports, and wait for its sandbox."""
        record = container.record
        others = [r for r in self._records() if r.id != record.id]
        if not container.is_up:
            record = nets.attach(record, self.networks.table, others)
            uses = [use for other in others for use in nets.uses_of(other)]
            uses += uses_of_assignment(self._network.assignment)
            record = record.changed(ports=nets.publish(record, uses, port_is_free))
            container.record, container.is_up = record, True
        if nets.has_sandbox(record):
            self._show_network()
            await self._network.wait_attached(record.id)

    async def _unmake(
        self, container: Container, before: ContainerRecord, failure: LocalError | None
    ) -> None:
        """A start has failed: the container is as it was, with the reason."""
        with trio.CancelScope(shield=True):
            if container.id in self._supervisor.containers:
                await trio.to_thread.run_sync(self.starter.save_log, before)
                await self._remove_from_runtime(container.id)
            self._disconnect(container)
            ended = before.ended
            if failure is not None:
                container.error = str(failure)
                code = failure.code if isinstance(failure, StartFailed) else FAILED
                ended = Ended(code=code, at=time.time(), error=str(failure))
                logger.warning("local container not started id=%s reason=%s", before.id, failure)
            container.state = None
            container.record = nets.detach(before).changed(wanted=before.wanted, ended=ended)
            await self._store(container)

    def _disconnect(self, container: Container) -> None:
        container.is_up = False
        container.record = nets.detach(container.record)
        self._show_network()

    def _show_network(self) -> None:
        up = [c.record for c in self._table.values() if c.is_up]
        self._network.set_local(nets.topology_of(up, self.networks.table))

    # The loop.

    async def _live(self, container: Container, was_there: bool) -> None:
        """Follow one container until it is removed."""
        if was_there and not await self._resume(container):
            return
        while not container.is_gone:
            rung = container.bell.rung
            if container.is_starting:
                await container.bell.wait_beyond(rung)
            elif container.runs:
                await self._watch(container, rung)
            elif container.is_up and not container.restart_at:
                await self._end(container)
            elif container.restart_at:
                await self._restart_when_due(container, rung)
            else:
                await container.bell.wait_beyond(rung)

    async def _resume(self, container: Container) -> bool:
        """Decide what becomes of it when the daemon starts; False: it is gone."""
        record, state = container.record, container.state
        if record.removing:
            await self._finish_removal(container, volumes=record.config.auto_remove)
            return False
        if container.runs:
            if _has_check(record):
                container.health = HealthLog(Health.STARTING)
            logger.info("local container adopted id=%s name=%s", record.id, record.name)
            return True
        if state is not None and state.status is not Status.EXITED:
            await self._remove_from_runtime(record.id)  # cut off between making and starting
            state = None
        end = state.exit if state is not None else None
        if record.wanted and end is not None and not end.lost:
            container.is_up = True  # it ended while the daemon was away: the loop sees to it
            return True
        code = end.code if end is not None else container.code
        follows = after_boot(
            record.config.restart,
            code=code if record.wanted else container.code,
            restarts=record.restarts,
            was_running=record.wanted,
            was_started=record.wanted or bool(record.started_at),
            stopped=record.stopped,
            auto_remove=record.config.auto_remove,
        )
        if record.wanted:
            at = end.finished_at if end is not None else time.time()
            record = nets.detach(record).changed(
                wanted=False, ended=Ended(code=code, at=at), started_at=record.started_at or at
            )
            container.record = record
        return await self._follow(container, follows, store=True)

    async def _watch(self, container: Container, rung: int) -> None:
        """While it runs: wait for a change, and ask after its health."""
        if not _has_check(container.record) or container.phase is Phase.PAUSED:
            await container.bell.wait_beyond(rung)
            return
        await wait_any([lambda: self._wait_end(container), lambda: self._check_health(container)])

    async def _wait_end(self, container: Container) -> None:
        while container.runs and container.phase is Phase.RUNNING:
            await container.bell.wait_beyond(container.bell.rung)

    async def _check_health(self, container: Container) -> None:
        check = container.record.config.healthcheck
        assert check is not None
        assert container.state is not None
        spec = container.state.spec
        check = with_default_times(check)
        async with aclosing(watch_health(self._supervisor, container.id, spec, check)) as verdicts:
            async for verdict in verdicts:
                log = container.health
                passed = verdict.health is Health.HEALTHY
                log.failures = 0 if passed else log.failures + 1
                log.checks.append(Check(time.time(), passed, verdict.output))
                if verdict.health is not log.status:
                    log.status = verdict.health
                    self._tell(container, f"health_status: {verdict.health.value}")
                    container.bell.ring()

    async def _end(self, container: Container) -> None:
        """Its process has ended: note how, and do what follows."""
        async with container.lock:
            if container.runs or container.is_gone or not container.is_up:
                return
            record, state = container.record, container.state
            end = state.exit if state is not None else None
            code = end.code if end is not None else FAILED
            at = end.finished_at if end is not None else time.time()
            started_at = state.started_at if state is not None else record.started_at
            oom = end.oom_killed if end is not None else False
            container.record = record.changed(
                started_at=started_at, ended=Ended(code=code, at=at, oom_killed=oom)
            )
            container.exits += 1
            container.bell.ring()
            follows = after_exit(
                record.config.restart,
                container.streak,
                code=code,
                ran_seconds=at - started_at,
                stopped=record.stopped,
                auto_remove=record.config.auto_remove,
            )
            if oom:
                self._tell(container, "oom")
            self._tell(container, "die", exitCode=str(code))
            alive = await self._follow(container, follows, store=True)
        if alive:
            container.bell.ring()

    async def _follow(self, container: Container, follows: Follows, *, store: bool) -> bool:
        """Do what *follows*; False: it is gone. The caller has the lock, or is alone."""
        match follows:
            case Again(streak):
                container.streak = streak
                container.restart_at = time.time() + streak.pause
                container.record = container.record.changed(restarts=streak.restarts)
                return True
            case Remove():
                self._disconnect(container)
                await self._finish_removal(container, volumes=True)
                return False
        self._disconnect(container)
        container.record = container.record.changed(wanted=False)
        if store:
            await self._store(container)
        return True

    async def _restart_when_due(self, container: Container, rung: int) -> None:
        with trio.move_on_after(max(0.0, container.restart_at - time.time())):
            await container.bell.wait_beyond(rung)
            return
        async with self._starts, container.lock:
            if not container.restart_at or container.is_gone:
                return  # somebody stopped or removed it meanwhile
            container.restart_at = 0.0
            try:
                await self._start(container)
            except (StartFailed, LocalError) as exc:
                await self._start_failed(container, exc)

    async def _start_failed(self, container: Container, exc: LocalError) -> None:
        """A start that nobody waits for has failed: it counts as a run that failed."""
        code = exc.code if isinstance(exc, StartFailed) else FAILED
        follows = after_exit(
            container.record.config.restart,
            container.streak,
            code=code,
            ran_seconds=0.0,
            stopped=container.record.stopped,
            auto_remove=container.record.config.auto_remove,
        )
        await self._follow(container, follows, store=True)

    # Removing.

    async def _finish_removal(self, container: Container, *, volumes: bool) -> None:
        """Take everything of it away; the record goes last. The caller has the lock."""
        record = container.record = container.record.changed(removing=True)
        with trio.CancelScope(shield=True):
            await self._store(container)
            await self._remove_from_runtime(record.id)
            await trio.to_thread.run_sync(self._remove_files, record, volumes)
        self._table.pop(record.id, None)
        container.is_gone = True
        for attacher in container.attachers:
            attacher.give(None)
        container.attachers.clear()
        self._show_network()
        container.bell.ring()
        self._removed.ring()
        logger.info("local container removed id=%s name=%s", record.id, record.name)
        self._tell(container, "destroy")

    def _remove_files(self, record: ContainerRecord, volumes: bool) -> None:
        if volumes:
            used = self.volumes_in_use(besides=record.id)
            for point in record.config.mounts:
                if point.anonymous and point.source not in used:
                    with suppress(FileNotFoundError):
                        self.volumes.remove(point.source)
        self.starter.remove_layers(record)
        remove_record(self.starter.place(record) / "record")
        self.starter.remove_place(record)

    async def _remove_from_runtime(self, id_: str) -> None:
        try:
            await self._supervisor.remove(id_, force=True)
        except (RuntimeFailure, OSError) as exc:
            logger.warning("container not removed id=%s reason=%s", id_, exc)

    def _refuse_gone(self, container: Container) -> None:
        if container.is_gone or container.record.removing:
            raise NoSuch("container", container.name)

    def volumes_in_use(self, *, besides: str = "") -> dict[str, list[str]]:
        """Containers of each volume that is in use, tasks' ones included, by its name."""
        used: dict[str, list[str]] = {}
        for container in list(self._table.values()):
            if container.id != besides:
                for point in container.record.config.mounts:
                    if point.kind is MountKind.VOLUME:
                        used.setdefault(point.source, []).append(container.id)
        folder = f"{self.volumes.folder}/"
        for state in self._supervisor.containers.values():
            if state.id not in self._table:
                for mount in state.spec.mounts:
                    if mount.type == "volume" and mount.source.startswith(folder):
                        name = mount.source.removeprefix(folder).partition("/")[0]
                        used.setdefault(name, []).append(state.id)
        return used

    # What is kept, shown and told.

    async def _store(self, container: Container) -> None:
        path = self.starter.place(container.record) / "record"
        await trio.to_thread.run_sync(write_record, path, container.record)

    def _tell(self, container: Container, action: str, **more: str) -> None:
        record = container.record
        attributes = {
            **record.config.labels,
            "image": record.config.image,
            "name": record.name,
            **more,
        }
        self._publish("container", action, record.id, attributes)

    def tell(self, container: Container, action: str, **more: str) -> None:
        """Tell of something that was done to the container by somebody else (exec, cp)."""
        self._tell(container, action, **more)


def _has_check(record: ContainerRecord) -> bool:
    check = record.config.healthcheck
    return check is not None and bool(check.test) and check.test[0] != "NONE"


def _start_failure(exc: Exception) -> LocalError:
    """What the user is told, in words that Docker's client knows the exit code by."""
    if isinstance(exc, LocalError):
        return exc
    text, code = str(exc), FAILED
    if isinstance(exc, RuntimeFailure) and exc.step == "execute":
        if exc.errno == errno.ENOENT:
            text, code = f"{text}: executable file not found in $PATH", NOT_FOUND
        elif exc.errno == errno.EACCES:
            text, code = f"{text}: permission denied", NOT_EXECUTABLE
        else:
            code = NOT_EXECUTABLE
    elif isinstance(exc, nets.Taken):
        text = f"driver failed programming external connectivity: {text}"
    return StartFailed(text, code)
