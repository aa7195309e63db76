"""One host of the lab: namespaces instead of a machine, everything else as on a machine."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import h11
import trio

from tests.lab import kernel
from tests.lab.network import MARK, LabError, Network, address, execute, hold, let_go, read_line
from tests.lab.remains import look
from tests.lab.waiting import eventually

FIRST = Path(__file__).with_name("first.py")
#: Ports of the daemon: the one TCP and UDP port of the cluster, and the VXLANs'.
PORT, DATA_PATH_PORT = 7947, 4789
#: Seconds that a command may take before it is killed and the test told so.
COMMAND_SECONDS = 60.0
#: Seconds until a killed host's last process must be gone, cgroups included.
DEATH_SECONDS = 20.0
#: A body that the daemon sends to `api` may not be larger.
BODY_BYTES_MAX = 64 * 1024 * 1024


def enter(first: int) -> list[str]:
    """What to put before a command so that it runs in the host whose first process is *first*."""
    kinds = ["--mount", "--net", "--uts", "--ipc", "--pid"]
    return ["nsenter", f"--target={first}", *kinds, "--wd=/"]


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended, with its output as text."""

    argv: tuple[str, ...]
    code: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        parts = [f"$ {shlex.join(self.argv)}", self.stdout.rstrip(), self.stderr.rstrip()]
        return "\n".join(part for part in [*parts, f"exit {self.code}"] if part)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API socket said."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Running:
    """A process inside a host, with `nsenter` as its parent outside."""

    outer: trio.Process
    pid: int  # as this process sees it

    def send(self, number: int) -> None:
        if self.code is None:  # nsenter lives as long as its child is not reaped: the pid is ours
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
        if number != signal.SIGSTOP:
            self.wake()

    def wake(self) -> None:
        """Let nsenter go on: it stops itself when its child stops, and then reaps nobody."""
        if self.code is None:
            self.outer.send_signal(signal.SIGCONT)

    async def wait(self) -> int:
        """Its exit code, negative for a signal."""
        return await self.outer.wait()

    @property
    def code(self) -> int | None:
        return self.outer.poll()

    async def kill(self) -> None:
        if self.code is None:
            self.send(signal.SIGKILL)
            await self.wait()


@dataclass
class Host:
    """A machine of the lab. Made by `Lab`, which also buries it."""

    lab: int
    number: int
    folder: Path
    network: Network
    kept: bool = False
    address: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    daemon: Running | None = None
    baseline: frozenset[str] = frozenset()  # what it had when it had booted
    _started: list[Running] = field(default_factory=list)
    _first: subprocess.Popen[bytes] | None = None
    _pid: int = 0

    def __post_init__(self) -> None:
        self.address = self.address or address(self.lab, self.number)

    # What it is called and where its things are.

    @property
    def name(self) -> str:
        return f"h{self.number}"

    @property
    def cgroup_parent(self) -> str:
        return f"swarmlet-lab-{self.lab}/{self.name}"

    @property
    def state_dir(self) -> Path:
        """On the disk, as seen from inside and outside: outlives a reboot."""
        return self.folder / "state"

    #: In the host's own /run, a tmpfs: does not outlive a reboot. `outside` reads it.
    run_dir = Path("/run/swarmlet")

    @property
    def log(self) -> Path:
        """Standard output and error of all daemons that ran here, appended."""
        return self.folder / "daemon.log"

    @property
    def pid(self) -> int:
        """The first process of the host: the handle of all its namespaces."""
        assert self._pid, f"{self.name} is not running"
        return self._pid

    @property
    def running(self) -> bool:
        return bool(self._pid)

    def outside(self, path: str | Path) -> Path:
        """Where this process finds what is *path* inside the host."""
        return Path(f"/proc/{self.pid}/root") / str(path).lstrip("/")

    @property
    def socket(self) -> Path:
        """The daemon's API socket, for this process; inside it is `run_dir / "swarmlet.sock"`."""
        return self.outside(self.run_dir / "swarmlet.sock")

    # Life and death.

    async def boot(self) -> None:
        """Make the namespaces, the host's view of the machine, and plug the cable in."""
        assert not self._pid, f"{self.name} runs already"
        self.state_dir.mkdir(parents=True, exist_ok=True)
        (self.folder / "home").mkdir(exist_ok=True)
        namespaces = ["--mount", "--net", "--uts", "--ipc", "--pid", "--fork"]
        mode = "kept" if self.kept else "lifeline"
        first = [sys.executable, "-I", "-S", str(FIRST), self.name, str(self.folder), mode]
        self._first = hold(
            "unshare",
            *namespaces,
            "--propagation",
            "private",
            *first,
            kept=self.kept,
            errors=self.folder / "first.log",
            env=self._environment({}),
        )
        self._pid = int(await read_line(self._first, "pid"))
        await read_line(self._first, "ready")
        self.write_identity()
        await self.network.plug(self.number, self._pid)
        await self._set_address()
        self.baseline = await look(self)

    async def kill(self) -> None:
        """Cut the power: every process ends at once, and the kernel's objects with them.

        What stays is what a disk keeps: `state_dir`.
        """
        if self._first is None:
            return
        with trio.move_on_after(DEATH_SECONDS, shield=True) as scope:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            # The first process is only reaped when its whole namespace is empty.
            await eventually(self._is_dead, within=DEATH_SECONDS, every=0.01)
            for process in self._started:
                await process.wait()
            await self.network.unplug(self.number)
            await eventually(
                lambda: not kernel.remove_cgroups(self.cgroup_parent), within=DEATH_SECONDS
            )
        if scope.cancelled_caught:
            raise LabError(f"{self.name} did not die within {DEATH_SECONDS:g} s")
        self.bury()

    def bury(self) -> None:
        """Forget the dead processes; sync, so that it also works while everything falls apart."""
        if self._first is not None:
            self._first.kill()
            self._first.wait()
            let_go(self._first)
        self._first, self._pid, self.daemon = None, 0, None
        self._started.clear()
        self.identity.unlink(missing_ok=True)

    def release(self) -> None:
        """Let go of the processes of a kept lab; nobody waits for them any more."""
        for process in [self._first, *(one.outer._proc for one in self._started)]:
            if process is not None:
                process.returncode = 0  # else its finalizer warns that it still runs
        if self._first is not None:
            let_go(self._first)

    async def reboot(self) -> None:
        """Power cut, and on again. No daemon is started: that is the caller's next line."""
        await self.kill()
        await self.boot()

    def _is_dead(self) -> bool:
        assert self._first is not None
        kernel.thaw(self.cgroup_parent)
        for process in self._started:
            process.wake()
        return self._first.poll() is not None

    # Commands.

    def enter(self) -> list[str]:
        """What to put before a command so that it runs in the host."""
        return enter(self.pid)

    def _environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        socket = f"unix://{self.run_dir}/swarmlet.sock"
        programs = Path(sys.executable).parent
        return {
            "PATH": f"{programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.folder / "home"),
            "LANG": "C.UTF-8",
            "SWARMLET_HOST": socket,
            "DOCKER_HOST": socket,
            MARK: str(self.lab),
            **self.environment,
            **extra,
        }

    async def run(
        self,
        *argv: str,
        check: bool = True,
        stdin: str | bytes = b"",
        within: float = COMMAND_SECONDS,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a command in the host to its end. A failure raises, unless *check* is False.

        After *within* seconds the command is killed and `LabError` says what it had said so far.
        """
        given = stdin.encode() if isinstance(stdin, str) else stdin
        pipe = subprocess.PIPE
        process = await self.popen(*argv, env=env, stdin=pipe, stdout=pipe, stderr=pipe)
        outer = process.outer
        outputs = [bytearray(), bytearray()]
        try:
            with trio.move_on_after(within) as scope:
                async with trio.open_nursery() as pumps:
                    pumps.start_soon(_feed, outer.stdin, given)
                    pumps.start_soon(_drain, outer.stdout, outputs[0])
                    pumps.start_soon(_drain, outer.stderr, outputs[1])
                await process.wait()
        finally:
            with trio.CancelScope(shield=True):
                await process.kill()
            self._started.remove(process)
        stdout, stderr = (bytes(output).decode(errors="replace") for output in outputs)
        code = process.code
        assert code is not None
        completed = Completed(argv, code, stdout, stderr)
        if scope.cancelled_caught:
            raise LabError(f"{self.name}: no end within {within:g} s: {completed}")
        if check and code:
            raise LabError(f"{self.name}: {completed}")
        return completed

    async def popen(
        self,
        *argv: str,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[Any] = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = subprocess.DEVNULL,
        stderr: int | IO[Any] | None = subprocess.DEVNULL,
    ) -> Running:
        """Start a command that goes on; it dies with the host at the latest."""
        outer = await trio.lowlevel.open_process(
            [*self.enter(), *argv],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=self._environment(env or {}),
            start_new_session=True,
        )
        with trio.fail_after(COMMAND_SECONDS):
            while outer.poll() is None:  # until nsenter has forked
                children = kernel.children_of(outer.pid)
                if children:
                    break
                await trio.sleep(0.001)
            else:
                children = [outer.pid]  # over already, and reaped: no signal can reach it
        running = Running(outer, children[0])
        self._started.append(running)
        return running

    # The daemon.

    def daemon_argv(self, *extra: str) -> list[str]:
        options = {
            "--state-dir": self.state_dir,
            "--run-dir": self.run_dir,
            "--listen": f"{self.address}:{PORT}",
            "--advertise": self.address,
            "--data-path-port": DATA_PATH_PORT,
            "--cgroup-parent": self.cgroup_parent,
            "--name": self.name,
        }
        words = [str(word) for option in options.items() for word in option]
        return ["swarmlet", "daemon", *words, *extra]

    async def start_daemon(
        self, *extra: str, command: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> None:
        """Start the daemon, or *command* in its place; `wait_ready` tells when it is usable."""
        assert self.daemon is None or self.daemon.code is not None, f"{self.name}: runs already"
        with self.log.open("ab") as log:
            self.daemon = await self.popen(
                *(command or self.daemon_argv(*extra)), env=env, stdout=log, stderr=log
            )

    async def wait_ready(self, *, within: float = 20.0) -> None:
        """Until the API answers; a daemon that ended instead is an error with its last words."""
        daemon = self._daemon()

        async def look() -> bool:
            return daemon.code is not None or await self.is_ready()

        await eventually(look, within=within, every=0.02)
        if daemon.code is not None:
            raise LabError(f"{self.name}: daemon exited {daemon.code}:\n{self.last_words()}")

    async def is_ready(self) -> bool:
        try:
            return (await self.api("GET", "/_ping", within=2.0)).status == 200
        except OSError:
            return False

    async def stop_daemon(self, number: int = signal.SIGTERM, *, within: float = 30.0) -> int:
        """Signal the daemon and wait for its end; the exit code, negative for a signal."""
        daemon = self._daemon()
        daemon.send(number)
        with trio.move_on_after(within) as scope:
            code = await daemon.wait()
        if scope.cancelled_caught:
            raise LabError(f"{self.name}: daemon did not stop:\n{self.last_words()}")
        self.daemon = None
        return code

    def pause(self) -> None:
        """Stop the daemon's clock, as a laptop's lid or a hypervisor does."""
        self._daemon().send(signal.SIGSTOP)

    def resume(self) -> None:
        self._daemon().send(signal.SIGCONT)

    def last_words(self, lines: int = 20) -> str:
        """The end of the daemon's log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def _daemon(self) -> Running:
        assert self.daemon is not None, f"{self.name}: no daemon was started"
        return self.daemon

    async def api(
        self, method: str, target: str, body: bytes = b"", *, within: float = COMMAND_SECONDS
    ) -> Answer:
        """One HTTP request to the daemon's socket. An answer that takes too long is an OSError."""
        with trio.move_on_after(within):
            async with await trio.open_unix_socket(str(self.socket)) as stream:
                try:
                    return await _request(stream, method, target, body)
                except (trio.BrokenResourceError, h11.RemoteProtocolError) as error:
                    raise LabError(f"{self.name}: {method} {target}: {error}") from error
        raise LabError(f"{self.name}: {method} {target}: no answer within {within:g} s")

    # The cable.

    async def cut(self) -> None:
        """Pull the cable: the card has no carrier, as when a switch loses its power."""
        await self.network.carrier(self.number, "down")

    async def heal(self) -> None:
        await self.network.carrier(self.number, "up")

    async def renumber(self, new: str) -> None:
        """Another address from the DHCP server, while everything runs."""
        self.address = new
        await self._set_address()

    async def _set_address(self) -> None:
        commands = f"address flush dev eth0\naddress add {self.address}/24 dev eth0\n"
        enter = ["nsenter", f"--net=/proc/{self.pid}/ns/net"]
        await execute(*enter, "ip", "-batch", "-", stdin=commands + "link set eth0 up\n")

    # Looking.

    def processes(self) -> list[kernel.Process]:
        """All processes of the host but its first; `nested` ones are in containers."""
        inode = kernel.namespace(self.pid, "pid")
        assert inode is not None
        return [found for found in kernel.processes_in(inode) if found.pid != self.pid]

    def container_pids(self) -> list[int]:
        """Processes in PID namespaces below the host's, by their pids out here."""
        return [process.pid for process in self.processes() if process.nested]

    # Its handles on the disk, for `scripts/lab` and for whoever clears up after a dead owner.

    @property
    def identity(self) -> Path:
        return self.folder / "first"

    def write_identity(self) -> None:
        facts = {"address": self.address, "environment": self._environment({})}
        (self.folder / "host.json").write_text(json.dumps(facts))
        self.identity.write_text(f"{self.pid} {kernel.start_time(self.pid)}\n")


async def _feed(stream: trio.abc.SendStream | None, data: bytes) -> None:
    assert stream is not None
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):  # it did not want to read it all
            await stream.send_all(data)


async def _drain(stream: trio.abc.ReceiveStream | None, into: bytearray) -> None:
    assert stream is not None
    async with stream:
        async for chunk in stream:
            into += chunk


async def _request(stream: trio.SocketStream, method: str, target: str, body: bytes) -> Answer:
    connection = h11.Connection(h11.CLIENT)
    headers = [("Host", "swarmlet"), ("Connection", "close"), ("Content-Length", str(len(body)))]
    if body:
        headers.append(("Content-Type", "application/json"))
    events: list[Any] = [h11.Request(method=method, target=target, headers=headers)]
    if body:
        events.append(h11.Data(data=body))
    for event in [*events, h11.EndOfMessage()]:
        await stream.send_all(connection.send(event) or b"")
    answer: h11.Response | None = None
    content = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some())
        elif isinstance(event, h11.Response):
            answer = event
        elif isinstance(event, h11.Data):
            content += event.data
            if len(content) > BODY_BYTES_MAX:
                raise LabError(f"{method} {target}: more than {BODY_BYTES_MAX} bytes")
        elif isinstance(event, h11.EndOfMessage):
            assert answer is not None
            named = {key.decode(): value.decode() for key, value in answer.headers}
            return Answer(answer.status_code, named, bytes(content))
