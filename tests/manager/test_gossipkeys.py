"""The keys of gossip change in steps, and at no moment can a node not open what another seals."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest

from swarmlet.manager.gossipkeys import (
    KEYS_MAX,
    PATIENCE,
    PATIENCE_REVOKED,
    Step,
    first_key,
    next_step,
    revoked,
    rotated,
)
from swarmlet.manager.view import View
from swarmlet.model import Cluster, ClusterId, ClusterSpec, Node, NodeId, NodeSpec, NodeState, Role
from swarmlet.state import Applied, ClusterState, Draft, apply
from tests.seeds import run_seed

LIFE = 3600.0
NODES = ("a", "b", "c")


class Log:
    """The record of the cluster and of its nodes; a node's keys are those it acknowledged."""

    def __init__(self) -> None:
        self._keys = itertools.count(1)
        self._state = ClusterState()
        self._index = 0
        self.now = 0.0
        self.acknowledged: dict[NodeId, int] = {}
        self.known: dict[NodeId, Cluster] = {}
        spec = ClusterSpec(gossip_key_life=LIFE)
        key = first_key(0.0, self.new_key)
        self.put(Cluster(id=ClusterId("c"), spec=spec, gossip_keys=(key,), gossip_epoch=1))
        for name in NODES:
            self.put(Node(id=NodeId(name), spec=NodeSpec(role=Role.WORKER), state=NodeState.READY))
            self.acknowledge(NodeId(name))

    def new_key(self) -> bytes:
        return next(self._keys).to_bytes(32)

    def put(self, row: Cluster | Node) -> None:
        draft = Draft(self._state)
        draft.put(row)
        self._index += 1
        change = draft.change(term=1, at=self.now)
        self._state, verdict = apply(self._state, change, index=self._index, entry_term=1)
        assert isinstance(verdict, Applied)

    @property
    def cluster(self) -> Cluster:
        assert self._state.cluster is not None
        return self._state.cluster

    @property
    def epochs(self) -> list[int]:
        return [key.epoch for key in self.cluster.gossip_keys]

    def acknowledge(self, node: NodeId) -> None:
        self.acknowledged[node] = self._index
        self.known[node] = self.cluster

    def acknowledge_all(self) -> None:
        for node in list(self.known):
            self.acknowledge(node)

    def step(self) -> Step:
        view = View(state=self._state, acknowledged=self.acknowledged, now=self.now)
        step = next_step(view, self.new_key)
        if step.cluster is not None:
            self.put(step.cluster)
        return step

    def down(self, node: str) -> None:
        self.put(dataclasses.replace(self._state.nodes[NodeId(node)], state=NodeState.DOWN))
        self.known.pop(NodeId(node))


@pytest.fixture
def log() -> Log:
    return Log()


def test_nothing_is_done_before_a_key_is_old(log: Log) -> None:
    assert log.step() == Step(wake_at=LIFE)
    log.now = LIFE - 1
    assert log.step() == Step(wake_at=LIFE)


def test_a_key_is_handed_out_before_anybody_seals_with_it(log: Log) -> None:
    log.now = LIFE
    assert log.step().did == "handed out"
    assert (log.epochs, log.cluster.gossip_epoch) == ([1, 2], 1)
    assert log.step() == Step(wake_at=LIFE + PATIENCE)
    log.acknowledge_all()
    assert log.step().did == "switched"
    assert (log.epochs, log.cluster.gossip_epoch) == ([1, 2], 2)
    assert log.step() == Step(wake_at=2 * LIFE)


def test_the_oldest_key_goes_with_the_next_switch(log: Log) -> None:
    for due in (LIFE, 2 * LIFE):
        log.now = due
        log.step()
        log.acknowledge_all()
        log.step()
    assert (log.epochs, log.cluster.gossip_epoch) == ([2, 3], 3)


def test_a_ready_node_that_does_not_answer_is_waited_for_so_long_and_no_longer(log: Log) -> None:
    log.now = LIFE
    log.step()
    log.acknowledge(NodeId("a"))
    log.acknowledge(NodeId("b"))
    log.now = LIFE + PATIENCE - 1
    assert log.step().cluster is None
    log.now = LIFE + PATIENCE
    assert log.step().did == "switched"


def test_nobody_waits_for_a_node_that_is_down(log: Log) -> None:
    log.down("c")
    log.now = LIFE
    log.step()
    log.acknowledge_all()
    assert log.step().did == "switched"


def test_a_life_of_nothing_means_that_keys_change_by_hand_only(log: Log) -> None:
    log.put(dataclasses.replace(log.cluster, spec=ClusterSpec(gossip_key_life=0.0)))
    log.now = 1e9
    assert log.step() == Step()
    log.put(rotated(log.cluster, log.now, log.new_key))
    assert (log.epochs, log.cluster.gossip_epoch) == ([1, 2], 1)


def test_a_rotation_under_way_is_not_begun_again(log: Log) -> None:
    log.put(rotated(log.cluster, 1.0, log.new_key))
    assert rotated(log.cluster, 2.0, log.new_key) is log.cluster


def test_all_keys_that_a_removed_node_knows_go_one_step_after_the_other(log: Log) -> None:
    log.put(revoked(log.cluster, 0.0, log.new_key))
    assert (log.epochs, log.cluster.gossip_epoch) == ([1, 2], 1)
    log.acknowledge_all()
    assert log.step().did == "switched"
    assert log.step().cluster is None, "what was sealed with the old key is still under way"
    log.acknowledge_all()
    assert log.step().did == "retired"
    assert (log.epochs, log.cluster.gossip_epoch) == ([2], 2)


def test_while_a_removed_node_knows_the_keys_nobody_is_waited_for_long(log: Log) -> None:
    log.put(revoked(log.cluster, 0.0, log.new_key))
    for did in ("switched", "retired"):
        assert log.step().cluster is None
        log.now += PATIENCE_REVOKED
        assert log.step().did == did
    assert log.epochs == [2]


def test_a_removal_during_a_rotation_takes_the_next_key_as_well(log: Log) -> None:
    log.put(rotated(log.cluster, 0.0, log.new_key))
    log.put(revoked(log.cluster, 0.0, log.new_key))
    assert (log.epochs, log.cluster.gossip_epoch) == ([1, 3], 1), "2 was known to who goes"


def test_every_node_opens_what_any_other_seals_whenever_each_of_them_hears() -> None:
    """Random orders of news, rotations and removals; patience never runs out here."""
    seed = run_seed()
    rng = random.Random(seed)
    for _ in range(100):
        log = Log()
        stepped = 0
        for _ in range(200):
            match rng.randrange(12):
                case 0:
                    log.put(rotated(log.cluster, log.now, log.new_key))
                case 1 if rng.random() < 0.3:
                    log.put(revoked(log.cluster, log.now, log.new_key))
                case 2 | 3:
                    stepped += log.step().cluster is not None
                case _:
                    log.acknowledge(rng.choice(list(log.known)))
            assert len(log.epochs) <= KEYS_MAX
            for sender, receiver in itertools.product(log.known.values(), repeat=2):
                opened = {key.epoch for key in receiver.gossip_keys}
                assert sender.gossip_epoch in opened, f"seed {seed}"
        assert stepped
