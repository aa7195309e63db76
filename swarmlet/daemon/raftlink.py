"""Raft's messages between managers, over sl-raft/1: one stream a direction.

A shell. A stream begins with RaftHello, which says which server speaks; the certificate says which
node that is, and the store which server the node has, so nobody speaks for another. Messages to a
server that cannot be reached are dropped and reported: Raft repeats what matters.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable

import trio

from raft.messages import Message, ServerId
from raft.replica import Replica
from raft.snapshots import SnapshotDamaged, SnapshotHeader
from swarmlet.codec import BadMessage
from swarmlet.model import NodeId
from swarmlet.session import ManagerView, RaftHello, SnapshotReceipt
from swarmlet.transport import ConnectFailed, EndOfStream, FrameStream, Protocol, Transport
from swarmlet.waiting import Bell

logger = logging.getLogger(__name__)

#: Messages that wait for one peer; what comes beyond is dropped.
QUEUE_MAX = 4096
CONNECT_WITHIN = 2.0
#: Seconds between two tries to reach a peer that messages wait for.
RETRY = 0.1
#: Seconds of a snapshot's whole transfer.
SNAPSHOT_PATIENCE = 600.0
#: First byte of a frame in a snapshot stream.
CHUNK, END = b"c", b"e"


class _Peer:
    """Messages on their way to one server."""

    def __init__(self) -> None:
        self.queue: list[Message] = []
        self.bell = Bell()


class RaftLink:
    """raft.machine.Transport over the node's port."""

    def __init__(
        self,
        *,
        transport: Transport,
        address: Callable[[], tuple[str, int]],
        find_server: Callable[[ServerId], ManagerView | None],
        server_of: Callable[[NodeId], ServerId | None],
    ) -> None:
        """*find_server* says where a server is; *server_of* which server a node has, as far as
        the store knows."""
        self._transport = transport
        self._address = address
        self._find_server = find_server
        self._server_of = server_of
        self._replica: Replica | None = None
        self._peers: dict[ServerId, _Peer] = {}
        self._heard: dict[ServerId, ManagerView] = {}
        self._nursery: trio.Nursery | None = None

    async def run(
        self, replica: Replica, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Carry messages until cancelled."""
        self._replica = replica
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            self._replica = None

    # What Raft calls.

    def send(self, to: ServerId, message: Message) -> None:
        if self._nursery is None:
            return
        peer = self._peers.get(to)
        if peer is None:
            peer = self._peers[to] = _Peer()
            self._nursery.start_soon(self._speak_forever, to, peer)
        if len(peer.queue) >= QUEUE_MAX:
            assert self._replica is not None
            self._replica.report_unreachable(to)
            return
        peer.queue.append(message)
        peer.bell.ring()

    async def send_snapshot(
        self, to: ServerId, header: SnapshotHeader, chunks: AsyncIterator[bytes]
    ) -> None:
        with trio.move_on_after(SNAPSHOT_PATIENCE):
            try:
                stream = await self._connect(to, snapshot=True)
                async with stream:
                    await stream.send(header)
                    async for chunk in chunks:
                        await stream.send_bodies([CHUNK + chunk])
                    await stream.send_bodies([END])
                    receipt = await stream.receive()
            except (EndOfStream, BadMessage) as exc:
                raise OSError(f"the snapshot did not arrive: {exc}") from exc
            if not isinstance(receipt, SnapshotReceipt) or receipt.error:
                reason = receipt.error if isinstance(receipt, SnapshotReceipt) else "nonsense"
                raise OSError(f"the snapshot was refused: {reason}")
            return
        raise OSError(f"the snapshot did not arrive within {SNAPSHOT_PATIENCE:g} s")

    # The speaking side.

    async def _connect(self, to: ServerId, *, snapshot: bool = False) -> FrameStream:
        where = self._find_server(to) or self._heard.get(to)
        if where is None:
            raise OSError(f"the address of server {to:x} is not known")
        stream = await self._transport.connect(
            (where.address, where.port), Protocol.RAFT, node=where.node, within=CONNECT_WITHIN
        )
        assert self._replica is not None
        address, port = self._address()
        hello = RaftHello(
            server=self._replica.server, to=to, address=address, port=port, snapshot=snapshot
        )
        await stream.send(hello)
        return stream

    async def _speak_forever(self, to: ServerId, peer: _Peer) -> None:
        assert self._replica is not None
        had_stream = False
        while True:
            # A stream that broke is made anew at once, or a follower, which only ever answers,
            # would not find out that its leader is gone.
            if not peer.queue and not had_stream:
                await peer.bell.wait_beyond(peer.bell.rung)
            try:
                stream = await self._connect(to)
            except OSError as exc:
                peer.queue.clear()
                self._replica.report_unreachable(to)
                if had_stream and isinstance(exc, ConnectFailed):
                    # Its process is gone and its port refuses: no need to wait for a timeout.
                    self._replica.connection_refused(to)
                had_stream = False
                await trio.sleep(RETRY)
                continue
            had_stream = True
            try:
                await self._speak(stream, peer)
            except* (OSError, EndOfStream, BadMessage) as failures:
                logger.debug("raft stream ended server=%x reason=%s", to, failures.exceptions[0])
            peer.queue.clear()
            self._replica.report_unreachable(to)

    async def _speak(self, stream: FrameStream, peer: _Peer) -> None:
        """Send what waits, as it comes, until the stream breaks."""
        async with stream, trio.open_nursery() as nursery:

            async def notice_end() -> None:
                # The other side says nothing here: what comes is its end.
                stream.idle_timeout = float("inf")
                await stream.receive()

            nursery.start_soon(notice_end)
            while True:
                rung = peer.bell.rung
                if peer.queue:
                    messages, peer.queue = peer.queue, []
                    await stream.send_many(messages)
                else:
                    await peer.bell.wait_beyond(rung)

    # The listening side.

    async def serve(self, stream: FrameStream) -> None:
        """Take in what another manager's server says: the handler for Protocol.RAFT."""
        replica = self._replica
        hello = await stream.receive()
        if not isinstance(hello, RaftHello):
            raise BadMessage("a Raft stream begins with RaftHello")
        if replica is None or hello.to != replica.server:
            return  # it means a server that this node had once
        assert stream.peer.node is not None
        node, server = NodeId(stream.peer.node), ServerId(hello.server)
        known = self._server_of(node)
        if known is not None and known != server:
            logger.warning("raft stream refused node=%s server=%x known=%x", node, server, known)
            return
        self._heard[server] = ManagerView(
            node=node, address=hello.address, port=hello.port, raft_server=server
        )
        if hello.snapshot:
            await self._receive_snapshot(replica, server, stream)
            return
        stream.idle_timeout = float("inf")  # the kernel finds out when it is gone
        while True:
            try:
                message = await stream.receive()
            except EndOfStream:
                return
            if not isinstance(message, Message):
                raise BadMessage(f"{type(message).__name__} is no message of Raft")
            replica.deliver(server, message)

    async def _receive_snapshot(
        self, replica: Replica, server: ServerId, stream: FrameStream
    ) -> None:
        header = await stream.receive()
        if not isinstance(header, SnapshotHeader):
            raise BadMessage("a snapshot begins with its header")

        async def chunks() -> AsyncIterator[bytes]:
            while True:
                body = await stream.receive_body()
                if body[:1] == END:
                    return
                yield body[1:]

        error = ""
        try:
            await replica.receive_snapshot(server, header, chunks())
        except (OSError, SnapshotDamaged) as exc:
            error = str(exc) or type(exc).__name__
        await stream.send(SnapshotReceipt(error))
