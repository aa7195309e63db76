"""A process's standard streams over an upgraded connection: attach and exec."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from swarmlet.api.detachkeys import KeyWatch
from swarmlet.api.exchange import RawStream
from swarmlet.api.frames import STDERR, STDOUT, encode_frame
from swarmlet.runtime.sessions import Session
from swarmlet.runtime.state import ExitStatus

#: After the process has ended, for what it left in its pipes; a child of it may hold them open.
OUTPUT_SECONDS = 1.0
CHUNK_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which streams a client asked for, and what the end of its input means."""

    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    #: The process reads the end of its input when the client's has ended.
    ends_input: bool = True
    keys: bytes = b""  # that detach; none without a terminal


async def carry(raw: RawStream, session: Session, wanted: Wanted) -> ExitStatus | None:
    """Carry the streams until the process has ended; None: the client let go of it."""
    carrier = _Carrier(raw, session, wanted)
    return await carrier.run()


class _Carrier:
    """Owned by the one task that runs run()."""

    def __init__(self, raw: RawStream, session: Session, wanted: Wanted) -> None:
        self._raw = raw
        self._session = session
        self._wanted = wanted
        self._sending = trio.Lock()  # one frame after the other
        self._all_read = trio.Event()
        self._open_outputs = 0
        self._detached = False

    async def run(self) -> ExitStatus | None:
        outputs = [(STDOUT, self._session.stdout, self._wanted.stdout)]
        if self._session.stderr is not None:
            outputs.append((STDERR, self._session.stderr, self._wanted.stderr))
        self._open_outputs = len(outputs)
        end: ExitStatus | None = None
        async with trio.open_nursery() as nursery:
            for number, stream, is_wanted in outputs:
                nursery.start_soon(self._carry_output, number, stream, is_wanted)
            if self._wanted.stdin:
                nursery.start_soon(self._carry_input, nursery.cancel_scope)
            elif self._wanted.ends_input:
                await self._session.close_stdin()
            end = await self._session.wait()
            with trio.move_on_after(OUTPUT_SECONDS):
                await self._all_read.wait()
            nursery.cancel_scope.cancel()
        return None if self._detached else end

    async def _carry_output(
        self, number: int, stream: trio.abc.ReceiveStream, is_wanted: bool
    ) -> None:
        while data := bytes(await stream.receive_some(CHUNK_BYTES)):
            if is_wanted:
                async with self._sending:
                    framed = not self._session.terminal
                    await self._raw.send_all(encode_frame(number, data) if framed else data)
        self._open_outputs -= 1
        if not self._open_outputs:
            self._all_read.set()

    async def _carry_input(self, scope: trio.CancelScope) -> None:
        watch = KeyWatch(self._wanted.keys) if self._wanted.keys else None
        while data := await self._raw.receive_some():
            if watch is not None:
                data = watch.feed(data)
            if data and self._session.stdin is not None:
                try:
                    await self._session.stdin.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return  # it reads no more
            if watch is not None and watch.found:
                self._detached = True
                scope.cancel()
                return
        if self._wanted.ends_input:
            await self._session.close_stdin()
