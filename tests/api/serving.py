"""The API of a fake cluster, spoken to over memory streams or a real Unix socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from swarmlet.api.exchange import Body, Peer
from swarmlet.api.http import serve_stream, serve_unix
from swarmlet.api.upstream import Upstream
from swarmlet.model import NodeId
from tests.api.fake import H1, NAMES, Fake
from tests.api.neighbours import give_neighbourhood
from tests.api.recovering import give_recovery


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    text: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def message(self) -> str:
        return str(self.json["message"])


class Api:
    """Calls the router of one node through the real HTTP server, without a socket."""

    def __init__(self, fake: Fake, nursery: trio.Nursery) -> None:
        self.fake = fake
        self._nursery = nursery

    async def call(
        self,
        method: str,
        target: str,
        document: Any = None,
        *,
        node: NodeId = H1,
        peer: Peer | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        body: bytes = b"",
    ) -> Reply:
        stream = self.connect(node, peer)
        upstream = Upstream(stream)
        parts = [json.dumps(document).encode() if document is not None else body]

        async def receive() -> bytes:
            await trio.lowlevel.checkpoint()
            return parts.pop() if parts else b""

        try:
            head = await upstream.request(method, target, headers=headers, body=Body(receive))
            text = b""
            if method != "HEAD":
                while chunk := await upstream.receive():
                    text += chunk
        finally:
            await upstream.aclose()
        return Reply(head.status, {n.lower(): v for n, v in head.headers}, text)

    def connect(self, node: NodeId = H1, peer: Peer | None = None) -> trio.abc.Stream:
        mine, theirs = trio.testing.memory_stream_pair()
        router = self.fake.router(node)
        self._nursery.start_soon(lambda: serve_stream(theirs, router.respond, peer=peer))
        return mine


@asynccontextmanager
async def open_api(folder: Path) -> AsyncIterator[Api]:
    fake = Fake(folder)
    give_neighbourhood(fake)
    give_recovery(fake)
    await fake.open()
    async with trio.open_nursery() as nursery:
        fake.nursery = nursery
        yield Api(fake, nursery)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_sockets(folder: Path) -> AsyncIterator[tuple[Fake, dict[NodeId, Path]]]:
    """The API of every node of a fake cluster, each on its own Unix socket."""
    fake = Fake(folder)
    give_neighbourhood(fake)
    give_recovery(fake)
    await fake.open()
    async with trio.open_nursery() as nursery:
        fake.nursery = nursery
        paths = {}
        for id_, name in NAMES.items():
            router = fake.router(id_)
            path = folder / f"{name}.sock"
            await nursery.start(serve_unix, path, router.respond)
            paths[id_] = path
        yield fake, paths
        nursery.cancel_scope.cancel()
