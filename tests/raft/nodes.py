"""Clusters of node.py's processes: their identities, their folders, starting and killing them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from raft.replica import Replica
from swarmlet.identity import CertificateAuthority, KeyPair, Role, new_cluster_id
from tests.raft import kv
from tests.raft.node import CLUSTER, KEY

ROOT = Path(__file__).parent.parent.parent
RAFT_PORT, CLIENT_PORT = 7947, 7948


@dataclass
class Process:
    """A server that may run, be stopped, be killed."""

    number: int
    folder: Path
    disk: Path
    host: str
    process: subprocess.Popen[bytes] | None = None
    #: What to put before the command, to run it elsewhere.
    enter: Sequence[str] = ()

    @property
    def address(self) -> tuple[str, int]:
        return self.host, CLIENT_PORT

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        assert self.process is None
        with (self.folder / "errors").open("ab") as errors:
            self.process = subprocess.Popen(
                [*self.enter, sys.executable, "-m", "tests.raft.node", str(self.folder)],
                cwd=ROOT,
                stdout=errors,
                stderr=errors,
            )

    def end(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait()
            self.process = None

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def ask(self, request: list[Any], *, within: float = 6.0) -> list[Any]:
        """One request on a connection of its own. Raises OSError."""
        with socket.create_connection(self.address, timeout=within) as connection:
            connection.sendall(kv.frame(request))
            received = b""
            while len(received) < 4 or len(received) < 4 + kv.LENGTH.unpack_from(received)[0]:
                chunk = connection.recv(1 << 16)
                if not chunk:
                    raise ConnectionResetError("hung up")
                received += chunk
            answer: list[Any] = msgpack.unpackb(received[4:])
            return answer

    def status(self) -> dict[str, Any] | None:
        try:
            _, status = self.ask([kv.STATUS, b""], within=2.0)
        except OSError:
            return None
        assert isinstance(status, dict)
        return status


def make(
    folder: Path,
    hosts: Sequence[str],
    *,
    preset: str = "lan",
    snapshot_entries: int = 0,
    disks: Sequence[Path] = (),
) -> list[Process]:
    """Make the folders of a cluster, one server a host; the first one makes it a cluster."""
    now = time.time()
    authority = CertificateAuthority.create(new_cluster_id(), now=now)
    keys = [KeyPair.generate() for _ in hosts]
    places = list(disks) or [folder / f"n{number}" / "raft" for number in range(1, len(hosts) + 1)]
    servers: dict[str, dict[str, Any]] = {}
    for number, (host, key, disk) in enumerate(zip(hosts, keys, places, strict=True), 1):
        found = Replica.bootstrap if number == 1 else Replica.create
        servers[str(number)] = {
            "host": host,
            "raft": RAFT_PORT,
            "client": CLIENT_PORT,
            "node": key.node_id,
            "public_key": key.public_key.hex(),
            "server": found(disk, KEY, CLUSTER),
        }
    made = []
    for number, (host, key, disk) in enumerate(zip(hosts, keys, places, strict=True), 1):
        place = folder / f"n{number}"
        place.mkdir(exist_ok=True)
        plan = {
            "number": str(number),
            "servers": servers,
            "disk": str(disk),
            "preset": preset,
            "snapshot_entries": snapshot_entries,
        }
        (place / "plan.json").write_text(json.dumps(plan))
        (place / "key.pem").write_bytes(key.pem)
        (place / "root.der").write_bytes(authority.certificate)
        leaf = authority.issue(
            key.public_key, node=key.node_id, role=Role.MANAGER, now=now, lifetime=30 * 86400
        )
        (place / "certificate.der").write_bytes(leaf)
        made.append(Process(number, place, disk, host))
    return made
