"""What an attacker inside would try. Each probe is a call that a confined process is refused.

Runs in a clone of the auditor, inside of the container: nothing may be imported here after the
fork. A probe returns when the kernel let it, and raises OSError when it was refused. None does
harm where it is let: calls are made with arguments that do nothing, files are opened and not
written to, mounts are in a mount namespace that ends with the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import signal
import stat
from collections.abc import Callable
from typing import Any

from swarmlet.runtime import syscalls

#: What a refusal looks like. Anything else says that the call was let through to its arguments.
REFUSALS = frozenset(
    {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EROFS, errno.ENOENT, errno.ESRCH, errno.ENODEV}
)
#: Of a system call: a path that is not there was looked up, so the call was let.
CALL_REFUSALS = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ESRCH})
MACHINE = os.uname().machine
#: Calls by machine: x86-64 and arm64 (<asm/unistd_64.h>, <asm-generic/unistd.h>).
_NUMBERS = """
    mount 165 40, umount2 166 39, ptrace 101 117, syslog 103 116, init_module 175 105,
    finit_module 313 273, kexec_load 246 104, bpf 321 280, userfaultfd 323 282, add_key 248 217,
    keyctl 250 219, request_key 249 218, perf_event_open 298 241, open_by_handle_at 304 265,
    setns 308 268, unshare 272 97, clone 56 220, acct 163 89, swapon 167 224, settimeofday 164 170,
    sethostname 170 161, process_vm_readv 310 270, io_uring_setup 425 425, fsopen 430 430,
    open_tree 428 428, move_mount 429 429, quotactl 179 60, pivot_root 155 41, chroot 161 51
"""
NUMBERS = {
    words[0]: int(words[1 if MACHINE == "x86_64" else 2])
    for words in (entry.split() for entry in _NUMBERS.split(","))
}
CLONE_NEWNS, CLONE_NEWUSER = syscalls.CLONE_NEWNS, syscalls.CLONE_NEWUSER
PTRACE_SEIZE = 0x4206
SYSLOG_ACTION_READ_ALL = 3
KEYCTL_GET_PERSISTENT = 22
CAP_SYS_ADMIN = 21
MS_BIND_REMOUNT = syscalls.MS_BIND | syscalls.MS_REMOUNT
#: Megabytes beyond the memory limit that a process tries to use.
BEYOND_MIB = 32
#: Processes beyond the limit that one tries to make.
BEYOND_PIDS = 8


class Facts(dict[str, Any]):
    """What the auditor told: host_pid, disk (major, minor), memory_bytes, pids_max, root_inode."""


def call(name: str, *arguments: object) -> int:
    """Make a system call; raise OSError when it fails with anything that is a refusal.

    Another failure is about the arguments, so the call itself was let: 0 is returned.
    """
    result: int = syscalls._syscall(NUMBERS[name], *arguments)
    if result < 0:
        code = ctypes.get_errno()
        if code in CALL_REFUSALS:
            raise OSError(code, f"{name}: {os.strerror(code)}")
        return 0
    return result


def opened(path: str, flags: int) -> None:
    os.close(os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC))


def host_processes(facts: Facts) -> None:
    os.kill(facts["host_pid"], 0)


def root_of_init(facts: Facts) -> None:
    """/proc/1/root is the container's own root, whose inode is known from here."""
    shown, own = os.stat("/proc/1/root/"), os.stat("/")
    if (shown.st_dev, shown.st_ino) == (own.st_dev, own.st_ino):
        raise OSError(errno.EACCES, "it is the container's own root")


def root_of_host(facts: Facts) -> None:
    os.stat(f"/proc/{facts['host_pid']}/root/etc")


def new_mount(_: Facts) -> None:
    call("mount", b"none", b"/tmp" if os.path.isdir("/tmp") else b"/", b"tmpfs", 0, None)


def new_mount_api(_: Facts) -> None:
    fd = call("fsopen", b"tmpfs", 0)
    if fd > 0:
        os.close(fd)


def uncover(_: Facts) -> None:
    """Take away what hides a path: umount of the masks, and of /proc/sys' read-only view."""
    call("umount2", b"/proc/keys", syscalls.MNT_DETACH)


def writable_proc(_: Facts) -> None:
    flags = MS_BIND_REMOUNT
    call("mount", b"none", b"/proc/sys", None, flags, None)


def detached_tree(_: Facts) -> None:
    fd = call("open_tree", -100, b"/", 1 | os.O_CLOEXEC)
    if fd > 0:
        os.close(fd)


def disk(facts: Facts) -> None:
    major, minor = facts["disk"]
    path = "/dev/.audit-disk"
    device(path, stat.S_IFBLK, major, minor)


def memory_device(_: Facts) -> None:
    device("/dev/.audit-mem", stat.S_IFCHR, 1, 1)


def kernel_messages(_: Facts) -> None:
    device("/dev/.audit-kmsg", stat.S_IFCHR, 1, 11)


def device(path: str, kind: int, major: int, minor: int) -> None:
    os.mknod(path, kind | 0o600, os.makedev(major, minor))
    try:
        opened(path, os.O_RDONLY)
    finally:
        os.unlink(path)


def release_agent(_: Facts) -> None:
    """CVE-2022-0492: a cgroup v1 hierarchy whose release_agent runs on the host."""
    for folder, _names, files in os.walk("/sys/fs/cgroup"):
        if "release_agent" in files:
            opened(f"{folder}/release_agent", os.O_WRONLY)
            return
    call("mount", b"none", b"/sys/fs/cgroup", b"cgroup", 0, b"name=audit")


def own_group(_: Facts) -> None:
    """Lift its own limits: the groups are there to be read only."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if os.path.exists(path):
            opened(path, os.O_WRONLY)
            return
    raise OSError(errno.ENOENT, "no limits are shown")


def core_pattern(_: Facts) -> None:
    opened("/proc/sys/kernel/core_pattern", os.O_WRONLY)


def modprobe_path(_: Facts) -> None:
    opened("/proc/sys/kernel/modprobe", os.O_WRONLY)


def uevent_helper(_: Facts) -> None:
    opened("/sys/kernel/uevent_helper", os.O_WRONLY)


def sysrq(_: Facts) -> None:
    """Never written to: it restarts machines."""
    path = "/proc/sysrq-trigger"
    if stat.S_ISCHR(os.stat(path).st_mode):
        raise OSError(errno.EACCES, "masked")
    opened(path, os.O_WRONLY)


def kernel_memory(_: Facts) -> None:
    path = "/proc/kcore"
    if stat.S_ISCHR(os.stat(path).st_mode):
        raise OSError(errno.EACCES, "masked")
    opened(path, os.O_RDONLY)


def keyring(_: Facts) -> None:
    call("add_key", b"user", b"audit", b"x", 1, -2)


def persistent_keyring(_: Facts) -> None:
    call("keyctl", KEYCTL_GET_PERSISTENT, 0, -2, 0, 0)


def keys_of_others(_: Facts) -> None:
    """/proc/keys names the keys of every user that the reader may see."""
    path = "/proc/keys"
    if stat.S_ISCHR(os.stat(path).st_mode):
        raise OSError(errno.EACCES, "masked")
    opened(path, os.O_RDONLY)


def module(_: Facts) -> None:
    call("finit_module", -1, b"", 0)


def old_module(_: Facts) -> None:
    call("init_module", None, 0, b"")


def kexec(_: Facts) -> None:
    call("kexec_load", 0, -1, None, 1 << 40)


def bpf(_: Facts) -> None:
    call("bpf", 5, ctypes.create_string_buffer(128), 128)


def userfault(_: Facts) -> None:
    fd = call("userfaultfd", 0)
    if fd > 0:
        os.close(fd)


def io_uring(_: Facts) -> None:
    fd = call("io_uring_setup", 1, ctypes.create_string_buffer(256))
    if fd > 0:
        os.close(fd)


def performance_counters(_: Facts) -> None:
    attributes = ctypes.create_string_buffer(128)
    attributes[4] = b"\x80"
    call("perf_event_open", attributes, -1, 0, -1, 0)


def trace_host(facts: Facts) -> None:
    call("ptrace", PTRACE_SEIZE, facts["host_pid"], 0, 0)


def trace_auditor(_: Facts) -> None:
    """CVE-2019-5736: what enters the container shows it the host's program by /proc/PID/exe."""
    parent = os.getpid()
    child = os.fork()  # noqa: TID251 (one thread)
    if child == 0:
        try:
            opened(f"/proc/{parent}/exe", os.O_RDONLY)
        except OSError as refused:
            os._exit(refused.errno or 1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(code, os.strerror(code))


def descriptors(_: Facts) -> None:
    """CVE-2024-21626: a descriptor of a folder on the host that was left open is a way out."""
    for folder in ("/proc/1/fd", "/proc/self/fd"):
        try:
            names = os.listdir(folder)
        except PermissionError:
            continue
        for name in names:
            try:
                found = os.stat(f"{folder}/{name}/")
            except OSError:
                continue  # no folder, or gone
            if stat.S_ISDIR(found.st_mode) and not os.readlink(f"{folder}/{name}").startswith("/"):
                return
            inside = os.readlink(f"{folder}/{name}")
            if not os.path.isdir(inside):
                return
    raise OSError(errno.ENOENT, "nothing of the host's is open")


def working_directory(_: Facts) -> None:
    if os.getcwd().startswith("/"):
        raise OSError(errno.ENOENT, "it is in the container's root")


def user_namespace(_: Facts) -> None:
    call("unshare", CLONE_NEWUSER)


def mount_namespace(_: Facts) -> None:
    call("unshare", CLONE_NEWNS)


def cloned_namespace(_: Facts) -> None:
    # With a stack that is none and CLONE_VM left out a child that is let ends at once.
    pid = call("clone", CLONE_NEWUSER | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)


def enter_namespace(facts: Facts) -> None:
    fd = os.open(f"/proc/{facts['host_pid']}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    call("setns", fd, 0)


def file_handle(_: Facts) -> None:
    """shocker: open a file of the host by its handle (CAP_DAC_READ_SEARCH)."""
    handle = ctypes.create_string_buffer(b"\x08\0\0\0\x01\0\0\0\x02" + bytes(7), 16)
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        call("open_by_handle_at", root, handle, os.O_RDONLY)
    finally:
        os.close(root)


def kernel_log(_: Facts) -> None:
    call("syslog", SYSLOG_ACTION_READ_ALL, ctypes.create_string_buffer(16), 16)


def clock(_: Facts) -> None:
    call("settimeofday", None, ctypes.create_string_buffer(8))


def accounting(_: Facts) -> None:
    call("acct", b"/nothing-here/x")


def swap(_: Facts) -> None:
    call("swapon", b"/", 0)


def host_name(_: Facts) -> None:
    name = os.uname().nodename.encode()
    call("sethostname", name, len(name))


def raise_capability(_: Facts) -> None:
    syscalls.capset(1 << CAP_SYS_ADMIN, 1 << CAP_SYS_ADMIN, 0)


def setuid_program(_: Facts) -> None:
    """no_new_privs: a setuid program of the image gives nothing."""
    with open("/proc/self/status") as file:
        if "NoNewPrivs:\t1" in file.read():
            raise OSError(errno.EPERM, "no_new_privs is set")


def firmware(_: Facts) -> None:
    if not os.listdir("/sys/firmware"):
        raise OSError(errno.ENOENT, "masked")


def writable_sysfs(_: Facts) -> None:
    opened("/sys/power/state", os.O_WRONLY)


def debugfs(_: Facts) -> None:
    call("mount", b"none", b"/sys/kernel/debug", b"debugfs", 0, None)


def link_race(_: Facts) -> None:
    """A link of the image in the place of /proc would lead the runtime's writes elsewhere."""
    if os.stat("/proc/self/status").st_dev == os.stat("/proc").st_dev != os.stat("/").st_dev:
        raise OSError(errno.EACCES, "/proc is the kernel's")


def too_much_memory(facts: Facts) -> None:
    """Use more than the limit, in a child that the kernel ends."""
    size = facts["memory_bytes"] + (BEYOND_MIB << 20)
    child = os.fork()  # noqa: TID251 (one thread)
    if child == 0:
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # the first to be chosen, if others use as much
        with mmap.mmap(-1, size) as memory:
            for place in range(0, size, mmap.PAGESIZE):
                memory[place] = 1
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        raise OSError(errno.EPERM, f"killed at the limit of {facts['memory_bytes'] >> 20} MiB")


def too_many_processes(facts: Facts) -> None:
    children = []
    try:
        for _ in range(facts["pids_max"] + BEYOND_PIDS):
            child = os.fork()  # noqa: TID251 (one thread)
            if child == 0:
                signal.pause()
                os._exit(0)
            children.append(child)
    except BlockingIOError:
        text = f"refused after {len(children)} more"
        raise OSError(errno.EPERM, text) from None
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)


#: name, what it is, the probe; in the order in which they are shown.
PROBES: tuple[tuple[str, str, Callable[[Facts], None]], ...] = (
    ("host-processes", "signal a process of the host", host_processes),
    ("proc-1-root", "the host's root by /proc/1/root", root_of_init),
    ("proc-root", "the host's root by another's /proc/PID/root", root_of_host),
    ("ptrace", "trace a process of the host", trace_host),
    ("exe", "CVE-2019-5736: the runtime's program by /proc/PID/exe", trace_auditor),
    ("descriptors", "CVE-2024-21626: a descriptor of the host's left open", descriptors),
    (
        "working-directory",
        "CVE-2024-21626: a working directory outside of the root",
        working_directory,
    ),
    ("link-race", "a link of the image's in the place of /proc", link_race),
    ("mount", "mount a file system", new_mount),
    ("fsopen", "mount by the new calls", new_mount_api),
    ("open-tree", "clone a mount", detached_tree),
    ("unmask", "unmount what masks a path", uncover),
    ("remount", "make /proc/sys writable", writable_proc),
    ("disk", "open the host's disk", disk),
    ("dev-mem", "open the machine's memory", memory_device),
    ("kmsg", "write to the kernel's log", kernel_messages),
    ("release-agent", "CVE-2022-0492: a release_agent of cgroup v1", release_agent),
    ("own-limits", "lift its own limits", own_group),
    ("core-pattern", "a program on the host by core_pattern", core_pattern),
    ("modprobe", "a program on the host by kernel.modprobe", modprobe_path),
    ("uevent-helper", "a program on the host by uevent_helper", uevent_helper),
    ("sysrq", "restart the machine by sysrq", sysrq),
    ("kcore", "read the kernel's memory", kernel_memory),
    ("firmware", "read the machine's firmware tables", firmware),
    ("sysfs", "write to /sys", writable_sysfs),
    ("debugfs", "mount debugfs", debugfs),
    ("keyring", "put a key in the session's keyring", keyring),
    ("persistent-keyring", "the user's persistent keyring", persistent_keyring),
    ("keys", "read the keys of others", keys_of_others),
    ("module", "load a kernel module", module),
    ("init-module", "load a kernel module, the old way", old_module),
    ("kexec", "start another kernel", kexec),
    ("bpf", "load a BPF program", bpf),
    ("userfaultfd", "stop the kernel at a page fault", userfault),
    ("io-uring", "calls past the filter by io_uring", io_uring),
    ("perf", "performance counters", performance_counters),
    ("user-namespace", "a new user namespace", user_namespace),
    ("user-clone", "a new user namespace by clone", cloned_namespace),
    ("mount-namespace", "a new mount namespace", mount_namespace),
    ("setns", "enter a namespace of the host", enter_namespace),
    ("file-handle", "open a file by its handle", file_handle),
    ("syslog", "read the kernel's log", kernel_log),
    ("clock", "set the machine's clock", clock),
    ("acct", "process accounting", accounting),
    ("swap", "turn on swap", swap),
    ("hostname", "change the host name", host_name),
    ("capability", "take a capability that was dropped", raise_capability),
    ("setuid", "gain rights by a setuid program", setuid_program),
    ("memory", "use more memory than the limit", too_much_memory),
    ("processes", "make more processes than the limit", too_many_processes),
)
#: Those that need a limit to run into; of a container that runs they would disturb its work.
LIMIT_PROBES = frozenset({"memory", "processes"})


def run(facts: Facts) -> list[tuple[str, bool, str]]:
    """Run each probe in a child of its own; return (name, held, why) of each."""
    found = []
    for name, _, probe in PROBES:
        if name in LIMIT_PROBES and not facts["limits"]:
            continue
        found.append((name, *attempt(probe, facts)))
    return found


def attempt(probe: Callable[[Facts], None], facts: Facts) -> tuple[bool, str]:
    """Return (held, why): whatever a probe was let do ends with its process."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()  # noqa: TID251 (one thread)
    if child == 0:
        try:
            probe(facts)
            said = b"0the kernel let it"
        except OSError as refused:
            held = b"1" if (refused.errno or 0) in REFUSALS else b"0"
            said = held + (refused.strerror or str(refused)).encode()
        except BaseException as bug:
            said = b"0" + f"{type(bug).__name__}: {bug}".encode()
        os.write(writer, said[:4000])
        os._exit(0)
    os.close(writer)
    said = os.read(reader, 4096)
    os.close(reader)
    status = os.waitpid(child, 0)[1]
    if not said:
        return True, f"killed by signal {os.WTERMSIG(status)}" if status else "no answer"
    return said[:1] == b"1", said[1:].decode(errors="replace")
