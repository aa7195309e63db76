"""Click with Docker's manners: commands found lazily, aliases, `--flag=false`, what to do next."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import click

if TYPE_CHECKING:
    from swarmlet.api.client import Client

F = TypeVar("F", bound=Callable[..., Any])

#: Docker's other names of the verbs.
ALIASES = {"list": "ls", "remove": "rm"}


class Failure(Exception):
    """Why a command failed: one line that says what, why and what to do; and its exit code."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


class App:
    """What every command gets: where the daemon is, and the client of its API."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        if self._client is None:
            from swarmlet.api.client import Client

            self._client = Client(self.host)
        return self._client


_pass_app = click.make_pass_decorator(App)


def pass_app(function: F) -> F:
    """Give the command the App as its first argument."""
    return cast(F, _pass_app(function))


class Command(click.Command):
    """Takes `--flag=true` and `--flag=false` as Docker does, and names its arguments' end."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = [p for p in self.params if isinstance(p, click.Option)]
        negated = {o: p.secondary_opts[:1] for p in options if p.is_flag for o in p.opts}
        valued = {o for p in options if not p.is_flag and not p.count for o in p.opts}
        args = _spell_out(args, negated, valued, to_the_end=ctx.allow_interspersed_args)
        return super().parse_args(ctx, args)


def _spell_out(
    args: list[str], negated: Mapping[str, list[str]], valued: set[str], *, to_the_end: bool
) -> list[str]:
    """Rewrite `--flag=true` and `--flag=false` into what click knows.

    Without *to_the_end* options end at the first argument: what follows is a command's own.
    """
    result: list[str] = []
    position = 0
    while position < len(args):
        arg = args[position]
        name, separator, value = arg.partition("=")
        if arg == "--" or (not arg.startswith("-") and not to_the_end):
            break
        position += 1
        if separator and name in negated and value.lower() in ("true", "1"):
            result.append(name)
        elif separator and name in negated and value.lower() in ("false", "0"):
            result += negated[name]
        else:
            result.append(arg)
            if name in valued and not separator and position < len(args):
                result.append(args[position])
                position += 1
    return result + args[position:]


def load_command(place: str) -> click.Command:
    """Import the command that *place*, "module:object", names."""
    module, _, attribute = place.partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command)
    return command


class Group(click.Group):
    """Commands come from *lazy*: name -> ("module:object", one line of help)."""

    command_class = Command

    def __init__(
        self, *args: Any, lazy: Mapping[str, tuple[str, str]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        if not self.commands:
            return list(self._lazy)  # the root's table is in the order of a first day
        return sorted([*self._lazy, *self.commands])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = cmd_name
        if name not in self._lazy and name not in self.commands:
            name = ALIASES.get(name, name)
        if name in self._lazy:
            return load_command(self._lazy[name][0])
        return super().get_command(ctx, name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None:
            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            ctx.fail(f"there is no command {name!r}{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            if name in self._lazy:
                rows.append((name, self._lazy[name][1]))
            elif (command := self.commands[name]) and not command.hidden:
                rows.append((name, command.get_short_help_str(70).removesuffix(".")))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class Parsed(click.ParamType[Any]):
    """A value that a function of parsing.py reads; its ValueError becomes a usage error."""

    def __init__(self, parse: Callable[[str], Any], name: str) -> None:
        self.parse = parse
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


def refused_option(*flags: str, reason: str) -> Callable[[F], F]:
    """An option that Docker has and we do not: known by name, and refused with *reason*."""

    def refuse(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value:
            raise click.UsageError(f"{flags[0]}: {reason}", ctx)

    return click.option(
        *flags, multiple=True, hidden=True, expose_value=False, callback=refuse, metavar="X"
    )


def refused_flag(*flags: str, reason: str) -> Callable[[F], F]:
    """As refused_option, for one that takes no value."""

    def refuse(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value:
            raise click.UsageError(f"{flags[0]}: {reason}", ctx)

    return click.option(*flags, is_flag=True, hidden=True, expose_value=False, callback=refuse)


def format_option(function: F) -> F:
    text = "table, json, or a template such as '{{.ID}} {{.Name}}'."
    return click.option("--format", "format_", metavar="FORMAT", default="", help=text)(function)


def quiet_option(function: F) -> F:
    return click.option("-q", "--quiet", is_flag=True, help="Show ids only.")(function)


def no_trunc_option(function: F) -> F:
    return click.option("--no-trunc", is_flag=True, help="Show whole values.")(function)


def filter_option(function: F) -> F:
    return click.option(
        "-f",
        "--filter",
        "filters",
        type=Parsed(_parse_filter, "key=value"),
        multiple=True,
        help="Show only what matches, such as name=web.",
    )(function)


def _parse_filter(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError(f"{text!r} is no filter; write key=value, such as name=web")
    return key.strip().lower(), value.strip()


def filters_query(filters: tuple[tuple[str, str], ...]) -> dict[str, list[str]] | None:
    """The filters of flags as the API takes them."""
    query: dict[str, list[str]] = {}
    for key, value in filters:
        query.setdefault(key, []).append(value)
    return query or None


def for_each(names: tuple[str, ...], act: Callable[[str], None]) -> None:
    """Act on every name, also after one has failed. Raises Failure if any has."""
    from swarmlet.api.client import ClientError

    failed: list[str] = []
    for name in names:
        try:
            act(name)
        except (ClientError, Failure) as exc:
            failed.append(str(exc))
    if failed:
        raise Failure("\n".join(failed))


def uses_colour() -> bool:
    """Whether standard output is a terminal that wants colour (no-color.org)."""
    import sys

    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def fail(message: str) -> NoReturn:
    raise Failure(message)
