"""The init of a container: it reaps, it forwards signals, and it ends as its command does."""

from __future__ import annotations

import pytest
import trio

from swarmlet.runtime import cgroups
from swarmlet.runtime.plan import exec_plan
from swarmlet.runtime.spec import Namespaces, Process
from swarmlet.runtime.values import changed
from tests.local.box import box
from tests.runtime.lab import Lab, output, run, wait_for_output
from tests.runtime.recorder import FILTER, HYBRID, kinds, make, spec_of

pytestmark = pytest.mark.level4


async def test_the_code_is_the_commands(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        for users in ("host", "private"):
            namespaces = Namespaces(user=users)
            spec = lab.spec("sh", "-c", "echo $$; exit 7", init=True, namespaces=namespaces)
            assert await run(supervisor, spec) == (7, "2\n")
        spec = lab.spec("sh", "-c", "kill -9 $$", init=True)
        assert (await run(supervisor, spec))[0] == 128 + 9


async def test_a_command_that_is_not_there_is_said(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        with pytest.raises(Exception, match='command "nosuch" not found'):
            await supervisor.create("c", lab.spec("nosuch", init=True), start=True)
        assert supervisor.containers == {}


async def test_signals_are_forwarded(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        script = "trap 'echo got TERM; exit 5' TERM; echo ready; while :; do sleep 0.1; done"
        await supervisor.create("c", lab.spec("sh", "-c", script, init=True), start=True)
        await wait_for_output(supervisor, "c", "ready")
        assert (await supervisor.stop("c", grace=30)).code == 5
        assert "got TERM" in await output(supervisor, "c")
        # Without one the first process of a PID namespace has no default action for a signal.
        await supervisor.create("d", lab.spec("sleep", "1000", init=True), start=True)
        assert (await supervisor.stop("d", grace=30)).code == 128 + 15
        for name in ("c", "d"):
            await supervisor.remove(name)


async def test_orphans_are_reaped(lab: Lab) -> None:
    """A shell that does not know them leaves zombies; the init takes them."""
    async with lab.supervisor() as supervisor:
        orphan = "sh -c 'sh -c \"exit 0\" & exec sleep 0' & wait; echo done; exec sleep 1000"
        await supervisor.create("c", lab.spec("sh", "-c", orphan, init=True), start=True)
        await wait_for_output(supervisor, "c", "done")
        with trio.fail_after(30):
            while True:
                session = await supervisor.exec(
                    "c", lab.spec("sh", "-c", "cat /proc/[0-9]*/stat").process
                )
                async with session:
                    text = await session.stdout.receive_some(65536)
                    await session.wait()
                if b") Z " not in text:
                    break
                await trio.sleep(0.05)
        assert b"(init)" in text
        await supervisor.remove("c", force=True)


async def test_the_init_is_as_confined_as_the_command(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        script = "cat /proc/1/status > /tmp/1; cat /proc/self/status > /tmp/2; cat /tmp/1 /tmp/2"
        code, said = await run(supervisor, lab.spec("sh", "-c", script, init=True))
        assert code == 0
        half = said.index("Name:", 5)
        for name in ("CapBnd", "CapEff", "NoNewPrivs", "Seccomp:", "Uid"):
            lines = [line for line in said[:half].splitlines() if line.startswith(name)]
            assert lines == [line for line in said[half:].splitlines() if line.startswith(name)]


async def test_a_terminals_interrupt_is_the_commands(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        script = "trap 'echo once; exit 3' INT; echo ready; while :; do sleep 0.1; done"
        spec = lab.spec("sh", "-c", script, init=True, terminal=True)
        await supervisor.create("c", spec)
        async with await supervisor.attach("c") as session:
            await supervisor.start("c")
            await wait_for_output(supervisor, "c", "ready")
            assert session.stdin is not None
            await session.stdin.send_all(b"\x03")
            assert (await supervisor.wait("c")).code == 3
        assert (await output(supervisor, "c")).count("once") == 1
        await supervisor.remove("c")


def test_an_exec_has_no_init_of_its_own() -> None:
    process = Process(args=("true",), init=True)
    spec = changed(spec_of(), process=process)
    assert "become_init" in kinds(make(spec, HYBRID, FILTER).launch)
    driver = cgroups.driver(HYBRID, "swarmlet")
    _, launch = exec_plan(process, spec, HYBRID, driver, "c", FILTER)
    assert "become_init" not in kinds(tuple(launch))


@pytest.mark.level5
async def test_docker_run_init() -> None:
    async with box() as b:
        assert await b.out("run", "--rm", "--init", "busybox", "sh", "-c", "echo $$") == "2"
        await b.docker("run", "-d", "--name", "web", "--init", "busybox", "sleep", "1000")
        assert (await b.inspect("web"))["HostConfig"]["Init"] is True
        await b.docker("stop", "-t", "30", "web")
        assert (await b.inspect("web"))["State"]["ExitCode"] == 128 + 15
