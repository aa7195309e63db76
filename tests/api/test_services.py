"""/services, /tasks, /networks and /nodes through the server: statuses, filters, refusals."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

from swarmlet.model import NodeState, Outcome, TaskState
from tests.api.fake import H1, H2, H3, NOW
from tests.api.serving import Api

SPEC: dict[str, Any] = {
    "Name": "web",
    "TaskTemplate": {"ContainerSpec": {"Image": "busybox", "Env": ["KEY=secret"]}},
}


async def create(api: Api, **changes: Any) -> str:
    reply = await api.call("POST", "/v1.50/services/create", {**SPEC, **changes})
    assert reply.status == 201, reply.text
    return str(reply.json["ID"])


async def test_create_answers_201_and_passes_the_request_id(api: Api) -> None:
    headers = (("Swarmlet-Request", "abc"),)
    reply = await api.call("POST", "/services/create", SPEC, headers=headers)
    assert reply.status == 201
    assert api.fake.cluster.requests == ["abc"]
    reply = await api.call("POST", "/services/create", SPEC)
    assert (reply.status, reply.message) == (
        409,
        "service web exists already; choose another name",
    )
    unnamed = {key: value for key, value in SPEC.items() if key != "Name"}
    reply = await api.call("POST", "/services/create", unnamed)
    assert reply.status == 201


async def test_credentials_for_a_registry_are_refused_not_ignored(api: Api) -> None:
    for document, status in ((b"{}", 201), (b'{"username":"me","password":"x"}', 501)):
        header = base64.urlsafe_b64encode(document).decode()
        headers = (("X-Registry-Auth", header),)
        reply = await api.call("POST", "/services/create", SPEC, headers=headers)
        assert reply.status == status
    assert "leave out --with-registry-auth" in reply.message


async def test_refusals_carry_the_path(api: Api) -> None:
    for changes, message in (
        ({"Nam": "x"}, "Nam: no such field here; did you mean Name?"),
        ({"TaskTemplate": {}}, "TaskTemplate.ContainerSpec: is missing"),
        ({"Mode": {"GlobalJob": {}}}, "Mode.GlobalJob: jobs are not built yet"),
        ({"Mode": {"Replicated": {"Replicas": -1}}}, "Mode.Replicated.Replicas: -1 is less than"),
        ({"Mode": {"Replicated": {}, "Global": {}}}, "Mode: has two modes"),
        ({"EndpointSpec": {"Ports": [{"TargetPort": "80"}]}}, "EndpointSpec.Ports[0].TargetPort"),
        ({"EndpointSpec": {"Mode": "x"}}, "EndpointSpec.Mode: 'x' is not one of vip, dnsrr"),
        ({"Labels": {"a": 1}}, "Labels.a: must be text"),
        ({"Name": "a b"}, "name: 'a b' is no name"),
    ):
        reply = await api.call("POST", "/services/create", {**SPEC, **changes})
        assert reply.status == 400
        assert message in reply.message


async def test_update_needs_the_version_that_was_looked_at(api: Api) -> None:
    id_ = await create(api)
    version = (await api.call("GET", "/services/web")).json["Version"]["Index"]
    body = {**SPEC, "Labels": {"a": "b"}}
    reply = await api.call("POST", f"/services/{id_}/update", body)
    assert reply.status == 400
    reply = await api.call("POST", f"/services/{id_}/update?version={version}", body)
    assert reply.status == 200
    reply = await api.call("POST", f"/services/{id_}/update?version={version}", body)
    assert reply.status == 409
    assert "update out of sequence" in reply.message
    renamed = {**SPEC, "Name": "other"}
    reply = await api.call("POST", f"/services/{id_}/update?version=99", renamed)
    assert "cannot be renamed" in reply.message


async def test_rollback_needs_a_previous_spec(api: Api) -> None:
    await create(api)
    service = (await api.call("GET", "/services/web")).json
    target = f"/services/web/update?version={service['Version']['Index']}&rollback=previous"
    reply = await api.call("POST", target, SPEC)
    assert (reply.status, reply.message) == (
        400,
        "service web was never updated: there is nothing to go back to",
    )


async def test_names_ids_and_beginnings_find_a_service(api: Api) -> None:
    id_ = await create(api)
    for reference in ("web", id_, id_[:5]):
        assert (await api.call("GET", f"/services/{reference}")).json["ID"] == id_
    assert (await api.call("GET", "/services/none")).message == "service none not found"
    await create(api, Name="x")
    state = api.fake.cluster.state
    # The fake's ids differ in their first character only; the empty beginning is no reference.
    assert len(state.services) == 2


async def test_status_counts_what_is_wanted_and_up(api: Api) -> None:
    await create(api, Mode={"Replicated": {"Replicas": 3}})

    async def status() -> dict[str, int]:
        (service,) = (await api.call("GET", "/services?status=true")).json
        found: dict[str, int] = service["ServiceStatus"]
        return found

    assert await status() == {"RunningTasks": 3, "DesiredTasks": 3, "CompletedTasks": 0}
    api.fake.cluster.set_down(H3)
    assert (await status())["RunningTasks"] == 2
    task = next(iter(api.fake.cluster.state.tasks.values()))
    api.fake.cluster.end_task(task.id, Outcome(state=TaskState.FAILED, at=NOW))
    assert (await status())["RunningTasks"] == 1
    (plain,) = (await api.call("GET", "/services")).json
    assert "ServiceStatus" not in plain


async def test_filters_choose_and_unknown_ones_are_refused(api: Api) -> None:
    await create(api, Labels={"a": "b"})
    await create(api, Name="every", Mode={"Global": {}})

    async def names(filters: str) -> list[str]:
        reply = await api.call("GET", f"/services?filters={filters}")
        return [service["Spec"]["Name"] for service in reply.json]

    assert await names('{"name":["web"]}') == ["web"]
    assert await names('{"label":{"a=b":true}}') == ["web"]
    assert await names('{"label":["a=c"]}') == []
    assert await names('{"mode":["global"]}') == ["every"]
    for filters in ('{"nam":["x"]}', "{", "[]", '{"name":1}', '{"name":[1]}'):
        reply = await api.call("GET", f"/services?filters={filters}")
        assert reply.status == 400
    reply = await api.call("GET", '/services?filters={"nam":["x"]}')
    assert reply.message == ("invalid filter 'nam'; known here are id, label, mode, name, runtime")


async def test_tasks_are_filtered_by_service_node_state_and_version(api: Api) -> None:
    id_ = await create(api, Mode={"Replicated": {"Replicas": 3}})

    async def slots(filters: str) -> list[int]:
        reply = await api.call("GET", f"/tasks?filters={filters}")
        return [task["Slot"] for task in reply.json]

    assert await slots('{"service":["web"]}') == [1, 2, 3]
    assert await slots('{"node":["h2"]}') == [2]
    assert await slots('{"service":["web"],"node":["h3"]}') == [3]
    assert await slots('{"name":["web.2"]}') == [2]
    service = api.fake.cluster.state.services[id_]  # type: ignore[index]
    task = dataclasses.replace(service.spec.task, force_update=1)
    spec = dataclasses.replace(service.spec, task=task)
    await api.fake.cluster.update_service(service.id, spec, version=service.version)
    assert len(await slots('{"service":["web"]}')) == 6
    assert len(await slots('{"_up-to-date":["true"]}')) == 3
    assert len(await slots('{"desired-state":["running"]}')) == 3
    assert len(await slots('{"desired-state":["shutdown"]}')) == 3
    reply = await api.call("GET", '/tasks?filters={"desired-state":["x"]}')
    assert reply.status == 400
    # Last tasks of a service that is gone are still found by its id.
    assert (await api.call("GET", '/tasks?filters={"service":["gone"]}')).json == []


async def test_task_shows_why_it_is_pending(api: Api) -> None:
    for node in api.fake.cluster.state.nodes:
        api.fake.cluster.set_down(node)
    await create(api)
    (task,) = (await api.call("GET", "/tasks")).json
    assert task["Status"]["State"] == "pending"
    assert task["Status"]["Err"] == "no suitable node (3 nodes not available)"


async def test_network_is_created_used_shown_and_refused_removal(api: Api) -> None:
    body = {"Name": "shop", "Driver": "overlay", "IPAM": {"Config": [{"Subnet": "10.7.0.0/24"}]}}
    reply = await api.call("POST", "/networks/create", body)
    assert reply.status == 201
    template = {**SPEC["TaskTemplate"], "Networks": [{"Target": "shop"}]}
    await create(api, TaskTemplate=template)
    shown = (await api.call("GET", "/networks/shop?verbose=true")).json
    assert shown["IPAM"]["Config"] == [{"Subnet": "10.7.0.0/24", "Gateway": "10.128.1.1"}]
    assert shown["Services"]["web"]["VIP"] == "10.128.1.2"
    assert shown["Peers"] == [{"Name": H1[:12], "IP": "10.0.0.1"}]
    reply = await api.call("DELETE", "/networks/shop")
    assert (reply.status, "in use by service web" in reply.message) == (409, True)
    names = [n["Name"] for n in (await api.call("GET", "/networks")).json]
    assert names == ["bridge", "host", "ingress", "none", "shop"]
    reply = await api.call("GET", '/networks?filters={"dangling":["true"]}')
    assert reply.json == []
    await api.call("DELETE", "/services/web")
    reply = await api.call("GET", '/networks?filters={"dangling":["true"]}')
    assert [n["Name"] for n in reply.json] == ["shop"]
    assert (await api.call("DELETE", "/networks/shop")).status == 204
    assert (await api.call("GET", "/networks/shop?scope=local")).status == 404


async def test_networks_that_cannot_be_are_refused_by_path(api: Api) -> None:
    for body, message in (
        ({"Driver": "macvlan"}, "Driver: 'macvlan' is not built"),
        ({"EnableIPv6": True}, "EnableIPv6: IPv6 inside a network is not built yet"),
        ({"Driver": "bridge", "EnableIPv6": True}, "EnableIPv6: IPv6 inside a network"),
        ({"Scope": "local"}, "Scope: 'local'"),
        ({"Driver": "bridge", "Scope": "global"}, "Scope: 'global' is not local or swarm"),
        ({"Driver": "bridge", "Options": {"foo": "bar"}}, "Options.foo: is not built"),
        ({"Driver": "bridge", "IPAM": {"Config": [{"Subnet": "x"}]}}, "subnet 'x'"),
        ({"IPAM": {"Config": [{"IPRange": "x"}]}}, "IPAM.Config[0].IPRange"),
        ({"IPAM": {"Config": [{"Subnet": "10.0.0.1/24"}]}}, "ipam.config[0].subnet"),
        ({"Options": {"foo": "bar"}}, "options.foo"),
    ):
        asked = {"Name": "n", "Driver": "overlay", **body}
        reply = await api.call("POST", "/networks/create", asked)
        assert reply.status == 400
        assert message in reply.message


async def test_nodes_show_state_role_and_reachability(api: Api) -> None:
    api.fake.cluster.set_down(H2)
    h1, h2, h3 = (await api.call("GET", "/nodes")).json
    assert h1["ManagerStatus"] == {
        "Leader": True,
        "Reachability": "reachable",
        "Addr": "10.0.0.1:2377",
    }
    assert h2["Status"] == {"State": "down", "Addr": "10.0.0.2"}
    assert h2["ManagerStatus"]["Reachability"] == "unreachable"
    assert "ManagerStatus" not in h3
    assert h3["Description"]["Platform"] == {"Architecture": "x86_64", "OS": "linux"}
    assert api.fake.cluster.state.nodes[H2].state is NodeState.DOWN
    reply = await api.call("GET", '/nodes?filters={"role":["worker"]}')
    assert [node["ID"] for node in reply.json] == [H3]
    assert (await api.call("DELETE", "/nodes/h2")).status == 200
    assert (await api.call("GET", "/nodes/h2")).message == "node h2 not found"
