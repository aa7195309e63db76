"""/swarmlet/raft and /swarmlet/recovery."""

from __future__ import annotations

from swarmlet.api.recovery import read_state, write_state
from tests.api.recovering import HERE, THERE, give_recovery
from tests.api.serving import Api


async def test_a_manager_says_how_its_raft_stands(api: Api) -> None:
    answer = await api.call("GET", "/swarmlet/raft")
    assert answer.status == 200
    assert read_state(answer.json) == HERE


async def test_a_survey_says_what_is_here_and_what_others_say(api: Api) -> None:
    document = (await api.call("GET", "/swarmlet/recovery")).json
    assert document["Here"] == write_state(HERE)
    assert document["Damage"] == "a byte has changed"
    h2, h3 = document["Others"]
    assert (h2["Name"], h2["Raft"], h2["Error"]) == ("h2", write_state(THERE), "")
    assert (h3["Name"], h3["Raft"], h3["Error"]) == ("h3", None, "it does not answer")


async def test_recovery_beside_a_leader_has_to_be_forced(api: Api) -> None:
    recovery = give_recovery(api.fake)
    refused = await api.call("POST", "/swarmlet/recovery")
    assert refused.status == 409
    assert not recovery.recovered
    assert (await api.call("POST", "/swarmlet/recovery?force=1")).status == 200
    assert recovery.recovered
