"""The format of etcd-raft's data files (cockroachdb/datadriven).

    # prose
    command argument key=value key=(a, b)
    input line
    ----
    expected output, up to a blank line

Output that holds blank lines stands between doubled "----" lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SEPARATOR = "----"
ARGUMENT = re.compile(r"([^\s=]+)(?:=(\([^)]*\)|\S*))?")


@dataclass(frozen=True, slots=True)
class Argument:
    key: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Directive:
    command: str
    arguments: tuple[Argument, ...]
    input: str

    def values(self, key: str) -> tuple[str, ...]:
        """The values of the argument *key*; none if it is not there."""
        return next((a.values for a in self.arguments if a.key == key), ())

    def value(self, key: str, default: str) -> str:
        values = self.values(key)
        return values[0] if values else default

    def flag(self, key: str) -> bool:
        return self.value(key, "false") == "true"

    @property
    def numbers(self) -> list[int]:
        """The arguments without values, as numbers."""
        return [int(a.key) for a in self.arguments if not a.values]


def parse_directive(line: str, text: str) -> Directive:
    command, *_ = line.split()
    arguments = []
    for match in ARGUMENT.finditer(line[len(command) :]):
        key, value = match.groups()
        if value is None:
            arguments.append(Argument(key))
        else:
            parts = value.strip("()").split(",") if value.startswith("(") else [value]
            parts = [p for part in parts for p in part.split()]
            arguments.append(Argument(key, tuple(parts)))
    return Directive(command, tuple(arguments), text)


def replay(text: str, execute: Callable[[Directive], str]) -> str:
    """Return *text* with every expected output replaced by what *execute* gives."""
    out: list[str] = []
    lines = iter(text.splitlines(keepends=True))
    for line in lines:
        out.append(line)
        if not line.strip() or line.startswith("#"):
            continue
        given = []
        for more in lines:
            out.append(more)
            if more.rstrip() == SEPARATOR:
                break
            given.append(more)
        blank_follows = _skip_expected(lines)
        output = execute(parse_directive(line.rstrip(), "".join(given).strip()))
        if not output.endswith("\n"):
            output += "\n"
        if "\n\n" in output or output.startswith("\n"):
            output = f"{SEPARATOR}\n{output}{SEPARATOR}\n{SEPARATOR}\n"
        out.append(output)
        if blank_follows:
            out.append("\n")
    return "".join(out)


def _skip_expected(lines: Iterator[str]) -> bool:
    """Read over an expected output; say if a blank line ended it (not the end of the file)."""
    first = next(lines, None)
    if first is None:
        return False
    if first.rstrip() == SEPARATOR:
        closing = 0
        for line in lines:
            closing = closing + 1 if line.rstrip() == SEPARATOR else 0
            if closing == 2:
                return next(lines, None) is not None
        return False
    if not first.strip():
        return True
    return any(not line.strip() for line in lines)
