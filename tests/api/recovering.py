"""swarmlet.api.raftstate.Recovery of a fake node."""

from __future__ import annotations

from swarmlet.api.raftstate import OtherManager, RaftState, Survey
from swarmlet.manager.errors import Conflicting
from tests.api.fake import Fake

HERE = RaftState(server=5, role="follower", term=3, commit_index=8, last_index=9, last_term=3)
THERE = RaftState(server=6, role="candidate", term=4, commit_index=8, last_index=8, last_term=2)


class FakeRecovery:
    def __init__(self) -> None:
        self.recovered = False

    def state(self) -> RaftState:
        return HERE

    async def survey(self) -> Survey:
        return Survey(
            here=HERE,
            others=(
                OtherManager(name="h2", address="10.0.0.2:7947", state=THERE),
                OtherManager(name="h3", address="10.0.0.3:7947", error="it does not answer"),
            ),
            damage="a byte has changed",
        )

    async def recover(self, *, force: bool) -> None:
        if not force:
            raise Conflicting("there is a leader")
        self.recovered = True


def give_recovery(fake: Fake) -> FakeRecovery:
    recovery = FakeRecovery()
    for node in fake.nodes.values():
        node.recovery = recovery  # type: ignore[attr-defined]
    return recovery
