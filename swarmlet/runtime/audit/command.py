"""python -m swarmlet.runtime.audit.command, which `swarmlet audit` runs: one audit.

Exit code 0 if every way is held, 1 if one is open, 2 if the container cannot be audited.
"""

from __future__ import annotations

import argparse
import json
import marshal
import os
import shutil
import socket
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from swarmlet.runtime import birth, cgroups, hostside, idranges, syscalls
from swarmlet.runtime.audit import probes
from swarmlet.runtime.audit.outside import NAMESPACES, Finding, Look, examine, unified
from swarmlet.runtime.cloning import bear
from swarmlet.runtime.decoding import SpecError
from swarmlet.runtime.failures import RuntimeFailure, of_step
from swarmlet.runtime.host import Host, HostError, probe
from swarmlet.runtime.oci.bundlechild import BundleChild
from swarmlet.runtime.plan import Clone, exec_plan, plan, removal
from swarmlet.runtime.rootfs import Place
from swarmlet.runtime.seccomp import Filters
from swarmlet.runtime.spec import (
    Capabilities,
    ContainerSpec,
    DeviceRule,
    Namespaces,
    Process,
    Resources,
    Root,
    Seccomp,
)
from swarmlet.runtime.state import read_state
from swarmlet.runtime.steps import Execute, wire
from swarmlet.runtime.values import value

ANSWER_BYTES_MAX = 1 << 18
#: What the container that is made for an audit may use.
MEMORY_BYTES, PIDS_MAX = 64 << 20, 40
FAILED = 2


@value
class Audit:
    """The last step instead of execve: try the ways out, and tell."""

    facts: dict[str, Any]


class AuditChild(BundleChild):
    def audit(self, facts: dict[str, Any]) -> None:
        found = probes.run(probes.Facts(facts))
        self.channel.send(json.dumps({"found": found, "pid": os.getpid()}).encode())
        self.channel.recv(16)  # until it was looked at from outside
        os._exit(0)


def default_spec(*, privileged: bool, users: str) -> ContainerSpec:
    """The container of a service's task, with limits; *privileged* as `docker run` has it."""
    root = Root(layers=("/",))  # replaced: it needs a folder
    resources = Resources(
        memory_bytes=MEMORY_BYTES, memory_swap_bytes=MEMORY_BYTES, pids_max=PIDS_MAX
    )
    process = Process(args=("audit",))
    if not privileged:
        namespaces = Namespaces(user=users)
        return ContainerSpec(process=process, root=root, resources=resources, namespaces=namespaces)
    process = Process(
        args=("audit",), capabilities=Capabilities.adjusted(add=("ALL",)), no_new_privileges=False
    )
    return ContainerSpec(
        process=process,
        root=root,
        resources=resources,
        seccomp=Seccomp(profile="unconfined"),
        masked_paths=(),
        readonly_paths=(),
        device_rules=(DeviceRule(allow=True),),
    )


def facts_of(*, limits: bool) -> dict[str, Any]:
    """What the probes must know of the host."""
    found = os.stat("/")
    disk = [os.major(found.st_dev), os.minor(found.st_dev)]
    return {
        "host_pid": os.getpid(),
        "disk": disk,
        "limits": limits,
        "memory_bytes": MEMORY_BYTES,
        "pids_max": PIDS_MAX,
    }


def of_new(host: Host, parent: str, *, privileged: bool) -> list[Finding]:
    """Audit a container that is made for it, and remove it."""
    base = Path(tempfile.mkdtemp(prefix="swarmlet-audit-", dir="/var/tmp"))
    try:
        (base / "layer").mkdir()
        (base / "state").mkdir()
        users = "host" if idranges.refusal(host, str(base)) else "private"
        spec = default_spec(privileged=privileged, users=users)
        mapping = idranges.read_ranges().free(())
        own = {"uid_mappings": (mapping,), "gid_mappings": (mapping,)}
        more: dict[str, Any] = own if spec.own_users else {}
        fields = {**vars(spec), "root": Root(layers=(str(base / "layer"),)), **more}
        return _born(ContainerSpec(**fields), host, parent, base)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _born(spec: ContainerSpec, host: Host, parent: str, base: Path) -> list[Finding]:
    name = f"audit-{os.getpid()}"
    driver = cgroups.driver(host, parent)
    place = Place(name, str(base / "state" / name), str(base / "run" / name))
    filter_ = Filters(host).program(spec.seccomp, spec.process.capabilities.bounding)
    made = plan(spec, host, driver, place, filter_)
    try:
        trees = hostside.execute(list(made.prepare))
        launch = [*made.launch[:-1], Audit(facts_of(limits=True))]
        container = birth.Container(name)
        plan_fd = plan_file([*made.birth], launch, mapped=bool(made.clone.uid_map))
        return converse(container, made.clone, driver.unified(name), plan_fd, trees, made, driver)
    finally:
        hostside.execute(removal(driver, place))
        hostside.execute(driver.prunes())


def of_running(host: Host, folder: Path) -> list[Finding]:
    """Audit the container whose state is in *folder*, as an exec in it would be confined."""
    state = read_state(str(folder))
    if state is None or not state.status.running:
        raise RuntimeFailure(folder.name, f"the container {folder.name} does not run")
    groups = Path(f"/proc/{state.pid}/cgroup").read_text()
    parent, _, name = unified(groups)[0].removeprefix("0::/").rpartition("/")
    driver = cgroups.driver(host, parent)
    spec = state.spec
    filter_ = Filters(host).program(spec.seccomp, spec.process.capabilities.bounding)
    first, launch = exec_plan(spec.process, spec, host, driver, name, filter_)
    assert isinstance(launch[-1], Execute)
    audited = [*launch[:-1], Audit(facts_of(limits=False))]
    container = birth.Container(name, "audit")
    pidfd = syscalls.pidfd_open(state.pid)
    if birth.start_ticks(state.pid) != state.start_ticks:
        raise RuntimeFailure(folder.name, f"the container {folder.name} has just ended")
    return converse(
        container,
        Clone(flags=0),
        driver.unified(name),
        plan_file([*first], audited, mapped=False),
        [],
        None,
        driver,
        pidfd=pidfd,
        subject=state.pid,
    )


def converse(
    container: birth.Container,
    clone: Clone,
    cgroup: str,
    plan_fd: int,
    trees: list[int],
    made: Any,
    driver: cgroups.Driver,
    *,
    pidfd: int = -1,
    subject: int = 0,
) -> list[Finding]:
    """Bear the auditor's child; return what it and a look from outside found."""
    nothing = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    kind = partial(AuditChild, listener=-1, kept_above=3)
    streams = [] if made is not None else [nothing] * 3
    arguments = dict(vars(clone))
    bear(
        container,
        arguments,
        cgroup,
        plan_fd,
        trees=trees,
        streams=streams,
        target_pidfd=pidfd,
        kind=kind,
    )
    channel = container.channel
    assert channel is not None
    channel.setblocking(True)
    while True:
        data, fds, _, _ = socket.recv_fds(channel, ANSWER_BYTES_MAX, 1)
        for fd in fds:
            os.close(fd)  # a terminal's: it has none to talk to
        if not data:
            raise RuntimeFailure(container.id, "the auditor was killed in the container")
        if data.startswith(b"{"):
            break
    answer = json.loads(data)
    if "found" not in answer:
        steps = [*made.birth, *made.launch] if made is not None else []
        if answer["step"] < len(steps):
            step = steps[answer["step"]]
            raise of_step(container.id, step, answer["errno"], answer["text"], answer["path"])
        raise RuntimeFailure(container.id, f"{answer['text']} {answer['path']}")
    titles = {name: title for name, title, _ in probes.PROBES}
    inside = [Finding(n, titles[n], held, why, "inside") for n, held, why in answer["found"]]
    outside = examine(look_at(subject or container.pid, driver))
    channel.send(b"seen")
    os.waitpid(container.pid, 0)
    for fd in (nothing, container.pidfd, pidfd):
        if fd >= 0:
            os.close(fd)
    channel.close()
    return [*inside, *outside]


def look_at(pid: int, driver: cgroups.Driver) -> Look:
    """Read what the host shows of *pid*."""
    here = f"/proc/{pid}"
    groups = Path(f"{here}/cgroup").read_text()
    name = unified(groups)[0].rpartition("/")[2]
    try:
        stats = driver.read_stats(name)
        memory, pids = stats.memory_limit_bytes, stats.pids_limit
    except OSError:
        memory = pids = None
    descriptors = []
    for fd in os.listdir(f"{here}/fd"):
        try:
            descriptors.append(os.readlink(f"{here}/fd/{fd}"))
        except OSError:
            continue
    return Look(
        status=Path(f"{here}/status").read_text(),
        mountinfo=Path(f"{here}/mountinfo").read_text(),
        namespaces={n: os.readlink(f"{here}/ns/{n}") for n in NAMESPACES},
        host_namespaces={n: os.readlink(f"/proc/self/ns/{n}") for n in NAMESPACES},
        uid_map=Path(f"{here}/uid_map").read_text(),
        descriptors=descriptors,
        groups=groups,
        limits={
            "memory": f"{memory >> 20} MiB" if memory else "",
            "pids": str(pids) if pids else "",
        },
    )


def plan_file(first: list[Any], launch: list[Any], *, mapped: bool) -> int:
    fd = os.memfd_create("plan", os.MFD_CLOEXEC)
    plan_of = {"birth": wire(first), "launch": wire(launch), "wait": False, "mapped": mapped}
    with open(fd, "wb", closefd=False) as file:
        marshal.dump(plan_of, file, 4)
    return fd


def show(findings: list[Finding], *, as_json: bool, problems: bool) -> None:
    shown = [f for f in findings if not (problems and f.held)]
    opened = sum(not finding.held for finding in findings)
    if as_json:
        rows = [
            {
                "name": f.name,
                "title": f.title,
                "view": f.view,
                "result": "held" if f.held else "open",
                "why": f.why,
            }
            for f in shown
        ]
        print(
            json.dumps({"held": len(findings) - opened, "open": opened, "findings": rows}, indent=2)
        )
        return
    view = ""
    for finding in shown:
        if finding.view != view:
            view = finding.view
            print(view)
        word = "held" if finding.held else "OPEN"
        print(f"  {word:6}{finding.title:56} {finding.why}")
    print(f"{len(findings) - opened} held, {opened} open")


def find(folder: Path, pid: int) -> Path:
    """Return the state folder of the container whose first process is *pid*."""
    for path in (folder / "containers").glob("*"):
        state = read_state(str(path))
        if state is not None and state.status.running and state.pid == pid:
            return path
    raise RuntimeFailure(
        "", f"no container in {folder} has the process {pid}", advice="is it running, and here?"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="swarmlet audit", description=(__doc__ or "").split(".")[0]
    )
    parser.add_argument("--pid", type=int, default=0, help="of a container that runs")
    parser.add_argument("--privileged", action="store_true")
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--problems", action="store_true")
    parser.add_argument("--state-dir", type=Path, default=Path("/var/lib/swarmlet"))
    parser.add_argument("--cgroup-parent", default="swarmlet-audit")
    options = parser.parse_args()
    try:
        if os.geteuid() != 0:
            raise RuntimeFailure("", "only root can enter a container", advice="use sudo")
        host = probe()
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        if options.pid:
            findings = of_running(host, find(options.state_dir, options.pid))
        else:
            parent = options.cgroup_parent
            findings = of_new(host, parent, privileged=options.privileged)
    except (RuntimeFailure, HostError, SpecError, hostside.StepFailure, OSError) as failure:
        print(f"swarmlet audit: {failure}", file=sys.stderr)
        return FAILED
    show(findings, as_json=options.as_json, problems=options.problems)
    return 1 if any(not finding.held for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
