"""Clusters of our servers and of etcd's, with the same verbs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import msgpack

from raft.disk import Directory
from raft.messages import COMMANDS, NOBODY, Entry, HardState
from raft.proposals import pack_commands
from raft.records import Write
from raft.wal import WAL
from scripts.benchmarks.load import ETCD as ETCD_CLIENT
from scripts.benchmarks.load import OURS as OUR_CLIENT
from scripts.benchmarks.load import put_all
from scripts.benchmarks.report import OURS
from tests.raft import kv, nodes
from tests.raft.node import KEY

#: Loopback addresses: every server has the same ports.
OUR_HOSTS = ("127.77.0.1", "127.77.0.2", "127.77.0.3")
ETCD_HOSTS = ("127.78.0.1", "127.78.0.2", "127.78.0.3")
ETCD_CLIENT_PORT, ETCD_PEER_PORT = 2379, 2380
LOOK_EVERY = 0.05
PATIENCE = 60.0
#: Entries of a prepared log that are written at a time.
WRITE_ENTRIES = 1000


class Member(Protocol):
    """One server's process."""

    @property
    def address(self) -> tuple[str, int]: ...
    @property
    def pid(self) -> int: ...
    def start(self) -> None: ...
    def end(self, number: int = signal.SIGKILL) -> None: ...


class Servers(ABC):
    """The servers of one side."""

    side: str
    kind: str  # for load.py
    members: Sequence[Member]

    def __enter__(self) -> Self:
        try:
            for member in self.members:
                member.start()
            self.wait_whole()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        for member in self.members:
            member.end()

    def wait_whole(self) -> None:
        """Return once all members take part and one leads."""
        end = time.monotonic() + PATIENCE
        while not self.whole():
            assert time.monotonic() < end, f"{self.side}: not all servers came up"
            time.sleep(LOOK_EVERY)

    def leader(self) -> Member:
        """Return the leader; wait for one if need be."""
        end = time.monotonic() + PATIENCE
        while True:
            number = self.leader_number()
            if number is not None:
                return self.members[number]
            assert time.monotonic() < end, f"{self.side}: nobody leads"
            time.sleep(LOOK_EVERY)

    @abstractmethod
    def whole(self) -> bool: ...

    @abstractmethod
    def leader_number(self) -> int | None: ...

    @abstractmethod
    def snapshot(self) -> None:
        """Have the leader copy its whole state into a file; return when it is done."""

    def fill(self, values: int, value_bytes: int) -> None:
        """Put so many values of such a size."""
        keys = [b"big-%06d" % number for number in range(values)]
        put_all(self.kind, self.leader().address, keys, value_bytes)


class OurServers(Servers):
    side = OURS
    kind = OUR_CLIENT
    members: list[nodes.Process]

    def __init__(self, folder: Path, hosts: Sequence[str], preset: str) -> None:
        folder.mkdir(parents=True)
        self.members = nodes.make(folder, hosts, preset=preset)

    def whole(self) -> bool:
        statuses = [member.status() for member in self.members]
        return all(
            s is not None and s["leader"] and s["voters"] == len(self.members) for s in statuses
        ) and bool(statuses)

    def leader_number(self) -> int | None:
        leaders = [m.number - 1 for m in self.members if (s := m.status()) and s["leads"]]
        return leaders[0] if len(leaders) == 1 else None

    def snapshot(self) -> None:
        leader = self.leader()
        assert isinstance(leader, nodes.Process)
        assert leader.ask([kv.SNAPSHOT, b""], within=PATIENCE)[0] == kv.OK


@dataclass
class EtcdMember:
    folder: Path
    name: str
    host: str
    cluster: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> tuple[str, int]:
        return self.host, ETCD_CLIENT_PORT

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        clients = f"http://{self.host}:{ETCD_CLIENT_PORT}"
        peers = f"http://{self.host}:{ETCD_PEER_PORT}"
        options = {
            "name": self.name,
            "data-dir": str(self.folder / self.name),
            "listen-client-urls": clients,
            "advertise-client-urls": clients,
            "listen-peer-urls": peers,
            "initial-advertise-peer-urls": peers,
            "initial-cluster": self.cluster,
            "log-level": "error",
            "logger": "zap",
            "quota-backend-bytes": str(8 << 30),
        }
        self.process = subprocess.Popen(
            ["etcd", *(f"--{name}={value}" for name, value in options.items())],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def end(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait()
            self.process = None

    def status(self) -> dict[str, Any] | None:
        url = f"http://{self.host}:{ETCD_CLIENT_PORT}/v3/maintenance/status"
        try:
            with urllib.request.urlopen(url, data=b"{}", timeout=2) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except (OSError, ValueError):
            return None


class EtcdServers(Servers):
    kind = ETCD_CLIENT
    members: list[EtcdMember]

    def __init__(self, side: str, folder: Path, hosts: Sequence[str]) -> None:
        folder.mkdir(parents=True)
        self.side = side
        self.folder = folder
        names = [f"e{number}" for number in range(1, len(hosts) + 1)]
        cluster = ",".join(
            f"{name}=http://{host}:{ETCD_PEER_PORT}"
            for name, host in zip(names, hosts, strict=True)
        )
        self.members = [
            EtcdMember(folder, name, host, cluster) for name, host in zip(names, hosts, strict=True)
        ]

    def whole(self) -> bool:
        return all((s := m.status()) is not None and s.get("leader") for m in self.members)

    def leader_number(self) -> int | None:
        for number, member in enumerate(self.members):
            status = member.status()
            if status and status.get("leader") == status["header"]["member_id"]:
                return number
        return None

    def snapshot(self) -> None:
        host, port = self.leader().address
        copy = str(self.folder / "copy")
        subprocess.run(
            ["etcdctl", "--endpoints", f"{host}:{port}", "snapshot", "save", copy],
            env={**os.environ, "ETCDCTL_API": "3"},
            check=True,
            capture_output=True,
        )


def make_servers(side: str, folder: Path, count: int, *, preset: str = "lan") -> Servers:
    """Servers of a new cluster, to be entered."""
    if side == OURS:
        return OurServers(folder, OUR_HOSTS[:count], preset)
    return EtcdServers(side, folder, ETCD_HOSTS[:count])


def servers_with_log(side: str, folder: Path, entries: int, value_bytes: int) -> Servers:
    """One server whose log will hold *entries* writes, an entry each.

    Ours puts what comes together into one entry and forgets what a snapshot holds, so such a log
    is written here; etcd has to be asked for every one.
    """
    keys = [b"key-%08d" % (number % 10_000) for number in range(entries)]
    if side != OURS:
        servers: Servers = EtcdServers(side, folder, ETCD_HOSTS[:1])
        with servers:
            put_all(servers.kind, servers.leader().address, keys, value_bytes)
        return servers
    ours = OurServers(folder, OUR_HOSTS[:1], "lan")
    disk = Directory(ours.members[0].disk)
    wal, contents = WAL.open(disk, KEY)
    value = os.urandom(value_bytes)
    first = contents.last_index + 1
    for begin in range(0, entries, WRITE_ENTRIES):
        written = tuple(
            Entry(first + n, 1, COMMANDS, pack_commands([msgpack.packb([kv.PUT, keys[n], value])]))
            for n in range(begin, min(begin + WRITE_ENTRIES, entries))
        )
        wal.append(HardState(1, NOBODY, written[-1].index), [Write(written)])
    wal.close()
    disk.close()
    return ours
