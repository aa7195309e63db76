"""The lab: hosts on this machine, for tests, for `scripts/lab` and for `scripts/quickstart`.

A lab is a network namespace with a bridge in it, and for each host a network namespace (a cable to
the bridge, address 10.77.<lab>.<n>), a PID namespace whose first process only reaps, a mount
namespace with its own /proc, /sys and /run, a host name, a state folder on the disk and a cgroup
`swarmlet-lab-<lab>/h<n>`. The machine itself is not changed: no link, rule, mount or named
namespace of a lab can be seen from it.

A host is killed as a power cut kills: its first process gets SIGKILL, and the kernel ends all
others of its PID namespace at the same moment, takes its mounts and its network away, and leaves
the disk. `reboot` makes the namespaces anew.

    async with Lab(3) as lab:
        h1, h2, h3 = lab.hosts
        for host in lab.hosts:
            await host.start_daemon()
            await host.wait_ready()
        print((await h1.run("swarmlet", "init")).stdout)
        await h3.kill()
        await eventually(lambda: h1.run("swarmlet", "node", "ls"), until=shows_h3_down)

Holds:

- Nothing a lab sends can leave it: its network has no route out.
- Whoever made a lab holds the lifelines of its hosts. However that process ends, its hosts end.
  What then still lies about (folders, cgroups) the next lab clears away.
- Only processes that a lab started are ever signalled: a pid counts only with its start time.
- Two labs do not meet: each has its own bridge, folder, cgroup and number.

Not here: delay and bandwidth (no netem in the test kernel), and a clock for each host.
"""

from tests.lab.host import Answer, Completed, Host, Running
from tests.lab.lab import Lab
from tests.lab.network import LabError
from tests.lab.ownership import leftovers, reap_dead_labs, remove
from tests.lab.remains import residue
from tests.lab.waiting import eventually

__all__ = [
    "Answer",
    "Completed",
    "Host",
    "Lab",
    "LabError",
    "Running",
    "eventually",
    "leftovers",
    "reap_dead_labs",
    "remove",
    "residue",
]
