"""sd_notify(3), against a socket as systemd opens it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from swarmlet.sdnotify import Supervisor


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        name = str(tmp_path / "notify")
        opened.bind(name if request.param == "path" else f"\0{name}")
        opened.setblocking(False)
        yield opened


def environment_for(listener: socket.socket, **extra: str) -> dict[str, str]:
    name = listener.getsockname()
    address = name if isinstance(name, str) else "@" + name[1:].decode()
    return {"NOTIFY_SOCKET": address, **extra}


def test_a_supervisor_hears_of_readiness_state_and_end(listener: socket.socket) -> None:
    supervisor = Supervisor.from_environment(environment_for(listener))
    assert supervisor.ready("worker\nof 3 nodes")
    assert listener.recv(4096) == b"READY=1\nSTATUS=worker of 3 nodes"
    assert supervisor.status("leader")
    assert listener.recv(4096) == b"STATUS=leader"
    assert supervisor.stopping()
    assert listener.recv(4096) == b"STOPPING=1"


def test_without_a_supervisor_nothing_happens() -> None:
    supervisor = Supervisor.from_environment({"PATH": "/bin"})
    assert not supervisor.ready()
    assert not supervisor.stopping()


def test_an_address_that_is_none_is_ignored() -> None:
    assert Supervisor.from_environment({"NOTIFY_SOCKET": "relative"}) == Supervisor()


def test_children_do_not_inherit_the_supervisor(listener: socket.socket) -> None:
    environment = environment_for(listener, WATCHDOG_USEC="1000000", WATCHDOG_PID="1", PATH="/bin")
    Supervisor.from_environment(environment)
    assert environment == {"PATH": "/bin"}


def test_a_supervisor_that_is_gone_does_not_stop_us(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = Supervisor.from_environment(environment_for(listener))
    listener.close()
    if supervisor.address and supervisor.address.startswith("/"):
        Path(supervisor.address).unlink()
    assert not supervisor.ready()
    assert "supervisor not notified" in caplog.text


def test_a_supervisor_that_does_not_read_does_not_block_us(listener: socket.socket) -> None:
    supervisor = Supervisor.from_environment(environment_for(listener))
    for _ in range(10_000):
        if not supervisor.alive():
            return
    pytest.fail("the socket never filled up")


def test_the_watchdog_of_another_process_is_not_ours(listener: socket.socket) -> None:
    ours = environment_for(listener, WATCHDOG_USEC="3000000", WATCHDOG_PID=str(os.getpid()))
    assert Supervisor.from_environment(ours).watchdog_seconds == 3.0
    theirs = environment_for(listener, WATCHDOG_USEC="3000000", WATCHDOG_PID=str(os.getpid() + 1))
    assert Supervisor.from_environment(theirs).watchdog_seconds is None
    none = environment_for(listener, WATCHDOG_USEC="soon")
    assert Supervisor.from_environment(none).watchdog_seconds is None


async def test_the_watchdog_is_fed_twice_as_often_as_it_bites(
    listener: socket.socket, autojump_clock: trio.testing.MockClock
) -> None:
    supervisor = Supervisor.from_environment(environment_for(listener, WATCHDOG_USEC="10000000"))
    with trio.move_on_after(14.9):
        await supervisor.feed_watchdog()
    fed = [listener.recv(4096) for _ in range(3)]
    assert fed == [b"WATCHDOG=1"] * 3
    with pytest.raises(BlockingIOError):
        listener.recv(4096)


async def test_without_a_watchdog_feeding_ends_at_once() -> None:
    await Supervisor().feed_watchdog()
