"""What may be asked of the containers of this host alone: Docker's verbs.

A shell; the lower half, what containers do by themselves, is in lives.py. Every operation raises
LocalError with Docker's status and a text that says what to do, or what the image store and the
runtime raise. Operations on one container exclude each other where they must.
"""

from __future__ import annotations

import logging
import signal as signals
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from swarmlet.agent.local import networks as nets
from swarmlet.agent.local.container import Attacher, Container, Phase
from swarmlet.agent.local.errors import Conflict, Invalid, LocalError, NoSuch
from swarmlet.agent.local.lifecycle import Streak
from swarmlet.agent.local.lives import Lives
from swarmlet.agent.local.names import generate, is_name, new_id
from swarmlet.agent.local.records import (
    OF_CONTAINER,
    Attachment,
    ContainerConfig,
    ContainerRecord,
    Limits,
    MountKind,
    Restart,
    RestartPolicy,
    VolumeRecord,
)
from swarmlet.agent.local.rootfs import Subject
from swarmlet.agent.local.specs import as_image, merge, resources_of
from swarmlet.images.reference import Digest, Reference
from swarmlet.runtime.failures import NoSuchContainer
from swarmlet.runtime.sessions import Session
from swarmlet.runtime.spec import SpecError, signal_number
from swarmlet.runtime.state import ContainerState

logger = logging.getLogger(__name__)

#: Containers at once; each has a loop and a folder.
CONTAINERS_MAX = 10_000
#: Beside the containers' folder, where layers of commits lie while they are written.
COMMITS = "commits"
#: Signals that mean "end", so that no restart follows.
ENDING = {"SIGKILL", "SIGTERM", "SIGINT", "SIGQUIT"}


class Engine(Lives):
    """Operations on the containers of the table."""

    # Creating.

    async def create(self, config: ContainerConfig, *, name: str = "") -> Container:
        """Make a container, which is not started.

        Raises:
            LocalError, UnusableTemplate: it cannot be as asked.
            ImageError: the image is not here.
        """
        image = self._images.resolve(config.image)
        merged = merge(config, image.config)
        if len(self._table) >= CONTAINERS_MAX:
            raise Conflict(f"{CONTAINERS_MAX} containers are here already: remove some first")
        name = name.removeprefix("/")
        taken = {c.name: c.id for c in self._table.values()}
        if name and not is_name(name):
            raise Invalid(
                f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed, "
                "two to 128 characters"
            )
        if name in taken:
            raise Conflict(
                f'Conflict. The container name "/{name}" is already in use by container '
                f'"{taken[name]}". You have to remove (or rename) that container to be able to '
                "reuse that name."
            )
        record = ContainerRecord(
            id=new_id(self._rng),
            name=name or generate(taken, self._rng),
            created_at=time.time(),
            config=self._resolve(merged),
            image=image.digest,
            image_id=image.id,
        )
        self._check(record)
        container = Container(record)
        # The name is taken before the disk is asked: another call may want the same one.
        self._table[record.id] = container
        try:
            await trio.to_thread.run_sync(self._make_volumes, record)
            await self._store(container)
        except BaseException:
            self._table.pop(record.id, None)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self.starter.remove_place, record)
            raise
        assert self._nursery is not None
        self._nursery.start_soon(self._live, container, False)
        logger.info("local container created id=%s name=%s", record.id, record.name)
        self._tell(container, "create")
        return container

    def _resolve(self, config: ContainerConfig) -> ContainerConfig:
        """Put ids in the place of names, and add what other containers lend."""
        config = replace(
            config,
            mounts=self.starter.all_mounts(config, lambda: new_id(self._rng)),
            attachments=self.networks.resolve(config),
        )
        return replace(
            config,
            network=self._resolve_mode(config.network),
            ipc=self._resolve_mode(config.ipc),
            pid=self._resolve_mode(config.pid),
        )

    def _resolve_mode(self, mode: str) -> str:
        """`container:NAME` with the id, which stays when the name changes."""
        if not mode.startswith(OF_CONTAINER):
            return mode
        return f"{OF_CONTAINER}{self.find(mode.removeprefix(OF_CONTAINER)).id}"

    def _check(self, record: ContainerRecord) -> None:
        """Refuse at creation what every start would refuse. Raises LocalError."""
        try:
            self.starter.check(record)
        except SpecError as exc:
            raise Invalid(str(exc)) from exc

    def _make_volumes(self, record: ContainerRecord) -> None:
        for point in record.config.mounts:
            if point.kind is MountKind.VOLUME:
                self.volumes.create(
                    point.source, labels=point.labels, options={}, anonymous=point.anonymous
                )

    # Starting.

    async def start(self, container: Container) -> bool:
        """Start it; False if it runs already.

        Raises:
            StartFailed: with the reason, and a shell's exit code for it.
            LocalError: it cannot be started as things are.
        """
        async with container.lock:
            if container.phase is Phase.PAUSED:
                raise Conflict("cannot start a paused container, try unpause instead")
            if container.runs:
                return False
            self._refuse_gone(container)
            container.streak = Streak()
            container.record = container.record.changed(stopped=False, restarts=0)
            try:
                await self._start(container)
            except LocalError:
                if container.record.config.auto_remove:
                    await self._finish_removal(container, volumes=True)
                raise
            return True

    # Stopping.

    async def stop(
        self, container: Container, *, signal: str = "", grace: float | None = None
    ) -> bool:
        """End it, and let it rest; False if it rested already."""
        if not await self._let_rest(container):
            return False
        if container.runs:
            with suppress(NoSuchContainer):
                await self._supervisor.stop(container.id, signal or None, _endless(grace))
        await self._wait_until(container, lambda: not container.runs and not container.is_up)
        self._tell(container, "stop")
        return True

    async def _let_rest(self, container: Container) -> bool:
        """From now on no restart is wanted; False if it rests."""
        async with container.lock:
            if not container.runs and not container.restart_at:
                return False
            container.record = container.record.changed(stopped=True)
            await self._store(container)
            if container.restart_at:
                container.restart_at = 0.0
                self._disconnect(container)
                container.record = container.record.changed(wanted=False)
                await self._store(container)
                container.bell.ring()
            return True

    async def restart(
        self, container: Container, *, signal: str = "", grace: float | None = None
    ) -> None:
        """Stop it if it runs, and start it."""
        auto_remove = container.record.config.auto_remove
        if container.runs or container.restart_at:
            if auto_remove:
                self._set_auto_remove(container, False)
            try:
                await self.stop(container, signal=signal, grace=grace)
            finally:
                if auto_remove:
                    self._set_auto_remove(container, True)
        await self.start(container)
        self._tell(container, "restart")

    def _set_auto_remove(self, container: Container, value: bool) -> None:
        config = replace(container.record.config, auto_remove=value)
        container.record = container.record.changed(config=config)

    async def kill(self, container: Container, signal: str) -> None:
        """Send *signal*. One that means the end lets the container rest. Raises Conflict."""
        if not container.runs:
            raise Conflict(
                f"cannot kill container: {container.name}: container {container.id} is not running"
            )
        name = _signal_name(signal)
        if name in ENDING or name == _signal_name(container.record.config.stop_signal or "TERM"):
            container.record = container.record.changed(stopped=True)
        self._tell(container, "kill", signal=str(signal_number(name)))
        await self._supervisor.kill(container.id, name)
        if name == "SIGKILL":
            await self._wait_until(container, lambda: not container.runs and not container.is_up)

    async def pause(self, container: Container) -> None:
        if container.phase is not Phase.RUNNING:
            raise Conflict(f"container {container.name} is {container.phase}, not running")
        await self._supervisor.pause(container.id)
        container.state = self._supervisor.containers[container.id]
        container.bell.ring()
        self._tell(container, "pause")

    async def unpause(self, container: Container) -> None:
        if container.phase is not Phase.PAUSED:
            raise Conflict(f"container {container.name} is not paused")
        await self._supervisor.unpause(container.id)
        container.state = self._supervisor.containers[container.id]
        container.bell.ring()
        self._tell(container, "unpause")

    # Waiting and attaching.

    def waiter(
        self, container: Container, condition: str = "not-running"
    ) -> Callable[[], Awaitable[int]]:
        """Return what waits for *condition*, seen from now, and returns the exit code.

        The conditions are not-running, next-exit and removed.
        """
        exits = container.exits
        conditions: dict[str, Callable[[], bool]] = {
            "not-running": lambda: not (container.runs or container.restart_at or container.is_up),
            "next-exit": lambda: container.exits > exits or container.is_gone,
            "removed": lambda: container.is_gone,
        }

        async def wait() -> int:
            await self._wait_until(container, conditions[condition])
            return container.code

        return wait

    async def _wait_until(self, container: Container, holds: Callable[[], bool]) -> None:
        while not (holds() or container.is_gone):
            await container.bell.wait_beyond(container.bell.rung)

    async def attach(self, container: Container) -> Session:
        """Return its streams: of the present run, or as soon as the next one is made.

        Raises NoSuch when it is removed before.
        """
        if container.runs:
            return await self._supervisor.attach(container.id)
        attacher = Attacher()
        container.attachers.append(attacher)
        try:
            await attacher.ready.wait()
        except BaseException:
            if attacher in container.attachers:
                container.attachers.remove(attacher)
            if attacher.session is not None:
                await attacher.session.aclose()
            raise
        if attacher.session is None:
            raise NoSuch("container", container.name)
        return attacher.session

    # Files.

    @asynccontextmanager
    async def files(self, container: Container) -> AsyncIterator[Subject]:
        """Give the container's files. While it does not run nothing else is done to it."""
        layers = await self.starter.layers(container.record)
        while not container.runs:
            async with container.lock:
                if container.runs:
                    continue
                self._refuse_gone(container)
                yield self._subject(container, layers)
                return
        yield self._subject(container, layers)

    def _subject(self, container: Container, layers: tuple[str, ...]) -> Subject:
        view = self.starter.view(container, layers)
        return Subject(view, Path(self.starter.upper(container.record)), layers)

    def files_of_task(self, state: ContainerState) -> Subject:
        """The files of a container that is a task's."""
        return self.starter.subject_of_task(state)

    async def commit(
        self,
        base: str,
        subject: Subject,
        config: ContainerConfig,
        *,
        reference: Reference | None,
        comment: str,
        author: str,
        changes: list[str],
    ) -> str:
        """Make an image of a container that was made from *base*; return its id."""
        from swarmlet.agent.local.commits import commit  # only who commits pays for it

        image = self._images.find(Digest(base))
        return await commit(
            self._images,
            image.digest,
            subject.upper,
            as_image(config, image.config),
            reference=reference,
            comment=comment,
            author=author,
            changes=changes,
            folder=self._folder.parent / COMMITS,
        )

    # Volumes.

    async def create_volume(
        self, name: str, *, labels: Mapping[str, str], options: Mapping[str, str]
    ) -> VolumeRecord:
        """Make the volume, or return the one that is there. Raises BadVolume, OSError."""
        is_anonymous = not name
        make = partial(
            self.volumes.create,
            name or new_id(self._rng),
            labels=labels,
            options=options,
            anonymous=is_anonymous,
        )
        record = await trio.to_thread.run_sync(make)
        self._publish("volume", "create", record.name, {"driver": "local"})
        return record

    async def remove_volume(self, name: str) -> int:
        """Remove it and return its size. Raises Conflict while a container has it, OSError."""
        users = self.volumes_in_use().get(name)
        if users:
            raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
        size = await trio.to_thread.run_sync(self.volumes.remove, name)
        self._publish("volume", "destroy", name, {"driver": "local"})
        return size

    # Changing.

    async def rename(self, container: Container, name: str) -> None:
        name = name.removeprefix("/")
        if not is_name(name):
            raise Invalid(
                f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
            )
        if name == container.name:
            raise Invalid("Renaming a container with the same name as its current name")
        for other in self._table.values():
            if other.name == name:
                raise Conflict(
                    f'Conflict. The container name "/{name}" is already in use by container '
                    f'"{other.id}". You have to remove (or rename) that container to be able to '
                    "reuse that name."
                )
        before = container.name
        container.record = container.record.changed(name=name)
        await self._store(container)
        self._show_network()
        self._tell(container, "rename", oldName=f"/{before}")

    async def update(
        self, container: Container, *, limits: Limits | None, restart: RestartPolicy | None
    ) -> None:
        """Change limits, also of a running container, and the restart policy."""
        async with container.lock:
            config = container.record.config
            if restart is not None:
                if config.auto_remove and restart.name is not Restart.NO:
                    raise Invalid("Restart policy cannot be updated because AutoRemove is enabled")
                config = replace(config, restart=restart)
            if limits is not None:
                config = replace(config, limits=limits)
                resources = resources_of(limits)
                if container.runs and container.state is not None:
                    running = container.state.spec.resources
                    await self._supervisor.update(container.id, replace(resources, io=running.io))
            container.record = container.record.changed(config=config)
            await self._store(container)
        self._tell(container, "update")

    # Removing.

    async def remove(
        self, container: Container, *, force: bool = False, volumes: bool = False
    ) -> None:
        """Remove it for good; with *volumes* its anonymous ones as well. Raises Conflict."""
        if container.runs or container.restart_at:
            if not force:
                what = "paused" if container.phase is Phase.PAUSED else str(container.phase)
                raise Conflict(
                    f'cannot remove container "{container.name}": container is {what}: stop the '
                    "container before removing or force remove"
                )
            if await self._let_rest(container) and container.runs:
                with suppress(NoSuchContainer):
                    self._tell(container, "kill", signal="9")
                    await self._supervisor.kill(container.id, "SIGKILL")
            await self._wait_until(container, lambda: not container.runs and not container.is_up)
        async with container.lock:
            if container.is_gone:
                return
            if container.runs:
                raise Conflict(f"container {container.name} was started again meanwhile")
            await self._finish_removal(container, volumes=volumes)

    # Networks of a container.

    async def connect(self, container: Container, network: str, asked: Attachment) -> None:
        """Put the container on another network, also while it runs."""
        async with container.lock:
            record = self.networks.connected(container.record, network, asked)
            await self._reconnect(container, record)
        self.networks.tell("connect", network, container.id)

    async def disconnect(self, container: Container, network: str) -> None:
        async with container.lock:
            record = self.networks.disconnected(container.record, network)
            await self._reconnect(container, record)
        self.networks.tell("disconnect", network, container.id)

    async def _reconnect(self, container: Container, record: ContainerRecord) -> None:
        if container.is_up:
            others = [r for r in self._records() if r.id != record.id]
            record = nets.attach(record, self.networks.table, others)
        container.record = record
        await self._store(container)
        if container.is_up:
            self._show_network()
            await self._network.wait_attached(record.id)


def _endless(grace: float | None) -> float | None:
    """Docker's -1: as long as it takes."""
    return float("inf") if grace is not None and grace < 0 else grace


def _signal_name(text: str) -> str:
    """Raises SpecError."""
    return signals.Signals(signal_number(text)).name
