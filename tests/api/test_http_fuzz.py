"""Hostile bytes at the API's door: whatever comes, an HTTP error or a closed connection.

10,000 requests, random and mutated, drawn from a seed that is printed, against the whole router
on a real cluster state. Nothing may raise, hang, or be answered with 500.
"""

from __future__ import annotations

import json
import logging
import os
import random
from pathlib import Path

import pytest
import trio
import trio.testing

from swarmlet.api.exchange import Peer
from swarmlet.api.http import serve_stream
from swarmlet.api.server import ROUTES, make_router
from swarmlet.model import NodeId, Role
from tests.api.fake import H1, H2, H3, Fake
from tests.api.neighbours import give_neighbourhood
from tests.api.recovering import give_recovery
from tests.api.test_convert import FULL

REQUESTS = 10_000
BODIES = [
    {},
    [],
    None,
    FULL,
    {"Name": "n", "Driver": "overlay", "IPAM": {"Config": [{"Subnet": "10.0.0.0/24"}]}},
    {"Role": "worker", "Availability": "drain", "Labels": {"a": "b"}},
    {"Role": "manager", "TTL": 10**9, "Uses": 1},
    {"RemoteAddrs": ["10.0.0.1"], "JoinToken": "SWL1-x"},
    {"Spec": {"Orchestration": {"TaskHistoryRetentionLimit": 1}}},
]
QUERIES = ["version=1", "force=1", "status=1", "verbose=1", "rollback=previous", "limit=3",
           "stdout=1&stderr=1", "tail=1", "filters={}", 'filters={"name":["web"]}', "all=1",
           "signal=9", "t=1", "fromSrc=-&repo=x", "names=web", "until=1"]  # fmt: skip
VALUES = ["web", "self", "x", "..", "%2e%2e%2f", "%00", "a" * 300, "*", "busybox:latest@sha256:0"]


def make_request(rng: random.Random) -> bytes:
    route = rng.choice(ROUTES)
    method = route.method if rng.random() < 0.8 else rng.choice(["GET", "POST", "X", "HEAD"])
    path = route.pattern
    while "{" in path:
        start, end = path.index("{"), path.index("}") + 1
        path = path[:start] + rng.choice(VALUES) + path[end:]
    version = rng.choice(["", "/v1.41", "/v1.50", "/v1.24", "/v9.9", "/v0.1", "/v1"])
    query = "&".join(rng.sample(QUERIES, rng.randint(0, 3)))
    body = json.dumps(rng.choice(BODIES)).encode() if rng.random() < 0.6 else b""
    if rng.random() < 0.3:
        body = mutate(rng, body)
    headers = ["Host: x", "Connection: close"]
    if rng.random() < 0.1:
        headers += ["Upgrade: tcp", "Connection: Upgrade"]
    if rng.random() < 0.3:
        headers.append("Transfer-Encoding: chunked")
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    else:
        headers.append(f"Content-Length: {len(body)}")
    target = f"{version}{path}{'?' + query if query else ''}"
    head = "\r\n".join([f"{method} {target} HTTP/1.1", *headers]) + "\r\n\r\n"
    return head.encode() + body


def mutate(rng: random.Random, data: bytes) -> bytes:
    mutable = bytearray(data or b"x")
    for _ in range(rng.randint(1, 6)):
        position = rng.randrange(len(mutable))
        match rng.randrange(5):
            case 0:
                mutable[position] = rng.randrange(256)
            case 1:
                del mutable[position : position + rng.randint(1, 8)]
                mutable = mutable or bytearray(b"x")
            case 2:
                mutable[position:position] = rng.randbytes(rng.randint(1, 8))
            case 3:
                mutable[position:position] = mutable[: rng.randint(1, 40)]
            case 4:
                mutable = mutable[: position + 1]
    return bytes(mutable)


def make_bytes(rng: random.Random) -> bytes:
    match rng.randrange(10):
        case 0:
            return rng.randbytes(rng.randint(1, 200))
        case 1 | 2 | 3 | 4 | 5:
            return mutate(rng, make_request(rng))
        case _:
            return make_request(rng)


async def _ask(fake: Fake, node: NodeId, peer: Peer | None, data: bytes) -> bytes:
    mine, theirs = trio.testing.memory_stream_pair()
    router = make_router(fake.nodes[node])
    answer = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve_stream(theirs, router.respond, peer=peer))
        await mine.send_all(data)
        await mine.send_eof()
        while piece := await mine.receive_some(65536):
            answer += piece
    return answer


async def test_whatever_the_bytes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seed = int(os.environ.get("SWARMLET_SEED", random.randrange(1 << 32)))
    print(f"replay with SWARMLET_SEED={seed}")
    rng = random.Random(seed)
    fake = Fake(tmp_path)
    give_neighbourhood(fake)
    give_recovery(fake)
    await fake.open()
    peers = [None, None, Peer(H2, Role.MANAGER), Peer(H3, Role.WORKER)]
    statuses: dict[bytes, int] = {}
    with caplog.at_level(logging.ERROR):
        async with trio.open_nursery() as nursery:
            fake.nursery = nursery
            for _ in range(REQUESTS):
                node, peer = rng.choice([H1, H1, H2, H3]), rng.choice(peers)
                data = make_bytes(rng)
                with trio.fail_after(60):
                    answer = await _ask(fake, node, peer, data)
                status = answer[9:12]
                statuses[status] = statuses.get(status, 0) + 1
                assert status != b"500", (data, answer)
            nursery.cancel_scope.cancel()
    assert not caplog.records
    # The mix reaches the handlers as well as the parser.
    assert {b"200", b"201", b"400", b"403", b"404"} <= set(statuses)
