"""What is done to containers: made, started, stopped, changed, removed.

Containers run by hand obey to the word. Those of tasks belong to the swarm: they can be signalled,
stopped, paused and waited for, and what becomes of them then is their service's policy; the rest is
refused with the command that does it.
"""

from __future__ import annotations

import trio

from swarmlet.agent.local.container import Container
from swarmlet.agent.local.errors import NoSuch
from swarmlet.api.convert_create import merge_limits, read_create, read_limits, read_restart
from swarmlet.api.exchange import Answer, ApiError, Response, Send, Streamed, json_response
from swarmlet.api.execs import terminal_size
from swarmlet.api.fields import Fields
from swarmlet.api.found import Found, find_container
from swarmlet.api.remote import on_any_node
from swarmlet.api.rights import Right
from swarmlet.api.router import Call, Route
from swarmlet.images.errors import ImageNotFound
from swarmlet.runtime.spec import SpecError, signal_number

#: Longest that `stop` may wait for a container: more is for ever.
GRACE_MAX = 100_000_000
CONDITIONS = ("not-running", "next-exit", "removed")


async def create_container(call: Call) -> Answer:
    query = call.request.query
    config = read_create(await call.request.body.json())
    platform = query.text("platform")
    if platform:
        _check_platform(call, platform)
    try:
        container = await call.node.local.create(config, name=query.text("name"))
    except ImageNotFound as exc:
        # The words by which Docker's client knows that it may pull.
        raise ApiError(404, f"No such image: {config.image}: {exc}") from exc
    except NoSuch as exc:
        # 404 means the image to that client, and nothing else.
        raise ApiError(400, str(exc)) from exc
    return json_response({"Id": container.id, "Warnings": []}, 201)


def _check_platform(call: Call, text: str) -> None:
    own = call.node.images.platform
    parts = text.split("/")
    if parts[0] != own.os or (len(parts) > 1 and parts[1] != own.architecture):
        raise ApiError(
            404, f"platform {text[:60]!r}: this host runs {own.os}/{own.architecture} only"
        )


async def start_container(call: Call) -> Answer:
    if call.request.query.text("checkpoint"):
        raise ApiError(501, "checkpoint: checkpoints are not built")
    await call.request.body.read()
    container = _by_hand(call, "start", "scale its service")
    return Response(204 if await call.node.local.start(container) else 304)


async def stop_container(call: Call) -> Answer:
    found = find_container(call.node, call.params["id"])
    signal, grace = _end(call)
    if found.local is not None:
        done = await call.node.local.stop(found.local, signal=signal, grace=grace)
        return Response(204 if done else 304)
    if not found.runs:
        return Response(304)
    await call.node.supervisor.stop(found.id, signal=signal or None, grace=grace)
    return Response(204)


async def restart_container(call: Call) -> Answer:
    found = find_container(call.node, call.params["id"])
    signal, grace = _end(call)
    if found.local is not None:
        await call.node.local.restart(found.local, signal=signal, grace=grace)
    else:
        # Its service starts another one in its place.
        await call.node.supervisor.stop(found.id, signal=signal or None, grace=grace)
    return Response(204)


def _end(call: Call) -> tuple[str, float | None]:
    """Signal and grace of a call that ends a container; None: its own grace."""
    query = call.request.query
    signal = query.text("signal")
    if signal:
        _check_signal(signal)
    seconds = query.number("t", 0)
    if not query.text("t"):
        return signal, None
    return signal, float("inf") if seconds < 0 else float(min(seconds, GRACE_MAX))


def _check_signal(text: str) -> None:
    try:
        signal_number(text)
    except SpecError:
        raise ApiError(400, f"invalid signal: {text[:40]}") from None


async def kill_container(call: Call) -> Answer:
    found = find_container(call.node, call.params["id"])
    signal = call.request.query.text("signal") or "SIGKILL"
    _check_signal(signal)
    if not found.runs:
        name = call.params["id"]
        raise ApiError(409, f"cannot kill container: {name}: container {found.id} is not running")
    if found.local is not None:
        await call.node.local.kill(found.local, signal)
    else:
        await call.node.supervisor.kill(found.id, signal)
    return Response(204)


async def pause_container(call: Call) -> Answer:
    found = find_container(call.node, call.params["id"])
    if found.local is not None:
        await call.node.local.pause(found.local)
    else:
        await call.node.supervisor.pause(found.id)
    return Response(204)


async def unpause_container(call: Call) -> Answer:
    found = find_container(call.node, call.params["id"])
    if found.local is not None:
        await call.node.local.unpause(found.local)
    else:
        await call.node.supervisor.unpause(found.id)
    return Response(204)


async def wait_container(call: Call) -> Answer:
    found = find_container(call.node, call.params["id"])
    condition = call.request.query.text("condition") or CONDITIONS[0]
    if condition not in CONDITIONS:
        raise ApiError(400, f'invalid condition: "{condition[:40]}"')

    # Where it stands now is noted before the head of the answer is out: the client starts the
    # container as soon as it has that.
    waiting = call.node.local.waiter(found.local, condition) if found.local is not None else None

    async def produce(send: Send) -> None:
        if waiting is not None:
            code = await waiting()
        else:
            code = (await call.node.supervisor.wait(found.id)).code
        await send(b'{"StatusCode":%d}\n' % code)

    return Streamed(200, produce, (("Content-Type", "application/json"),))


async def remove_container(call: Call) -> Answer:
    query = call.request.query
    if query.flag("link"):
        raise ApiError(501, "link: links are Docker's past, and there is none to remove")
    container = _by_hand(call, "remove", "remove or scale down its service")
    await call.node.local.remove(container, force=query.flag("force"), volumes=query.flag("v"))
    return Response(204)


async def rename_container(call: Call) -> Answer:
    name = call.request.query.text("name")
    if not name:
        raise ApiError(400, "Neither old nor new names may be empty")
    container = _by_hand(call, "rename", "a task's name is its service's and its slot's")
    await call.node.local.rename(container, name)
    return Response(204)


async def update_container(call: Call) -> Answer:
    container = _by_hand(call, "update", "`swarmlet service update` changes a service's limits")
    fields = Fields(await call.request.body.json())
    policy = fields.child("RestartPolicy")
    # An update of limits comes with a policy that says nothing.
    says = policy is not None and policy.has("Name")
    restart = read_restart(policy)
    changed = merge_limits(container.record.config.limits, read_limits(fields))
    for name in (
        "BlkioWeight",
        "BlkioWeightDevice",
        "CgroupParent",
        "CpuCount",
        "CpuPercent",
        "CpuRealtimePeriod",
        "CpuRealtimeRuntime",
        "DeviceCgroupRules",
        "DeviceRequests",
        "Devices",
        "IOMaximumBandwidth",
        "IOMaximumIOps",
        "Init",
        "KernelMemory",
        "KernelMemoryTCP",
        "OomKillDisable",
        "Ulimits",
    ):
        fields.refuse(name, "cannot be changed while the container lives; make another one")
    if fields.integer("MemorySwappiness", -1) not in (-1, 0):
        raise ApiError(400, "MemorySwappiness: is not built")
    fields.done()
    await call.node.local.update(container, limits=changed, restart=restart if says else None)
    return json_response({"Warnings": None})


async def resize_container(call: Call) -> Answer:
    found = find_container(call.node, call.params["id"])
    rows, columns = terminal_size(call)
    if not found.runs:
        raise ApiError(409, f"container {call.params['id']} is not running")
    session = await call.node.supervisor.attach(found.id)
    async with session:
        session.resize(rows, columns)
    await trio.lowlevel.checkpoint()
    return Response(200)


def _by_hand(call: Call, what: str, instead: str) -> Container:
    """The container, which must be one that was run by hand. Raises ApiError."""
    found: Found = find_container(call.node, call.params["id"])
    if found.local is None:
        raise ApiError(
            409, f"container {found.name} is a task of a service: it cannot {what}; {instead}"
        )
    return found.local


ROUTES = (
    Route("POST", "/containers/create", create_container, Right.NODE),
    Route("POST", "/containers/{id}/start", on_any_node(start_container), Right.NODE),
    Route("POST", "/containers/{id}/stop", on_any_node(stop_container), Right.NODE),
    Route("POST", "/containers/{id}/restart", on_any_node(restart_container), Right.NODE),
    Route("POST", "/containers/{id}/kill", on_any_node(kill_container), Right.NODE),
    Route("POST", "/containers/{id}/pause", on_any_node(pause_container), Right.NODE),
    Route("POST", "/containers/{id}/unpause", on_any_node(unpause_container), Right.NODE),
    Route("POST", "/containers/{id}/wait", on_any_node(wait_container), Right.NODE),
    Route("POST", "/containers/{id}/rename", on_any_node(rename_container), Right.NODE),
    Route("POST", "/containers/{id}/update", on_any_node(update_container), Right.NODE),
    Route("POST", "/containers/{id}/resize", on_any_node(resize_container), Right.NODE),
    Route("DELETE", "/containers/{id}", on_any_node(remove_container), Right.NODE),
)
