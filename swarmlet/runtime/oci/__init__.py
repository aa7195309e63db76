"""swarmlet-oci: the supervisor's plans behind the OCI runtime's command line, without a daemon.

An engine (podman by conmon, containerd by its shim, CRI-O) calls a program for each operation on a
container and is itself the parent of the container's process. So here is no zygote: the program
makes the child by the same steps (plan.py, child.py, cloning.py), and ends.

The life of one container:

1. `create --bundle B ID`: config.json becomes a `Config` (config.py; what is wrong in it is said by
   its path), that a plan (bundleplan.py). Groups with limits are made, the root and the binds are
   taken hold of, the child is born in its namespaces and pivots. It then waits at a socket in the
   folder of the container (bundlechild.py), and the program ends.
2. `start ID` connects to that socket; the child launches, and an end of file says that it did.
3. `kill`, `exec`, `pause`, `update`, `ps`, `events` find it by state.json (records.py): a pid with
   its start time, and its groups.
4. `delete ID` kills what is left in the groups, and removes them and the folder.

Hooks run where the specification says: prestart, createRuntime, poststart and poststop here,
createContainer and startContainer in the container's namespaces. A hook that fails ends the
creation; after the start it is a warning.

Left out, and refused by name: checkpoint, systemd as the maker of groups (its paths are understood,
and made without it), notifications of seccomp, Intel RDT, personality, schedulers, mapped mounts.
"""
