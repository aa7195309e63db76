"""What the daemon is started with, and what it remembers of the cluster it belongs to."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
from dataclasses import asdict, dataclass, field
from pathlib import Path

from swarmlet.identity.vault import write_atomically

FORMAT = 1
DEFAULT_PORT = 7947
#: Where tasks have their way out of the host; private, and no default of Docker's.
GATEWAY_SUBNET = "172.31.192.0/20"


class BadState(OSError):
    """The state folder holds something that this release cannot go on from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The daemon's options (`swarmlet daemon`)."""

    state_dir: Path
    run_dir: Path
    listen: str = f"0.0.0.0:{DEFAULT_PORT}"
    advertise: str = ""
    data_path_port: int = 4789
    cgroup_parent: str = "swarmlet"
    name: str = ""
    log_level: str = "info"
    gateway_subnet: str = GATEWAY_SUBNET

    @property
    def socket_path(self) -> Path:
        return self.run_dir / "swarmlet.sock"

    @property
    def host_name(self) -> str:
        return self.name or socket.gethostname()


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """<state>/node.json: the cluster that this node belongs to. There only once a join is whole."""

    cluster: str
    node: str
    listen: str
    advertise: str
    managers: list[str] = field(default_factory=list)  # host:port, as of the join
    follows_address: bool = False  # the address was found, not given: it may change (DHCP)

    @staticmethod
    def path(state_dir: Path) -> Path:
        return state_dir / "node.json"

    @classmethod
    def load(cls, state_dir: Path) -> Membership | None:
        """Raises BadState."""
        path = cls.path(state_dir)
        try:
            document = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            raise BadState(f"{path} cannot be read: {exc}; put a copy back or leave") from exc
        if document.pop("swarmlet-node", None) != FORMAT:
            raise BadState(f"{path} is of another release: start that one again")
        return cls(**document)

    def store(self, state_dir: Path) -> None:
        document = {"swarmlet-node": FORMAT, **asdict(self)}
        write_atomically(self.path(state_dir), json.dumps(document, indent=1).encode())

    @classmethod
    def forget(cls, state_dir: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(cls.path(state_dir))


def parse_address(text: str, port: int = DEFAULT_PORT) -> tuple[str, int]:
    """Return the host and port in "host", "host:port" or "[v6]:port". Raises ValueError."""
    host, colon, digits = text.rpartition(":")
    if text.startswith("["):
        inner, _, rest = text[1:].partition("]")
        host, digits = inner, rest.removeprefix(":")
        colon = ":" if digits else ""
    elif text.count(":") > 1:
        host, colon, digits = text, "", ""
    elif not colon:
        host, digits = text, ""
    if not host:
        raise ValueError(f"{text!r} names no host")
    if not digits:
        return host, port
    if not digits.isdigit() or not 0 < int(digits) <= 65_535:
        raise ValueError(f"{text!r}: {digits!r} is no port")
    return host, int(digits)


def own_address(toward: str | None = None) -> str:
    """Return the address of this host from which *toward*, or the outside, is reached.

    Raises:
        OSError: the host has no route: it must be told with --advertise.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # No packet is sent: connect(2) on UDP only looks up the route.
            probe.connect((toward or "192.0.2.1", 9))
            address = str(probe.getsockname()[0])
        except OSError:
            address = ""
    if not address or ipaddress.ip_address(address).is_loopback:
        candidates = [a for a in _own_addresses() if not ipaddress.ip_address(a).is_loopback]
        if len(candidates) == 1:
            return candidates[0]
        found = ", ".join(candidates) or "none"
        raise OSError(
            f"cannot tell by which address other nodes reach this host (its addresses: {found}): "
            "say it with --advertise"
        )
    return address


def _own_addresses() -> list[str]:
    """Every IPv4 address of this host's interfaces (SIOCGIFCONF, netdevice(7))."""
    import array
    import fcntl
    import struct

    buffer = array.array("B", bytes(40 * 256))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("iL", len(buffer), buffer.buffer_info()[0])
        answer = fcntl.ioctl(probe.fileno(), 0x8912, request)
        length = struct.unpack("iL", answer)[0]
    return [
        socket.inet_ntoa(buffer[start + 20 : start + 24].tobytes())
        for start in range(0, length, 40)
    ]
