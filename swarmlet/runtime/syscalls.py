"""One thin function for each system call that Python lacks.

No policy, no fallback, no log: a call that fails raises `OSError(errno, "call: reason", path)`.
Constants stand under the header they come from. The zygote imports this file, so it may import
nothing but `ctypes` and `os`; every number needed after the fork is known before it.

The kernel must be 5.14 or newer: `open_tree` and `move_mount` (5.2), `clone3` into a cgroup
(5.7), `close_range` with CLOEXEC (5.11), `mount_setattr` (5.12) and `cgroup.kill` (5.14) have no
second way here. Debian 12 has 6.1.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing costs the zygote half a megabyte
    from collections.abc import Sequence
    from typing import NoReturn

# <linux/sched.h>
CLONE_NEWTIME = 0x00000080
CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWTIME = 0x00000080
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_CLEAR_SIGHAND = 0x100000000
CLONE_INTO_CGROUP = 0x200000000

# <sys/mount.h>, <linux/mount.h>
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_MANDLOCK = 0x40
MS_DIRSYNC = 0x80
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SILENT = 0x8000
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_I_VERSION = 1 << 23
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25
MNT_DETACH = 2
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x00100000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = 0o2000000
MOVE_MOUNT_F_EMPTY_PATH = 0x4
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6

# <fcntl.h>
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

# <linux/prctl.h>
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

# <linux/capability.h>
CAPABILITY_VERSION_3 = 0x20080522

# <linux/seccomp.h>
SECCOMP_SET_MODE_FILTER = 1

# <linux/keyctl.h>
KEYCTL_JOIN_SESSION_KEYRING = 1

# <linux/close_range.h>
CLOSE_RANGE_CLOEXEC = 4

# <sys/inotify.h>
IN_MODIFY = 0x2
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE_SELF = 0x400
IN_IGNORED = 0x8000

# <linux/bpf.h>
BPF_PROG_LOAD = 5
BPF_PROG_ATTACH = 8
BPF_PROG_TYPE_CGROUP_DEVICE = 15
BPF_CGROUP_DEVICE = 6

#: <asm/unistd.h>. Numbers from 424 on are the same on every architecture.
NUMBERS = {
    "x86_64": {
        "pivot_root": 155,
        "capset": 126,
        "seccomp": 317,
        "bpf": 321,
        "keyctl": 250,
        "rt_sigaction": 13,
    },
    "aarch64": {
        "pivot_root": 41,
        "capset": 91,
        "seccomp": 277,
        "bpf": 280,
        "keyctl": 219,
        "rt_sigaction": 134,
    },
}.get(os.uname().machine, {})
NR_PIDFD_SEND_SIGNAL = 424
NR_OPEN_TREE = 428
NR_MOVE_MOUNT = 429
NR_FSOPEN = 430
NR_FSCONFIG = 431
NR_FSMOUNT = 432
NR_PIDFD_OPEN = 434
NR_CLONE3 = 435
NR_CLOSE_RANGE = 436
NR_MOUNT_SETATTR = 442

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
# PyDLL keeps the interpreter's lock: a clone must not happen while the lock is let go.
_syscall_locked = ctypes.PyDLL(None, use_errno=True).syscall
_syscall_locked.restype = ctypes.c_long
_mount = _libc.mount
_mount.argtypes = [
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
]
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


class _CloneArguments(ctypes.Structure):
    """struct clone_args of <linux/sched.h>, size 88."""

    _fields_ = [
        ("flags", ctypes.c_uint64),
        ("pidfd", ctypes.c_uint64),
        ("child_tid", ctypes.c_uint64),
        ("parent_tid", ctypes.c_uint64),
        ("exit_signal", ctypes.c_uint64),
        ("stack", ctypes.c_uint64),
        ("stack_size", ctypes.c_uint64),
        ("tls", ctypes.c_uint64),
        ("set_tid", ctypes.c_uint64),
        ("set_tid_size", ctypes.c_uint64),
        ("cgroup", ctypes.c_uint64),
    ]


class _MountAttributes(ctypes.Structure):
    """struct mount_attr of <linux/mount.h>, size 32."""

    _fields_ = [
        (name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")
    ]


class _FilterProgram(ctypes.Structure):
    """struct sock_fprog of <linux/filter.h>."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def _fail(call: str, subject: str = "") -> NoReturn:
    code = ctypes.get_errno()
    raise OSError(code, f"{call}: {os.strerror(code)}", subject or None)


def clone3(flags: int, cgroup_fd: int = -1) -> tuple[int, int]:
    """Fork with *flags* of CLONE_NEW…; return (pid, pidfd), and (0, -1) in the child.

    Call it only in a process with one thread. The child has the default action for each signal
    that its parent handles (what is ignored stays so) and is born in the cgroup2 that *cgroup_fd*
    names, unless that is negative. The pidfd is close-on-exec.
    """
    pidfd = ctypes.c_int(-1)
    arguments = _CloneArguments(
        flags=flags | CLONE_PIDFD | CLONE_CLEAR_SIGHAND,
        pidfd=ctypes.addressof(pidfd),
        # SIGCHLD; a sibling is its parent's child and inherits the caller's.
        exit_signal=0 if flags & CLONE_PARENT else 17,
    )
    if cgroup_fd >= 0:
        arguments.flags |= CLONE_INTO_CGROUP
        arguments.cgroup = cgroup_fd
    pid = _syscall_locked(NR_CLONE3, ctypes.byref(arguments), ctypes.sizeof(arguments))
    if pid < 0:
        _fail("clone3")
    return pid, pidfd.value if pid else -1


def unshare(flags: int) -> None:
    if _libc.unshare(flags) < 0:
        _fail("unshare")


def setns(fd: int, flags: int) -> None:
    if _libc.setns(fd, flags) < 0:
        _fail("setns")


def mount(source: str, target: str, fstype: str, flags: int, data: str) -> None:
    if (
        _mount(
            source.encode() or None,
            target.encode(),
            fstype.encode() or None,
            flags,
            data.encode() or None,
        )
        < 0
    ):
        _fail(f"mount {fstype or source or 'flags'}", target)


def umount(target: str, flags: int) -> None:
    if _libc.umount2(target.encode(), flags) < 0:
        _fail("umount", target)


def pivot_root(new_root: str, put_old: str) -> None:
    if _syscall(NUMBERS["pivot_root"], new_root.encode(), put_old.encode()) < 0:
        _fail("pivot_root", new_root)


def open_tree(path: str, flags: int) -> int:
    """Return a descriptor of the mount at *path*; with OPEN_TREE_CLONE, of a detached copy."""
    fd = _syscall(NR_OPEN_TREE, AT_FDCWD, path.encode(), flags)
    if fd < 0:
        _fail("open_tree", path)
    return int(fd)


def move_mount(fd: int, target: str) -> None:
    """Attach the detached mount *fd* at *target*."""
    if _syscall(NR_MOVE_MOUNT, fd, b"", AT_FDCWD, target.encode(), MOVE_MOUNT_F_EMPTY_PATH) < 0:
        _fail("move_mount", target)


def mount_setattr(
    fd: int,
    path: str,
    *,
    attr_set: int = 0,
    propagation: int = 0,
    recursive: bool = False,
    userns_fd: int = 0,
) -> None:
    """Set attributes of the mount at *path* (*fd* is AT_FDCWD) or of *fd* itself (path "")."""
    attributes = _MountAttributes(attr_set=attr_set, propagation=propagation, userns_fd=userns_fd)
    flags = (0 if path else AT_EMPTY_PATH) | (AT_RECURSIVE if recursive else 0)
    if (
        _syscall(
            NR_MOUNT_SETATTR,
            fd,
            path.encode(),
            flags,
            ctypes.byref(attributes),
            ctypes.sizeof(attributes),
        )
        < 0
    ):
        _fail("mount_setattr", path)


def make_file_system(fstype: str, attributes: int, options: Sequence[tuple[str, str]] = ()) -> int:
    """Return a descriptor of a new, detached mount of *fstype* with MOUNT_ATTR *attributes*.

    It belongs to the namespaces of the caller: sysfs shows its network, mqueue its queues.
    """
    context = _syscall(NR_FSOPEN, fstype.encode(), FSOPEN_CLOEXEC)
    if context < 0:
        _fail(f"fsopen {fstype}")
    try:
        for key, value in options:
            if _syscall(NR_FSCONFIG, context, FSCONFIG_SET_STRING, key.encode(), value.encode(), 0):
                _fail(f"fsconfig {fstype} {key}={value}")
        if _syscall(NR_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0) < 0:
            _fail(f"fsconfig {fstype}")
        fd = _syscall(NR_FSMOUNT, context, FSMOUNT_CLOEXEC, attributes)
        if fd < 0:
            _fail(f"fsmount {fstype}")
        return int(fd)
    finally:
        os.close(context)


def sethostname(name: str) -> None:
    raw = name.encode()
    if _libc.sethostname(raw, len(raw)) < 0:
        _fail("sethostname", name)


def setdomainname(name: str) -> None:
    raw = name.encode()
    if _libc.setdomainname(raw, len(raw)) < 0:
        _fail("setdomainname", name)


def prctl(option: int, argument: int = 0, second: int = 0) -> None:
    if _prctl(option, argument, second, 0, 0) < 0:
        _fail(f"prctl {option}")


def set_process_name(name: str) -> None:
    """Set the name that ps and top show; the kernel keeps 15 bytes."""
    raw = ctypes.create_string_buffer(name.encode()[:15])
    if _prctl(PR_SET_NAME, ctypes.addressof(raw), 0, 0, 0) < 0:
        _fail("prctl PR_SET_NAME")


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the three capability sets of the calling thread, each a mask by capability number."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    low = 0xFFFFFFFF
    data = (ctypes.c_uint32 * 6)(
        effective & low,
        permitted & low,
        inheritable & low,
        effective >> 32,
        permitted >> 32,
        inheritable >> 32,
    )
    if _syscall(NUMBERS["capset"], header, data) < 0:
        _fail("capset")


def load_seccomp(program: bytes) -> None:
    """Install the classic BPF *program* (8 bytes an instruction) for this thread for ever."""
    instructions = ctypes.create_string_buffer(program, len(program))
    filter_program = _FilterProgram(length=len(program) // 8, filter=ctypes.addressof(instructions))
    if _syscall(NUMBERS["seccomp"], SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(filter_program)) < 0:
        _fail("seccomp")


def join_session_keyring() -> None:
    """Leave the session keyring of the parent for a new, empty one."""
    if _syscall(NUMBERS["keyctl"], KEYCTL_JOIN_SESSION_KEYRING, None, 0, 0, 0) < 0:
        _fail("keyctl")


def close_range(first: int, last: int, flags: int) -> None:
    if _syscall(NR_CLOSE_RANGE, first, last, flags) < 0:
        _fail("close_range")


def reset_signals() -> None:
    """Give every signal its default action.

    By the raw call: glibc keeps 32 and 33 to itself and ignores them in what posix_spawn starts,
    which is how a daemon on Python 3.13 starts the zygote, and ignoring survives execve.
    """
    default = ctypes.create_string_buffer(32)  # struct sigaction of the kernel: SIG_DFL, no flags
    for number in range(1, 65):
        # EINVAL for SIGKILL and SIGSTOP, which nobody can ignore.
        _syscall(NUMBERS["rt_sigaction"], number, default, None, 8)


def pidfd_open(pid: int) -> int:
    fd = _syscall(NR_PIDFD_OPEN, pid, 0)
    if fd < 0:
        _fail(f"pidfd_open {pid}")
    return int(fd)


def pidfd_send_signal(pidfd: int, signal_number: int) -> None:
    if _syscall(NR_PIDFD_SEND_SIGNAL, pidfd, signal_number, None, 0) < 0:
        _fail(f"pidfd_send_signal {signal_number}")


def bpf_load_device_program(instructions: bytes) -> int:
    """Load eBPF *instructions* as a cgroup device program; return its descriptor."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    # union bpf_attr, BPF_PROG_LOAD: type, count, insns, license; the rest is zero.
    attributes = (ctypes.c_uint64 * 16)(
        BPF_PROG_TYPE_CGROUP_DEVICE | (len(instructions) // 8) << 32,
        ctypes.addressof(code),
        ctypes.addressof(licence),
    )
    fd = _syscall(NUMBERS["bpf"], BPF_PROG_LOAD, attributes, ctypes.sizeof(attributes))
    if fd < 0:
        _fail("bpf BPF_PROG_LOAD")
    return int(fd)


def bpf_attach_device_program(program_fd: int, cgroup_fd: int) -> None:
    # union bpf_attr, BPF_PROG_ATTACH: target_fd, attach_bpf_fd, attach_type, attach_flags.
    attributes = (ctypes.c_uint32 * 32)(cgroup_fd, program_fd, BPF_CGROUP_DEVICE, 0)
    if _syscall(NUMBERS["bpf"], BPF_PROG_ATTACH, attributes, ctypes.sizeof(attributes)) < 0:
        _fail("bpf BPF_PROG_ATTACH")


def inotify(path: str, mask: int) -> int:
    """Return a non-blocking inotify descriptor with one watch, on *path*."""
    fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        _fail("inotify_init1")
    if _libc.inotify_add_watch(fd, path.encode(), mask) < 0:
        code = ctypes.get_errno()
        os.close(fd)
        raise OSError(code, f"inotify_add_watch: {os.strerror(code)}", path)
    return int(fd)
