"""Majorities, alone and joint: who must agree before something is so (paper 5.2, 5.3, 6).

Pure functions over server ids. A joint configuration needs both of its halves; an empty half
agrees to everything, so that a plain configuration is a joint one with an empty other half.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from typing import Final

from raft.messages import ServerId

#: The index that the empty quorum has committed.
EVERYTHING: Final = (1 << 64) - 1


class Vote(enum.Enum):
    PENDING = "pending"
    LOST = "lost"
    WON = "won"


def majority(count: int) -> int:
    """Return how many of *count* voters decide."""
    return count // 2 + 1


def committed_index(voters: Collection[ServerId], acknowledged: Mapping[ServerId, int]) -> int:
    """Return the highest index that a majority of *voters* has acknowledged; 0 for none."""
    if not voters:
        return EVERYTHING
    indexes = sorted([acknowledged.get(voter, 0) for voter in voters])
    return indexes[len(indexes) - majority(len(indexes))]


def joint_committed_index(
    voters: Collection[ServerId],
    outgoing: Collection[ServerId],
    acknowledged: Mapping[ServerId, int],
) -> int:
    return min(committed_index(voters, acknowledged), committed_index(outgoing, acknowledged))


def vote_result(voters: Collection[ServerId], votes: Mapping[ServerId, bool]) -> Vote:
    """Return how an election among *voters* stands, given the *votes* that have come in."""
    if not voters:
        return Vote.WON
    granted = sum(1 for voter in voters if votes.get(voter) is True)
    missing = sum(1 for voter in voters if voter not in votes)
    needed = majority(len(voters))
    if granted >= needed:
        return Vote.WON
    if granted + missing >= needed:
        return Vote.PENDING
    return Vote.LOST


def joint_vote_result(
    voters: Collection[ServerId],
    outgoing: Collection[ServerId],
    votes: Mapping[ServerId, bool],
) -> Vote:
    one, other = vote_result(voters, votes), vote_result(outgoing, votes)
    if one is other:
        return one
    return Vote.LOST if Vote.LOST in (one, other) else Vote.PENDING
