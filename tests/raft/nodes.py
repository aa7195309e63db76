"""Clusters of node.py's processes: their identities, their folders, starting and killing them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from raft.applying import SNAPSHOT_ENTRIES
from raft.boot import bootstrap, create
from raft.wal import SEGMENT_BYTES
from swarmlet.identity import CertificateAuthority, KeyPair, Role, new_cluster_id
from tests.raft import kv
from tests.raft.node import CLUSTER, KEY

ROOT = Path(__file__).parent.parent.parent
PRESETS = ("default", "lan", "wan", "edge")
RAFT_PORT, CLIENT_PORT = 7947, 7948


@dataclass
class Process:
    """A server that may run, be stopped, be killed."""

    number: int
    folder: Path
    disk: Path
    host: str
    process: subprocess.Popen[bytes] | None = None

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
                [sys.executable, "-m", "tests.raft.node", str(self.folder)],
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
    snapshot_entries: int = SNAPSHOT_ENTRIES,
    segment_bytes: int = SEGMENT_BYTES,
    disks: Mapping[int, tuple[Path, Path]] | None = None,
) -> list[Process]:
    """Make the folders of a cluster, one server a host; the first one makes it a cluster.

    *disks* says where a server's log is, if elsewhere: as seen from here, and by the server.
    """
    now = time.time()
    authority = CertificateAuthority.create(new_cluster_id(), now=now)
    keys = [KeyPair.generate() for _ in hosts]
    seen: dict[int, tuple[Path, Path]] = {
        number: (folder / f"n{number}" / "raft",) * 2 for number in range(1, len(hosts) + 1)
    }
    seen |= disks or {}
    servers: dict[str, dict[str, Any]] = {}
    for number, (host, key) in enumerate(zip(hosts, keys, strict=True), 1):
        found = bootstrap if number == 1 else create
        servers[str(number)] = {
            "host": host,
            "raft": RAFT_PORT,
            "client": CLIENT_PORT,
            "node": key.node_id,
            "public_key": key.public_key.hex(),
            "server": found(seen[number][0], KEY, CLUSTER, segment_bytes=segment_bytes),
        }
    made = []
    for number, (host, key) in enumerate(zip(hosts, keys, strict=True), 1):
        place = folder / f"n{number}"
        place.mkdir(exist_ok=True)
        plan = {
            "number": str(number),
            "servers": servers,
            "disk": str(seen[number][1]),
            "preset": preset,
            "snapshot_entries": snapshot_entries,
            "segment_bytes": segment_bytes,
        }
        (place / "plan.json").write_text(json.dumps(plan))
        (place / "key.pem").write_bytes(key.pem)
        (place / "root.der").write_bytes(authority.certificate)
        leaf = authority.issue(
            key.public_key, node=key.node_id, role=Role.MANAGER, now=now, lifetime=30 * 86400
        )
        (place / "certificate.der").write_bytes(leaf)
        made.append(Process(number, place, seen[number][0], host))
    return made
