"""docs/commands.md: its examples run as they stand, and no command or refusal is missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from swarmlet.cli.container_options import REFUSED, REFUSED_SWITCHES
from swarmlet.cli.main import VERBS
from tests.images.busybox import busybox_rootfs
from tests.local.box import box

PAGE = Path(__file__).parent.parent.parent / "docs" / "commands.md"
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANY = "…"
#: Besides the verbs on containers; other subjects have pages of their own.
GROUPS = ("container", "image", "network", "system", "update", "volume", "node", "service")


def examples(text: str) -> list[tuple[str, list[str]]]:
    """What is typed, and the lines that are to come of it."""
    found: list[tuple[str, list[str]]] = []
    for block in BLOCK.findall(text):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line.removeprefix("$ "), []))
            else:
                found[-1][1].append(line)
    return found


def matches(expected: list[str], printed: str) -> bool:
    """A line that is … stands for any lines, … in a line for any text, and blanks for blanks."""
    parts = []
    for line in expected:
        if line.strip() == ANY:
            parts.append(r"(?:[^\n]*\n)*")
            continue
        words = re.escape(re.sub(r"\s+", " ", line.strip()))
        parts.append(r"\s*" + words.replace(r"\ ", r"\s+").replace(ANY, r".*") + r"\s*\n")
    return re.fullmatch("".join(parts), printed) is not None


def test_the_page_names_every_command_and_every_refusal() -> None:
    text = PAGE.read_text()
    for command in (*VERBS, *GROUPS):
        assert re.search(rf"`?swarmlet\s+{command}\b", text), f"{command} is not on the page"
    for flag, reason in (REFUSED | REFUSED_SWITCHES).items():
        assert f"| `{flag}` | {reason} |" in text, flag


@pytest.mark.level5
async def test_the_examples_run_as_they_stand(tmp_path: Path) -> None:
    busybox_rootfs(tmp_path / "busybox.tar")
    async with box(image=False) as b:
        for typed, expected in examples(PAGE.read_text()):
            done = await b.host.run("sh", "-c", f"cd {tmp_path}; {{ {typed}; }} 2>&1", check=False)
            assert matches(expected, done.stdout), f"$ {typed}\n{done.stdout}\nnot\n{expected}"
