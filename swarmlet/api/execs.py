"""`docker exec`: a further process in a container of this node, its streams over an upgrade.

POST /containers/{id}/exec    remember what shall run
POST /exec/{id}/start         run it; the connection becomes its streams (101)
POST /exec/{id}/resize        the size of its terminal
GET  /exec/{id}/json          whether it runs, and its exit code
"""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from swarmlet.api.containers import find_container
from swarmlet.api.exchange import Answer, ApiError, RawStream, Response, Upgraded, json_response
from swarmlet.api.exectable import Exec
from swarmlet.api.fields import Fields
from swarmlet.api.frames import STDERR, STDOUT, content_type, encode_frame
from swarmlet.api.rights import Right
from swarmlet.api.router import Call, Route
from swarmlet.manager.errors import SpecError
from swarmlet.runtime.failures import RuntimeFailure
from swarmlet.runtime.sessions import Session
from swarmlet.runtime.spec import User
from swarmlet.runtime.state import ExitStatus

#: After the process has ended, for what it left in its pipes; a child of it may hold them open.
OUTPUT_SECONDS = 1.0
TERMINAL_SIDE_MAX = 10_000
CHUNK_BYTES = 32 * 1024
NOT_EXECUTABLE, NOT_FOUND = 126, 127


async def create_exec(call: Call) -> Answer:
    state, _ = find_container(call.node, call.params["id"])
    fields = Fields(await call.request.body.json())
    args = fields.texts("Cmd")
    own = state.spec.process
    process = dataclasses.replace(
        own,
        args=args,
        env=(*own.env, *fields.texts("Env")),
        cwd=fields.text("WorkingDir") or own.cwd,
        terminal=fields.flag("Tty"),
        stdin=fields.flag("AttachStdin"),
    )
    if user := fields.text("User"):
        process = dataclasses.replace(process, user=User.parse(user))
    fields.ignore("AttachStdout", "AttachStderr", "DetachKeys", "ConsoleSize", "Container")
    fields.refuse("Detach", "running without its streams is not built yet")
    fields.refuse("Privileged", "an exec has the rights of its container here; leave it out")
    fields.done()
    if not args:
        raise SpecError("Cmd", "names no command")
    if not state.status.running:
        raise ApiError(409, f"container {call.params['id']} is not running")
    exec_ = call.execs.add(state.id, process, with_stdin=process.stdin)
    return json_response({"Id": exec_.id}, 201)


async def start_exec(call: Call) -> Answer:
    exec_ = call.execs.find(call.params["id"])
    fields = Fields(await call.request.body.json())
    if fields.flag("Detach"):
        raise ApiError(501, "Detach: running without its streams is not built yet; leave out -d")
    fields.ignore("Tty", "ConsoleSize")
    fields.done()
    if exec_.was_started:
        raise ApiError(409, "this exec has run already; create another one")
    exec_.was_started = True
    type_ = content_type(call.request.version, terminal=exec_.process.terminal)
    try:
        session = await call.node.supervisor.exec(exec_.container, exec_.process, exec_id=exec_.id)
    except RuntimeFailure as failure:
        if not call.request.wants_upgrade:
            raise
        # The docker client shows no refusal of an upgrade: it reads why in the stream.
        return Upgraded(_failing(exec_, failure), type_)
    exec_.session = session

    async def run(raw: RawStream) -> None:
        exec_.exit = await _carry(raw, session, with_stdin=exec_.with_stdin)

    async def close() -> None:
        exec_.session = None
        await session.aclose()

    return Upgraded(run, type_, close)


def _failing(exec_: Exec, failure: RuntimeFailure) -> Callable[[RawStream], Awaitable[None]]:
    """What tells in a stream that the command was never run; a shell's exit codes."""
    exec_.exit = ExitStatus(NOT_FOUND if failure.errno == errno.ENOENT else NOT_EXECUTABLE)

    async def run(raw: RawStream) -> None:
        text = f"{failure}\r\n".encode()
        await raw.send_all(text if exec_.process.terminal else encode_frame(STDERR, text))

    return run


async def _carry(raw: RawStream, session: Session, *, with_stdin: bool) -> ExitStatus:
    """Carry the streams until the process has ended; return how."""
    outputs = [(STDOUT, session.stdout)]
    if session.stderr is not None:
        outputs.append((STDERR, session.stderr))
    open_outputs = len(outputs)
    all_read = trio.Event()
    sending = trio.Lock()  # one frame after the other

    async def carry_output(number: int, stream: trio.abc.ReceiveStream) -> None:
        nonlocal open_outputs
        while data := bytes(await stream.receive_some(CHUNK_BYTES)):
            async with sending:
                await raw.send_all(data if session.terminal else encode_frame(number, data))
        open_outputs -= 1
        if not open_outputs:
            all_read.set()

    async def carry_input() -> None:
        while data := await raw.receive_some():
            if not with_stdin or session.stdin is None:
                continue
            try:
                await session.stdin.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # it reads no more
        await session.close_stdin()

    async with trio.open_nursery() as nursery:
        for number, stream in outputs:
            nursery.start_soon(carry_output, number, stream)
        if with_stdin:
            nursery.start_soon(carry_input)
        else:
            await session.close_stdin()
        end = await session.wait()
        with trio.move_on_after(OUTPUT_SECONDS):
            await all_read.wait()
        nursery.cancel_scope.cancel()
    return end


async def resize_exec(call: Call) -> Answer:
    exec_ = call.execs.find(call.params["id"])
    rows, columns = (call.request.query.number(name, 0) for name in ("h", "w"))
    if not (0 < rows <= TERMINAL_SIDE_MAX and 0 < columns <= TERMINAL_SIDE_MAX):
        raise ApiError(400, "h, w: the size of the terminal is missing or too large")
    if exec_.session is not None:
        exec_.session.resize(rows, columns)
    return Response(200)


async def inspect_exec(call: Call) -> Answer:
    exec_ = call.execs.find(call.params["id"])
    process = exec_.process
    document: dict[str, Any] = {
        "ID": exec_.id,
        "Running": exec_.session is not None and exec_.exit is None,
        "ExitCode": exec_.exit.code if exec_.exit is not None else None,
        "ProcessConfig": {
            "tty": process.terminal,
            "entrypoint": process.args[0],
            "arguments": list(process.args[1:]),
            "privileged": False,
        },
        "OpenStdin": exec_.with_stdin,
        "OpenStdout": True,
        "OpenStderr": True,
        "CanRemove": False,
        "ContainerID": exec_.container,
        "DetachKeys": "",
        "Pid": exec_.session.pid if exec_.session is not None else 0,
    }
    return json_response(document)


ROUTES = (
    Route("POST", "/containers/{id}/exec", create_exec, Right.NODE),
    Route("POST", "/exec/{id}/start", start_exec, Right.NODE),
    Route("POST", "/exec/{id}/resize", resize_exec, Right.NODE),
    Route("GET", "/exec/{id}/json", inspect_exec, Right.NODE),
)
