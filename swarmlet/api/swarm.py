"""/swarm: init, join, leave, settings and join tokens; and ours beside it under /swarmlet.

POST /swarmlet/tokens   {"Role": "worker", "TTL": nanoseconds, "Uses": 1, "Labels": {}}
GET  /swarmlet/cluster  what every node may know of the swarm: its record and its counts
"""

from __future__ import annotations

from typing import Any

from swarmlet.api import members
from swarmlet.api.backend import LocalState, LocalStatus
from swarmlet.api.convert_swarm import (
    read_cluster_spec,
    read_init,
    read_join,
    write_cluster,
)
from swarmlet.api.exchange import Answer, ApiError, Response, json_response
from swarmlet.api.fields import Fields
from swarmlet.api.rights import Right
from swarmlet.api.router import Call, Route
from swarmlet.manager.errors import SpecError, Unavailable
from swarmlet.manager.view import View
from swarmlet.model import Cluster, Role

TOKEN_SECONDS_DEFAULT = 3600.0
TOKEN_SECONDS_MAX = 365 * 86400.0
TOKEN_USES_MAX = 10_000


async def inspect_swarm(call: Call) -> Answer:
    document = write_cluster(_cluster(call.view))
    control = call.control
    document["JoinTokens"] = {
        "Worker": control.token(Role.WORKER),
        "Manager": control.token(Role.MANAGER),
    }
    return json_response(document)


async def init_swarm(call: Call) -> Answer:
    request = read_init(await call.request.body.json())
    _refuse_second(call.node.status, "init")
    return json_response(await call.node.init(request))


async def join_swarm(call: Call) -> Answer:
    request = read_join(await call.request.body.json())
    _refuse_second(call.node.status, "join")
    await call.node.join(request)
    return Response(200)


async def leave_swarm(call: Call) -> Answer:
    if not call.node.status.in_swarm:
        raise ApiError(503, "This node is not part of a swarm.")
    await call.node.leave(force=call.request.query.flag("force"))
    return Response(200)


async def update_swarm(call: Call) -> Answer:
    query = call.request.query
    body = await call.request.body.json()
    version = query.number("version", -1)
    if version < 0:
        raise ApiError(400, "version: the version of the swarm that you changed is missing")
    if query.flag("rotateManagerUnlockKey"):
        raise ApiError(501, "rotateManagerUnlockKey: autolock is not built yet")
    rotate = {
        role
        for role, name in (
            (Role.WORKER, "rotateWorkerToken"),
            (Role.MANAGER, "rotateManagerToken"),
        )
        if query.flag(name)
    }
    spec = read_cluster_spec(body, _cluster(call.view).spec)
    await call.control.update_cluster(
        spec,
        version=version,
        rotate=frozenset(rotate),
        gossip_key=query.flag("rotateGossipKey"),
    )
    return Response(200)


async def create_token(call: Call) -> Answer:
    fields = Fields(await call.request.body.json())
    role = fields.choice("Role", Role, Role.WORKER)
    ttl = fields.seconds("TTL", TOKEN_SECONDS_DEFAULT)
    uses = fields.integer("Uses", 1)
    labels = fields.text_map("Labels")
    fields.done()
    if not 0 < ttl <= TOKEN_SECONDS_MAX:
        raise SpecError("TTL", f"{ttl:g} s is not above 0 and at most {TOKEN_SECONDS_MAX:g} s")
    if not 1 <= uses <= TOKEN_USES_MAX:
        raise SpecError("Uses", f"{uses} is not 1 to {TOKEN_USES_MAX}")
    token = await call.control.create_token(role, ttl=ttl, uses=uses, labels=labels)
    return json_response({"Token": token}, 201)


async def inspect_cluster(call: Call) -> Answer:
    return json_response(cluster_summary(call.view))


def cluster_summary(view: View) -> dict[str, Any]:
    nodes = view.state.nodes.values()
    return {
        "Cluster": write_cluster(_cluster(view)),
        "Nodes": len(nodes),
        "Managers": sum(node.role is Role.MANAGER for node in nodes),
    }


def _cluster(view: View) -> Cluster:
    cluster = view.state.cluster
    if cluster is None:
        raise Unavailable("the swarm is still being made; try again in a moment")
    return cluster


def _refuse_second(here: LocalStatus, verb: str) -> None:
    if here.state in (LocalState.ACTIVE, LocalState.ERROR):
        raise ApiError(
            503,
            f"This node is already part of a swarm, so it cannot {verb} another one; "
            "`swarmlet leave` takes it out (--force on a manager).",
        )
    if here.state is LocalState.PENDING:
        raise ApiError(
            503,
            "This node is already joining a swarm or looking for its managers; see "
            "`swarmlet info`, or `swarmlet leave --force` to give that up.",
        )


ROUTES = (
    Route("GET", "/swarm", inspect_swarm, Right.MANAGE),
    Route("POST", "/swarm/init", init_swarm, Right.HOST),
    Route("POST", "/swarm/join", join_swarm, Right.HOST),
    Route("POST", "/swarm/leave", leave_swarm, Right.HOST),
    Route("POST", "/swarm/update", update_swarm, Right.MANAGE),
    Route("POST", "/swarmlet/tokens", create_token, Right.MANAGE),
    Route("GET", "/swarmlet/cluster", inspect_cluster, Right.READ),
    *members.ROUTES,
)
