"""What a node answers for itself: system, swarm, images, containers, events; and the hand-over."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile

import pytest
import trio
import trio.lowlevel

from swarmlet.api.backend import Event
from swarmlet.api.exchange import Peer
from swarmlet.api.upstream import Upstream
from swarmlet.model import Role
from tests.api.fake import H1, H2, H3, NOW
from tests.api.serving import Api
from tests.api.test_services import SPEC


def rootfs() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("bin")
        entry.type = tarfile.DIRTYPE
        entry.mode = 0o755
        tar.addfile(entry)
    return buffer.getvalue()


async def test_versions_outside_the_range_are_refused_in_dockers_words(api: Api) -> None:
    for version in ("1.24", "1.41", "1.50"):
        reply = await api.call("GET", f"/v{version}/version")
        assert (reply.json["ApiVersion"], reply.json["MinAPIVersion"]) == ("1.50", "1.24")
    reply = await api.call("GET", "/v1.51/version")
    assert reply.message.startswith("client version 1.51 is too new. Maximum supported")
    reply = await api.call("GET", "/v1.23/version")
    assert reply.message.startswith("client version 1.23 is too old. Minimum supported")


async def test_ping_tells_versions_and_the_swarm(api: Api) -> None:
    for method, body in (("GET", b"OK"), ("HEAD", b"")):
        reply = await api.call(method, "/_ping", node=H3)
        assert (reply.status, reply.text) == (200, body)
        assert reply.headers["api-version"] == "1.50"
        assert reply.headers["swarm"] == "active/worker"


async def test_unknown_paths_and_methods(api: Api) -> None:
    assert (await api.call("GET", "/nothing")).status == 404
    reply = await api.call("PATCH", "/services")
    assert (reply.status, reply.message) == (405, "PATCH is no method of /services")
    reply = await api.call("POST", "/secrets/create", {})
    assert (reply.status, reply.message) == (
        501,
        "secrets are not built yet (POST /secrets/create)",
    )


async def test_info_answers_also_without_a_leader(api: Api) -> None:
    assert (await api.call("GET", "/info", node=H2)).json["Swarm"]["Nodes"] == 3
    api.fake.unreachable.add(H1)
    swarm = (await api.call("GET", "/info", node=H2)).json["Swarm"]
    assert swarm["ControlAvailable"] is True
    assert "Nodes" not in swarm
    swarm = (await api.call("GET", "/info", node=H3)).json["Swarm"]
    assert swarm["LocalNodeState"] == "active"


async def test_no_leader_is_a_503_that_says_so(api: Api) -> None:
    api.fake.unreachable.add(H1)
    reply = await api.call("GET", "/services", node=H2)
    assert (reply.status, reply.message) == (503, "node h1 cannot be reached")


async def test_leader_that_goes_away_leaves_the_change_open(api: Api) -> None:
    api.fake.silent.add(H1)

    async def cut() -> None:
        while not api.fake.unserved:
            await trio.lowlevel.checkpoint()
        await api.fake.unserved[0].aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cut)
        reply = await api.call("POST", "/services/create", SPEC, node=H2)
    assert reply.status == 503
    assert "the change may have been made or not; look, and repeat it" in reply.message


async def test_call_with_the_header_of_a_hand_over_is_not_handed_over(api: Api) -> None:
    headers = (("Swarmlet-Forwarded", "x"),)
    reply = await api.call("GET", "/services", node=H2, headers=headers)
    assert reply.status == 508


async def test_worker_node_may_not_change_the_cluster_over_mtls(api: Api) -> None:
    worker = Peer(H3, Role.WORKER)
    for method, target in (
        ("POST", "/services/create"),
        ("GET", "/swarm"),
        ("POST", "/swarmlet/tokens"),
        ("POST", "/swarm/leave"),
        ("GET", "/containers/json"),
        ("DELETE", "/services/web"),
    ):
        reply = await api.call(method, target, {}, peer=worker)
        assert reply.status == 403, (method, target)
    await api.call("POST", "/services/create", SPEC)
    reply = await api.call("GET", "/services/web", peer=worker)
    assert reply.json["Spec"]["TaskTemplate"]["ContainerSpec"]["Env"] == ["KEY=********"]
    (task,) = (await api.call("GET", "/tasks", peer=worker)).json
    assert task["Spec"]["ContainerSpec"]["Env"] == ["KEY=********"]
    # A role that is too high in the certificate is the transport's to lower; here it counts.
    reply = await api.call("GET", "/services/web", peer=Peer(H2, Role.MANAGER))
    assert reply.json["Spec"]["TaskTemplate"]["ContainerSpec"]["Env"] == ["KEY=secret"]


async def test_tokens_are_shown_rotated_and_made(api: Api) -> None:
    swarm = (await api.call("GET", "/swarm")).json
    assert swarm["JoinTokens"]["Worker"] == "SWL1-digest-worker-1"
    assert "key of the tokens" not in json.dumps(swarm)
    target = f"/swarm/update?version={swarm['Version']['Index']}&rotateWorkerToken=true"
    assert (await api.call("POST", target, swarm["Spec"])).status == 200
    swarm = (await api.call("GET", "/swarm")).json
    assert swarm["JoinTokens"] == {
        "Worker": "SWL1-digest-worker-2",
        "Manager": "SWL1-digest-manager-1",
    }
    body = {"Role": "manager", "TTL": 60 * 10**9, "Uses": 2, "Labels": {"a": "b"}}
    reply = await api.call("POST", "/swarmlet/tokens", body)
    assert reply.json == {"Token": "SWL1-digest-manager-60-2-a"}
    for changes in ({"Uses": 0}, {"TTL": 0}, {"Role": "boss"}, {"Use": 1}):
        assert (await api.call("POST", "/swarmlet/tokens", {**body, **changes})).status == 400


async def test_leave_init_and_join_change_this_node(api: Api) -> None:
    reply = await api.call("POST", "/swarm/init", {})
    assert (reply.status, "already part of a swarm" in reply.message) == (503, True)
    reply = await api.call("POST", "/swarm/leave")
    assert "add --force" in reply.message
    assert (await api.call("POST", "/swarm/leave?force=1")).status == 200
    assert (await api.call("POST", "/swarm/leave")).message == "This node is not part of a swarm."
    reply = await api.call("POST", "/swarm/init", {"AdvertiseAddr": "10.0.0.1"})
    assert reply.json == H1
    (request,) = api.fake.nodes[H1].initialised
    assert request.advertise == "10.0.0.1"
    node = api.fake.nodes[H2]
    node.status = dataclasses.replace(node.status, state=node.status.state.PENDING)
    reply = await api.call("POST", "/swarm/join", {"RemoteAddrs": ["a"], "JoinToken": "t"}, node=H2)
    assert "already joining" in reply.message


async def test_image_is_imported_listed_tagged_saved_and_removed(api: Api) -> None:
    tar = rootfs()
    reply = await api.call("POST", "/images/create?fromSrc=-&repo=box&tag=1", body=tar)
    (line,) = [json.loads(line) for line in reply.text.splitlines()]
    (row,) = (await api.call("GET", "/images/json")).json
    assert row["Id"] == line["status"]
    assert row["RepoTags"] == ["box:1"]
    assert (await api.call("POST", "/images/box:1/tag?repo=team/other&tag=2")).status == 201
    shown = (await api.call("GET", "/images/team/other:2/json")).json
    assert shown["RepoTags"] == ["box:1", "team/other:2"]
    digest = shown["Descriptor"]["digest"]
    reply = await api.call("GET", "/distribution/box:1/json")
    assert reply.json["Descriptor"]["digest"] == digest
    archive = (await api.call("GET", "/images/box:1/get")).text
    assert (await api.call("GET", '/images/json?filters={"reference":["team/*"]}')).json
    reply = await api.call("DELETE", f"/images/{row['Id']}")
    assert reply.status == 409
    await api.call("DELETE", "/images/team/other:2")
    reply = await api.call("DELETE", "/images/box:1")
    assert reply.json == [{"Untagged": "box:1"}, {"Deleted": row["Id"]}]
    reply = await api.call("POST", "/images/load", body=archive)
    assert json.loads(reply.text) == {"stream": "Loaded image: box:1\n"}


async def test_image_that_a_spec_needs_stays(api: Api) -> None:
    await api.call("POST", "/images/create?fromSrc=-&repo=box", body=rootfs())
    (row,) = (await api.call("GET", "/images/json")).json
    digest = row["RepoDigests"][0].partition("@")[2]
    template = {"ContainerSpec": {"Image": f"box:latest@{digest}"}}
    await api.call("POST", "/services/create", {"Name": "web", "TaskTemplate": template})
    reply = await api.call("DELETE", "/images/box")
    assert reply.status == 409
    assert "needed by a container, or by a service" in reply.message


async def test_bad_archives_and_names_are_refused(api: Api) -> None:
    for target, body, words in (
        ("/images/load", b"garbage" * 500, "error"),
        ("/images/create?fromSrc=-&repo=box", b"garbage" * 500, "error"),
        ("/images/create?fromSrc=-&repo=BIG", rootfs(), "capitals"),
        ("/images/create?fromImage=x&platform=linux/arm", b"", "own platform only"),
        ("/images/create", b"", "name of the image is missing"),
        ("/images/create?fromSrc=http://x", b"", "only '-' is understood"),
    ):
        reply = await api.call("POST", target, body=body)
        assert words in reply.text.decode()
    assert (await api.call("GET", "/images/json")).json == []
    assert (await api.call("GET", "/images/nope/json")).status == 404
    assert (await api.call("POST", "/images/nope/tag?repo=x")).status == 404


@pytest.fixture
async def running(api: Api) -> Api:
    await api.call("POST", "/services/create", SPEC)
    api.fake.run_containers()
    return api


async def test_containers_carry_dockers_names_and_labels(running: Api) -> None:
    (row,) = (await running.call("GET", "/containers/json")).json
    (task,) = running.fake.cluster.state.tasks.values()
    assert row["Names"] == [f"/web.1.{task.id}"]
    assert row["Labels"]["com.docker.swarm.task.id"] == task.id
    assert (row["State"], row["Image"], row["Command"]) == ("running", "busybox", "httpd -f")
    shown = (await running.call("GET", f"/containers/web.1.{task.id}/json")).json
    assert shown["State"]["Running"] is True
    assert shown["Config"]["Tty"] is False
    for filters, count in (
        ('{"name":["web"]}', 1),
        ('{"name":["db"]}', 0),
        (f'{{"label":["com.docker.swarm.task.id={task.id}"]}}', 1),
        ('{"status":["exited"]}', 0),
        ('{"ancestor":["busybox"]}', 1),
        ('{"is-task":["false"]}', 0),
    ):
        rows = (await running.call("GET", f"/containers/json?filters={filters}")).json
        assert len(rows) == count, filters


async def test_ended_container_is_shown_with_all_and_tells_its_code(running: Api) -> None:
    supervisor = running.fake.nodes[H1].supervisor
    (id_,) = supervisor.containers
    supervisor.end(id_, 137)
    assert (await running.call("GET", "/containers/json")).json == []
    (row,) = (await running.call("GET", "/containers/json?all=1")).json
    assert row["Status"].startswith("Exited (137) ")
    reply = await running.call("POST", f"/containers/{id_}/wait")
    assert reply.json == {"StatusCode": 137}
    reply = await running.call("POST", f"/containers/{id_}/kill")
    assert (reply.status, "is not running" in reply.message) == (409, True)
    info = (await running.call("GET", "/info")).json
    assert (info["Containers"], info["ContainersStopped"]) == (1, 1)


async def test_signals_reach_the_supervisor(running: Api) -> None:
    supervisor = running.fake.nodes[H1].supervisor
    (id_,) = supervisor.containers
    assert (await running.call("POST", f"/containers/{id_}/kill?signal=SIGHUP")).status == 204
    assert (await running.call("POST", f"/containers/{id_}/stop?t=3")).status == 204
    assert supervisor.killed == [(id_, "SIGHUP"), (id_, "stop None 3.0")]


async def test_wait_answers_its_head_at_once_and_its_body_at_the_end(running: Api) -> None:
    supervisor = running.fake.nodes[H1].supervisor
    (id_,) = supervisor.containers
    upstream = Upstream(running.connect())
    head = await upstream.request("POST", f"/containers/{id_}/wait?condition=next-exit")
    assert head.status == 200
    supervisor.end(id_, 3)
    with trio.fail_after(10):
        assert await upstream.receive() == b'{"StatusCode":3}\n'
    await upstream.aclose()


async def test_events_are_streamed_filtered_and_end(api: Api) -> None:
    upstream = Upstream(api.connect())
    filters = '{"type":["service"],"event":["create"]}'
    head = await upstream.request("GET", f"/events?filters={filters}")
    assert head.status == 200
    with trio.fail_after(10):
        while not api.fake.listeners:
            await trio.lowlevel.checkpoint()
    (listener,) = api.fake.listeners
    await listener.send(Event(type="service", action="update", id="s1", at=NOW))
    await listener.send(Event(type="node", action="create", id="n1", at=NOW))
    attributes = {"name": "web"}
    wanted = Event(type="service", action="create", id="s2", at=NOW, attributes=attributes)
    await listener.send(wanted)
    with trio.fail_after(10):
        event = json.loads(await upstream.receive())
    assert event["Actor"] == {"ID": "s2", "Attributes": {"name": "web"}}
    assert (event["Type"], event["Action"], event["time"]) == ("service", "create", int(NOW))
    await upstream.aclose()
    reply = await api.call("GET", f"/events?until={NOW}")
    assert (reply.status, reply.text) == (200, b"")
