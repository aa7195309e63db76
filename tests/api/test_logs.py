"""Logs: of containers here, and of services across nodes, merged, bounded and explained."""

from __future__ import annotations

import dataclasses
import math

import pytest
import trio
import trio.testing

from swarmlet.api.exchange import Peer
from swarmlet.api.frames import STDERR, STDOUT, FrameReader
from swarmlet.api.logs import ORDER_SECONDS, Line, Merge, Source
from swarmlet.api.upstream import Upstream
from swarmlet.model import (
    NodeId,
    Outcome,
    Replicated,
    Role,
    ServiceId,
    Task,
    TaskId,
    TaskState,
)
from tests.api.fake import H1, H2, H3, NOW
from tests.api.serving import Api
from tests.api.test_services import SPEC

ALL = "stdout=1&stderr=1"


def frames(text: bytes) -> list[tuple[int, str]]:
    return [(stream, data.decode()) for stream, data in FrameReader().feed(text)]


def lines(text: bytes) -> list[str]:
    return [data.rstrip("\n") for _, data in frames(text)]


@pytest.fixture
async def web(api: Api) -> Api:
    """A service of three tasks, one on each node, with a container each."""
    await api.call("POST", "/services/create", {**SPEC, "Mode": {"Replicated": {"Replicas": 3}}})
    api.fake.run_containers()
    return api


def write(api: Api, node: NodeId, line: str, *, at: float, stream: str = "stdout") -> None:
    supervisor = api.fake.nodes[node].supervisor
    (id_,) = supervisor.containers
    supervisor.write(id_, line, at=at, stream=stream)


async def test_service_logs_are_merged_by_time_from_every_node(web: Api) -> None:
    write(web, H1, "first", at=NOW)
    write(web, H3, "second", at=NOW + 1, stream="stderr")
    write(web, H2, "third", at=NOW + 2)
    write(web, H1, "fourth", at=NOW + 3)
    reply = await web.call("GET", f"/services/web/logs?{ALL}")
    assert frames(reply.text) == [
        (STDOUT, "first\n"),
        (STDERR, "second\n"),
        (STDOUT, "third\n"),
        (STDOUT, "fourth\n"),
    ]
    assert reply.headers["content-type"] == "application/vnd.docker.multiplexed-stream"
    reply = await web.call("GET", f"/v1.41/services/web/logs?{ALL}&tail=1&timestamps=1")
    assert reply.headers["content-type"] == "application/vnd.docker.raw-stream"
    assert lines(reply.text) == [
        "2023-11-14T22:13:21.000000000Z second",
        "2023-11-14T22:13:22.000000000Z third",
        "2023-11-14T22:13:23.000000000Z fourth",
    ]


async def test_details_name_node_service_and_task(web: Api) -> None:
    write(web, H2, "hello", at=NOW)
    reply = await web.call("GET", f"/services/web/logs?{ALL}&details=1")
    service = next(iter(web.fake.cluster.state.services))
    task = next(t for t in web.fake.cluster.state.tasks.values() if t.node == H2)
    assert lines(reply.text) == [
        f"com.docker.swarm.node.id={H2},com.docker.swarm.service.id={service},"
        f"com.docker.swarm.task.id={task.id} hello"
    ]


async def test_node_that_is_away_is_named_and_holds_nothing_up(web: Api) -> None:
    write(web, H1, "here", at=NOW)
    web.fake.unreachable.add(H2)
    reply = await web.call("GET", f"/services/web/logs?{ALL}")
    assert lines(reply.text) == [
        "here",
        "warning: the log on h2 (10.0.0.2) is not whole: node h2 cannot be reached",
    ]


async def test_log_on_a_node_that_was_removed_says_so(web: Api) -> None:
    write(web, H1, "here", at=NOW)
    web.fake.unreachable.add(H2)
    await web.fake.cluster.remove_node(H2, force=True)
    reply = await web.call("GET", f"/services/web/logs?{ALL}")
    assert lines(reply.text) == [
        "here",
        f"warning: the log on {H2} is not whole: the node was removed from the swarm",
    ]


async def test_node_that_never_answers_is_given_up(
    web: Api, autojump_clock: trio.testing.MockClock
) -> None:
    # Both others, so that the jumping clock has no node to cut off that would have answered.
    web.fake.silent |= {H2, H3}
    write(web, H1, "here", at=NOW)
    reply = await web.call("GET", f"/services/web/logs?{ALL}")
    here, *warnings = lines(reply.text)
    assert here == "here"
    assert sorted(warnings) == [
        f"warning: the log on {node} is not whole: it did not answer within 5 seconds"
        for node in ("h2 (10.0.0.2)", "h3 (10.0.0.3)")
    ]


async def test_lost_container_is_spoken_for_by_its_tasks_outcome(web: Api) -> None:
    task = next(t for t in web.fake.cluster.state.tasks.values() if t.node == H3)
    web.fake.nodes[H3].supervisor.containers.clear()
    outcome = Outcome(
        state=TaskState.FAILED,
        at=NOW,
        error="task: non-zero exit (3)",
        exit_code=3,
        log_tail=("opening /data", "no such file"),
    )
    web.fake.cluster.end_task(task.id, outcome)
    expected = [
        "opening /data",
        "no such file",
        "note: the container is gone; these were its last lines. It ended with exit "
        "code 3: task: non-zero exit (3)",
    ]
    assert lines((await web.call("GET", f"/services/web/logs?{ALL}")).text) == expected
    assert lines((await web.call("GET", f"/tasks/{task.id}/logs?{ALL}")).text) == expected
    web.fake.unreachable.add(H3)
    text = lines((await web.call("GET", f"/services/web/logs?{ALL}")).text)
    assert text[:3] == expected


async def test_following_shows_what_comes_and_tasks_that_are_new(web: Api) -> None:
    write(web, H1, "old", at=NOW)
    upstream = Upstream(web.connect())
    head = await upstream.request("GET", f"/services/web/logs?{ALL}&follow=1")
    assert head.status == 200
    reader = FrameReader()

    async def next_line() -> str:
        with trio.fail_after(10):
            while True:
                if found := reader.feed(await upstream.receive()):
                    ((_, data),) = found
                    return data.decode()

    assert await next_line() == "old\n"
    write(web, H2, "new", at=NOW + 1)
    assert await next_line() == "new\n"
    service = next(iter(web.fake.cluster.state.services.values()))
    await web.fake.cluster.update_service(
        service.id, dataclasses.replace(service.spec, mode=Replicated(4)), version=service.version
    )
    latest = max(web.fake.cluster.state.tasks.values(), key=lambda task: task.version)
    supervisor = web.fake.nodes[latest.node].supervisor
    # It is followed from before its container exists.
    state = supervisor.add(latest.id, "web.4")
    supervisor.write(state.id, "late", at=NOW + 2)
    assert await next_line() == "late\n"
    await upstream.aclose()


async def test_follower_and_worker_read_logs_through_the_leader(web: Api) -> None:
    write(web, H3, "hello", at=NOW)
    for node in (H2, H3):
        reply = await web.call("GET", f"/services/web/logs?{ALL}", node=node)
        assert lines(reply.text) == ["hello"]


async def test_logs_of_a_node_are_for_managers_only(web: Api) -> None:
    task = next(t for t in web.fake.cluster.state.tasks.values() if t.node == H3)
    target = f"/swarmlet/tasks/{task.id}/logs?{ALL}"
    reply = await web.call("GET", target, node=H3, peer=Peer(H1, Role.WORKER))
    assert reply.status == 403
    reply = await web.call("GET", target, node=H3, peer=Peer(H1, Role.MANAGER))
    assert reply.status == 200


async def test_container_logs_by_name_id_and_beginning(web: Api) -> None:
    write(web, H1, "hello", at=NOW)
    (state,) = web.fake.nodes[H1].supervisor.containers.values()
    name = state.spec.annotations["com.docker.swarm.task.name"]
    for reference in (state.id, name, state.id[:4], f"%2F{name}"):
        reply = await web.call("GET", f"/containers/{reference}/logs?{ALL}")
        assert lines(reply.text) == ["hello"]
    reply = await web.call("GET", f"/containers/{state.id}/logs")
    assert (reply.status, reply.message) == (
        400,
        "Bad parameters: you must choose at least one stream",
    )
    reply = await web.call("GET", f"/containers/nope/logs?{ALL}")
    assert (reply.status, reply.message) == (404, "No such container: nope")
    for query in ("tail=x", "since=yesterday", "until=1e99"):
        reply = await web.call("GET", f"/containers/{state.id}/logs?{ALL}&{query}")
        assert reply.status == 400


async def test_container_of_a_follower_ends_the_stream(web: Api) -> None:
    supervisor = web.fake.nodes[H1].supervisor
    (id_,) = supervisor.containers
    supervisor.end(id_, 0)
    write(web, H1, "bye", at=NOW)
    reply = await web.call("GET", f"/containers/{id_}/logs?{ALL}&follow=1")
    assert lines(reply.text) == ["bye"]


def _source() -> Source:
    return Source(Task(id=TaskId("t"), service=ServiceId("s"), spec_version=1))


def _line(at: str) -> Line:
    return Line(at, "stdout", b"")


async def test_merge_waits_for_certainty_when_nothing_is_followed() -> None:
    merge = Merge(patience=math.inf)
    one, two = _source(), _source()
    merge.add(one)
    merge.add(two)
    merge.close()
    one.sender.send_nowait(_line("2"))
    one.sender.close()
    async with trio.open_nursery() as nursery:
        found = []

        async def collect() -> None:
            while (merged := await merge.next()) is not None:
                found.append(merged[1].time_text)

        nursery.start_soon(collect)
        await trio.testing.wait_all_tasks_blocked()
        assert found == []  # two may have an older one
        two.sender.send_nowait(_line("1"))
        two.sender.send_nowait(_line("3"))
        two.sender.close()
    assert found == ["1", "2", "3"]


async def test_merge_that_follows_waits_once_for_a_silent_source(
    autojump_clock: trio.testing.MockClock,
) -> None:
    merge = Merge(patience=ORDER_SECONDS)
    busy, silent = _source(), _source()
    merge.add(busy)
    merge.add(silent)
    began = trio.current_time()
    for number in range(50):
        busy.sender.send_nowait(_line(f"{number:02}"))
    for number in range(50):
        merged = await merge.next()
        assert merged is not None
        assert merged[1].time_text == f"{number:02}"
    assert trio.current_time() - began == pytest.approx(ORDER_SECONDS)


async def test_task_that_was_just_started_again_shows_its_last_words(web: Api) -> None:
    task = next(t for t in web.fake.cluster.state.tasks.values() if t.node == H2)
    seen = web.fake.cluster.observations[task.id]
    web.fake.cluster.observations[task.id] = dataclasses.replace(
        seen, attempt=1, exit_code=3, error="task: non-zero exit (3)", log_tail=("oops",)
    )
    reply = await web.call("GET", f"/services/web/logs?{ALL}")
    assert lines(reply.text) == [
        "oops",
        "note: the container is gone; these were its last lines. It ended with exit code 3: "
        "task: non-zero exit (3)",
    ]
    reply = await web.call("GET", f"/services/web/logs?{ALL}&tail=0&since={NOW + 1}")
    assert lines(reply.text) == []
