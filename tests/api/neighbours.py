"""A gossip of three, one of them just lost and one copied, for the API and the command line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from swarmlet.api.neighbours import Member, MemberNews, UserNews
from tests.api.fake import NAMES, NOW, Fake

#: As swim's: short names, small payloads.
NAME_BYTES_MAX = 32


class FakeNeighbourhood:
    def __init__(self) -> None:
        self.told: list[MemberNews | UserNews] = []
        self.conflict = ""

    def members(self) -> Sequence[Member]:
        h1, h2, h3 = NAMES
        return [
            Member(
                id=h1, name="h1", state="alive", address="10.0.0.1", port=7947, role="manager",
                incarnation=2 << 32, since=NOW, health=0, version="0.1.0", protocols=(1, 1),
            ),
            Member(
                id=h2, name="h2", state="alive", address="10.0.0.2", port=7947, role="manager",
                incarnation=(3 << 32) + 1, since=NOW, rtt=0.000421, reason="refuted", by="h2",
                version="0.1.0", protocols=(1, 1), conflict=self.conflict,
            ),
            Member(
                id=h3, name="h3", state="suspect", address="10.0.0.3", port=7947, role="worker",
                incarnation=1 << 32, since=NOW + 175, rtt=0.0123, reason="probe unanswered",
                by="h1", accusers=("h1", "h2"), version="0.1.0", protocols=(1, 1),
            ),
        ]  # fmt: skip

    def counters(self) -> Mapping[str, Any]:
        return {
            "Members": {"alive": 2, "suspect": 1},
            "Health": 0,
            "PacketsSent": 7,
            "Conflicts": [],
        }

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[trio.MemoryReceiveChannel[MemberNews | UserNews]]:
        """What was told so far, and then the end: a real one goes on."""
        send, receive = trio.open_memory_channel[MemberNews | UserNews](len(self.told))
        with send:
            for news in self.told:
                await send.send(news)
        with receive:
            yield receive

    def broadcast(self, name: str, payload: bytes) -> None:
        if not 0 < len(name.encode()) <= NAME_BYTES_MAX:
            raise ValueError(f"name: {name!r} is not 1 to {NAME_BYTES_MAX} bytes")
        clock = len(self.told) + 1
        self.told.append(UserNews(at=NOW, name=name, payload=payload, clock=clock, by="h1"))

    def lose(self, id_: str) -> None:
        for before, after, reason in (
            ("alive", "suspect", "probe unanswered"),
            ("suspect", "dead", "suspicion timed out"),
        ):
            self.told.append(
                MemberNews(
                    at=NOW, id=id_, name=NAMES[id_], before=before, after=after, reason=reason,
                    by="h2", incarnation=1 << 32, address="10.0.0.3", port=7947,
                )
            )  # fmt: skip


def give_neighbourhood(fake: Fake) -> FakeNeighbourhood:
    """Let all nodes of *fake* see one and the same."""
    neighbourhood = FakeNeighbourhood()
    for node in fake.nodes.values():
        node.neighbourhood = neighbourhood  # type: ignore[attr-defined]
    return neighbourhood
