"""Nothing is lost and nothing is left: restarts of the daemon, the death of the zygote, crashes."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from swarmlet.runtime import client, table, zygote
from swarmlet.runtime import supervisor as supervisor_module
from swarmlet.runtime.failures import RuntimeFailure, ZygoteLost
from swarmlet.runtime.plan import Plan
from swarmlet.runtime.spec import Namespaces, Resources
from swarmlet.runtime.state import Status
from swarmlet.runtime.steps import ChildStep, EnterFolder, OpenStdio, PivotRoot
from swarmlet.runtime.supervisor import Supervisor
from tests.runtime.lab import (
    Lab,
    cgroup_roots,
    host_picture,
    kill_zygote,
    output,
    run,
    wait_for_output,
)

pytestmark = pytest.mark.level4
ROOT = Path(__file__).parents[2]
LIMITS = Resources(memory_bytes=64 << 20, pids_max=50)


async def test_containers_do_not_notice_a_new_daemon(lab: Lab) -> None:
    spec = lab.spec("sh", "-c", "echo one; read line; echo got $line; exit 5", stdin=True)
    async with lab.supervisor() as first:
        await first.create("c", spec)
        await first.start("c")
        await wait_for_output(first, "c", "one")
        pid, zygote = first.containers["c"].pid, first.zygote_pid
    for _ in range(5):
        async with lab.supervisor() as other:
            state = other.containers["c"]
            assert (state.status, state.pid, other.zygote_pid) == (Status.RUNNING, pid, zygote)
            assert state.spec == spec
    async with lab.supervisor() as last:
        async with await last.attach("c") as session:
            assert session.stdin is not None
            await session.stdin.send_all(b"word\n")
            assert (await last.wait("c")).code == 5
        assert await output(last, "c") == "one\ngot word\n"


async def test_exit_while_no_daemon_runs_is_kept(lab: Lab) -> None:
    async with lab.supervisor() as first:
        await first.create("c", lab.spec("sh", "-c", "read line; exit 6", stdin=True))
        await first.start("c")
        fifo = lab.run_dir / "containers/c/stdin"
    fifo.write_bytes(b"go\n")
    left = lab.state_dir / "containers/c/exit.json"
    await wait_for(left.exists)
    async with lab.supervisor() as second:
        assert second.containers["c"].status is Status.EXITED
        assert (await second.wait("c")).code == 6


async def test_created_and_paused_are_found_again(lab: Lab) -> None:
    async with lab.supervisor() as first:
        await first.create("waiting", lab.spec("echo", "at last"))
        await first.create("frozen", lab.spec("sleep", "100"))
        await first.start("frozen")
        await first.pause("frozen")
    async with lab.supervisor() as second:
        statuses = {i: state.status for i, state in second.containers.items()}
        assert statuses == {"waiting": Status.CREATED, "frozen": Status.PAUSED}
        await second.start("waiting")
        assert (await second.wait("waiting")).code == 0
        assert await output(second, "waiting") == "at last\n"
        await second.unpause("frozen")
        assert (await second.stop("frozen", grace=0)).signal == signal.SIGKILL


async def test_killed_zygote_is_replaced_and_containers_run_on(lab: Lab) -> None:
    """Output during the gap waits in the FIFO; the exit code is read by the new zygote."""
    script = "i=0; while read line; do i=$((i+1)); echo $i $line; done; exit 9"
    async with lab.supervisor() as supervisor:
        await supervisor.create("c", lab.spec("sh", "-c", script, stdin=True, resources=LIMITS))
        await supervisor.start("c")
        fifo = os.open(lab.run_dir / "containers/c/stdin", os.O_WRONLY)
        os.write(fifo, b"before\n")
        await wait_for_output(supervisor, "c", "1 before")
        pid, zygote = supervisor.containers["c"].pid, supervisor.zygote_pid
        kill_zygote(zygote)
        os.write(fifo, b"between\n")
        await wait_for(lambda: supervisor.zygote_pid != zygote)
        lab.zygotes.add(supervisor.zygote_pid)
        os.write(fifo, b"after\n")
        await wait_for_output(supervisor, "c", "3 after")
        state = supervisor.containers["c"]
        assert (state.status, state.pid) == (Status.RUNNING, pid)
        assert await output(supervisor, "c") == "1 before\n2 between\n3 after\n"
        # Everything works on an adopted one.
        (reading,) = await supervisor.stats()
        assert reading.group.pids == 1
        async with await supervisor.exec("c", lab.spec("true").process) as session:
            assert (await session.wait()).code == 0
        await supervisor.pause("c")
        await supervisor.unpause("c")
        async with await supervisor.attach("c") as session:
            await session.close_stdin()
        os.close(fifo)
        assert (await supervisor.wait("c")).code == 9
        await supervisor.remove("c")
    assert host_picture(lab)["cgroups"] == []


async def test_zygote_of_another_version_is_replaced(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upgrade: the old zygote ends, the new one adopts, the containers do not notice."""
    async with lab.supervisor() as first:
        await first.create("c", lab.spec("sh", "-c", "sleep 1000; exit 5"))
        await first.start("c")
        pid = first.containers["c"].pid
    monkeypatch.setattr(client, "VERSION", zygote.VERSION + 1)

    async def greet_once(connection: client.Client) -> int:
        try:
            return await real_greet(connection)
        finally:
            monkeypatch.setattr(client, "VERSION", zygote.VERSION)

    real_greet = client.greet
    monkeypatch.setattr(table, "greet", greet_once)
    async with lab.supervisor() as second:
        assert second.zygote_pid != first.zygote_pid
        state = second.containers["c"]
        assert (state.status, state.pid) == (Status.RUNNING, pid)
        assert (await second.stop("c", grace=0)).signal == signal.SIGKILL
        await second.remove("c")


async def test_daemon_and_zygote_both_killed(lab: Lab) -> None:
    async with lab.supervisor() as first:
        for name, command in (("lives", "sleep 100"), ("ends", "read x || exit 4")):
            await first.create(name, lab.spec("sh", "-c", command, stdin=True))
            await first.start(name)
        pids = {i: state.pid for i, state in first.containers.items()}
    fifo = os.open(lab.run_dir / "containers/ends/stdin", os.O_WRONLY)
    kill_zygote(first.zygote_pid)
    # Nobody of ours is there to see this end.
    pidfd = os.pidfd_open(pids["ends"])
    os.close(fifo)
    with trio.fail_after(10):
        await trio.lowlevel.wait_readable(pidfd)
    os.close(pidfd)
    async with lab.supervisor() as second:
        lives = second.containers["lives"]
        assert (lives.status, lives.pid) == (Status.RUNNING, pids["lives"])
        # Known if nobody has reaped it yet (or the kernel keeps it), else said to be lost.
        end = await second.wait("ends")
        assert end.code == 4 or (end.lost and end.code == 255)
        await second.remove("lives", force=True)


async def test_a_second_zygote_finds_the_first(lab: Lab) -> None:
    async with lab.supervisor() as first, lab.supervisor() as second:
        assert first.zygote_pid == second.zygote_pid


async def test_zygote_is_small_and_has_no_container_process(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        await supervisor.create("c", lab.spec("sleep", "100"))
        await supervisor.start("c")
        zygote = supervisor.zygote_pid
        children = trio.Path(f"/proc/{zygote}/task/{zygote}/children")
        assert (await children.read_text()).split() == [str(supervisor.containers["c"].pid)]
        modules = "import sys; sys.path.insert(0, sys.argv[1]); import swarmlet.runtime.zygote; "
        heavy = "print([m for m in ('typing', 'dataclasses', 'trio', 're') if m in sys.modules])"
        command = [sys.executable, "-I", "-S", "-c", modules + heavy, str(ROOT)]
        result = await trio.run_process(command, capture_stdout=True)
        assert result.stdout.split() == [b"['re']"], "json needs re; nothing else may be loaded"
        await supervisor.remove("c", force=True)


async def test_remains_without_a_state_file_are_removed(lab: Lab) -> None:
    folder = lab.state_dir / "containers/torn"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text('{"swarmlet-container": 1, "id"')
    (folder / "upper").mkdir()
    async with lab.supervisor() as supervisor:
        assert supervisor.containers == {}
    assert not folder.exists()


async def test_another_boot_makes_running_ones_lost(lab: Lab) -> None:
    async with lab.supervisor() as first:
        await first.create("c", lab.spec("sh", "-c", "echo said; exec sleep 100"))
        await first.start("c")
        await wait_for_output(first, "c", "said")
    kill_zygote(first.zygote_pid)
    file = lab.state_dir / "containers/c/state.json"
    state = json.loads(file.read_text())
    state["boot_id"] = "another"
    file.write_text(json.dumps(state))
    async with lab.supervisor() as second:
        status = second.containers["c"].exit
        assert status is not None
        assert status.lost
        assert await output(second, "c") == "said\n", "the last lines stay until removal"
        await second.remove("c")


@pytest.mark.parametrize("users", ["host", "private"])
async def test_daemon_killed_at_every_step_on_the_host(lab: Lab, users: str) -> None:
    """Whatever step of creation or removal the daemon dies before, the next leaves nothing."""
    namespaces = Namespaces(user=users)
    spec = lab.spec("true", hostname="box", resources=LIMITS, namespaces=namespaces)
    command = [sys.executable, "-m", "tests.runtime.crashing", str(lab.run_dir)]
    command += [str(lab.state_dir), lab.parent, json.dumps(spec.to_json())]
    result = await trio.run_process(
        command, check=False, capture_stdout=True, capture_stderr=True, cwd=ROOT
    )
    lines = result.stdout.decode().splitlines()
    lab.zygotes.update(int(line.split()[1]) for line in lines if line.startswith("zygote"))
    assert result.returncode == 0, result.stderr.decode()
    assert not [line for line in lines if line.startswith("step") and not line.endswith("left []")]
    assert "found creating" not in lines
    assert len([line for line in lines if line.startswith("step")]) > 15


@pytest.mark.parametrize("users", ["host", "private"])
@pytest.mark.parametrize("phase", ["birth", "launch"])
async def test_zygote_killed_at_every_step_of_the_child(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, users: str
) -> None:
    """The child is held at each step, the zygote killed: create or start fails, nothing is left."""
    before = host_picture(lab)
    here, inside = tmp_path / "held", lab.layer / "held"
    workshop = lab.run_dir / "mnt"
    workshop.mkdir(parents=True, mode=0o711)
    for fifo in (here, inside, workshop / "held"):
        fifo.unlink(missing_ok=True)
        os.mkfifo(fifo)
        fifo.chmod(0o666)
    held_at = 0
    steps_count = 1
    real_plan = supervisor_module.plan

    def held_plan(*arguments: Any) -> Plan:
        nonlocal steps_count
        made = real_plan(*arguments)
        steps: tuple[ChildStep, ...] = getattr(made, phase)
        steps_count = len(steps)
        pivoted = phase == "launch" or any(isinstance(s, PivotRoot) for s in steps[:held_at])
        # Opening a FIFO waits for its other end.
        # Relative where the child is nobody on the host: the folder is the workshop.
        entered = any(isinstance(s, EnterFolder) for s in steps[:held_at])
        where = "held" if entered else str(here)
        hold = OpenStdio("/held" if pivoted else where, "/dev/null", "/dev/null")
        return replace(made, **{phase: (*steps[:held_at], hold, *steps[held_at:])})

    monkeypatch.setattr(supervisor_module, "plan", held_plan)
    async with lab.supervisor() as supervisor:
        while held_at < steps_count:
            zygote = supervisor.zygote_pid
            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect_lost, supervisor, lab, users)
                await wait_for(lambda: is_held(supervisor))
                kill_zygote(zygote)
            await wait_for(lambda old=zygote: supervisor.zygote_pid != old)  # type: ignore[misc]
            lab.zygotes.add(supervisor.zygote_pid)
            with trio.fail_after(10):
                await supervisor.remove("c", force=True)
            # The parents of the groups stay as long as the daemon.
            assert {**host_picture(lab), "cgroups": groups_of(lab, "c")} == before, held_at
            held_at += 1
        monkeypatch.setattr(supervisor_module, "plan", real_plan)
        assert await run(supervisor, lab.spec("echo", "fine")) == (0, "fine\n")
    inside.unlink()
    assert host_picture(lab) == before


def groups_of(lab: Lab, container_id: str) -> list[str]:
    return [root for root in cgroup_roots() if Path(root, lab.parent, container_id).exists()]


async def expect_lost(supervisor: Supervisor, lab: Lab, users: str) -> None:
    namespaces = Namespaces(user=users)
    spec = lab.spec("true", hostname="box", resources=LIMITS, namespaces=namespaces)
    with pytest.raises(ZygoteLost):  # noqa: PT012 (either of the two)
        await supervisor.create("c", spec)
        await supervisor.start("c")


def is_held(supervisor: Supervisor) -> bool:
    for pid in supervisor.driver.processes("c"):
        try:
            if (
                "fifo" in Path(f"/proc/{pid}/wchan").read_text()
                or "wait_for_partner" in Path(f"/proc/{pid}/wchan").read_text()
            ):
                return True
        except OSError:
            continue
    return False


async def test_cancelled_creation_leaves_nothing(lab: Lab) -> None:
    before = host_picture(lab)
    async with lab.supervisor() as supervisor:
        for _ in range(10):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(supervisor.create, "c", lab.spec("true"))
                    for _ in range(3):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            assert supervisor.containers == {}
    assert host_picture(lab) == before


async def test_operations_name_the_state_they_found(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        await supervisor.create("c", lab.spec("sleep", "100"))
        with pytest.raises(RuntimeFailure, match="created, not running"):
            await supervisor.exec("c", lab.spec("true").process)
        await supervisor.start("c")
        with pytest.raises(RuntimeFailure, match="only a created one"):
            await supervisor.start("c")
        with pytest.raises(RuntimeFailure, match="is running; stop it first"):
            await supervisor.remove("c")
        with pytest.raises(RuntimeFailure, match="no such container: d"):
            await supervisor.start("d")
        await supervisor.stop("c", grace=0)
        with pytest.raises(RuntimeFailure, match="the container is exited"):
            await supervisor.kill("c", "TERM")


async def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until *condition* holds; only for what gives no event."""
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.002)
