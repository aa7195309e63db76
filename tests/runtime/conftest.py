"""Fixtures of the runtime's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.lab import BUSYBOX, Lab, make_layer


@pytest.fixture(scope="session")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not BUSYBOX.exists():
        pytest.fail("these tests need /bin/busybox: apt install busybox-static")
    return make_layer(tmp_path_factory.mktemp("busybox") / "layer")


@pytest.fixture
def lab(tmp_path: Path, layer: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path, layer)
    yield lab
    lab.clean()
