"""Make this machine start the daemon at boot: one systemd unit, written, enabled and started.

`unit` is pure. A machine without systemd is told what to run instead.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

UNIT = Path("/etc/systemd/system/swarmlet.service")
#: What the daemon reads when no --config is given.
CONFIG = Path("/etc/swarmlet/swarmlet.toml")
#: sd_booted(3): this folder exists if and only if systemd is the init of this machine.
BOOTED = Path("/run/systemd/system")
#: Seconds of silence after which systemd kills a daemon whose loop hangs, and starts it again.
WATCHDOG_SECONDS = 30
#: Seconds that systemd gives the daemon to end, which needs ten: SWIM's leave and open streams.
STOP_SECONDS = 30
#: Seconds that `systemctl` may take; starting waits until the daemon says that it is ready.
SYSTEMCTL_SECONDS = 120.0


class InstallError(Exception):
    """What could not be done, why, and what to do."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where a daemon has its things: what its options said, or their defaults."""

    state_dir: Path = Path("/var/lib/swarmlet")
    run_dir: Path = Path("/run/swarmlet")
    cgroup_parent: str = "swarmlet"
    prefix: str = "swl"  # of kernel objects


def places_of(unit_text: str, config_text: str) -> Places:
    """Where the daemon has its things, by its unit and its configuration file. Pure.

    The unit's options win over the file, as they do for the daemon. A file that cannot be read
    says nothing: the daemon did not start with it either.
    """
    started = re.search(r"^ExecStart=(.*)$", unit_text, re.MULTILINE)
    line = started[1].replace("%%", "%").replace("$$", "$") if started else ""
    options = dict(itertools.pairwise(shlex.split(line)))
    with contextlib.suppress(tomllib.TOMLDecodeError):
        for key, value in tomllib.loads(config_text).items():
            options.setdefault(f"--{key.replace('_', '-')}", str(value))
    places = Places()
    return Places(
        state_dir=Path(options.get("--state-dir", places.state_dir)),
        run_dir=Path(options.get("--run-dir", places.run_dir)),
        cgroup_parent=options.get("--cgroup-parent", places.cgroup_parent),
    )


def configured_places() -> Places:
    """The places of the daemon that is installed here; the defaults if none is."""
    unit_text = UNIT.read_text() if UNIT.exists() else ""
    named = re.search(r"--config[ =](\S+)", unit_text)
    config = Path(named[1]) if named else CONFIG
    return places_of(unit_text, config.read_text() if config.is_file() else "")


def unit(command: Sequence[str]) -> str:
    """Return the text of the unit that runs *command*, whose first word is an absolute path. Pure.

    - `KillMode=process`: the containers and their zygote outlive the daemon, so that it can be
      restarted and upgraded under them.
    - No `network-online.target`: a host whose network is away must start its tasks all the same.
    - No start limit: a box that nobody looks after has to try for ever.
    - No sandboxing of mounts: the daemon makes namespaces whose mounts must be seen by others.
    """
    return f"""# Written by `swarmlet install`; `swarmlet uninstall` removes it.
[Unit]
Description=swarmlet, a node of a container swarm
After=local-fs.target network.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={" ".join(map(quoted, command))}
Restart=always
RestartSec=2
WatchdogSec={WATCHDOG_SECONDS}
TimeoutStopSec={STOP_SECONDS}
KillMode=process
Delegate=yes
OOMScoreAdjust=-900
LimitNOFILE=1048576
TasksMax=infinity

[Install]
WantedBy=multi-user.target
"""


def quoted(word: str) -> str:
    """Write *word* so that systemd reads it as one: systemd.service(5), "Command lines"."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if not word or set(word) & set(" \t'\";$") else escaped


def program() -> str:
    """The absolute path of the `swarmlet` that runs."""
    beside = Path(sys.executable).with_name("swarmlet")
    found = str(beside) if beside.exists() else shutil.which("swarmlet")
    if found is None:
        raise InstallError("no swarmlet program found: is the package installed? pip install it")
    return found


def install(
    options: Sequence[str], *, start: bool, force: bool, report: Callable[[str], None]
) -> None:
    """Write, enable and (if *start*) start the unit of a daemon with these *options*.

    The same unit again changes nothing. Another unit of that name stays unless *force*.

    Raises:
        InstallError: no root, no systemd, a unit that is not the same, a start that failed.
    """
    command = [program(), "daemon", *options]
    if os.geteuid() != 0:
        raise InstallError(f"root is needed to write {UNIT}: sudo {shlex.join(sys.argv)}")
    if not BOOTED.is_dir():
        raise InstallError(
            "this machine does not run systemd, so there is no unit to install.\n"
            "Let its own init run this at boot and again whenever it ends, as root:\n"
            f"  {shlex.join(command)}\n"
            "It stays in the foreground, logs to standard error, and ends on SIGTERM."
        )
    text = unit(command)
    if UNIT.exists() and UNIT.read_text() != text and not force:
        raise InstallError(
            f"{UNIT} is there with other options: look at it, then `swarmlet install --force`"
        )
    write(UNIT, text)
    report(f"wrote {UNIT}")
    systemctl("daemon-reload")
    systemctl("enable", UNIT.name)
    report("enabled at boot")
    if start:
        # Not `start`: with --force an older daemon may run. Its containers do not notice.
        systemctl("restart", UNIT.name)
        report("started")


def write(path: Path, text: str) -> None:
    """Replace *path* in one step."""
    draft = path.with_name(path.name + ".new")
    draft.write_text(text)
    draft.chmod(0o644)
    draft.rename(path)


def systemctl(*words: str) -> None:
    argv = ["systemctl", *words]
    try:
        done = subprocess.run(  # noqa: TID251 (a command of the user's, not the daemon)
            argv, capture_output=True, text=True, timeout=SYSTEMCTL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{shlex.join(argv)}: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise InstallError(
            f"{shlex.join(argv)}: {said}\nThe daemon's own words: journalctl -u {UNIT.name} -n 50"
        )
