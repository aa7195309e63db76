"""What went wrong with a container, and what to do about it. Pure."""

from __future__ import annotations

import errno
import os

from swarmlet.runtime.steps import (
    AllowDevices,
    CloneTree,
    Execute,
    HoldTree,
    JoinCgroup,
    MakeCgroup,
    MountOverlay,
    ResolveUser,
    SetLimit,
    SetOomScore,
    SetRlimit,
    Step,
    wire_name,
)

#: step (None is any), errno: what to do. The first that fits is said.
ADVICE: tuple[tuple[type[Step] | None, int, str], ...] = (
    (CloneTree, errno.ENOENT, "make the source of the mount on this host, or use a volume"),
    (
        HoldTree,
        errno.ENOENT,
        "make the source of the mount on this host, or use a volume; pull the image again if it "
        "is a layer",
    ),
    (MountOverlay, errno.ENOENT, "a layer of the image is missing on this host: pull it again"),
    (
        MountOverlay,
        errno.EINVAL,
        "the state folder's file system cannot hold an overlay: use ext4 or xfs",
    ),
    (
        SetRlimit,
        errno.EPERM,
        "ask for less, or give the daemon CAP_SYS_RESOURCE and a higher limit",
    ),
    (SetOomScore, errno.EACCES, "only a daemon with CAP_SYS_RESOURCE may lower it"),
    (SetLimit, errno.EINVAL, "the kernel does not take this value: see the path and the limit"),
    (SetLimit, errno.EACCES, "the limit is not for this host (a CPU or memory node it lacks?)"),
    (SetLimit, errno.ERANGE, "this host has no such CPU or memory node"),
    (SetLimit, errno.ENOSPC, "this host has no such CPU or memory node"),
    (SetLimit, errno.EBUSY, "the container uses more than the new limit already"),
    (MakeCgroup, errno.EROFS, "the cgroup file system is read-only: run the daemon on the host"),
    (
        MakeCgroup,
        errno.EBUSY,
        "the parent group holds processes: give the daemon a group of its own",
    ),
    (JoinCgroup, errno.ENOSPC, "the cpuset of the parent group is empty"),
    (AllowDevices, errno.EPERM, "device rules need CAP_SYS_ADMIN or CAP_BPF"),
    (None, errno.ENOSPC, "free space on the disk of the state folder"),
    (None, errno.EMFILE, "raise the open files limit of the daemon (LimitNOFILE)"),
    (None, errno.EAGAIN, "raise the number of tasks of the daemon (TasksMax, ulimit -u)"),
)
#: Steps whose failure text is made for users and stands alone.
SPEAKS_FOR_ITSELF = (Execute, ResolveUser)


class RuntimeFailure(Exception):
    """An operation on a container failed. `str()` says what, why and what to do.

    *step* names the step of the plan, or is empty when no step was under way.
    """

    def __init__(
        self,
        container_id: str,
        text: str,
        step: str = "",
        errno: int = 0,
        path: str = "",
        advice: str = "",
    ) -> None:
        super().__init__(container_id, text, step, errno, path, advice)
        self.container_id = container_id
        self.text = text
        self.step = step
        self.errno = errno
        self.path = path
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.text}; {self.advice}" if self.advice else self.text


class NoSuchContainer(RuntimeFailure):
    """The supervisor knows no container of that id."""


class ZygoteLost(RuntimeFailure):
    """The zygote died during the operation, or none can be started."""


def of_step(container_id: str, step: Step, code: int, text: str, path: str) -> RuntimeFailure:
    """Return the failure of *step* with what to do about it."""
    name = wire_name(type(step))
    fits = (a for kind, number, a in ADVICE if number == code and kind in (None, type(step)))
    advice = next(fits, "")
    if not isinstance(step, SPEAKS_FOR_ITSELF):
        subject = f" {path}" if path and path not in text else ""
        text = f"{name.replace('_', ' ')}{subject}: {text or os.strerror(code)}"
    return RuntimeFailure(container_id, text, name, code, path, advice)
