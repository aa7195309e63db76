"""The lab's network: one bridge in a namespace of its own, and the faults on it.

There is no route out: nothing that a lab sends can leave it. Faults live on the bridge, not in
the hosts, so that no sender sees an error that a real network would not show it, and so that they
outlive the reboot of a host.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import trio

#: The machine that is no host: a client on the same LAN has this address, on the bridge itself.
CLIENT = 254

#: Every process of a lab carries this in its environment, whatever namespaces it moves to.
MARK = "SWARMLET_LAB"

Pair = tuple[int, int]  # numbers of hosts: frames from the first to the second


class LabError(OSError):
    """The lab could not do what it was asked; the text is what the tool said."""


async def execute(*argv: str, stdin: str = "") -> str:
    """Run a tool of this machine and return its output."""
    completed = await trio.run_process(
        argv, stdin=stdin.encode(), capture_stdout=True, capture_stderr=True, check=False
    )
    if completed.returncode:
        said = completed.stderr.decode(errors="replace").strip()
        raise LabError(f"{' '.join(argv)}: exit {completed.returncode}: {said}")
    return completed.stdout.decode(errors="replace")


def address(lab: int, number: int) -> str:
    """The address of host *number*. Unlike in every lab, so that no log can be misread."""
    return f"10.77.{lab}.{number}"


def mac(lab: int, number: int) -> str:
    """A network card keeps its address when its machine reboots."""
    return f"02:77:00:00:{lab:02x}:{number:02x}"


def rules(cuts: Collection[Pair], losses: Mapping[int, int]) -> str:
    """The ruleset of the bridge: what it drops. Pure.

    ARP passes where only one direction is cut: without it the other direction would die too,
    as soon as a neighbour entry went stale, and a one-way fault is about packets.
    """
    lines = []
    for source, target in sorted(cuts):
        scope = "" if (target, source) in cuts else "ether type != arp "
        lines.append(f"iifname p{source} oifname p{target} {scope}drop")
    for number, percent in sorted(losses.items()):
        lines.append(f"oifname p{number} ether type != arp numgen random mod 100 < {percent} drop")
    body = "\n    ".join(lines)
    return f"""table bridge faults
delete table bridge faults
table bridge faults {{
  chain forward {{
    type filter hook forward priority 0; policy accept;
    {body}
  }}
}}
"""


class Network:
    """The bridge `br0` with a port `p<n>` for each host, and the rules that spoil it."""

    def __init__(self, lab: int, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        self.cuts: set[Pair] = set()
        self.losses: dict[int, int] = {}
        self._holder: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process that holds the network's namespace."""
        assert self._holder is not None, "the network is not up"
        return self._holder.pid

    def enter(self) -> list[str]:
        """What to put before a command so that it runs as a client on the LAN."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net"]

    async def up(self, *, kept: bool) -> None:
        waiter = "exec sleep infinity" if kept else "exec cat"
        program = f"echo ready; {waiter} >/dev/null"
        self._holder = hold(
            "unshare",
            "--net",
            "sh",
            "-c",
            program,
            kept=kept,
            errors=self.folder / "network.log",
            env={"PATH": os.defpath, MARK: str(self.lab)},
        )
        await read_line(self._holder, "ready")
        gateway = address(self.lab, CLIENT)
        await self._ip(
            "link set lo up",
            "link add br0 type bridge stp_state 0 forward_delay 0",
            f"address add {gateway}/24 dev br0",
            "link set br0 up",
        )

    async def plug(self, number: int, pid: int) -> None:
        """Give the host whose namespaces *pid* lives in a card `eth0` and a port on the bridge."""
        await self._ip(
            f"link add p{number} type veth peer name eth0"
            f" address {mac(self.lab, number)} netns {pid}",
            f"link set p{number} master br0 up",
        )

    async def unplug(self, number: int) -> None:
        """Remove the port and with it the card, also if the host is gone already."""
        try:
            await self._ip(f"link delete p{number}")
        except LabError as error:
            # The kernel takes the card of a dead host away by itself, some time: before the tool
            # looks for it, or between its look and its request.
            if not any(gone in str(error) for gone in ("Cannot find device", "No such device")):
                raise

    async def carrier(self, number: int, state: str) -> None:
        """Pull (`down`) or plug in (`up`) the cable of a host."""
        await self._ip(f"link set p{number} {state}")

    async def spoil(self) -> None:
        """Put the faults that are written down in `cuts` and `losses` into the kernel, at once."""
        await execute(*self.enter(), "nft", "-f", "-", stdin=rules(self.cuts, self.losses))

    def down(self) -> None:
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()
            let_go(self._holder)
            self._holder = None

    def release(self) -> None:
        """Let go of the holder in a kept lab."""
        if self._holder is not None:
            self._holder.returncode = 0  # else its finalizer warns that it still runs
            let_go(self._holder)

    async def _ip(self, *lines: str) -> None:
        await execute(*self.enter(), "ip", "-batch", "-", stdin="\n".join(lines) + "\n")


def between(groups: Iterable[Iterable[int]]) -> set[Pair]:
    """All pairs of hosts that are in two different groups."""
    members = [set(group) for group in groups]
    return {
        (source, target)
        for one in members
        for other in members
        if one is not other
        for source in one
        for target in other
    }


async def read_line(process: subprocess.Popen[bytes], starts: str) -> str:
    """The rest of the next line that *process* prints, which must begin with *starts*."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    line = b""
    while not line.endswith(b"\n"):
        await trio.lowlevel.wait_readable(descriptor)
        got = os.read(descriptor, 1)  # not a byte too many: the next line is the next reader's
        if not got:
            raise LabError(f"{process.args!r} ended before it said {starts!r}: {line!r}")
        line += got
    text = line.decode().strip()
    if not text.startswith(starts):
        raise LabError(f"{process.args!r} said {text!r} where {starts!r} was due")
    return text.removeprefix(starts).strip()


# Processes that hold namespaces. Their standard input is the lifeline to the lab's owner.


def hold(*argv: str, kept: bool, errors: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a holder. Unless *kept*, it ends when this process does, however that ends."""
    with errors.open("ab") as log:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL if kept else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=env,
            start_new_session=True,
        )


def let_go(holder: subprocess.Popen[bytes]) -> None:
    """Close our ends of a holder's pipes: for one that is not kept, the end of its life."""
    for stream in (holder.stdin, holder.stdout):
        if stream is not None:
            stream.close()
