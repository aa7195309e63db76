"""The daemon's end of the conversation with the zygote (the table is in zygote.py).

`connect` finds the zygote of a run folder or starts it. `Client.run` is the one reader of the
socket: it hands answers to the tasks that wait for them and events to the supervisor.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from swarmlet.runtime.failures import ZygoteLost
from swarmlet.runtime.zygote import DESCRIPTORS_MAX, MESSAGE_BYTES_MAX, SOCKET, VERSION

logger = logging.getLogger(__name__)

#: Seconds for a new zygote to listen, and for one that is there to say hello.
START_TIMEOUT = 10.0
#: Answers of the zygote may be larger than requests: parts of a list.
ANSWER_BYTES_MAX = 4 * MESSAGE_BYTES_MAX
_BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from swarmlet.runtime.zygote import main; sys.exit(main(sys.argv[2]))"
)


@dataclass
class Answer:
    """What the zygote said to one request. Who takes the descriptors closes them."""

    fields: dict[str, Any]
    descriptors: list[int]


@dataclass
class _Pending:
    ready: trio.Event = field(default_factory=trio.Event)
    answer: Answer | None = None
    items: list[dict[str, Any]] = field(default_factory=list)


class Client:
    """One connection. Requests may come from any task of the daemon."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        self._pending: dict[int, _Pending] = {}
        self._sequence = 0
        self._lost = False
        self._sending = trio.Lock()

    async def run(self, on_event: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        """Read until the zygote hangs up; then every request that waits fails."""
        space = socket.CMSG_SPACE(DESCRIPTORS_MAX * 4)
        try:
            while True:
                try:
                    data, ancillary, _, _ = await self._sock.recvmsg(
                        ANSWER_BYTES_MAX, space, socket.MSG_CMSG_CLOEXEC
                    )
                except OSError:
                    return
                if not data:
                    return
                message = json.loads(data)
                if "event" in message:
                    await on_event(message)
                else:
                    self._deliver(message, _descriptors(ancillary))
        finally:
            self._lost = True
            self._sock.close()
            for pending in self._pending.values():
                pending.ready.set()

    def _deliver(self, message: dict[str, Any], descriptors: list[int]) -> None:
        pending = self._pending.get(message["seq"])
        if pending is None:
            for fd in descriptors:  # the task that asked was cancelled
                os.close(fd)
            return
        pending.items += message.get("items", ())
        if not message.get("more"):
            pending.answer = Answer(message, descriptors)
            pending.ready.set()

    async def request(
        self, operation: str, descriptors: Sequence[int] = (), **fields: Any
    ) -> Answer:
        """Ask and wait for the answer, which may say `failed`; raise ZygoteLost without one."""
        self._sequence += 1
        sequence = self._sequence
        pending = self._pending[sequence] = _Pending()
        data = json.dumps({"op": operation, "seq": sequence, **fields}).encode()
        try:
            if self._lost:
                raise _lost(fields)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _array(descriptors))]
            try:
                async with self._sending:
                    await self._sock.sendmsg([data], rights if descriptors else [])
            except OSError as failure:
                raise _lost(fields) from failure
            await pending.ready.wait()
            if pending.answer is None:
                raise _lost(fields)
            if "items" in pending.answer.fields:
                pending.answer.fields["items"] = pending.items
            return pending.answer
        finally:
            del self._pending[sequence]


def _lost(fields: dict[str, Any]) -> ZygoteLost:
    advice = "the daemon starts another; try again"
    return ZygoteLost(fields.get("id", ""), "the zygote is gone", advice=advice)


def _array(descriptors: Sequence[int]) -> bytes:
    return b"".join(fd.to_bytes(4, sys.byteorder) for fd in descriptors)


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    return [
        int.from_bytes(data[start : start + 4], sys.byteorder)
        for level, kind, data in ancillary
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for start in range(0, len(data) // 4 * 4, 4)
    ]


async def connect(run_dir: Path) -> Client:
    """Return a connection to the zygote of *run_dir*, started when there is none.

    Raises ZygoteLost when none can be started.
    """
    with trio.move_on_after(START_TIMEOUT):
        while True:
            sock = await _try_connect(run_dir)
            if sock is not None:
                return Client(sock)
            await _start(run_dir)
    raise ZygoteLost("", f"no zygote listens in {run_dir} after {START_TIMEOUT} s")


async def _try_connect(run_dir: Path) -> trio.socket.SocketType | None:
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # unix(7): an address has 108 bytes, a run folder may have more.
        await sock.connect(f"/proc/self/fd/{folder}/{SOCKET}")
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(folder)
    return sock


async def _start(run_dir: Path) -> None:
    """Start a zygote; one that finds another at work leaves at once, which is as good."""
    root = str(Path(__file__).parents[2])
    python = [sys.executable, "-I", "-S", "-X", "utf8", "-c", _BOOTSTRAP]
    result = await trio.run_process(
        [*python, root, str(run_dir)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        capture_stderr=True,
        check=False,
        # Nothing of the daemon's environment is for a process that outlives it.
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
    )
    if result.returncode:
        lines = result.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise ZygoteLost("", f"the zygote does not start: {lines[-1]}")
    logger.info("zygote started run_dir=%s", run_dir)


async def greet(client: Client) -> int:
    """Return the zygote's pid; end one of another version, which raises ZygoteLost.

    `hello` and `stop` are what every version understands.
    """
    with trio.move_on_after(START_TIMEOUT):
        answer = await client.request("hello")
        version = answer.fields.get("version")
        if version != VERSION:
            # Its containers do not mind: the one that is started next adopts them.
            logger.info("zygote of another version ended version=%s wanted=%d", version, VERSION)
            await client.request("stop")  # answered by the end of the connection
        return int(answer.fields["pid"])
    raise ZygoteLost("", f"the zygote does not answer in {START_TIMEOUT} s")
