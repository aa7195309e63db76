"""What gossip knows, in the words of the API: names for ids, the wall clock for ages."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from swarmlet.api.neighbours import Member, MemberNews, UserNews
from swarmlet.daemon.facts import read_facts
from swarmlet.daemon.neighbours import News
from swarmlet.daemon.node import Node
from swarmlet.manager.errors import Unavailable
from swarmlet.model import NodeId
from swarmlet.swim.events import Conflict
from swarmlet.swim.messages import MemberId, ShortId, State, UserEvent, short_id
from swarmlet.swim.views import MemberView


class NodeNeighbourhood:
    """Args: *node* is None while this host belongs to no cluster."""

    def __init__(self, node: Node | None) -> None:
        self._node = node

    def members(self) -> Sequence[Member]:
        node = self._node
        if node is None:
            return ()
        statistics = node.neighbours.statistics
        conflicts = {c.member: c for c in statistics.conflicts} if statistics is not None else {}
        health = {node.id: statistics.health} if statistics is not None else {}
        found = []
        for id_, view in sorted(node.neighbours.members.items()):
            member = self._member(id_, view, conflicts.get(id_))
            found.append(dataclasses.replace(member, health=health.get(NodeId(id_))))
        return found

    def _member(self, id_: MemberId, view: MemberView, conflict: Conflict | None) -> Member:
        facts = read_facts(view.facts)
        return Member(
            id=id_,
            name=self._name(id_),
            state=_word(view.state),
            address=view.address[0],
            port=view.address[1],
            incarnation=view.incarnation,
            role="" if facts is None else "manager" if facts.is_manager else "worker",
            since=time.time() - view.since,
            rtt=view.rtt,
            reason=view.reason.value if view.reason is not None else "",
            by=self._name(view.by) if view.by is not None else "",
            accusers=tuple(map(self._name, view.accusers)),
            version=facts.version if facts is not None else "",
            protocols=(facts.protocol_min, facts.protocol_max) if facts is not None else (0, 0),
            conflict="{}:{}".format(*conflict.claimed) if conflict is not None else "",
        )

    def counters(self) -> Mapping[str, Any]:
        statistics = self._node.neighbours.statistics if self._node is not None else None
        if statistics is None:
            return {}
        plain: dict[str, Any] = {}
        for field in dataclasses.fields(statistics):
            value = getattr(statistics, field.name)
            match field.name:
                case "members":
                    value = {_word(state): count for state, count in value.items()}
                case "rejected":
                    value = dict(value)
                case "conflicts":
                    value = [
                        {
                            "Name": self._name(conflict.member),
                            "ID": conflict.member,
                            "Held": "{}:{}".format(*conflict.held),
                            "Claimed": "{}:{}".format(*conflict.claimed),
                        }
                        for conflict in value
                    ]
            plain[field.name.replace("_", " ").title().replace(" ", "")] = value
        return plain

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[trio.MemoryReceiveChannel[MemberNews | UserNews]]:
        if self._node is None:
            raise Unavailable("this node is not part of a swarm: there is no gossip to watch")
        send, receive = trio.open_memory_channel[MemberNews | UserNews](0)
        async with self._node.neighbours.watch() as stream, trio.open_nursery() as nursery:

            async def translate() -> None:
                with send:
                    async for news in stream:
                        await send.send(self._news(news))

            nursery.start_soon(translate)
            with receive:
                yield receive
            nursery.cancel_scope.cancel()

    def _news(self, news: News) -> MemberNews | UserNews:
        if isinstance(news, UserEvent):
            by = self._name_of_short(news.origin)
            return UserNews(
                at=time.time(), name=news.name, payload=news.payload, clock=news.clock, by=by
            )
        return MemberNews(
            at=time.time(),
            id=news.member,
            name=self._name(news.member),
            before=_word(news.before),
            after=_word(news.after),
            reason=news.reason.value,
            by=self._name(news.by) if news.by is not None else "",
            incarnation=news.incarnation,
            address=news.address[0],
            port=news.address[1],
        )

    def broadcast(self, name: str, payload: bytes) -> None:
        if self._node is None or not self._node.neighbours.broadcast(name, payload):
            raise Unavailable("this node does not gossip yet: it is joining, or in no swarm")

    def _name(self, id_: str) -> str:
        assert self._node is not None
        view = self._node.agent.nodes().get(NodeId(id_))
        return view.name if view is not None and view.name else id_

    def _name_of_short(self, short: ShortId) -> str:
        assert self._node is not None
        for id_ in self._node.neighbours.members:
            if short_id(id_) == short:
                return self._name(id_)
        return short.hex()


def _word(state: State | None) -> str:
    return "" if state is None else state.name.lower()
