"""Device rules of a container as an eBPF program on its cgroup2.

Pure: rules in, instructions out. The kernel asks the program at each open and mknod of a device;
1 lets it pass, 0 answers EPERM. It needs no controller, so it works the same on cgroup v2 and in
the hybrid layout, where it spares the join of a further v1 hierarchy.

The context is `struct bpf_cgroup_dev_ctx {u32 access_type; u32 major; u32 minor}` with
`access_type = access << 16 | type` (<linux/bpf.h>). What is not allowed is refused; the first
rule that fits decides, so later rules of the spec are laid down first.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from swarmlet.runtime.spec import DeviceRule

# <linux/bpf.h>: BPF_DEVCG_ACC_…, BPF_DEVCG_DEV_…
ACCESS = {"m": 1, "r": 2, "w": 4}
ACCESS_ALL = 7
TYPE = {"b": 1, "c": 2}

# <linux/bpf_common.h>: opcodes used here.
LOAD_WORD = 0x61  # BPF_LDX | BPF_MEM | BPF_W
MOVE = 0xBC  # BPF_ALU | BPF_MOV | BPF_X
AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
SHIFT_RIGHT = 0x74  # BPF_ALU | BPF_RSH | BPF_K
SET = 0xB4  # BPF_ALU | BPF_MOV | BPF_K
JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
JUMP_NOT_EQUAL = 0x55  # BPF_JMP | BPF_JNE | BPF_K
EXIT = 0x95
RESULT, CONTEXT, KIND, WANTED, MAJOR, MINOR, SCRATCH = 0, 1, 2, 3, 4, 5, 6


def assemble(rules: Sequence[DeviceRule]) -> bytes:
    """Return the program for *rules*, of which the last that fits an access decides."""
    program = [
        _instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        _instruction(MOVE, WANTED, KIND, 0, 0),
        _instruction(AND, KIND, 0, 0, 0xFFFF),
        _instruction(SHIFT_RIGHT, WANTED, 0, 0, 16),
        _instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        _instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ]
    for rule in reversed(rules):
        program += _rule(rule)
        if (rule.type, rule.major, rule.minor, set(rule.access)) == ("a", None, None, {*ACCESS}):
            # It fits everything. The verifier refuses a program with code that is never reached.
            return b"".join(program)
    program += [_instruction(SET, RESULT, 0, 0, 0), _instruction(EXIT, 0, 0, 0, 0)]
    return b"".join(program)


def _rule(rule: DeviceRule) -> list[bytes]:
    verdict = [
        _instruction(SET, RESULT, 0, 0, int(rule.allow)),
        _instruction(EXIT, 0, 0, 0, 0),
    ]
    tests: list[tuple[int, int]] = []
    if rule.type != "a":
        tests.append((KIND, TYPE[rule.type]))
    if rule.major is not None:
        tests.append((MAJOR, rule.major))
    if rule.minor is not None:
        tests.append((MINOR, rule.minor))
    mask = sum(ACCESS[letter] for letter in set(rule.access))
    # An allowed access must lie within the mask; a denied one is hit by any bit of it. The
    # second is written as: skip this rule if the wanted bits and the mask share none.
    test_access: list[bytes] = []
    if mask != ACCESS_ALL:
        outside = ACCESS_ALL & ~mask if rule.allow else mask
        test_access = [
            _instruction(MOVE, SCRATCH, WANTED, 0, 0),
            _instruction(AND, SCRATCH, 0, 0, outside),
        ]
        if rule.allow:
            test_access.append(_instruction(JUMP_NOT_EQUAL, SCRATCH, 0, 2, 0))
        else:
            test_access.append(_instruction(JUMP_EQUAL, SCRATCH, 0, 2, 0))
    body = [*test_access, *verdict]
    code: list[bytes] = []
    for index, (register, value) in enumerate(tests):
        distance = len(tests) - index - 1 + len(body)
        code.append(_instruction(JUMP_NOT_EQUAL, register, 0, distance, value))
    return code + body


def _instruction(opcode: int, target: int, source: int, offset: int, value: int) -> bytes:
    return struct.pack("<BBhi", opcode, source << 4 | target, offset, value)
