"""`docker attach` and `docker run`: the streams of a container's own process, by an upgrade."""

from __future__ import annotations

from contextlib import aclosing

import trio

from swarmlet.agent.local.errors import NoSuch
from swarmlet.api.detachkeys import parse_keys
from swarmlet.api.exchange import Answer, ApiError, RawStream, Upgraded
from swarmlet.api.found import Found, find_container
from swarmlet.api.frames import STREAMS, content_type, encode_frame
from swarmlet.api.remote import on_any_node
from swarmlet.api.rights import Right
from swarmlet.api.router import Call, Route
from swarmlet.api.streams import Wanted, carry
from swarmlet.runtime.failures import RuntimeFailure
from swarmlet.runtime.sessions import Session


async def attach_container(call: Call) -> Answer:
    """Of a container that was not started yet, the streams of its next run, from its first byte."""
    found = find_container(call.node, call.params["id"])
    query = call.request.query
    keys = parse_keys(query.text("detachKeys"))
    if found.status == "paused":
        raise ApiError(409, f"Container {found.id} is paused. Unpause the container before attach")
    wants_logs, wants_stream = query.flag("logs"), query.flag("stream")
    open_stdin, once = _input_of(found)
    wanted = Wanted(
        stdin=query.flag("stdin") and open_stdin and wants_stream,
        stdout=query.flag("stdout"),
        stderr=query.flag("stderr"),
        # Others may go on typing, unless it was said that one input is all there is.
        ends_input=once and query.flag("stdin"),
        keys=keys if found.terminal else b"",
    )
    session = None
    if wants_stream and found.runs:
        session = await call.node.supervisor.attach(found.id)

    async def run(raw: RawStream) -> None:
        nonlocal session
        if wants_logs:
            await _replay(call, found, wanted, raw)
        if not wants_stream:
            return
        if session is None:
            if found.local is None:
                return
            try:
                session = await call.node.local.attach(found.local)
            except NoSuch:
                return  # it was removed before it ever ran
        if found.local is not None:
            call.node.local.tell(found.local, "attach")
        await _follow(call, found, session, wanted, raw)

    async def close() -> None:
        if session is not None:
            await session.aclose()

    return Upgraded(run, content_type(call.request.version, terminal=found.terminal), close)


async def _follow(
    call: Call, found: Found, session: Session, wanted: Wanted, raw: RawStream
) -> None:
    try:
        end = await carry(raw, session, wanted)
    except RuntimeFailure:
        return  # it was removed: its streams are over
    if end is None and found.local is not None:
        call.node.local.tell(found.local, "detach")


def _input_of(found: Found) -> tuple[bool, bool]:
    """Whether it takes input, and whether that ends with its first giver."""
    if found.local is not None:
        config = found.local.record.config
        return config.open_stdin, config.stdin_once and not config.tty
    return found.state is not None and found.state.spec.process.stdin, False


async def _replay(call: Call, found: Found, wanted: Wanted, raw: RawStream) -> None:
    if found.state is None:
        return
    log = call.node.supervisor.logs(found.id, stdout=wanted.stdout, stderr=wanted.stderr)
    async with aclosing(log) as lines:
        async for line in lines:
            data = line.data
            await raw.send_all(
                data if found.terminal else encode_frame(STREAMS.get(line.stream, 1), data)
            )
    await trio.lowlevel.checkpoint()


ROUTES = (Route("POST", "/containers/{id}/attach", on_any_node(attach_container), Right.NODE),)
