"""The Docker Engine API, 1.24 to 1.50, on a Unix socket and between nodes.

What for
    The public interface of a node is Docker's: the stock `docker` client, Compose and whatever
    speaks to an engine work. What Docker has no word for lies under `/swarmlet/`.

The life of a call
    http.py       reads a request off a stream, within limits         (h11, Trio)
    router.py     finds its route; the one boundary of errors
    rights.py     decides: answer here, hand to the leader, or refuse (pure, one table)
    proxy.py      hands it on as it is: streams and upgrades, too
    services.py … one file a resource: look in the view, ask Control, write JSON
    logs.py       the logs of a service, from every node, merged by time
    execs.py      a process in a container, its streams over an upgraded connection
    lives.py      what is done to containers; files.py cp, diff, export, commit; usage.py top, stats
    disk.py       df and prune of this host; volumes.py its volumes
    convert_*.py  Docker's JSON to our records and back               (pure)
    backend.py    what is asked of the daemon: Protocols

    server.py joins them: make_router(node), then serve_unix(path, router.respond) for clients
    and serve_stream(stream, router.respond, peer=Peer(node, role)) for other nodes' streams.

What always holds
    - No field of a body is ignored: what is not understood is refused with the path to it
      (fields.py). What Docker has and we do not is refused by name, with what to do instead.
    - Every node answers for the cluster: a manager hands all calls to the leader, a worker those
      that only look. What a worker is shown has no values of environment variables (masking.py).
    - A call from another node is answered or refused, never handed on: nothing goes in circles.
    - A client that goes away ends what it asked for; a slow one is bounded in time.
    - Whatever the bytes: an HTTP error or a closed connection.

Where we differ from Docker's daemon
    - The counts of `service ls` are of tasks that are still wanted, on nodes that are up.
    - The error of a failed task carries the last line that it wrote.
    - Spec.Swarmlet holds what only swarmlet knows; an update by the docker client keeps it.
"""
