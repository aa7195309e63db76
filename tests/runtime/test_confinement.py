"""Device rules, system call filters and control files: what is decided, without containers."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmlet.runtime import cgroups, defaults, devices, syscalls
from swarmlet.runtime.decoding import SpecError
from swarmlet.runtime.host import Hierarchy, Host, parse_cgroup_mounts, parse_kernel, probe
from swarmlet.runtime.plan import device_rules
from swarmlet.runtime.seccomp import Filters, rules_of
from swarmlet.runtime.seccomp_default import default_profile
from swarmlet.runtime.spec import (
    ContainerSpec,
    DeviceRule,
    IoLimit,
    Process,
    Resources,
    Root,
    Seccomp,
)
from swarmlet.runtime.statistics import Pressure, parse_interfaces
from tests.runtime import specs

# Devices.


def run_program(program: bytes, kind: str, access: str, major: int, minor: int) -> int:
    """Run the instructions that devices.py uses, as the kernel would."""
    mask = sum(devices.ACCESS[letter] for letter in access)
    context = struct.pack("<III", mask << 16 | devices.TYPE[kind], major, minor)
    registers = [0] * 11
    at = 0
    while True:
        code, registers_used, offset, value = struct.unpack_from("<BBhi", program, 8 * at)
        target, source = registers_used & 15, registers_used >> 4
        at += 1
        if code == devices.LOAD_WORD:
            (registers[target],) = struct.unpack_from("<I", context, offset)
        elif code == devices.MOVE:
            registers[target] = registers[source]
        elif code == devices.AND:
            registers[target] &= value & 0xFFFFFFFF
        elif code == devices.SHIFT_RIGHT:
            registers[target] >>= value
        elif code == devices.SET:
            registers[target] = value
        elif code == devices.JUMP_NOT_EQUAL:
            at += offset if registers[target] != value else 0
        elif code == devices.JUMP_EQUAL:
            at += offset if registers[target] == value else 0
        else:
            assert code == devices.EXIT
            return registers[0]


def decide(rules: list[DeviceRule], kind: str, access: str, major: int, minor: int) -> bool:
    """The rules' meaning: the last that fits decides, what nothing fits is refused."""
    for rule in reversed(rules):
        fits = (
            rule.type in ("a", kind) and rule.major in (None, major) and rule.minor in (None, minor)
        )
        touched = set(access) <= set(rule.access) if rule.allow else set(access) & set(rule.access)
        if fits and touched:
            return rule.allow
    return False


@settings(max_examples=200, deadline=None)
@given(
    st.lists(specs.device_rules, max_size=6),
    st.sampled_from("bc"),
    specs.accesses,
    st.integers(0, 3) | st.integers(0, 4095),
    st.integers(0, 3) | st.integers(0, 1 << 20),
)
def test_program_decides_as_the_rules_say(
    rules: list[DeviceRule], kind: str, access: str, major: int, minor: int
) -> None:
    program = devices.assemble(rules)
    expected = decide(rules, kind, access, major, minor)
    assert run_program(program, kind, access, major, minor) == expected


@pytest.mark.level4
@settings(max_examples=20, deadline=None)
@given(st.lists(specs.device_rules, max_size=20))
def test_the_kernel_takes_every_program(rules: list[DeviceRule]) -> None:
    os.close(syscalls.bpf_load_device_program(devices.assemble(rules)))


@pytest.mark.parametrize(
    ("kind", "access", "major", "minor", "allowed"),
    [
        ("c", "rw", 1, 3, True),
        ("c", "rw", 136, 7, True),
        ("b", "m", 8, 0, True),
        ("b", "r", 8, 0, False),
        ("c", "r", 1, 1, False),  # /dev/mem
        ("c", "rw", 10, 229, False),  # /dev/fuse
    ],
)
def test_default_devices(kind: str, access: str, major: int, minor: int, allowed: bool) -> None:
    spec = ContainerSpec(process=Process(args=("x",)), root=Root(layers=("/l",)))
    program = devices.assemble(device_rules(spec))
    assert run_program(program, kind, access, major, minor) == allowed


# System call filters.


def verdict(capabilities: tuple[str, ...], name: str, seccomp: Seccomp | None = None) -> str:
    """Load the filter in a fork, call *name* with impossible arguments: errno's name."""
    program = Filters(probe()).program(seccomp or Seccomp(), capabilities)
    assert program is not None
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        syscalls.load_seccomp(program)
        number, *arguments = CALLS[name]
        libc = ctypes.CDLL(None, use_errno=True)
        result = libc.syscall(number, *(ctypes.c_ulong(a) for a in arguments))
        code = errno.errorcode[ctypes.get_errno()] if result < 0 else "ok"
        os.write(writer, code.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    answer = os.read(reader, 64).decode()
    os.close(reader)
    os.close(writer)
    return answer


BAD = 0xDEAD0000 << 16
#: x86-64 numbers, with arguments that the kernel refuses with another errno than the filter.
CALLS = {
    "getppid": (110,),
    "mount": (165, BAD, BAD, BAD, 0, BAD),
    "bpf": (321, 999, 0, 0),
    "unshare": (272, 0x1),  # no such flag: EINVAL
    "clone_newuser": (56, 0x10000000 | 0x100, 0, 0, 0, 0),
    "clone3": (435, 0, 0),
    "keyctl": (250, 999, 0, 0, 0, 0),
    "socket_inet": (41, 2, 999, 0),
    "socket_alg": (41, 38, 999, 0),
    "socket_vsock": (41, 40, 999, 0),
    "personality": (135, 0x0400000),
    "io_uring_setup": (425, 0, 0),
    "future": (1000,),
}


@pytest.mark.level4
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are x86-64's")
@pytest.mark.parametrize(
    ("name", "capabilities", "answer"),
    [
        ("getppid", defaults.DEFAULT_CAPABILITIES, "ok"),
        ("mount", defaults.DEFAULT_CAPABILITIES, "EPERM"),
        ("mount", defaults.CAPABILITIES, "EFAULT"),
        ("bpf", defaults.DEFAULT_CAPABILITIES, "EPERM"),
        ("bpf", ("CAP_BPF",), "EINVAL"),
        ("unshare", defaults.DEFAULT_CAPABILITIES, "EPERM"),
        ("unshare", ("CAP_SYS_ADMIN",), "EINVAL"),
        ("clone_newuser", defaults.DEFAULT_CAPABILITIES, "EPERM"),
        ("clone3", defaults.DEFAULT_CAPABILITIES, "ENOSYS"),
        ("clone3", defaults.CAPABILITIES, "EINVAL"),
        ("keyctl", defaults.DEFAULT_CAPABILITIES, "EPERM"),
        ("socket_inet", defaults.DEFAULT_CAPABILITIES, "EINVAL"),
        ("socket_alg", defaults.DEFAULT_CAPABILITIES, "EPERM"),
        ("socket_vsock", defaults.DEFAULT_CAPABILITIES, "EPERM"),
        ("personality", defaults.DEFAULT_CAPABILITIES, "EPERM"),
        ("io_uring_setup", defaults.DEFAULT_CAPABILITIES, "EPERM"),
        ("future", defaults.DEFAULT_CAPABILITIES, "ENOSYS"),
    ],
)
def test_default_filter(name: str, capabilities: tuple[str, ...], answer: str) -> None:
    assert verdict(capabilities, name) == answer


@pytest.mark.level4
def test_custom_filter_in_dockers_format() -> None:
    document = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71}],
    }
    custom = Seccomp(profile="custom", document=json.dumps(document))
    assert verdict((), "getppid", custom) == errno.errorcode[71]
    assert verdict((), "socket_inet", custom) == "EINVAL"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "seccomp.document: is no JSON"),
        ('{"defaultAction": "SCMP_ACT_MAYBE"}', "defaultAction: there is no 'SCMP_ACT_MAYBE'"),
        (
            '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_ALLOW"}]}',
            r"syscalls\[0\]: KeyError",
        ),
        (
            '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["x"], "action": "NO"}]}',
            r"syscalls\[0\].action: there is no 'NO'",
        ),
    ],
)
def test_bad_documents_are_named(document: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Filters(probe()).program(Seccomp(profile="custom", document=document), ())


def test_filter_is_built_once() -> None:
    filters = Filters(probe())
    assert not filters.is_made(Seccomp(), ())
    assert filters.program(Seccomp(), ()) is filters.program(Seccomp(), ())
    assert filters.is_made(Seccomp(), ())
    assert filters.program(Seccomp(profile="unconfined"), ()) is None


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_default_rules_by_architecture(machine: str) -> None:
    rules = rules_of(default_profile(), Host(machine=machine), frozenset())
    named = {name for rule in rules for name in rule.names}
    assert ("arch_prctl" in named) == (machine == "x86_64")
    assert ("arm_fadvise64_64" in named) == (machine == "aarch64")
    assert named.isdisjoint({"mount", "bpf", "io_uring_setup", "keyctl", "init_module"})


# Control groups.

LIMITS = Resources(
    memory_bytes=64 << 20,
    memory_reservation_bytes=32 << 20,
    cpu_quota_us=50_000,
    cpu_shares=512,
    cpuset_cpus="0",
    pids_max=20,
    io=(IoLimit(device="254:0", write_bytes_per_second=4 << 20),),
)
HYBRID = Host(
    unified="/cg/unified",
    unified_controllers=(),
    hierarchies=tuple(
        Hierarchy(f"/cg/{name}", (name,)) for name in ("memory", "cpu", "cpuset", "pids", "blkio")
    ),
)


def writes(host: Host, resources: Resources) -> dict[str, str]:
    driver = cgroups.driver(host, "swarmlet")
    return {step.path: step.value for step in driver.limits("c", resources)}


def test_limits_on_v2() -> None:
    assert writes(Host(unified="/cg"), LIMITS) == {
        "/cg/swarmlet/c/memory.max": "67108864",
        "/cg/swarmlet/c/memory.swap.max": "67108864",
        "/cg/swarmlet/c/memory.low": "33554432",
        "/cg/swarmlet/c/cpu.max": "50000 100000",
        "/cg/swarmlet/c/cpu.weight": "20",
        "/cg/swarmlet/c/cpuset.cpus": "0",
        "/cg/swarmlet/c/pids.max": "20",
        "/cg/swarmlet/c/io.max": "254:0 rbps=max wbps=4194304 riops=max wiops=max",
    }


def test_limits_on_v1() -> None:
    assert writes(HYBRID, LIMITS) == {
        "/cg/memory/swarmlet/c/memory.limit_in_bytes": "67108864",
        "/cg/memory/swarmlet/c/memory.memsw.limit_in_bytes": "134217728",
        "/cg/memory/swarmlet/c/memory.soft_limit_in_bytes": "33554432",
        "/cg/cpu/swarmlet/c/cpu.cfs_period_us": "100000",
        "/cg/cpu/swarmlet/c/cpu.cfs_quota_us": "50000",
        "/cg/cpu/swarmlet/c/cpu.shares": "512",
        "/cg/cpuset/swarmlet/c/cpuset.cpus": "0",
        "/cg/pids/swarmlet/c/pids.max": "20",
        "/cg/blkio/swarmlet/c/blkio.throttle.write_bps_device": "254:0 4194304",
    }


@pytest.mark.parametrize("host", [Host(unified_controllers=("memory",)), HYBRID])
def test_a_missing_controller_is_named(host: Host) -> None:
    hierarchies = tuple(h for h in host.hierarchies if h.controllers != ("pids",))
    lacking = Host(unified_controllers=("memory",), hierarchies=hierarchies)
    with pytest.raises(SpecError, match=r"resources.pids_max: .* no pids cgroup controller"):
        cgroups.driver(lacking, "swarmlet").groups("c", Resources(pids_max=5))


def test_no_limit_writes_nothing_and_joins_memory_only() -> None:
    driver = cgroups.driver(HYBRID, "/swarmlet/")
    assert driver.limits("c", Resources()) == []
    assert driver.joins("c", Resources()) == ["/cg/memory/swarmlet/c"]


def test_weights_span_the_range_of_shares() -> None:
    assert [cgroups.weight_of_shares(n) for n in (2, 1024, 262144)] == [1, 39, 10000]


@settings(max_examples=50, deadline=None)
@given(specs.resources, specs.resources)
def test_what_is_lifted_is_what_is_no_longer_limited(old: Resources, new: Resources) -> None:
    """Resets touch only files that the new limits do not write, but for devices' lines."""
    for host in (Host(), HYBRID):
        driver = cgroups.driver(host, "swarmlet")
        wanted = {step.path for step in driver.limits("c", new) if "io.max" not in step.path}
        lifted = {step.path for step in driver.resets("c", old, new)}
        assert not {path for path in wanted & lifted if "blkio" not in path and "sw" not in path}


MOUNTINFO = """\
22 1 0:21 / /proc rw shared:1 - proc proc rw
32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/memory rw shared:3 master:2 - cgroup cgroup rw,memory
34 31 0:30 /docker/x /var/lib/x/memory rw - cgroup cgroup rw,memory
37 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
38 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""


def test_cgroup_mounts_are_found() -> None:
    unified, hierarchies = parse_cgroup_mounts(MOUNTINFO)
    assert unified == "/sys/fs/cgroup/unified"
    assert hierarchies == (
        Hierarchy("/sys/fs/cgroup/cpu", ("cpu", "cpuacct")),
        Hierarchy("/sys/fs/cgroup/memory", ("memory",)),
    )
    assert parse_cgroup_mounts("") == (None, ())


def test_kernel_releases() -> None:
    assert parse_kernel("6.1.0-13-amd64") == (6, 1)
    assert parse_kernel("5.15") == (5, 15)
    assert parse_kernel("odd") == (0, 0)


def test_pressure_and_interfaces() -> None:
    text = "some avg10=1.50 avg60=0.00 avg300=0.00 total=7\nfull avg10=0.25 avg60=0.0 total=0\n"
    assert Pressure.parse(text) == Pressure(1.5, 0.25)
    assert Pressure.parse("") == Pressure(0.0, 0.0)
    text = (
        "Inter-|   Receive\n face |bytes\n"
        "    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n"
        "  eth0: 100 2 3 4 0 0 0 0 200 5 6 7 0 0 0 0\n"
    )
    (eth0,) = parse_interfaces(text)
    assert (eth0.name, eth0.received_bytes, eth0.sent_bytes, eth0.sent_dropped) == (
        "eth0",
        100,
        200,
        7,
    )


@pytest.mark.level4
def test_this_host_is_fit() -> None:
    host = probe()
    assert Path(host.unified, "cgroup.procs").exists()
    assert host.last_capability >= 40
