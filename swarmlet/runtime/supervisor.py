"""The containers of this host, for the rest of the daemon: create, start, wait, stop, remove.

A Trio shell around plan.py (what to do), hostside.py (files and groups, in a worker thread) and the
zygote (processes). Its own memory is a table of frozen `ContainerState`s; the truth is the zygote's
list and the state files, from which `run` builds the table again after a restart.

    supervisor = Supervisor(run_dir=…, state_dir=…, cgroup_parent="swarmlet")
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        await supervisor.create("web.1", spec)
        await supervisor.start("web.1")
        status = await supervisor.wait("web.1")
        await supervisor.remove("web.1")

Every operation raises RuntimeFailure with what, why and what to do; a failed `create` leaves
nothing behind. Operations on one container exclude each other; `wait`, `kill` and `stop` do not
wait for one.
"""

from __future__ import annotations

import errno
import logging
import marshal
import os
import secrets
import signal as signals
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import trio

from swarmlet.runtime import cgroups, idranges
from swarmlet.runtime.decoding import SpecError
from swarmlet.runtime.failures import NoSuchContainer, RuntimeFailure
from swarmlet.runtime.host import Host
from swarmlet.runtime.idranges import IdRanges, read_ranges, refusal
from swarmlet.runtime.logs import LogLine, read_logs
from swarmlet.runtime.plan import Plan, exec_plan, map_text, plan, removal
from swarmlet.runtime.rootfs import Place
from swarmlet.runtime.seccomp import Filters
from swarmlet.runtime.sessions import Pipes, Session, TerminalStream, close_all
from swarmlet.runtime.spec import (
    CONTAINER_ID,
    ContainerSpec,
    IdMapping,
    Process,
    Resources,
    signal_number,
    validate_resources,
)
from swarmlet.runtime.state import ContainerState, ExitStatus, Status, write_state
from swarmlet.runtime.statistics import ContainerStats, parse_interfaces
from swarmlet.runtime.steps import ChildStep, wire
from swarmlet.runtime.table import ContainerTable, ExecEnd, Record

logger = logging.getLogger(__name__)

#: Seconds for the clean-up of a failed or cancelled creation.
CLEANUP_TIMEOUT = 30.0
MARSHAL_VERSION = 4


class Supervisor(ContainerTable):
    """Operations on the containers of the table."""

    def __init__(
        self,
        *,
        run_dir: Path,
        state_dir: Path,
        cgroup_parent: str,
        host: Host | None = None,
        id_ranges: IdRanges | None = None,
    ) -> None:
        super().__init__(
            run_dir=run_dir, state_dir=state_dir, cgroup_parent=cgroup_parent, host=host
        )
        self.id_ranges = id_ranges or read_ranges()
        # Anywhere: a network that an earlier daemon gave away still has its range.
        first = secrets.randbelow(self.id_ranges.count // self.id_ranges.size)
        self._range_given = self.id_ranges.base + first * self.id_ranges.size
        self._filters = Filters(self.host)
        #: why containers here cannot have user namespaces of their own; "" if they can
        self.user_namespaces_refused = refusal(self.host, str(self.state_dir))

    # Creation.

    async def create(self, container_id: str, spec: ContainerSpec, *, start: bool = False) -> None:
        """Make the container up to "created": everything but execve is done.

        With *start* its command is executed at once, which is a millisecond faster than to call
        `start` next; a command that cannot be executed is then a failed creation.

        Raises:
            SpecError: the spec cannot be meant, or this host cannot do it.
            RuntimeFailure: a step failed; nothing is left behind.
        """
        if not CONTAINER_ID.fullmatch(container_id):
            raise SpecError(f"id: {container_id!r} must be letters, digits, '_', '.' and '-'")
        if container_id in self._records:
            raise RuntimeFailure(container_id, f"the container {container_id} exists already")
        place = self._place(container_id)
        if spec.log.driver == "journald" and not await trio.Path(self.journal).exists():
            raise SpecError(f"log.driver: no journal listens at {self.journal}; use json-file")
        spec = await self._with_ids(spec)
        made = await self._plan(spec, place)
        state = ContainerState(
            id=container_id,
            spec=spec.without_secrets(),
            status=Status.CREATING,
            created_at=time.time(),
            boot_id=self._boot_id,
        )
        if container_id in self._records:
            raise RuntimeFailure(container_id, f"the container {container_id} exists already")
        record = self._records[container_id] = Record(state)
        # Without a checkpoint between the entry and the try: a cancellation would leave it.
        record.lock.acquire_nowait()
        try:
            trees = await self._execute(container_id, made.prepare, first=state)
            try:
                await self._bear(record, made, spec, trees, start=start)
            finally:
                close_all(trees)
        except BaseException:
            with trio.move_on_after(CLEANUP_TIMEOUT, shield=True):
                await self._forget(container_id)
                await self._remove_remains(container_id)
            raise
        finally:
            record.lock.release()
        done = "started" if start else "created"
        logger.info("container %s id=%s pid=%d", done, container_id, record.state.pid)

    async def _with_ids(self, spec: ContainerSpec) -> ContainerSpec:
        """Return *spec* with the ids of its user namespace: an owner's, or a range of its own."""
        namespaces = spec.namespaces
        if spec.uid_mappings or namespaces.user not in ("private", "network"):
            return spec
        mapping = None
        if namespaces.user == "network":
            folder = str(self.state_dir)
            read = partial(idranges.read_owner, namespaces.network, folder)
            mapping = await trio.to_thread.run_sync(read)
            if mapping is None:
                namespaces = replace(namespaces, user="private")
        mapping = mapping or self._next_range()
        return replace(
            spec, namespaces=namespaces, uid_mappings=(mapping,), gid_mappings=(mapping,)
        )

    def _next_range(self) -> IdMapping:
        used = (m.host_id for s in self.containers.values() for m in s.spec.uid_mappings)
        mapping = self.id_ranges.free(used, after=self._range_given)
        self._range_given = mapping.host_id
        return mapping

    @asynccontextmanager
    async def new_network(self) -> AsyncIterator[int]:
        """Within the block there is a descriptor of a new network namespace, to be kept elsewhere.

        It belongs to a user namespace of its own, of which a container with namespaces.user
        "network" is root: so it may ping with a raw socket, or with CAP_NET_ADMIN add routes.
        """
        ids = map_text((self._next_range(),))
        answer = await self._request("network", id="", uid_map=ids, gid_map=ids)
        await self._raise_failed("", answer, [])
        try:
            yield answer.descriptors[0]
        finally:
            close_all(answer.descriptors)

    async def _plan(self, spec: ContainerSpec, place: Place) -> Plan:
        filter_ = await self._filter(spec, spec.process)
        return plan(spec, self.host, self.driver, place, filter_)

    async def _filter(self, spec: ContainerSpec, process: Process) -> bytes | None:
        bounding = process.capabilities.bounding
        if self._filters.is_made(spec.seccomp, bounding):
            return self._filters.program(spec.seccomp, bounding)
        return await trio.to_thread.run_sync(self._filters.program, spec.seccomp, bounding)

    async def _bear(
        self,
        record: Record,
        made: Plan,
        spec: ContainerSpec,
        trees: list[int],
        *,
        start: bool,
    ) -> None:
        container_id = record.state.id
        plan_fd = _plan_file(
            made.birth, made.launch, wait=not start, mapped=bool(made.clone.uid_map)
        )
        try:
            answer = await self._request(
                "create",
                [plan_fd, *trees],
                id=container_id,
                start=start,
                clone=asdict(made.clone),
                cgroup=self.driver.unified(container_id),
                **self._streams(container_id, spec),
            )
        finally:
            os.close(plan_fd)
        await self._raise_failed(container_id, answer, [*made.birth, *made.launch])
        await self._take_facts(record, answer.fields)
        if record.early_exit is not None:
            early = record.early_exit
            await self._note_exit(record, early["wait_status"], early["exited_at"])

    async def start(self, container_id: str) -> None:
        """Let the created container execute its command; return when execve succeeded.

        A command that cannot be executed ends the container with code 127, and the failure says
        why: `command "foo" not found in the image`.
        """
        record = self._find(container_id)
        async with record.lock:
            state = record.state
            if state.status is not Status.CREATED:
                text = f"the container is {state.status.value}, only a created one can be started"
                raise RuntimeFailure(container_id, text)
            answer = await self._request("start", id=container_id)
            spec = state.spec
            if "failed" in answer.fields:
                made = await self._plan(spec, self._place(container_id))
                await self._raise_failed(container_id, answer, [*made.birth, *made.launch])
            facts = answer.fields
            if record.state.exit is None:
                await self._take_facts(record, facts)
            else:
                self._change(record, started_at=facts["started_at"])
        logger.info("container started id=%s pid=%d", container_id, record.state.pid)

    async def wait(self, container_id: str) -> ExitStatus:
        """Wait until the container has exited and its output is in the log."""
        record = self._find(container_id)
        await record.exited.wait()
        if record.state.exit is None:
            raise NoSuchContainer(container_id, f"the container {container_id} was removed")
        return record.state.exit

    # Signals.

    async def kill(self, container_id: str, signal: str | int = "SIGKILL") -> None:
        """Send *signal* to the container's first process."""
        record = self._find(container_id)
        if not record.state.status.alive:
            raise RuntimeFailure(container_id, f"the container is {record.state.status.value}")
        number = signal if isinstance(signal, int) else signal_number(signal)
        if number == signals.SIGKILL or record.state.status is Status.CREATED:
            # Also what a first process that shares the host's PID namespace would leave behind.
            await trio.to_thread.run_sync(self.driver.kill, container_id)
            return
        answer = await self._request("signal", id=container_id, signal=number)
        await self._raise_failed(container_id, answer, [])

    async def stop(
        self, container_id: str, signal: str | None = None, grace: float | None = None
    ) -> ExitStatus:
        """End the container: its stop signal, *grace* seconds, SIGKILL. Stopped is fine."""
        record = self._find(container_id)
        if record.state.exit is not None:
            return record.state.exit
        spec = record.state.spec
        if record.state.status is Status.RUNNING:
            try:
                await self.kill(container_id, signal or spec.stop_signal)
            except RuntimeFailure as failure:
                # It may have ended by itself a moment ago.
                if failure.errno != errno.ESRCH and record.state.exit is None:
                    raise
            with trio.move_on_after(spec.stop_grace if grace is None else grace):
                return await self.wait(container_id)
        await trio.to_thread.run_sync(self.driver.kill, container_id)
        return await self.wait(container_id)

    async def pause(self, container_id: str) -> None:
        """Freeze every process of the container."""
        await self._freeze(container_id, Status.RUNNING, Status.PAUSED)

    async def unpause(self, container_id: str) -> None:
        await self._freeze(container_id, Status.PAUSED, Status.RUNNING)

    async def _freeze(self, container_id: str, before: Status, after: Status) -> None:
        record = self._find(container_id)
        async with record.lock:
            if record.state.status is not before:
                text = f"the container is {record.state.status.value}, not {before.value}"
                raise RuntimeFailure(container_id, text)
            freeze = partial(self.driver.freeze, container_id, frozen=after is Status.PAUSED)
            try:
                await trio.to_thread.run_sync(freeze)
            except OSError as failure:
                text = f"the container could not be {after.value}: {failure.strerror}"
                raise RuntimeFailure(container_id, text, errno=failure.errno or 0) from failure
            self._change(record, status=after)
            place = self._place(container_id)
            await trio.to_thread.run_sync(write_state, place.state, record.state)

    # Removal.

    async def remove(self, container_id: str, *, force: bool = False) -> None:
        """Remove the container and all that is left of it; gone is fine. *force* kills it first."""
        record = self._records.get(container_id)
        if record is None:
            # Also what a table knows nothing of: the folders' name is enough.
            await self._execute(container_id, removal(self.driver, self._place(container_id)))
            return
        async with record.lock:
            if record.state.status.running and not force:
                advice = "stop it first, or force its removal"
                raise RuntimeFailure(container_id, "the container is running", advice=advice)
            self._change(record, status=Status.REMOVING)
            with trio.CancelScope(shield=True):
                await self._forget(container_id)
                await self._remove_remains(container_id)
        logger.info("container removed id=%s", container_id)

    # A look inside.

    def logs(
        self,
        container_id: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        stdout: bool = True,
        stderr: bool = True,
    ) -> AsyncGenerator[LogLine, None]:
        """Yield the container's output, oldest first; with *follow* until it has exited.

        The log is there until the container is removed. Close the iterator (`aclosing`) when it is
        left early.
        """
        record = self._find(container_id)
        log = record.state.spec.log
        if not log.has_file:
            advice = "its output was kept nowhere: choose the driver json-file"
            if log.driver == "journald":
                advice = f"read the journal: journalctl CONTAINER_ID_FULL={container_id}"
            raise RuntimeFailure(container_id, "the container has no log", advice=advice)
        return read_logs(
            self._place(container_id).log,
            follow=follow,
            tail=tail,
            since=since,
            until=until,
            stdout=stdout,
            stderr=stderr,
            ended=record.exited.is_set,
        )

    async def stats(self, ids: Iterable[str] | None = None) -> list[ContainerStats]:
        """Read what the running containers (or those of *ids* that run) have used, in one call."""
        wanted = None if ids is None else set(ids)
        running = [
            (state.id, state.pid, state.spec.namespaces.network != "host")
            for state in self.containers.values()
            if state.status.running and (wanted is None or state.id in wanted)
        ]
        return await trio.to_thread.run_sync(_read_stats, self.driver, running)

    async def update(self, container_id: str, resources: Resources) -> None:
        """Change the limits of the container, which goes on running."""
        validate_resources(resources)
        record = self._find(container_id)
        async with record.lock:
            state = record.state
            if not state.status.alive:
                raise RuntimeFailure(container_id, f"the container is {state.status.value}")
            old = state.spec.resources
            groups = self.driver.groups(container_id, resources)
            await self._execute(container_id, groups)
            joined = set(self.driver.joins(container_id, old))
            joins = [p for p in self.driver.joins(container_id, resources) if p not in joined]
            limits = [
                *self.driver.resets(container_id, old, resources),
                *self.driver.limits(container_id, resources),
            ]
            unified = self.driver.unified(container_id)
            try:
                await trio.to_thread.run_sync(cgroups.move_processes, unified, joins)
                await trio.to_thread.run_sync(cgroups.apply_limits, limits)
            except OSError as failure:
                text = f"the kernel refused the new limits: {failure.strerror}"
                raise RuntimeFailure(
                    container_id,
                    text,
                    errno=failure.errno or 0,
                    path=str(failure.filename or ""),
                    advice="the container may use more than the new limit already",
                ) from failure
            spec = state.spec.with_resources(resources)
            self._change(record, spec=spec)
            place = self._place(container_id)
            await trio.to_thread.run_sync(write_state, place.state, record.state)
        logger.info("container updated id=%s", container_id)

    async def exec(
        self, container_id: str, process: Process, *, exec_id: str | None = None
    ) -> Session:
        """Run a further *process* in the container, under the same confinement.

        The session's streams are the caller's; the process lives on when they are closed. Raises
        RuntimeFailure as `start` does when the command cannot be executed.
        """
        record = self._find(container_id)
        if record.state.status is not Status.RUNNING:
            text = f"the container is {record.state.status.value}, not running"
            raise RuntimeFailure(container_id, text)
        spec = record.state.spec
        exec_id = exec_id or secrets.token_hex(8)
        filter_ = await self._filter(spec, process)
        birth, launch = exec_plan(process, spec, self.host, self.driver, container_id, filter_)
        end = self._execs[container_id, exec_id] = ExecEnd()
        pipes = None if process.terminal else Pipes(open_to_all=spec.own_users)
        plan_fd = _plan_file(birth, launch, wait=False, mapped=False)
        try:
            answer = await self._request(
                "exec",
                [plan_fd, *(pipes.theirs if pipes else ())],
                id=container_id,
                exec=exec_id,
                cgroup=self.driver.unified(container_id),
            )
            await self._raise_failed(container_id, answer, [*birth, *launch])
        except BaseException:
            self._execs.pop((container_id, exec_id), None)
            if pipes:
                pipes.close()
            raise
        finally:
            os.close(plan_fd)

        async def wait() -> ExitStatus:
            await end.done.wait()
            return end.status

        if pipes is None:
            (master,) = answer.descriptors
            terminal = TerminalStream(master)
            return Session(
                stdin=terminal,
                stdout=terminal,
                stderr=None,
                terminal_fd=master,
                pid=answer.fields["pid"],
                wait=wait,
            )
        pipes.close_theirs()
        stdin, stdout, stderr = pipes.streams()
        return Session(
            stdin=stdin, stdout=stdout, stderr=stderr, pid=answer.fields["pid"], wait=wait
        )

    async def exec_signal(self, container_id: str, exec_id: str, signal: str | int) -> None:
        """Send *signal* to the process of an exec."""
        number = signal if isinstance(signal, int) else signal_number(signal)
        answer = await self._request("signal", id=container_id, exec=exec_id, signal=number)
        await self._raise_failed(container_id, answer, [])

    async def attach(self, container_id: str) -> Session:
        """Return the streams of the container's own process, from now on.

        Attach before `start` to miss nothing. A session that is not read for ten seconds while the
        container writes is cut off: its streams end.
        """
        record = self._find(container_id)
        spec = record.state.spec
        answer = await self._request("attach", id=container_id)
        await self._raise_failed(container_id, answer, [])

        async def wait() -> ExitStatus:
            return await self.wait(container_id)

        async def end_input() -> None:
            await self._request("close_stdin", id=container_id)

        if answer.fields["terminal"]:
            output, master = answer.descriptors
            return Session(
                stdin=TerminalStream(master),
                stdout=trio.lowlevel.FdStream(output),
                stderr=None,
                terminal_fd=master,
                pid=record.state.pid,
                wait=wait,
            )
        stdin = None
        if spec.process.stdin:
            try:
                path = self._place(container_id).stdin
                fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as failure:
                close_all(answer.descriptors)
                text = f"the container takes no input any more: {failure.strerror}"
                raise RuntimeFailure(container_id, text) from failure
            stdin = trio.lowlevel.FdStream(fd)
        stdout, stderr = (trio.lowlevel.FdStream(fd) for fd in answer.descriptors)
        return Session(
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pid=record.state.pid,
            wait=wait,
            end_input=end_input,
        )


def _plan_file(
    birth: Sequence[ChildStep], launch: Sequence[ChildStep], *, wait: bool, mapped: bool
) -> int:
    """Return a descriptor with the child's plan; its pages are gone when it is closed."""
    fd = os.memfd_create("plan", os.MFD_CLOEXEC)
    plan = {"birth": wire(birth), "launch": wire(launch), "wait": wait, "mapped": mapped}
    # Not JSON: it would be a tenth of a millisecond for each of the two, and secrets are bytes.
    # Both ends are ours, and this version of the form has been the same since Python 3.4.
    data = memoryview(marshal.dumps(plan, MARSHAL_VERSION))
    while data:
        data = data[os.write(fd, data) :]
    return fd


def _read_stats(
    driver: cgroups.Driver, running: Sequence[tuple[str, int, bool]]
) -> list[ContainerStats]:
    readings = []
    for container_id, pid, own_network in running:
        try:
            group = driver.read_stats(container_id)
            text = Path(f"/proc/{pid}/net/dev").read_text() if own_network else ""
        except OSError:
            continue  # it ended meanwhile
        readings.append(ContainerStats(container_id, time.time(), group, parse_interfaces(text)))
    return readings
