"""One server of a cluster as a process: Raft over the daemon's transport, and clients on a port.

    python -m tests.raft.node FOLDER

The folder was made by nodes.py. Everything is what a manager's daemon has, TLS and wire format
included, but for the state machine, which is a key-value store, and the clients, whose frames are
not encrypted (a daemon's clients are on the same host).
"""

from __future__ import annotations

import json
import logging
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgpack
import trio

from raft.config import EDGE, LAN, WAN, Config
from raft.machine import ChangeRefused, Committed, Dropped, NotLeader, ReadTimedOut, TransferFailed
from raft.messages import ServerId
from raft.replica import Replica
from swarmlet.codec import pack
from swarmlet.daemon import malloc
from swarmlet.daemon.raftlink import RaftLink
from swarmlet.identity import ClusterClock, Credentials, KeyPair, KnownNode, StoreGate, TrustBundle
from swarmlet.identity import Role as CertificateRole
from swarmlet.model import NodeId
from swarmlet.session import ManagerView
from swarmlet.transport import Framed, Protocol, Transport
from tests.raft import kv

CONFIGS = {"default": Config(), "lan": LAN, "wan": WAN, "edge": EDGE}
CLUSTER = b"cluster-of-nodes"
KEY = bytes(range(32))
#: Seconds that a client waits at most, unless it hangs up.
PATIENCE = 5.0
RECEIVE_BYTES = 64 << 10


class Node:
    def __init__(self, folder: Path) -> None:
        plan = json.loads((folder / "plan.json").read_text())
        self.folder = folder
        self.own = plan["servers"][plan["number"]]
        self.servers = {ServerId(s["server"]): s for s in plan["servers"].values()}
        self.numbers = {ServerId(s["server"]): int(n) for n, s in plan["servers"].items()}
        credentials = Credentials(
            KeyPair.from_pem_untrusted((folder / "key.pem").read_bytes()),
            ((folder / "certificate.der").read_bytes(),),
            TrustBundle(roots=((folder / "root.der").read_bytes(),)),
        )
        known = {
            s["node"]: KnownNode(
                role=CertificateRole.MANAGER, public_keys=(bytes.fromhex(s["public_key"]),)
            )
            for s in self.servers.values()
        }
        gate = StoreGate(lambda: credentials, known.get, ClusterClock(time.time))
        self.transport = Transport(lambda: credentials, gate)
        self.link = RaftLink(
            transport=self.transport,
            address=lambda: (self.own["host"], self.own["raft"]),
            find_server=self.view_of,
            server_of={NodeId(s["node"]): n for n, s in self.servers.items()}.get,
        )
        self.store = kv.Store()
        self.replica = Replica(
            directory=Path(plan["disk"]),
            key=KEY,
            machine=self.store,
            transport=self.link,
            rng=random.Random(),
            cluster=CLUSTER,
            config=CONFIGS[plan["preset"]],
            snapshot_entries=plan["snapshot_entries"],
            segment_bytes=plan["segment_bytes"],
        )

    def view_of(self, server: ServerId) -> ManagerView | None:
        found = self.servers.get(server)
        if found is None:
            return None
        return ManagerView(
            node=NodeId(found["node"]),
            address=found["host"],
            port=found["raft"],
            raft_server=server,
        )

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.link.run, self.replica)
            listeners = await trio.open_tcp_listeners(self.own["raft"], host=self.own["host"])
            handlers = {Protocol.RAFT: Framed(self.link.serve)}
            await nursery.start(self.transport.serve, listeners, handlers)
            await nursery.start(self.replica.run)
            nursery.start_soon(self.gather)
            await trio.serve_tcp(self.serve, self.own["client"], host=self.own["host"])

    async def run_until_signal(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.stop_on_signal, nursery.cancel_scope)
            await self.run()

    async def stop_on_signal(self, scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                try:
                    await self.replica.transfer_leadership()
                except TransferFailed as exc:
                    logging.info("leadership kept: %s", exc)
                scope.cancel()

    async def gather(self) -> None:
        """As the leader: make everybody in the plan a voter."""
        status = self.replica.status
        while True:
            missing = [s for s in self.servers if s not in status.configuration.voters]
            if not status.leads or not missing:
                status = await self.replica.wait_for_change(status)
                continue
            view = self.view_of(missing[0])
            try:
                if missing[0] not in status.configuration:
                    await self.replica.add_learner(missing[0], pack(view), timeout=10)
                await self.replica.promote(missing[0], timeout=10)
            except (ChangeRefused, NotLeader) as exc:
                logging.info("not gathered: %s", exc)
                await trio.sleep(0.2)
            status = self.replica.status

    # Clients.
    async def serve(self, stream: trio.SocketStream) -> None:
        received = bytearray()
        try:
            while chunk := await stream.receive_some(RECEIVE_BYTES):
                received += chunk
                while len(received) >= kv.LENGTH.size:
                    (length,) = kv.LENGTH.unpack_from(received)
                    end = kv.LENGTH.size + length
                    if len(received) < end:
                        break
                    body = bytes(received[kv.LENGTH.size : end])
                    del received[:end]
                    await stream.send_all(kv.frame(await self.answer(body)))
        except trio.BrokenResourceError:
            pass  # the client gave up

    async def answer(self, body: bytes) -> list[Any]:
        operation, key, *_ = msgpack.unpackb(body)
        if operation == kv.GET:
            try:
                await self.replica.read_index(timeout=PATIENCE)
            except ReadTimedOut:
                return [kv.NEVER, 0]
            return [kv.OK, self.store.values.get(key)]
        if operation == kv.STATUS:
            return [kv.OK, self.status()]
        if operation == kv.SNAPSHOT:
            await self.replica.take_snapshot()
            return [kv.OK, None]
        outcome = await self.replica.propose(body, timeout=PATIENCE)
        match outcome:
            case Committed(result=result):
                return [kv.OK, result]
            case Dropped(leader=leader):
                return [kv.NEVER, self.numbers.get(leader, 0) if leader else 0]
            case _:
                return [kv.MAYBE, None]

    def status(self) -> dict[str, Any]:
        status = self.replica.status
        return {
            "leads": status.leads,
            "term": status.term,
            "leader": self.numbers.get(status.leader, 0) if status.leader else 0,
            "commit": status.commit_index,
            "applied": status.applied_index,
            "first": status.first_index,
            "last": status.last_index,
            "snapshot": status.snapshot_index,
            "voters": len(status.voters),
            "recovering": status.recovering,
            "disk_full": status.disk_full,
            "keys": len(self.store.values),
            "digest": self.store.digest(),
        }


def main() -> None:
    malloc.keep_little()
    folder = Path(sys.argv[1])
    logging.basicConfig(
        filename=folder / "log", level=logging.INFO, format="%(asctime)s.%(msecs)03d %(message)s"
    )
    trio.run(Node(folder).run_until_signal)


if __name__ == "__main__":
    main()
