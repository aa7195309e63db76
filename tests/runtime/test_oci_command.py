"""swarmlet-oci as an engine calls it, on the real kernel."""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.bundles import Bench, document

pytestmark = pytest.mark.level4
IDS = [{"containerID": 0, "hostID": 100_000, "size": 65536}]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    before = made.picture()
    yield made
    try:
        for name in os.listdir(made.root) if made.root.exists() else ():
            made.call("delete", "--force", name, code=None)
    finally:
        made.clean()
    assert {**made.picture(), "states": []} == before


def running(bench: Bench, made: dict[str, Any], name: str = "c") -> Path:
    folder = bench.bundle(made, name)
    bench.call("run", "--detach", "--bundle", str(folder), name)
    assert bench.state(name)["status"] == "running"
    return folder


def wait_gone(pid: int) -> None:
    """Wait for the end of *pid*, which is nobody's child here: whoever reaps orphans reaps it."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(20_000)
    os.close(pidfd)


def test_run_gives_output_and_exit_code(bench: Bench) -> None:
    script = "id -u; hostname; echo err >&2; exit 3"
    folder = bench.bundle(document("sh", "-c", script))
    done = bench.call("run", "-b", str(folder), "c", code=3)
    assert done.stdout == "0\nbox\n"
    assert done.stderr == "err\n"
    assert bench.picture()["states"] == []


def test_the_life_of_a_container(bench: Bench) -> None:
    folder = bench.bundle(document("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"))
    pid_file = bench.base / "pid"
    bench.call("create", "--bundle", str(folder), "--pid-file", str(pid_file), "c")
    state = bench.state("c")
    assert state["status"] == "created"
    assert state["bundle"] == str(folder)
    pid = int(pid_file.read_text())
    assert state["pid"] == pid
    assert "already exists" in bench.call("create", "-b", str(folder), "c", code=1).stderr
    assert "exec in a container that is created" in bench.call("exec", "c", "id", code=1).stderr
    bench.call("start", "c")
    assert bench.state("c")["status"] == "running"
    assert "cannot start a container that is running" in bench.call("start", "c", code=1).stderr
    assert json.loads(bench.call("ps", "--format", "json", "c").stdout)[0] == pid
    assert str(pid) in bench.call("ps", "c").stdout
    assert [s["id"] for s in json.loads(bench.call("list", "-f", "json").stdout)] == ["c"]
    assert bench.call("list", "-q").stdout == "c\n"
    assert "running" in bench.call("list").stdout
    bench.call("pause", "c")
    assert bench.state("c")["status"] == "paused"
    assert (
        "cannot exec in a container that is paused" in bench.call("exec", "c", "id", code=1).stderr
    )
    bench.call("resume", "c")
    assert "is not stopped: running" in bench.call("delete", "c", code=1).stderr
    bench.call("kill", "c", "TERM")
    wait_gone(pid)
    assert bench.state("c")["status"] == "stopped"
    assert "container not running" in bench.call("kill", "c", "KILL", code=1).stderr
    bench.call("delete", "c")
    assert "does not exist" in bench.call("state", "c", code=1).stderr
    assert bench.picture()["states"] == []


def test_delete_with_force_ends_what_runs(bench: Bench) -> None:
    running(bench, document("sleep", "1000"))
    pid = bench.state("c")["pid"]
    bench.call("delete", "--force", "c")
    wait_gone(pid)
    bench.call("delete", "--force", "c")


def test_exec_is_in_the_container_and_as_confined(bench: Bench) -> None:
    running(bench, document("sleep", "1000"))
    said = bench.call("exec", "c", "sh", "-c", "hostname; cat /proc/self/status; exit 4", code=4)
    assert said.stdout.startswith("box\n")
    assert "NoNewPrivs:\t1" in said.stdout
    first = bench.call("exec", "c", "cat", "/proc/1/status").stdout
    of = {line.split(":")[0]: line for line in said.stdout.splitlines()}
    for line in first.splitlines():
        if line.startswith(("Cap", "Seccomp:")):
            assert of[line.split(":")[0]] == line
    where = bench.call("exec", "--cwd", "/tmp", "--env", "A=b", "c", "sh", "-c", "pwd; echo $A")
    assert where.stdout == "/tmp\nb\n"
    assert bench.call("exec", "--user", "1000:1000", "c", "id", "-u").stdout == "1000\n"
    spec = {"args": ["id", "-u"], "cwd": "/", "user": {"uid": 7, "gid": 7}, "env": ["PATH=/bin"]}
    file = bench.base / "process.json"
    file.write_text(json.dumps(spec))
    assert bench.call("exec", "--process", str(file), "c").stdout == "7\n"
    assert "not found" in bench.call("exec", "c", "nosuch", code=1).stderr
    pid_file = bench.base / "exec.pid"
    bench.call("exec", "--detach", "--pid-file", str(pid_file), "c", "sleep", "1000")
    pids = json.loads(bench.call("ps", "-f", "json", "c").stdout)
    assert int(pid_file.read_text()) in pids


def test_limits_are_kept_and_changed_while_it_runs(bench: Bench) -> None:
    made = document("sleep", "1000")
    made["linux"]["resources"] |= {"memory": {"limit": 32 << 20}, "pids": {"limit": 20}}
    running(bench, made)
    stats = json.loads(bench.call("events", "--stats", "c").stdout)
    assert stats["type"] == "stats"
    assert stats["data"]["memory"]["usage"]["limit"] == 32 << 20
    assert stats["data"]["pids"] == {"current": 1, "limit": 20}
    bench.call("update", "--memory", str(64 << 20), "--pids-limit", "30", "c")
    limits = bench.base / "limits.json"
    limits.write_text(json.dumps({"cpu": {"quota": 50_000, "period": 100_000}}))
    bench.call("update", "--resources", str(limits), "c")
    stats = json.loads(bench.call("events", "--stats", "c").stdout)
    assert stats["data"]["memory"]["usage"]["limit"] == 64 << 20
    assert stats["data"]["pids"]["limit"] == 30
    # Half a CPU: work that takes two periods or more is throttled.
    busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"
    bench.call("exec", "c", "sh", "-c", busy)
    stats = json.loads(bench.call("events", "--stats", "c").stdout)
    assert stats["data"]["cpu"]["throttling"]["throttledPeriods"] > 0
    refused = bench.call("update", "--memory", "7", "c", code=1).stderr
    assert "resources.memory.limit: is below" in refused


def test_too_much_memory_is_the_end(bench: Bench) -> None:
    made = document("dd", "if=/dev/zero", "of=/dev/null", "bs=60M", "count=1")
    made["linux"]["resources"]["memory"] = {"limit": 32 << 20, "swap": 32 << 20}
    folder = bench.bundle(made)
    bench.call("run", "-b", str(folder), "c", code=128 + signal.SIGKILL)


def test_hooks_run_in_their_places_and_know_the_state(bench: Bench) -> None:
    log = bench.base / "hooks"
    log.mkdir()
    log.chmod(0o777)

    def hook(kind: str, target: str = "") -> list[dict[str, Any]]:
        script = f"cat > {target or log}/{kind}; ls {bench.root}/c/start 2>/dev/null; true"
        args = ["sh", "-c", script]
        return [{"path": "/bin/sh", "args": args, "env": ["PATH=/bin"], "timeout": 20}]

    made = document("ls", "/log")
    made["mounts"].append(
        {"destination": "/log", "type": "bind", "source": str(log), "options": ["bind"]}
    )
    kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    made["hooks"] = {kind: hook(kind) for kind in kinds}
    made["hooks"]["startContainer"] = hook("startContainer", "/log")
    folder = bench.bundle(made)
    bench.call("create", "-b", str(folder), "c")
    assert sorted(os.listdir(log)) == ["createContainer", "createRuntime", "prestart"]
    state = json.loads((log / "createRuntime").read_text())
    assert (state["status"], state["id"], state["bundle"]) == ("creating", "c", str(folder))
    assert state["pid"] == bench.state("c")["pid"]
    assert json.loads((log / "createContainer").read_text()) == state
    bench.call("start", "c")
    assert json.loads((log / "poststart").read_text())["status"] == "running"
    assert (log / "startContainer").exists()
    bench.call("delete", "--force", "c")
    assert json.loads((log / "poststop").read_text())["status"] == "stopped"


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_a_hook_that_fails_ends_the_creation(bench: Bench, kind: str) -> None:
    made = document("true")
    made["hooks"] = {kind: [{"path": "/bin/false"}]}
    folder = bench.bundle(made)
    said = bench.call("create", "-b", str(folder), "c", code=1).stderr
    assert f"{kind} hook /bin/false: exit 1" in said
    made["hooks"] = {kind: [{"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}]}
    folder = bench.bundle(made)
    said = bench.call("create", "-b", str(folder), "c", code=1).stderr
    assert "took more than 1 s" in said
    assert bench.picture() == {"states": [], "groups": [], "mounts": []}


def test_what_a_bundle_lacks_is_one_clear_error(bench: Bench) -> None:
    """Nothing is left behind by any of them."""
    (bench.rootfs / "escape").symlink_to("/etc")
    bad_machine = bench.rootfs / "bin/arm"
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0" + b"\xb7\0" + bytes(44)
    bad_machine.write_bytes(head)
    bad_machine.chmod(0o755)
    (bench.rootfs / "bin/plain").write_text("no program")
    bind = {"destination": "/b", "type": "bind", "source": "/no/such", "options": ["bind"]}
    cases: list[tuple[dict[str, Any], str]] = [
        (document("nosuch"), 'command "nosuch" not found in the image'),
        (document("/bin/plain"), 'command "/bin/plain" is not executable'),
        (document("true", cwd="/etc/passwd/x"), "/etc/passwd"),
        (document("true") | {"root": {"path": "/no/such"}}, "root.path: /no/such is no folder"),
        (
            document("true") | {"mounts": [bind]},
            "hold tree /no/such: open_tree: No such file or directory",
        ),
        (document("true") | {"ociVersion": 1}, "ociVersion: must be text"),
    ]
    for made, said in cases:
        folder = bench.bundle(made)
        log = bench.base / "log.json"
        words = ("--log", str(log), "--log-format", "json", "create", "-b", str(folder), "c")
        done = bench.call(*words, code=1)
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
        line = json.loads(log.read_text().splitlines()[-1])
        assert line["level"] == "error"
        assert said in line["msg"]
        assert bench.picture() == {"states": [], "groups": [], "mounts": []}
    folder = bench.bundle(document("/bin/arm"))
    assert "is built for aarch64" in bench.call("run", "-b", str(folder), "c", code=1).stderr
    (folder / "config.json").write_text("{")
    assert "config.json: is no JSON" in bench.call("create", "-b", str(folder), "c", code=1).stderr
    said = bench.call("create", "-b", "/no/such", "c", code=1).stderr
    assert "/no/such/config.json: No such file" in said
    assert bench.picture() == {"states": [], "groups": [], "mounts": []}


def test_a_link_of_the_image_leads_no_mount_out_of_it(bench: Bench) -> None:
    outside = bench.base / "outside"
    outside.mkdir()
    source = bench.base / "source"
    source.mkdir()
    (source / "file").touch()
    (bench.rootfs / "link").symlink_to(outside)
    made = document("ls", str(outside))
    made["mounts"].append(
        {"destination": "/link", "type": "bind", "source": str(source), "options": ["rbind", "ro"]}
    )
    folder = bench.bundle(made)
    assert bench.call("run", "-b", str(folder), "c").stdout == "file\n"
    assert os.listdir(outside) == []


def test_a_terminal_goes_to_the_console_socket(bench: Bench) -> None:
    folder = bench.bundle(document("sh", "-c", "tty; read x; echo got $x", terminal=True))
    path = str(bench.base / "console")
    got: list[int] = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            _, fds, _, _ = socket.recv_fds(connection, 64, 1)
            got.extend(fds)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        bench.call("create", "-b", str(folder), "--console-socket", path, "c")
        thread.join(20)
    (master,) = array.array("i", got)
    bench.call("start", "c")
    os.write(master, b"hello\n")
    text = b""
    try:
        while chunk := os.read(master, 1000):
            text += chunk
    except OSError:
        pass  # the last user of the terminal is gone
    os.close(master)
    assert b"/dev/pts/0" in text
    assert b"got hello" in text
    said = bench.call("create", "-b", str(folder), "d", code=1).stderr
    assert "process.terminal: a terminal needs --console-socket" in said


def test_users_of_its_own(bench: Bench) -> None:
    made = document("sh", "-c", "cat /proc/self/uid_map; id -u; ls -ln /dev/null; cat /etc/group")
    made["linux"] |= {"uidMappings": IDS, "gidMappings": IDS}
    made["linux"]["namespaces"].append({"type": "user"})
    folder = bench.bundle(made)
    words = bench.call("run", "-b", str(folder), "c").stdout.split()
    assert words[:4] == ["0", "100000", "65536", "0"]


def test_a_time_of_its_own(bench: Bench) -> None:
    if not Path("/proc/self/ns/time").exists():
        pytest.skip("this kernel has no time namespaces")
    made = document("cat", "/proc/uptime")
    made["linux"]["namespaces"].append({"type": "time"})
    made["linux"]["timeOffsets"] = {"boottime": {"secs": 1_000_000, "nanosecs": 0}}
    folder = bench.bundle(made)
    assert float(bench.call("run", "-b", str(folder), "c").stdout.split()[0]) > 1_000_000


def test_a_seccomp_profile_of_the_document(bench: Bench) -> None:
    made = document("sh", "-c", "mkdir /tmp/x; echo $?; echo fine")
    made["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
    }
    folder = bench.bundle(made)
    done = bench.call("run", "-b", str(folder), "c")
    assert done.stdout == "1\nfine\n"
    made["linux"]["seccomp"]["syscalls"][0]["action"] = "SCMP_ACT_NO"
    folder = bench.bundle(made)
    said = bench.call("run", "-b", str(folder), "c", code=1).stderr
    assert "linux.seccomp.syscalls[0].action: there is no 'SCMP_ACT_NO'" in said


def test_descriptors_are_kept_only_as_asked(bench: Bench) -> None:
    folder = bench.bundle(document("sh", "-c", "echo through >&3"))
    into = bench.base / "into"
    script = 'exec "$@" 3>"$0"'
    for kept, code in (("0", 1), ("1", 0)):
        words = [*bench.argv, "run", "-b", str(folder), "--preserve-fds", kept, "c"]
        done = subprocess.run(["sh", "-c", script, str(into), *words], check=False)
        assert done.returncode == code
    assert into.read_text() == "through\n"


def test_what_is_kept_from_the_engine_is_copied_up(bench: Bench) -> None:
    (bench.rootfs / "data").mkdir()
    (bench.rootfs / "data/file").write_text("before\n")
    made = document("sh", "-c", "cat /data/file; echo x > /data/new; stat -c %a /data")
    made["mounts"].insert(
        0, {"destination": "/data", "type": "tmpfs", "options": ["tmpcopyup", "nosuid"]}
    )
    folder = bench.bundle(made)
    assert bench.call("run", "-b", str(folder), "c").stdout == "before\n755\n"
    assert os.listdir(bench.rootfs / "data") == ["file"]


def test_spec_writes_a_bundle_that_runs(bench: Bench) -> None:
    folder = bench.base / "new"
    folder.mkdir()
    (folder / "rootfs").symlink_to(bench.rootfs)
    bench.call("spec", "--bundle", str(folder))
    assert "exists" in bench.call("spec", "--bundle", str(folder), code=1).stderr
    made = json.loads((folder / "config.json").read_text())
    made["process"] |= {"args": ["echo", "fine"], "terminal": False}
    folder = bench.bundle(made)
    assert bench.call("run", "-b", str(folder), "c").stdout == "fine\n"


def test_features_and_version_name_what_there_is(bench: Bench) -> None:
    features = json.loads(bench.call("features").stdout)
    assert "createRuntime" in features["hooks"]
    assert "SCMP_ACT_ERRNO" in features["linux"]["seccomp"]["actions"]
    assert "spec: 1." in bench.call("--version").stdout
    assert "create" in bench.call("--help").stdout
    assert "there is no command 'fly'" in bench.call("fly", code=1).stderr
    assert "must be letters" in bench.call("start", "../x", code=1).stderr


def test_a_maker_that_is_killed_leaves_what_delete_removes(bench: Bench) -> None:
    """The child is held by a hook meanwhile."""
    made = document("true")
    held = bench.base / "held"
    os.mkfifo(held)
    made["hooks"] = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", f"echo > {held}"]}]}
    folder = bench.bundle(made)
    maker = subprocess.Popen([*bench.argv, "create", "-b", str(folder), "c"])
    with held.open():  # the hook runs
        maker.kill()
        maker.wait()
    bench.call("delete", "--force", "c")
    assert bench.picture() == {"states": [], "groups": [], "mounts": []}
