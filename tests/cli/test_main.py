"""The frame of the command line: what is imported, exit codes, terminals, pipes, settings."""

from __future__ import annotations

import dataclasses
import os
import pty
import signal
import subprocess
import sys
import tarfile
from dataclasses import fields
from pathlib import Path

import pytest

from swarmlet.api import client
from swarmlet.api.client import ClientError, socket_path
from swarmlet.cli import daemon, main
from swarmlet.cli.daemon import DEFAULTS, check_settings, read_config
from swarmlet.cli.service_options import LISTED, SCALARS
from swarmlet.daemon.config import Settings
from tests.api.fake import H1, H2, NOW
from tests.cli.world import Shell, open_shell


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    with open_shell(tmp_path, monkeypatch) as opened:
        yield opened


def test_help_imports_neither_daemon_nor_client_nor_rich() -> None:
    """The 150 ms of `--help` are not asserted; what they are spent on is."""
    program = (
        "import sys; from swarmlet.cli.main import run; code = run(['--help']); "
        "print(sorted(m for m in sys.modules if m.split('.')[0] in "
        "('trio', 'rich', 'http', 'h11', 'cryptography', 'pyroute2', 'msgpack', 'swarmlet')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    *_, modules = done.stdout.strip().splitlines()
    assert modules == "['swarmlet', 'swarmlet.cli', 'swarmlet.cli.base', 'swarmlet.cli.main']"


@pytest.mark.parametrize("name", sorted(main.COMMANDS))
def test_every_command_in_the_table_exists_and_has_help(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: swarmlet {name} ")


def test_every_subcommand_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    import click

    for name in ("service", "node", "network", "image", "token"):
        context = click.Context(main.cli)
        group = main.cli.get_command(context, name)
        assert isinstance(group, click.Group)
        for sub in group.list_commands(context):
            assert main.run([name, sub, "--help"]) == 0, (name, sub)
            assert capsys.readouterr().out.startswith(f"Usage: swarmlet {name} {sub} ")


def test_hosts_default_is_the_same_here_and_in_the_client() -> None:
    assert main.DEFAULT_HOST == client.DEFAULT_HOST
    assert socket_path("unix:///a/b.sock") == socket_path("/a/b.sock") == "/a/b.sock"
    for host in ("tcp://10.0.0.1:2375", "a/b", "ssh://h1", "unix://a"):
        with pytest.raises(ClientError, match="host"):
            socket_path(host)


def test_host_comes_from_the_flag_then_from_the_environment(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SWARMLET_HOST", "unix:///nowhere.sock")
    assert main.run(["node", "ls"]) == 1
    assert "no daemon at unix:///nowhere.sock" in capsys.readouterr().err
    assert shell.type("swarmlet node ls -q")[0] == 0


def test_reader_that_stops_early_is_no_error(shell: Shell) -> None:
    code, _, _ = shell.type("swarmlet service create -q -d --name web busybox")
    assert code == 0
    host = f"unix://{shell.folder}/h1.sock"
    command = f"{sys.executable} -m swarmlet.cli.main -H {host} service inspect web | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[\n", "")


def run_on_terminal(shell: Shell, line: str, *, code: int = 0, **environment: str) -> str:
    """Run the real program on a pseudo-terminal; return all that it wrote."""
    leader, follower = pty.openpty()
    words = [sys.executable, "-m", "swarmlet.cli.main", "-H", f"unix://{shell.folder}/h1.sock"]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", **environment}
    process = subprocess.Popen([*words, *line.split()], stdout=follower, stderr=follower, env=env)
    os.close(follower)
    written = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:  # EIO: the last writer is gone
            break
        if not piece:
            break
        written += piece
    os.close(leader)
    assert process.wait() == code, written
    return written.decode()


def test_progress_is_redrawn_on_a_terminal_and_plain_in_a_pipe(shell: Shell) -> None:
    options = "--replicas 2 --update-monitor 300ms busybox"
    drawn = run_on_terminal(shell, f"service create --name web {options}")
    assert "\x1b[" in drawn  # the cursor goes up
    assert "1/2: running   [==================================================>]" in drawn
    assert "verify: Service web converged" in drawn
    code, out, _ = shell.type(f"swarmlet service create --name db {options}")
    assert code == 0
    assert "\x1b" not in out
    assert "[===" not in out
    assert out.splitlines()[1:] == [
        "overall progress: 2 out of 2 tasks",
        "verify: Waiting 1 second to verify that tasks are stable...",
        "verify: Service db converged",
    ]


def test_interrupt_leaves_the_operation_to_the_swarm(shell: Shell) -> None:
    for id_ in shell.fake.cluster.state.nodes:
        shell.fake.cluster.set_down(id_)
    words = [sys.executable, "-m", "swarmlet.cli.main", "-H", f"unix://{shell.folder}/h1.sock"]
    process = subprocess.Popen(
        [*words, "service", "create", "--name", "web", "busybox"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process:
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[2] == "1/1: no suitable node (3 nodes not available)\n"
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert rest.splitlines() == [
        "Operation continuing in background.",
        "Use `swarmlet service ps web` to check progress.",
    ]
    assert process.returncode == 0


def test_no_color_is_respected(shell: Shell) -> None:
    shell.fake.cluster.bad_images.add("nope")
    line = "service create --name {} --restart-condition none nope"
    red = "\x1b[31m"
    # This process may run where colour is refused already.
    drawn = run_on_terminal(shell, line.format("a"), code=1, NO_COLOR="")
    assert f"{red}1/1: no such image: nope" in drawn
    drawn = run_on_terminal(shell, line.format("b"), code=1, NO_COLOR="1")
    assert "1/1: no such image: nope" in drawn
    assert red not in drawn


def test_service_logs_name_the_task_and_its_node(shell: Shell) -> None:
    shell.type("swarmlet service create -q -d --name web --replicas 2 busybox")
    shell.fake.run_containers()
    for node, line, at, stream in (
        (H1, "first", NOW, "stdout"),
        (H2, "second", NOW + 1, "stderr"),
        (H1, "third", NOW + 2, "stdout"),
    ):
        supervisor = shell.fake.nodes[node].supervisor
        (id_,) = supervisor.containers
        supervisor.write(id_, line, at=at, stream=stream)
    code, out, err = shell.type("swarmlet service logs web")
    assert code == 0
    assert out.splitlines() == ["web.1.3zzzzzzzzzzz@h1 | first", "web.1.3zzzzzzzzzzz@h1 | third"]
    assert err.splitlines() == ["web.2.4zzzzzzzzzzz@h2 | second"]
    code, out, _ = shell.type("swarmlet service logs --raw --tail 1 -t web")
    assert out.splitlines() == ["2023-11-14T22:13:22.000000000Z third"]
    code, out, _ = shell.type(
        "swarmlet service logs --no-task-ids --since 2023-11-14T22:13:22Z web"
    )
    assert out.splitlines() == ["web.1@h1 | third"]
    task = next(iter(shell.fake.cluster.state.tasks))
    code, out, _ = shell.type(f"swarmlet service logs --raw {task}")
    assert out.splitlines() == ["first", "third"]
    code, out, _ = shell.type("swarmlet logs web")
    assert code == 1
    code, out, _ = shell.type(f"swarmlet logs --tail 1 web.1.{task}")
    assert out.splitlines() == ["third"]


def test_image_commands_on_real_archives(shell: Shell) -> None:
    with tarfile.open(shell.folder / "root.tar", "w") as tar:
        entry = tarfile.TarInfo("bin")
        entry.type = tarfile.DIRTYPE
        tar.addfile(entry)
    code, out, err = shell.type("swarmlet image import -c 'CMD [\"/bin/sh\"]' root.tar team/box:1")
    assert (code, err) == (0, "")
    id_ = out.strip().removeprefix("sha256:")
    code, out, _ = shell.type("swarmlet image ls")
    assert out.splitlines()[1].split()[:3] == ["team/box", "1", id_[:12]]
    assert shell.type("swarmlet image ls -q")[1].split() == [id_[:12]]
    assert shell.type("swarmlet image tag team/box:1 other")[0] == 0
    code, out, _ = shell.type(
        "swarmlet image inspect --format '{{.RepoTags}} {{.Config.Cmd}}' other"
    )
    assert out == "[team/box:1 other:latest] [/bin/sh]\n"
    assert shell.type("swarmlet image save -o saved.tar team/box:1 other")[0] == 0
    assert shell.type("swarmlet image rm other team/box:1")[1].splitlines()[0] == (
        "Untagged: other:latest"
    )
    assert "Loaded image: team/box:1" in shell.type("swarmlet image load saved.tar")[1]
    code, _, err = shell.type("swarmlet image load root.tar")
    assert (code, "a root file system goes in by `image import`" in err) == (1, True)


def test_scale_of_a_global_service_is_refused_and_the_others_go_on(shell: Shell) -> None:
    shell.type("swarmlet service create -q -d --name every --mode global busybox")
    shell.type("swarmlet service create -q -d --name web busybox")
    code, out, err = shell.type("swarmlet service scale -d every=2 web=3")
    assert code == 1
    assert out == "web scaled to 3\n"
    assert "service every is global" in err


def test_flags_of_update_change_only_what_they_name(shell: Shell) -> None:
    create = (
        "swarmlet service create -d -q --name web --label a=1 --label b=2 --env A=1 --env B=2 "
        "--publish 80:80 --publish published=81,target=81,ip=10.0.0.1 --mount "
        "type=tmpfs,target=/t --constraint node.role==worker --host db:10.0.0.9 --limit-cpu 0.5 "
        "--health-cmd true --log-opt max-size=1m --offline pin --tty busybox httpd"
    )
    assert shell.type(create)[0] == 0
    (before,) = shell.fake.cluster.state.services.values()
    assert shell.type("swarmlet service update -d --force web")[0] == 0
    (after,) = shell.fake.cluster.state.services.values()
    assert after.spec.task.force_update == 1
    task = dataclasses.replace(after.spec.task, force_update=0)
    assert dataclasses.replace(after.spec, task=task) == before.spec
    update = (
        "swarmlet service update -d --label-rm a --label-add b=3 --env-rm A --env-add C=3 "
        "--publish-rm 81 --publish-add 82:82/udp --mount-rm /t --constraint-rm node.role==worker "
        "--host-rm db:10.0.0.9 --no-healthcheck --tty=false --offline keep --limit-cpu 0 web"
    )
    assert shell.type(update) == (0, "web\n", "")
    (changed,) = shell.fake.cluster.state.services.values()
    spec, container = changed.spec, changed.spec.task.container
    assert spec.labels == {"b": "3"}
    assert container.env == ("B=2", "C=3")
    assert [(p.target, p.protocol, p.ip) for p in spec.endpoint.ports] == [
        (80, "tcp", ""),
        (82, "udp", ""),
    ]
    assert container.mounts == container.hosts == spec.task.placement.constraints == ()
    assert container.healthcheck is not None
    assert container.healthcheck.test == ("NONE",)
    assert (container.tty, spec.offline, spec.task.limits.nano_cpus) == (False, "keep", 0)
    assert spec.task.log_driver is not None
    assert spec.task.log_driver.name == "json-file"


def test_tables_of_flags_are_sound() -> None:
    for table in (SCALARS, LISTED):
        names = [option.name for option in table]  # type: ignore[attr-defined]
        assert len(names) == len(set(names))
        assert all(option.help.endswith(".") for option in table)  # type: ignore[attr-defined]


def test_settings_of_the_daemon_come_from_file_and_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import swarmlet.daemon

    started: list[dict[str, object]] = []
    monkeypatch.setattr(swarmlet.daemon, "run", lambda **options: started.append(options))
    monkeypatch.setattr(daemon, "CONFIG_PATH", tmp_path / "none.toml")
    assert main.run(["daemon"]) == 0
    assert started == [dict(DEFAULTS)]
    path = tmp_path / "c.toml"
    path.write_text('state-dir = "/a"\ndata_path_port = 4790\n')
    assert main.run(["daemon", "--config", str(path), "--state-dir", "/b"]) == 0
    assert started[1] == {**DEFAULTS, "state_dir": "/b", "data_path_port": 4790}
    for text, reason in (
        ("state-dirr = 1", "state-dirr: no such setting; did you mean state_dir?"),
        ("data-path-port = '1'", "data-path-port: '1' is not a number"),
        ("[a]", "a: no such setting; known are"),
        ("a =", "not TOML"),
    ):
        path.write_text(text)
        assert main.run(["daemon", "--config", str(path)]) == 1
        assert reason in capsys.readouterr().err
    assert main.run(["daemon", "--config", str(tmp_path / "gone")]) == 1
    assert main.run(["daemon", "--run-dir", "relative"]) == 2
    assert len(started) == 2


def test_defaults_are_those_of_the_daemon() -> None:
    own = {f.name: f.default for f in fields(Settings) if f.name not in ("state_dir", "run_dir")}
    assert {name: DEFAULTS[name] for name in own} == own
    check_settings(DEFAULTS)
    assert read_config("") == {}
