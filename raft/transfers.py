"""Snapshots on their way to other servers and from them, a chunk at a time.

Beside the core's loop, which only hears how they fared.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from functools import partial
from typing import Final

import trio

from raft.applying import Applier
from raft.core import Raft
from raft.machine import Transport
from raft.messages import InstallSnapshot, ServerId, is_well_formed
from raft.offload import Offload
from raft.snapshots import (
    SnapshotDamaged,
    SnapshotFile,
    SnapshotHeader,
    SnapshotStore,
    SnapshotWriter,
    snapshot_name,
)

logger = logging.getLogger(__name__)

#: Snapshots that are sent at the same time, and that wait for it.
SENDING_MAX: Final = 2
SEND_QUEUE_MAX: Final = 16
#: Seconds without a single chunk after which a snapshot that comes in is given up.
RECEIVE_STALL: Final = 60.0


class SnapshotRefused(OSError):
    """This server does not want the snapshot, or not now."""


class Transfers:
    """Sends and receives snapshots for one server.

    Args:
        core: read here, and told through *call*.
        call: has a function called by the job that owns the core, soon.
    """

    def __init__(
        self,
        core: Raft,
        snapshots: SnapshotStore,
        applier: Applier,
        transport: Transport,
        call: Callable[[Callable[[], None]], None],
        offload: Offload,
    ) -> None:
        self._core = core
        self._snapshots = snapshots
        self._applier = applier
        self._transport = transport
        self._call = call
        self._offload = offload
        self._to_send, self._sending = trio.open_memory_channel[tuple[ServerId, InstallSnapshot]](
            SEND_QUEUE_MAX
        )
        self._under_way: set[ServerId] = set()
        self._receiving = False

    # Snapshots that go out.
    def queue(self, to: ServerId, install: InstallSnapshot) -> None:
        """Send the file behind *install* soon, and report how that went.

        One at a time to each server: on a slow link the core asks again before the first arrived.
        """
        if to in self._under_way:
            return
        try:
            self._to_send.send_nowait((to, install))
            self._under_way.add(to)
        except trio.WouldBlock:
            self._call(partial(self._core.report_snapshot, to, delivered=False))

    async def send_queued(self) -> None:
        """Send, one after the other, until cancelled."""
        while True:
            to, install = await self._sending.receive()
            delivered = await self._send(to, install)
            self._under_way.discard(to)
            self._call(partial(self._core.report_snapshot, to, delivered=delivered))

    async def _send(self, to: ServerId, install: InstallSnapshot) -> bool:
        """Send the file behind *install*; say if it arrived."""
        name = snapshot_name(install.snapshot)
        with self._applier.pin(name):
            try:
                file = await self._offload(self._snapshots.open, name)
                header = file.header(install.term)
                async with aclosing(
                    _chunks(file, self._core.config.snapshot_bytes_per_second)
                ) as chunks:
                    await self._transport.send_snapshot(to, header, chunks)
            except SnapshotDamaged as damage:
                logger.error("snapshot damaged %s", damage)
                self._applier.replace_snapshot()
                return False
            except OSError as exc:
                logger.warning("snapshot not sent follower=%d error=%s", to, exc)
                return False
        return True

    # Snapshots that come in.
    async def receive(
        self, sender: ServerId, header: SnapshotHeader, chunks: AsyncIterator[bytes]
    ) -> None:
        """Take in a snapshot that the leader *sender* sends; it is on disk when this returns.

        Raises:
            SnapshotRefused: it is old, or another one is just coming in.
            SnapshotDamaged: what came is not what *header* says.
            DiskFull: there is no room for it.
        """
        try:
            await self._receive(sender, header, chunks)
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()  # or it would be left hanging where it was refused

    async def _receive(
        self, sender: ServerId, header: SnapshotHeader, chunks: AsyncIterator[bytes]
    ) -> None:
        core, snapshot = self._core, header.snapshot
        if not is_well_formed(InstallSnapshot(header.term, snapshot)):
            raise SnapshotDamaged("its header makes no sense")
        if header.term < core.term or snapshot.index <= core.log.committed:
            raise SnapshotRefused(errno.ESTALE, "the snapshot is older than what is here")
        if self._receiving:
            raise SnapshotRefused(errno.EBUSY, "another snapshot is just coming in")
        self._receiving = True
        try:
            writer = await self._offload(self._snapshots.receive, snapshot)
            try:
                await _write(writer, header, chunks, self._offload)
            except BaseException:
                writer.discard()
                raise
            if not await self._install(sender, header):
                name = snapshot_name(snapshot)
                await self._offload(self._snapshots.directory.remove, name)
                raise SnapshotRefused(errno.ESTALE, "the log does not need the snapshot")
        finally:
            self._receiving = False

    async def _install(self, sender: ServerId, header: SnapshotHeader) -> bool:
        """Show the core a snapshot whose file is here; say if it took it."""
        core, done, taken = self._core, trio.Event(), False

        def install() -> None:
            nonlocal taken
            core.step(sender, InstallSnapshot(header.term, header.snapshot))
            taken = core.log.snapshot == header.snapshot
            done.set()

        self._call(install)
        await done.wait()
        return taken


async def _chunks(file: SnapshotFile, bytes_per_second: int) -> AsyncGenerator[bytes, None]:
    """Give the chunks one by one, no faster than so many bytes a second."""
    began, given = trio.current_time(), 0
    for position in range(file.chunk_count):
        chunk = file.chunk(position)
        await trio.sleep_until(began + given / bytes_per_second)
        given += len(chunk)
        yield chunk


async def _write(
    writer: SnapshotWriter,
    header: SnapshotHeader,
    chunks: AsyncIterator[bytes],
    offload: Offload,
) -> None:
    """Write *chunks* to a file and check that they are what *header* says."""
    while True:
        chunk = None
        with trio.move_on_after(RECEIVE_STALL) as patience:
            chunk = await anext(chunks, None)
        if patience.cancelled_caught:
            raise SnapshotRefused(errno.ETIMEDOUT, f"no chunk came for {RECEIVE_STALL:g} s")
        if chunk is None:
            break
        await offload(writer.add_untrusted, chunk)
    if (writer.state_bytes, writer.sha256) != (header.state_bytes, header.sha256):
        raise SnapshotDamaged("what arrived is not what was announced")
    await offload(writer.finish)
