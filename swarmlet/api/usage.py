"""What runs in containers and what it uses: top, stats."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import trio

from swarmlet.agent.local.errors import NoSuch
from swarmlet.api.convert_stats import Reading, write_stats
from swarmlet.api.exchange import Answer, ApiError, Send, Streamed, json_response
from swarmlet.api.found import Found, find_container
from swarmlet.api.processes import FULL, read_processes
from swarmlet.api.remote import on_any_node
from swarmlet.api.rights import Right
from swarmlet.api.router import Call, Route

#: Seconds between two readings.
INTERVAL = 1.0
PS_SECONDS = 10.0
PS_ARGUMENTS_MAX = 20
#: Characters with which a shell could be meant; ps needs none of them.
FOREIGN = set("`$;&|<>\\\"'()\n\0")


async def container_stats(call: Call) -> Answer:
    found = find_container(call.node, call.params["id"])
    stream = call.request.query.flag("stream", True)
    once = call.request.query.flag("one-shot")
    if not stream and once:
        return json_response(write_stats(found.id, found.name, None, await _read(call, found)))

    async def produce(send: Send) -> None:
        before: Reading | None = None
        while True:
            # What it was is looked up each time: it may have been removed, or started again.
            try:
                now = find_container(call.node, found.id)
            except NoSuch:
                return
            reading = await _read(call, now)
            if before is not None or stream or reading.stats is None:
                document = write_stats(now.id, now.name, before, reading)
                await send(json.dumps(document, separators=(",", ":")).encode() + b"\n")
                if not stream:
                    return
            before = reading
            await trio.sleep(INTERVAL)

    return Streamed(200, produce, (("Content-Type", "application/json"),))


async def _read(call: Call, found: Found) -> Reading:
    readings = await call.node.supervisor.stats([found.id]) if found.runs else []
    text = await trio.to_thread.run_sync(Path("/proc/stat").read_text)
    return Reading(
        at=time.time(),
        stats=readings[0] if readings else None,
        host_cpu_ns=_host_cpu_ns(text),
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )


def _host_cpu_ns(text: str) -> int:
    """All processors' time since the boot (proc_stat(5)); what guests took is in user's."""
    ticks = [int(part) for part in text.partition("\n")[0].split()[1:9]]
    return sum(ticks) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


async def container_top(call: Call) -> Answer:
    found = find_container(call.node, call.params["id"])
    if not found.runs:
        raise ApiError(409, f"Container {found.id} is not running")
    asked = call.request.query.text("ps_args") or FULL
    pids = await trio.to_thread.run_sync(call.node.supervisor.driver.processes, found.id)
    if asked == FULL:
        titles, rows = await trio.to_thread.run_sync(read_processes, pids)
    else:
        titles, rows = await _ask_ps(asked, set(pids))
    return json_response({"Titles": titles, "Processes": rows})


async def _ask_ps(asked: str, pids: set[int]) -> tuple[list[str], list[list[str]]]:
    """What the host's ps says of *pids*. Raises ApiError."""
    words = asked.split()
    if FOREIGN & set(asked) or len(words) > PS_ARGUMENTS_MAX:
        raise ApiError(400, "ps_args: are no arguments of ps(1)")
    done: Any = None
    with trio.move_on_after(PS_SECONDS):
        try:
            done = await trio.run_process(
                ["ps", *words], capture_stdout=True, capture_stderr=True, check=False
            )
        except OSError as exc:
            raise ApiError(
                500, f"ps cannot be run ({exc.strerror}): install procps, or ask without arguments"
            ) from exc
    if done is None or done.returncode not in (0, 1):
        raise ApiError(400, f"ps did not answer {asked[:60]!r}")
    lines = done.stdout.decode(errors="replace").splitlines()
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        said = done.stderr.decode(errors="replace").strip()[:200]
        raise ApiError(400, f"Couldn't find PID field in ps output {said}".rstrip())
    place = titles.index("PID")
    rows = []
    for line in lines[1:]:
        parts = line.split(None, len(titles) - 1)
        if len(parts) > place and parts[place].isdigit() and int(parts[place]) in pids:
            rows.append(parts)
    return titles, rows


ROUTES = (
    Route("GET", "/containers/{id}/stats", on_any_node(container_stats), Right.NODE),
    Route("GET", "/containers/{id}/top", on_any_node(container_top), Right.NODE),
)
