"""How the process takes memory from the kernel and gives it back, on hosts that have little.

glibc's malloc is made for speed with many threads: each worker thread may get an arena of its
own, which keeps what it once had, and after the first large block that is freed even larger ones
are kept for later use. A daemon that works for a moment and then waits for hours wants the
opposite.
"""

from __future__ import annotations

import ctypes

#: mallopt(3): the parameters' numbers in <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
#: Blocks from this size on are mapped alone and go back when they are freed. It is glibc's own
#: default, but set, it stays: unset it grows with the blocks that are freed, up to 32 MiB.
MMAP_BYTES_MIN = 128 * 1024
#: This much may lie free at the end of the heap before it is cut.
TRIM_BYTES = 128 * 1024
#: Python's lock lets one thread compute at a time, so that they seldom wait for an arena.
ARENAS_MAX = 1


def keep_little() -> None:
    """Make malloc give back what is free. Call it before there are threads.

    Another libc than glibc has no such switch, and keeps less by itself.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(M_ARENA_MAX, ARENAS_MAX)
    mallopt(M_MMAP_THRESHOLD, MMAP_BYTES_MIN)
    mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)
