"""/swarmlet/raft and /swarmlet/recovery: a manager's copy of the state, and its last resort.

GET  /swarmlet/raft       how this manager's server of Raft stands
GET  /swarmlet/recovery   the same, and what the other managers say
POST /swarmlet/recovery   make this manager the only one; ?force=1 also beside a leader
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from swarmlet.api.exchange import Answer, Response, json_response
from swarmlet.api.raftstate import RaftState
from swarmlet.api.rights import Right
from swarmlet.api.router import Call, Route


def write_state(state: RaftState) -> dict[str, Any]:
    names = {"commit_index": "CommitIndex", "last_index": "LastIndex", "last_term": "LastTerm"}
    names["disk_full"] = "DiskFull"
    return {names.get(name, name.capitalize()): value for name, value in asdict(state).items()}


def read_state(document: Any) -> RaftState:
    """Return what write_state() wrote, on another node perhaps. Raises ValueError, KeyError."""
    if not isinstance(document, dict):
        raise ValueError("not an object")
    return RaftState(
        server=int(document["Server"]),
        role=str(document["Role"]),
        leader=bool(document["Leader"]),
        term=int(document["Term"]),
        commit_index=int(document["CommitIndex"]),
        last_index=int(document["LastIndex"]),
        last_term=int(document["LastTerm"]),
        voters=int(document["Voters"]),
        recovering=bool(document["Recovering"]),
        disk_full=bool(document["DiskFull"]),
        fault=str(document["Fault"]),
    )


async def inspect_raft(call: Call) -> Answer:
    return json_response(write_state(call.node.recovery.state()))


async def survey(call: Call) -> Answer:
    found = await call.node.recovery.survey()
    others = [
        {
            "Name": other.name,
            "Addr": other.address,
            "Error": other.error,
            "Raft": None if other.error else write_state(other.state),
        }
        for other in found.others
    ]
    document = {"Here": write_state(found.here), "Damage": found.damage, "Others": others}
    return json_response(document)


async def recover(call: Call) -> Answer:
    await call.node.recovery.recover(force=call.request.query.flag("force"))
    return Response(200)


ROUTES = (
    Route("GET", "/swarmlet/raft", inspect_raft, Right.NODE),
    Route("GET", "/swarmlet/recovery", survey, Right.HOST),
    Route("POST", "/swarmlet/recovery", recover, Right.HOST),
)
