"""Start and stop: folders, log, signals, the service manager."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys
from typing import IO

import trio

from swarmlet import sdnotify
from swarmlet.daemon import malloc
from swarmlet.daemon.config import Settings
from swarmlet.daemon.daemon import Daemon

logger = logging.getLogger(__name__)

#: Seconds that everything gets to finish after SIGTERM.
GRACE = 10.0
LOCK = "lock"


def main(settings: Settings) -> None:
    malloc.keep_little()
    _set_up_log(settings.log_level)
    settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = _take_lock(settings)
    try:
        trio.run(_serve, settings)
    finally:
        lock.close()


def _set_up_log(level: str) -> None:
    """One line a transition on stderr; the journal adds the time when it is the reader."""
    under_journal = bool(os.environ.get("JOURNAL_STREAM"))
    line = "%(levelname)s %(name)s %(message)s"
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format=line if under_journal else f"%(asctime)s.%(msecs)03d {line}",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )


def _take_lock(settings: Settings) -> IO[str]:
    """One daemon a state folder. Raises OSError."""
    path = settings.state_dir / LOCK
    file = open(path, "a")  # noqa: SIM115 (held while the daemon lives)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        file.close()
        raise OSError(
            exc.errno,
            f"another daemon runs with {settings.state_dir}: stop it, or give this one "
            "another --state-dir",
        ) from exc
    return file


async def _serve(settings: Settings) -> None:
    systemd = sdnotify.Supervisor.from_environment(os.environ)
    daemon = Daemon(settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(_wait_for_signal, daemon, systemd, nursery.cancel_scope)
        nursery.start_soon(systemd.feed_watchdog)
        await nursery.start(daemon.run)
        systemd.ready()
        logger.info("daemon started socket=%s", settings.socket_path)
    logger.info("daemon stopped")


async def _wait_for_signal(
    daemon: Daemon,
    systemd: sdnotify.Supervisor,
    scope: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            logger.info("daemon stopping signal=%s", signal.Signals(number).name)
            systemd.stopping()
            with trio.move_on_after(GRACE):
                await daemon.stop()
            scope.cancel()
            return
