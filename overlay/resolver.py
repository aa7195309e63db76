"""The Trio shell of the names: a DNS server on 127.0.0.11 in each sandbox.

The sockets are opened in the sandbox's namespace and served by the daemon's loop, so a sandbox
costs two sockets and no process. (Its nft table makes port 53 there ours without occupying it.)
Names that the sandbox may know are answered at once; the rest is asked of the host's own
resolvers, from the host's namespace, so that a stub on the host's loopback serves as well.
"""

from __future__ import annotations

import logging
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from overlay import dns, netns
from overlay.dns import BadMessage, Query, Rcode
from overlay.names import NameView
from overlay.rulesets import RESOLVER_ADDRESS, RESOLVER_PORT
from overlay.topology import SandboxId
from overlay.upstream import (
    MESSAGE_BYTES_MAX,
    Server,
    Upstream,
    read_resolv_conf,
    receive_message,
    send_message,
)

logger = logging.getLogger(__name__)

#: Seconds from one look at the sandboxes' namespaces to the next.
LOOK_SECONDS = 30.0
#: Questions that wait for an upstream: of one sandbox, and of all. Those beyond are refused.
WAITING_PER_SANDBOX_MAX = 64
WAITING_MAX = 512
#: Open TCP connections of one sandbox, and seconds that one may idle.
CONNECTIONS_MAX = 16
IDLE_SECONDS = 10.0
TCP_BACKLOG = 16
#: Seconds to wait when no connection can be accepted (no descriptor is free).
ACCEPT_PAUSE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class ResolverStatistics:
    """Counts since the start: *failed* had no upstream, *refused* came too many at a time."""

    sandboxes: int
    waiting: int
    answered: int
    forwarded: int
    failed: int
    refused: int
    malformed: int


@dataclass(slots=True, eq=False)
class _Served:
    """A sandbox whose sockets are open. *inode* tells its namespace from a later one."""

    sandbox: SandboxId
    inode: int
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    waiting: int = 0
    connections: int = 0


class Resolver:
    """Resolver of the sandboxes under *run_dir*.

    Args:
        run_dir: the reconciler's.
        upstreams: gives the resolvers for all other names; by default those of the host's
            /etc/resolv.conf.
        rng: source of message numbers and of the order of addresses.
    """

    def __init__(
        self,
        *,
        run_dir: Path,
        upstreams: Callable[[], Sequence[Server]] = read_resolv_conf,
        rng: random.Random | None = None,
    ) -> None:
        self._directory = run_dir / "netns"
        self._rng = rng or random.SystemRandom()
        self._upstream = Upstream(upstreams, self._rng)
        self._views: Mapping[SandboxId, NameView] = {}
        self._served: dict[SandboxId, _Served] = {}
        self._wake = trio.Event()
        self._looked = trio.Event()
        self._counts: Counter[str] = Counter()
        self._waiting = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve the sandboxes of the views until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                self._wake = trio.Event()
                await self._look(nursery)
                self._looked.set()
                self._looked = trio.Event()
                with trio.move_on_after(LOOK_SECONDS):
                    await self._wake.wait()

    def update(self, views: Mapping[SandboxId, NameView]) -> None:
        """Answer from *views* from now on, and serve just their sandboxes.

        The namespaces should be there (Reconciler.converge); one that is not is looked for
        again with the next update, and every 30 seconds.
        """
        self._views = dict(views)
        self._wake.set()

    async def wait_serving(self, sandboxes: Iterable[SandboxId]) -> None:
        """Return when the resolver listens in all of *sandboxes* that it has views of."""
        await trio.lowlevel.checkpoint()
        wanted = set(sandboxes)
        while wanted & self._views.keys() - self._served.keys():
            await self._looked.wait()

    def statistics(self) -> ResolverStatistics:
        counts = self._counts
        return ResolverStatistics(
            sandboxes=len(self._served),
            waiting=self._waiting,
            answered=counts["answered"],
            forwarded=counts["forwarded"],
            failed=counts["failed"],
            refused=counts["refused"],
            malformed=counts["malformed"],
        )

    async def _look(self, nursery: trio.Nursery) -> None:
        """Open the sockets of new sandboxes, and close those of sandboxes that are gone."""
        for sandbox, served in list(self._served.items()):
            if sandbox not in self._views or _inode(self._directory / sandbox) != served.inode:
                served.scope.cancel()
                del self._served[sandbox]
        for sandbox in sorted(self._views.keys() - self._served.keys()):
            path = self._directory / sandbox
            inode = _inode(path)
            try:
                udp, tcp = await trio.to_thread.run_sync(netns.run_in_netns, path, _open_sockets)
            except OSError as exc:
                logger.warning("resolver not listening sandbox=%s error=%s", sandbox, exc)
                continue
            served = self._served[sandbox] = _Served(sandbox, inode)
            nursery.start_soon(self._serve, served, udp, tcp)

    async def _serve(self, served: _Served, udp: socket.socket, tcp: socket.socket) -> None:
        with udp, tcp, served.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve_udp, served, udp, nursery)
                nursery.start_soon(self._serve_tcp, served, tcp, nursery)

    async def _serve_udp(self, served: _Served, raw: socket.socket, nursery: trio.Nursery) -> None:
        sock = trio.socket.from_stdlib_socket(raw)
        while True:
            data, client = await sock.recvfrom(MESSAGE_BYTES_MAX)
            if (query := self._parse(data)) is None:
                continue
            reply = self._reply_now(served, query)
            if reply is None:
                self._begin_waiting(served)
                nursery.start_soon(self._forward_udp, served, sock, client, query, data)
            else:
                await _send_udp(sock, client, dns.fit(query, reply))

    async def _forward_udp(
        self,
        served: _Served,
        sock: trio.socket.SocketType,
        client: tuple[str, int],
        query: Query,
        data: bytes,
    ) -> None:
        reply = await self._forward(served, query, data, by_tcp=False)
        await _send_udp(sock, client, dns.fit(query, reply))

    async def _serve_tcp(self, served: _Served, raw: socket.socket, nursery: trio.Nursery) -> None:
        sock = trio.socket.from_stdlib_socket(raw)
        while True:
            try:
                connection, _ = await sock.accept()
            except OSError:
                await trio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            if served.connections >= CONNECTIONS_MAX:
                self._counts["refused"] += 1
                connection.close()
                continue
            served.connections += 1
            nursery.start_soon(self._serve_connection, served, trio.SocketStream(connection))

    async def _serve_connection(self, served: _Served, stream: trio.SocketStream) -> None:
        try:
            async with stream:
                while await self._serve_message(served, stream):
                    pass
        except (OSError, trio.BrokenResourceError):
            pass  # the client went away
        finally:
            served.connections -= 1

    async def _serve_message(self, served: _Served, stream: trio.SocketStream) -> bool:
        """Answer the next message; False if the connection is to be closed instead."""
        data = None
        with trio.move_on_after(IDLE_SECONDS):
            data = await receive_message(stream)
        query = self._parse(data) if data is not None else None
        if data is None or query is None:
            return False
        reply = self._reply_now(served, query)
        if reply is None:
            self._begin_waiting(served)
            reply = await self._forward(served, query, data, by_tcp=True)
        with trio.move_on_after(IDLE_SECONDS) as sending:
            await send_message(stream, reply)
        return not sending.cancelled_caught

    def _parse(self, data: bytes) -> Query | None:
        try:
            return dns.parse_query_untrusted(data)
        except BadMessage:
            self._counts["malformed"] += 1
            return None

    def _reply_now(self, served: _Served, query: Query) -> bytes | None:
        """Return what can be said without asking anyone; None if upstream is to be asked."""
        view = self._views.get(served.sandbox)
        reply = dns.answer(query, view, self._rng) if view else None
        if reply is not None:
            self._counts["answered"] += 1
            return reply
        if served.waiting >= WAITING_PER_SANDBOX_MAX or self._waiting >= WAITING_MAX:
            self._counts["refused"] += 1
            return dns.refusal(query, Rcode.SERVFAIL)
        return None

    def _begin_waiting(self, served: _Served) -> None:
        """Count a question before its job runs, so that a burst cannot start too many."""
        served.waiting += 1
        self._waiting += 1

    async def _forward(self, served: _Served, query: Query, data: bytes, *, by_tcp: bool) -> bytes:
        try:
            reply = await self._upstream.ask(query, data, by_tcp=by_tcp)
        finally:
            served.waiting -= 1
            self._waiting -= 1
        self._counts["failed" if reply is None else "forwarded"] += 1
        return dns.refusal(query, Rcode.SERVFAIL) if reply is None else reply


async def _send_udp(sock: trio.socket.SocketType, client: tuple[str, int], reply: bytes) -> None:
    with suppress(OSError):  # a reply that cannot be sent is a reply lost: the client asks again
        await sock.sendto(reply, client)


def _open_sockets() -> tuple[socket.socket, socket.socket]:
    """Return the UDP and the TCP socket of the namespace that the thread is in."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        udp.bind((RESOLVER_ADDRESS, RESOLVER_PORT))
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            # After a restart of the daemon old connections may linger.
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.bind((RESOLVER_ADDRESS, RESOLVER_PORT))
            tcp.listen(TCP_BACKLOG)
        except BaseException:
            tcp.close()
            raise
    except BaseException:
        udp.close()
        raise
    return udp, tcp


def _inode(path: Path) -> int:
    """Return what tells the namespace at *path* from every other; 0 if there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0
