"""Fetching an image before a container is made of it, and saying so."""

from __future__ import annotations

import json
from collections.abc import Callable

from swarmlet.cli.base import App, Failure


def pull(app: App, name: str, *, quiet: bool, out: Callable[[str], None]) -> None:
    """Raises Failure, ClientError."""
    if "@" not in name and ":" not in name.rpartition("/")[2]:
        name = f"{name}:latest"
    rest = b""
    for piece in app.client.stream("POST", "/images/create", query={"fromImage": name}):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            told = json.loads(line)
            if "error" in told:
                raise Failure(str(told["error"]))
            if not quiet:
                out(str(told["status"]))
