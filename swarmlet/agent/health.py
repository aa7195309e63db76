"""Health checks: a command in the container, or a connection to it, again and again.

A shell. Docker's rules: failures within the start period do not count, one success ends it; so
many failures in a row are unhealthy; a check that takes too long has failed.

Where Docker takes a line for the container's shell, a line that is a URL is asked instead, from
within the container's network, so that an image needs no client: `http://:8080/ready` (healthy from
200 to 399), `tcp://:5432`. Without a host it is the container's own loopback.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import re
import socket
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from overlay.netns import run_in_netns
from swarmlet.model import Healthcheck
from swarmlet.runtime.failures import RuntimeFailure
from swarmlet.runtime.spec import ContainerSpec
from swarmlet.runtime.supervisor import Supervisor

#: Bytes of a check's output that are kept for the error.
OUTPUT_BYTES_MAX = 512
#: Of an HTTP answer: its first line is looked at.
STATUS_BYTES_MAX = 1024
LOOPBACK, PORT_MAX = "127.0.0.1", 65535
URL = re.compile(
    r"(?P<scheme>http|tcp)://(?P<host>localhost|\d+(?:\.\d+){3}|)(?::(?P<port>\d{1,5}))?(?P<path>/\S*)?"
)


class Health(enum.Enum):
    NONE = "started"
    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class Verdict:
    health: Health
    output: str = ""


async def watch_health(
    supervisor: Supervisor, container: str, spec: ContainerSpec, check: Healthcheck
) -> AsyncGenerator[Verdict, None]:
    """Yield a verdict after each check, for ever. *check* has every time filled in."""
    started = trio.current_time()
    starting, failures = True, 0
    while True:
        in_start_period = starting and trio.current_time() - started < check.start_period
        await trio.sleep(check.start_interval if in_start_period else check.interval)
        passed, output = await _ask(supervisor, container, spec, check)
        if passed:
            starting, failures = False, 0
            yield Verdict(Health.HEALTHY)
            continue
        if starting and trio.current_time() - started < check.start_period:
            continue
        failures += 1
        if failures >= check.retries:
            yield Verdict(Health.UNHEALTHY, output)


async def _ask(
    supervisor: Supervisor, container: str, spec: ContainerSpec, check: Healthcheck
) -> tuple[bool, str]:
    kind, *words = check.test
    asked = URL.fullmatch(words[0].strip()) if kind == "CMD-SHELL" and words else None
    if asked is not None:
        with trio.move_on_after(check.timeout):
            return await _connect(supervisor, container, asked)
        return False, f"no answer within {check.timeout:g} s"
    args = ("/bin/sh", "-c", *words) if kind == "CMD-SHELL" else tuple(words)
    process = dataclasses.replace(spec.process, args=args, terminal=False, stdin=False)
    output = bytearray()
    with trio.move_on_after(check.timeout) as scope:
        try:
            session = await supervisor.exec(container, process)
        except RuntimeFailure as exc:
            return False, str(exc)
        async with session:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_collect, session.stdout, output)
                if session.stderr is not None:
                    nursery.start_soon(_collect, session.stderr, output)
                status = await session.wait()
                nursery.cancel_scope.deadline = trio.current_time() + 0.5
            text = bytes(output).decode(errors="replace").strip()
            return status.code == 0, text or f"exit code {status.code}"
    assert scope.cancelled_caught
    return False, f"no answer within {check.timeout:g} s"


async def _connect(
    supervisor: Supervisor, container: str, asked: re.Match[str]
) -> tuple[bool, str]:
    state = supervisor.containers.get(container)
    if state is None or not state.status.running:
        return False, "the container does not run"
    host = asked["host"] if asked["host"] != "localhost" else ""
    default = 80 if asked["scheme"] == "http" else 0
    address = (host or LOOPBACK, int(asked["port"] or default))
    if not 0 < address[1] <= PORT_MAX:
        return False, f"{asked[0]}: there is no port {address[1]}"
    network = Path(f"/proc/{state.pid}/ns/net")
    work = partial(run_in_netns, network, partial(socket.socket, type=socket.SOCK_STREAM))
    try:
        with trio.socket.from_stdlib_socket(await trio.to_thread.run_sync(work)) as connection:
            await connection.connect(address)
            if asked["scheme"] == "tcp":
                return True, "connected"
            return await _ask_http(connection, asked)
    except OSError as failure:
        return False, f"{address[0]}:{address[1]}: {os.strerror(failure.errno or 0)}"


async def _ask_http(connection: trio.socket.SocketType, asked: re.Match[str]) -> tuple[bool, str]:
    host = asked["host"] or "localhost"
    request = f"GET {asked['path'] or '/'} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    await trio.SocketStream(connection).send_all(request.encode())
    answer = b""
    while b"\n" not in answer and len(answer) < STATUS_BYTES_MAX:
        chunk = await connection.recv(STATUS_BYTES_MAX)
        if not chunk:
            break
        answer += chunk
    line = answer.partition(b"\n")[0].decode(errors="replace").strip()
    found = re.match(r"HTTP/1\.[01] (\d{3})\b", line)
    if found is None:
        return False, "the answer is not HTTP"
    return 200 <= int(found[1]) < 400, line


async def _collect(stream: trio.abc.ReceiveStream, output: bytearray) -> None:
    async for chunk in stream:
        room = OUTPUT_BYTES_MAX - len(output)
        output += chunk[: max(0, room)]
