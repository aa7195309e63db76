"""Talk to systemd, or to whoever else set NOTIFY_SOCKET: ready, alive, stopping.

sd_notify(3) is one datagram to one socket, so it needs no library. Without a supervisor every
call is a no-op that returns False: the daemon calls them always.

    supervisor = Supervisor.from_environment(os.environ)
    nursery.start_soon(supervisor.feed_watchdog)
    supervisor.ready("manager, 3 nodes")
    ...
    supervisor.stopping()
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass

import trio

logger = logging.getLogger(__name__)

#: sd_watchdog_enabled(3): feed it at half of the time after which it bites.
WATCHDOG_SHARE = 0.5
_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


@dataclass(frozen=True, slots=True)
class Supervisor:
    """Who started this process, and how often it wants to hear from us."""

    address: str | None = None  # of its datagram socket; "@" begins an abstract one
    watchdog_seconds: float | None = None  # after so much silence we are killed

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Supervisor:
        """Read and remove the variables, so that no child believes that it is the service."""
        address, microseconds, pid = (environment.pop(name, "") for name in _VARIABLES)
        if not address.startswith(("/", "@")):
            return cls()
        # sd_watchdog_enabled(3): the watchdog of another process is not ours to feed.
        ours = not pid or pid == str(os.getpid())
        seconds = int(microseconds) / 1e6 if microseconds.isdigit() and ours else 0.0
        return cls(address, seconds or None)

    def ready(self, status: str = "") -> bool:
        """The daemon is usable; `systemctl start` returns now."""
        return self.notify("READY=1", *_status(status))

    def status(self, status: str) -> bool:
        """One line for `systemctl status`."""
        return self.notify(*_status(status))

    def stopping(self) -> bool:
        return self.notify("STOPPING=1")

    def alive(self) -> bool:
        return self.notify("WATCHDOG=1")

    def notify(self, *assignments: str) -> bool:
        """Send *assignments*; whether there was somebody to send to. Never blocks, never raises.

        A supervisor that does not listen is its own problem: the daemon goes on without it.
        """
        if self.address is None:
            return False
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with socket.socket(socket.AF_UNIX, kind) as datagrams:
            try:
                datagrams.sendto("\n".join(assignments).encode(), address)
            except OSError as error:
                logger.warning("supervisor not notified reason=%s", error)
                return False
        return True

    async def feed_watchdog(self) -> None:
        """Say "alive" as often as the watchdog wants; return at once if there is none.

        Run it in the loop that must not hang: then its silence tells that the loop does.
        """
        if self.watchdog_seconds is None:
            return
        while True:
            self.alive()
            await trio.sleep(self.watchdog_seconds * WATCHDOG_SHARE)


def _status(status: str) -> list[str]:
    return [f"STATUS={' '.join(status.splitlines())}"] if status else []
