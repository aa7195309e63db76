"""Exec, attach and terminals; live limits and statistics."""

from __future__ import annotations

import os

import pytest
import trio

from swarmlet.runtime.failures import RuntimeFailure
from swarmlet.runtime.sessions import Session
from swarmlet.runtime.spec import Namespaces, Process, Resources, User
from swarmlet.runtime.state import Status
from swarmlet.runtime.supervisor import Supervisor
from tests.runtime.lab import Lab, each_line, host_picture, own_descriptors, wait_for_output

pytestmark = pytest.mark.level4


async def read_all(stream: trio.abc.ReceiveStream | None) -> str:
    assert stream is not None
    text = b""
    while chunk := await stream.receive_some():
        text += chunk
    return text.decode()


async def read_until(session: Session, text: str) -> str:
    seen = ""
    with trio.fail_after(30):
        while text not in seen:
            chunk = await session.stdout.receive_some()
            assert chunk, f"ended before {text!r}: {seen!r}"
            seen += bytes(chunk).decode()
    return seen


async def running(supervisor: Supervisor, lab: Lab, name: str = "c", **fields: object) -> int:
    await supervisor.create(name, lab.spec("sleep", "1000", **fields))
    await supervisor.start(name)
    return supervisor.containers[name].pid


async def test_exec_has_streams_and_an_exit_code(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        await running(supervisor, lab)
        before = own_descriptors()
        process = Process(args=("sh", "-c", "cat; echo err >&2; exit 5"))
        async with await supervisor.exec("c", process) as session:
            assert session.stdin is not None
            await session.stdin.send_all(b"hello\n")
            await session.close_stdin()
            assert await read_all(session.stdout) == "hello\n"
            assert await read_all(session.stderr) == "err\n"
            assert (await session.wait()).code == 5
        assert own_descriptors() == before
        await supervisor.remove("c", force=True)


async def test_exec_is_in_the_container_and_as_confined(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        pid = await running(supervisor, lab, resources=Resources(pids_max=20, memory_bytes=1 << 26))
        script = "cat /proc/self/status; for n in /proc/self/ns/*; do readlink $n; done; echo $$"
        async with await supervisor.exec("c", Process(args=("sh", "-c", script))) as session:
            text = await read_all(session.stdout)
            await session.wait()
        status = dict(each_line(text))
        assert int(status["CapBnd"], 16) == 0xA80425FB
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        for name in ("cgroup", "ipc", "mnt", "net", "pid", "uts"):
            assert os.readlink(f"/proc/{pid}/ns/{name}") in text
        assert int(text.split()[-1]) < 100, "a pid of the container's own namespace"
        async with await supervisor.exec("c", Process(args=("sleep", "100"))) as session:
            groups = await trio.Path(f"/proc/{session.pid}/cgroup").read_text()
            assert groups == await trio.Path(f"/proc/{pid}/cgroup").read_text()
        await supervisor.remove("c", force=True)


async def test_exec_ends_with_its_container(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        await running(supervisor, lab)
        async with await supervisor.exec("c", Process(args=("sleep", "100"))) as session:
            await supervisor.stop("c", grace=0)
            assert (await session.wait()).signal == 9
            assert await read_all(session.stdout) == ""
        await supervisor.remove("c")


async def test_exec_as_a_user_in_a_folder_with_its_environment(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        await running(supervisor, lab)
        process = Process(
            args=("sh", "-c", "id -u; pwd; echo $A"),
            user=User(user="app"),
            cwd="/tmp",
            env=("A=b",),
        )
        async with await supervisor.exec("c", process) as session:
            assert await read_all(session.stdout) == "1000\n/tmp\nb\n"
        await supervisor.remove("c", force=True)


async def test_exec_that_cannot_be_says_why(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        await running(supervisor, lab)
        before = own_descriptors()
        for process, message in (
            (Process(args=("nope",)), 'command "nope" not found in the image'),
            (Process(args=("true",), cwd="/nowhere"), "change directory /nowhere"),
            (Process(args=("true",), user=User(user="who")), 'user "who" not found'),
        ):
            with pytest.raises(RuntimeFailure, match=message):
                await supervisor.exec("c", process)
        assert own_descriptors() == before
        await supervisor.remove("c", force=True)


async def test_exec_with_a_terminal(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        await running(supervisor, lab)
        process = Process(args=("sh",), terminal=True, console_rows=33, console_columns=77)
        async with await supervisor.exec("c", process) as session:
            assert session.terminal
            assert session.stdin is not None
            await session.stdin.send_all(b"stty size; tty; echo en''d\n")
            text = await read_until(session, "end")
            assert "33 77" in text
            assert "/dev/pts/" in text
            session.resize(50, 132)
            await session.stdin.send_all(b"stty size; echo ag''ain\n")
            assert "50 132" in await read_until(session, "again")
            await session.stdin.send_all(b"exit 4\n")
            assert (await session.wait()).code == 4
        await supervisor.remove("c", force=True)


async def test_container_with_a_terminal(lab: Lab) -> None:
    """Attach before the start, type, resize, and read the same in the log."""
    async with lab.supervisor() as supervisor:
        await supervisor.create("c", lab.spec("sh", terminal=True, stdin=True))
        async with await supervisor.attach("c") as session:
            assert session.terminal
            assert session.stdin is not None
            await supervisor.start("c")
            await session.stdin.send_all(b"test -t 0 && test -c /dev/console && echo tty''!\n")
            await read_until(session, "tty!")
            session.resize(11, 22)
            await session.stdin.send_all(b"stty size\n")
            await read_until(session, "11 22")
            await session.stdin.send_all(b"exit 3\n")
            await read_all(session.stdout)
            assert (await session.wait()).code == 3
        await wait_for_output(supervisor, "c", "11 22")
        await supervisor.remove("c")


async def test_attach_without_a_terminal(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        spec = lab.spec("sh", "-c", "cat; echo done >&2", stdin=True)
        await supervisor.create("c", spec)
        async with await supervisor.attach("c") as session, await supervisor.attach("c") as other:
            await supervisor.start("c")
            assert session.stdin is not None
            await session.stdin.send_all(b"typed\n")
            await read_until(session, "typed\n")
            await other.close_stdin()
            await session.close_stdin()
            assert await read_all(session.stderr) == "done\n"
            assert await read_all(other.stdout) == "typed\n"
            assert (await session.wait()).code == 0
        await supervisor.remove("c")


async def test_without_stdin_input_is_at_its_end(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        await supervisor.create("c", lab.spec("cat"))
        async with await supervisor.attach("c") as session:
            assert session.stdin is None
            await supervisor.start("c")
            assert (await supervisor.wait("c")).code == 0
        await supervisor.remove("c")


async def test_stop_by_its_signal_then_by_force(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        polite = "trap 'exit 7' USR1; echo ready; while :; do sleep 0.05; done"
        await supervisor.create("polite", lab.spec("sh", "-c", polite, stop_signal="SIGUSR1"))
        await supervisor.start("polite")
        await wait_for_output(supervisor, "polite", "ready")
        assert (await supervisor.stop("polite", grace=30)).code == 7
        assert (await supervisor.stop("polite")).code == 7, "stopped is fine"
        await running(supervisor, lab, "deaf")
        status = await supervisor.stop("deaf", grace=0.05)
        assert (status.code, status.signal) == (137, 9)
        await running(supervisor, lab, "frozen")
        await supervisor.pause("frozen")
        assert supervisor.containers["frozen"].status is Status.PAUSED
        with pytest.raises(RuntimeFailure, match="is paused, not running"):
            await supervisor.pause("frozen")
        assert (await supervisor.stop("frozen", grace=30)).signal == 9
        await supervisor.create("never", lab.spec("true"))
        assert (await supervisor.stop("never")).signal == 9
        for name in list(supervisor.containers):
            await supervisor.remove(name)


async def test_stop_meets_an_end_of_its_own(lab: Lab) -> None:
    """However the two fall together, stop returns how the container ended."""
    async with lab.supervisor() as supervisor:
        for number in range(10):
            name = f"c{number}"
            await supervisor.create(name, lab.spec("true"))
            await supervisor.start(name)
            status = await supervisor.stop(name)
            assert (status.code, status.signal) in ((0, None), (143, 15))
            await supervisor.remove(name)


async def test_pause_freezes(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        await supervisor.create("c", lab.spec("sh", "-c", "while :; do :; done"))
        await supervisor.start("c")
        await supervisor.pause("c")
        (before,) = await supervisor.stats()
        for _ in range(20):
            await trio.sleep(0.005)
        (after,) = await supervisor.stats()
        assert after.group.cpu_usage_us == before.group.cpu_usage_us
        await supervisor.unpause("c")
        with trio.fail_after(10):
            used = after.group.cpu_usage_us
            while used == after.group.cpu_usage_us:
                (reading,) = await supervisor.stats()
                used = reading.group.cpu_usage_us
        await supervisor.remove("c", force=True)


async def test_signal_kills_a_tree(lab: Lab) -> None:
    """SIGKILL takes the whole group, also where no PID namespace would."""
    async with lab.supervisor() as supervisor:
        spec = lab.spec("sh", "-c", "sleep 1000 & echo up; wait", namespaces=Namespaces(pid="host"))
        await supervisor.create("c", spec)
        await supervisor.start("c")
        await wait_for_output(supervisor, "c", "up")
        assert len(supervisor.driver.processes("c")) == 2
        await supervisor.kill("c")
        assert (await supervisor.wait("c")).signal == 9
        await supervisor.remove("c")
        assert supervisor.driver.processes("c") == []


async def test_limits_change_while_it_runs(lab: Lab) -> None:
    before = host_picture(lab)
    async with lab.supervisor() as supervisor:
        await running(supervisor, lab)
        for resources in (
            Resources(memory_bytes=64 << 20, pids_max=30),
            Resources(memory_bytes=256 << 20, pids_max=10, cpu_quota_us=20_000),
            Resources(memory_bytes=32 << 20, cpu_shares=100, cpuset_cpus="0"),
            Resources(),
        ):
            await supervisor.update("c", resources)
            (reading,) = await supervisor.stats()
            assert reading.group.memory_limit_bytes == resources.memory_bytes
            assert reading.group.pids_limit == resources.pids_max
            assert supervisor.containers["c"].spec.resources == resources
        await supervisor.update("c", Resources(pids_max=1))
        # An exec joins the group that this update has made, and is one too many already.
        process = Process(args=("sh", "-c", "true & wait"))
        async with await supervisor.exec("c", process) as session:
            assert "can't fork" in await read_all(session.stderr)
        await supervisor.remove("c", force=True)
    assert host_picture(lab) == before


async def test_statistics_of_all_in_one_call(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        for name in ("a", "b"):
            await running(supervisor, lab, name)
        await supervisor.create("c", lab.spec("true"))
        readings = {reading.id: reading for reading in await supervisor.stats()}
        assert set(readings) == {"a", "b"}
        for reading in readings.values():
            assert reading.group.memory_usage_bytes > 0
            assert reading.group.pids == 1
            assert reading.interfaces == ()
        assert [reading.id for reading in await supervisor.stats(["b", "zz"])] == ["b"]
        for name in ("a", "b", "c"):
            await supervisor.remove(name, force=True)


async def test_subscribers_see_each_container_change(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        await running(supervisor, lab, "old")
        async with supervisor.subscribe() as changes:
            with trio.fail_after(30):
                container_id, state = await anext(changes)
                assert state is not None
                assert (container_id, state.status) == ("old", Status.RUNNING)
                await supervisor.create("new", lab.spec("true"))
                await supervisor.start("new")
                await supervisor.wait("new")
                container_id, state = await anext(changes)
                assert state is not None
                assert (container_id, state.status) == ("new", Status.EXITED)
                await supervisor.remove("new")
                await supervisor.remove("old", force=True)
                assert await anext(changes) == ("new", None)
                assert await anext(changes) == ("old", None)


async def test_many_containers_at_once_leave_nothing(lab: Lab) -> None:
    before = host_picture(lab)
    async with lab.supervisor() as supervisor:
        fds_before = own_descriptors()
        zygote_fds = len(os.listdir(f"/proc/{supervisor.zygote_pid}/fd"))

        async def one(name: str) -> None:
            await supervisor.create(name, lab.spec("sh", "-c", f"echo {name}"))
            await supervisor.start(name)
            assert (await supervisor.wait(name)).code == 0
            assert [line.data async for line in supervisor.logs(name)] == [f"{name}\n".encode()]
            await supervisor.remove(name)

        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for number in range(15):
                    nursery.start_soon(one, f"c{number}")
        assert len(os.listdir(f"/proc/{supervisor.zygote_pid}/fd")) == zygote_fds
        # One program of the device rules stays loaded.
        assert len(own_descriptors()) <= len(fds_before) + 1
    assert host_picture(lab) == before
