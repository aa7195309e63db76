"""`swarmlet daemon`: options and a TOML file become those of swarmlet.daemon, which takes over.

The file has the names of the options, with `_` or `-`:

    listen = "0.0.0.0:7947"
    advertise = "10.0.0.5"
    state-dir = "/var/lib/swarmlet"

An option on the command line wins over the file, the file over the default.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from swarmlet.cli.base import Command, Failure

CONFIG_PATH = Path("/etc/swarmlet/swarmlet.toml")
CONFIG_BYTES_MAX = 1 << 20

#: name of the option: its default, as swarmlet.daemon has it, and by that its type.
DEFAULTS: Mapping[str, Any] = {
    "state_dir": "/var/lib/swarmlet",
    "run_dir": "/run/swarmlet",
    "listen": "0.0.0.0:7947",
    "advertise": "",
    "data_path_port": 4789,
    "cgroup_parent": "swarmlet",
    "name": "",
    "log_level": "info",
    "gateway_subnet": "172.31.192.0/20",
}
LOG_LEVELS = ("debug", "info", "warning", "error")


def read_config(text: str) -> dict[str, Any]:
    """Return the settings in *text*. Pure. Raises ValueError that names the line or the key."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ValueError(f"not TOML: {exc}") from None
    settings: dict[str, Any] = {}
    for key, value in document.items():
        name = key.replace("-", "_")
        if name not in DEFAULTS:
            near = difflib.get_close_matches(name, DEFAULTS, n=1)
            known = ", ".join(sorted(DEFAULTS))
            raise ValueError(f"{key}: no such setting; {_hint(near) or f'known are {known}'}")
        wanted = type(DEFAULTS[name])
        if type(value) is not wanted:
            kind = "a number" if wanted is int else "text in quotes"
            raise ValueError(f"{key}: {value!r} is not {kind}")
        settings[name] = value
    return settings


def _hint(near: list[str]) -> str:
    return f"did you mean {near[0]}?" if near else ""


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises ValueError that names the setting."""
    port = settings["data_path_port"]
    if not 1 <= port <= 65_535:
        raise ValueError(f"data_path_port: {port} is no port")
    if settings["log_level"] not in LOG_LEVELS:
        known = ", ".join(LOG_LEVELS)
        raise ValueError(f"log_level: {settings['log_level']!r} is not one of {known}")
    for name in ("state_dir", "run_dir"):
        if not settings[name].startswith("/"):
            raise ValueError(f"{name}: {settings[name]!r} is not an absolute path")


def _read_file(path: Path, *, must_exist: bool) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(CONFIG_BYTES_MAX).decode()
    except FileNotFoundError:
        if must_exist:
            raise Failure(f"--config {path}: there is no such file") from None
        return {}
    except (OSError, ValueError) as exc:
        raise Failure(f"--config {path}: {exc}") from None
    try:
        return read_config(text)
    except ValueError as exc:
        raise Failure(f"{path}: {exc}") from None


@click.command(cls=Command)
@click.option(
    "--config", metavar="PATH", help=f"TOML file with these options; {CONFIG_PATH} if it exists."
)
@click.option("--state-dir", metavar="PATH", help="What must survive a reboot.")
@click.option("--run-dir", metavar="PATH", help="Sockets and namespaces; the API's socket, too.")
@click.option("--listen", metavar="ADDRESS:PORT", help="Where other nodes come in; TCP and UDP.")
@click.option(
    "--advertise", metavar="ADDRESS", help="Where others reach it; found out if not given."
)
@click.option("--data-path-port", type=click.IntRange(1, 65535), help="UDP port of the VXLANs.")
@click.option("--cgroup-parent", metavar="NAME", help="Under which its containers' groups lie.")
@click.option("--name", metavar="NAME", help="The node's name in place of the host's.")
@click.option("--gateway-subnet", metavar="SUBNET", help="For the tasks' way out of the host.")
@click.option("--log-level", type=click.Choice(LOG_LEVELS), help="What the log holds.")
def daemon(config: str | None, **options: Any) -> None:
    """Run the node until SIGTERM."""
    path = Path(config) if config else CONFIG_PATH
    given = {name: value for name, value in options.items() if value is not None}
    settings = {**DEFAULTS, **_read_file(path, must_exist=config is not None), **given}
    try:
        check_settings(settings)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    # The command line is a client and imports nothing of the daemon otherwise.
    from swarmlet.daemon import run

    run(**settings)
