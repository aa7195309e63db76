"""`docker exec` by the stock client in a real container, and the calls around it."""

from __future__ import annotations

import json
import os
import pty
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.api.fake import H1
from tests.api.serving import Api, open_sockets
from tests.runtime.lab import BUSYBOX, Lab, make_layer

DOCKER = shutil.which("docker")

in_a_container = [
    pytest.mark.level4,
    pytest.mark.skipif(DOCKER is None, reason="the docker client is not installed"),
]


class Box:
    """A running container behind the API's socket."""

    def __init__(self, path: Path) -> None:
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(path.parent),
            "DOCKER_HOST": f"unix://{path}",
            "TERM": "xterm",
        }

    async def docker(self, *words: str, stdin: bytes = b"") -> tuple[int, str, str]:
        with trio.fail_after(60):
            done = await trio.run_process(
                [str(DOCKER), *words],
                env=self.environment,
                stdin=stdin,
                check=False,
                capture_stdout=True,
                capture_stderr=True,
            )
        return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    if not BUSYBOX.exists():
        pytest.fail("this test needs /bin/busybox: apt install busybox-static")
    (tmp_path / "api").mkdir()
    lab = Lab(tmp_path, make_layer(tmp_path / "layer"))
    try:
        async with (
            lab.supervisor() as supervisor,
            open_sockets(tmp_path / "api") as (fake, paths),
        ):
            await supervisor.create("box", lab.spec("sleep", "1000", env=("A=own",)))
            await supervisor.start("box")
            fake.nodes[H1].supervisor = supervisor
            yield Box(paths[H1])
            await supervisor.remove("box", force=True)
    finally:
        lab.clean()


class TestInAContainer:
    pytestmark = in_a_container

    async def test_output_errors_and_exit_code(self, box: Box) -> None:
        code, out, err = await box.docker(
            "exec", "box", "sh", "-c", "echo out; echo err >&2; exit 5"
        )
        assert (code, out, err) == (5, "out\n", "err\n")

    async def test_environment_user_and_folder(self, box: Box) -> None:
        script = "echo $A $B; pwd; id -u"
        options = ("-e", "B=more", "-u", "app", "-w", "/tmp")
        code, out, _ = await box.docker("exec", *options, "box", "sh", "-c", script)
        assert (code, out) == (0, "own more\n/tmp\n1000\n")

    async def test_input_ends_with_the_clients(self, box: Box) -> None:
        text = b"line\n" * 50_000
        code, out, _ = await box.docker("exec", "-i", "box", "wc", "-c", stdin=text)
        assert (code, out.strip()) == (0, str(len(text)))
        code, out, _ = await box.docker("exec", "-i", "box", "cat", stdin=text)
        assert (code, len(out)) == (0, len(text))

    async def test_command_that_does_not_exist_is_named(self, box: Box) -> None:
        code, _, err = await box.docker("exec", "box", "nosuch")
        assert code == 127
        assert 'command "nosuch" not found' in err

    async def test_terminal_has_its_size_and_its_signals(self, box: Box) -> None:
        leader, follower = pty.openpty()
        process = await trio.lowlevel.open_process(
            [str(DOCKER), "exec", "-it", "box", "sh"],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env=box.environment,
            start_new_session=True,
        )
        os.close(follower)
        seen = b""

        async def see(text: bytes) -> None:
            nonlocal seen
            with trio.fail_after(30):
                while text not in seen:
                    await trio.lowlevel.wait_readable(leader)
                    seen += os.read(leader, 4096)

        await see(b"# ")
        os.write(leader, b"tty; echo do''ne\n")
        await see(b"done")
        assert b"/dev/pts/" in seen
        waits = b"trap 'echo cau''ght; exit 3' INT; echo rea''dy; while :; do sleep 0.1; done"
        os.write(leader, b'sh -c "%s"\n' % waits.replace(b"$", b"\\$"))
        await see(b"ready")
        os.write(leader, b"\x03")
        await see(b"caught")
        os.write(leader, b"exit 7\n")
        with trio.fail_after(30):
            code = await process.wait()
        os.close(leader)
        assert code == 7

    async def test_a_detached_exec_goes_on_and_never_hangs_on_its_output(self, box: Box) -> None:
        # More than a pipe holds, which nobody reads.
        flood = "seq 1 100000; touch /tmp/done"
        code, out, err = await box.docker("exec", "-d", "box", "sh", "-c", flood)
        assert (code, out, err) == (0, "", "")
        waits = "until [ -e /tmp/done ]; do sleep 0.05; done"
        assert (await box.docker("exec", "box", "sh", "-c", waits))[0] == 0

    async def test_a_privileged_exec_has_every_capability(self, box: Box) -> None:
        show = ("grep", "CapEff", "/proc/self/status")
        _, plain, _ = await box.docker("exec", "box", *show)
        code, all_, _ = await box.docker("exec", "--privileged", "box", *show)
        assert code == 0
        assert int(all_.split()[1], 16) > int(plain.split()[1], 16)


async def test_calls_refuse_what_cannot_be(api: Api) -> None:
    supervisor = api.fake.nodes[H1].supervisor
    state = supervisor.add("t1", "web.1.t1")
    target = f"/containers/{state.id}/exec"
    for body, words in (
        ({}, "Cmd: names no command"),
        ({"Cmd": ["a"], "Commnd": 1}, "Commnd: no such field here"),
        ({"Cmd": "a"}, "Cmd: must be a list"),
        ({"Cmd": ["a"], "DetachKeys": "ctrl-"}, "is no key"),
    ):
        reply = await api.call("POST", target, body)
        assert (reply.status, words in reply.message) == (400, True)
    id_ = (await api.call("POST", target, {"Cmd": ["true"], "AttachStdin": True})).json["Id"]
    shown = (await api.call("GET", f"/exec/{id_}/json")).json
    assert (shown["Running"], shown["ExitCode"], shown["OpenStdin"]) == (False, None, True)
    assert shown["ProcessConfig"]["entrypoint"] == "true"
    assert (await api.call("POST", f"/exec/{id_}/resize?h=0&w=1")).status == 400
    assert (await api.call("POST", f"/exec/{id_}/resize?h=24&w=80")).status == 200
    assert (await api.call("GET", "/exec/nope/json")).message == "exec nope not found"
    supervisor.end(state.id, 0)
    reply = await api.call("POST", target, {"Cmd": ["true"]})
    assert (reply.status, "is not running" in reply.message) == (409, True)
    assert json.dumps(shown)
