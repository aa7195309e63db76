"""`swarmlet run | create | start | exec | attach`: processes in containers, and their streams."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import click

from swarmlet.cli.base import App, Command, Failure, for_each, pass_app, refused_option
from swarmlet.cli.container_options import (
    container_options,
    create_body,
    progress,
    read_env,
    refuse_old_cidfile,
    write_cidfile,
)
from swarmlet.cli.duplex import (
    Detached,
    Duplex,
    check_terminal,
    proxied_signals,
    raw_terminal,
)
from swarmlet.cli.output import emit
from swarmlet.cli.parsing import parse_keys
from swarmlet.cli.pulling import pull, with_tag

F = TypeVar("F", bound=Callable[..., Any])

#: What a shell says of a command that could not be run, and ours of all before it.
NOT_FOUND, NOT_EXECUTABLE, FAILED = 127, 126, 125
#: Options end at the image or the container: what follows is the command's own.
CONTEXT = {"allow_interspersed_args": False, "help_option_names": ["--help"]}
_KEYS_HELP = "The keys that let go of it; ctrl-p,ctrl-q if not given."


def _keys_option(function: F) -> F:
    return click.option("--detach-keys", default="", help=_KEYS_HELP)(function)


def _sig_proxy_option(function: F) -> F:
    text = "Signals to the client go to the process."
    return click.option("--sig-proxy/--no-sig-proxy", default=True, help=text)(function)


@click.command(cls=Command, context_settings=CONTEXT)
@container_options
@click.argument("image")
@click.argument("command", metavar="[COMMAND] [ARG...]", nargs=-1, type=click.UNPROCESSED)
@pass_app
def create(app: App, image: str, command: tuple[str, ...], **options: Any) -> None:
    """Make a container, which is not started, and print its id."""
    try:
        emit(_create(app, image, command, options))
    except Failure as exc:
        raise Failure(str(exc)) from None  # 125 is of `run`


@click.command(cls=Command, context_settings=CONTEXT)
@container_options
@click.option("-d", "--detach", is_flag=True, help="Print its id, and leave it to itself.")
@_keys_option
@_sig_proxy_option
@click.argument("image")
@click.argument("command", metavar="[COMMAND] [ARG...]", nargs=-1, type=click.UNPROCESSED)
@pass_app
def run(
    app: App,
    image: str,
    command: tuple[str, ...],
    detach: bool,
    detach_keys: str,
    sig_proxy: bool,
    **options: Any,
) -> int:
    """Make a container and run it; exit as it does.

    Exit codes besides the command's own: 125 the container could not be made, 126 the command
    cannot be run, 127 it is not there.
    """
    check_keys(detach_keys)
    if not detach:
        _check_terminal(options["tty"], options["interactive"])
    id_ = _create(app, image, command, {**options, "detach": detach})
    if detach:
        _start(app, id_)
        emit(id_)
        return 0
    asked = {text.lower() for text in options["attach"]} or {"stdout", "stderr", "stdin"}
    condition = "removed" if options["rm"] else "next-exit"
    follower = Follower(app, id_, terminal=options["tty"], keys=detach_keys)
    return follower.run(
        stdin=options["interactive"] and "stdin" in asked,
        outputs=asked,
        sig_proxy=sig_proxy and not options["tty"],
        condition=condition,
        start=lambda: _start(app, id_),
    )


def check_keys(text: str) -> None:
    try:
        parse_keys(text)
    except ValueError as exc:
        raise click.UsageError(f"--detach-keys: {exc}") from None


def _check_terminal(wants_tty: bool, wants_stdin: bool) -> None:
    check_terminal(wants_tty, wants_stdin)


def _create(app: App, image: str, command: tuple[str, ...], options: dict[str, Any]) -> str:
    from swarmlet.api.client import ClientError, Refused

    refuse_old_cidfile(options["cidfile"])
    body = create_body(options, image, command)
    query = {"name": options["name"], "platform": options["platform"]}
    try:
        if options["pull"] == "always":
            pull(app, image, quiet=options["quiet"], out=progress)
        try:
            answer = app.client.call("POST", "/containers/create", body, query=query)
        except Refused as exc:
            if exc.status != 404 or options["pull"] == "never" or "No such image" not in str(exc):
                raise
            progress(f"Unable to find image {with_tag(image)!r} locally")
            pull(app, image, quiet=options["quiet"], out=progress)
            answer = app.client.call("POST", "/containers/create", body, query=query)
    except (ClientError, Failure) as exc:
        raise Failure(str(exc), FAILED) from None
    write_cidfile(options["cidfile"], answer["Id"])
    for warning in answer.get("Warnings") or ():
        progress(f"WARNING: {warning}")
    return str(answer["Id"])


def _start(app: App, id_: str) -> None:
    """Raises Failure with a shell's exit code."""
    from swarmlet.api.client import ClientError

    try:
        app.client.post(f"/containers/{id_}/start")
    except ClientError as exc:
        raise Failure(str(exc), start_code(str(exc))) from None


def start_code(text: str) -> int:
    if "executable file not found" in text or "no such file or directory" in text:
        return NOT_FOUND
    return NOT_EXECUTABLE if "permission denied" in text else FAILED


class Follower:
    """This terminal as the container's, from before its start to its end."""

    def __init__(self, app: App, id_: str, *, terminal: bool, keys: str) -> None:
        self._app = app
        self._id = id_
        self._terminal = terminal
        self._keys = keys
        self._code: list[int] = []
        self._failure: list[Exception] = []

    def run(
        self,
        *,
        stdin: bool,
        outputs: set[str],
        sig_proxy: bool,
        condition: str,
        start: Callable[[], None],
    ) -> int:
        """Return the exit code; 0 when it was let go of."""
        query = {
            "stream": True,
            "stdin": stdin or None,
            "stdout": "stdout" in outputs or None,
            "stderr": "stderr" in outputs or None,
            "detachKeys": self._keys or None,
        }
        connection, leftover = self._app.client.upgrade(
            f"/containers/{self._id}/attach", query=query
        )
        # The head is here before the start, so no end is missed; the body comes at the end.
        pieces = self._app.client.stream(
            "POST", f"/containers/{self._id}/wait", query={"condition": condition}
        )
        waiter = threading.Thread(target=self._wait, args=(pieces,), daemon=True)
        waiter.start()
        try:
            start()
        except BaseException:
            connection.close()
            raise
        is_tty = self._terminal and stdin and sys.stdin.isatty()
        duplex = Duplex(
            connection, leftover, framed=not self._terminal, stdin=stdin, keys=self._keys
        )
        signals = proxied_signals(self._kill) if sig_proxy else nullcontext()
        terminal = raw_terminal(self._resize) if is_tty else nullcontext()
        try:
            with terminal, signals:
                duplex.run()
                waiter.join()
        except Detached:
            progress("read escape sequence")
            return 0
        if self._failure:
            raise Failure(str(self._failure[0]), FAILED)
        return self._code[0]

    def _wait(self, pieces: Iterator[bytes]) -> None:
        import json

        try:
            self._code.append(int(json.loads(b"".join(pieces))["StatusCode"]))
        except Exception as exc:
            self._failure.append(exc)

    def _kill(self, signal: str) -> None:
        self._app.client.post(f"/containers/{self._id}/kill", signal=signal)

    def _resize(self, rows: int, columns: int) -> None:
        self._app.client.post(f"/containers/{self._id}/resize", h=rows, w=columns)


@click.command(cls=Command)
@click.option("-a", "--attach", is_flag=True, help="Show what it writes, and exit as it does.")
@click.option("-i", "--interactive", is_flag=True, help="Give it this input.")
@_keys_option
@_sig_proxy_option
@refused_option("--checkpoint", reason="checkpoints are not built")
@refused_option("--checkpoint-dir", reason="checkpoints are not built")
@click.argument("containers", metavar="CONTAINER...", nargs=-1, required=True)
@pass_app
def start(
    app: App,
    containers: tuple[str, ...],
    attach: bool,
    interactive: bool,
    detach_keys: str,
    sig_proxy: bool,
) -> int:
    """Start containers that do not run."""
    check_keys(detach_keys)
    if not (attach or interactive):

        def act(name: str) -> None:
            app.client.post(f"/containers/{name}/start")
            emit(name)

        for_each(containers, act)
        return 0
    if len(containers) > 1:
        raise Failure("you cannot start and attach multiple containers at once")
    found = app.client.get(f"/containers/{containers[0]}/json")
    if found["State"]["Running"]:
        raise Failure(f"{containers[0]} runs already; `swarmlet attach {containers[0]}` shows it")
    terminal = found["Config"]["Tty"]
    _check_terminal(terminal, interactive)
    follower = Follower(app, found["Id"], terminal=terminal, keys=detach_keys)
    return follower.run(
        stdin=interactive and found["Config"]["OpenStdin"],
        outputs={"stdout", "stderr"},
        sig_proxy=sig_proxy and not terminal,
        condition="removed" if found["HostConfig"].get("AutoRemove") else "next-exit",
        start=lambda: _start(app, found["Id"]),
    )


@click.command(cls=Command)
@_keys_option
@click.option("--no-stdin", is_flag=True, help="Do not give it this input.")
@_sig_proxy_option
@click.argument("container")
@pass_app
def attach(app: App, container: str, detach_keys: str, no_stdin: bool, sig_proxy: bool) -> int:
    """Be where a container's output goes to and its input comes from."""
    check_keys(detach_keys)
    found = app.client.get(f"/containers/{container}/json")
    state, config = found["State"], found["Config"]
    if not state["Running"]:
        raise Failure(f"cannot attach to a stopped container, start it first: {container}")
    if state["Paused"]:
        raise Failure(f"cannot attach to a paused container, unpause it first: {container}")
    stdin = config["OpenStdin"] and not no_stdin
    _check_terminal(config["Tty"], stdin)
    follower = Follower(app, found["Id"], terminal=config["Tty"], keys=detach_keys)
    return follower.run(
        stdin=stdin,
        outputs={"stdout", "stderr"},
        sig_proxy=sig_proxy and not config["Tty"],
        condition="not-running",
        start=lambda: None,
    )


@click.command("exec", cls=Command, context_settings=CONTEXT)
@click.option("-d", "--detach", is_flag=True, help="Leave it to itself.")
@_keys_option
@click.option("-e", "--env", multiple=True, help="KEY=value.")
@click.option("--env-file", multiple=True, help="A file of such lines.")
@click.option("-i", "--interactive", is_flag=True, help="Give it this input.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-u", "--user", default="", help="user[:group].")
@click.option("-w", "--workdir", default="", help="Where it starts.")
@click.option("--privileged", is_flag=True, help="All capabilities.")
@click.argument("container")
@click.argument(
    "command", metavar="COMMAND [ARG...]", nargs=-1, required=True, type=click.UNPROCESSED
)
@pass_app
def exec_(
    app: App,
    container: str,
    command: tuple[str, ...],
    detach: bool,
    detach_keys: str,
    env: tuple[str, ...],
    env_file: tuple[str, ...],
    interactive: bool,
    tty: bool,
    user: str,
    workdir: str,
    privileged: bool,
) -> int:
    """Run a further command in a container; exit as it does."""
    check_keys(detach_keys)
    if not detach:
        _check_terminal(tty, interactive)
    made = app.client.post(
        f"/containers/{container}/exec",
        {
            "AttachStdin": interactive and not detach,
            "AttachStdout": not detach,
            "AttachStderr": not detach,
            "Cmd": list(command),
            "DetachKeys": detach_keys,
            "Env": read_env(env, env_file),
            "Privileged": privileged,
            "Tty": tty,
            "User": user,
            "WorkingDir": workdir,
        },
    )
    id_ = made["Id"]
    if detach:
        app.client.post(f"/exec/{id_}/start", {"Detach": True, "Tty": tty})
        return 0
    connection, leftover = app.client.upgrade(f"/exec/{id_}/start", {"Detach": False, "Tty": tty})
    duplex = Duplex(connection, leftover, framed=not tty, stdin=interactive, keys=detach_keys)
    is_tty = tty and interactive and sys.stdin.isatty()
    try:
        with _terminal_of(app, id_) if is_tty else nullcontext():
            duplex.run()
    except Detached:
        progress("read escape sequence")
        return 0
    return int(app.client.get(f"/exec/{id_}/json")["ExitCode"] or 0)


@contextmanager
def _terminal_of(app: App, id_: str) -> Iterator[None]:
    def resize(rows: int, columns: int) -> None:
        app.client.post(f"/exec/{id_}/resize", h=rows, w=columns)

    with raw_terminal(resize):
        yield
