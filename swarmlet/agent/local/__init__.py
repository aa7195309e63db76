"""Containers run by hand on this host: `run`, `start`, `stop`, their networks and volumes.

The problem. A person at a box wants one container now: to look into a volume, to try an image, to
run what is no service. Docker's verbs and flags are what the hands know; and the box may belong to
a swarm or to none, have no manager in reach, or have just come back from a power cut.

The life of one container:

1. The API turns Docker's JSON into a `ContainerConfig` (records.py) or refuses it by the field's
   name. `Engine.create` (engine.py) merges it with the image's own words, gives it an id and a
   name, makes its anonymous volumes, and leaves a `ContainerRecord` on the disk. No process yet.
2. `start` (starting.py) unpacks the image, fills new volumes from it (volumes.py, rootfs.py), gives
   it ports and a sandbox of the host's network (networks.py), writes a runtime spec (specs.py) and
   has the supervisor make it. Who attached before the start is given the streams first.
3. Its one loop waits for the end, and lifecycle.py, which is pure, says what follows: another start
   after a pause, rest, or removal (`--rm`).
4. After a restart of the daemon the loop takes over the process that is there; after a reboot the
   same function says which containers come back. No manager is asked for either.
5. Files go in and out as tar streams (archives.py, tarin.py, tarout.py), below the container's root
   whatever it does meanwhile; changes.py says what differs from the image, commits.py makes a new
   one of it. Archives carry the container's owners (owners.py).
6. `remove` takes the record away last, so that a removal that was cut off is found and finished.

Where things are, below the state folder:

    local/containers/<id>/record    the record; written to a temporary name, fsynced, renamed
    local/containers/<id>/upper     the writable layer, which stop and start keep
    local/containers/<id>/log/      the log files, on their way from one run to the next
    local/networks                  the networks of this host alone
    network                         places of all sandboxes on the host's bridge (agent/network.py)
    volumes/<name>/_data            named volumes, those of tasks as well
    volumes/<name>/volume           who made it, when, its labels

Invariants:

- What the user wanted is on the disk before it is done; what is only observed (exits of a crash
  loop, restart counts, health) is written when a container comes to rest, so a container that dies
  every minute does not wear the disk.
- One loop owns a container's life; operations on one container exclude each other and block no
  other's.
- A container's id is the supervisor's id and the sandbox's name: what is found after a crash says
  whose it is.
- No path that a user gives is followed outside of the container's root (rootfs.py): the kernel
  resolves it below a descriptor.

Where we differ from Docker: containers on the default bridge reach the world and are reached by
published ports, but not each other (that is what networks are for, and they bring names); a network
of one host has no address of the host's; the writable layer is not sized; a stopped container keeps
its log across starts, within the log's bound.
"""
