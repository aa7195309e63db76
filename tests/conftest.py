"""What every test may use: golden scripts, and the levels that need the real kernel."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write what the golden scripts gave")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Levels 4 and 5 change the kernel: without root they are skipped, aloud."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("level4") or item.get_closest_marker("level5"):
            item.add_marker(pytest.mark.skip(reason="needs root: the real kernel is the subject"))


def run_script(path: Path, execute: Callable[[str], list[str]], *, rewrite: bool) -> None:
    """Play a golden script: commands, '----', the output they gave, a blank line.

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
