"""What nodes say of themselves in gossip: read across releases, and from hostile hands."""

from __future__ import annotations

import random

import msgpack

from swarmlet import VERSION
from swarmlet.daemon.facts import FORMAT, Facts, own_facts, read_facts
from swarmlet.session import PROTOCOL
from swarmlet.swim.messages import FACTS_BYTES_MAX
from tests.seeds import run_seed


def test_a_node_says_its_role_its_release_and_what_it_speaks() -> None:
    facts = own_facts(is_manager=True)
    assert len(facts) <= FACTS_BYTES_MAX
    assert read_facts(facts) == Facts(
        format=FORMAT,
        is_manager=True,
        version=VERSION,
        protocol_min=PROTOCOL,
        protocol_max=PROTOCOL,
    )


def test_older_and_newer_nodes_are_understood() -> None:
    older = read_facts(msgpack.packb([1, True]))
    assert older == Facts(format=1, is_manager=True)
    newer = read_facts(msgpack.packb([2, False, "9.0.0", 3, 5, {"what": "is that"}]))
    assert newer is not None
    assert (newer.protocol_min, newer.protocol_max) == (3, 5)


def test_nonsense_says_nothing() -> None:
    rng = random.Random(run_seed())
    genuine = own_facts(is_manager=False)
    for _ in range(2000):
        facts = bytearray(genuine)
        facts[rng.randrange(len(facts))] = rng.randrange(256)
        read_facts(bytes(facts))
        assert read_facts(b"\xc1" + rng.randbytes(rng.randrange(40))) is None
