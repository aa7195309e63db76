"""Handing calls to the leader: long answers, streams and upgrades pass as they are."""

from __future__ import annotations

import pytest
import trio

from swarmlet.api.exchange import Answer, RawStream, Response, Send, Streamed, Upgraded
from swarmlet.api.proxy import WHOLE_BYTES_MAX
from swarmlet.api.rights import Right
from swarmlet.api.router import Call, Route
from swarmlet.api.upstream import Broken, Upstream
from tests.api.fake import H2
from tests.api.serving import Api


@pytest.fixture
def long_api(api: Api) -> Api:
    """An API with three more routes that only the leader answers."""
    api.closed = trio.Event()  # type: ignore[attr-defined]

    async def large(call: Call) -> Answer:
        return Response(200, b"x" * (WHOLE_BYTES_MAX + 1), (("X-Mark", "kept"),))

    async def endless(call: Call) -> Answer:
        async def produce(send: Send) -> None:
            try:
                await send(b"one")
                await trio.sleep_forever()
            finally:
                api.closed.set()  # type: ignore[attr-defined]

        return Streamed(200, produce)

    async def shout(call: Call) -> Answer:
        greeting = await call.request.body.read()

        async def run(raw: RawStream) -> None:
            await raw.send_all(greeting)
            while data := await raw.receive_some():
                await raw.send_all(data.upper())
            await raw.send_all(b"bye")
            await raw.send_eof()

        return Upgraded(run, "application/x-shout")

    api.fake.more_routes = (
        Route("GET", "/t/large", large, Right.READ),
        Route("GET", "/t/endless", endless, Right.READ),
        Route("POST", "/t/shout", shout, Right.READ),
    )
    return api


async def test_large_answer_passes_with_its_headers(long_api: Api) -> None:
    reply = await long_api.call("GET", "/t/large", node=H2)
    assert len(reply.text) == WHOLE_BYTES_MAX + 1
    assert reply.headers["x-mark"] == "kept"


async def test_client_that_goes_away_ends_the_leaders_stream(long_api: Api) -> None:
    upstream = Upstream(long_api.connect(H2))
    assert (await upstream.request("GET", "/t/endless")).status == 200
    assert await upstream.receive() == b"one"
    await upstream.aclose()
    with trio.fail_after(10):
        await long_api.closed.wait()  # type: ignore[attr-defined]


async def test_leader_that_goes_away_breaks_the_stream_off(long_api: Api) -> None:
    upstream = Upstream(long_api.connect(H2))
    await upstream.request("GET", "/t/endless")
    assert await upstream.receive() == b"one"
    for stream in long_api.fake.dialled:
        await stream.aclose()
    with pytest.raises(Broken):
        await upstream.receive()


async def test_upgrade_is_carried_both_ways_and_half_closed(long_api: Api) -> None:
    upstream = Upstream(long_api.connect(H2))
    head = await upstream.request("POST", "/t/shout", upgrade=True)
    assert head.status == 101
    assert dict(head.headers)[next(n for n, _ in head.headers if n.lower() == "content-type")] == (
        "application/x-shout"
    )
    raw = upstream.raw()
    await raw.send_all(b"hello")
    assert await _read(raw, 5) == b"HELLO"
    await raw.send_eof()
    assert await _read(raw, 3) == b"bye"
    assert await raw.receive_some() == b""


async def _read(raw: RawStream, count: int) -> bytes:
    data = b""
    with trio.fail_after(10):
        while len(data) < count:
            data += await raw.receive_some()
    return data
