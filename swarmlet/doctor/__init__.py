"""The doctor: what this machine has and lacks, why it matters and how to get it.

Every question is asked of the thing itself: a feature of the kernel is found when it was used, not
when a configuration file says so; a port when it could be bound; a disk by flushing it.

The life of an examination
    examine()      asks kernel.py and machine.py and returns findings in the order of their groups
    probe.py       a program of its own that tries the kernel's features in new namespaces, where
                   nothing can come to harm, and prints what happened
    findings.py    one finding, the exit code, the summary                                   (pure)

What always holds
    - Nothing on the machine is changed but that the kernel may load a module it was asked for.
    - A finding says what it is for, and when something is amiss, what to do.
    - MISSING means that swarmlet does not run, or not all of it; DEGRADED that it runs with less.
    - It ends: each question has a bound in time.

Left out: whether other nodes can be reached. That needs a swarm, and is seen by its gossip.
"""

from __future__ import annotations

from pathlib import Path

from swarmlet.doctor import kernel, machine
from swarmlet.doctor.findings import Finding, Status, exit_code, summary

__all__ = ["Finding", "Status", "examine", "exit_code", "summary"]


def examine(state_dir: Path, run_dir: Path, port: int, data_path_port: int) -> list[Finding]:
    """Look at this machine as a place for a daemon with these options."""
    return [
        *kernel.examine(machine.existing(state_dir)),
        *machine.examine(state_dir, run_dir, port, data_path_port),
    ]
