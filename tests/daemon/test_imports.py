"""What the daemon loads before anybody asked for it: the fixed part of its memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: What cost memory once and is needed seldom or never, with the megabytes that it cost.
LATER = {
    "asyncio": 5.0,
    "click": 1.5,  # the command line's
    "dnslib": 2.5,  # the resolver has its own few lines
    "pyroute2": 13.0,  # and overlay its own netlink
    "rich": 4.0,
    "importlib.metadata": 1.0,
    "tarfile": 0.4,
    "urllib.request": 2.0,
    "http.client": 1.0,
    "difflib": 0.2,
    "swarmlet.images.registry": 0.3,
}


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    script = "import sys, swarmlet.daemon.main; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    return set(run.stdout.split())


@pytest.mark.parametrize("module", LATER)
def test_is_loaded_when_it_is_needed(module: str, loaded: set[str]) -> None:
    assert "swarmlet.daemon.daemon" in loaded
    assert module not in loaded
