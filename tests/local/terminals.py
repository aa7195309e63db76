"""A person at a terminal: a command of a host behind a pseudo terminal."""

from __future__ import annotations

import os
import pty
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tests.lab import Host
from tests.lab.host import Running

PATIENCE = 30.0


class Terminal:
    def __init__(self, leader: int, process: Running, before: list[object]) -> None:
        self._leader = leader
        self.before = before  # the terminal's modes when nobody had touched them
        self._process = process
        self.seen = b""

    async def see(self, text: str) -> None:
        """Wait until *text* stands on the screen behind what was waited for before."""
        with trio.move_on_after(PATIENCE) as waiting:
            while text.encode() not in self.seen:
                await trio.lowlevel.wait_readable(self._leader)
                try:
                    self.seen += os.read(self._leader, 4096)
                except OSError:  # nobody writes any more
                    break
        assert text.encode() in self.seen, (text, self.seen, waiting.cancelled_caught)
        _, _, self.seen = self.seen.partition(text.encode())

    def type(self, text: str) -> None:
        os.write(self._leader, text.encode())

    async def end(self) -> int:
        """Wait for the command's end and return its exit code."""
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._drain)
                code = await self._process.wait()
                nursery.cancel_scope.cancel()
        return code

    async def _drain(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._leader)
            try:
                data = os.read(self._leader, 4096)
            except OSError:
                return
            self.seen += data

    def modes(self) -> list[object]:
        """How the terminal is set (termios): the same before and after, whatever happened."""
        return termios.tcgetattr(self._leader)[:4]


@asynccontextmanager
async def terminal(host: Host, *words: str) -> AsyncIterator[Terminal]:
    leader, follower = pty.openpty()
    before: list[object] = termios.tcgetattr(leader)[:4]
    try:
        process = await host.popen(
            *words, stdin=follower, stdout=follower, stderr=follower, env={"TERM": "xterm"}
        )
        os.close(follower)
        follower = -1
        try:
            yield Terminal(leader, process, before)
        finally:
            with trio.CancelScope(shield=True):
                await process.kill()
    finally:
        if follower >= 0:
            os.close(follower)
        os.close(leader)
