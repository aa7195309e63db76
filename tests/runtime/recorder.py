"""A kernel that only records, and plans made for it."""

from __future__ import annotations

import marshal
import stat
from types import SimpleNamespace
from typing import Any

from swarmlet.runtime import cgroups, child
from swarmlet.runtime.host import Hierarchy, Host
from swarmlet.runtime.launcher import Linux
from swarmlet.runtime.plan import Plan, plan
from swarmlet.runtime.rootfs import Place
from swarmlet.runtime.spec import ContainerSpec, Process, Root
from swarmlet.runtime.steps import Step, wire, wire_name

UNIFIED = Host()
HYBRID = Host(
    unified="/cg/unified",
    unified_controllers=("hugetlb",),
    hierarchies=tuple(
        Hierarchy(f"/cg/{name}", tuple(name.split(",")))
        for name in ("memory", "cpu,cpuacct", "cpuset", "pids", "blkio")
    ),
)
PLACE = Place("c", "/state/containers/c", "/run/containers/c")
FILTER = b"\x06\0\0\0\0\0\xff\x7f"


def make(spec: ContainerSpec, host: Host = UNIFIED, seccomp: bytes | None = FILTER) -> Plan:
    return plan(spec, host, cgroups.driver(host, "swarmlet"), PLACE, seccomp)


def spec_of(**changes: Any) -> ContainerSpec:
    return ContainerSpec(process=Process(args=("true",)), root=Root(layers=("/a", "/b")), **changes)


def kinds(plan_steps: tuple[Step, ...]) -> list[str]:
    return [wire_name(type(step)) for step in plan_steps]


OWN_NAMES = ("calls", "files", "open_now", "next_fd", "names")


class Recorder(Linux):
    """A kernel that notes what is asked of it and agrees; files are as *files* say."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.files = files or {}
        self.open_now: dict[int, str] = {}
        self.next_fd = 10

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_") or name in OWN_NAMES:
            return super().__getattribute__(name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            self.calls.append((name, (*arguments, *keywords.items())))
            answer = getattr(Answers, name, None)
            return answer(self, *arguments) if answer else None

        return call

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


class Answers:
    """What the recorder answers where a step looks at the answer."""

    def open(self: Recorder, path: str, *_: Any) -> int:
        self.next_fd += 1
        self.open_now[self.next_fd] = path
        return self.next_fd

    def open_tree(self: Recorder, path: str, *_: Any) -> int:
        return Answers.open(self, path)

    def make_file_system(self: Recorder, fstype: str, *_: Any) -> int:
        return Answers.open(self, f"new {fstype}")

    def close(self: Recorder, fd: int) -> None:
        del self.open_now[fd]

    def read(self: Recorder, fd: int, size: int) -> bytes:
        content = self.files.get(self.open_now[fd], b"")
        self.files[self.open_now[fd]] = content[size:]
        return content[:size]

    def write(self: Recorder, fd: int, data: bytes) -> int:
        return len(data)

    def stat(self: Recorder, path: str | int) -> SimpleNamespace:
        name = self.open_now.get(path, "") if isinstance(path, int) else path
        if name in self.files or name == "/bin/true":
            return SimpleNamespace(st_mode=stat.S_IFREG | 0o755)
        return SimpleNamespace(st_mode=stat.S_IFDIR | 0o755)

    def realpath(self: Recorder, path: str) -> str:
        return path

    def getcwd(self: Recorder) -> str:
        return "/"

    def access(self: Recorder, *_: Any) -> bool:
        return True

    def ioctl(self: Recorder, fd: int, request: int, argument: bytes) -> bytes:
        return argument

    def internet_socket(self: Recorder) -> SimpleNamespace:
        return SimpleNamespace(fileno=lambda: 9, close=lambda: None)


class Reports(Exception):
    pass


def perform(made: Plan, recorder: Recorder) -> child.Child:
    """Do birth and launch of *made* on *recorder*, through the form that crosses the wire."""
    slots = [entry[0] for entry in (*made.clone.trees, *made.clone.views)]
    trees = {slot: Answers.open(recorder, f"tree {slot}") for slot in slots}
    channel = SimpleNamespace()
    process = child.Child(recorder, channel, trees=trees)  # type: ignore[arg-type]

    def report(*arguments: Any) -> None:
        raise Reports(*arguments)

    process.report = report  # type: ignore[method-assign]
    wired = marshal.loads(marshal.dumps([wire(made.birth), wire(made.launch)], 4))
    process.perform(wired[0])
    process.perform(wired[1])
    return process
