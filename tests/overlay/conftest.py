"""What the overlay's kernel tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.overlay.lab import Lab, answering, laboratory, reconciling
from tests.overlay.shop import WEB, place, wanted


@pytest.fixture
def three_hosts(tmp_path: Path) -> Iterator[Lab]:
    with laboratory(tmp_path, hosts=3) as lab:
        yield lab


@pytest.fixture
async def cluster(three_hosts: Lab) -> AsyncIterator[Lab]:
    """All three hosts converged, every task of WEB answering on port 80 with its name."""
    lab = three_hosts
    async with reconciling(*lab.hosts):
        for host in lab.hosts:
            await host.reconciler.converge(wanted(lab, host))
        async with AsyncExitStack() as stack:
            for task in WEB:
                await stack.enter_async_context(answering(place(lab, task), task.name, 80))
            yield lab
