"""System call filters of ours against libseccomp's: the same verdict for every call."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmlet.runtime import bpf, seccomp
from swarmlet.runtime.defaults import CAPABILITIES, DEFAULT_CAPABILITIES
from swarmlet.runtime.host import Host
from swarmlet.runtime.seccomp_default import default_profile

HOST = Host(machine="x86_64", kernel=(6, 1))
X86_64, X86, AARCH64 = 0xC000003E, 0x40000003, 0xC00000B7
ALLOW, ERRNO = seccomp.ACTIONS["SCMP_ACT_ALLOW"], seccomp.ACTIONS["SCMP_ACT_ERRNO"]
NOSYS = ERRNO | 38
NAMES = ["read", "write", "open", "close", "clone", "personality", "mmap", "prctl", "execve"]
#: Values at which a comparison by halves can go wrong.
EDGES = [0, 1, 2, 0xFFFFFFFF, 1 << 32, (1 << 32) + 1, (1 << 64) - 1, 0x7E020000, 0x8000000000000000]


def run(program: bytes, audit: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """Run classic BPF as the kernel would (seccomp(2))."""
    words = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, audit, 0, *words)
    at, accumulator = 0, 0
    while True:
        code, true, false, value = struct.unpack_from("<HBBI", program, 8 * at)
        at += 1
        match code:
            case 0x20:  # load
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x54:
                accumulator &= value
            case 0x05:
                at += value
            case 0x15:
                at += true if accumulator == value else false
            case 0x25:
                at += true if accumulator > value else false
            case 0x35:
                at += true if accumulator >= value else false
            case 0x06:
                return int(value)
            case _:
                raise AssertionError(f"unexpected instruction {code:#x}")


def both(document: dict[str, Any], capabilities: tuple[str, ...] = ()) -> tuple[bytes, bytes]:
    """Return our program and libseccomp's for the same profile."""
    held = frozenset(capabilities)
    rules = seccomp.rules_of(document, HOST, held)
    names = ["SCMP_ARCH_X86_64", *seccomp._architectures(document, HOST)]
    default = seccomp._action(document["defaultAction"], 1, "")
    library = seccomp._library()
    assert seccomp.plain(rules, default, names, library) is not None
    ours = seccomp.compile_profile(document, HOST, held)
    return ours, seccomp._by_libseccomp(library, rules, default, names, HOST)


@pytest.mark.parametrize("capabilities", [(), DEFAULT_CAPABILITIES, CAPABILITIES])
def test_default_profile_gives_every_call_the_same(capabilities: tuple[str, ...]) -> None:
    ours, theirs = both(default_profile(), capabilities)
    assert len(ours) * 3 < len(theirs)
    rng = random.Random(7)
    for audit in (X86_64, X86):
        for number in range(480):
            for _ in range(6):
                arguments = tuple(rng.choice(EDGES) for _ in range(6))
                if audit == X86:
                    arguments = tuple(value & 0xFFFFFFFF for value in arguments)
                mine, other = (run(p, audit, number, arguments) for p in (ours, theirs))
                if audit == X86 and mine == NOSYS != other:
                    continue  # libseccomp's has "unknown is ENOSYS" for the native calls only
                assert mine == other, (hex(audit), number, arguments)


def test_a_foreign_architecture_is_killed() -> None:
    ours, _ = both(default_profile())
    assert run(ours, AARCH64, 0) == seccomp.ACTIONS["SCMP_ACT_KILL_PROCESS"]
    assert run(ours, X86_64, 0x40000000) == NOSYS, "x32"


comparisons = st.tuples(
    st.integers(0, 5),
    st.sampled_from(sorted(seccomp.OPERATORS)),
    st.sampled_from(EDGES),
    st.sampled_from(EDGES),
)
calls = st.builds(
    lambda names, action, args: {
        "names": names,
        "action": action,
        "args": [
            {"index": i, "op": op, "value": v, "valueTwo": w} for i, op, v, w in args.values()
        ],
    },
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True),
    st.just("SCMP_ACT_ALLOW"),
    # libseccomp takes one comparison of an argument in a rule.
    st.lists(comparisons, max_size=3).map(lambda found: {c[0]: c for c in found}),
)


def holds(index: int, operator: str, value: int, second: int, arguments: tuple[int, ...]) -> bool:
    """What a comparison of seccomp_rule_add(3) says."""
    given = arguments[index]
    match operator:
        case "SCMP_CMP_NE":
            return given != value
        case "SCMP_CMP_LT":
            return given < value
        case "SCMP_CMP_LE":
            return given <= value
        case "SCMP_CMP_EQ":
            return given == value
        case "SCMP_CMP_GE":
            return given >= value
        case "SCMP_CMP_GT":
            return given > value
        case _:
            return given & value == second & value


@settings(max_examples=200, deadline=None)
@given(st.lists(calls, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_any_plain_profile_means_what_it_says(
    syscalls: list[dict[str, Any]], rng: random.Random
) -> None:
    """Against the meaning: libseccomp 2.5.4 allows write(1) for `arg0 >= 2**32 or arg0 <= 0`."""
    numbers = {"read": 0, "write": 1, "open": 2, "close": 3, "mmap": 9, "clone": 56, "execve": 59}
    numbers |= {"personality": 135, "prctl": 157}
    document = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": syscalls}
    program = seccomp.compile_profile(document, HOST, frozenset())
    rules = seccomp.rules_of(document, HOST, frozenset())
    newest = max(numbers[name] for rule in rules for name in rule.names)
    for name, number in (*numbers.items(), ("none", 11), ("new", 2000)):
        for _ in range(12):
            arguments = tuple(rng.choice(EDGES) for _ in range(6))
            allowed = any(
                name in rule.names and all(holds(*one, arguments) for one in rule.arguments)
                for rule in rules
            )
            refused = NOSYS if number > newest else ERRNO | 1
            assert run(program, X86_64, number, arguments) == (ALLOW if allowed else refused)


def test_rules_that_contradict_each_other_are_libseccomps() -> None:
    library = seccomp._library()
    rules = [
        seccomp.Rule(("read",), "SCMP_ACT_ALLOW", arguments=((0, "SCMP_CMP_EQ", 1, 0),)),
        seccomp.Rule(("read",), "SCMP_ACT_ERRNO", errno=5),
    ]
    names = ["SCMP_ARCH_X86_64"]
    assert seccomp.plain(rules, ERRNO | 1, names, library) is None
    assert seccomp.plain(rules[:1], ERRNO | 1, names, library) is not None
    # Many calls in one on 32-bit x86: only where all of them are allowed.
    assert seccomp.plain(rules[:1], ERRNO | 1, [*names, "SCMP_ARCH_X86"], library) is None


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, 4000), min_size=1))
def test_far_jumps_arrive(numbers: set[int]) -> None:
    architecture = bpf.Architecture(
        audit=X86_64,
        calls={number: ALLOW if number % 3 else ERRNO | number % 7 for number in numbers},
        default=ERRNO | 1,
        unknown=NOSYS,
        newest=max(numbers),
    )
    program = bpf.assemble([architecture], 0)
    for number in [*numbers, *(n + 1 for n in numbers)]:
        expected = architecture.calls.get(number, ERRNO | 1)
        if number > max(numbers):
            expected = NOSYS
        assert run(program, X86_64, number) == expected
