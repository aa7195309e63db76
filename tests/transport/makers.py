"""Nodes with a real port on the loopback, for the tests of the transport."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from swarmlet.identity import CertificateGate, ClusterClock, Credentials, Role, StoreGate
from swarmlet.transport import Framed, FrameStream, Handlers, Protocol, Raw, Transport
from tests.identity.makers import NOW, Cluster


@dataclass
class Node:
    """A node with its transport; *clock* is its wall clock, and may be set."""

    cluster: Cluster
    credentials: Credentials
    clock: float = NOW
    gate: StoreGate | CertificateGate = field(init=False)
    transport: Transport = field(init=False)

    def __post_init__(self) -> None:
        clock = ClusterClock(lambda: self.clock)
        if self.credentials.role is Role.MANAGER:
            self.gate = StoreGate(lambda: self.credentials, self.cluster.nodes.get, clock)
        else:
            self.gate = CertificateGate(lambda: self.credentials, clock)
        self.transport = Transport(lambda: self.credentials, self.gate)

    @property
    def id(self) -> str:
        return self.credentials.node


def manager_of(cluster: Cluster) -> Node:
    return Node(cluster, cluster.node(Role.MANAGER))


def worker_of(cluster: Cluster) -> Node:
    return Node(cluster, cluster.node(Role.WORKER))


async def echo(stream: FrameStream) -> None:
    """Send every message back until the peer closes."""
    async for message in stream:
        await stream.send(message)


async def echo_bytes(peer: object, stream: trio.SSLStream[trio.SocketStream]) -> None:
    async for chunk in stream:
        await stream.send_all(chunk)


#: Every protocol, so that a test sees which of them its peer gets to.
ECHO: Mapping[Protocol, Framed | Raw] = {
    Protocol.RAFT: Framed(echo),
    Protocol.SESSION: Framed(echo),
    Protocol.SYNC: Framed(echo),
    Protocol.CA: Framed(echo),
    Protocol.API: Raw(echo_bytes),
}


@asynccontextmanager
async def serving(node: Node, handlers: Handlers = ECHO) -> AsyncIterator[tuple[str, int]]:
    """Serve *handlers* at *node*'s port and yield its address."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(node.transport.serve, listeners, handlers)
        host, port = listeners[0].socket.getsockname()
        yield host, port
        nursery.cancel_scope.cancel()


async def eventually(holds: Callable[[], bool]) -> None:
    """Wait for what another task brings about and no event tells; five seconds at most."""
    with trio.fail_after(5):
        while not holds():  # noqa: ASYNC110
            await trio.sleep(0.001)
