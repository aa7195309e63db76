"""The wire: every message of every protocol comes back, and hostile bytes only raise BadMessage."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from typing import Any

import msgpack
import pytest

from raft import messages as raft
from raft.snapshots import SnapshotHeader
from swarmlet import session, wire
from swarmlet.codec import BadMessage
from swarmlet.identity import TrustBundle
from swarmlet.identity import messages as identity
from swarmlet.model import NodeFacts, NodeId, Observation, TaskId, TaskState
from swarmlet.swim import messages as swim
from swarmlet.swim.messages import MemberId, short_id
from tests.seeds import fresh

FRAMES = 10_000


SHORT = short_id(MemberId("a"))
ENTRY = raft.Entry(7, 3, data=b"command")
CONFIGURATION = raft.Configuration(
    (raft.ServerId(1),), members=(raft.Member(raft.ServerId(1), b"x"),)
)
SNAPSHOT = raft.SnapshotMeta(9, 2, CONFIGURATION)
RECORD = swim.Record(MemberId("a"), 1 << 32, swim.State.DEAD, ("10.0.0.1", 7947), b"facts", 5)
FACTS = NodeFacts(hostname="h1", nano_cpus=2 * 10**9, address="10.0.0.1", port=7947)
MANAGER = session.ManagerView(node=NodeId("n"), address="10.0.0.1", port=7947, raft_server=5)
REPORT = session.Report(TaskId("t"), Observation(state=TaskState.FAILED, exit_code=1, error="no"))
BUNDLE = TrustBundle(roots=(b"root",), version=3)
CLAIMS = identity.JoinFacts(name="h1", address="10.0.0.1:7947", facts={"os": "linux"})

#: One of each kind, with every field given.
SAMPLES: list[Any] = [
    raft.AppendEntries(3, 6, 2, 5, (ENTRY, ENTRY)),
    raft.AppendReply(3, 7, True, 4, 2, True),
    raft.Heartbeat(3, 5, 8),
    raft.HeartbeatReply(3, 8, True),
    raft.RequestVote(3, 7, 2, True, True),
    raft.VoteReply(3, True, True),
    raft.InstallSnapshot(3, SNAPSHOT),
    raft.TimeoutNow(3),
    raft.TransferLeadership(3, raft.ServerId(4)),
    raft.ReadRequest(b"context", True),
    raft.ReadReply(3, 7, b"context"),
    raft.Propose((ENTRY,)),
    session.RaftHello(server=5, to=6, address="10.0.0.1", port=7947, snapshot=True),
    SnapshotHeader(3, SNAPSHOT, 100, b"digest"),
    session.SnapshotReceipt("disk full"),
    swim.Ping(1, SHORT, 1 << 32, swim.State.SUSPECT),
    swim.Ack(1, 1 << 32),
    swim.PingReq(1, SHORT, 1 << 32, swim.State.SUSPECT),
    swim.Nack(1, True),
    swim.Alive(MemberId("a"), 1 << 32, ("10.0.0.1", 7947), b"facts"),
    swim.Suspect(SHORT, 1 << 32, (SHORT,), list(swim.Evidence)[-1]),
    swim.Dead(SHORT, 1 << 32, SHORT),
    swim.Left(SHORT, 1 << 32),
    swim.UserEvent(4, SHORT, "deploy", b"payload"),
    swim.SyncDigest(RECORD, bytes(8 * 4)),
    swim.SyncRecords((RECORD,), b"\x01", True),
    session.Hello(
        protocol_min=1,
        protocol_max=2,
        facts=FACTS,
        epoch=1,
        index=9,
        reports=(REPORT,),
        images=(session.HeldImage("d", ("web:1",)),),
    ),
    session.Welcome(epoch=1, term=2, heartbeat=2.0, now=1.5, managers=(MANAGER,)),
    session.Redirect(reason="not the leader", leader=MANAGER, managers=(MANAGER,)),
    session.Assign(
        sequence=1,
        epoch=1,
        index=9,
        full=True,
        done=False,
        puts=(session.Item(session.Kind.TASK, "t", b"body"),),
        removes=(session.ItemKey(session.Kind.TASK, "u"),),
    ),
    session.Ack(1, 9),
    session.Status(reports=(REPORT,), facts=FACTS),
    session.Images((session.HeldImage("d", ("web:1",)),)),
    session.Heartbeat(1.5),
    session.Probe(1, NodeId("n"), "10.0.0.1", 7947),
    session.Probed(1, session.Reach.REFUSED),
    session.Farewell(30.0),
    session.BlobRequest("sha256:0", 5),
    session.BlobAnswer(-1, "not here"),
    identity.TrustRequest(),
    identity.TrustAnswer(cluster="c", bundle=BUNDLE),
    identity.JoinRequest(token="SWL1-x", csr=b"csr", facts=CLAIMS),
    identity.Issued(node="n", chain=(b"leaf",), bundle=BUNDLE, managers=("h:1",), clock=1.5),
    identity.JoinPending(retry_after=5.0, text="wait"),
    identity.JoinRefused(fault=identity.JoinFault.TOKEN, text="no"),
    identity.RenewRequest(csr=b"csr"),
]


def test_every_kind_has_a_sample() -> None:
    assert [type(sample) for sample in SAMPLES] == list(wire.TYPES.values())


@pytest.mark.parametrize(
    "message", SAMPLES, ids=lambda m: f"{type(m).__module__}.{type(m).__name__}"
)
def test_every_message_comes_back(message: Any) -> None:
    assert wire.decode_untrusted(wire.encode(message)) == message
    assert wire.decode_many_untrusted(wire.encode_many([message, message])) == [message] * 2


def test_the_numbers_of_the_kinds_never_change() -> None:
    """Renumbering breaks every rolling upgrade: this list may only grow."""
    names = {kind: f"{cls.__module__}.{cls.__name__}" for kind, cls in wire.TYPES.items()}
    assert names[1] == "raft.messages.AppendEntries"
    assert names[12] == "raft.messages.Propose"
    assert names[32] == "swarmlet.swim.messages.Ping"
    assert names[42] == "swarmlet.swim.messages.SyncRecords"
    assert names[64] == "swarmlet.session.Hello"
    assert names[74] == "swarmlet.session.Farewell"
    assert names[96] == "swarmlet.identity.messages.TrustRequest"
    assert names[102] == "swarmlet.identity.messages.RenewRequest"


def test_ten_thousand_mutated_frames_raise_only_bad_message() -> None:
    (seed,) = fresh("frames")
    rng = random.Random(seed)
    bodies = [wire.encode(message) for message in SAMPLES]
    for _ in range(FRAMES):
        body = bytearray(rng.choice(bodies)) if rng.random() < 0.8 else bytearray(rng.randbytes(40))
        for _ in range(rng.randint(1, 4)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        with contextlib.suppress(BadMessage):
            wire.decode_untrusted(bytes(body[: rng.randint(0, len(body))]))
            wire.decode_many_untrusted(bytes(body))
    print(f"seed {seed}")


def test_a_kind_of_a_newer_peer_is_passed_over_in_a_datagram() -> None:
    known = wire.decode_untrusted(msgpack.packb([1, 74, [2.0]]))
    body = msgpack.packb([[1, 9999, ["?"]], [1, 74, [2.0]]])
    assert wire.decode_many_untrusted(body) == [known]
    with pytest.raises(BadMessage, match="kind 9999 is not known here"):
        wire.decode_untrusted(msgpack.packb([1, 9999, []]))


def test_an_older_version_than_understood_is_refused() -> None:
    with pytest.raises(BadMessage, match="version 0; 1 is the oldest"):
        wire.decode_untrusted(msgpack.packb([0, 74, []]))


def test_every_message_is_frozen() -> None:
    for cls in wire.TYPES.values():
        assert dataclasses.is_dataclass(cls)
        assert cls.__dataclass_params__.frozen, cls  # type: ignore[attr-defined]
