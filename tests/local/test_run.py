"""Containers run by hand with the stock docker client, on a host that is in no swarm."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import trio

from tests.lab import eventually, residue
from tests.local.box import both_clients, box
from tests.local.terminals import terminal

pytestmark = pytest.mark.level5

EVERYTHING = """
create --name all -u 1:2 -w /tmp -e A=1 -l k=v --entrypoint sh --cap-add NET_ADMIN --cap-drop CHOWN
--dns 10.0.0.53 --dns-search x.y --dns-option ndots:2 --add-host db:10.0.0.1
--device /dev/null:/dev/nil:rw --device-cgroup-rule RULE --group-add 5 --ipc host --pid host
--uts host --log-opt max-size=1m --memory 64m --memory-reservation 32m --cpus 0.5 --cpu-shares 512
--cpuset-cpus 0 --pids-limit 50 --oom-score-adj 100 --read-only --restart on-failure:3
--security-opt no-new-privileges --shm-size 32m --stop-signal INT --stop-timeout 3
--sysctl net.ipv4.ip_forward=0 --tmpfs /t:size=1m --ulimit nofile=100:200 -v data:/data
-v /etc:/host:ro -p 127.0.0.1:8080:80/udp --expose 99 --annotation a=b --health-cmd true
--health-retries 2 -t -i --mac-address 02:00:00:00:00:07 busybox -c true
"""
SERVE = ("httpd", "-f", "-p", "80", "-h", "/var/www")


@both_clients
async def test_output_errors_input_and_exit_code_are_the_commands(client: str) -> None:
    async with box(client) as b:
        done = await b.docker(
            "run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 3", check=False
        )
        assert (done.code, done.stdout, done.stderr) == (3, "out\n", "err\n")
        text = "a line\n" * 20_000
        done = await b.docker("run", "--rm", "-i", "busybox", "wc", "-c", stdin=text)
        assert done.stdout.strip() == str(len(text))
        done = await b.docker("run", "--rm", "-i", "busybox", "cat", stdin=text)
        assert done.stdout == text
        # A flood that somebody reads to its end is whole.
        done = await b.docker("run", "--rm", "busybox", "seq", "1", "200000")
        assert done.stdout.splitlines()[-1] == "200000"
        assert len(done.stdout.splitlines()) == 200_000
        assert await b.names("-a") == []


@both_clients
async def test_exit_codes_say_why_a_command_did_not_run(client: str) -> None:
    async with box(client) as b:
        said = await b.refused("run", "--rm", "busybox", "nosuch", code=127)
        assert 'command "nosuch" not found' in said
        said = await b.refused("run", "--rm", "busybox", "/etc/passwd", code=126)
        assert "permission denied" in said
        said = await b.refused("run", "--pull", "never", "nosuch:1", "true", code=125)
        assert "No such image: nosuch:1" in said
        # What could not be started is there to be looked at, as with Docker.
        await b.refused("run", "--name", "bad", "busybox", "nosuch", code=127)
        assert await b.state("bad") == "created"
        assert (await b.inspect("bad"))["State"]["ExitCode"] == 127
        assert "not found" in (await b.inspect("bad"))["State"]["Error"]
        assert await b.names("-a") == ["bad"]


async def test_stop_and_start_keep_the_files_and_the_log() -> None:
    async with box() as b:
        script = "date +%s%N >> /count; wc -l < /count; exec sleep 1000"
        await b.docker("create", "--name", "web", "busybox", "sh", "-c", script)
        assert await b.state("web") == "created"
        for lives in (1, 2, 3):
            await b.docker("start", "web")
            await eventually(
                lambda: b.out("logs", "web"),
                until=lambda said, lives=lives: said.split() == [str(n + 1) for n in range(lives)],
            )
            assert await b.out("exec", "web", "wc", "-l", "/count") == f"{lives} /count"
            assert await b.out("stop", "-t", "0", "web") == "web"
            assert await b.state("web") == "exited"
        assert await b.out("logs", "--tail", "2", "web") == "2\n3"
        await b.docker("restart", "-t", "0", "web")
        assert await b.state("web") == "running"
        assert "cannot remove container" in await b.refused("rm", "web")
        await b.docker("rm", "-f", "web")
        assert "No such container: web" in await b.refused("logs", "web")


async def test_a_published_port_leads_in_and_belongs_to_one() -> None:
    async with box() as b:
        await b.docker("run", "-d", "--name", "web", "-p", "8080:80", "busybox", *SERVE)
        await b.wait_serving(8080)
        assert await b.out("port", "web") == "80/tcp -> 0.0.0.0:8080"
        assert "0.0.0.0:8080->80/tcp" in await b.out("ps")
        said = await b.refused("run", "--rm", "-p", "8080:80", "busybox", "true", code=125)
        assert "port is already allocated" in said
        assert "container web" in said
        # On one address of the host only.
        local = ["-p", "127.0.0.1:8081:80"]
        await b.docker("run", "-d", "--name", "local", *local, "busybox", *SERVE)
        assert "It works." not in await b.ask(8081)
        done = await b.host.run("curl", "-sS", "--max-time", "5", "http://127.0.0.1:8081/")
        assert done.stdout.strip() == "It works."
        # Any free port, and one for each that the image exposes.
        await b.docker("run", "-d", "--name", "any", "-P", "--expose", "80", "busybox", *SERVE)
        port = int((await b.out("port", "any", "80")).rpartition(":")[2])
        await b.wait_serving(port)
        # A program of the host has its port, and keeps it.
        listener = await b.host.popen("busybox", "nc", "-l", "-p", "8082")
        await eventually(lambda: b.host.run("ss", "-ltn"), until=lambda d: ":8082 " in d.stdout)
        said = await b.refused("run", "--rm", "-p", "8082:80", "busybox", "true", code=125)
        assert "another program of this host" in said
        await listener.kill()
        await b.docker("rm", "-f", "web")
        await b.docker("run", "-d", "--name", "web2", "-p", "8080:80", "busybox", *SERVE)
        await b.wait_serving(8080)


@both_clients
async def test_a_terminal_is_attached_detached_and_left_as_it_was(client: str) -> None:
    async with box(client) as b:
        async with terminal(b.host, client, "run", "-it", "--name", "sh", "busybox", "sh") as t:
            before = t.before
            await t.see("# ")
            assert t.modes() != before  # raw: every key is the container's
            t.type("tty; stty size; echo do''ne\n")
            await t.see("/dev/pts/0")
            await t.see("done")
            t.type("A=kept\n")
            t.type("\x10\x11")  # ctrl-p ctrl-q
            assert await t.end() == 0
            assert t.modes() == before
        assert await b.state("sh") == "running"
        async with terminal(b.host, client, "attach", "--detach-keys", "ctrl-x", "sh") as t:
            t.type("\n")
            await t.see("# ")
            t.type("echo $A; exit 7\n")
            await t.see("kept")
            assert await t.end() == 7
        assert (await b.inspect("sh"))["State"]["ExitCode"] == 7


@both_clients
async def test_signals_reach_the_command_through_the_client(client: str) -> None:
    async with box(client) as b:
        script = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.1; done"
        client = await b.host.popen(client, "run", "--name", "trap", "busybox", "sh", "-c", script)
        await eventually(
            lambda: b.docker("logs", "trap", check=False), until=lambda d: "ready" in d.stdout
        )
        client.send(signal.SIGINT)
        with trio.fail_after(20):
            assert await client.wait() == 5
        assert await b.out("logs", "trap") == "ready\ncaught"


@both_clients
async def test_wait_pause_kill_rename_and_update(client: str) -> None:
    async with box(client) as b:
        await b.docker("run", "-d", "--name", "one", "busybox", "sleep", "1000")
        await b.docker("rename", "one", "two")
        assert await b.names() == ["two"]
        await b.docker("pause", "two")
        assert await b.state("two") == "paused"
        assert "(Paused)" in await b.out("ps")
        assert "is paused" in await b.refused("exec", "two", "true")
        await b.docker("unpause", "two")
        await b.docker("update", "--memory", "64m", "--memory-swap", "128m", "two")
        limit = "/sys/fs/cgroup/memory/memory.limit_in_bytes"
        assert await b.out("exec", "two", "cat", limit) == str(64 << 20)
        assert (await b.inspect("two"))["HostConfig"]["Memory"] == 64 << 20
        await b.docker("update", "--restart", "always", "two")
        assert (await b.inspect("two"))["HostConfig"]["RestartPolicy"]["Name"] == "always"
        waiting = await b.host.popen(client, "wait", "two")
        await b.docker("kill", "two")
        with trio.fail_after(20):
            assert await waiting.wait() == 0
        # Killed by hand: no policy starts it again.
        assert await b.out("wait", "two") == "137"
        assert await b.state("two") == "exited"


async def test_policies_restart_what_crashes_and_say_how_often() -> None:
    async with box() as b:
        crash = ("busybox", "sh", "-c", "echo again; exit 4")
        await b.docker("run", "-d", "--name", "crash", "--restart", "on-failure:2", *crash)
        # A restart counts from the decision on, so the last run is over at the exit after it.
        await eventually(lambda: b.inspect("crash"), until=lambda c: c["RestartCount"] == 2)
        await b.wait_state("crash", "exited")
        assert (await b.out("logs", "crash")).split() == ["again"] * 3
        await b.docker("run", "-d", "--name", "loop", "--restart", "always", *crash)
        await eventually(
            lambda: b.inspect("loop"), until=lambda c: c["RestartCount"] >= 3, within=20
        )
        await b.docker("stop", "loop")
        count = (await b.inspect("loop"))["RestartCount"]
        await b.docker("run", "--rm", "busybox", "sleep", "1")  # longer than any pause that was due
        assert (await b.inspect("loop"))["RestartCount"] == count
        assert await b.state("loop") == "exited"


async def test_containers_do_not_notice_that_the_daemon_is_killed() -> None:
    async with box() as b:
        await b.docker("run", "-d", "--name", "web", "-p", "8080:80", "busybox", *SERVE)
        await b.docker("run", "-d", "--name", "soon", "busybox", "sh", "-c", "sleep 1; exit 9")
        await b.docker("create", "--name", "idle", "busybox", "true")
        before = await b.inspect("web")
        await b.host.stop_daemon(signal.SIGKILL)
        await b.wait_serving(8080)
        await trio.sleep(1.5)  # while the daemon is away one of them ends
        await b.host.start_daemon()
        await b.host.wait_ready()
        after = await b.inspect("web")
        assert after["State"]["Pid"] == before["State"]["Pid"]
        assert after["NetworkSettings"] == before["NetworkSettings"]
        await b.wait_serving(8080)
        await b.wait_state("soon", "exited")
        assert (await b.inspect("soon"))["State"]["ExitCode"] == 9
        assert await b.state("idle") == "created"
        assert await b.out("exec", "web", "echo", "still") == "still"


async def test_after_a_reboot_the_policies_decide_with_nobody_in_reach() -> None:
    async with box() as b:
        count = "echo x >> /lives; exec sleep 1000"
        for name, policy in (
            ("always", "always"),
            ("unless", "unless-stopped"),
            ("stopped", "unless-stopped"),
            ("no", "no"),
        ):
            options = ["--name", name, "--restart", policy]
            await b.docker("run", "-d", *options, "busybox", "sh", "-c", count)
        await b.docker("run", "-d", "--rm", "--name", "gone", "busybox", "sleep", "1000")
        await b.docker("stop", "-t", "0", "stopped")
        await b.host.reboot()
        await b.host.start_daemon()
        await b.host.wait_ready()
        for name in ("always", "unless"):
            await b.wait_state(name, "running")
            lives = await b.out("exec", name, "cat", "/lives")
            assert lives.split() == ["x", "x"]
        assert await b.state("stopped") == "exited"
        assert await b.state("no") == "exited"
        assert (await b.inspect("no"))["State"]["ExitCode"] == 255
        assert await b.names("-a") == ["always", "no", "stopped", "unless"]


async def test_nothing_is_left_of_what_was_removed() -> None:
    async with box() as b:
        before = sorted(p.relative_to(b.host.state_dir) for p in b.host.state_dir.rglob("*"))
        options = ["-p", "8080:80", "--memory", "64m", "-v", "/data"]
        await b.docker("run", "-d", "--name", "web", *options, "busybox", *SERVE)
        await b.docker("run", "--rm", "busybox", "true")
        await b.docker("network", "create", "yard")
        await b.docker("run", "-d", "--name", "in", "--network", "yard", "busybox", *SERVE)
        await b.docker("rm", "-f", "-v", "web", "in")
        await b.docker("network", "rm", "yard")

        async def left() -> list[str]:
            found = [line for line in await residue(b.host) if "swl" in line or "netns" in line]
            return found

        await eventually(left, until=lambda found: not found, within=30)
        kept = {"local", "local/containers", "local/networks", "network", "volumes"}
        now = {
            str(p.relative_to(b.host.state_dir))
            for p in b.host.state_dir.rglob("*")
            if not str(p.relative_to(b.host.state_dir)).startswith("images")
        }
        assert now - {str(p) for p in before} <= kept


async def test_what_cannot_be_is_refused_by_name() -> None:
    async with box() as b:
        for options, words in (
            (["--link", "x"], "HostConfig.Links"),
            (["--gpus", "all"], "HostConfig.DeviceRequests"),
            (["--storage-opt", "size=1g"], "HostConfig.StorageOpt"),
            (["--cgroup-parent", "/x"], "HostConfig.CgroupParent"),
            (["--blkio-weight", "500"], "HostConfig.BlkioWeight"),
            (["--oom-kill-disable"], "HostConfig.OomKillDisable"),
            (["--memory-swappiness", "50"], "HostConfig.MemorySwappiness"),
            (["--runtime", "kata"], "HostConfig.Runtime"),
            (["--memory", "1m"], "Minimum memory limit allowed is 6MB"),
            (["--cap-add", "NOSUCH"], "CAP_NOSUCH"),
            (["--ulimit", "nosuch=1"], "nosuch"),
            (["--sysctl", "net.ipv4.nosuch=1"], "nosuch"),
            (["-v", "/x:relative"], "must be absolute"),
            (["--mount", "type=bind,source=/nosuch,target=/x"], "does not exist"),
            (["--security-opt", "label=user:x"], "SecurityOpt"),
            (["--network", "nosuch"], "No such network: nosuch"),
            (["--network", "container:nosuch"], "No such container: nosuch"),
            (["--device", "/dev/nosuch"], "/dev/nosuch is not on this host"),
            (["--ip", "10.0.0.1"], "user defined networks only"),
            (["--log-driver", "syslog"], "log driver 'syslog' is not built"),
            (["--name", "a"], "Invalid container name"),
            (["-w", "relative"], "no absolute path"),
            (["--volumes-from", "nosuch"], "No such container: nosuch"),
            (["--stop-signal", "NOSUCH"], "NOSUCH"),
            (["--user", "nosuch"], "nosuch"),
        ):
            said = await b.refused("run", "--rm", *options, "busybox", "true", code=125)
            assert words in said, (options, said)
        assert await b.names("-a") == []
        await b.docker("run", "-d", "--name", "one", "busybox", "sleep", "1000")
        for command, words in (
            ("start nosuch", "No such container: nosuch"),
            ("run --name one busybox true", "already in use by container"),
            ("rename one one", "same name"),
            ("kill -s NOSUCH one", "NOSUCH"),
            ("unpause one", "is not paused"),
            ("exec one", "requires at least 2 arguments"),
            ("exec -u nosuch one true", "nosuch"),
            ("attach --detach-keys ctrl- one", "400"),
            ("update --memory 1m one", "Minimum memory limit"),
        ):
            done = await b.docker(*command.split(), check=False)
            assert done.code != 0, command
            assert words in done.stderr, done


async def test_a_record_that_rotted_is_named_and_the_others_live_on(tmp_path: Path) -> None:
    async with box() as b:
        await b.docker("run", "-d", "--name", "good", "busybox", "sleep", "1000")
        await b.docker("create", "--name", "bad", "busybox", "true")
        id_ = (await b.inspect("bad"))["Id"]
        await b.host.stop_daemon()
        record = b.host.state_dir / "local" / "containers" / id_ / "record"
        record.write_bytes(record.read_bytes()[:20])
        await b.host.start_daemon()
        await b.host.wait_ready()
        assert await b.names("-a") == ["good"]
        assert "is damaged" in b.host.log.read_text()
        assert record.exists()


@both_clients
async def test_inspect_shows_what_was_asked_for(client: str) -> None:
    async with box(client) as b:
        asked = ["c 1:3 rwm" if word == "RULE" else word for word in EVERYTHING.split()]
        await b.docker(*asked)
        shown = await b.inspect("all")
        config, host = shown["Config"], shown["HostConfig"]
        assert config["Cmd"] == ["-c", "true"]
        assert config["Entrypoint"] == ["sh"]
        assert "A=1" in config["Env"]
        assert (config["User"], config["WorkingDir"], config["Tty"]) == ("1:2", "/tmp", True)
        assert config["Labels"] == {"k": "v"}
        assert (config["StopSignal"], config["StopTimeout"]) == ("INT", 3)
        assert config["Healthcheck"]["Test"] == ["CMD-SHELL", "true"]
        assert set(config["ExposedPorts"]) == {"99/tcp", "80/udp"}
        expected = {
            "CapAdd": ["CAP_NET_ADMIN"],
            "CapDrop": ["CAP_CHOWN"],
            "Dns": ["10.0.0.53"],
            "DnsSearch": ["x.y"],
            "DnsOptions": ["ndots:2"],
            "ExtraHosts": ["db:10.0.0.1"],
            "DeviceCgroupRules": ["c 1:3 rwm"],
            "GroupAdd": ["5"],
            "IpcMode": "host",
            "PidMode": "host",
            "UTSMode": "host",
            "Memory": 64 << 20,
            "MemoryReservation": 32 << 20,
            "NanoCpus": 500_000_000,
            "CpuShares": 512,
            "CpusetCpus": "0",
            "PidsLimit": 50,
            "OomScoreAdj": 100,
            "ReadonlyRootfs": True,
            "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3},
            "SecurityOpt": ["no-new-privileges"],
            "ShmSize": 32 << 20,
            "Sysctls": {"net.ipv4.ip_forward": "0"},
            "Binds": ["data:/data", "/etc:/host:ro"],
            "PortBindings": {"80/udp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}]},
            "Annotations": {"a": "b"},
            "Ulimits": [{"Name": "nofile", "Hard": 200, "Soft": 100}],
        }
        assert {name: host[name] for name in expected} == expected
        assert "size=1048576" in host["Tmpfs"]["/t"]
        assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "1m"}}
        assert json.dumps(shown)
