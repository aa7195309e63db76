"""`python -m swarmlet.daemon --option=value ...`: what `swarmlet daemon` becomes.

Every option is given and sound: the command line has read the file and checked them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swarmlet.daemon.config import Settings
from swarmlet.daemon.main import main


def settings_of(words: Sequence[str]) -> Settings:
    """Return the settings that swarmlet.daemon.run() wrote as *words*."""
    options: dict[str, Any] = {}
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        options[name.replace("-", "_")] = value
    options["data_path_port"] = int(options["data_path_port"])
    for folder in ("state_dir", "run_dir"):
        options[folder] = Path(options[folder])
    return Settings(**options)


if __name__ == "__main__":
    try:
        main(settings_of(sys.argv[1:]))
    except OSError as exc:
        sys.exit(f"swarmlet: the daemon cannot run: {exc}")
