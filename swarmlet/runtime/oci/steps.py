"""The steps that only a bundle needs, beside those of swarmlet.runtime.steps. Pure.

bundlechild.py has one method of the same name and parameters for each.
"""

from __future__ import annotations

from swarmlet.runtime.values import value

#: (path, arguments, environment or None for the caller's, seconds or 0) of one hook.
HookCall = tuple[str, tuple[str, ...], tuple[str, ...], float]


@value
class Synchronize:
    """Wait until the runtime has called the hooks that are its own; learn the container's state."""


@value
class CallHooks:
    """Run each hook, in the container's namespaces, with the state on its standard input."""

    kind: str
    hooks: tuple[HookCall, ...]


@value
class EnsureNode:
    """Make a device node, unless the bundle's root or a mount of /dev has something there."""

    path: str
    mode: int  # with the type: S_IFCHR, S_IFBLK or S_IFIFO
    major: int
    minor: int
    uid: int
    gid: int


@value
class EnsureLink:
    path: str
    target: str


@value
class MountCopy:
    """Mount a tmpfs that holds what was at *target* before (the option tmpcopyup)."""

    target: str
    flags: int
    data: str


@value
class CheckCommand:
    """Say already at the creation that there is no such command, as engines expect of runc."""

    args: tuple[str, ...]
    env: tuple[str, ...]
