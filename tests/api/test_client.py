"""The client of the command line: what it sends, and what it makes of odd daemons."""

from __future__ import annotations

import errno
import io
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from swarmlet.api import client
from swarmlet.api.client import Client, ClientError, Refused, Unreachable


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[list[bytes]]:
    """A daemon that takes one request, says *answer* and closes; yields what it was sent."""
    heard: list[bytes] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    listener.settimeout(10)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            data = b""
            while b"\r\n\r\n" not in data:
                data += connection.recv(65536)
            if b"Content-Length: 8" in data:
                while not data.endswith(b'{"a": 1}'):
                    data += connection.recv(65536)
            if b"chunked" in data:
                while not data.endswith(b"0\r\n\r\n"):
                    data += connection.recv(65536)
            heard.append(data)
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield heard
    finally:
        thread.join(10)
        listener.close()


def ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.sock"


def test_call_sends_version_query_and_body(path: Path) -> None:
    with answering(path, ok(b'{"ID":"x"}')) as heard:
        made = Client(str(path)).call(
            "POST",
            "/services/a b/update",
            {"a": 1},
            query={"version": 3, "force": True, "none": None, "filters": {"id": ["x"]}},
        )
    assert made == {"ID": "x"}
    head, _, body = heard[0].partition(b"\r\n\r\n")
    line = head.splitlines()[0].decode()
    assert line == (
        "POST /v1.50/services/a%20b/update?version=3&force=1"
        "&filters=%7B%22id%22%3A+%5B%22x%22%5D%7D HTTP/1.1"
    )
    assert body == b'{"a": 1}'


def test_stream_sends_a_file_in_chunks_and_yields_as_it_comes(path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = head + b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    with answering(path, answer) as heard:
        file = io.BytesIO(b"content")
        pieces = list(Client(f"unix://{path}").stream("POST", "/images/load", body=file))
    assert b"".join(pieces) == b"onetwo"
    assert b"7\r\ncontent\r\n0\r\n\r\n" in heard[0]


def test_refusal_carries_status_and_message(path: Path) -> None:
    text = b'{"message":"no such service"}'
    answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text)
    with answering(path, answer), pytest.raises(Refused, match="no such service") as caught:
        Client(str(path)).get("/services/x")
    assert caught.value.status == 404


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "closed the connection"),
        (b"SSH-2.0-OpenSSH\r\n", "closed the connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", "answer broke off"),
        (ok(b"<html>"), "does not answer as a swarmlet daemon does"),
        (b"HTTP/1.1 500 X\r\nContent-Length: 4\r\n\r\noops", "status 500 and no reason"),
    ],
)
def test_odd_daemons_are_client_errors(path: Path, answer: bytes, words: str) -> None:
    with answering(path, answer), pytest.raises(ClientError, match=words):
        Client(str(path)).get("/info")


def test_daemon_that_says_nothing_is_given_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        with pytest.raises(Unreachable, match=r"did not answer within 0\.05 seconds"):
            Client(str(path)).get("/info")


def test_absent_and_forbidden_daemons_say_what_to_do(path: Path) -> None:
    with pytest.raises(Unreachable, match="start it with `swarmlet daemon`"):
        Client(str(path)).get("/info")
    path.write_text("no socket")
    with pytest.raises(Unreachable, match="start it with `swarmlet daemon`"):
        Client(str(path)).get("/info")
    refusal = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    assert "run this as root" in client._unreachable("unix:///x", refusal)
