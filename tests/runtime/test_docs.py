"""docs/containers.md: its examples run as they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.images.busybox import busybox_rootfs
from tests.local.box import box
from tests.local.test_docs import examples, matches

PAGE = Path(__file__).parent.parent.parent / "docs" / "containers.md"


@pytest.mark.level5
async def test_the_examples_run_as_they_stand(tmp_path: Path) -> None:
    busybox_rootfs(tmp_path / "busybox.tar")
    async with box(image=False) as b:
        for typed, expected in examples(PAGE.read_text()):
            done = await b.host.run("sh", "-c", f"cd {tmp_path}; {{ {typed}; }} 2>&1", check=False)
            assert matches(expected, done.stdout), f"$ {typed}\n{done.stdout}\nnot\n{expected}"
