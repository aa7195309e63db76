"""Clients in a closed loop: each sends a request when the answer to the last one is here.

    python -m scripts.benchmarks.load ours|etcd HOST PORT put|get CLIENTS SECONDS KEYS BYTES

One process, one thread, one epoll, whichever side is measured, with the requests made beforehand:
the client must not be what is measured. etcd is asked as its own clients do, with gRPC in HTTP/2
(RFC 7540), of which this is as much as a client with one call at a time needs; ours with the
frames of tests/raft/kv.py. Prints JSON: the seconds of every answer, and how many were errors.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Final

from tests.raft import kv

OURS, ETCD = "ours", "etcd"
PUT, GET = "put", "get"
RECEIVE_BYTES: Final = 64 << 10
#: Seconds between two questions of the same client whether a write is accepted, ...
ASK_EVERY: Final = 0.002
#: ... until it takes the one that it asked for lost, and until it gives up altogether.
ASK_PATIENCE: Final = 0.5
ACCEPT_PATIENCE: Final = 60.0


class Connection:
    """A connection to our server; etcd's derives from it."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""
        self.open()

    def open(self) -> None:
        """Say what comes before the first request."""

    @staticmethod
    def request(operation: str, key: bytes, value: bytes) -> bytes:
        return kv.frame([kv.PUT, key, value] if operation == PUT else [kv.GET, key])

    def send(self, request: bytes) -> None:
        self.socket.sendall(request)

    def receive(self) -> bool | None:
        """Take in what has come; say if the answer is a good one, None if it is not whole yet."""
        self.received += self._more()
        if len(self.received) < kv.LENGTH.size:
            return None
        (length,) = kv.LENGTH.unpack_from(self.received)
        if len(self.received) < kv.LENGTH.size + length:
            return None
        good = self.received[kv.LENGTH.size + 1] == kv.OK  # behind the head of an array
        self.received = b""
        return good

    def _more(self) -> bytes:
        chunk = self.socket.recv(RECEIVE_BYTES)
        if not chunk:
            raise ConnectionResetError("the server hung up")
        return chunk


_DATA, _HEADERS, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW_SIZE: Final = 4
_WINDOW: Final = (1 << 31) - 1


def h2(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    length = len(payload)
    return struct.pack(">BHBBI", length >> 16, length & 0xFFFF, kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header that is in no table (RFC 7541, 6.2.2)."""
    assert len(name) < 127 > len(value)
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def field(number: int, value: bytes) -> bytes:
    """A protobuf field of bytes."""
    head, length = bytes([number << 3 | 2]), len(value)
    while length > 127:
        head += bytes([length & 127 | 128])
        length >>= 7
    return head + bytes([length]) + value


class EtcdConnection(Connection):
    """One gRPC call at a time."""

    def open(self) -> None:
        window = struct.pack(">HI", _INITIAL_WINDOW_SIZE, _WINDOW)
        self.socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + h2(_SETTINGS, 0, 0, window)
            + h2(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _WINDOW - 65535))
        )
        self.stream = -1
        self.answered = False

    @staticmethod
    def request(operation: str, key: bytes, value: bytes) -> bytes:
        """The two frames of a call, on stream 0: send() gives them their number."""
        path = b"/etcdserverpb.KV/" + (b"Put" if operation == PUT else b"Range")
        headers = b"".join(
            literal(name, text)
            for name, text in (
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", path),
                (b":authority", b"etcd"),
                (b"content-type", b"application/grpc"),
                (b"te", b"trailers"),
            )
        )
        message = field(1, key) + (field(2, value) if operation == PUT else b"")
        body = b"\0" + struct.pack(">I", len(message)) + message
        return h2(_HEADERS, _END_HEADERS, 0, headers) + h2(_DATA, _END_STREAM, 0, body)

    def send(self, request: bytes) -> None:
        self.stream += 2
        self.answered = False
        number = struct.pack(">I", self.stream)
        data = 9 + int.from_bytes(request[:3], "big")
        self.socket.sendall(
            request[:5] + number + request[9 : data + 5] + number + request[data + 9 :]
        )

    def receive(self) -> bool | None:
        received = self.received + self._more()
        ended: bool | None = None
        while len(received) >= 9:
            end = 9 + int.from_bytes(received[:3], "big")
            if len(received) < end:
                break
            kind, flags = received[3], received[4]
            (stream,) = struct.unpack_from(">I", received, 5)
            if kind == _DATA and stream == self.stream:
                self.answered = True
            elif kind == _PING and not flags & _ACK:
                self.socket.sendall(h2(_PING, _ACK, 0, received[9:end]))
            elif kind == _SETTINGS and not flags & _ACK:
                self.socket.sendall(h2(_SETTINGS, _ACK, 0, b""))
            elif kind == _GOAWAY:
                raise ConnectionResetError("the server goes away")
            if kind in (_DATA, _HEADERS) and flags & _END_STREAM and stream == self.stream:
                # An error has trailers only, without a message.
                ended = self.answered
            received = received[end:]
        self.received = received
        return ended


SIDES: Final = {OURS: Connection, ETCD: EtcdConnection}


@dataclass(frozen=True)
class Found:
    """What a load found: how long each answer took, in order of that."""

    seconds: float
    errors: int
    taken: list[float]

    @staticmethod
    def of(process: subprocess.Popen[str]) -> Found:
        """Wait for a load that runs in *process*."""
        out, _ = process.communicate()
        assert process.returncode == 0, f"the clients failed: exit {process.returncode}"
        return Found(**json.loads(out))

    @property
    def rate(self) -> float:
        return len(self.taken) / self.seconds

    def percentile(self, percent: int) -> float:
        assert self.taken, "no request was answered"
        return self.taken[min(len(self.taken) * percent // 100, len(self.taken) - 1)]


def run(
    side: str,
    address: tuple[str, int],
    operation: str,
    *,
    clients: int,
    seconds: float,
    keys: int,
    value_bytes: int,
) -> Found:
    """Load the server for *seconds*."""
    made, value = SIDES[side], os.urandom(value_bytes)
    prepared = [made.request(operation, b"key-%08d" % n, value) for n in range(keys)]
    connections = {c.socket.fileno(): c for c in (made(*address) for _ in range(clients))}
    poll = select.epoll()
    started = {}
    requests = itertools.cycle(prepared)
    for fd, connection in connections.items():
        poll.register(fd, select.EPOLLIN)
        started[fd] = time.monotonic()
        connection.send(next(requests))
    taken, errors = [], 0
    begun = now = time.monotonic()
    end = begun + seconds
    while now < end:
        for fd, _ in poll.poll(end - now):
            connection = connections[fd]
            good = connection.receive()
            if good is None:
                continue
            now = time.monotonic()
            if good:
                taken.append(now - started[fd])
            else:
                errors += 1
            started[fd] = now
            connection.send(next(requests))
        now = time.monotonic()
    for connection in connections.values():
        connection.socket.close()
    return Found(now - begun, errors, sorted(taken))


def put_all(side: str, address: tuple[str, int], keys: Sequence[bytes], value_bytes: int) -> None:
    """Put a value under each of *keys*, 64 at a time."""
    made = SIDES[side]
    left = [made.request(PUT, key, os.urandom(value_bytes)) for key in keys]
    waiting = {}
    for _ in range(min(64, len(left))):
        connection = made(*address)
        connection.send(left.pop())
        waiting[connection.socket.fileno()] = connection
    while waiting:
        for fd in select.select(waiting, [], [])[0]:
            good = waiting[fd].receive()
            if good is None:
                continue
            assert good, "a put was refused"
            if left:
                waiting[fd].send(left.pop())
            else:
                waiting.pop(fd).socket.close()


def until_accepted(
    side: str, addresses: Sequence[tuple[str, int]], *, within: float = ACCEPT_PATIENCE
) -> None:
    """Return once one of the servers has accepted a write.

    A client a server asks again whenever it was refused, or not answered for a while.
    """
    request = SIDES[side].request(PUT, b"accepted", b"x")
    asked: dict[int, tuple[Connection, tuple[str, int], float]] = {}
    end = time.monotonic() + within
    while (now := time.monotonic()) < end:
        busy = [address for _, address, _ in asked.values()]
        for address in addresses:
            if busy.count(address) == 0:
                with suppress(OSError):
                    connection = SIDES[side](*address)
                    connection.send(request)
                    asked[connection.socket.fileno()] = (connection, address, now)
        for fd in select.select(asked, [], [], ASK_EVERY)[0]:
            try:
                good = asked[fd][0].receive()
            except OSError:
                good = False
            if good:
                for connection, _, _ in asked.values():
                    connection.socket.close()
                return
            if good is False:
                asked.pop(fd)[0].socket.close()
                time.sleep(ASK_EVERY)
        for fd, (connection, _, since) in list(asked.items()):
            if now - since > ASK_PATIENCE:
                del asked[fd]
                connection.socket.close()
    raise AssertionError(f"no server accepted a write within {within:g} s")


def main() -> None:
    side, host, port, operation, clients, seconds, keys, value_bytes = sys.argv[1:]
    found = run(
        side,
        (host, int(port)),
        operation,
        clients=int(clients),
        seconds=float(seconds),
        keys=int(keys),
        value_bytes=int(value_bytes),
    )
    json.dump(asdict(found), sys.stdout)


if __name__ == "__main__":
    main()
