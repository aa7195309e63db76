"""System call filters: a profile in Docker's JSON format to classic BPF.

libseccomp knows the numbers of the calls; the program is ours where the profile is as plain as
Docker's (bpf.py: a fifth of the instructions), and libseccomp's where one call has rules that
contradict each other or that it splits in several (`plain` says which). A `Filters` keeps each
program that it made, by profile and capabilities. libseccomp is loaded at the first use by ctypes:
of its 60 functions eight are needed, and pyseccomp would add a dependency for these lines.

Sync and not for several threads at a time: libseccomp shares nothing, but the cache is plain.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from swarmlet.runtime import bpf
from swarmlet.runtime.decoding import SpecError
from swarmlet.runtime.host import Host, parse_kernel
from swarmlet.runtime.seccomp_default import default_profile
from swarmlet.runtime.spec import Seccomp
from swarmlet.runtime.values import value

#: <seccomp.h>
ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
SCMP_FLTATR_CTL_OPTIMIZE = 8
#: uname's machine: Docker's name (Go's), libseccomp's, AUDIT_ARCH of <linux/audit.h>.
MACHINES = {
    "x86_64": ("amd64", "SCMP_ARCH_X86_64", 0xC000003E),
    "aarch64": ("arm64", "SCMP_ARCH_AARCH64", 0xC00000B7),
}
#: libseccomp's name, AUDIT_ARCH of <linux/audit.h>, 64-bit arguments, offset of the numbers.
ARCHITECTURES = {
    "SCMP_ARCH_X86_64": (b"x86_64", 0xC000003E, True, 0),
    "SCMP_ARCH_X86": (b"x86", 0x40000003, False, 0),
    "SCMP_ARCH_X32": (b"x32", 0xC000003E, True, 0x40000000),
    "SCMP_ARCH_AARCH64": (b"aarch64", 0xC00000B7, True, 0),
    "SCMP_ARCH_ARM": (b"arm", 0x40000028, False, 0),
}
#: Calls of 32-bit x86 that are many in one: libseccomp splits rules for them.
MULTIPLEXED = {"socketcall", "ipc"}
#: What they do has numbers of its own since Linux 4.3 and 5.1 (<asm/unistd_32.h>), which libseccomp
#: does not tell by name.
_X86_DIRECT = (
    "recvmmsg 337 sendmmsg 345 socket 359 socketpair 360 bind 361 connect 362 listen 363 "
    "accept4 364 getsockopt 365 setsockopt 366 getsockname 367 getpeername 368 sendto 369 "
    "sendmsg 370 recvfrom 371 recvmsg 372 shutdown 373 semget 393 semctl 394 shmget 395 "
    "shmctl 396 shmat 397 shmdt 398 msgget 399 msgsnd 400 msgrcv 401 msgctl 402"
)
X86_DIRECT = {name: int(n) for name, n in re.findall(r"(\w+) (\d+)", _X86_DIRECT)}
X32_BIT = 0x40000000
SECCOMP_RET_ACTION_FULL = 0xFFFF0000
ENOSYS = 38
EPERM = 1


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    ]


@value
class Rule:
    """Calls by name, what to do with them, and when: arguments (index, operator, value, value2)."""

    names: tuple[str, ...]
    action: str
    errno: int = EPERM
    arguments: tuple[tuple[int, str, int, int], ...] = ()


class Filters:
    """Programs for one host, made once."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._made: dict[tuple[Seccomp, frozenset[str]], bytes] = {}

    def is_made(self, seccomp: Seccomp, capabilities: Sequence[str]) -> bool:
        """Whether `program` answers at once."""
        made = (seccomp, frozenset(capabilities)) in self._made
        return made or seccomp.profile == "unconfined"

    def program(self, seccomp: Seccomp, capabilities: Sequence[str]) -> bytes | None:
        """Return the filter of a process with *capabilities* as its bounding set.

        None when it is unconfined. Raises SpecError for a bad document, OSError without libseccomp.
        """
        if seccomp.profile == "unconfined":
            return None
        key = (seccomp, frozenset(capabilities))
        if key not in self._made:
            if seccomp.profile == "custom":
                try:
                    document = json.loads(seccomp.document)
                except ValueError as failure:
                    raise SpecError(f"seccomp.document: is no JSON: {failure}") from None
            else:
                document = default_profile()
            self._made[key] = compile_profile(document, self._host, frozenset(capabilities))
        return self._made[key]


def rules_of(document: Mapping[str, Any], host: Host, capabilities: frozenset[str]) -> list[Rule]:
    """Return the rules of *document* that hold for this host and *capabilities*. Pure."""
    machine = MACHINES[host.machine][0]
    rules = []
    for index, call in enumerate(document.get("syscalls") or ()):
        path = f"seccomp.document.syscalls[{index}]"
        try:
            includes, excludes = call.get("includes") or {}, call.get("excludes") or {}
            if not _applies(includes, host, machine, capabilities):
                continue
            if _excluded(excludes, host, machine, capabilities):
                continue
            arguments = tuple(
                (int(a["index"]), a["op"], int(a["value"]), int(a.get("valueTwo") or 0))
                for a in call.get("args") or ()
            )
            names = tuple(call.get("names") or (call["name"],))
            number = call.get("errnoRet")
            rule = Rule(names, call["action"], EPERM if number is None else number, arguments)
        except (KeyError, TypeError, ValueError, AttributeError) as failure:
            raise SpecError(f"{path}: {type(failure).__name__}: {failure}") from None
        if rule.action not in ACTIONS:
            raise SpecError(f"{path}.action: there is no {rule.action!r}")
        for _, operator, _, _ in arguments:
            if operator not in OPERATORS:
                raise SpecError(f"{path}.args: there is no {operator!r}")
        rules.append(rule)
    return rules


def _applies(
    includes: Mapping[str, Any], host: Host, machine: str, capabilities: frozenset[str]
) -> bool:
    arches = includes.get("arches") or ()
    kernel = includes.get("minKernel")
    return (
        (not arches or machine in arches)
        and set(includes.get("caps") or ()) <= capabilities
        and (not kernel or host.kernel >= parse_kernel(kernel))
    )


def _excluded(
    excludes: Mapping[str, Any], host: Host, machine: str, capabilities: frozenset[str]
) -> bool:
    kernel = excludes.get("minKernel")
    return (
        machine in (excludes.get("arches") or ())
        or bool(set(excludes.get("caps") or ()) & capabilities)
        or bool(kernel and host.kernel >= parse_kernel(kernel))
    )


def compile_profile(document: Mapping[str, Any], host: Host, capabilities: frozenset[str]) -> bytes:
    """Return the BPF program of a profile in Docker's format."""
    library = _library()
    default = _action(
        str(document.get("defaultAction")),
        int(document.get("defaultErrnoRet") or EPERM),
        "defaultAction",
    )
    rules = rules_of(document, host, capabilities)
    names = [MACHINES[host.machine][1], *_architectures(document, host)]
    tables = plain(rules, default, names, library)
    if tables is not None:
        return bpf.assemble(tables, ACTIONS["SCMP_ACT_KILL_PROCESS"])
    return _by_libseccomp(library, rules, default, names, host)


def plain(
    rules: Sequence[Rule], default: int, names: Sequence[str], library: ctypes.CDLL
) -> list[bpf.Architecture] | None:
    """Return what each call gets, by architecture; None when that is not for us to say."""
    unconditional = {n for rule in rules if not rule.arguments for n in rule.names}
    if "SCMP_ARCH_X86" in names and not unconditional >= MULTIPLEXED:
        return None
    unknown = default
    if default & SECCOMP_RET_ACTION_FULL == ACTIONS["SCMP_ACT_ERRNO"]:
        # A call above the newest that the filter names is not forbidden but unknown, as in runc:
        # programs that try a new call first (glibc does) then take an older one.
        unknown = ACTIONS["SCMP_ACT_ERRNO"] | ENOSYS
    tables = []
    for name in names:
        token, audit, wide, offset = ARCHITECTURES[name]
        architecture = library.seccomp_arch_resolve_name(token)
        entries: dict[int, list[Rule]] = {}
        newest = 0
        for rule in rules:
            for call in rule.names:
                number = library.seccomp_syscall_resolve_name_arch(architecture, call.encode())
                if name == "SCMP_ARCH_X86" and number < 0:
                    number = X86_DIRECT.get(call, -1)
                number -= offset
                if number >= 0:  # else another architecture's, or newer than this libseccomp
                    newest = max(newest, number)
                    entries.setdefault(number, []).append(rule)
        calls: dict[int, int | bpf.Conditional] = {}
        for number, found in entries.items():
            verdict = _verdict(found, default)
            if verdict is None:
                return None
            calls[number] = verdict
        tables.append(
            bpf.Architecture(
                audit=audit,
                calls=calls,
                default=default,
                unknown=unknown,
                newest=newest,
                wide=wide,
                offset=offset,
            )
        )
    return tables


def _verdict(rules: Sequence[Rule], default: int) -> int | bpf.Conditional | None:
    """Return what a call with these *rules* gets; None when they contradict each other."""
    changing = [(r, _action(r.action, r.errno, "action")) for r in rules]
    changing = [(rule, action) for rule, action in changing if action != default]
    actions = {action for _, action in changing}
    if not actions:
        return default
    if len(actions) > 1:
        return None
    (action,) = actions
    if any(not rule.arguments for rule, _ in changing):
        return action
    cases = tuple(
        tuple(_comparison(*argument) for argument in rule.arguments) for rule, _ in changing
    )
    return bpf.Conditional(cases, action, default)


def _comparison(index: int, operator: str, value: int, second: int) -> bpf.Comparison:
    name = operator.removeprefix("SCMP_CMP_")
    if name == "MASKED_EQ":
        # libseccomp's order: the mask, then what is left of the argument.
        return bpf.Comparison(index, name, second & value, value)
    return bpf.Comparison(index, name, value)


def _by_libseccomp(
    library: ctypes.CDLL, rules: Sequence[Rule], default: int, names: Sequence[str], host: Host
) -> bytes:
    context = library.seccomp_init(default)
    if not context:
        raise SpecError("seccomp.document.defaultAction: libseccomp does not take it")
    try:
        for name in names[1:]:
            token = ARCHITECTURES[name][0]
            library.seccomp_arch_add(context, library.seccomp_arch_resolve_name(token))
        # A binary tree instead of a list: a call costs 9 comparisons in place of 300.
        library.seccomp_attr_set(context, SCMP_FLTATR_CTL_OPTIMIZE, 2)
        newest = 0
        for rule in rules:
            newest = max(newest, _add(library, context, rule, default))
        program = _export(library, context)
    finally:
        library.seccomp_release(context)
    if default & SECCOMP_RET_ACTION_FULL == ACTIONS["SCMP_ACT_ERRNO"] and newest:
        program = _unknown_is_nosys(MACHINES[host.machine][2], newest) + program
    if len(program) // 8 > bpf.INSTRUCTIONS_MAX:
        raise SpecError(f"seccomp.document: has more than {bpf.INSTRUCTIONS_MAX} instructions")
    return program


def _add(library: ctypes.CDLL, context: int, rule: Rule, default: int) -> int:
    """Add *rule*; return the highest number of a call that it names, on this machine."""
    action = _action(rule.action, rule.errno, "action")
    newest = 0
    for name in rule.names:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == -1:  # __NR_SCMP_ERROR: newer than this libseccomp
            continue
        newest = max(newest, number)
        if action == default:
            continue  # libseccomp refuses a rule that changes nothing
        comparisons = (_Comparison * len(rule.arguments))(
            *(_Comparison(i, OPERATORS[op], a, b) for i, op, a, b in rule.arguments)
        )
        result = library.seccomp_rule_add_array(
            context, action, number, len(rule.arguments), comparisons
        )
        # A pseudo number (a call that only another architecture has) is no error there.
        if result < 0 and number >= 0:
            raise SpecError(f"seccomp.document.syscalls: {name}: {os.strerror(-result)}")
    return newest


def _action(name: str, number: int, path: str) -> int:
    if name not in ACTIONS:
        raise SpecError(f"seccomp.document.{path}: there is no {name!r}")
    return ACTIONS[name] | (number & 0xFFFF if name == "SCMP_ACT_ERRNO" else 0)


def _architectures(document: Mapping[str, Any], host: Host) -> list[str]:
    """Return the further architectures whose calls the filter shall know."""
    native = MACHINES[host.machine][1]
    wanted = list(document.get("architectures") or ())
    for entry in document.get("archMap") or ():
        if entry["architecture"] == native:
            wanted += entry.get("subArchitectures") or ()
    return [name for name in wanted if name in ARCHITECTURES and name != native]


def _unknown_is_nosys(audit_arch: int, newest: int) -> bytes:
    """Answer ENOSYS to calls newer than the profile, as runc does.

    Otherwise a program that tries a new call first (glibc does) would take EPERM for an answer
    and fail where it has an older way. The offsets are those of struct seccomp_data.
    """
    return b"".join(
        struct.pack("<HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 4),  # load arch
            (0x15, 0, 4, audit_arch),  # another one: to the filter
            (0x20, 0, 0, 0),  # load nr
            (0x25, 0, 2, newest),  # not above the newest: to the filter
            (0x35, 1, 0, X32_BIT),  # an x32 call is no new call: to the filter
            (0x06, 0, 0, ACTIONS["SCMP_ACT_ERRNO"] | ENOSYS),
        )
    )


def _export(library: ctypes.CDLL, context: int) -> bytes:
    fd = os.memfd_create("seccomp")
    try:
        result = library.seccomp_export_bpf(context, fd)
        if result < 0:
            raise OSError(-result, f"seccomp_export_bpf: {os.strerror(-result)}")
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as failure:
        text = "libseccomp is missing: apt install libseccomp2"
        raise OSError(failure.errno, text) from failure
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_release.restype = None
    library.seccomp_arch_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    library.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_syscall_resolve_name_arch.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_Comparison),
    ]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return library
