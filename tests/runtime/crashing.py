"""A program: daemons that are killed before the first, second, third … step on the host.

`python -m tests.runtime.crashing RUN STATE CGROUP SPEC` forks, for each step, a daemon that
runs one container from creation to removal and kills itself before that step, and then one that
cleans up after it as any next daemon would. It prints what was left after the second, step by
step, and ends when a daemon came through without meeting its step.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import trio

from swarmlet.runtime import hostside
from swarmlet.runtime.spec import ContainerSpec
from swarmlet.runtime.steps import HostStep
from swarmlet.runtime.supervisor import Supervisor


def supervisor(run_dir: str, state_dir: str, parent: str) -> Supervisor:
    return Supervisor(run_dir=Path(run_dir), state_dir=Path(state_dir), cgroup_parent=parent)


async def live(places: list[str], spec: ContainerSpec) -> None:
    daemon = supervisor(*places)
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        await daemon.create("c", spec)
        await daemon.start("c")
        await daemon.wait("c")
        await daemon.remove("c")
        nursery.cancel_scope.cancel()


async def recover(places: list[str]) -> None:
    daemon = supervisor(*places)
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        for container_id, state in daemon.containers.items():
            print("found", state.status.value, flush=True)
            await daemon.remove(container_id, force=True)
        print("zygote", daemon.zygote_pid, flush=True)
        nursery.cancel_scope.cancel()


def crash_before(step: int) -> None:
    execute = hostside._execute

    def crash(host_step: HostStep, trees: list[int]) -> None:
        nonlocal step
        if step == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        step -= 1
        execute(host_step, trees)

    hostside._execute = crash


def in_fork(work: object) -> int:
    """Call *work* in a fork of this program, which has one thread; return its wait status."""
    assert callable(work)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def main() -> None:
    *places, text = sys.argv[1:]
    spec = ContainerSpec.from_json(json.loads(text))
    for step in range(100):

        def crashing(step: int = step) -> None:
            crash_before(step)
            trio.run(live, places, spec)

        status = in_fork(crashing)
        assert in_fork(lambda: trio.run(recover, places)) == 0, f"no recovery from step {step}"
        run_dir, state_dir, parent = places
        left = [*os.listdir(f"{run_dir}/containers"), *os.listdir(f"{state_dir}/containers")]
        left += [root for root in ROOTS if os.path.exists(f"{root}/{parent}")]
        print("step", step, "left", left, flush=True)
        if status == 0:
            return
        assert status == signal.SIGKILL, status


ROOTS = [f"/sys/fs/cgroup/{name}" for name in (".", *os.listdir("/sys/fs/cgroup"))]

if __name__ == "__main__":
    main()
