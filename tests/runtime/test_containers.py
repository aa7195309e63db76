"""Containers on the real kernel: what they see, what they may, what bites, what they leave."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from swarmlet.runtime.failures import RuntimeFailure
from swarmlet.runtime.spec import (
    Capabilities,
    Device,
    File,
    Mount,
    Namespaces,
    Resources,
    Rlimit,
    Root,
    Seccomp,
    SpecError,
    User,
)
from swarmlet.runtime.state import Status
from tests.runtime.lab import Lab, each_line, host_picture, output, run, wait_for_output

pytestmark = pytest.mark.level4
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")


async def test_life_of_a_container(lab: Lab) -> None:
    """Created, started, exited with its code and output, removed: nothing is left."""
    before = host_picture(lab)
    async with lab.supervisor() as supervisor:
        await supervisor.create("web.1", lab.spec("sh", "-c", "echo out; echo err >&2; exit 3"))
        assert supervisor.containers["web.1"].status is Status.CREATED
        await supervisor.start("web.1")
        status = await supervisor.wait("web.1")
        assert (status.code, status.signal, status.oom_killed) == (3, None, False)
        assert supervisor.containers["web.1"].status is Status.EXITED
        lines = [line async for line in supervisor.logs("web.1")]
        assert sorted((line.stream, line.data) for line in lines) == [
            ("stderr", b"err\n"),
            ("stdout", b"out\n"),
        ]
        await supervisor.remove("web.1")
        assert supervisor.containers == {}
    assert host_picture(lab) == before


async def test_namespaces_are_its_own(lab: Lab) -> None:
    code, text = await lab.run(
        "sh", "-c", "for ns in /proc/self/ns/*; do readlink $ns; done; ps; hostname", hostname="box"
    )
    assert code == 0
    ours = {name: os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES}
    lines = text.splitlines()
    for name in NAMESPACES:
        theirs = [line for line in lines if line.startswith(f"{name}:[")]
        assert theirs
        assert ours[name] not in theirs
    assert lines[-1] == "box"
    assert any(line.split()[:1] == ["1"] for line in lines), "it is PID 1"


@pytest.mark.parametrize("name", ["network", "ipc", "uts", "pid"])
async def test_namespace_shared_with_the_host(lab: Lab, name: str) -> None:
    kernel_name = {"network": "net"}.get(name, name)
    namespaces = replace(Namespaces(), **{name: "host"})
    _, text = await lab.run("readlink", f"/proc/self/ns/{kernel_name}", namespaces=namespaces)
    assert text.strip() == os.readlink(f"/proc/self/ns/{kernel_name}")


async def test_namespace_of_another_container(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        await supervisor.create("first", lab.spec("sleep", "100"))
        await supervisor.start("first")
        pid = supervisor.containers["first"].pid
        paths = {
            name: f"/proc/{pid}/ns/{kernel}"
            for name, kernel in (("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid"))
        }
        spec = lab.spec(
            "sh",
            "-c",
            "for ns in net ipc uts pid; do readlink /proc/self/ns/$ns; done",
            namespaces=Namespaces(**paths),
        )
        _, text = await run(supervisor, spec, "second")
        assert text.split() == [os.readlink(path) for path in paths.values()]
        await supervisor.remove("first", force=True)


async def test_confinement_by_default(lab: Lab) -> None:
    _, text = await lab.run("cat", "/proc/self/status")
    status = dict(each_line(text))
    assert int(status["CapBnd"], 16) == 0xA80425FB  # Docker's fourteen
    assert status["CapEff"] == status["CapPrm"] == status["CapBnd"]
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert int(status["SigIgn"], 16) == int(status["SigBlk"], 16) == 0


async def test_user_by_name_with_groups(lab: Lab) -> None:
    _, text = await lab.run("sh", "-c", "id; echo $HOME; umask", user=User(user="app"))
    assert text.splitlines() == [
        "uid=1000(app) gid=1000(app) groups=1000(app),2000(extra)",
        "/home/app",
        "0022",
    ] or text.splitlines() == [
        "uid=1000(app) gid=1000(app) groups=2000(extra)",
        "/home/app",
        "0022",
    ]


async def test_unknown_number_is_a_user_unknown_name_is_none(lab: Lab) -> None:
    _, text = await lab.run("id", user=User.parse("4711:42"))
    assert text.startswith("uid=4711 gid=42")
    async with lab.supervisor() as supervisor:
        await supervisor.create("c", lab.spec("id", user=User(user="nobody-here")))
        with pytest.raises(RuntimeFailure, match='user "nobody-here" not found in the image'):
            await supervisor.start("c")


async def test_user_has_no_capabilities_and_may_open_its_output_again(lab: Lab) -> None:
    code, text = await lab.run(
        "sh", "-c", "grep CapEff /proc/self/status; echo again > /dev/stderr", user=User(user="app")
    )
    assert (code, text) == (0, "CapEff:\t0000000000000000\nagain\n")


@pytest.mark.parametrize(
    ("command", "refused"),
    [
        ("mount -t tmpfs none /tmp", "seccomp and CAP_SYS_ADMIN"),
        ("unshare -m true", "no new namespaces"),
        ("cat /dev/vda", "device rules"),
        ("echo 1 > /proc/sys/kernel/core_pattern", "read-only path"),
        ("test -f /proc/sysrq-trigger", "masked path"),
        ("mknod /tmp/d b 254 0 && head -c1 /tmp/d", "device rules, also for a node of its own"),
        ("chmod 777 /sys/fs/cgroup/unified/cgroup.procs", "read-only cgroups"),
    ],
)
async def test_ways_out_are_refused(lab: Lab, command: str, refused: str) -> None:
    code, text = await lab.run("sh", "-c", f"{command} 2>&1 && echo OPEN")
    assert code != 0, refused
    assert "OPEN" not in text, refused


async def test_masked_paths_are_empty(lab: Lab) -> None:
    _, text = await lab.run("sh", "-c", "wc -c < /proc/keys; ls /sys/firmware | wc -l")
    assert text.split() == ["0", "0"]


async def test_nothing_of_the_zygote_is_open(lab: Lab) -> None:
    code, text = await lab.run("sh", "-c", "ls /proc/1/fd; true")
    assert (code, text.split()) == (0, ["0", "1", "2"])


async def test_capabilities_added_and_dropped(lab: Lab) -> None:
    capabilities = Capabilities.adjusted(add=["NET_ADMIN"], drop=["chown"])
    code, text = await lab.run(
        "sh", "-c", "ip link set lo mtu 1400 && ! chown 5 /tmp", capabilities=capabilities
    )
    assert code == 0, text


async def test_read_only_root(lab: Lab) -> None:
    root = Root(layers=(str(lab.layer),), readonly=True)
    code, text = await lab.run(
        "sh", "-c", "echo > /tmp/x; echo > /dev/shm/x && echo shm", root=root
    )
    assert "Read-only file system" in text
    assert (code, text.splitlines()[-1]) == (0, "shm")


async def test_layers_cover_one_another(lab: Lab, tmp_path: Path) -> None:
    upper = tmp_path / "second"
    upper.mkdir()
    (upper / "etc").mkdir()
    (upper / "etc/motd").write_text("second\n")
    _, text = await lab.run("cat", "/etc/motd", root=Root(layers=(str(lab.layer), str(upper))))
    assert text == "second\n"


async def test_mounts(lab: Lab, tmp_path: Path) -> None:
    source = tmp_path / "data"
    source.mkdir()
    (source / "file").write_text("hello\n")
    mounts = (
        Mount(target="/data", source=str(source)),
        Mount(target="/frozen", source=str(source), readonly=True),
        Mount(target="/etc/one", source=str(source / "file")),
        Mount(target="/data/deep", type="tmpfs", size_bytes=1 << 20, mode=0o700),
        Mount(target="/vol", type="volume", source=str(tmp_path / "volumes/v")),
    )
    script = (
        "cat /data/file /etc/one; echo > /frozen/x; echo made > /data/made; touch /vol/x;"
        "dd if=/dev/zero of=/data/deep/big bs=1M count=2 2>/dev/null || stat -c %s /data/deep/big"
    )
    _, text = await lab.run("sh", "-c", script, mounts=mounts)
    assert text.splitlines()[0:2] == ["hello", "hello"]
    assert "can't create /frozen/x: Read-only file system" in text
    assert text.splitlines()[-1] == str(1 << 20)
    assert (source / "made").read_text() == "made\n"
    assert (tmp_path / "volumes/v/x").exists()
    assert not (source / "deep/big").exists()


async def test_secrets_are_in_memory_only(lab: Lab) -> None:
    secret = b"correct horse battery staple"
    file = File(path="/run/secrets/key", content=secret, uid=1000, gid=1000, mode=0o400)
    async with lab.supervisor() as supervisor:
        spec = lab.spec(
            "sh",
            "-c",
            "stat -c '%u %g %a' /run/secrets/key; cat /run/secrets/key; echo; sleep 100",
            files=(file,),
            user=User(user="app"),
        )
        await supervisor.create("c", spec)
        await supervisor.start("c")
        await wait_for_output(supervisor, "c", secret.decode())
        assert (await output(supervisor, "c")).splitlines()[0] == "1000 1000 400"
        for path in [*lab.state_dir.rglob("*"), *lab.run_dir.rglob("*")]:
            if path.is_file() and not path.name.endswith("-json.log"):
                assert secret not in path.read_bytes(), path
        assert supervisor.containers["c"].spec.files[0].content == b""
        await supervisor.remove("c", force=True)


async def test_names_of_the_network(lab: Lab) -> None:
    (lab.layer / "etc/resolv.conf").unlink(missing_ok=True)
    (lab.layer / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    _, text = await lab.run(
        "sh",
        "-c",
        "cat /etc/hosts /etc/resolv.conf /etc/hostname",
        hosts="127.0.0.1 localhost\n",
        resolv_conf="nameserver 127.0.0.11\n",
        hostname="box",
    )
    (lab.layer / "etc/resolv.conf").unlink()
    assert text == "127.0.0.1 localhost\nnameserver 127.0.0.11\nbox\n"


async def test_memory_limit_kills_and_is_named(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        spec = lab.spec(
            "sh", "-c", "tail /dev/zero; exit 7", resources=Resources(memory_bytes=32 << 20)
        )
        await supervisor.create("c", spec)
        await supervisor.start("c")
        status = await supervisor.wait("c")
        assert status.oom_killed
        await supervisor.remove("c")


async def test_memory_limit_below_what_a_start_needs_is_named(lab: Lab) -> None:
    secret = File(path="/run/secrets/big", content=bytes(2 << 20))
    async with lab.supervisor() as supervisor:
        spec = lab.spec("true", resources=Resources(memory_bytes=1 << 20), files=(secret,))
        with pytest.raises(RuntimeFailure, match="memory limit killed the container"):
            await supervisor.create("c", spec)
        assert supervisor.containers == {}


async def test_pids_limit_refuses_the_next_process(lab: Lab) -> None:
    script = "i=0; while [ $i -lt 30 ]; do sleep 100 & i=$((i+1)); echo $i; done"
    _, text = await lab.run("sh", "-c", script, resources=Resources(pids_max=20))
    # PID 1 and nineteen more; the twentieth fork is the 21st process... of which the first is sh.
    assert text.split("\n")[18] == "19"
    assert "can't fork" in text


async def test_cpu_quota_throttles(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        spec = lab.spec("sh", "-c", "while :; do :; done", resources=Resources(cpu_quota_us=20_000))
        await supervisor.create("c", spec)
        await supervisor.start("c")
        with trio.fail_after(30):
            while True:
                (reading,) = await supervisor.stats()
                if reading.group.throttled_periods >= 5:
                    break
                await trio.sleep(0.05)
        assert reading.group.cpu_usage_us > 0
        await supervisor.remove("c", force=True)


async def test_cpuset_binds(lab: Lab) -> None:
    _, text = await lab.run("nproc", resources=Resources(cpuset_cpus="0"))
    assert text.strip() == "1"


async def test_rlimits_and_sysctls_and_oom_score(lab: Lab) -> None:
    _, text = await lab.run(
        "sh",
        "-c",
        "ulimit -n; cd /proc; cat sys/net/ipv4/ip_forward sys/kernel/msgmax 1/oom_score_adj",
        rlimits=(Rlimit(type="RLIMIT_NOFILE", soft=100, hard=200),),
        sysctls={"net.ipv4.ip_forward": "1", "kernel.msgmax": "4096"},
        oom_score_adj=500,
    )
    assert text.split() == ["100", "1", "4096", "500"]


async def test_device_by_request(lab: Lab) -> None:
    device = Device(path="/dev/fuse", type="c", major=10, minor=229, mode=0o600)
    code, text = await lab.run(
        "sh", "-c", "exec 3<>/dev/fuse && stat -c %a /dev/fuse", devices=(device,)
    )
    assert (code, text) == (0, "600\n")


async def test_working_directory_is_made(lab: Lab) -> None:
    assert await lab.run("pwd", cwd="/srv/app") == (0, "/srv/app\n")


async def test_unconfined_by_request(lab: Lab) -> None:
    _, text = await lab.run(
        "grep",
        "-E",
        "Seccomp:|NoNewPrivs:",
        "/proc/self/status",
        seccomp=Seccomp(profile="unconfined"),
        no_new_privileges=False,
    )
    assert dict(each_line(text)) == {"NoNewPrivs": "0", "Seccomp": "0"}


async def test_filter_without_no_new_privileges(lab: Lab) -> None:
    _, text = await lab.run(
        "grep", "-E", "Seccomp:|NoNewPrivs:", "/proc/self/status", no_new_privileges=False
    )
    assert dict(each_line(text)) == {"NoNewPrivs": "0", "Seccomp": "2"}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no-such", 'command "no-such" not found in the image'),
        ("/no/such", 'command "/no/such" not found in the image'),
        ("/etc/passwd", 'command "/etc/passwd" is not executable'),
        ("/arm", 'command "/arm" is built for aarch64, this host is x86_64'),
        ("/script", 'command "/script" needs /bin/bash, which is not in the image'),
        ("/text", "is no program that this kernel can execute"),
    ],
)
async def test_commands_that_cannot_run(
    lab: Lab, tmp_path: Path, command: str, message: str
) -> None:
    top = tmp_path / "top"
    top.mkdir()
    elf = b"\x7fELF\x02\x01\x01" + b"\0" * 9 + b"\x02\0" + (183).to_bytes(2, "little")
    for name, content in (
        ("arm", elf + b"\0" * 64),
        ("script", b"#!/bin/bash\necho\n"),
        ("text", b"hello\n"),
    ):
        (top / name).write_bytes(content)
        (top / name).chmod(0o755)
    async with lab.supervisor() as supervisor:
        await supervisor.create(
            "c", lab.spec(command, root=Root(layers=(str(lab.layer), str(top))))
        )
        with pytest.raises(RuntimeFailure) as caught:
            await supervisor.start("c")
        assert message in str(caught.value)
        assert (await supervisor.wait("c")).code == 127
        await supervisor.remove("c")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mounts": (Mount(target="/x", source="/no/such/place"),)}, "/no/such/place"),
        ({"namespaces": Namespaces(network="/no/such/netns")}, "/no/such/netns"),
        ({"root": Root(layers=("/no/such/layer",))}, "/no/such/layer"),
        ({"resources": Resources(cpuset_cpus="4000")}, "cpuset.cpus"),
    ],
)
async def test_failed_creation_leaves_nothing(
    lab: Lab, fields: dict[str, object], message: str
) -> None:
    before = host_picture(lab)
    async with lab.supervisor() as supervisor:
        with pytest.raises(RuntimeFailure) as caught:
            await supervisor.create("c", lab.spec("true", **fields))
        assert message in str(caught.value)
        assert caught.value.advice
        assert supervisor.containers == {}
    assert host_picture(lab) == before


async def test_image_link_does_not_lead_out(lab: Lab, tmp_path: Path) -> None:
    """A link in the image at a mount's target resolves inside the root."""
    top, outside, source = tmp_path / "top", tmp_path / "outside", tmp_path / "source"
    for folder in (top, outside, source):
        folder.mkdir()
    (top / "data").symlink_to(f"../../../../../..{outside}")
    root = Root(layers=(str(lab.layer), str(top)))
    mounts = (Mount(target="/data/sub", source=str(source)),)
    code, _ = await lab.run("sh", "-c", "touch /data/sub/here", root=root, mounts=mounts)
    assert code == 0
    assert list(outside.iterdir()) == []
    assert [path.name for path in source.iterdir()] == ["here"]


async def test_names_are_taken_once_and_must_be_names(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        await supervisor.create("c", lab.spec("true"))
        with pytest.raises(RuntimeFailure, match="exists already"):
            await supervisor.create("c", lab.spec("true"))
        for name in ("", "../x", "a/b", "-x", "x" * 129):
            with pytest.raises(SpecError):
                await supervisor.create(name, lab.spec("true"))
        await supervisor.remove("c")
        await supervisor.remove("c")  # gone is fine
