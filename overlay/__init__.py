"""Addresses, names and load balancing for the containers of one host among many.

The problem
===========

A task must have an address that every other task on its network can reach, whatever host each is
on; a name that finds it; a share of its service's connections; and, if it publishes a port, clients
from outside on every host of the cluster. Nothing in between may change who the client is, and
nothing may be left wrong for long, whoever changes the kernel under us.

The library knows nothing of swarmlet. One host's share of the cluster comes in as a Topology
(topology.py), a value; what it asks for is in the kernel when Reconciler.converge() returns.

The life of a change
====================

1. The agent builds a Topology from what the managers told it and calls `converge(topology)`.
2. desired.py turns it into a set of resources (resources.py): namespaces, links and their
   settings, addresses, routes, rules, forwarding entries, neighbours, nft tables. A resource is a
   value; equal sets are equal kernels.
3. kernel.py reads what is ours in the namespaces that the change concerns, by netlink.py (whose
   only library is rtnetlink.py), nftables.py and /proc/sys, into a set of the same resources.
4. plan.py gives the operations from one set to the other: stale things go, in reverse order of
   building; missing ones come; what can be set in place is, so that no packet finds a gap.
5. kernel.py does them, in batches, going on past what the kernel refuses. Then it is read again,
   until nothing differs; or NotConverged says what does.
6. retirement.py says which flows and neighbours the kernel should forget: a map decides the next
   connection, but the kernel remembers those before.
7. names.views(topology) goes to Resolver.update(), which answers 127.0.0.11 in each sandbox.

Every 30 seconds 3 to 5 happen for the whole host. No step is undone when a later one
fails: a half-applied plan is another actual state, and is planned from. The same holds for a daemon
that was killed anywhere and starts again: it reads, and finds nothing or something to do.

The life of a packet
====================

Task a on host 1 connects to `http://web/`. The resolver says 10.1.0.100, a virtual IP. In a's own
namespace the nft table (rulesets.py) makes it the next backend's address (balancing.py): 10.1.0.12
on host 2. a asks by ARP who that is; on host 1's bridge of the network, vx0 answers from its
neighbour table. The frame goes to vx0, whose forwarding table knows the VTEP of the MAC, and over
the underlay to host 2, where the bridge's static table knows the port. The backend sees a's own
address, and its answer comes back the same way; a's namespace turns the source into the virtual IP.

A client outside connects to port 8080 of host 3. The host's table picks a backend's address on
the ingress network and sends the packet there through `swl-ingress`, source unchanged. In the
backend's namespace the frame's source MAC tells which host it came in by; that becomes the
connection's mark, answers carry the mark, a rule routes marked packets through that host's ingress
address, and there the translation is undone. Only who would otherwise talk to himself is masked:
the host's loopback addresses, and tasks that use their own host's port.

Invariants
==========

- plan(x, x) == []; from any kernel, after two looks, the wanted one, also when interrupted.
- A second apply changes nothing; a daemon that restarts changes nothing.
- In the host's namespace only interfaces with our alias, one nft table, and routes and rules with
  our protocol number are ever touched. In a sandbox the same: its task may have its own.
- The host's namespace holds two interfaces of ours, however many tasks there are; the bridges
  have namespaces of their own (desired.py), where no firewall of anybody meets our frames.
- No frame is learned from and none is flooded; no ARP request crosses the underlay.
- A sandbox's port accepts its own MAC only; the mesh accepts entry hosts' MACs only; VXLAN frames
  of our networks are accepted from the cluster's VTEPs only; nothing on the wire reaches 127/8.
- A port or virtual IP without backends refuses at once; it never hangs.
- No packet is fragmented: overlay MTU = underlay MTU - 50, and the mesh clamps segments at both
  ends.

Where we differ
===============

- From Docker: the client's address arrives; the balancing is done where the client is, with nft
  instead of IPVS; there is no gossip of endpoints; a task that binds port 53 keeps it.
- From flannel and kube-proxy: nothing is learned from misses, and tables are compared with the
  kernel rather than assumed.
- From our design's first draft: netlink and DNS messages are our own few hundred lines. pyroute2
  costs 12 MB and ten times the time (rtnetlink.py); dnslib can be brought down by one packet
  (dns.py).

What is left out
================

IPv6 (addresses are `ipaddress` values and families are looked up, but tables are `ip` only);
encryption of the underlay; multicast and broadcast beyond a host; fixed routes for hosts behind
NAT. ip_forward is switched on, as by Docker, and given back by remove_all(); what else a host then
forwards between its own interfaces is for its own firewall to say. A foreign FORWARD chain that
drops by default must let our two interfaces pass.

Use
===

    reconciler = Reconciler(run_dir=Path("/run/swarmlet"))
    resolver = Resolver(run_dir=Path("/run/swarmlet"))
    await nursery.start(reconciler.run)
    await nursery.start(resolver.run)
    await reconciler.converge(topology)        # the task's namespace: run_dir/netns/<sandbox id>
    resolver.update(views(topology))
    await resolver.wait_serving([sandbox_id])  # now the task may start

A network with VNI 0 stays on this host: the same bridge, without a VXLAN device.

When a host leaves: stop run(), then `await reconciler.remove_all()`.
"""

from overlay.names import NameView, views
from overlay.reconciler import NotConverged, Reconciler, Statistics
from overlay.resolver import Resolver, ResolverStatistics

__all__ = [
    "NameView",
    "NotConverged",
    "Reconciler",
    "Resolver",
    "ResolverStatistics",
    "Statistics",
    "views",
]
