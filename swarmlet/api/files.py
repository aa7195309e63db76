"""A container's files: cp in and out, export, diff, commit.

HEAD GET PUT /containers/{id}/archive   one path of it as a tar, with what it is in a header
GET /containers/{id}/export             its whole root
GET /containers/{id}/changes            what differs from its image
POST /commit                            an image of it
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from swarmlet.agent.local.rootfs import Subject
from swarmlet.api.exchange import (
    Answer,
    ApiError,
    Headers,
    Response,
    Send,
    Streamed,
    json_response,
)
from swarmlet.api.fields import Fields
from swarmlet.api.found import Found, find_container
from swarmlet.api.remote import on_any_node
from swarmlet.api.rights import Right
from swarmlet.api.router import Call, Route
from swarmlet.images.reference import parse_reference

if TYPE_CHECKING:
    from swarmlet.agent.local.archives import PathStat

TAR = ("Content-Type", "application/x-tar")
STAT_HEADER = "X-Docker-Container-Path-Stat"


@asynccontextmanager
async def _files(call: Call, found: Found) -> AsyncIterator[Subject]:
    if found.local is not None:
        async with call.node.local.files(found.local) as subject:
            yield subject
    else:
        assert found.state is not None
        yield call.node.local.files_of_task(found.state)


def _path(call: Call) -> str:
    path = call.request.query.text("path")
    if not path:
        raise ApiError(400, "path: the path in the container is missing")
    if "\0" in path:
        raise ApiError(400, "path: has a NUL in it")
    return path if path.startswith("/") else f"/{path}"


def _stat_header(found: PathStat) -> Headers:
    return ((STAT_HEADER, base64.b64encode(found.json()).decode()), TAR)


async def stat_archive(call: Call) -> Answer:
    from swarmlet.agent.local import archives  # only who copies pays for it

    async with _files(call, find_container(call.node, call.params["id"])) as subject:
        found = await archives.stat_path(subject, _path(call))
    return Response(200, b"", _stat_header(found))


async def get_archive(call: Call) -> Answer:
    from swarmlet.agent.local import archives

    container, path = find_container(call.node, call.params["id"]), _path(call)
    async with _files(call, container) as subject:
        found = await archives.stat_path(subject, path)

    async def produce(send: Send) -> None:
        async with _files(call, container) as subject:
            await archives.send_path(subject, path, send)
        _tell(call, container, "archive-path")

    return Streamed(200, produce, _stat_header(found))


async def put_archive(call: Call) -> Answer:
    from swarmlet.agent.local import archives

    query = call.request.query
    container, path = find_container(call.node, call.params["id"]), _path(call)
    user = ""
    if query.flag("copyUIDGID") and container.local is not None:
        user = container.local.record.config.user
    async with _files(call, container) as subject:
        await archives.receive_path(
            subject,
            path,
            call.request.body.receive,
            keep_kinds=query.flag("noOverwriteDirNonDir"),
            user=user,
        )
    _tell(call, container, "extract-to-dir")
    return Response(200)


async def export_container(call: Call) -> Answer:
    from swarmlet.agent.local import archives

    container = find_container(call.node, call.params["id"])

    async def produce(send: Send) -> None:
        async with _files(call, container) as subject:
            await archives.send_root(subject, send)
        _tell(call, container, "export")

    return Streamed(200, produce, (TAR,))


async def list_changes(call: Call) -> Answer:
    from swarmlet.agent.local import archives

    async with _files(call, find_container(call.node, call.params["id"])) as subject:
        changes = await archives.read_changes(subject)
    return json_response([{"Path": c.path, "Kind": int(c.change)} for c in changes] or None)


async def commit_container(call: Call) -> Answer:
    query = call.request.query
    container = find_container(call.node, query.text("container"))
    local = container.local
    if local is None:
        raise ApiError(
            409, f"container {container.name} is a task of a service: make an image of its image"
        )
    fields = Fields(await call.request.body.json() or {})
    for name in list(fields.names()):
        fields.refuse(name, "give it as a change instead, such as `--change 'CMD [\"sh\"]'`")
    repository, tag = query.text("repo"), query.text("tag")
    if tag and not repository:
        raise ApiError(400, "tag: is given without repo")
    reference = (
        parse_reference(f"{repository}:{tag}" if tag else repository) if repository else None
    )
    changes = [part for text in query.all("changes") for part in text.split("\n") if part]
    engine = call.node.local
    pauses = query.flag("pause", True) and local.phase.value == "running"
    if pauses:
        await engine.pause(local)
    try:
        async with _files(call, container) as subject:
            id_ = await engine.commit(
                local.record.image,
                subject,
                local.record.config,
                reference=reference,
                comment=query.text("comment"),
                author=query.text("author"),
                changes=changes,
            )
    finally:
        if pauses and local.phase.value == "paused":
            await engine.unpause(local)
    engine.tell(local, "commit", comment=query.text("comment"), imageID=id_)
    return json_response({"Id": id_}, 201)


def _tell(call: Call, container: Found, action: str) -> None:
    if container.local is not None:
        call.node.local.tell(container.local, action)


ROUTES = (
    Route("HEAD", "/containers/{id}/archive", on_any_node(stat_archive), Right.NODE),
    Route("GET", "/containers/{id}/archive", on_any_node(get_archive), Right.NODE),
    Route("PUT", "/containers/{id}/archive", on_any_node(put_archive), Right.NODE),
    Route("GET", "/containers/{id}/export", on_any_node(export_container), Right.NODE),
    Route("GET", "/containers/{id}/changes", on_any_node(list_changes), Right.NODE),
    Route("POST", "/commit", commit_container, Right.NODE),
)
