"""Golden scripts: commands, '----', the output they gave, a blank line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def run_script(path: Path, execute: Callable[[str], list[str]], *, rewrite: bool) -> None:
    """Play the golden script at *path* and compare what it gives.

    After a wanted change of behaviour run pytest with --rewrite and review the diff.
    """
    expected = path.read_text()
    blocks = expected.strip().split("\n\n")
    actual = "\n\n".join(_play(block, execute) for block in blocks) + "\n"
    if rewrite:
        path.write_text(actual)
    else:
        assert actual == expected


def _play(block: str, execute: Callable[[str], list[str]]) -> str:
    given = block.partition("----")[0].splitlines()
    commands = [line for line in given if not line.startswith("#")]
    if not commands:
        return block  # a paragraph of prose
    output = [line for command in commands for line in execute(command)]
    return "\n".join([*given, "----", *output])
