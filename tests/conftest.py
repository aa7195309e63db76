"""What every test may use: options, and the levels that need the real kernel."""

from __future__ import annotations

import os

import pytest

from tests.seeds import VARIABLE, run_seed


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write what the golden scripts gave")


def pytest_configure() -> None:
    run_seed()  # now, for processes that share the tests inherit it


def pytest_report_header() -> str:
    return f"{VARIABLE}={run_seed()} replays what is random here"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Levels 4 and 5 change the kernel: without root they are skipped, aloud."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("level4") or item.get_closest_marker("level5"):
            item.add_marker(pytest.mark.skip(reason="needs root: the real kernel is the subject"))
