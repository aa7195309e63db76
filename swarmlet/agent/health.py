"""Health checks: a command in the container, asked again and again.

A shell. Docker's rules: failures within the start period do not count, one success ends it; so
many failures in a row are unhealthy; a check that takes too long has failed.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import trio

from swarmlet.model import Healthcheck
from swarmlet.runtime.failures import RuntimeFailure
from swarmlet.runtime.spec import ContainerSpec
from swarmlet.runtime.supervisor import Supervisor

#: Bytes of a check's output that are kept for the error.
OUTPUT_BYTES_MAX = 512


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


async def _collect(stream: trio.abc.ReceiveStream, output: bytearray) -> None:
    async for chunk in stream:
        room = OUTPUT_BYTES_MAX - len(output)
        output += chunk[: max(0, room)]
