"""System call filters as classic BPF: a search tree over ranges of numbers.

Pure. libseccomp compares a number with each name of the profile; in a profile such as Docker's the
allowed numbers form some thirty ranges, so a tree over ranges has a fifth of the instructions, and
a container starts 0.3 ms sooner: the kernel checks, translates and evaluates every instruction at
the load. Only loads, comparisons and returns are used, so that the kernel can tell beforehand
which calls are always allowed (seccomp_cache_prepare) and never runs the filter for them.

The program is laid down from its end: all jumps of BPF go forward, so every distance is known.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from swarmlet.runtime.values import named_value, value

# <linux/bpf_common.h>, <linux/filter.h>
LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
JUMP = 0x05  # BPF_JMP | BPF_JA
EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
GREATER = 0x25  # BPF_JMP | BPF_JGT | BPF_K
AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
RETURN = 0x06  # BPF_RET | BPF_K
DISTANCE_MAX = 255
INSTRUCTIONS_MAX = 4096  # BPF_MAXINSNS

# struct seccomp_data of <linux/seccomp.h>, on little-endian machines.
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
LOW_WORD = 0xFFFFFFFF
#: operator: the jump that decides it, and whether it holds where the jump is taken.
OPERATIONS = {
    "EQ": (EQUAL, True),
    "NE": (EQUAL, False),
    "GE": (AT_LEAST, True),
    "LT": (AT_LEAST, False),
    "GT": (GREATER, True),
    "LE": (GREATER, False),
}


@value
class Comparison:
    """*argument* (0 to 5), an operator, and what it is compared with; *mask* for MASKED_EQ."""

    argument: int
    operator: str  # NE LT LE EQ GE GT MASKED_EQ
    value: int
    mask: int = 0


@value
class Conditional:
    """A call that is *action* when all comparisons of one of *cases* hold, else *otherwise*."""

    cases: tuple[tuple[Comparison, ...], ...]
    action: int
    otherwise: int


@named_value
class Architecture:
    """What the calls of one architecture get: by number, by default, and above the newest known.

    *wide*: arguments have 64 bits. *offset* is added to the numbers (x32's bit).
    """

    audit: int  # AUDIT_ARCH of <linux/audit.h>
    calls: Mapping[int, int | Conditional]
    default: int
    unknown: int
    newest: int
    wide: bool = True
    offset: int = 0


#: First number, its architecture, what the calls get from there to the next segment.
_Segment: TypeAlias = tuple[int, Architecture, int | Conditional]


@dataclass(slots=True)
class _Code:
    """Instructions from the end of the program; a label is the count of them up to its own."""

    instructions: list[bytes] = field(default_factory=list)
    returns: dict[int, int] = field(default_factory=dict)

    def emit(self, code: int, value: int, true: int = 0, false: int = 0) -> int:
        self.instructions.append(struct.pack("<HBBI", code, true, false, value & LOW_WORD))
        return len(self.instructions)

    def distance(self, label: int) -> int:
        return len(self.instructions) - label

    def test(self, code: int, value: int, true: int, false: int) -> int:
        """Go on at the label *true* or *false*; far ones are reached by a jump in between."""
        if self.distance(true) >= DISTANCE_MAX:
            true = self.emit(JUMP, self.distance(true))
        if self.distance(false) >= DISTANCE_MAX:
            false = self.emit(JUMP, self.distance(false))
        return self.emit(code, value, self.distance(true), self.distance(false))

    def give(self, action: int) -> int:
        """Return the label of an instruction that returns *action*, near enough to be jumped to."""
        label = self.returns.get(action)
        if label is None or self.distance(label) >= DISTANCE_MAX - 2:
            label = self.returns[action] = self.emit(RETURN, action)
        return label


def assemble(architectures: Sequence[Architecture], foreign: int) -> bytes:
    """Return the program; calls of an architecture that is not named get *foreign*.

    The first one is asked for first. Two of the same AUDIT_ARCH (x86-64 and x32) follow each other
    in their numbers.
    """
    code = _Code()
    label = code.give(foreign)
    for audit in reversed(dict.fromkeys(a.audit for a in architectures)):
        segments: list[_Segment] = []
        for architecture in sorted(architectures, key=lambda a: a.offset):
            if architecture.audit == audit:
                segments += _segments(architecture)
        tree = _search(code, segments)
        if code.distance(tree):
            code.emit(JUMP, code.distance(tree))
        label = code.test(EQUAL, audit, code.emit(LOAD, NUMBER), label)
    code.emit(LOAD, ARCHITECTURE)
    program = b"".join(reversed(code.instructions))
    assert len(program) // 8 <= INSTRUCTIONS_MAX, len(program) // 8
    return program


def _segments(a: Architecture) -> list[_Segment]:
    """Return (first number, what its calls get) of each run of equal calls, in order."""
    found: list[_Segment] = [(a.offset, a, a.default)]
    number = 0
    for called in sorted(n for n in a.calls if 0 <= n <= a.newest):
        if called > number:
            _append(found, a.offset + number, a, a.default)
        _append(found, a.offset + called, a, a.calls[called])
        number = called + 1
    if number <= a.newest:
        _append(found, a.offset + number, a, a.default)
    _append(found, a.offset + a.newest + 1, a, a.unknown)
    return found


def _append(found: list[_Segment], first: int, a: Architecture, verdict: int | Conditional) -> None:
    if found[-1][0] == first:
        found.pop()
    if not found or found[-1][2] != verdict:
        found.append((first, a, verdict))


def _search(code: _Code, segments: list[_Segment]) -> int:
    """Lay down a binary search; return the label where it begins, with the number loaded."""
    if len(segments) == 1:
        _, architecture, verdict = segments[0]
        if isinstance(verdict, Conditional):
            return _conditional(code, verdict, architecture.wide)
        return code.give(verdict)
    middle = len(segments) // 2
    below = _search(code, segments[:middle])
    above = _search(code, segments[middle:])
    return code.test(AT_LEAST, segments[middle][0], above, below)


def _conditional(code: _Code, call: Conditional, wide: bool) -> int:
    label = code.give(call.otherwise)
    for case in reversed(call.cases):
        holds = code.give(call.action)
        for comparison in reversed(case):
            holds = _compare(code, comparison, wide, holds, label)
        label = holds
    return label


def _compare(code: _Code, c: Comparison, wide: bool, true: int, false: int) -> int:
    """Lay down one comparison of 64 bits by halves, the high one first."""
    low, high = c.value & LOW_WORD, c.value >> 32
    place = ARGUMENTS + 8 * c.argument
    if c.operator == "MASKED_EQ":
        code.test(EQUAL, low, true, false)
        code.emit(AND, c.mask)
        label = code.emit(LOAD, place)
        if wide:
            code.test(EQUAL, high, label, false)
            code.emit(AND, c.mask >> 32)
            label = code.emit(LOAD, place + 4)
        return label
    operation, straight = OPERATIONS[c.operator]
    if not straight:
        true, false = false, true
    code.test(operation, low, true, false)
    label = code.emit(LOAD, place)
    if wide:
        if operation == EQUAL:
            code.test(EQUAL, high, label, false)
        else:
            equal = code.test(EQUAL, high, label, false)
            code.test(GREATER, high, true, equal)
        label = code.emit(LOAD, place + 4)
    return label
