"""The HTTP server: keep-alive, limits, streams, upgrades, the socket; and a bug's 500."""

from __future__ import annotations

import contextlib
import logging
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from swarmlet.api import http
from swarmlet.api.exchange import (
    Answer,
    ApiError,
    RawStream,
    Request,
    Response,
    Send,
    Streamed,
    Upgraded,
)
from swarmlet.api.http import serve_stream, serve_unix, split_version

Respond = Callable[[Request], Awaitable[Answer]]


async def echo(request: Request) -> Answer:
    body = await request.body.read()
    return Response(200, f"{request.method} {request.path} {len(body)}".encode())


class Wire:
    """Bytes to a served connection, and back."""

    def __init__(self, nursery: trio.Nursery, respond: Respond) -> None:
        self.stream, theirs = trio.testing.memory_stream_pair()
        self.ended = trio.Event()

        async def serve() -> None:
            await serve_stream(theirs, respond)
            self.ended.set()

        nursery.start_soon(serve)

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def read_until(self, end: bytes) -> bytes:
        data = b""
        with trio.fail_after(10):
            while end not in data:
                piece = await self.stream.receive_some(1000)
                if not piece:
                    break
                data += piece
        return data

    async def read_all(self) -> bytes:
        return await self.read_until(b"\0never")


GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_connection_is_kept_and_requests_may_wait_in_it(nursery: trio.Nursery) -> None:
    wire = Wire(nursery, echo)
    await wire.send(GET + b"POST /v1.41/b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
    assert (await wire.read_until(b"GET /a 0")).startswith(b"HTTP/1.1 200")
    assert b"Content-Length" in await wire.read_until(b"POST /b 3")
    await wire.stream.send_eof()
    await wire.ended.wait()


async def test_http_1_0_and_close_end_the_connection(nursery: trio.Nursery) -> None:
    for head in (
        b"GET /a HTTP/1.0\r\n\r\n",
        GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
    ):
        wire = Wire(nursery, echo)
        await wire.send(head)
        assert (await wire.read_all()).endswith(b"GET /a 0")
        await wire.ended.wait()


async def test_head_sends_the_length_and_no_body(nursery: trio.Nursery) -> None:
    wire = Wire(nursery, echo)
    await wire.send(GET.replace(b"GET", b"HEAD") + GET)
    text = await wire.read_until(b"GET /a 0")
    assert text.count(b"/a") == 1
    assert b"Content-Length: 9" in text


async def test_chunked_body_and_100_continue(nursery: trio.Nursery) -> None:
    wire = Wire(nursery, echo)
    head = (
        b"PUT /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    )
    await wire.send(head)
    assert b"100" in await wire.read_until(b"\r\n\r\n")
    await wire.send(b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n")
    assert b"PUT /c 5" in await wire.read_until(b"PUT /c 5")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b" 400 "),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b" 400 "),
        (b"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b" 400 "),
        (b"GET /a HTTP/1.1\r\n\r\n", b" 400 "),
        (b"GET /a HTTP/1.1\r\nHost: x\r\n" + b"A: " + b"b" * 70_000, b" 431 "),
        (b"GET /?" + b"a=1&" * 200 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b" 400 "),
        (b"GET /?a=%ff HTTP/1.1\r\nHost: x\r\n\r\n", b" 400 "),
    ],
)
async def test_what_is_no_request_is_refused_and_the_connection_closed(
    nursery: trio.Nursery, data: bytes, status: bytes
) -> None:
    wire = Wire(nursery, echo)
    await wire.send(data)
    text = await wire.read_all()
    assert status in text.splitlines()[0]
    assert b'"message"' in text
    await wire.ended.wait()


async def test_times_are_bounded(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    idle, slow_head, slow_body = Wire(nursery, echo), Wire(nursery, echo), Wire(nursery, guarded)
    await slow_head.send(b"GET /a HT")
    await slow_body.send(b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
    began = trio.current_time()
    assert b" 408 " in await _patient(slow_head)
    assert trio.current_time() - began == pytest.approx(http.HEAD_SECONDS)
    assert b" 408 " in await _patient(slow_body)
    assert trio.current_time() - began == pytest.approx(http.BODY_SECONDS)
    assert await _patient(idle) == b""
    assert trio.current_time() - began == pytest.approx(http.IDLE_SECONDS)


async def _patient(wire: Wire) -> bytes:
    data = b""
    while piece := await wire.stream.receive_some(1000):
        data += piece
    return data


async def guarded(request: Request) -> Answer:
    try:
        return await echo(request)
    except ApiError as exc:
        return Response(exc.status, str(exc).encode())


async def test_body_is_bounded_in_memory(nursery: trio.Nursery) -> None:
    async def respond(request: Request) -> Answer:
        try:
            await request.body.read(10)
        except ApiError as exc:
            return Response(exc.status, str(exc).encode())
        raise AssertionError

    wire = Wire(nursery, respond)
    await wire.send(b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n" + b"a" * 11)
    assert b" 413 " in await wire.read_until(b"over 10 bytes")


async def test_unread_body_is_read_away_or_ends_the_connection(nursery: trio.Nursery) -> None:
    async def ignore(request: Request) -> Answer:
        return Response(200, b"fine")

    wire = Wire(nursery, ignore)
    await wire.send(b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" + GET)
    text = await wire.read_until(b"fine")
    text += await wire.read_until(b"fine")
    assert text.count(b"200") == 2
    wire = Wire(nursery, ignore)
    length = http.DRAIN_BYTES_MAX * 4
    await wire.send(b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length)
    async with trio.open_nursery() as inner:

        async def push() -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                await wire.send(b"a" * length)

        inner.start_soon(push)
        assert b"fine" in await wire.read_all()
        await wire.ended.wait()
        inner.cancel_scope.cancel()


async def test_stream_goes_out_piece_by_piece(nursery: trio.Nursery) -> None:
    go_on = trio.Event()

    async def respond(request: Request) -> Answer:
        async def produce(send: Send) -> None:
            await send(b"one")
            await go_on.wait()
            await send(b"two")

        return Streamed(200, produce)

    wire = Wire(nursery, respond)
    await wire.send(GET)
    assert b"one" in await wire.read_until(b"one")
    go_on.set()
    assert b"two" in await wire.read_until(b"0\r\n\r\n")
    await wire.send(GET)  # and the connection is still good
    assert b"two" in await wire.read_until(b"0\r\n\r\n")


async def test_client_that_goes_away_ends_the_stream(nursery: trio.Nursery) -> None:
    cancelled, closed = trio.Event(), trio.Event()

    async def respond(request: Request) -> Answer:
        async def produce(send: Send) -> None:
            await send(b"one")
            try:
                await trio.sleep_forever()
            finally:
                cancelled.set()

        async def close() -> None:
            closed.set()

        return Streamed(200, produce, close=close)

    wire = Wire(nursery, respond)
    await wire.send(GET)
    await wire.read_until(b"one")
    await wire.stream.aclose()
    await wire.ended.wait()
    assert cancelled.is_set()
    assert closed.is_set()


async def test_stream_that_breaks_off_has_no_end(nursery: trio.Nursery) -> None:
    async def respond(request: Request) -> Answer:
        async def produce(send: Send) -> None:
            await send(b"one")
            raise ApiError(503, "the node is gone")

        return Streamed(200, produce)

    wire = Wire(nursery, respond)
    await wire.send(GET)
    text = await wire.read_all()
    assert b"one" in text
    assert b"0\r\n\r\n" not in text


@pytest.mark.parametrize("upgrades", [True, False])
async def test_upgrade_hands_the_stream_over(nursery: trio.Nursery, upgrades: bool) -> None:
    async def respond(request: Request) -> Answer:
        body = await request.body.read()

        async def run(raw: RawStream) -> None:
            await raw.send_all(body + b">")
            while data := await raw.receive_some():
                await raw.send_all(data.upper())

        return Upgraded(run)

    wire = Wire(nursery, respond)
    asked = b"Connection: Upgrade\r\nUpgrade: tcp\r\n" if upgrades else b""
    # What comes behind the request belongs to the stream already.
    head = b"POST /x HTTP/1.1\r\nHost: x\r\n" + asked + b"Content-Length: 2\r\n\r\n{}early"
    await wire.send(head)
    text = await wire.read_until(b"EARLY")
    assert text.startswith(b"HTTP/1.1 101" if upgrades else b"HTTP/1.1 200 OK")
    assert b"vnd.docker.raw-stream" in text
    await wire.send(b"late")
    assert await wire.read_until(b"LATE") == b"LATE"
    await wire.stream.send_eof()
    await wire.ended.wait()


async def test_socket_is_for_root_and_one_group(tmp_path: Path, nursery: trio.Nursery) -> None:
    path = tmp_path / "s.sock"
    await nursery.start(serve_unix, path, echo)
    mode = path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660
    with pytest.raises(OSError, match="another daemon serves this socket"):
        await serve_unix(path, echo)
    nursery.cancel_scope.cancel()


async def test_socket_that_nobody_serves_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_unix, path, echo)
        stream = await trio.open_unix_socket(str(path))
        await stream.send_all(GET)
        assert b"200" in await stream.receive_some(100)
        await stream.aclose()
        nursery.cancel_scope.cancel()
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(OSError, match="is in the way"):
        await serve_unix(path, echo)


async def test_too_many_clients_are_told_so(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "CONNECTIONS_MAX", 2)
    path = tmp_path / "s.sock"
    await nursery.start(serve_unix, path, echo)
    kept = []
    for _ in range(2):
        stream = await trio.open_unix_socket(str(path))
        await stream.send_all(GET)
        assert b"200" in await stream.receive_some(1000)
        kept.append(stream)
    late = await trio.open_unix_socket(str(path))
    assert b"503 Busy" in await late.receive_some(1000)
    for stream in (*kept, late):
        await stream.aclose()
    nursery.cancel_scope.cancel()


def test_version_is_split_off_the_path() -> None:
    assert split_version("/v1.41/info") == ((1, 41), "/info")
    assert split_version("/info") == ((0, 0), "/info")
    for path in ("/v1/info", "/v1.x/info", "/v1.41", "/v.1/x", "/version", "/v1.²/x", "/v-1.2/x"):
        assert split_version(path) == ((0, 0), path)


async def test_bug_of_a_handler_is_a_500_with_a_traceback_in_the_log(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    from swarmlet.api.rights import Right
    from swarmlet.api.router import Call, Route, Router
    from tests.api.fake import H1, Fake

    async def broken(call: Call) -> Answer:
        raise KeyError("oops")

    async def broken_later(call: Call) -> Answer:
        async def produce(send: Send) -> None:
            await send(b"one")
            async with trio.open_nursery():
                raise KeyError("oops")

        return Streamed(200, produce)

    routes = (
        Route("GET", "/broken", broken, Right.NODE),
        Route("GET", "/later", broken_later, Right.NODE),
    )
    router = Router(Fake(tmp_path).nodes[H1], routes)
    with caplog.at_level(logging.ERROR):
        async with trio.open_nursery() as nursery:
            wire = Wire(nursery, router.respond)
            await wire.send(GET.replace(b"/a", b"/broken"))
            assert b"KeyError in the daemon: a bug" in await wire.read_until(b"}")
            await wire.send(GET.replace(b"/a", b"/later"))
            assert b"0\r\n\r\n" not in await wire.read_all()
    assert len(caplog.records) == 2
    assert all(record.exc_info for record in caplog.records)
