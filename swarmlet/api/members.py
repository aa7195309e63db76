"""/swarmlet/members and what else gossip knows, on this node, with or without a manager in reach.

GET  /swarmlet/members    the nodes as this node's gossip sees them
GET  /swarmlet/gossip     its counters, its health, and identities that run twice
GET  /swarmlet/monitor    changes and users' events as they come, a JSON document a line
POST /swarmlet/broadcast  {"Name": "deploy", "Payload": "base64"}: a user's event for every node
"""

from __future__ import annotations

import json
from typing import Any

from swarmlet.api.exchange import Answer, ApiError, Response, Send, Streamed, json_response
from swarmlet.api.fields import Fields, timestamp
from swarmlet.api.neighbours import Member, MemberNews, UserNews
from swarmlet.api.rights import Right
from swarmlet.api.router import Call, Route


async def list_members(call: Call) -> Answer:
    return json_response([_write_member(m) for m in call.node.neighbourhood.members()])


async def show_gossip(call: Call) -> Answer:
    return json_response(dict(call.node.neighbourhood.counters()))


async def monitor(call: Call) -> Answer:
    if not call.node.status.in_swarm:
        raise ApiError(503, "This node is not part of a swarm: there is no gossip to follow.")

    async def produce(send: Send) -> None:
        async with call.node.neighbourhood.watch() as stream:
            async for news in stream:
                await send(json.dumps(_write_news(news)).encode() + b"\n")

    return Streamed(200, produce, (("Content-Type", "application/json"),))


async def broadcast(call: Call) -> Answer:
    fields = Fields(await call.request.body.json())
    name, payload = fields.text("Name"), fields.blob("Payload")
    fields.done()
    try:
        call.node.neighbourhood.broadcast(name, payload)
    except ValueError as exc:
        raise ApiError(400, str(exc)) from exc
    return Response(200)


def _write_member(member: Member) -> dict[str, Any]:
    least, highest = member.protocols
    return {
        "ID": member.id,
        "Name": member.name,
        "State": member.state,
        "Addr": f"{member.address}:{member.port}",
        "Role": member.role,
        "Incarnation": member.incarnation,
        "Since": timestamp(member.since),
        "RTT": None if member.rtt is None else round(member.rtt * 1e9),
        "Health": member.health,
        "Reason": member.reason,
        "By": member.by,
        "Accusers": list(member.accusers),
        "Version": member.version,
        "Protocols": {"Min": least, "Max": highest},
        "Conflict": member.conflict,
    }


def _write_news(news: MemberNews | UserNews) -> dict[str, Any]:
    if isinstance(news, UserNews):
        return {
            "Time": timestamp(news.at),
            "Type": "user",
            "Name": news.name,
            "Payload": news.payload.decode(errors="replace"),
            "Clock": news.clock,
            "By": news.by,
        }
    return {
        "Time": timestamp(news.at),
        "Type": "member",
        "ID": news.id,
        "Name": news.name,
        "Before": news.before,
        "After": news.after,
        "Reason": news.reason,
        "By": news.by,
        "Incarnation": news.incarnation,
        "Addr": f"{news.address}:{news.port}",
    }


ROUTES = (
    Route("GET", "/swarmlet/members", list_members, Right.NODE),
    Route("GET", "/swarmlet/gossip", show_gossip, Right.NODE),
    Route("GET", "/swarmlet/monitor", monitor, Right.NODE),
    Route("POST", "/swarmlet/broadcast", broadcast, Right.MANAGE),
)
