"""`swarmlet service`: create, update, scale, rollback, rm. service_show.py has what only shows."""

from __future__ import annotations

import shlex
from typing import Any

import click

from swarmlet.cli.base import (
    App,
    Command,
    Failure,
    Group,
    for_each,
    pass_app,
    refused_flag,
    refused_option,
)
from swarmlet.cli.service_options import (
    CONTAINER,
    REFUSED,
    REFUSED_FLAGS,
    apply_health,
    apply_list_changes,
    apply_lists,
    apply_scalars,
    change_options,
    find,
    finish,
    listed_options,
    put,
    read_env_files,
    scalar_options,
)

_SHOW = "swarmlet.cli.service_show"


@click.group(
    cls=Group,
    lazy={
        "ls": (f"{_SHOW}:ls", "List services"),
        "ps": (f"{_SHOW}:ps", "List the tasks of services"),
        "inspect": (f"{_SHOW}:inspect", "Show services in detail"),
        "logs": ("swarmlet.cli.service_logs:logs", "Show what the tasks of a service wrote"),
    },
)
def service() -> None:
    """Manage services."""


def _refused(function: Any) -> Any:
    for flag, reason in REFUSED.items():
        function = refused_option(flag, reason=reason)(function)
    for flag, reason in REFUSED_FLAGS.items():
        function = refused_flag(flag, reason=reason)(function)
    return function


_detach = click.option("-d", "--detach", is_flag=True, help="Do not wait until it has converged.")
_quiet = click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
_entrypoint = click.option("--entrypoint", help="In place of the image's entrypoint.")
_health_cmd = click.option("--health-cmd", help="Command that says whether it is healthy.")
_no_healthcheck = click.option("--no-healthcheck", is_flag=True, help="Without the image's check.")


@service.command(cls=Command, context_settings={"allow_interspersed_args": False})
@click.option("--name", default="", help="Name of the service.")
@click.option("--replicas", type=click.IntRange(min=0), help="Number of tasks.")
@click.option("--mode", default="replicated", help="replicated or global.")
@_entrypoint
@listed_options
@click.option("--env-file", "env_files", multiple=True, help="Read variables from a file.")
@scalar_options
@_health_cmd
@_no_healthcheck
@_detach
@_quiet
@_refused
@click.argument("image")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@pass_app
def create(
    app: App, image: str, command: tuple[str, ...], detach: bool, quiet: bool, **options: Any
) -> None:
    """Create a service that runs IMAGE [COMMAND...] in its tasks."""
    spec: dict[str, Any] = {"Name": options["name"], "Mode": _mode(options)}
    put(spec, f"{CONTAINER}.Image", image)
    if command:
        put(spec, f"{CONTAINER}.Args", list(command))
    if options["entrypoint"]:
        put(spec, f"{CONTAINER}.Command", shlex.split(options["entrypoint"]))
    if from_files := read_env_files(options["env_files"]):
        put(spec, f"{CONTAINER}.Env", from_files)
    apply_scalars(spec, _with_update_defaults(options))
    apply_lists(spec, options)
    apply_health(spec, options["health_cmd"], options["no_healthcheck"])
    finish(spec)
    id_ = _create(app, spec)
    print(id_, flush=True)
    if not detach:
        _watch(app, id_, options["name"], quiet=quiet)


def _create(app: App, spec: dict[str, Any]) -> str:
    import secrets

    headers = {"Swarmlet-Request": secrets.token_hex(16)}
    made = app.client.call("POST", "/services/create", spec, headers=headers)
    for warning in made.get("Warnings") or ():
        click.echo(warning, err=True)
    return str(made["ID"])


def _mode(options: dict[str, Any]) -> dict[str, Any]:
    mode, replicas = options["mode"], options["replicas"]
    if mode == "global":
        if replicas is not None:
            raise click.UsageError("--replicas goes with the mode replicated only")
        return {"Global": {}}
    if mode in ("replicated-job", "global-job"):
        raise click.UsageError(f"--mode {mode}: jobs are not built yet")
    if mode != "replicated":
        raise click.UsageError(f"--mode {mode!r} is not replicated or global")
    return {"Replicated": {"Replicas": 1 if replicas is None else replicas}}


def _with_update_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """A config that is given in part has Docker's default for what it leaves out."""
    completed = dict(options)
    for prefix in ("update", "rollback"):
        given = [k for k, v in options.items() if k.startswith(f"{prefix}_") and v is not None]
        if given and completed.get(f"{prefix}_parallelism") is None:
            completed[f"{prefix}_parallelism"] = 1
    return completed


@service.command(cls=Command)
@click.option("--image", help="Image to run from now on.")
@click.option("--args", help="Command line, in place of the one that it has.")
@click.option("--replicas", type=click.IntRange(min=0), help="Number of tasks.")
@_entrypoint
@change_options
@scalar_options
@_health_cmd
@_no_healthcheck
@click.option("--force", is_flag=True, help="Replace every task even if nothing changes.")
@click.option("--rollback", is_flag=True, help="Go back to the spec before.")
@_detach
@_quiet
@_refused
@click.argument("service_", metavar="SERVICE")
@pass_app
def update(app: App, service_: str, detach: bool, quiet: bool, **options: Any) -> None:
    """Change a service."""
    current = app.client.get(f"/services/{service_}")
    spec = current["Spec"]
    if options["rollback"]:
        _refuse_others_beside_rollback(options)
        _update(app, current, spec, rollback=True)
    else:
        _change_spec(spec, options)
        _update(app, current, spec)
    print(service_, flush=True)
    if not detach:
        wanted = options["rollback"]
        _watch(app, current["ID"], spec["Name"], quiet=quiet, wants_rollback=wanted)


def _change_spec(spec: dict[str, Any], options: dict[str, Any]) -> None:
    if options["image"] is not None:
        put(spec, f"{CONTAINER}.Image", options["image"])
    if options["args"] is not None:
        put(spec, f"{CONTAINER}.Args", shlex.split(options["args"]))
    if options["entrypoint"] is not None:
        put(spec, f"{CONTAINER}.Command", shlex.split(options["entrypoint"]))
    if options["replicas"] is not None:
        _scale_spec(spec, options["replicas"])
    apply_scalars(spec, options)
    apply_list_changes(spec, options)
    apply_health(spec, options["health_cmd"], options["no_healthcheck"])
    finish(spec)
    if options["force"]:
        put(spec, "TaskTemplate.ForceUpdate", (find(spec, "TaskTemplate.ForceUpdate") or 0) + 1)


def _refuse_others_beside_rollback(options: dict[str, Any]) -> None:
    given = [k for k, v in options.items() if v not in (None, (), False) and k != "rollback"]
    if given:
        flag = given[0].replace("_", "-")
        raise click.UsageError(f"--rollback takes the spec of before as it is; leave out --{flag}")


def _scale_spec(spec: dict[str, Any], replicas: int) -> None:
    if "Replicated" not in spec["Mode"]:
        raise Failure(
            f"service {spec['Name']} is global: it has a task on every node, and no number to set"
        )
    spec["Mode"]["Replicated"]["Replicas"] = replicas


def _update(
    app: App, current: dict[str, Any], spec: dict[str, Any], *, rollback: bool = False
) -> None:
    answer = app.client.post(
        f"/services/{current['ID']}/update",
        spec,
        version=current["Version"]["Index"],
        rollback="previous" if rollback else None,
    )
    for warning in (answer or {}).get("Warnings") or ():
        click.echo(warning, err=True)


@service.command(cls=Command)
@_detach
@_quiet
@click.argument("targets", metavar="SERVICE=REPLICAS...", nargs=-1, required=True)
@pass_app
def scale(app: App, targets: tuple[str, ...], detach: bool, quiet: bool) -> None:
    """Set the number of tasks of services."""
    wanted = [_parse_target(target) for target in targets]
    scaled: list[tuple[str, str]] = []

    def scale_one(name: str) -> None:
        replicas = dict(wanted)[name]
        current = app.client.get(f"/services/{name}")
        _scale_spec(current["Spec"], replicas)
        _update(app, current, current["Spec"])
        scaled.append((current["ID"], current["Spec"]["Name"]))
        print(f"{name} scaled to {replicas}", flush=True)

    try:
        for_each(tuple(name for name, _ in wanted), scale_one)
    finally:
        if not detach:
            for id_, name in scaled:
                _watch(app, id_, name, quiet=quiet, fresh=False)


def _parse_target(text: str) -> tuple[str, int]:
    name, separator, replicas = text.partition("=")
    if not (name and separator and replicas.isascii() and replicas.isdigit()):
        raise click.UsageError(f"{text!r} is not SERVICE=REPLICAS, such as web=3")
    return name, int(replicas[:9])


@service.command(cls=Command)
@_detach
@_quiet
@click.argument("service_", metavar="SERVICE")
@pass_app
def rollback(app: App, service_: str, detach: bool, quiet: bool) -> None:
    """Go back to the spec that a service had before its last update."""
    current = app.client.get(f"/services/{service_}")
    _update(app, current, current["Spec"], rollback=True)
    print(service_, flush=True)
    if not detach:
        _watch(app, current["ID"], current["Spec"]["Name"], quiet=quiet, wants_rollback=True)


@service.command(cls=Command)
@_detach
@_quiet
@click.argument("services", metavar="SERVICE...", nargs=-1, required=True)
@pass_app
def rm(app: App, services: tuple[str, ...], detach: bool, quiet: bool) -> None:
    """Remove services, and wait until their tasks have stopped."""
    from swarmlet.cli.watching import watch_removal

    def remove(name: str) -> None:
        id_ = app.client.get(f"/services/{name}")["ID"]
        app.client.delete(f"/services/{id_}")
        print(name, flush=True)
        if not detach:
            watch_removal(app.client, id_, name, quiet=quiet)

    for_each(services, remove)


def _watch(
    app: App, id_: str, name: str, *, quiet: bool, fresh: bool = True, wants_rollback: bool = False
) -> None:
    from swarmlet.cli.watching import watch_service

    if not name:
        name = app.client.get(f"/services/{id_}")["Spec"]["Name"]
    watch_service(app.client, id_, name, quiet=quiet, fresh=fresh, wants_rollback=wants_rollback)
