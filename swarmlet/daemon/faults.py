"""Why a manager cannot take part in Raft, and what to do about it, in an operator's words.

Pure. The node goes on without it: gossip, containers and the API on this host.
"""

from __future__ import annotations

from pathlib import Path

from raft.disk import DirectoryLocked
from raft.frames import WrongKey
from raft.scan import LogDamaged, LogMissing

_ANEW = (
    "On another manager run `swarmlet node demote` and then `swarmlet node promote` for this node: "
    "it begins with an empty log and gets everything from the others."
)
_ALONE = "If no majority of managers is left, run `swarmlet recover` on the one with the best log."


class ManagerFault(Exception):
    """This manager takes no part in Raft; the text says why and what to do."""


def explain(failure: BaseException, folder: Path) -> str | None:
    """Return what to say of *failure*, which ended a server of Raft; None if it is a bug."""
    failure = leaf_of(failure)
    match failure:
        case LogMissing():
            return (
                f"the raft log in {folder} is gone, and with it what this manager has voted. "
                f"{_ANEW} If it was the only manager, put a copy of the folder back."
            )
        case LogDamaged():
            return f"the raft log in {folder} is damaged: {failure}. {_ANEW} {_ALONE}"
        case WrongKey():
            return (
                f"the raft log in {folder} cannot be opened: {failure}. The identity folder beside "
                f"it must be the one that it was written with: put that back. Or: {_ANEW}"
            )
        case DirectoryLocked():
            return f"{failure}: is another daemon running on {folder.parent}? Stop one of the two."
        case OSError():
            return (
                f"the disk under {folder} failed: {failure}. Nothing was answered that is not on "
                f"it. See to the disk, then restart the daemon. {_ALONE}"
            )
    return None


def leaf_of(failure: BaseException) -> BaseException:
    """Return the failure that a group is about."""
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure
