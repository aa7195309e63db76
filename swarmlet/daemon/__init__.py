"""The node's process: composition of everything else, start and stop in order."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def run(**options: str | int) -> NoReturn:
    """Become the daemon with the options of `swarmlet daemon`: `python -m swarmlet.daemon`.

    The process stays and its program is another, because what the command line has loaded would
    stay in memory for as long as the daemon lives: 1.7 MB. -P: whoever starts the daemon may be
    in a folder with modules that are not ours.
    """
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-Pm", "swarmlet.daemon", *words])
