"""The node's process: composition of everything else, start and stop in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def run(**options: Any) -> None:
    """Run the daemon with the options of `swarmlet daemon` until SIGTERM.

    Raises:
        OSError: it cannot start; the text says why and what to do.
    """
    from swarmlet.daemon.config import Settings
    from swarmlet.daemon.main import main

    state_dir, run_dir = Path(options.pop("state_dir")), Path(options.pop("run_dir"))
    main(Settings(state_dir=state_dir, run_dir=run_dir, **options))
