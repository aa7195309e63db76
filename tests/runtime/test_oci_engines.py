"""swarmlet-oci in runc's place: podman and containerd from Debian's packages, as they are."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.lab import make_layer

pytestmark = pytest.mark.level5

#: podman raises limits to what only CAP_SYS_RESOURCE may have.
LIMITS = ("--ulimit", "nofile=1024:20000", "--ulimit", "nproc=4096:4096", "--network", "none")
CONTAINERD = """version = 2
root = "{base}/root"
state = "{base}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{base}/s"
"""
#: Ours: containerd's shims keep the containers of all daemons in one place of the machine.
CONTAINER = f"swl-{os.getpid()}"
#: Seconds for one command of an engine.
PATIENCE = 60


def required(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(
                f"no {program} here: apt-get install podman containerd crun (setup.sh does)"
            )


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """The command, as `pip install` makes it."""
    path = tmp_path / "swarmlet-oci"
    path.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent.parent.parent)!r})\n"
        "from swarmlet.runtime.oci.command import main\nsys.exit(main())\n"
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    layer = make_layer(tmp_path / "layer")
    path = tmp_path / "image.tar"
    subprocess.run(["tar", "-C", str(layer), "-cf", str(path), "."], check=True)
    return path


class Podman:
    def __init__(self, base: Path, runtime: Path) -> None:
        base.mkdir()
        configuration = base / "containers.conf"
        configuration.write_text(
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            f'[engine.runtimes]\nswarmlet-oci = ["{runtime}"]\n'
        )
        folders = ["--root", f"{base}/root", "--runroot", f"{base}/run", "--tmpdir", f"{base}/tmp"]
        self._start = ["podman", *folders, "--log-level", "error", "--runtime", "swarmlet-oci"]
        self._environment = {**os.environ, "CONTAINERS_CONF": str(configuration)}

    def __call__(self, *words: str, code: int = 0, given: str = "") -> str:
        done = subprocess.run(
            [*self._start, *words],
            input=given,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == code, done
        return (done.stdout + done.stderr).strip()


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder with a short name: podman takes 50 characters."""
    path = Path(tempfile.mkdtemp(prefix="swl"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def podman(base: Path, runtime: Path, image: Path) -> Iterator[Podman]:
    required("podman", "conmon")
    made = Podman(base / "p", runtime)
    made("import", str(image), "busy:1")
    yield made
    made("rm", "--all", "--force", "--time", "0")
    made("rmi", "--all", "--force")
    # Its storage is a mount on itself.
    subprocess.run(["umount", f"{base}/p/root/overlay"], check=False, capture_output=True)


def test_podman_runs_containers(podman: Podman) -> None:
    assert "name: swarmlet-oci" in podman("info")
    run = ("run", "--rm", *LIMITS)
    assert podman(*run, "busy:1", "sh", "-c", "echo hello; exit 7", code=7) == "hello"
    assert podman(*run, "-i", "busy:1", "cat", given="through") == "through"
    assert podman(*run, "-t", "busy:1", "tty") == "/dev/pts/0"
    assert "not found in the image" in podman(*run, "busy:1", "nosuch", code=127)
    assert "not executable" in podman(*run, "busy:1", "/etc/passwd", code=126)
    confined = ("--read-only", "--tmpfs", "/data", "--user", "1000", "--hostname", "box")
    script = "id -u; hostname; touch /data/x && echo wrote; touch /x"
    said = podman(*run, *confined, "busy:1", "sh", "-c", script, code=1).splitlines()
    assert said[:3] == ["1000", "box", "wrote"]
    assert "Read-only file system" in said[3]
    users = podman(*run, "--uidmap", "0:100000:65536", "busy:1", "cat", "/proc/self/uid_map")
    assert users.split() == ["0", "100000", "65536"]


def test_podman_looks_after_a_container(podman: Podman) -> None:
    podman("run", "-d", "--name", "c", "--memory", "64m", *LIMITS, "busy:1", "sleep", "1000")
    assert podman("exec", "c", "sh", "-c", "echo in; exit 4", code=4) == "in"
    podman("pause", "c")
    assert podman("inspect", "-f", "{{.State.Status}}", "c") == "paused"
    podman("unpause", "c")
    assert "sleep 1000" in podman("top", "c")
    assert "67.11MB" in podman("stats", "--no-stream", "c")
    podman("stop", "--time", "0", "c")
    assert podman("inspect", "-f", "{{.State.ExitCode}}", "c") == str(128 + signal.SIGKILL)
    podman("start", "c")
    assert podman("inspect", "-f", "{{.State.Running}}", "c") == "true"
    podman("rm", "--force", "--time", "0", "c")


@pytest.fixture
def ctr(base: Path, podman: Podman) -> Iterator[list[str]]:
    required("containerd", "ctr", "containerd-shim-runc-v2")
    base = base / "c"
    base.mkdir()
    (base / "config.toml").write_text(CONTAINERD.format(base=base))
    archive = base / "image.tar"
    podman("save", "--format", "oci-archive", "-o", str(archive), "busy:1")
    with (base / "log").open("wb") as log:
        daemon = subprocess.Popen(
            ["containerd", "-c", str(base / "config.toml")], stdout=log, stderr=log
        )
    client = ["ctr", "--address", str(base / "s"), "--connect-timeout", "30s"]
    try:
        subprocess.run(
            [*client, "image", "import", str(archive)],
            check=True,
            timeout=PATIENCE,
            capture_output=True,
        )
        yield client
    finally:
        subprocess.run([*client, "task", "rm", "-f", CONTAINER], check=False, capture_output=True)
        daemon.terminate()
        daemon.wait(PATIENCE)


def test_containerd_runs_containers(ctr: list[str], runtime: Path) -> None:
    def call(*words: str, code: int = 0) -> str:
        done = subprocess.run(
            [*ctr, *words], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == code, done
        return done.stdout

    image = "localhost/busy:1"
    run = ("run", "--runc-binary", str(runtime))
    assert (
        call(*run, "--rm", image, f"once-{CONTAINER}", "sh", "-c", "echo hello; exit 5", code=5)
        == "hello\n"
    )
    call(*run, "-d", image, CONTAINER, "sleep", "1000")
    assert call("task", "exec", "--exec-id", "e", CONTAINER, "echo", "in") == "in\n"
    call("task", "pause", CONTAINER)
    assert "PAUSED" in call("task", "ls")
    call("task", "resume", CONTAINER)
    assert "memory.usage_in_bytes" in call("task", "metrics", CONTAINER)
    call("task", "rm", "-f", CONTAINER, code=0)
    call("container", "rm", CONTAINER)
