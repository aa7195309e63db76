"""Containers on one host: namespaces, control groups and one supervisor for all of them.

The problem. A task of the swarm is a process that must not see, harm or starve the host, whose
output and end must reach the user, and that must not notice that the daemon was upgraded. Docker
answers with four programs (dockerd, containerd, runc and a shim of 3 MB for each container). Here
it is one small process a host, the zygote, and a library in the daemon.

The life of one container, from the call to the last trace:

1. The agent writes a `ContainerSpec` (spec.py), in the words of the OCI runtime specification.
2. `plan()` turns it into steps (plan.py, steps.py): pure, the order is the documentation.
3. `Supervisor.create` (supervisor.py) leaves state.json and does the plan's steps on the host
   (hostside.py): folders, FIFOs, cgroups with limits, device rules.
4. The zygote (zygote.py, birth.py) clones itself with clone3 into new namespaces and the cgroup2.
   The child (child.py) does the steps of its birth: joins v1 groups, takes detached copies of
   what comes from the host, mounts the overlay, pivots into it, and only inside of it mounts the
   rest, so that no link of an image leads out (rootfs.py). Then it waits: "created".
5. `start` lets it launch: limits, user, capabilities, no_new_privs, the seccomp filter, execve.
6. The zygote takes its output to the log and to who is attached (pump.py, logfile.py), reaps it
   and tells the daemon, which sees whether the memory limit killed it and tells who waits.
7. `remove` does the removal's steps: the group killed and gone, the folders gone.

Invariants:

- state.json is there before anything else and goes last: whatever dies between two steps, the next
  daemon finds the container and finishes or removes it.
- Nothing of a container is mounted in the host's mount namespace.
- The daemon never forks; the zygote has one thread and no module beyond the standard library.
- A process is named by pidfd, or by pid and start time, never by pid alone.
- A step never falls back: what a host lacks is known before (host.py) and makes another plan.
- Secrets are in memory (memfd, tmpfs) only, and never in the zygote's.

What survives what:

| dies | what happens to containers |
| --- | --- |
| the daemon | nothing; the next one lists the zygote's and reads state.json |
| the zygote | they run on, their output waits in FIFOs; the next zygote adopts them |
| both | the same; an exit in between is read from exit.json, /proc or the pidfd, or is "lost" |
| the host | their logs and folders are found as exited and lost |

Where we differ from runc: mounts are attached after the pivot, from detached trees, where runc
checks every target path; device rules are eBPF on cgroup2 also beside cgroup v1; joins of v1
hierarchies only where a limit is; a child enters a PID namespace by the zygote's setns instead of a
second fork; standard streams are FIFOs that the container itself can read, so that the death of a
supervisor is no SIGPIPE.

User namespaces (cloning.py, rootfs.py, idranges.py): a range of ids for each container; its layers
and mounts are idmapped, so on the disk owners count from 0 and nothing is copied or shifted.

Beside the supervisor, by the same steps: `swarmlet-oci` runs bundles for other engines, with hooks
and time namespaces (oci/), and `swarmlet audit` tries the ways out of a container (audit/). Rotated
logs are compressed by a child of the zygote (compressing.py); an init is a child that did not
execute (launcher.py).

Left out so far: AppArmor, Landlock, checkpoint, other runtimes in our place.

Import `swarmlet.runtime.supervisor` and `swarmlet.runtime.spec`; this file imports nothing, since
the zygote passes through it.
"""
