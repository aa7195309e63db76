"""The operations of `swarmlet-oci` on one container: create, start, exec, kill and the rest.

Sync, in a process with one thread that makes the child as a zygote does, and ends: whoever called
(conmon, a shim) inherits the child. Each raises RuntimeFailure or SpecError with what, why and what
to do; a failed `create` leaves nothing behind.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import marshal
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from swarmlet.runtime import birth, cgroups, hostside, syscalls
from swarmlet.runtime.child import GO, MASTER, READY
from swarmlet.runtime.cloning import bear
from swarmlet.runtime.decoding import SpecError
from swarmlet.runtime.failures import RuntimeFailure, of_step
from swarmlet.runtime.host import Host
from swarmlet.runtime.oci import bundleplan
from swarmlet.runtime.oci.bundlechild import HOOKS, BundleChild, HookFailure, call_hook
from swarmlet.runtime.oci.config import Config, read_config
from swarmlet.runtime.oci.records import (
    DEFAULT_PARENT,
    START,
    Record,
    Store,
    state_of,
)
from swarmlet.runtime.parts import Process, Resources
from swarmlet.runtime.plan import Clone
from swarmlet.runtime.steps import KillCgroup, RemoveCgroup, RemoveTree, wire
from swarmlet.runtime.values import changed, named_value

#: Bytes of a config.json.
CONFIG_BYTES_MAX = 16 << 20
MESSAGE_BYTES_MAX = 1 << 16
MARSHAL_VERSION = 4
#: Seconds for the process of a container that is killed to be gone.
KILL_TIMEOUT = 10.0


@named_value
class Wishes:
    """What the caller of create, run or exec wants beside the document."""

    console_socket: str = ""
    pid_file: str = ""
    preserve_fds: int = 0
    keyring: bool = True
    #: takes a terminal's master when there is no console socket
    on_master: Callable[[int], None] | None = None


def load(bundle: str) -> object:
    """Return what is in the bundle's config.json."""
    path = f"{bundle}/config.json"
    try:
        with open(path, "rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as failure:
        raise SpecError(f"{path}: {failure.strerror}") from None
    if len(data) > CONFIG_BYTES_MAX:
        raise SpecError(f"{path}: is larger than {CONFIG_BYTES_MAX} bytes")
    try:
        return json.loads(data)
    except ValueError as failure:
        raise SpecError(f"{path}: is no JSON: {failure}") from None


class Runtime:
    def __init__(self, store: Store, host: Host) -> None:
        self.store = store
        self.host = host

    # Creation.

    def create(self, container_id: str, bundle: str, wishes: Wishes) -> Record:
        """Make the container up to "created"."""
        document = load(bundle)
        config = read_config(document, bundle)
        check_host(config)
        check_terminal(config.process, wishes)
        parent, _, group = (config.cgroups_path or f"{DEFAULT_PARENT}/{container_id}").rpartition(
            "/"
        )
        record = Record(
            id=container_id,
            bundle=bundle,
            parent=parent,
            group=group,
            created=now(),
            owner=str(os.getuid()),
        )
        driver = record.driver(self.host)
        seccomp = self._filter(config, config.process)
        folder = self.store.folder(container_id)
        made = bundleplan.bundle_plan(
            config, self.host, driver, group, folder, seccomp, keyring=wishes.keyring
        )
        try:
            self.store.make(container_id)
        except FileExistsError:
            text = f"container {container_id} already exists"
            raise RuntimeFailure(container_id, text, advice="delete it first") from None
        with self.store.locked(container_id):
            try:
                self.store.write(record, document)
                return self._bear(record, config, made, wishes)
            except BaseException:
                self._remove(record)
                raise

    def _bear(
        self, record: Record, config: Config, made: bundleplan.BundlePlan, wishes: Wishes
    ) -> Record:
        trees = self._prepare(record, made.prepare)
        listener = listen(self.store.folder(record.id))
        if config.time:
            enter_time(config)
        container = birth.Container(record.id)
        birth_of = conversation(
            container,
            made.clone,
            record.driver(self.host).unified(record.group),
            plan_file(made.birth, made.launch, made.clone, wait=True),
            trees=trees,
            wishes=wishes,
            listener=listener.fileno(),
        )
        record = changed(record, pid=container.pid, start_ticks=container.start_ticks)
        for message in birth_of:
            match message:
                case bytes() as word if word == HOOKS:
                    self.store.write(record)
                    state = state_of(record, "creating", config.annotations)
                    data = json.dumps(state).encode()
                    for kind in ("prestart", "createRuntime"):
                        self._call(record.id, kind, config, data)
                    assert container.channel is not None
                    container.channel.send(data)
                case bytes() as word if word == READY:
                    break
                case int() as master:
                    give_master(master, wishes)
                case dict() as failed:
                    raise self._failure(record, failed, [*made.birth, *made.launch])
        listener.close()
        self.store.write(record)
        write_pid(wishes.pid_file, record.pid)
        return record

    def _prepare(self, record: Record, steps: Sequence[Any]) -> list[int]:
        try:
            return hostside.execute(list(steps))
        except hostside.StepFailure as failed:
            failure = failed.failure
            path = failure.filename if isinstance(failure.filename, str) else ""
            text = failure.strerror or str(failure)
            raise of_step(record.id, failed.step, failure.errno or 0, text, path) from failure

    def _call(self, container_id: str, kind: str, config: Config, state: bytes) -> None:
        for call in bundleplan.calls(config.hooks.get(kind, ())):
            try:
                call_hook(kind, call, state)
            except HookFailure as failure:
                raise RuntimeFailure(container_id, failure.strerror or str(failure)) from None

    def _filter(self, config: Config, process: Process | None) -> bytes | None:
        if not config.seccomp:
            return None
        # libseccomp costs 2 ms to load: only who has a filter pays.
        from swarmlet.runtime.seccomp import compile_profile

        held = process.capabilities.bounding if process else ()
        try:
            return compile_profile(json.loads(config.seccomp), self.host, frozenset(held))
        except SpecError as refused:
            text = str(refused).replace("seccomp.document", "linux.seccomp")
            raise SpecError(text) from None

    def _failure(self, record: Record, failed: dict[str, Any], steps: Sequence[Any]) -> Exception:
        kills = record.driver(self.host).oom_kills(record.group)
        if kills:
            text = "the memory limit killed the container before it could start"
            return RuntimeFailure(record.id, text, advice="raise linux.resources.memory.limit")
        return failure_of(record.id, failed, steps)

    # Life.

    def start(self, container_id: str) -> None:
        """Let the created container execute its command; return when execve succeeded."""
        with self.store.locked(container_id):
            record = self.store.read(container_id)
            status = self.store.status(record, self.host)
            if status != "created":
                text = f"cannot start a container that is {status}"
                raise RuntimeFailure(container_id, text)
            config = self.store.config(record)
            folder = self.store.folder(container_id)
            failed = ask_to_start(folder)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{folder}/{START}")
            if failed is not None:
                raise failure_at_launch(container_id, failed)
        state = json.dumps(state_of(record, "running", config.annotations)).encode()
        with warning(container_id):
            self._call(container_id, "poststart", config, state)

    def state(self, container_id: str) -> dict[str, Any]:
        record = self.store.read(container_id)
        status = self.store.status(record, self.host)
        return state_of(record, status, self.store.config(record).annotations)

    def kill(self, container_id: str, number: int, *, everything: bool = False) -> None:
        record = self.store.read(container_id)
        driver = record.driver(self.host)
        if everything:
            if number == signal.SIGKILL:
                driver.kill(record.group)
                return
            for pid in driver.processes(record.group):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            return
        if not record.alive:
            # The words that podman and containerd look for.
            raise RuntimeFailure(container_id, "container not running")
        pidfd = self._pidfd(record)
        try:
            if number == signal.SIGKILL:
                # Also what is frozen, or in no PID namespace that ends with its first process.
                driver.kill(record.group)
            syscalls.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(pidfd)

    def _pidfd(self, record: Record) -> int:
        try:
            pidfd = syscalls.pidfd_open(record.pid)
        except ProcessLookupError:
            raise RuntimeFailure(record.id, "container not running") from None
        if not record.alive:
            os.close(pidfd)
            raise RuntimeFailure(record.id, "container not running")
        return pidfd

    def delete(self, container_id: str, *, force: bool = False) -> None:
        try:
            record = self.store.read(container_id)
        except RuntimeFailure:
            if not force:
                raise
            hostside.remove_tree(self.store.folder(container_id))
            return
        with self.store.locked(container_id):
            status = self.store.status(record, self.host)
            if status not in ("stopped", "creating") and not force:
                text = f"cannot delete container {container_id} that is not stopped: {status}"
                raise RuntimeFailure(container_id, text, advice="kill it first, or use --force")
            config = self.store.config(record)
            self._remove(record)
        state = json.dumps(state_of(record, "stopped", config.annotations)).encode()
        with warning(container_id):
            self._call(container_id, "poststop", config, state)

    def _remove(self, record: Record) -> None:
        driver = record.driver(self.host)
        steps: list[Any] = [KillCgroup(driver.unified(record.group))]
        steps += [RemoveCgroup(path) for path in driver.all_paths(record.group)]
        if record.parent == DEFAULT_PARENT:
            steps += driver.prunes()
        steps.append(RemoveTree(self.store.folder(record.id)))
        self._prepare(record, steps)

    def freeze(self, container_id: str, *, frozen: bool) -> None:
        record = self.store.read(container_id)
        status = self.store.status(record, self.host)
        if status not in (("running", "created") if frozen else ("paused",)):
            done = "pause" if frozen else "resume"
            raise RuntimeFailure(container_id, f"cannot {done} a container that is {status}")
        record.driver(self.host).freeze(record.group, frozen=frozen)

    def processes(self, container_id: str) -> list[int]:
        record = self.store.read(container_id)
        return record.driver(self.host).processes(record.group)

    def update(self, container_id: str, new: Resources) -> None:
        """Change the limits that *new* names, of the running container."""
        record = self.store.read(container_id)
        if not record.alive:
            raise RuntimeFailure(container_id, "container not running")
        driver = record.driver(self.host)
        with self.store.locked(container_id):
            for group in driver.groups(record.group, new, whole=True):
                hostside.execute([group])
            late = driver.joins(record.group, new, whole=True)
            cgroups.move_processes(driver.unified(record.group), late)
            try:
                cgroups.apply_limits(driver.limits(record.group, new))
            except OSError as failure:
                text = f"{failure.filename}: {failure.strerror}"
                raise RuntimeFailure(container_id, text) from None

    # Further processes.

    def execute(self, container_id: str, process: Process, wishes: Wishes) -> birth.Container:
        """Run *process* in the running container; return when execve succeeded."""
        record = self.store.read(container_id)
        status = self.store.status(record, self.host)
        if status != "running":
            text = f"cannot exec in a container that is {status}"
            raise RuntimeFailure(container_id, text)
        check_terminal(process, wishes)
        config = self.store.config(record)
        driver = record.driver(self.host)
        seccomp = self._filter(config, process)
        first, launch = bundleplan.exec_plan(
            config, process, self.host, driver, record.group, seccomp
        )
        container = birth.Container(container_id, "exec")
        pidfd = self._pidfd(record)
        clone = Clone(flags=0)
        for message in conversation(
            container,
            clone,
            driver.unified(record.group),
            plan_file(first, launch, clone, wait=False),
            trees=[],
            wishes=wishes,
            target=pidfd,
        ):
            match message:
                case int() as master:
                    give_master(master, wishes)
                case dict() as failed:
                    raise self._failure(record, failed, [*first, *launch])
        os.close(pidfd)
        write_pid(wishes.pid_file, container.pid)
        return container


# Making a child.


def conversation(
    container: birth.Container,
    clone: Clone,
    cgroup: str,
    plan_fd: int,
    *,
    trees: list[int],
    wishes: Wishes,
    listener: int = -1,
    target: int = -1,
) -> Any:
    """Bear the child and yield what it says: bytes, a failure, or a terminal's master.

    The clone happens before this returns; the iterator ends with the child's end of file.
    """
    kept = tuple(range(3, 3 + wishes.preserve_fds))
    kind = partial(BundleChild, listener=listener, kept_above=3 + wishes.preserve_fds)
    above = (*kept, *([listener] if listener >= 0 else []))
    try:
        bear(
            container,
            dict(vars(clone)),
            cgroup,
            plan_fd,
            trees=trees,
            streams=[0, 1, 2],
            target_pidfd=target,
            kind=kind,
            kept=above,
        )
    except OSError as failure:
        subject = failure.filename if isinstance(failure.filename, str) else ""
        text = failure.strerror or str(failure)
        text = f"{subject}: {text}" if subject and subject not in text else text
        raise RuntimeFailure(container.id, text, errno=failure.errno or 0) from None
    finally:
        for fd in (plan_fd, *trees):
            os.close(fd)
    assert container.channel is not None
    container.channel.setblocking(True)
    return _said_by(container.id, container.channel, born=target >= 0)


def _said_by(container_id: str, channel: socket.socket, *, born: bool) -> Any:
    while True:
        data, fds, _, _ = socket.recv_fds(channel, MESSAGE_BYTES_MAX, 1, socket.MSG_CMSG_CLOEXEC)
        if not data:
            if born:
                return  # execve closed it
            text = "the container's process was killed before it was born"
            raise RuntimeFailure(container_id, text)
        if data.startswith(b"{"):
            yield json.loads(data)
        elif data == MASTER and fds:
            yield fds[0]
        else:
            yield data


def plan_file(first: Sequence[Any], launch: Sequence[Any], clone: Clone, *, wait: bool) -> int:
    fd = os.memfd_create("plan", os.MFD_CLOEXEC)
    plan = {
        "birth": wire(first),
        "launch": wire(launch),
        "wait": wait,
        "mapped": bool(clone.uid_map),
    }
    data = memoryview(marshal.dumps(plan, MARSHAL_VERSION))
    while data:
        data = data[os.write(fd, data) :]
    return fd


def listen(folder: str) -> socket.socket:
    """Return the socket at which the child waits for `start`."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    with _short(folder) as path:
        listener.bind(f"{path}/{START}")
    listener.listen(8)
    return listener


@contextlib.contextmanager
def _short(folder: str) -> Any:
    """A path of *folder* that fits in sockaddr_un, whose 108 bytes an engine's ids exceed."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def ask_to_start(folder: str) -> dict[str, Any] | None:
    """Let the waiting child launch; return its failure, None when it executed its command."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as channel:
        with _short(folder) as path:
            channel.connect(f"{path}/{START}")
        channel.send(GO)
        try:
            data = channel.recv(MESSAGE_BYTES_MAX)
        except ConnectionResetError:
            data = b""
        return dict(json.loads(data)) if data else None


def enter_time(config: Config) -> None:
    """Have the child born in a time namespace: it is this process's children that are."""
    if config.time != "private":
        fd = os.open(config.time, os.O_RDONLY | os.O_CLOEXEC)
        syscalls.setns(fd, syscalls.CLONE_NEWTIME)
        os.close(fd)
        return
    syscalls.unshare(syscalls.CLONE_NEWTIME)
    with open("/proc/self/timens_offsets", "w") as file:
        for clock, seconds, nanoseconds in config.time_offsets:
            file.write(f"{clock} {seconds} {nanoseconds}\n")


def check_host(config: Config) -> None:
    if not os.path.isdir(config.root):
        raise SpecError(f"root.path: {config.root} is no folder")
    names = ("pid", "network", "ipc", "uts", "user", "cgroup")
    paths = [(name, getattr(config.namespaces, name)) for name in names]
    for name, path in (*paths, ("time", config.time)):
        if path.startswith("/") and not os.path.exists(path):
            raise SpecError(f"linux.namespaces: there is no {name} namespace at {path}")
    if config.time and not os.path.exists("/proc/self/ns/time"):
        raise SpecError("linux.namespaces: this kernel has no time namespaces")


def check_terminal(process: Process | None, wishes: Wishes) -> None:
    if process is None:
        return
    if process.terminal and not wishes.console_socket and wishes.on_master is None:
        raise SpecError("process.terminal: a terminal needs --console-socket when detached")
    if not process.terminal and wishes.console_socket:
        raise SpecError("process.terminal: must be true where --console-socket is given")


def give_master(master: int, wishes: Wishes) -> None:
    """Hand the terminal's other end to the console socket, or to who waits for it."""
    if not wishes.console_socket:
        assert wishes.on_master is not None
        wishes.on_master(master)
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as console:
            console.connect(wishes.console_socket)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [master]))]
            console.sendmsg([b"/dev/ptmx"], rights)
    except OSError as failure:
        text = f"--console-socket {wishes.console_socket}: {failure.strerror}"
        raise RuntimeFailure("", text) from None
    finally:
        os.close(master)


def write_pid(path: str, pid: int) -> None:
    if path:
        with open(f"{path}.new", "w") as file:
            file.write(str(pid))
        os.replace(f"{path}.new", path)


def failure_of(container_id: str, failed: dict[str, Any], steps: Sequence[Any]) -> RuntimeFailure:
    index, code, text, path = (failed[n] for n in ("step", "errno", "text", "path"))
    if not 0 <= index < len(steps):
        return RuntimeFailure(container_id, text, errno=code, path=path)
    failure = of_step(container_id, steps[index], code, text, path)
    failure.text = _in_engines_words(failure.text, code)
    return failure


def failure_at_launch(container_id: str, failed: dict[str, Any]) -> RuntimeFailure:
    """Return the failure of a launch, whose steps speak for themselves."""
    code, text, path = failed["errno"], failed["text"], failed["path"]
    if path and path not in text:
        text = f"{text}: {path}"
    return RuntimeFailure(container_id, _in_engines_words(text, code), errno=code, path=path)


def _in_engines_words(text: str, code: int) -> str:
    """Engines know a missing command (exit 127) and a refused one (126) by the error's text."""
    said = {errno.ENOENT: "no such file or directory", errno.EACCES: "permission denied"}.get(code)
    return f"{text}: {said}" if said and said not in text.lower() else text


@contextlib.contextmanager
def warning(container_id: str) -> Any:
    """Say a failure, and go on: what was asked for is done."""
    try:
        yield
    except RuntimeFailure as failure:
        print(f"swarmlet-oci: warning: container {container_id}: {failure}", file=sys.stderr)


def now() -> str:
    at = time.time()
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))
    return f"{whole}.{int(at % 1 * 1e9):09d}Z"
