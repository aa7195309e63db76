"""Try the kernel's features where nothing can come to harm, and print what happened as JSON.

A program of its own, run as `python -m swarmlet.doctor.probe FOLDER`: it moves to new namespaces,
makes what the daemon would make, and ends; the namespaces and all in them end with it. Only the
modules that the kernel loads for it stay loaded. FOLDER is where the state will be: overlayfs is
tried on its file system.

The output is {"feature": null or what went wrong}.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from swarmlet import nft

# <linux/sched.h>, <sys/mount.h>
NAMESPACES = {
    "mount namespace": 0x00020000,
    "network namespace": 0x40000000,
    "UTS namespace": 0x04000000,
    "IPC namespace": 0x08000000,
    "cgroup namespace": 0x02000000,
    "PID namespace": 0x20000000,
}
CLONE_NEWUSER = 0x10000000
MS_REC, MS_PRIVATE = 0x4000, 1 << 18
MNT_DETACH = 2

#: What the load balancing of VIPs and published ports is made of.
RULESET = """
table ip probe {
  chain output { type nat hook output priority -100; policy accept;
    ip daddr 192.0.2.1 dnat to numgen inc mod 2 map { 0 : 192.0.2.2, 1 : 192.0.2.3 }
  }
  chain prerouting { type filter hook prerouting priority -150; policy accept;
    fib daddr type local ct mark set meta mark
  }
  chain postrouting { type nat hook postrouting priority 100; policy accept;
    ip saddr 192.0.2.0/24 masquerade
  }
}
"""
#: Kinds of links, each with what else the kernel wants to know.
LINKS: dict[str, dict[str, object]] = {
    "veth": {"peer": {"ifname": "probe-peer"}},
    "bridge": {},
    "vxlan": {"vxlan_id": 4097, "vxlan_port": 4789, "vxlan_learning": False},
    "wireguard": {},
}

_libc = ctypes.CDLL(None, use_errno=True)


def attempt(action: Callable[[], object]) -> str | None:
    try:
        action()
    except (OSError, nft.NftError) as error:
        return str(error)
    except Exception as error:  # of pyroute2, which has many kinds; they are answers here
        return f"{type(error).__name__}: {error}"
    return None


def check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def unshare(flag: int) -> None:
    check(_libc.unshare(flag), "unshare")


def mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    words = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags))
    check(_libc.mount(*words, data.encode()), target)


def in_child(action: Callable[[], object]) -> None:
    """Do *action* in a process of its own, which is left without trace."""
    reading, writing = os.pipe()
    pid = os.fork()  # noqa: TID251 (this program has one thread and is not the daemon)
    if pid == 0:
        os.write(writing, (attempt(action) or "").encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        said = stream.read().decode(errors="replace")
    os.waitpid(pid, 0)
    if said:
        raise OSError(said)


def overlay(folder: str) -> None:
    """Mount an overlay with its upper layer on the file system of *folder*."""
    with tempfile.TemporaryDirectory(prefix=".swarmlet-probe-", dir=folder) as scratch:
        parts = {name: os.path.join(scratch, name) for name in ("lower", "upper", "work", "merged")}
        for part in parts.values():
            os.mkdir(part)
        layers = f"lowerdir={parts['lower']},upperdir={parts['upper']},workdir={parts['work']}"
        mount("overlay", parts["merged"], "overlay", 0, layers)
        try:
            Path(parts["merged"], "file").write_text("written")
        finally:
            _libc.umount2(parts["merged"].encode(), MNT_DETACH)


def add_link(kind: str, options: dict[str, object]) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as routing:
        routing.link("add", ifname=f"probe-{kind[:6]}", kind=kind, **options)


def tun() -> None:
    os.close(os.open("/dev/net/tun", os.O_RDWR))


def seccomp() -> None:
    """Whether filters are in the kernel: prctl(2), PR_GET_SECCOMP and the list of actions."""
    actions = Path("/proc/sys/kernel/seccomp/actions_avail").read_text().split()
    if "errno" not in actions:
        raise OSError(f"no filters: actions are {actions}")


def balancing() -> None:
    run = nft.connect()
    run(RULESET)
    run("delete table ip probe")


def main(folder: str) -> None:
    results: dict[str, str | None] = {}
    results["user namespace"] = attempt(lambda: in_child(lambda: unshare(CLONE_NEWUSER)))
    for name, flag in NAMESPACES.items():
        results[name] = attempt(lambda flag=flag: unshare(flag))  # type: ignore[misc]
    if results["mount namespace"] is None:
        mount("none", "/", "", MS_REC | MS_PRIVATE, "")
        results["overlayfs"] = attempt(lambda: overlay(folder))
    else:
        results["overlayfs"] = results["mount namespace"]
    results["seccomp"] = attempt(seccomp)
    results["tun"] = attempt(tun)
    if results["network namespace"] is None:
        for kind, options in LINKS.items():
            results[kind] = attempt(lambda k=kind, o=options: add_link(k, o))  # type: ignore[misc]
        results["nftables"] = attempt(balancing)
    else:
        results |= dict.fromkeys([*LINKS, "nftables"], results["network namespace"])
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
