"""Under which epochs an assignment may remove what a node runs (DISTRIBUTED B6)."""

from __future__ import annotations

import pytest

from swarmlet.agent.assignment import Assignment, Receiver
from swarmlet.session import Assign, ItemKey, Kind

KEPT = ItemKey(Kind.TASK, "t1")


def empty(epoch: int, index: int, *past: int) -> Assign:
    """A full assignment that names nothing: all there is would have to go."""
    return Assign(sequence=1, epoch=epoch, index=index, full=True, past_epochs=past)


@pytest.mark.parametrize(
    ("piece", "removes"),
    [
        (empty(7, 50), True),
        (empty(7, 49), False),
        (empty(8, 60), False),
        (empty(8, 60, 7), True),
        (empty(8, 60, 5, 7), True),
        (empty(8, 60, 5), False),
        (empty(8, 49, 7), False),
    ],
    ids=[
        "the epoch that the node knows",
        "older than what the node has seen",
        "another cluster, or one made anew",
        "one that an operator recovered from it",
        "recovered twice since",
        "recovered from another one",
        "recovered, but without what the node has seen",
    ],
)
def test_who_may_remove(piece: Assign, removes: bool) -> None:
    receiver = Receiver(Assignment(7, 50, {KEPT: b""}))
    difference = receiver.receive(piece)
    assert difference is not None
    assert (difference.removes == {KEPT}) is removes
    assert bool(receiver.current.hold) is not removes
    # A node that heeds the new epoch heeds the old one no more: an old majority may come back.
    assert receiver.current.epoch == (piece.epoch if removes else 7)
    if removes and piece.epoch == 8:
        receiver.current = Assignment(8, 60, {KEPT: b""})
        back = receiver.receive(empty(7, 99))
        assert back is not None
        assert not back.removes
