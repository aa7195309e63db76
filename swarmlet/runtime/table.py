"""The table of this host's containers, kept in step with the zygote and the state files.

`ContainerTable` is the lower half of the supervisor: it has the connection, finds again what an
earlier daemon or zygote left, follows exits, and tells subscribers. The operations are in
supervisor.py. Each entry is a frozen `ContainerState`; the truth is the zygote's list and the state
files, from which the table is built again after a restart.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from swarmlet.runtime import cgroups, hostside, journal
from swarmlet.runtime.client import Answer, Client, connect, greet
from swarmlet.runtime.failures import NoSuchContainer, RuntimeFailure, ZygoteLost, of_step
from swarmlet.runtime.host import Host, probe
from swarmlet.runtime.plan import removal
from swarmlet.runtime.rootfs import Place
from swarmlet.runtime.spec import ContainerSpec, LogConfig
from swarmlet.runtime.state import (
    ContainerState,
    ExitStatus,
    Status,
    read_boot_id,
    read_exit,
    read_state,
    write_state,
)
from swarmlet.runtime.steps import ChildStep, HostStep

logger = logging.getLogger(__name__)

#: Seconds that an operation waits for a lost zygote to be replaced.
RECONNECT_TIMEOUT = 10.0
#: Seconds between two tries to have a zygote, doubled up to the second.
BACKOFF_MIN, BACKOFF_MAX = 0.1, 5.0
#: Tries before `run` says that it cannot begin. The first may meet a zygote of another version.
FIRST_TRIES_MAX = 3


class Subscription:
    """Which containers have changed since the last look.

    Bounded by the number of containers: changes of one that were not yet taken become one. The
    value is the state as it is when it is taken, None when the container is gone.
    """

    def __init__(self, find: Callable[[str], ContainerState | None]) -> None:
        self._find = find
        self._changed: dict[str, None] = {}
        self._wake = trio.Event()

    def _note(self, container_id: str) -> None:
        self._changed[container_id] = None
        self._wake.set()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> tuple[str, ContainerState | None]:
        while not self._changed:
            self._wake = trio.Event()
            await self._wake.wait()
        container_id = next(iter(self._changed))
        del self._changed[container_id]
        return container_id, self._find(container_id)


class Record:
    """An entry of the table, and who may change it: the holder of *lock*, and the event loop."""

    def __init__(self, state: ContainerState) -> None:
        self.state = state
        self.lock = trio.Lock()
        self.exited = trio.Event()  # also when it is removed
        self.early_exit: dict[str, Any] | None = None  # it died before "created" was noted
        if state.exit is not None:
            self.exited.set()


class ExecEnd:
    """The end of an exec, for the one who waits."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.status = ExitStatus.of(None, 0.0, oom_killed=False)

    def finish(self, wait_status: int | None, at: float) -> None:
        self.status = ExitStatus.of(wait_status, at, oom_killed=False)
        self.done.set()


def journal_fields(container_id: str, log: LogConfig) -> dict[str, str]:
    """Return what each entry of a container has in the journal, as with Docker's driver."""
    name = log.name or container_id
    return {
        "CONTAINER_ID": container_id[:12],
        "CONTAINER_ID_FULL": container_id,
        "CONTAINER_NAME": name,
        "CONTAINER_TAG": log.tag or container_id[:12],
        "SYSLOG_IDENTIFIER": log.tag or container_id[:12],
    }


class ContainerTable:
    """All containers under one run folder, state folder and cgroup. One task runs `run`."""

    #: where the journal listens
    journal = journal.SOCKET

    def __init__(
        self,
        *,
        run_dir: Path,
        state_dir: Path,
        cgroup_parent: str,
        host: Host | None = None,
    ) -> None:
        self.run_dir = run_dir
        self.state_dir = state_dir
        self.host = host or probe()
        self.driver = cgroups.driver(self.host, cgroup_parent)
        self.zygote_pid = 0
        self._records: dict[str, Record] = {}
        self._execs: dict[tuple[str, str], ExecEnd] = {}
        self._subscriptions: list[Subscription] = []
        self._client: Client | None = None
        self._connected = trio.Event()
        self._boot_id = read_boot_id()

    # Life.

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Supervise until cancelled, which leaves zygote and containers as they are.

        Usable when every container that was left by an earlier daemon is in the table.
        """
        for folder in (self.run_dir, self.state_dir):
            await trio.to_thread.run_sync(hostside.make_directory, str(folder))
        for folder in (self.run_dir / "containers", self.state_dir / "containers"):
            await trio.to_thread.run_sync(hostside.make_directory, str(folder))
        await self._load()
        try:
            await self._stay_connected(task_status)
        finally:
            if not self._records:
                # The parents of all groups: a few rmdirs, so not worth a thread.
                hostside.execute(self.driver.prunes())

    async def _stay_connected(self, task_status: trio.TaskStatus[None]) -> None:
        backoff, started, tries = BACKOFF_MIN, False, 0
        while True:
            try:
                client = await connect(self.run_dir)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._listen, client, nursery.cancel_scope)
                    self.zygote_pid = await greet(client)
                    await self._adopt(client)
                    self._client = client
                    self._connected.set()
                    logger.info(
                        "zygote connected pid=%d containers=%d", self.zygote_pid, len(self._records)
                    )
                    backoff = BACKOFF_MIN
                    if not started:
                        started = True
                        task_status.started()
                    await trio.sleep_forever()
            except* (ZygoteLost, OSError) as failures:
                tries += 1
                if not started and tries >= FIRST_TRIES_MAX:
                    raise
                logger.warning("zygote failed reason=%s", failures.exceptions[0])
            self._client = None
            self._connected = trio.Event()
            logger.warning("zygote lost pid=%d", self.zygote_pid)
            await trio.sleep(backoff)
            backoff = min(2 * backoff, BACKOFF_MAX)

    async def _listen(self, client: Client, scope: trio.CancelScope) -> None:
        await client.run(self._on_event)
        scope.cancel()

    async def _load(self) -> None:
        """Read what earlier daemons left; folders without a whole state file are removed."""
        folder = self.state_dir / "containers"
        for name in await trio.to_thread.run_sync(os.listdir, folder):
            state = await trio.to_thread.run_sync(read_state, str(folder / name))
            if state is None or state.id != name:
                logger.warning("container remains removed id=%s", name)
                await self._execute(name, removal(self.driver, self._place(name)))
            else:
                self._records[name] = Record(state)

    async def _adopt(self, client: Client) -> None:
        """Bring the table and the zygote's list together."""
        answer = await client.request("list")
        known = {i["id"]: i for i in answer.fields["items"] if not i["exec"]}
        for container_id in [i for i in known if i not in self._records]:
            logger.warning("container unknown to this daemon removed id=%s", container_id)
            await client.request("forget", id=container_id)
            await self._execute(container_id, removal(self.driver, self._place(container_id)))
        for container_id, record in list(self._records.items()):
            facts, status = known.get(container_id), record.state.status
            if status is Status.REMOVING or (
                status is Status.CREATING and (facts is None or facts["status"] == "creating")
            ):
                if record.lock.locked():
                    continue  # an operation of this daemon is at it, and will clean up itself
                logger.warning("container half made or removed id=%s", container_id)
                await client.request("forget", id=container_id)
                await self._remove_remains(container_id)
            elif facts is not None:
                await self._take_facts(record, facts)
            elif status is not Status.EXITED:
                await self._adopt_orphan(client, record)
        if not self._records:
            # The last removal may have been cut off after the last trace of its container.
            await self._execute("", self.driver.prunes())

    async def _adopt_orphan(self, client: Client, record: Record) -> None:
        """Its zygote is gone: have the new one adopt it, or note how it ended."""
        state = record.state
        left = await trio.to_thread.run_sync(read_exit, self._place(state.id).state)
        if left is None and state.boot_id == self._boot_id and state.status.running:
            answer = await client.request(
                "adopt",
                id=state.id,
                pid=state.pid,
                start_ticks=state.start_ticks,
                started_at=state.started_at,
                **self._streams(state.id, state.spec),
            )
            if "failed" not in answer.fields:
                logger.info("container adopted id=%s pid=%d", state.id, state.pid)
                await self._take_facts(record, answer.fields)
                return
        # What is left of it (a start that no daemon has seen) is nobody's.
        await trio.to_thread.run_sync(self.driver.kill, state.id)
        wait_status, at = left or (None, time.time())
        await self._note_exit(record, wait_status, at)

    async def _take_facts(self, record: Record, facts: dict[str, Any]) -> None:
        if facts["status"] == "exited":
            await self._note_exit(record, facts["wait_status"], facts["exited_at"])
            return
        status = Status(facts["status"])
        if status is Status.RUNNING and record.state.status is Status.PAUSED:
            status = Status.PAUSED
        self._change(
            record,
            status=status,
            pid=facts["pid"],
            start_ticks=facts["start_ticks"],
            started_at=facts["started_at"],
        )

    # Events.

    async def _on_event(self, event: dict[str, Any]) -> None:
        if event["exec"]:
            end = self._execs.pop((event["id"], event["exec"]), None)
            if end is not None:
                end.finish(event["wait_status"], event["exited_at"])
            return
        record = self._records.get(event["id"])
        if record is None:
            return
        if record.state.status is Status.CREATING:
            record.early_exit = event
            return
        await self._note_exit(record, event["wait_status"], event["exited_at"])

    async def _note_exit(self, record: Record, wait_status: int | None, at: float) -> None:
        state = record.state
        if state.exit is not None:
            return
        kills = self.driver.oom_kills(state.id)  # one read of a file that is no disk's
        if state.spec.namespaces.pid != "private":
            # No PID namespace dies with the first process: the rest of the group is ended here.
            await trio.to_thread.run_sync(self.driver.kill, state.id)
        status = ExitStatus.of(wait_status, at, oom_killed=kills > 0)
        self._change(record, status=Status.EXITED, exit=status)
        record.exited.set()
        logger.info(
            "container exited id=%s code=%d signal=%s oom_killed=%s",
            state.id,
            status.code,
            status.signal,
            status.oom_killed,
        )

    def _change(self, record: Record, **changes: Any) -> None:
        record.state = record.state.changed(**changes)
        self._notify(record.state.id)

    def _notify(self, container_id: str) -> None:
        for subscription in self._subscriptions:
            subscription._note(container_id)

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[Subscription]:
        """Within the block, tell of each container that changes.

        The containers that are there now are told of first, so nothing is missed in between.
        """
        subscription = Subscription(lambda i: self.containers.get(i))
        self._subscriptions.append(subscription)
        for container_id in self._records:
            subscription._note(container_id)
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)

    # What is there.

    @property
    def containers(self) -> Mapping[str, ContainerState]:
        """A picture of every container, by id."""
        return {container_id: record.state for container_id, record in self._records.items()}

    def _find(self, container_id: str) -> Record:
        record = self._records.get(container_id)
        if record is None:
            raise NoSuchContainer(container_id, f"no such container: {container_id}")
        return record

    def _place(self, container_id: str) -> Place:
        return Place(
            container_id,
            str(self.state_dir / "containers" / container_id),
            str(self.run_dir / "containers" / container_id),
        )

    # The zygote and the host, with their failures.

    def _streams(self, container_id: str, spec: ContainerSpec) -> dict[str, Any]:
        place = self._place(container_id)
        log: dict[str, Any] | None = None
        if spec.log.has_file:
            log = {
                "driver": "file",
                "path": place.log,
                "file_bytes_max": spec.log.file_bytes_max,
                "files_max": spec.log.files_max,
                "compress": spec.log.compress,
            }
        elif spec.log.driver == "journald":
            log = {
                "driver": "journald",
                "path": self.journal,
                "fields": journal_fields(container_id, spec.log),
            }
        keep_stdin = spec.process.stdin and not spec.process.terminal
        return {
            "stdin": place.stdin if keep_stdin else "",
            "stdout": place.stdout,
            "stderr": place.stderr,
            "terminal": spec.process.terminal,
            "log": log,
            "folder": place.state,
        }

    async def _request(
        self, operation: str, descriptors: Iterable[int] = (), **fields: Any
    ) -> Answer:
        with trio.move_on_after(RECONNECT_TIMEOUT):
            await self._connected.wait()
        client = self._client
        if client is None:
            raise ZygoteLost(fields["id"], "no zygote can be started", advice="see the log")
        return await client.request(operation, list(descriptors), **fields)

    async def _raise_failed(
        self, container_id: str, answer: Answer, steps: Sequence[ChildStep]
    ) -> None:
        failed = answer.fields.get("failed")
        if failed is None:
            return
        kills = await trio.to_thread.run_sync(self.driver.oom_kills, container_id)
        if kills:
            text = "the memory limit killed the container before it could start"
            raise RuntimeFailure(container_id, text, advice="raise resources.memory_bytes")
        if 0 <= failed["step"] < len(steps):
            step = steps[failed["step"]]
            raise of_step(container_id, step, failed["errno"], failed["text"], failed["path"])
        # The zygote's own failures say what to do after a semicolon.
        text, _, advice = failed["text"].partition("; ")
        raise RuntimeFailure(
            container_id, text, errno=failed["errno"], path=failed["path"], advice=advice
        )

    async def _forget(self, container_id: str) -> None:
        """Have the zygote let go, when there is one: none has nothing to let go of."""
        if self._client is not None:
            with contextlib.suppress(ZygoteLost):
                await self._client.request("forget", id=container_id)

    async def _remove_remains(self, container_id: str) -> None:
        """Remove everything but the zygote's memory of the container, and its entry."""
        known = self._records.get(container_id)
        steps = removal(self.driver, self._place(container_id))
        removing = known.state.changed(status=Status.REMOVING) if known else None
        await self._execute(container_id, steps, first=removing)
        record = self._records.pop(container_id, None)
        if record is not None:
            record.exited.set()
            self._notify(container_id)

    async def _execute(
        self, container_id: str, steps: Iterable[HostStep], *, first: ContainerState | None = None
    ) -> list[int]:
        """Do *steps* on the host, in one worker thread; leave *first* as the state before.

        Return the descriptors of the trees that were held, which the caller closes.
        """

        def work() -> list[int]:
            if first is not None:
                hostside.make_directory(self._place(container_id).state)
                write_state(self._place(container_id).state, first)
            return hostside.execute(list(steps))

        try:
            return await trio.to_thread.run_sync(work)
        except hostside.StepFailure as failed:
            failure = failed.failure
            path = failure.filename if isinstance(failure.filename, str) else ""
            text = failure.strerror or str(failure)
            raise of_step(container_id, failed.step, failure.errno or 0, text, path) from failure
