"""What the daemon's memory costs the host: what was freed does not stay."""

from __future__ import annotations

import subprocess
import sys

#: A worker thread that for a moment had two blocks as large as a segment of the log.
WORKER = """
import threading
from swarmlet.daemon import malloc

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def work():
    for _ in range(3):
        blocks = [b"x" * (4 << 20) for _ in range(2)]
        del blocks

malloc.keep_little()
before = resident()
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(resident() - before)
"""


def test_a_worker_threads_large_blocks_go_back_to_the_kernel() -> None:
    run = subprocess.run(
        [sys.executable, "-c", WORKER], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(run.stdout) < 1 << 20  # 8 MiB stay without it, and a few pages with it
