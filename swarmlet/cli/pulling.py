"""Fetching an image before a container is made of it, and saying so."""

from __future__ import annotations

import json
from collections.abc import Callable

from swarmlet.cli.base import App, Failure


def with_tag(name: str) -> str:
    """A name without tag and digest means the latest."""
    has_one = "@" in name or ":" in name.rpartition("/")[2]
    return name if has_one else f"{name}:latest"


def pull(app: App, name: str, *, quiet: bool, out: Callable[[str], None]) -> None:
    """Raises Failure, ClientError."""
    name, rest = with_tag(name), b""
    for piece in app.client.stream("POST", "/images/create", query={"fromImage": name}):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            told = json.loads(line)
            if "error" in told:
                raise Failure(str(told["error"]))
            if not quiet:
                out(str(told["status"]))
