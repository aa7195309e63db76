"""The Trio shell: keeps this host's kernel as the topology wants it.

One loop (run) owns the kernel. converge() hands it a topology and waits; the loop reads what is
there, plans, applies, and reads again until nothing differs. Every 30 seconds, and when poked,
it reads everything and heals what somebody else changed.

A change of topology reads only the namespaces that it concerns, so its cost does not grow with
the number of sandboxes that it does not concern.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from overlay import netns
from overlay.desired import desired
from overlay.kernel import Failure, Memory, Pass
from overlay.naming import Naming
from overlay.plan import Operation, plan
from overlay.resources import HOST, Resource
from overlay.retirement import survivors
from overlay.topology import Topology

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Seconds from one look at the whole kernel to the next.
HEAL_SECONDS = 30.0
#: Looks at the kernel for one wish, and seconds before each of them if the kernel refused
#: something at the one before: it may still be busy with what is gone (a namespace is taken apart
#: in the background, and its VNI is free only then). Without refusals the first look finds work,
#: the second perhaps what went with a link that was made anew, the third nothing.
ATTEMPT_PAUSES = (0.0, 0.05, 0.2, 0.5, 1.0)
#: Operations that an error or a log line names.
NAMED_MAX = 3
#: /proc/self is the process: in a thread that wandered off, too.
OWN_NAMESPACE = Path("/proc/self/ns/net")
#: What Linux gives an Ethernet interface, until the real one is found.
UNDERLAY_MTU_BYTES = 1500


class NotConverged(Exception):
    """The kernel is not as wanted: what differs still, and what it said.

    What is not named here is as wanted: one broken sandbox keeps no other from its network.
    """

    def __init__(self, operations: list[Operation], failures: list[Failure]) -> None:
        self.operations = tuple(operations)
        self.failures = tuple(failures)
        reasons = [f"{_describe(f.operation)}: {f.reason}" for f in failures[:NAMED_MAX]]
        waiting = [_describe(operation) for operation in operations[:NAMED_MAX]]
        super().__init__(
            f"{len(operations)} differences remain in the network ({'; '.join(reasons or waiting)})"
        )

    @property
    def namespaces(self) -> frozenset[str]:
        """Where something differs: ids of sandboxes, HOST, or an overlay's namespace."""
        return frozenset(operation.resource.namespace for operation in self.operations)


@dataclass(frozen=True, slots=True)
class Statistics:
    """*healed* counts operations that no change of topology asked for.

    *measured_mtu_bytes* is what this host's own interface has; *underlay_mtu_bytes* the least that
    is known of any host.
    """

    resources: int
    passes: int
    healed: int
    differing: int
    underlay_mtu_bytes: int
    last_pass_seconds: float
    measured_mtu_bytes: int


@dataclass(slots=True)
class _Wish:
    """What is asked of the loop, and everyone who waits for it.

    *topology* is the one to reach, None for the one that is wanted already; *everything* asks for
    a look at the whole kernel.
    """

    topology: Topology | None = None
    everything: bool = False
    done: trio.Event = field(default_factory=trio.Event)
    operations: int = 0
    error: Exception | None = field(
        default_factory=lambda: RuntimeError("the reconciler was stopped meanwhile")
    )


class Reconciler:
    """Keeper of this host's network.

    Args:
        run_dir: where the namespaces' files are kept (`netns/`); private to this host.
        prefix: of the names of everything that is made in the host's own namespace.
        host: that namespace; by default the process's own (its main thread's).
    """

    def __init__(
        self,
        *,
        run_dir: Path,
        prefix: str = "swl",
        host: Path = OWN_NAMESPACE,
        heal_seconds: float = HEAL_SECONDS,
    ) -> None:
        self._directory = run_dir / "netns"
        self._host = host
        self._naming = Naming(prefix)
        self._heal_seconds = heal_seconds
        self._memory = Memory()
        self._topology: Topology | None = None
        self._remembered: Topology | None = None  # the one that the kernel's flows are of
        self._desired: frozenset[Resource] | None = None
        self._unsure: frozenset[str] | None = None  # namespaces to look at; None: all
        self._wish: _Wish | None = None
        self._wake = trio.Event()
        self._measured_mtu_bytes = self._underlay_mtu_bytes = UNDERLAY_MTU_BYTES
        self._counts: Counter[str] = Counter()
        self._differing = 0
        self._last_pass_seconds = 0.0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the kernel as wanted until cancelled; the kernel is left as it is then."""
        task_status.started()
        while True:
            with trio.move_on_after(self._heal_seconds):
                await self._wake.wait()
            self._wake = trio.Event()
            wish, self._wish = self._wish or _Wish(everything=True), None
            if wish.topology is None and self._topology is None:
                wish.error = None  # nothing was ever wanted
                wish.done.set()
            else:
                await self._grant(wish)

    async def converge(self, topology: Topology) -> None:
        """Make *topology* the wanted one, and return when the kernel is so.

        run() must be running. A call that is overtaken by another returns when the later
        topology is reached.

        Raises:
            NotConverged: the kernel could not be brought there; it is tried again with every
                heal, since the topology stays the wanted one.
        """
        wish = self._next_wish()
        wish.topology = topology
        await _wait_granted(wish)

    @contextmanager
    def given(self, namespace: str, descriptor: int) -> Iterator[None]:
        """Within the block, *namespace* is not made anew but is the one of *descriptor*.

        So it can be owned by another user namespace. Only if it is made meanwhile.
        """
        self._memory.given[namespace] = descriptor
        try:
            yield
        finally:
            del self._memory.given[namespace]

    async def heal(self) -> int:
        """Look at the whole kernel now, put right what differs, return how many operations.

        run() does so by itself every 30 seconds.

        Raises:
            NotConverged: as converge().
        """
        wish = self._next_wish()
        wish.everything = True
        await _wait_granted(wish)
        return wish.operations

    async def remove_all(self) -> None:
        """Remove everything of ours from this host: links, namespaces, tables, rules, routes.

        For a host that leaves the cluster; run() must not be running.

        Raises:
            NotConverged: something would not go.
        """
        self._topology = self._desired = self._unsure = None
        await self._reach(frozenset(), None)
        await self._in_kernel(Pass.restore)

    def statistics(self) -> Statistics:
        return Statistics(
            resources=len(self._desired or ()),
            passes=self._counts["passes"],
            healed=self._counts["healed"],
            differing=self._differing,
            underlay_mtu_bytes=self._underlay_mtu_bytes,
            last_pass_seconds=self._last_pass_seconds,
            measured_mtu_bytes=self._measured_mtu_bytes,
        )

    def _next_wish(self) -> _Wish:
        """Return the wish that the loop takes up next: one for all who come before it does."""
        if self._wish is None:
            self._wish = _Wish()
        self._wake.set()
        return self._wish

    async def _grant(self, wish: _Wish) -> None:
        if wish.topology is not None:
            known = self._topology
            if known is None or known.underlay != wish.topology.underlay:
                wish.everything = True  # also to measure
            self._topology = wish.topology
        if wish.everything:
            self._unsure = None
        assert self._topology is not None
        try:
            wish.error = await self._try(self._topology, wish)
            await self._forget(self._topology)
        finally:
            wish.done.set()

    async def _try(self, topology: Topology, wish: _Wish) -> NotConverged | None:
        try:
            operations = await self._converge(topology)
        except NotConverged as exc:
            logger.warning("network not converged %s", exc)
            return exc
        wish.operations = len(operations)
        if operations and wish.topology is None:
            self._counts["healed"] += len(operations)
            logger.warning(
                "network healed operations=%d first=%s", len(operations), _describe(operations[0])
            )
        return None

    async def _forget(self, topology: Topology) -> None:
        """Make the kernel forget what it remembers of the topology before (retirement.py)."""
        old, self._remembered = self._remembered, topology
        keep = await self._in_thread(partial(survivors, old, topology))
        if keep is None:
            return
        try:
            await self._in_kernel(lambda kernel: kernel.forget(topology, keep))
        except OSError as exc:
            self._remembered = old  # again with the next look
            logger.warning("old flows not ended error=%s", exc)

    async def _converge(self, topology: Topology) -> list[Operation]:
        if self._unsure is None:
            await self._measure(topology)
        wanted, scope = await self._in_thread(partial(self._compare, topology))
        self._desired = wanted
        self._unsure = scope  # until it is known better
        operations = await self._reach(wanted, scope)
        self._unsure = frozenset()
        return operations

    def _compare(self, topology: Topology) -> tuple[frozenset[Resource], frozenset[str] | None]:
        """Return what is to be, and where to look for it (None: everywhere).

        Runs in a worker thread while the loop waits for it, and changes nothing: it takes 0.1 s for
        a large cluster, in which the daemon must not miss its heartbeats.
        """
        wanted = desired(topology, self._naming, self._underlay_mtu_bytes)
        if self._desired is None or self._unsure is None:
            return wanted, None
        return wanted, self._unsure | {r.namespace for r in wanted ^ self._desired}

    async def _measure(self, topology: Topology) -> None:
        """Find the underlay's MTU, or keep what it was while no interface has the address."""
        address, known = topology.underlay.address, topology.underlay.mtu_bytes
        measured = await self._in_kernel(lambda kernel: kernel.mtu_bytes_of(address))
        self._measured_mtu_bytes = measured or self._measured_mtu_bytes
        mtu_bytes = min(self._measured_mtu_bytes, known or self._measured_mtu_bytes)
        if mtu_bytes != self._underlay_mtu_bytes:
            logger.info("underlay mtu changed bytes=%d", mtu_bytes)
            self._underlay_mtu_bytes = mtu_bytes

    async def _reach(
        self, wanted: frozenset[Resource], scope: frozenset[str] | None
    ) -> list[Operation]:
        """Bring the namespaces of *scope* to *wanted*, and return what that took."""
        if scope is not None:
            wanted = frozenset(resource for resource in wanted if resource.namespace in scope)
        done: list[Operation] = []
        failures: list[Failure] = []
        for pause in ATTEMPT_PAUSES:
            await trio.sleep(pause if failures else 0)
            started = trio.current_time()
            operations, failures = await self._in_kernel(partial(_step, wanted, scope))
            self._counts["passes"] += 1
            self._last_pass_seconds = trio.current_time() - started
            self._differing = len(operations)
            if not operations:
                return done
            done += operations
        raise NotConverged(operations, failures)

    async def _in_kernel(self, work: Callable[[Pass], T]) -> T:
        def run_pass() -> T:
            with Pass(self._directory, self._host, self._naming, self._memory) as kernel:
                return work(kernel)

        return await self._in_thread(partial(netns.run_in_thread, run_pass))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        # Not abandoned when cancelled: a pass ends before anybody else looks.
        return await trio.to_thread.run_sync(work)


async def _wait_granted(wish: _Wish) -> None:
    await wish.done.wait()
    if wish.error is not None:
        raise wish.error


def _step(
    wanted: frozenset[Resource], scope: frozenset[str] | None, kernel: Pass
) -> tuple[list[Operation], list[Failure]]:
    """Look, and do what differs; what differed is returned, and what was refused."""
    operations = plan(wanted, kernel.read(wanted, scope))
    return operations, kernel.apply(operations)


def _describe(operation: Operation) -> str:
    resource = operation.resource
    name = " ".join(str(part) for part in resource.key if part != HOST)
    return f"{type(operation).__name__.lower()} {name}"
