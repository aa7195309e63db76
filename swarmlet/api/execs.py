"""`docker exec`: a further process in a container, its streams over an upgrade.

POST /containers/{id}/exec    remember what shall run
POST /exec/{id}/start         run it; the connection becomes its streams (101), or with Detach not
POST /exec/{id}/resize        the size of its terminal
GET  /exec/{id}/json          whether it runs, and its exit code

A container of another node is asked for there: what was made there is known by its id here.
"""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from swarmlet.agent.local.specs import all_capabilities
from swarmlet.api.detachkeys import parse_keys
from swarmlet.api.exchange import Answer, ApiError, RawStream, Response, Upgraded, json_response
from swarmlet.api.exectable import Exec
from swarmlet.api.fields import Fields
from swarmlet.api.found import find_container
from swarmlet.api.frames import STDERR, content_type, encode_frame
from swarmlet.api.proxy import forward
from swarmlet.api.remote import on_any_node
from swarmlet.api.rights import Right
from swarmlet.api.router import Call, Handler, Route
from swarmlet.api.streams import CHUNK_BYTES, Wanted, carry
from swarmlet.manager.errors import SpecError
from swarmlet.runtime.failures import RuntimeFailure
from swarmlet.runtime.sessions import Session
from swarmlet.runtime.spec import User
from swarmlet.runtime.state import ExitStatus

TERMINAL_SIDE_MAX = 10_000
NOT_EXECUTABLE, NOT_FOUND = 126, 127


async def create_exec(call: Call) -> Answer:
    found = find_container(call.node, call.params["id"])
    fields = Fields(await call.request.body.json())
    args = fields.texts("Cmd")
    keys = parse_keys(fields.text("DetachKeys"))
    env, cwd, user = fields.texts("Env"), fields.text("WorkingDir"), fields.text("User")
    terminal, stdin = fields.flag("Tty"), fields.flag("AttachStdin")
    privileged = fields.flag("Privileged")
    # Neither is looked at: what is attached to is said when it is started.
    fields.ignore("AttachStdout", "AttachStderr", "Detach", "ConsoleSize", "Container")
    fields.done()
    if not args or not args[0]:
        raise SpecError("Cmd", "names no command")
    if not found.runs or found.state is None:
        raise ApiError(409, f"container {call.params['id']} is not running")
    if found.status == "paused":
        raise ApiError(409, f"Container {call.params['id']} is paused, unpause the container first")
    own = found.state.spec.process
    process = dataclasses.replace(
        own,
        args=args,
        env=(*own.env, *env),
        cwd=cwd or own.cwd,
        terminal=terminal,
        stdin=stdin,
        user=User.parse(user) if user else own.user,
        capabilities=all_capabilities() if privileged else own.capabilities,
    )
    exec_ = call.execs.add(
        found.id, process, with_stdin=stdin, keys=keys if terminal else b"", privileged=privileged
    )
    if found.local is not None:
        call.node.local.tell(found.local, f"exec_create: {' '.join(args)}", execID=exec_.id)
    return json_response({"Id": exec_.id}, 201)


async def start_exec(call: Call) -> Answer:
    exec_ = call.execs.find(call.params["id"])
    fields = Fields(await call.request.body.json())
    detach = fields.flag("Detach")
    fields.ignore("Tty", "ConsoleSize")
    fields.done()
    if exec_.was_started:
        raise ApiError(409, "this exec has run already; create another one")
    exec_.was_started = True
    type_ = content_type(call.request.version, terminal=exec_.process.terminal)
    try:
        session = await call.node.supervisor.exec(exec_.container, exec_.process, exec_id=exec_.id)
    except RuntimeFailure as failure:
        exec_.exit = ExitStatus(_code_of(failure))
        if detach or not call.request.wants_upgrade:
            raise
        # The docker client shows no refusal of an upgrade: it reads why in the stream.
        return Upgraded(_failing(exec_, failure), type_)
    exec_.session = session
    _tell(call, exec_, "exec_start")
    if detach:
        call.start_soon(_drain, call, exec_, session)
        return Response(200)

    async def run(raw: RawStream) -> None:
        wanted = Wanted(stdin=exec_.with_stdin, keys=exec_.keys)
        end = await carry(raw, session, wanted)
        if end is None:
            call.start_soon(_drain, call, exec_, session)
            exec_.is_detached = True
            _tell(call, exec_, "exec_detach")
            return
        exec_.exit = end
        _tell(call, exec_, "exec_die")

    async def close() -> None:
        if not exec_.is_detached:
            exec_.session = None
            await session.aclose()

    return Upgraded(run, type_, close)


async def _drain(call: Call, exec_: Exec, session: Session) -> None:
    """Nobody looks at what a detached exec writes, and it must not hang for that."""
    async with session, trio.open_nursery() as nursery:

        async def drain(stream: trio.abc.ReceiveStream) -> None:
            while await stream.receive_some(CHUNK_BYTES):
                pass

        nursery.start_soon(drain, session.stdout)
        if session.stderr is not None:
            nursery.start_soon(drain, session.stderr)
        if not exec_.is_detached:
            await session.close_stdin()
        exec_.exit = await session.wait()
        exec_.session = None
        nursery.cancel_scope.cancel()
    _tell(call, exec_, "exec_die")


def _tell(call: Call, exec_: Exec, action: str) -> None:
    local = call.node.local.containers.get(exec_.container)
    if local is None:
        return
    if action == "exec_start":
        action = f"exec_start: {' '.join(exec_.process.args)}"
    more = {"exitCode": str(exec_.exit.code)} if exec_.exit is not None else {}
    call.node.local.tell(local, action, execID=exec_.id, **more)


def _code_of(failure: RuntimeFailure) -> int:
    return NOT_FOUND if failure.errno == errno.ENOENT else NOT_EXECUTABLE


def _failing(exec_: Exec, failure: RuntimeFailure) -> Callable[[RawStream], Awaitable[None]]:
    """What tells in a stream that the command was never run; a shell's exit codes."""

    async def run(raw: RawStream) -> None:
        text = f"{failure}\r\n".encode()
        await raw.send_all(text if exec_.process.terminal else encode_frame(STDERR, text))

    return run


def terminal_size(call: Call) -> tuple[int, int]:
    """Rows and columns of a call of resize. Raises ApiError."""
    rows, columns = (call.request.query.number(name, 0) for name in ("h", "w"))
    if not (0 < rows <= TERMINAL_SIDE_MAX and 0 < columns <= TERMINAL_SIDE_MAX):
        raise ApiError(400, "h, w: the size of the terminal is missing or too large")
    return rows, columns


async def resize_exec(call: Call) -> Answer:
    exec_ = call.execs.find(call.params["id"])
    rows, columns = terminal_size(call)
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
            "privileged": exec_.privileged,
            "user": process.user.user,
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


def _where_it_runs(handler: Handler) -> Handler:
    """Hand the call on to the node on which the exec was made, if that is another one."""

    async def handle(call: Call) -> Answer:
        node = call.execs.node_of(call.params["id"])
        if node is None:
            return await handler(call)
        return await forward(call.request, call.node, to=node)

    return handle


ROUTES = (
    Route("POST", "/containers/{id}/exec", on_any_node(create_exec), Right.NODE),
    Route("POST", "/exec/{id}/start", _where_it_runs(start_exec), Right.NODE),
    Route("POST", "/exec/{id}/resize", _where_it_runs(resize_exec), Right.NODE),
    Route("GET", "/exec/{id}/json", _where_it_runs(inspect_exec), Right.NODE),
)
