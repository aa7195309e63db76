"""Who may call what: the whole table of rights, and each route's place in it."""

from __future__ import annotations

import pytest

from swarmlet.api.backend import LocalState, LocalStatus, ManagerAddress
from swarmlet.api.exchange import Peer
from swarmlet.api.rights import Decision, Forward, Refuse, Right, Serve, decide
from swarmlet.api.server import ROUTES
from swarmlet.model import NodeId, Role

MANAGERS = (ManagerAddress(node=NodeId("n1"), address="10.0.0.1", port=2377, name="h1"),)


def status(
    role: Role = Role.MANAGER, *, leads: bool = False, state: LocalState = LocalState.ACTIVE
) -> LocalStatus:
    return LocalStatus(
        state=state, name="h", version="0", role=role, is_leader=leads, managers=MANAGERS
    )


LEADER, FOLLOWER = status(leads=True), status()
WORKER = status(Role.WORKER)
MANAGER_PEER, WORKER_PEER = Peer(NodeId("m"), Role.MANAGER), Peer(NodeId("w"), Role.WORKER)


def word(decision: Decision) -> str:
    match decision:
        case Serve(masked=True):
            return "masked"
        case Serve():
            return "serve"
        case Forward():
            return "forward"
        case Refuse(code, _):
            return str(code)


#: here and caller, then what becomes of a call of each right.
TABLE = [
    ("leader, own socket", LEADER, None, "serve serve serve serve serve"),
    ("follower, own socket", FOLLOWER, None, "serve serve serve forward forward"),
    ("worker, own socket", WORKER, None, "serve serve serve forward 503"),
    ("leader, from a manager", LEADER, MANAGER_PEER, "serve 403 serve serve serve"),
    ("follower, from a manager", FOLLOWER, MANAGER_PEER, "serve 403 serve 503 503"),
    ("worker, from a manager", WORKER, MANAGER_PEER, "serve 403 serve 503 503"),
    ("leader, from a worker", LEADER, WORKER_PEER, "serve 403 403 masked 403"),
    ("follower, from a worker", FOLLOWER, WORKER_PEER, "serve 403 403 503 403"),
    ("worker, from a worker", WORKER, WORKER_PEER, "serve 403 403 503 403"),
]
RIGHTS = (Right.PUBLIC, Right.HOST, Right.NODE, Right.READ, Right.MANAGE)


@pytest.mark.parametrize(("name", "here", "peer", "expected"), TABLE, ids=[r[0] for r in TABLE])
def test_table(name: str, here: LocalStatus, peer: Peer | None, expected: str) -> None:
    assert [word(decide(right, here, peer)) for right in RIGHTS] == expected.split()


@pytest.mark.parametrize("state", [LocalState.INACTIVE, LocalState.PENDING, LocalState.ERROR])
@pytest.mark.parametrize("right", [Right.READ, Right.MANAGE])
def test_node_without_a_working_swarm_says_what_to_do(state: LocalState, right: Right) -> None:
    decision = decide(right, status(state=state), None)
    assert isinstance(decision, Refuse)
    assert decision.status == 503
    assert decide(Right.HOST, status(state=state), None) == Serve()
    assert decide(Right.NODE, status(state=state), None) == Serve()


def test_call_that_was_handed_on_is_never_handed_on_again() -> None:
    for right in (Right.READ, Right.MANAGE):
        decision = decide(right, FOLLOWER, None, forwarded=True)
        assert isinstance(decision, Refuse)
        assert decision.status == 508
    # And nothing from another node ever is.
    for here in (LEADER, FOLLOWER, WORKER):
        for peer in (MANAGER_PEER, WORKER_PEER):
            for right in RIGHTS:
                assert not isinstance(decide(right, here, peer), Forward)


def test_workers_refusal_names_the_managers() -> None:
    decision = decide(Right.MANAGE, WORKER, None)
    assert isinstance(decision, Refuse)
    assert decision.message.endswith("Run this on a manager: h1 (10.0.0.1).")


def test_every_route_has_the_right_that_its_method_and_resource_ask_for() -> None:
    """The whole table by name, so that a new route is placed on purpose."""
    by_right = {
        right: sorted(f"{r.method} {r.pattern}" for r in ROUTES if r.right is right)
        for right in Right
    }
    assert by_right[Right.PUBLIC] == ["GET /_ping", "GET /version"]
    assert by_right[Right.HOST] == [
        "GET /swarmlet/recovery",
        "POST /swarm/init",
        "POST /swarm/join",
        "POST /swarm/leave",
        "POST /swarmlet/recovery",
    ]
    assert by_right[Right.READ] == [
        "GET /nodes",
        "GET /nodes/{id}",
        "GET /services",
        "GET /services/{id}",
        "GET /services/{id}/logs",
        "GET /swarmlet/cluster",
        "GET /swarmlet/containers/{id}",
        "GET /tasks",
        "GET /tasks/{id}",
        "GET /tasks/{id}/logs",
    ]
    assert by_right[Right.MANAGE] == [
        "DELETE /nodes/{id}",
        "DELETE /services/{id}",
        "GET /swarm",
        "POST /nodes/{id}/update",
        "POST /services/create",
        "POST /services/{id}/update",
        "POST /swarm/update",
        "POST /swarmlet/broadcast",
        "POST /swarmlet/tokens",
    ]
    assert by_right[Right.BOTH] == [
        "DELETE /networks/{id}",
        "GET /networks",
        "GET /networks/{id}",
        "POST /networks/create",
        "POST /networks/prune",
    ]
    for name in by_right[Right.NODE]:
        assert name.split()[1].split("/")[1] in {
            "build",
            "commit",
            "containers",
            "distribution",
            "events",
            "exec",
            "images",
            "info",
            "networks",
            "plugins",
            "swarmlet",
            "system",
            "volumes",
        }
