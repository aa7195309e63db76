"""The command line in this process against a fake cluster that is served in another thread."""

from __future__ import annotations

import contextlib
import io
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from swarmlet.cli.main import run
from swarmlet.model import NodeId
from tests.api.fake import H1, NAMES, NOW, Fake
from tests.api.neighbours import FakeNeighbourhood
from tests.api.serving import open_sockets

#: The command line's clock: three minutes after everything in the fake happened.
LATER = NOW + 180


class Shell:
    """Types commands: `swarmlet …` on h1, or `h3: swarmlet …` elsewhere."""

    def __init__(self, fake: Fake, paths: dict[NodeId, Path], folder: Path) -> None:
        self.fake = fake
        self.folder = folder
        self._paths = paths
        #: What every node's gossip shows.
        self.neighbourhood: FakeNeighbourhood = fake.nodes[H1].neighbourhood  # type: ignore[attr-defined]

    def type(self, line: str) -> tuple[int, str, str]:
        """Return exit code, standard output and standard error."""
        node = H1
        for id_, name in NAMES.items():
            if line.startswith(f"{name}: "):
                node, line = id_, line.removeprefix(f"{name}: ")
        words = shlex.split(line)
        assert words[0] == "swarmlet", line
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(["--host", f"unix://{self._paths[node]}", *words[1:]])
        stdout, stderr = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
        return code, stdout, stderr

    def execute(self, line: str) -> list[str]:
        """For golden scripts: what a person would see, errors behind "! ", then the exit code."""
        code, stdout, stderr = self.type(line)
        lines = [*stdout.splitlines(), *(f"! {text}" for text in stderr.splitlines())]
        # A blank line would end the block of a golden script.
        lines = [text.rstrip() or "." for text in lines]
        return [f"$ {line}", *lines, *([f"exit {code}"] if code else [])]


@contextmanager
def open_shell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    clock = SimpleNamespace(time=lambda: LATER)
    for module in ("service_show", "members", "image", "container"):
        monkeypatch.setattr(f"swarmlet.cli.{module}.time", clock)
    monkeypatch.chdir(folder)
    ready, ended = threading.Event(), trio.Event()
    shells: list[Shell] = []
    tokens: list[trio.lowlevel.TrioToken] = []

    async def serve() -> None:
        async with open_sockets(folder) as (fake, paths):
            shells.append(Shell(fake, paths, folder))
            tokens.append(trio.lowlevel.current_trio_token())
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    try:
        assert ready.wait(10)
        yield shells[0]
    finally:
        trio.from_thread.run_sync(ended.set, trio_token=tokens[0])
        thread.join(10)
