"""The zygote: one process a host, makes the containers, is their parent, outlives daemons.

Single-threaded, so that it may fork; stdlib only and few of its modules, so that it stays small.
It is started by the supervisor (`main`), detaches, takes the lock in its run folder (a second one
finds it held and leaves) and listens. It knows no specs: a request carries a plan as a descriptor,
which only the child reads, so no secret ever lies in the zygote's memory.

One request a SEQPACKET message, JSON, with descriptors beside it; the answer bears the same `seq`:

| op | fields; descriptors | answer |
| --- | --- | --- |
| hello | | version, pid |
| network | uid_map, gid_map | a new network namespace, owned by a new user namespace |
| list | | items, in parts: `more` is true but for the last |
| create | id, start, clone (plan.Clone), cgroup, the streams; plan, trees | facts, or failed |
| start | id | facts when execve succeeded, or failed |
| exec | id, exec, cgroup; plan, stdin, stdout, stderr | facts, or failed; a terminal's master |
| signal | id, exec, signal | |
| attach | id | a pipe for each stream, and the master of a terminal |
| close_stdin | id | |
| adopt | id, pid, start_ticks, started_at, and the streams | facts |
| forget | id, exec | |
| stop | | none: the zygote ends, its containers go on |

"The streams" are stdin, stdout, stderr (paths of FIFOs, "" for none), terminal, log (its driver and
the parameters of JsonFileLog or JournalLog, or null) and folder, where the zygote notes the start
and the exit.

`{"event": "exited", …facts}` goes to every connection when a process has ended and its output has
been taken. A failed request is answered by `{"seq": n, "failed": {step, errno, text, path}}`.

Killed, it leaves its containers running: their output goes to FIFOs that they hold themselves. The
next zygote adopts them by pid and start time. Only an input that nobody is attached to ends, and a
terminal hangs up.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import json
import os
import select
import signal
import socket
import sys
import time

from swarmlet.runtime import syscalls
from swarmlet.runtime.birth import (
    CREATED,
    CREATING,
    EXITED,
    RUNNING,
    Container,
    Reply,
    adopted_status,
    is_dead,
    start_ticks,
)
from swarmlet.runtime.child import GO, MASTER, READY
from swarmlet.runtime.cloning import bear, make_network
from swarmlet.runtime.compressing import Compressions
from swarmlet.runtime.pump import Poller

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 3
SOCKET, LOCK, LOG = "zygote.sock", "zygote.lock", "zygote.log"
MESSAGE_BYTES_MAX = 64 * 1024
CONNECTIONS_MAX = 16
#: The plan and the trees of a container (plan.TREES_MAX); the kernel's own bound is 253.
DESCRIPTORS_MAX = 250
LIST_ITEMS_MAX = 100
#: Messages kept for a connection that does not read; then it is closed and has to list again.
UNSENT_MAX = 1024
#: Seconds between two looks at an adopted process whose exit status nobody has reaped yet.
ADOPTED_RETRY = 0.02
ADOPTED_RETRIES_MAX = 50


#: plan.Clone of an exec: the namespaces are the container's, by its pidfd.
PLAIN_CLONE: dict[str, Any] = {
    "flags": 0,
    "joins": [],
    "user": "",
    "uid_map": "",
    "trees": [],
    "views": [],
    "sysctls": {},
    "rlimits": [],
}


class Connection:
    """A daemon, or another client of the same user."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.unsent: list[bytes] = []


class Zygote:
    def __init__(self, listener: socket.socket) -> None:
        self.poller = Poller()
        self.containers: dict[tuple[str, str], Container] = {}
        self.by_pid: dict[int, Container] = {}
        self.connections: dict[int, Connection] = {}
        self.stopping = False
        self._compressions = Compressions()
        self._retries: dict[tuple[str, str], int] = {}
        self._listener = listener
        listener.setblocking(False)
        self.poller.watch(listener.fileno(), select.EPOLLIN, lambda _: self._accept())
        self._wake, wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # Wakes the loop: a handler in Python would run at any line of it.
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.poller.watch(self._wake, select.EPOLLIN, lambda _: self._reap())

    def run(self) -> None:
        """Serve until told to stop."""
        while not self.stopping:
            self.poller.turn(self._timeout())
            if self._retries:
                self._look_at_adopted()
            now = time.monotonic()
            for container in self.containers.values():
                for pump in container.pumps.values():
                    if pump.blocked:
                        pump.drop_stalled(now)

    def _timeout(self) -> float | None:
        if self._retries:
            return ADOPTED_RETRY
        blocked = any(p.blocked for c in self.containers.values() for p in c.pumps.values())
        return 1.0 if blocked else None

    # Connections.

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if len(self.connections) >= CONNECTIONS_MAX:
            sock.close()
            return
        sock.setblocking(False)
        connection = Connection(sock)
        self.connections[sock.fileno()] = connection
        self.poller.watch(sock.fileno(), select.EPOLLIN, lambda _: self._receive(connection))

    def _hang_up(self, connection: Connection) -> None:
        fd = connection.sock.fileno()
        if self.connections.pop(fd, None) is not None:
            self.poller.forget(fd)
            connection.sock.close()

    def _receive(self, connection: Connection) -> None:
        descriptors: list[int] = []
        try:
            data, descriptors, flags, _ = socket.recv_fds(
                connection.sock,
                MESSAGE_BYTES_MAX,
                DESCRIPTORS_MAX,
                socket.MSG_CMSG_CLOEXEC,
            )
        except BlockingIOError:
            return
        except OSError:
            data, flags = b"", 0
        try:
            if not data or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                self._hang_up(connection)
                return
            request = json.loads(data)
            self._handle(connection, request, descriptors)
        except (ValueError, KeyError, TypeError, AttributeError):
            # No client of ours sends this; it has lost its way.
            sys.__excepthook__(*sys.exc_info())
            self._hang_up(connection)
        finally:
            for fd in descriptors:
                os.close(fd)

    def _handle(
        self, connection: Connection, request: dict[str, Any], descriptors: list[int]
    ) -> None:
        reply = Reply(connection.sock.fileno(), int(request["seq"]))
        operation = getattr(self, f"_do_{request['op']}")
        try:
            operation(request, descriptors, reply)
        except OSError as failure:
            path = failure.filename if isinstance(failure.filename, str) else ""
            text = failure.strerror or str(failure)
            self._fail(reply, failure.errno or 0, text, path)

    def _answer(
        self, reply: Reply | None, answer: dict[str, Any], descriptors: list[int] | None = None
    ) -> None:
        connection = self.connections.get(reply.connection) if reply else None
        if reply is None or connection is None:
            return
        self._send(connection, {"seq": reply.sequence, **answer}, descriptors or [])

    def _fail(self, reply: Reply | None, code: int, text: str, path: str = "") -> None:
        failed = {"step": -1, "errno": code, "text": text, "path": path}
        self._answer(reply, {"failed": failed})

    def _send(
        self, connection: Connection, message: dict[str, Any], descriptors: list[int]
    ) -> None:
        data = json.dumps(message).encode()
        if not connection.unsent:
            try:
                socket.send_fds(connection.sock, [data], descriptors)
                return
            except BlockingIOError:
                pass
            except OSError:
                self._hang_up(connection)
                return
        if descriptors or len(connection.unsent) >= UNSENT_MAX:
            self._hang_up(connection)
            return
        connection.unsent.append(data)
        fd = connection.sock.fileno()
        self.poller.watch(
            fd, select.EPOLLIN | select.EPOLLOUT, lambda events: self._flush(connection, events)
        )

    def _flush(self, connection: Connection, events: int) -> None:
        try:
            while connection.unsent:
                connection.sock.send(connection.unsent[0])
                connection.unsent.pop(0)
        except BlockingIOError:
            pass
        except OSError:
            self._hang_up(connection)
            return
        if not connection.unsent:
            fd = connection.sock.fileno()
            self.poller.watch(fd, select.EPOLLIN, lambda _: self._receive(connection))
        if events & select.EPOLLIN:
            self._receive(connection)

    # Requests.

    def _find(self, request: dict[str, Any]) -> Container:
        container = self.containers.get((request["id"], request.get("exec", "")))
        if container is None:
            raise OSError(errno.ESRCH, f"the zygote knows no container {request['id']}")
        return container

    def _do_hello(self, request: dict[str, Any], _: list[int], reply: Reply) -> None:
        self._answer(reply, {"version": VERSION, "pid": os.getpid()})

    def _do_list(self, request: dict[str, Any], _: list[int], reply: Reply) -> None:
        items = [container.facts() for container in self.containers.values()]
        for start in range(0, max(len(items), 1), LIST_ITEMS_MAX):
            part = items[start : start + LIST_ITEMS_MAX]
            more = start + LIST_ITEMS_MAX < len(items)
            self._answer(reply, {"items": part, "more": more})

    def _do_network(self, request: dict[str, Any], _: list[int], reply: Reply) -> None:
        network = make_network(request["uid_map"], request["gid_map"])
        try:
            self._answer(reply, {}, [network])
        finally:
            os.close(network)

    def _do_create(self, request: dict[str, Any], fds: list[int], reply: Reply) -> None:
        container = Container(request["id"])
        if container.key in self.containers:
            raise OSError(errno.EEXIST, f"the zygote has a container {container.id} already")
        try:
            container.open_streams(self.poller, request, self._compressions.start)
            container.goes_on = request["start"]
            bear(container, request["clone"], request["cgroup"], fds[0], trees=fds[1:], streams=[])
        except BaseException:
            container.close(self.poller)
            raise
        self._born(container, reply)

    def _do_exec(self, request: dict[str, Any], fds: list[int], reply: Reply) -> None:
        host = self.containers.get((request["id"], ""))
        if host is None or host.status != RUNNING:
            raise OSError(errno.ESRCH, "the container is not running")
        container = Container(request["id"], request["exec"])
        if container.key in self.containers:
            raise OSError(errno.EEXIST, f"there is an exec {container.exec_id} already")
        plan_fd, *streams = fds
        bear(
            container,
            PLAIN_CLONE,
            request["cgroup"],
            plan_fd,
            trees=[],
            streams=streams,
            target_pidfd=host.pidfd,
        )
        container.goes_on = True
        self._born(container, reply)

    def _born(self, container: Container, reply: Reply) -> None:
        container.reply = reply
        self.containers[container.key] = container
        self.by_pid[container.pid] = container
        assert container.channel is not None
        self.poller.watch(
            container.channel.fileno(), select.EPOLLIN, lambda _: self._hear(container)
        )

    def _do_start(self, request: dict[str, Any], _: list[int], reply: Reply) -> None:
        container = self._find(request)
        if container.status != CREATED or container.channel is None:
            raise OSError(errno.EINVAL, f"the container is {container.status}, not created")
        container.reply = reply
        container.channel.send(GO)

    def _do_signal(self, request: dict[str, Any], _: list[int], reply: Reply) -> None:
        container = self._find(request)
        if container.status == EXITED:
            raise OSError(errno.ESRCH, "the process has exited")
        syscalls.pidfd_send_signal(container.pidfd, request["signal"])
        self._answer(reply, {})

    def _do_attach(self, request: dict[str, Any], _: list[int], reply: Reply) -> None:
        container = self._find(request)
        readers: list[int] = []
        try:
            if container.status == EXITED:
                raise OSError(errno.ESRCH, "the container has exited")
            for pump in container.pumps.values():
                reader, writer = os.pipe2(os.O_CLOEXEC)
                readers.append(reader)
                pump.attach(writer)
            master = [container.master] if container.master >= 0 else []
            self._answer(reply, {"terminal": bool(master)}, readers + master)
        finally:
            for reader in readers:
                os.close(reader)

    def _do_close_stdin(self, request: dict[str, Any], _: list[int], reply: Reply) -> None:
        container = self._find(request)
        if container.stdin >= 0:
            os.close(container.stdin)
            container.stdin = -1
        self._answer(reply, {})

    def _do_adopt(self, request: dict[str, Any], fds: list[int], reply: Reply) -> None:
        if (request["id"], "") in self.containers:
            self._answer(reply, self.containers[request["id"], ""].facts())
            return
        container = Container(request["id"])
        container.adopted = True
        container.status = RUNNING
        container.pid = request["pid"]
        container.start_ticks = request["start_ticks"]
        container.started_at = request["started_at"]
        container.pidfd = syscalls.pidfd_open(container.pid)
        try:
            if start_ticks(container.pid) != container.start_ticks:
                raise OSError(errno.ESRCH, "the pid belongs to another process now")
            container.open_streams(self.poller, request, self._compressions.start)
        except BaseException:
            container.close(self.poller)
            raise
        self.containers[container.key] = container
        self.poller.watch(container.pidfd, select.EPOLLIN, lambda _: self._adopted_died(container))
        self._answer(reply, container.facts())

    def _do_forget(self, request: dict[str, Any], _: list[int], reply: Reply) -> None:
        container = self.containers.pop((request["id"], request.get("exec", "")), None)
        if container is not None:
            container.forgotten = True
            self._fail(container.reply, errno.ECANCELED, "the container was removed")
            if container.status != EXITED and not is_dead(container.pidfd):
                syscalls.pidfd_send_signal(container.pidfd, signal.SIGKILL)
            container.close(self.poller)
        self._answer(reply, {})

    def _do_stop(self, request: dict[str, Any], _: list[int], reply: Reply) -> None:
        self.stopping = True

    # What children say and how they end.

    def _hear(self, container: Container) -> None:
        """Read the child's channel until it is empty."""
        while container.channel is not None:
            descriptors: list[int] = []
            try:
                data, descriptors, _, _ = socket.recv_fds(
                    container.channel, 8192, 1, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data == MASTER and descriptors:
                if container.exec_id:
                    container.master = descriptors[0]
                else:
                    container.take_terminal(self.poller, descriptors[0])
            elif data == READY:
                container.status = CREATED
                self._answer(container.reply, container.facts())
                container.reply = None
            elif data:
                self._answer(container.reply, {"failed": json.loads(data)})
                container.reply = None
                self._close_channel(container)
            else:
                self._silent(container)

    def _silent(self, container: Container) -> None:
        """The channel is closed without a word: execve succeeded, or the child is dead."""
        self._close_channel(container)
        launching = container.goes_on or container.status == CREATED
        if not launching or container.reply is None:
            return  # it died unborn or unasked: _end tells
        # Also a command that has run and ended in the meantime was started.
        container.start(time.time())
        master = [container.master] if container.exec_id and container.master >= 0 else []
        self._answer(container.reply, container.facts(), master)
        container.reply = None
        if master:
            os.close(container.master)
            container.master = -1

    def _close_channel(self, container: Container) -> None:
        if container.channel is not None:
            self.poller.forget(container.channel.fileno())
            container.channel.close()
            container.channel = None

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            container = self.by_pid.pop(pid, None)
            if container is None:
                self._compressions.finish(pid, wait_status)
            if container is not None and not container.forgotten:
                self._end(container, wait_status)

    def _end(self, container: Container, wait_status: int | None) -> None:
        self._hear(container)  # what it said before it died
        if container.status == CREATING and container.reply is not None:
            number = os.WTERMSIG(wait_status) if wait_status is not None else 0
            self._fail(container.reply, 0, f"the child was killed by signal {number}")
            container.reply = None
        container.finish(wait_status, time.time())
        for connection in list(self.connections.values()):
            self._send(connection, {"event": "exited", **container.facts()}, [])
        if container.exec_id:
            del self.containers[container.key]
            container.close(self.poller)

    def _adopted_died(self, container: Container) -> None:
        self.poller.forget(container.pidfd)
        self._retries[container.key] = ADOPTED_RETRIES_MAX
        self._look_at_adopted()

    def _look_at_adopted(self) -> None:
        for key in list(self._retries):
            container = self.containers.get(key)
            if container is None:
                del self._retries[key]
                continue
            wait_status = adopted_status(container.pid, container.pidfd)
            self._retries[key] -= 1
            if wait_status is not None or self._retries[key] <= 0:
                del self._retries[key]
                self._end(container, wait_status)


def listen(run_dir: str) -> socket.socket | None:
    """Take the run folder and listen in it; None when another zygote has it already."""
    lock = os.open(f"{run_dir}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    # The lock lives as long as the descriptor, which nobody closes.
    os.ftruncate(lock, 0)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    folder = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    # unix(7): an address has 108 bytes, a run folder may have more.
    address = f"/proc/self/fd/{folder}/{SOCKET}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(address)
    os.umask(0o077)
    listener.bind(address)
    os.close(folder)
    listener.listen(CONNECTIONS_MAX)
    return listener


def handle_signals() -> None:
    """Let children have every signal's default action, by what the zygote does with its own.

    CLONE_CLEAR_SIGHAND gives it to those that are handled, not to those that are ignored, and
    ignoring survives execve: Python ignores two, and whoever started us perhaps others.
    """
    syscalls.reset_signals()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: None)


def main(run_dir: str) -> int:
    """Become the zygote of *run_dir*; the process that was started ends when it listens."""
    os.umask(0o077)
    listener = listen(run_dir)
    if listener is None:
        return 0
    if os.fork():  # noqa: TID251 (single-threaded: this is the zygote, not the daemon)
        os._exit(0)
    os.setsid()
    os.chdir("/")
    null = os.open("/dev/null", os.O_RDWR)
    log = os.open(f"{run_dir}/{LOG}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    for fd, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(fd, target)
    os.close(null)
    os.close(log)
    syscalls.set_process_name("swarmlet-zygote")
    # Orphans of containers that share the host's PID namespace come to us.
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    # CVE-2016-9962, CVE-2019-5736: until it executes something of its own, no process of a
    # container may look into a child that enters it, nor reopen our interpreter through it.
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    handle_signals()
    zygote = Zygote(listener)
    # What is there now stays: no collection of a child or of ours looks at it again.
    gc.collect()
    gc.freeze()
    zygote.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
