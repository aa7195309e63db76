"""User namespaces: the plan, the ranges, and what the kernel makes of them."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay import netns
from swarmlet.runtime import steps
from swarmlet.runtime import syscalls as linux
from swarmlet.runtime.decoding import SpecError
from swarmlet.runtime.failures import RuntimeFailure
from swarmlet.runtime.host import Host
from swarmlet.runtime.idranges import (
    DEFAULT_BASE,
    RANGE_SIZE,
    IdRanges,
    file_system_of,
    is_visible,
    read_ranges,
    refusal,
)
from swarmlet.runtime.spec import (
    Capabilities,
    ContainerSpec,
    Device,
    File,
    IdMapping,
    Mount,
    Namespaces,
    Process,
    Resources,
    Root,
    User,
)
from tests.runtime.lab import Lab, host_picture, own_descriptors, run, wait_for_output
from tests.runtime.recorder import HYBRID, kinds, make, spec_of

PRIVATE = Namespaces(user="private")
MAPPING = (IdMapping(container_id=0, host_id=200_000, size=RANGE_SIZE),)
LIMITS = Resources(memory_bytes=64 << 20, pids_max=50)


def mapped(**changes: Any) -> ContainerSpec:
    changes.setdefault("namespaces", PRIVATE)
    return spec_of(uid_mappings=MAPPING, gid_mappings=MAPPING, **changes)


# The plan.


def test_birth_with_its_own_users() -> None:
    """What needs the host's root comes before, what the container shall own after."""
    made = make(mapped(hostname="box", files=(File(path="/s", content=b"x"),)), HYBRID)
    birth = kinds(made.birth)
    order = [
        "join_cgroup",
        "unshare",
        "open_stdio",  # in a folder of the host's root
        "set_oom_score",  # in the container's /proc it belongs to the host's root
        "make_tree",  # proc, while the host's is in sight
        "place_tree",
        "enter_folder",
        "become_root",
        "write_secret",
        "mount_overlay",
        "pivot_root",
        "set_hostname",
    ]
    places = [birth.index(name) for name in order]
    assert places == sorted(places)
    assert "make_node" not in birth, "mknod(2) is not for a user namespace"
    (overlay,) = [step for step in made.birth if isinstance(step, steps.MountOverlay)]
    assert overlay.user_xattrs
    assert not overlay.upper.startswith("/"), "named from the workshop"


def test_what_the_zygote_does_for_it() -> None:
    spec = mapped(
        namespaces=Namespaces(user="private", network="/n"),
        sysctls={"net.core.somaxconn": "7", "kernel.shmmni": "9"},
        mounts=(Mount(target="/m", source="/m"),),
    )
    made = make(spec)
    clone = made.clone
    assert clone.flags & linux.CLONE_NEWUSER
    assert not clone.flags & linux.CLONE_NEWNET
    assert clone.uid_map == clone.gid_map == "0 200000 65536\n"
    assert clone.joins == (("network", "/n"),)
    mapping = {"layer0": "must", "layer1": "must", "upper": "must", "mount0": "try"}
    assert dict(clone.trees) == mapping
    held = [step.slot for step in made.prepare if isinstance(step, steps.HoldTree)]
    assert held == [slot for slot, _ in clone.trees], "descriptors are told apart by their order"
    assert [view[0] for view in clone.views] == ["sysfs"], "of a network that is not its own"
    assert clone.sysctls["net.core.somaxconn"] == "7"
    inner = {step.name for step in made.birth if isinstance(step, steps.SetSysctl)}
    assert inner == {"kernel.shmmni"}, "the others belong to the network's owner"


def test_a_host_that_cannot_says_so() -> None:
    with pytest.raises(SpecError, match=r"namespaces\.user: this host's kernel has no user"):
        make(mapped(), Host(user_namespaces=False))


def test_too_many_trees_are_named() -> None:
    mounts = tuple(Mount(target=f"/m{n}", source=f"/m{n}") for n in range(250))
    with pytest.raises(SpecError, match="mounts: 253 mounts and layers are more than"):
        make(mapped(mounts=mounts))


# Ranges.


@given(st.sets(st.integers(0, 29), max_size=29), st.integers(-1, 40))
def test_the_next_free_range_is_taken(used: set[int], last: int) -> None:
    ranges = IdRanges(100_000, 30 * RANGE_SIZE)
    begins = [100_000 + number * RANGE_SIZE for number in used]
    free = ranges.free(begins, after=100_000 + last * RANGE_SIZE)
    number = (free.host_id - 100_000) // RANGE_SIZE
    unused = sorted(set(range(30)) - used)
    assert number == next((n for n in unused if n > last), unused[0])
    assert (free.container_id, free.size) == (0, RANGE_SIZE)


def test_no_free_range_is_named() -> None:
    ranges = IdRanges(100_000, 2 * RANGE_SIZE)
    with pytest.raises(SpecError, match="all 2 ranges of ids are in use: give swarmlet more"):
        ranges.free([100_000, 100_000 + RANGE_SIZE])


@pytest.mark.parametrize(
    ("subuid", "subgid", "expected"),
    [
        ("swarmlet:100000:131072\n", "swarmlet:100000:131072\n", IdRanges(100000, 131072)),
        (
            "a:1:2\nswarmlet:5000000:300000\n",
            "swarmlet:5100000:400000\n",
            IdRanges(5100000, 200000),
        ),
        ("swarmlet:100000:1000\n", "swarmlet:100000:1000\n", IdRanges()),  # too few for one
        ("swarmlet:x:y\n", "", IdRanges()),
        ("", "swarmlet:100000:131072\n", IdRanges()),
    ],
)
def test_ranges_come_from_subuid(
    tmp_path: Path, subuid: str, subgid: str, expected: IdRanges
) -> None:
    (tmp_path / "subuid").write_text(subuid)
    (tmp_path / "subgid").write_text(subgid)
    assert read_ranges(tmp_path) == expected


def test_default_ranges_may_ping_and_are_nobodys() -> None:
    """icmp(7): no group above 2^31 - 1 may; systemd's lists end at 0x6FFFFFFF and 0x7FFE0000."""
    ranges = IdRanges()
    assert DEFAULT_BASE > 1879048191
    assert ranges.base + ranges.count <= 0x7FFE_0000


def test_file_systems_that_cannot_be_mapped_are_named() -> None:
    mountinfo = (
        "1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:9 / /srv/my\\040data rw - nfs4 x rw\n"
        "3 1 0:8 / /run rw - tmpfs tmpfs rw\n"
    )
    assert file_system_of("/srv/my data/x", mountinfo) == "nfs4"
    assert file_system_of("/srv/my datax", mountinfo) == "ext4"
    assert file_system_of("/running", mountinfo) == "ext4"
    assert "5.19" in refusal(Host(user_namespaces=False), "/")
    assert "on proc, whose owners kernel 6.1 cannot map" in refusal(Host(), "/proc/self")


def test_a_covered_proc_is_no_place_for_user_namespaces() -> None:
    host = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
30 22 0:29 / /proc/sys/fs/binfmt_misc rw,relatime - autofs systemd-1 rw
23 27 0:22 / /sys rw,relatime - sysfs sysfs rw
"""
    assert is_visible("proc", host)
    assert is_visible("sysfs", host)
    covered = host + "31 22 0:21 /sys /proc/sys ro,relatime - proc proc rw\n"
    assert not is_visible("proc", covered)
    assert is_visible("sysfs", covered)
    assert is_visible("proc", covered + "40 27 0:21 / /mnt/proc rw,relatime - proc proc rw\n")
    assert not is_visible("sysfs", host.replace("/sys rw", "/sys ro"))


# The kernel.


@pytest.mark.level4
async def test_root_is_nobody_outside(lab: Lab) -> None:
    before = host_picture(lab)
    async with lab.supervisor() as supervisor:
        script = "id -u; cat /proc/self/uid_map; echo ready; sleep 100"
        for name in ("a", "b"):
            await supervisor.create(name, lab.spec("sh", "-c", script, namespaces=PRIVATE))
            await supervisor.start(name)
            await wait_for_output(supervisor, name, "ready")
        bases = set()
        for name in ("a", "b"):
            state = supervisor.containers[name]
            uid = os.stat(f"/proc/{state.pid}").st_uid
            assert uid == state.spec.uid_mappings[0].host_id >= DEFAULT_BASE
            bases.add(uid)
        assert len(bases) == 2, "no two containers share a range"
        await supervisor.remove("a", force=True)
        await supervisor.create("c", lab.spec("true", namespaces=PRIVATE))
        for name in ("b", "c"):
            await supervisor.remove(name, force=True)
    assert host_picture(lab) == before


@pytest.mark.level4
async def test_files_are_the_containers_own_and_count_from_zero_on_the_disk(
    lab: Lab, tmp_path: Path
) -> None:
    upper, volume, host_folder = tmp_path / "up", tmp_path / "volume", tmp_path / "folder"
    host_folder.mkdir()
    (host_folder / "theirs").write_text("x")
    os.chown(host_folder / "theirs", 1000, 1000)
    script = (
        "touch /root/mine && rm /etc/passwd && rm -r /home && mkdir /home && touch /vol/v /dir/d &&"
        "chown 1000:1000 /vol/v && stat -c '%n %u' /bin/busybox /dir/theirs /etc/hosts && id -u"
    )
    fields: dict[str, Any] = {
        "namespaces": PRIVATE,
        "hosts": "127.0.0.1 localhost\n",
        "root": Root(layers=(str(lab.layer),), upper=str(upper)),
        "mounts": (
            Mount(target="/vol", source=str(volume), type="volume"),
            Mount(target="/dir", source=str(host_folder)),
        ),
    }
    code, text = await lab.run("sh", "-c", script, **fields)
    assert (code, text) == (0, "/bin/busybox 0\n/dir/theirs 1000\n/etc/hosts 0\n0\n")
    for path, uid in (
        (upper / "root/mine", 0),
        (upper / "home", 0),
        (volume / "v", 1000),
        (host_folder / "d", 0),
    ):
        assert path.stat().st_uid == uid, path
    assert (upper / "etc/passwd").stat().st_rdev == 0, "a whiteout"
    # The same writable layer under another range.
    again = "test ! -e /etc/passwd && ls -A /home && stat -c %u /root/mine"
    async with lab.supervisor() as supervisor:
        await supervisor.create("first", lab.spec("sleep", "100", namespaces=PRIVATE))
        assert await run(supervisor, lab.spec("sh", "-c", again, **fields)) == (0, "0\n")
        await supervisor.remove("first", force=True)


@pytest.mark.level4
async def test_confined_as_any_other(lab: Lab) -> None:
    script = (
        "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; cat /proc/1/oom_score_adj;"
        "mknod /n c 1 3; unshare -U true; echo x > /proc/sys/kernel/core_pattern;"
        "echo 1 > /proc/sys/vm/drop_caches; mount -t tmpfs x /tmp; ls /proc/keys | wc -l;"
        "hostname; cat /proc/sys/kernel/shmmni; ls /dev | tr '\\n' ' '"
    )
    code, text = await lab.run(
        "sh", "-c", f"({script}) 2>&1", namespaces=PRIVATE, hostname="box", oom_score_adj=300,
        sysctls={"kernel.shmmni": "77"}, resources=LIMITS,
    )  # fmt: skip
    assert code == 0, text
    assert "CapEff:\t00000000a80425fb" in text
    assert "NoNewPrivs:\t1" in text
    assert "Seccomp:\t2" in text
    assert "\n300\n" in text
    assert text.count("not permitted") >= 2, text
    assert "drop_caches: Read-only" in text
    assert (
        text.endswith(
            "box\n77\nconsole core fd full mqueue null ptmx pts random shm stderr stdin stdout tty "
            "urandom zero "
        )
        or "box\n77\nfd full mqueue null ptmx pts random shm stderr" in text
    ), text


@pytest.mark.level4
async def test_secrets_users_and_exec(lab: Lab) -> None:
    files = (File(path="/run/secret", content=b"s3cret", uid=1000, gid=1000, mode=0o400),)
    before = own_descriptors()
    async with lab.supervisor() as supervisor:
        spec = lab.spec("sleep", "100", namespaces=PRIVATE, files=files, resources=LIMITS)
        await supervisor.create("c", spec)
        await supervisor.start("c")
        script = "id; cat /run/secret; echo again > /dev/stdout; readlink /proc/self/ns/user"
        inside = Process(args=("sh", "-c", script), user=User(user="app"))
        async with await supervisor.exec("c", inside) as session:
            assert session.stderr is not None
            text = b"".join([chunk async for chunk in session.stdout]).decode()
            errors = b"".join([chunk async for chunk in session.stderr]).decode()
            assert (await session.wait()).code == 0, errors
        pid = supervisor.containers["c"].pid
        assert text.splitlines() == [
            "uid=1000(app) gid=1000(app) groups=2000(extra)",
            "s3cretagain",
            os.readlink(f"/proc/{pid}/ns/user"),
        ]
        terminal = Process(args=("sh", "-c", "tty; id -u"), terminal=True)
        async with await supervisor.exec("c", terminal) as session:
            text = b"".join([chunk async for chunk in session.stdout]).decode()
        assert text == "/dev/pts/0\r\n0\r\n"
        await supervisor.remove("c", force=True)
    assert own_descriptors() == before


@pytest.mark.level4
async def test_output_can_be_opened_again_by_anyone(lab: Lab) -> None:
    spec = {"namespaces": PRIVATE, "user": User(user="app")}
    assert await lab.run("sh", "-c", "echo hi > /dev/stdout", **spec) == (0, "hi\n")


@pytest.mark.level4
async def test_container_with_a_terminal(lab: Lab) -> None:
    async with lab.supervisor() as supervisor:
        script = "tty; stat -c %U /dev/console"
        spec = lab.spec("sh", "-c", script, namespaces=PRIVATE, terminal=True)
        code, text = await run(supervisor, spec)
        assert (code, text) == (0, "/dev/pts/0\r\nroot\r\n")


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Path]:
    """A network namespace as overlay makes them: it belongs to the host's root."""
    path = tmp_path / "netns"
    netns.run_in_thread(lambda: netns.create(path))
    yield path
    netns.remove(path)


@pytest.mark.level4
async def test_network_of_the_hosts_root(lab: Lab, network: Path) -> None:
    """It may use it as anyone: low ports, its own sysfs; but not change it nor listen in."""
    script = (
        "ls /sys/class/net; cat /proc/sys/net/core/somaxconn;"
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; (nc -l -p 80 & sleep 0.1; kill $!);"
        "ip link set lo up; ping -c 1 127.0.0.1"
    )
    code, text = await lab.run(
        "sh", "-c", f"({script}) 2>&1", user=User(user="app"),
        namespaces=Namespaces(user="private", network=str(network)),
        sysctls={"net.core.somaxconn": "77"},
    )  # fmt: skip
    assert code != 0
    assert text.startswith("lo\n77\n0\n"), text
    assert "bind" not in text, text
    assert "Operation not permitted" in text, text
    ranges = netns.run_in_netns(
        network, Path("/proc/sys/net/ipv4/ping_group_range").read_text
    ).split()
    assert ranges == ["0", "2147483647"], "ping without a raw socket"


@pytest.mark.level4
async def test_network_of_its_own_users(lab: Lab, tmp_path: Path) -> None:
    """A network that was made for it: its root may ping, and with the capability change it."""
    path = tmp_path / "netns"
    async with lab.supervisor() as supervisor:
        async with supervisor.new_network() as descriptor:
            netns.run_in_thread(lambda: netns.create(path, descriptor))
        namespaces = Namespaces(user="network", network=str(path))
        script = "ip link set lo up && ping -c 1 127.0.0.1 && ls /sys/class/net"
        may = Capabilities.adjusted(add=["NET_ADMIN"])
        spec = lab.spec("sh", "-c", script, namespaces=namespaces, capabilities=may)
        await supervisor.create("c", spec)
        mapping = supervisor.containers["c"].spec.uid_mappings[0]
        assert mapping.host_id >= DEFAULT_BASE
        assert os.stat(f"/proc/{supervisor.containers['c'].pid}").st_uid == mapping.host_id
        await supervisor.remove("c")
        code, text = await run(supervisor, spec)
        assert code == 0, text
        assert "1 packets received" in text
        assert text.endswith("lo\n")
    netns.remove(path)


@pytest.mark.level4
async def test_network_that_the_host_owns_is_only_used(lab: Lab, network: Path) -> None:
    async with lab.supervisor() as supervisor:
        namespaces = Namespaces(user="network", network=str(network))
        await supervisor.create("c", lab.spec("true", namespaces=namespaces))
        assert supervisor.containers["c"].spec.namespaces.user == "private"
        await supervisor.remove("c")


@pytest.mark.level4
@pytest.mark.parametrize("kind", ["pid", "network", "ipc", "uts", "cgroup"])
async def test_other_namespaces_of_the_host(lab: Lab, kind: str) -> None:
    file = {"network": "net"}.get(kind, kind)
    namespaces = Namespaces(user="private", **{kind: "host"})
    script = f"readlink /proc/self/ns/{file}; test -d /proc/1 -a -d /sys/class -a -d /dev/mqueue"
    code, text = await lab.run("sh", "-c", script, namespaces=namespaces, hostname="box")
    assert (code, text) == (0, os.readlink(f"/proc/self/ns/{file}") + "\n")


@pytest.mark.level4
async def test_joining_another_container(lab: Lab) -> None:
    """Its user namespace is joined with the others: one range, one /proc, signals arrive."""
    async with lab.supervisor() as supervisor:
        await supervisor.create("a", lab.spec("sleep", "100", namespaces=PRIVATE))
        await supervisor.start("a")
        pid = supervisor.containers["a"].pid
        where = {
            name: f"/proc/{pid}/ns/{file}"
            for name, file in (("user", "user"), ("pid", "pid"), ("ipc", "ipc"), ("network", "net"))
        }
        spec = lab.spec(
            "sh", "-c", "ps; touch /x; kill -9 1; kill 1", namespaces=Namespaces(**where)
        )
        code, text = await run(supervisor, spec, "b")
        assert "sleep 100" in text
        assert code == 0
        assert supervisor.containers["a"].status.running, "pid 1 is protected by its namespace"
        await supervisor.remove("a", force=True)


@pytest.mark.level4
async def test_a_device_by_request(lab: Lab) -> None:
    device = Device(path="/dev/mine", type="c", major=1, minor=5, mode=0o600, uid=1000)
    script = "stat -c '%u %a' /dev/mine; head -c 3 /dev/mine | od -An -tx1"
    fields = {"namespaces": PRIVATE, "devices": (device,), "user": User(user="app")}
    assert await lab.run("sh", "-c", script, **fields) == (0, "1000 600\n 00 00 00\n")


@pytest.mark.level4
async def test_file_capabilities_of_the_image_hold(lab: Lab, tmp_path: Path) -> None:
    """security.capability belongs to the layer's root, which is the container's."""
    layer = tmp_path / "caps"
    (layer / "may").mkdir(parents=True)
    (layer / "may/busybox").write_bytes((lab.layer / "bin/busybox").read_bytes())
    (layer / "may/busybox").chmod(0o755)
    # <linux/capability.h>: VFS_CAP_REVISION_2 with the effective flag, CAP_NET_RAW permitted.
    value = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
    os.setxattr(layer / "may/busybox", "security.capability", value)
    fields: dict[str, Any] = {
        "namespaces": PRIVATE,
        "root": Root(layers=(str(lab.layer), str(layer))),
        "user": User(user="app"),
        "no_new_privileges": False,
    }
    code, text = await lab.run("/may/busybox", "grep", "CapEff", "/proc/self/status", **fields)
    assert (code, text) == (0, "CapEff:\t0000000000002000\n")


@pytest.mark.level4
async def test_what_cannot_be_mapped_is_shown_as_it_is(lab: Lab) -> None:
    mounts = (Mount(target="/hostproc", source="/proc/sys", readonly=True),)
    code, text = await lab.run("stat", "-c", "%u", "/hostproc", namespaces=PRIVATE, mounts=mounts)
    assert (code, text) == (0, "65534\n")


@pytest.mark.level4
async def test_failures_leave_nothing(lab: Lab, tmp_path: Path) -> None:
    before, descriptors = host_picture(lab), own_descriptors()
    async with lab.supervisor() as supervisor:
        for fields, message in (
            ({"mounts": (Mount(target="/x", source=str(tmp_path / "no")),)}, "hold tree"),
            (
                {"namespaces": Namespaces(user="private", network="/no")},
                "network namespace /no is gone",
            ),
            ({"user": User(user="nobody-here")}, 'user "nobody-here" not found'),
            ({"root": Root(layers=(str(tmp_path / "none"),))}, "hold tree"),
            ({"root": Root(layers=("/proc/sys",))}, "file system cannot map owners"),
        ):
            with pytest.raises(RuntimeFailure, match=message):  # noqa: PT012 (either of the two)
                await supervisor.create("c", lab.spec("true", **{"namespaces": PRIVATE, **fields}))
                await supervisor.start("c")
            await supervisor.remove("c")
        assert await run(supervisor, lab.spec("true", namespaces=PRIVATE)) == (0, "")
    assert host_picture(lab) == before
    assert own_descriptors() == descriptors
