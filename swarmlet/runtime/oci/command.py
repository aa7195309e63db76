"""swarmlet-oci: an OCI runtime with runc's command line, for podman, containerd and CRI-O.

    podman --runtime swarmlet-oci run ...
    ctr run --runc-binary swarmlet-oci ...

It needs no daemon. Exit code 0, that of the process (run, exec), or 1 with one line that says what,
why and what to do, on standard error and in the `--log` file.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from swarmlet.runtime import syscalls
from swarmlet.runtime.decoding import SpecError
from swarmlet.runtime.failures import RuntimeFailure
from swarmlet.runtime.host import HostError, probe
from swarmlet.runtime.oci.arguments import Options, UsageError, parse
from swarmlet.runtime.oci.config import VERSION
from swarmlet.runtime.oci.lifecycle import Runtime, Wishes, now
from swarmlet.runtime.oci.records import Store
from swarmlet.runtime.validation import CONTAINER_ID, signal_number

ROOT = "/run/swarmlet-oci"
FAILED = 1
#: Bytes of a process.json or a document of limits.
FILE_BYTES_MAX = 4 << 20

GLOBAL = {
    "root": "root=",
    "log": "log=",
    "log-format": "log-format=",
    "debug": "debug",
    "systemd-cgroup": "systemd-cgroup",
    "rootless": "rootless=",
    "criu": "criu=",
    "version": "version",
    "v": "version",
    "help": "help",
    "h": "help",
}
CREATE = {
    "bundle": "bundle=",
    "b": "bundle=",
    "console-socket": "console-socket=",
    "pid-file": "pid-file=",
    "no-pivot": "no-pivot",
    "no-new-keyring": "no-new-keyring",
    "preserve-fds": "preserve-fds=",
    "keep": "keep",
    "detach": "detach",
    "d": "detach",
    "no-subreaper": "no-subreaper",
}
EXEC = {
    "console-socket": "console-socket=",
    "cwd": "cwd=",
    "env": "env=",
    "e": "env=",
    "tty": "tty",
    "t": "tty",
    "user": "user=",
    "u": "user=",
    "additional-gids": "additional-gids=",
    "g": "additional-gids=",
    "process": "process=",
    "p": "process=",
    "detach": "detach",
    "d": "detach",
    "pid-file": "pid-file=",
    "process-label": "process-label=",
    "apparmor": "apparmor=",
    "no-new-privs": "no-new-privs",
    "cap": "cap=",
    "c": "cap=",
    "preserve-fds": "preserve-fds=",
    "cgroup": "cgroup=",
    "ignore-paused": "ignore-paused",
}
#: Flags of update, and the field of the document that each is.
UPDATE = {
    "memory": ("memory", "limit"),
    "memory-reservation": ("memory", "reservation"),
    "memory-swap": ("memory", "swap"),
    "cpu-period": ("cpu", "period"),
    "cpu-quota": ("cpu", "quota"),
    "cpu-share": ("cpu", "shares"),
    "cpuset-cpus": ("cpu", "cpus"),
    "cpuset-mems": ("cpu", "mems"),
    "pids-limit": ("pids", "limit"),
}
ABOUT = {
    "create": "ID: make the container of a bundle, up to its command",
    "start": "ID: execute the command of a created container",
    "run": "ID: create and start, and wait unless --detach",
    "state": "ID: print the state",
    "kill": "ID [SIGNAL]: send a signal (default SIGTERM), to all with --all",
    "delete": "ID: remove a stopped container, any with --force",
    "exec": "ID COMMAND...: run a further process",
    "ps": "ID: print the processes",
    "pause": "ID: freeze every process",
    "resume": "ID: thaw them",
    "update": "ID: change limits, by flags or --resources FILE",
    "events": "ID: print statistics each --interval, once with --stats",
    "features": "print what this runtime can do",
    "spec": "write a config.json to begin with",
    "list": "print the containers",
}


class Command:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.store = Store(options.get("root", ROOT))

    @property
    def runtime(self) -> Runtime:
        return Runtime(self.store, probe())

    def do_create(self, words: list[str]) -> int:
        options, container_id = self._one(words, CREATE)
        self.runtime.create(container_id, bundle_of(options), wishes_of(options))
        return 0

    def do_run(self, words: list[str]) -> int:
        options, container_id = self._one(words, CREATE)
        masters: list[int] = []
        detach = options.flag("detach")
        runtime = self.runtime
        wishes = wishes_of(options, None if detach else masters.append)
        record = runtime.create(container_id, bundle_of(options), wishes)
        # Held before the start: a pid of a process that we do not reap could be another's.
        pidfd = syscalls.pidfd_open(record.pid)
        try:
            runtime.start(container_id)
        except BaseException:
            runtime.delete(container_id, force=True)
            raise
        if detach:
            return 0
        from swarmlet.runtime.oci import foreground

        code = foreground.wait(record.pid, pidfd, masters[0] if masters else -1)
        if not options.flag("keep"):
            runtime.delete(container_id, force=True)
        return code

    def do_start(self, words: list[str]) -> int:
        self.runtime.start(self._one(words, {})[1])
        return 0

    def do_state(self, words: list[str]) -> int:
        _, container_id = self._one(words, {})
        print(json.dumps(self.runtime.state(container_id), indent=2))
        return 0

    def do_kill(self, words: list[str]) -> int:
        # runc takes --all also after the id.
        options, _ = parse([w for w in words if w.startswith("-")], {"all": "all", "a": "all"})
        named = [word for word in words if not word.startswith("-")]
        if not 1 <= len(named) <= 2:
            raise UsageError("kill: give an id, and perhaps a signal")
        number = signal_number(named[1] if len(named) > 1 else "SIGTERM")
        self.runtime.kill(named[0], number, everything=options.flag("all"))
        return 0

    def do_delete(self, words: list[str]) -> int:
        options, container_id = self._one(words, {"force": "force", "f": "force"})
        with contextlib.suppress(FileNotFoundError):
            self.runtime.delete(container_id, force=options.flag("force"))
        return 0

    def do_exec(self, words: list[str]) -> int:
        options, rest = parse(words, EXEC, many=frozenset({"env", "cap", "additional-gids"}))
        if not rest:
            raise UsageError("exec: give the id of a container, and a command")
        from swarmlet.runtime.oci.processes import process_of

        container_id, args = rest[0], tuple(rest[1:])
        runtime = self.runtime
        config = self.store.config(self.store.read(container_id))
        process = process_of(options, args, config, read_file)
        masters: list[int] = []
        detach = options.flag("detach")
        wishes = wishes_of(options, None if detach else masters.append)
        made = runtime.execute(container_id, process, wishes)
        if detach:
            return 0
        from swarmlet.runtime.oci import foreground

        return foreground.wait(made.pid, made.pidfd, masters[0] if masters else -1)

    def do_ps(self, words: list[str]) -> int:
        options, container_id = self._one(words, {"format": "format=", "f": "format="})
        pids = self.runtime.processes(container_id)
        if options.get("format", "table") == "json":
            print(json.dumps(pids))
        elif pids:
            command = ["ps", "-fp", ",".join(map(str, pids))]
            os.waitpid(os.posix_spawnp("ps", command, os.environ), 0)
        return 0

    def do_pause(self, words: list[str]) -> int:
        self.runtime.freeze(self._one(words, {})[1], frozen=True)
        return 0

    def do_resume(self, words: list[str]) -> int:
        self.runtime.freeze(self._one(words, {})[1], frozen=False)
        return 0

    def do_update(self, words: list[str]) -> int:
        from swarmlet.runtime.oci.reader import Node
        from swarmlet.runtime.oci.resources import check_resources, read_resources

        flags = {name: f"{name}=" for name in UPDATE}
        options, container_id = self._one(
            words, {**flags, "resources": "resources=", "r": "resources="}
        )
        document: dict[str, dict[str, Any]] = {}
        if "resources" in options:
            document = read_file(options["resources"])
        for name, (part, field) in UPDATE.items():
            if name in options:
                text = part == "cpu" and field in ("cpus", "mems")
                value = options[name] if text else options.number(name, 0)
                document.setdefault(part, {})[field] = value
        resources, _ = read_resources(Node(document, "resources"))
        check_resources(resources, "resources")
        self.runtime.update(container_id, resources)
        return 0

    def do_events(self, words: list[str]) -> int:
        from swarmlet.runtime.oci.reports import stats_event

        options, container_id = self._one(words, {"stats": "stats", "interval": "interval="})
        seconds = float(options.get("interval", "5s").removesuffix("s"))
        runtime = self.runtime
        record = self.store.read(container_id)
        if not record.alive:
            raise RuntimeFailure(container_id, "container not running")
        while record.alive:
            stats = record.driver(runtime.host).read_stats(record.group)
            print(json.dumps(stats_event(container_id, stats)), flush=True)
            if options.flag("stats"):
                break
            time.sleep(seconds)  # noqa: TID251 (a command of its own)
        return 0

    def do_features(self, words: list[str]) -> int:
        from swarmlet.runtime.oci.reports import features
        from swarmlet.runtime.seccomp import ACTIONS, OPERATORS

        print(json.dumps(features(probe(), sorted(ACTIONS), sorted(OPERATORS)), indent=2))
        return 0

    def do_spec(self, words: list[str]) -> int:
        from swarmlet.runtime.oci.reports import template

        options, _ = parse(words, {"bundle": "bundle=", "b": "bundle="})
        path = f"{bundle_of(options)}/config.json"
        try:
            with open(path, "x") as file:
                json.dump(template(), file, indent=4)
        except FileExistsError:
            text = f"{path} exists"
            raise RuntimeFailure("", text, advice="remove it first") from None
        return 0

    def do_list(self, words: list[str]) -> int:
        flags = {"format": "format=", "f": "format=", "quiet": "quiet", "q": "quiet"}
        options, _ = parse(words, flags)
        runtime = self.runtime
        found = []
        for name in self.store.names():
            try:
                found.append(runtime.state(name))
            except (RuntimeFailure, SpecError, OSError):
                continue  # it went meanwhile, or is half made
        if options.flag("quiet"):
            for state in found:
                print(state["id"])
        elif options.get("format", "table") == "json":
            print(json.dumps(found))
        else:
            line = "{:<24} {:>8} {:<10} {:<32} {}"
            print(line.format("ID", "PID", "STATUS", "CREATED", "BUNDLE"))
            for state in found:
                fields = (state[name] for name in ("id", "pid", "status", "created", "bundle"))
                print(line.format(*fields))
        return 0

    def _one(self, words: list[str], flags: dict[str, str]) -> tuple[Options, str]:
        """Return the options and the id of a command that takes nothing else."""
        options, rest = parse(words, flags)
        if len(rest) != 1:
            raise UsageError("give the id of one container")
        if not CONTAINER_ID.fullmatch(rest[0].replace("+", "_")):
            text = "must be letters, digits, '_', '+', '.' and '-', and begin with one of the first"
            raise SpecError(f"id: {rest[0]!r} {text}")
        return options, rest[0]


def bundle_of(options: Options) -> str:
    return os.path.abspath(options.get("bundle", "."))


def wishes_of(options: Options, on_master: Callable[[int], None] | None = None) -> Wishes:
    if options.flag("no-pivot"):
        raise UsageError("--no-pivot is not supported: the root must be on a file system")
    preserved = options.number("preserve-fds", 0)
    listening = int(os.environ.get("LISTEN_FDS", "0") or 0)
    return Wishes(
        console_socket=options.get("console-socket", ""),
        pid_file=options.get("pid-file", ""),
        preserve_fds=max(0, preserved + listening),
        keyring=not options.flag("no-new-keyring"),
        on_master=on_master,
    )


def read_file(path: str) -> Any:
    """Return the JSON value in the file *path*; "-" is standard input."""
    fd = 0 if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with open(fd, "rb", closefd=path != "-") as file:
        try:
            return json.loads(file.read(FILE_BYTES_MAX))
        except ValueError as failure:
            raise SpecError(f"{path}: is no JSON: {failure}") from None


def usage() -> str:
    lines = [f"  {name:9s} {text}" for name, text in ABOUT.items()]
    return "\n".join(
        ["swarmlet-oci [--root FOLDER] [--log FILE] COMMAND [OPTIONS] ...", "", *lines]
    )


def let_children_have_default_signals() -> None:
    """As zygote.handle_signals: what is ignored here would stay so in the container."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, lambda *_: None)


def note(options: Options, text: str) -> None:
    """Write the failure where the engine looks for it."""
    path = options.get("log", "")
    if not path:
        return
    if options.get("log-format", "text") == "json":
        line = json.dumps({"level": "error", "msg": text, "time": now()})
    else:
        line = f'time="{now()}" level=error msg={json.dumps(text)}'
    try:
        with open(path, "a") as file:
            file.write(f"{line}\n")
    except OSError:
        pass


def main() -> int:
    options = Options()
    try:
        options, words = parse(sys.argv[1:], GLOBAL)
        if options.flag("version"):
            print(f"swarmlet-oci version {version()}\nspec: {VERSION}")
            return 0
        if options.flag("help") or not words or words[0] == "help":
            print(usage())
            return 0 if words or options.flag("help") else FAILED
        operation = getattr(Command(options), f"do_{words[0]}", None)
        if operation is None:
            raise UsageError(f"there is no command {words[0]!r}; see swarmlet-oci --help")
        os.umask(0o022)
        # CVE-2016-9962, CVE-2019-5736: see zygote.main.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        let_children_have_default_signals()
        return int(operation(words[1:]))
    except (UsageError, SpecError, RuntimeFailure, HostError, OSError) as failure:
        text = str(failure)
        note(options, text)
        print(f"swarmlet-oci: {text}", file=sys.stderr)
        return FAILED


def version() -> str:
    from importlib import metadata

    try:
        return metadata.version("swarmlet")
    except metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
