"""Worker: carries out on this host what was assigned, one loop a task; none blocks another.

A shell around lifecycle.next_operation: decide, perform, look again. What fails on a task is a
status of that task, never the end of the daemon. Needs no manager: the stored assignment is
enough.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from swarmlet.agent import container as containers
from swarmlet.agent.assignment import Assignment
from swarmlet.agent.health import Health, watch_health
from swarmlet.agent.imaging import Images, UnpackedImage
from swarmlet.agent.lifecycle import (
    DRAIN_SECONDS,
    Create,
    Exit,
    Finish,
    Local,
    Operation,
    Phase,
    Prepare,
    Restart,
    Start,
    Stop,
    next_operation,
    restarted,
)
from swarmlet.agent.network import HostNetwork, NetworkFailed
from swarmlet.images.errors import ImageError
from swarmlet.model import (
    LOG_TAIL_LINE_CHARACTERS,
    LOG_TAIL_LINES,
    Desired,
    Observation,
    TaskId,
    TaskState,
)
from swarmlet.runtime.decoding import SpecError
from swarmlet.runtime.failures import NoSuchContainer, RuntimeFailure
from swarmlet.runtime.state import ContainerState, Status
from swarmlet.runtime.supervisor import Supervisor
from swarmlet.session import Kind, NetworkView, TaskAssignment
from swarmlet.waiting import Bell, wait_any

logger = logging.getLogger(__name__)

RESOLVER_ADDRESS = "127.0.0.11"
#: Seconds until a task whose container could not be made, for a reason of this host, is tried
#: again while no manager can be asked for another place.
RETRY_ALONE = 10.0

#: What a container may fail with; everything else is a bug.
WORLD = (RuntimeFailure, SpecError, NetworkFailed, ImageError, OSError, ValueError)


@dataclass(slots=True)
class Entry:
    """One task of this host. Owned by its loop; assign() only sets *task* and rings."""

    id: TaskId
    task: TaskAssignment | None
    local: Local = field(default_factory=Local)
    reached: TaskState = TaskState.ACCEPTED
    bell: Bell = field(default_factory=Bell)
    interrupt: trio.CancelScope | None = None
    image: UnpackedImage | None = None
    netns: str = ""
    container: str = ""
    message: str = "accepted"
    error: str = ""
    exit_code: int | None = None
    log_tail: tuple[str, ...] = ()
    pid: int = 0
    health: Health = Health.NONE
    changed_at: float = 0.0
    stopping: bool = False

    @property
    def ready(self) -> bool:
        return (
            self.local.phase is Phase.RUNNING
            and not self.stopping
            and self.health in (Health.NONE, Health.HEALTHY)
        )

    def observation(self) -> Observation:
        return Observation(
            state=self.reached,
            at=self.changed_at,
            message=self.message,
            error=self.error,
            exit_code=self.exit_code,
            container=self.container,
            pid=self.pid,
            ready=self.ready,
            attempt=self.local.attempt,
            log_tail=self.log_tail,
        )


class Worker:
    def __init__(
        self,
        *,
        supervisor: Supervisor,
        images: Images,
        network: HostNetwork,
        node: str,
        node_name: str,
        state_dir: Path,
        connected: Callable[[], bool],
        report: Callable[[TaskId, Observation], None],
    ) -> None:
        self._supervisor = supervisor
        self._images = images
        self._network = network
        self._node = node
        self._node_name = node_name
        self._volumes = state_dir / "volumes"
        self._connected = connected
        self._report = report
        self._entries: dict[TaskId, Entry] = {}
        self._cleared = Bell()
        self._assignment = Assignment()
        self._nursery: trio.Nursery | None = None

    @property
    def observations(self) -> Mapping[TaskId, Observation]:
        return {id_: entry.observation() for id_, entry in self._entries.items()}

    def container_of(self, task: TaskId) -> str:
        """The container that runs *task*, or ran it last; "" if it has none."""
        entry = self._entries.get(task)
        return entry.container if entry is not None else ""

    @property
    def tasks(self) -> Mapping[TaskId, Entry]:
        return self._entries

    async def adopt(self, assignment: Assignment) -> None:
        """Take over the containers that outlived the daemon. Before the network's first pass."""
        self._assignment = assignment
        await self._adopt(assignment)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Converge to the adopted assignment, then to each new one, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for entry in self._entries.values():
                nursery.start_soon(self._run_task, entry)
                self._tell(entry)
            self.assign(self._assignment)
            task_status.started()
            await trio.sleep_forever()

    def assign(self, assignment: Assignment) -> None:
        """Converge to *assignment*."""
        self._assignment = assignment
        if self._nursery is None:
            return
        tasks = {task.id: task for task in assignment.all(Kind.TASK, TaskAssignment)}
        for id_, task in tasks.items():
            entry = self._entries.get(id_)
            if entry is None:
                entry = self._entries[id_] = Entry(id_, task, changed_at=time.time())
                self._nursery.start_soon(self._run_task, entry)
                self._tell(entry)
            elif entry.task != task:
                entry.task = task
                if task.desired > Desired.RUNNING and entry.interrupt is not None:
                    entry.interrupt.cancel()
                entry.bell.ring()
        for id_ in self._entries.keys() - tasks.keys():
            entry = self._entries[id_]
            if entry.task is not None:
                entry.task = None
                if entry.interrupt is not None:
                    entry.interrupt.cancel()
                entry.bell.ring()

    async def stop_all(self) -> None:
        """End every task of this node, which leaves the cluster."""
        self.assign(Assignment())
        while self._entries:
            await self._cleared.wait_beyond(self._cleared.rung)

    async def _adopt(self, assignment: Assignment) -> None:
        """Take over containers that outlived the daemon; remove those that nobody wants."""
        found: dict[TaskId, ContainerState] = {}
        for state in list(self._supervisor.containers.values()):
            task_id = TaskId(state.spec.annotations.get(f"{containers.LABEL_PREFIX}task.id", ""))
            if not task_id:
                continue  # somebody ran it by hand
            task = assignment.find(Kind.TASK, task_id, TaskAssignment)
            older = found.get(task_id)
            if task is None or (older is not None and older.created_at > state.created_at):
                await self._remove_container(state.id)
                continue
            if older is not None:
                await self._remove_container(older.id)
            found[task_id] = state
        for task_id, state in found.items():
            task = assignment.find(Kind.TASK, task_id, TaskAssignment)
            entry = Entry(task_id, task, changed_at=time.time())
            self._entries[task_id] = entry
            await self._take_over(entry, state)
            if entry.netns:
                self._network.adopt([task_id])

    async def _take_over(self, entry: Entry, state: ContainerState) -> None:
        attempt = _attempt_of(state.id)
        if state.status.running:
            entry.local = Local(phase=Phase.RUNNING, attempt=attempt)
            entry.reached, entry.message = TaskState.RUNNING, "started"
            entry.pid = state.pid
        elif state.status is Status.EXITED and state.exit is not None and not state.exit.lost:
            entry.local = Local(phase=Phase.EXITED, attempt=attempt, exit=_exit_of(state))
            entry.reached = TaskState.RUNNING
            await self._note_exit(entry, state.id)
        else:
            # Half made, or lost in a power cut: a new one is made, and that is no failure.
            await self._remove_container(state.id)
            entry.local = Local(phase=Phase.NEW, attempt=attempt + 1)
            return
        entry.container = state.id
        if state.spec.namespaces.network not in ("host", "private"):
            entry.netns = state.spec.namespaces.network
        logger.info("container adopted id=%s status=%s", state.id, state.status.value)

    # One task.

    async def _run_task(self, entry: Entry) -> None:
        """Decide, perform, look again, until the task is gone from the assignment."""
        while True:
            rung = entry.bell.rung
            task = entry.task
            if task is None:
                await self._clear(entry)
                return
            operation = next_operation(
                task.desired,
                entry.local,
                task.template.restart,
                now=time.time(),
                connected=self._connected(),
            )
            if operation is None:
                await self._wait(entry, task, rung)
                continue
            try:
                await self._perform(entry, task, operation)
            except* WORLD as failures:
                await self._fail(entry, _first(failures))

    async def _wait(self, entry: Entry, task: TaskAssignment, rung: int) -> None:
        """Return when the assignment changed, or the container did something."""
        if entry.local.phase is not Phase.RUNNING:
            await entry.bell.wait_beyond(rung)
            return
        unhealthy: list[str] = []

        async def follow() -> None:
            try:
                await self._supervisor.wait(entry.container)
            except NoSuchContainer:
                logger.warning("container vanished id=%s", entry.container)

        async def check() -> None:
            if entry.image is None:
                entry.image = await self._images.ensure(task.template.container.image)
            health = containers.healthcheck_of(task.template.container, entry.image.config)
            if health is None:
                await trio.sleep_forever()
                return
            spec = self._supervisor.containers[entry.container].spec
            watching = watch_health(self._supervisor, entry.container, spec, health)
            async with aclosing(watching):
                async for verdict in watching:
                    if verdict.health is not entry.health:
                        entry.health = verdict.health
                        is_healthy = verdict.health is Health.HEALTHY
                        state = TaskState.RUNNING if is_healthy else entry.reached
                        self._reach(entry, state, verdict.health.value)
                    if verdict.health is Health.UNHEALTHY:
                        unhealthy.append(verdict.output)
                        return

        await wait_any([lambda: entry.bell.wait_beyond(rung), follow, check])
        if unhealthy and entry.task is not None and entry.task.desired <= Desired.RUNNING:
            await self._stop_container(entry, task)
            await self._note_exit(entry, entry.container)
            entry.error = f"task: unhealthy container ({unhealthy[0] or 'its check failed'})"
            logger.info("container unhealthy id=%s check=%r", entry.container, unhealthy[0])
            return
        state = self._supervisor.containers.get(entry.container)
        if state is None or state.status is Status.EXITED:
            await self._note_exit(entry, entry.container)

    async def _perform(self, entry: Entry, task: TaskAssignment, operation: Operation) -> None:
        match operation:
            case Prepare():
                await self._interruptible(entry, lambda: self._prepare(entry, task))
            case Create():
                await self._create(entry, task)
            case Start():
                await self._start(entry, task)
            case Stop():
                await self._stop(entry, task)
            case Restart(at, attempt):
                await self._restart(entry, at, attempt)
            case Finish(state, error):
                await self._finish(entry, state, error)

    async def _interruptible(self, entry: Entry, work: Callable[[], Awaitable[None]]) -> None:
        """Do *work*, unless the task is to stop before it is done."""
        with trio.CancelScope() as entry.interrupt:
            await work()
        entry.interrupt = None

    async def _prepare(self, entry: Entry, task: TaskAssignment) -> None:
        self._reach(entry, TaskState.PREPARING, "preparing")
        entry.image = await self._images.ensure(task.template.container.image)
        entry.netns = await self._attach(task)
        entry.local = replace(entry.local, phase=Phase.PREPARED)

    async def _attach(self, task: TaskAssignment) -> str:
        """Make the task's network: its own root's, where the task has users of its own."""
        refused = self._supervisor.user_namespaces_refused
        if containers.users_of(task.template.container, refused) == "host":
            return await self._network.attach(task.id)
        async with self._supervisor.new_network() as namespace:
            return await self._network.attach(task.id, namespace)

    async def _create(self, entry: Entry, task: TaskAssignment) -> None:
        if entry.image is None or not entry.netns:
            await self._interruptible(entry, lambda: self._prepare(entry, task))
            if entry.local.phase is not Phase.PREPARED:
                return
        assert entry.image is not None
        host = containers.Host(
            node=self._node,
            node_name=self._node_name,
            volumes=str(self._volumes),
            netns=entry.netns,
            resolver=RESOLVER_ADDRESS,
            host_resolv_conf="",
            address=self._address_of(task),
            users_refused=self._supervisor.user_namespaces_refused,
        )
        spec = containers.build(task, entry.image.config, entry.image.layers, host)
        container = f"{task.id}.{entry.local.attempt}"
        await self._supervisor.create(container, spec)
        entry.container = container
        entry.local = replace(entry.local, phase=Phase.CREATED)
        self._reach(entry, TaskState.READY, "prepared")

    def _address_of(self, task: TaskAssignment) -> str:
        """The address of the task's own name: on the first network that is not the ingress."""
        for endpoint in task.endpoints:
            network = self._assignment.find(Kind.NETWORK, endpoint.network, NetworkView)
            if network is not None and not network.ingress:
                return endpoint.address
        return ""

    async def _start(self, entry: Entry, task: TaskAssignment) -> None:
        self._reach(entry, TaskState.STARTING, "starting")
        await self._supervisor.start(entry.container)
        state = self._supervisor.containers[entry.container]
        assert entry.image is not None
        checked = containers.healthcheck_of(task.template.container, entry.image.config)
        entry.health = Health.STARTING if checked else Health.NONE
        entry.pid = state.pid
        entry.error, entry.exit_code, entry.log_tail = "", None, ()
        entry.local = replace(entry.local, phase=Phase.RUNNING)
        if checked:
            # As Docker counts: a task with a health check runs once it has passed.
            self._reach(
                entry, TaskState.STARTING, "started, and its health check has not passed yet"
            )
        else:
            self._reach(entry, TaskState.RUNNING, "started")

    async def _stop(self, entry: Entry, task: TaskAssignment) -> None:
        entry.stopping = True
        self._tell(entry)
        if task.endpoints:
            await trio.sleep(DRAIN_SECONDS)
        await self._stop_container(entry, task)
        await self._note_exit(entry, entry.container)

    async def _stop_container(self, entry: Entry, task: TaskAssignment) -> None:
        grace = task.template.container.stop_grace
        await self._supervisor.stop(entry.container, grace=grace)

    async def _restart(self, entry: Entry, at: float, attempt: int) -> None:
        with trio.CancelScope() as entry.interrupt:
            await trio.sleep(max(0.0, at - time.time()))
        cancelled = entry.interrupt.cancelled_caught
        entry.interrupt = None
        if cancelled:
            return
        await self._remove_container(entry.container)
        entry.local = restarted(entry.local, attempt, time.time())
        entry.container, entry.health = "", Health.NONE
        logger.info("task started again id=%s attempt=%d", entry.id, attempt)

    async def _finish(self, entry: Entry, state: TaskState, error: str) -> None:
        entry.local = replace(entry.local, phase=Phase.ENDED)
        entry.error = entry.error or error
        words = {TaskState.COMPLETE: "finished", TaskState.SHUTDOWN: "shutdown"}
        self._reach(entry, state, words.get(state, state.name.lower()))
        self._network.detach(entry.id)
        logger.info("task ended id=%s state=%s error=%s", entry.id, state.name, entry.error)

    async def _note_exit(self, entry: Entry, container: str) -> None:
        """The container ended: keep how, and the last that it said."""
        state = self._supervisor.containers.get(container)
        exited = _exit_of(state) if state is not None else Exit(code=255, at=time.time())
        entry.local = replace(entry.local, phase=Phase.EXITED, exit=exited)
        entry.exit_code, entry.pid = exited.code, 0
        entry.error = "" if entry.stopping else exited.text
        entry.log_tail = await self._tail(container)
        entry.changed_at = time.time()
        self._tell(entry)

    async def _tail(self, container: str) -> tuple[str, ...]:
        lines: list[str] = []
        try:
            log = self._supervisor.logs(container, tail=LOG_TAIL_LINES)
            async with aclosing(log):
                async for line in log:
                    text = line.data.decode(errors="replace").rstrip("\n")
                    lines.append(text[:LOG_TAIL_LINE_CHARACTERS])
        except (RuntimeFailure, OSError) as exc:
            logger.debug("log not read container=%s reason=%s", container, exc)
        return tuple(lines[-LOG_TAIL_LINES:])

    async def _fail(self, entry: Entry, failure: BaseException) -> None:
        """An operation failed: give the task back with the reason, or try again alone."""
        entry.interrupt = None
        if isinstance(failure, RuntimeFailure) and entry.local.phase is Phase.CREATED:
            entry.log_tail = await self._tail(entry.container)
        entry.error = str(failure)
        logger.warning("task failed id=%s reason=%s", entry.id, failure)
        stopped = entry.task is None or entry.task.desired > Desired.RUNNING
        if entry.local.phase is Phase.RUNNING:
            return  # it could not be stopped: that is tried again
        if not self._connected() and not stopped:
            self._tell(entry)
            await self._forget_container(entry)
            with trio.move_on_after(RETRY_ALONE):
                await entry.bell.wait_beyond(entry.bell.rung)
            entry.local = replace(entry.local, phase=Phase.NEW, attempt=entry.local.attempt + 1)
            return
        unusable = entry.local.phase in (Phase.NEW, Phase.PREPARED)
        state = TaskState.REJECTED if unusable else TaskState.FAILED
        if stopped:
            state = TaskState.SHUTDOWN
        await self._finish(entry, state, entry.error)

    async def _clear(self, entry: Entry) -> None:
        """The task is gone from the assignment: leave nothing of it."""
        if entry.local.phase is Phase.RUNNING:
            await trio.sleep(DRAIN_SECONDS)
            try:
                await self._supervisor.stop(entry.container)
            except WORLD as exc:
                logger.warning("container not stopped id=%s reason=%s", entry.container, exc)
        await self._forget_container(entry)
        self._network.detach(entry.id)
        self._entries.pop(entry.id, None)
        self._cleared.ring()

    async def _forget_container(self, entry: Entry) -> None:
        if entry.container:
            await self._remove_container(entry.container)
            entry.container = ""

    async def _remove_container(self, container: str) -> None:
        try:
            await self._supervisor.remove(container, force=True)
        except WORLD as exc:
            logger.warning("container not removed id=%s reason=%s", container, exc)

    def _reach(self, entry: Entry, state: TaskState, message: str) -> None:
        # A state never falls: a restarting task stays as far as it came.
        entry.reached = max(entry.reached, state)
        entry.message = message
        entry.changed_at = time.time()
        self._tell(entry)

    def _tell(self, entry: Entry) -> None:
        self._report(entry.id, entry.observation())


def _attempt_of(container: str) -> int:
    _, _, number = container.rpartition(".")
    return int(number) if number.isdigit() else 0


def _exit_of(state: ContainerState) -> Exit:
    exited = state.exit
    if exited is None:
        return Exit(code=255, at=time.time())
    return Exit(
        code=exited.code,
        signal=exited.signal,
        oom_killed=exited.oom_killed,
        at=exited.finished_at,
    )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
