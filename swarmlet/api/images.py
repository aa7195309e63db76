"""/images: the images of this node."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from fnmatch import fnmatchcase
from typing import Any

import trio

from swarmlet.api.exchange import Answer, ApiError, Response, Send, Streamed, json_response
from swarmlet.api.fields import timestamp
from swarmlet.api.filters import (
    Filters,
    matches_labels,
    parse_filters,
    wants_true,
)
from swarmlet.api.rights import Right
from swarmlet.api.router import Call, Route, as_api_error
from swarmlet.images.catalog import ImageRecord
from swarmlet.images.config import ImageConfig
from swarmlet.images.reference import Digest, parse_reference
from swarmlet.images.store import ImageSummary

FILTERS = ("dangling", "label", "reference")
JSON_STREAM = (("Content-Type", "application/json"),)
TAR_STREAM = (("Content-Type", "application/x-tar"),)
IMAGES_SAVED_MAX = 100
#: For the rest of an upload that was refused in its middle.
DRAIN_SECONDS = 30.0


async def list_images(call: Call) -> Answer:
    filters = parse_filters(call.request.query, FILTERS)
    images = [image for image in call.node.images.images() if _matches(image, filters)]
    images.sort(key=lambda image: image.created_at, reverse=True)
    return json_response([write_image_row(image) for image in images])


async def inspect_image(call: Call) -> Answer:
    store = call.node.images
    image = store.resolve(call.params["name"])
    return json_response(_write_image(image, store.summary(image)))


async def image_history(call: Call) -> Answer:
    image = call.node.images.resolve(call.params["name"])
    layers = iter(image.manifest.layers)
    rows = []
    for entry in image.config.history:
        size = 0 if entry.empty_layer else next((layer.size for layer in layers), 0)
        rows.append(
            {
                "Id": "<missing>",
                "Created": 0,
                "CreatedBy": entry.created_by,
                "Tags": None,
                "Size": size,
                "Comment": entry.comment,
            }
        )
    rows.reverse()
    if rows:
        rows[0] |= {"Id": image.id, "Tags": list(image.references) or None}
    for row in rows:
        row["Created"] = int(image.config.created_at)
    return json_response(rows)


async def load_images(call: Call) -> Answer:
    """An archive of `docker save`, an OCI layout, or with ours beside it nothing else."""
    return _progress(call, lambda: _load(call))


async def _load(call: Call) -> list[dict[str, Any]]:
    async with aclosing(_body(call)) as body:
        names = await call.node.images.load(body)
    return [{"stream": f"Loaded image: {name}\n"} for name in names]


async def create_image(call: Call) -> Answer:
    """`docker pull` (fromImage) and `docker import` (fromSrc=-)."""
    query = call.request.query
    if not query.text("fromSrc"):
        return _pull(call)
    if query.text("fromSrc") != "-":
        raise ApiError(400, "fromSrc: only '-' is understood; fetch the file and send it")
    repository, tag = query.text("repo"), query.text("tag")
    reference = f"{repository}:{tag}" if repository and tag else repository
    if reference:
        parse_reference(reference)
    changes = [part for change in query.all("changes") for part in change.split("\n") if part]

    async def take() -> list[dict[str, Any]]:
        async with aclosing(_body(call)) as body:
            image = await call.node.images.import_rootfs(
                body,
                reference=reference or None,
                changes=changes,
                message=query.text("message"),
            )
        return [{"status": image.id}]

    return _progress(call, take)


def _pull(call: Call) -> Answer:
    query = call.request.query
    name, tag = query.text("fromImage"), query.text("tag")
    if not name:
        raise ApiError(400, "fromImage: the name of the image is missing")
    if query.text("platform"):
        raise ApiError(501, "platform: a node pulls images for its own platform only")
    text = name if not tag else f"{name}{'@' if tag.startswith('sha256:') else ':'}{tag}"
    reference = parse_reference(text)
    # Loaded when it is used: it brings TLS and much else with it.
    from swarmlet.images.registry import decode_credentials_untrusted, pull

    credentials = decode_credentials_untrusted(call.request.headers.get("x-registry-auth", ""))

    async def take() -> list[dict[str, Any]]:
        image = await pull(call.node.images, reference, credentials=credentials)
        return [
            {"status": f"Digest: {image.digest}"},
            {"status": f"Status: Downloaded image for {reference.familiar}"},
        ]

    first = {"status": f"Pulling from {reference.repository}", "id": reference.tag or ""}
    return _progress(call, take, first)


def _progress(
    call: Call,
    take: Callable[[], Awaitable[list[dict[str, Any]]]],
    first: dict[str, Any] | None = None,
) -> Answer:
    """Docker's stream of JSON lines: the head goes out at once, an error is a line as well."""

    async def produce(send: Send) -> None:
        if first is not None:
            await send(json.dumps(first).encode() + b"\r\n")
        try:
            lines = await take()
        except Exception as exc:
            error = as_api_error(exc, call.request)
            await _drain(call)
            lines = [{"errorDetail": {"message": str(error)}, "error": str(error)}]
        for line in lines:
            await send(json.dumps(line).encode() + b"\r\n")

    return Streamed(200, produce, JSON_STREAM, reads_body=True)


async def _drain(call: Call) -> None:
    """Read what the client still sends: most read the answer only when all is sent."""
    with trio.move_on_after(DRAIN_SECONDS), contextlib.suppress(ApiError):
        while await call.request.body.receive():
            pass


async def _body(call: Call) -> AsyncGenerator[bytes, None]:
    while chunk := await call.request.body.receive():
        yield chunk


async def tag_image(call: Call) -> Answer:
    query = call.request.query
    repository, tag = query.text("repo"), query.text("tag")
    if not repository:
        raise ApiError(400, "repo: the new name is missing")
    target = f"{repository}:{tag}" if tag else repository
    await call.node.images.tag(call.params["name"], target)
    return Response(201)


async def remove_image(call: Call) -> Answer:
    query = call.request.query
    removal = await call.node.images.remove(
        call.params["name"], force=query.flag("force"), pins=await pinned_images(call)
    )
    rows = [{"Untagged": name} for name in removal.untagged]
    rows += [{"Deleted": digest} for digest in removal.deleted]
    return json_response(rows)


async def pinned_images(call: Call) -> set[Digest]:
    """Images that containers of this node, tasks' and others', or specs of the cluster, need."""
    pins = {Digest(digest) for digest in call.node.local.images_in_use}
    names = [known.image for known in call.node.task_containers().values()]
    if (control := call.node.control) is not None:
        for service in control.view.state.services.values():
            names.append(service.spec.task.container.image)
            if service.previous_spec is not None:
                names.append(service.previous_spec.task.container.image)
    for name in names:
        if "@" in name:
            pins.add(Digest(name.partition("@")[2]))
    return pins


async def save_image(call: Call) -> Answer:
    return _save(call, [call.params["name"]])


async def save_images(call: Call) -> Answer:
    names = call.request.query.all("names")
    if not 1 <= len(names) <= IMAGES_SAVED_MAX:
        raise ApiError(400, f"names: give one to {IMAGES_SAVED_MAX} images to save")
    return _save(call, names)


def _save(call: Call, names: list[str]) -> Answer:
    archive = call.node.images.save(names)

    async def produce(send: Send) -> None:
        async with aclosing(archive) as chunks:
            async for chunk in chunks:
                await send(chunk)

    return Streamed(200, produce, TAR_STREAM)


async def inspect_distribution(call: Call) -> Answer:
    """The digest that a tag means: of this node's own store, for no registry is asked yet."""
    image = call.node.images.resolve(call.params["name"])
    target = image.target
    descriptor = {"mediaType": target.media_type, "digest": target.digest, "size": target.size}
    return json_response({"Descriptor": descriptor, "Platforms": []})


def write_image_row(image: ImageSummary) -> dict[str, Any]:
    names = list(image.references)
    return {
        "Id": image.id,
        "ParentId": "",
        "RepoTags": names,
        # One that was fetched for a task came with a name and a digest, and without a tag.
        "RepoDigests": [f"{name}@{image.digest}" for name in image.repositories],
        "Created": int(image.created_at),
        "Size": image.size,
        "SharedSize": -1,
        "Labels": dict(image.labels) or None,
        "Containers": -1,
    }


def _write_image(image: ImageRecord, summary: ImageSummary) -> dict[str, Any]:
    config = image.config
    names = list(image.references)
    return {
        "Id": image.id,
        "RepoTags": names,
        "RepoDigests": [f"{name}@{image.digest}" for name in summary.repositories],
        "Parent": "",
        "Comment": config.history[-1].comment if config.history else "",
        "Created": config.created or timestamp(0),
        "DockerVersion": "",
        "Author": config.author,
        "Config": _write_config(config),
        "Architecture": config.architecture,
        "Variant": config.variant,
        "Os": config.os,
        "Size": image.size,
        "GraphDriver": {"Name": "overlayfs", "Data": None},
        "RootFS": {"Type": "layers", "Layers": list(config.diff_ids)},
        "Metadata": {"LastTagTime": timestamp(0)},
        "Descriptor": {
            "mediaType": image.target.media_type,
            "digest": image.digest,
            "size": image.target.size,
        },
        "Swarmlet": {"UnpackedSize": summary.unpacked_size},
    }


def _write_config(config: ImageConfig) -> dict[str, Any]:
    document: dict[str, Any] = {
        "User": config.user,
        "ExposedPorts": {port: {} for port in config.exposed_ports} or None,
        "Env": list(config.env),
        "Cmd": list(config.cmd) if config.cmd is not None else None,
        "Volumes": {path: {} for path in config.volumes} or None,
        "WorkingDir": config.working_dir,
        "Entrypoint": list(config.entrypoint) if config.entrypoint is not None else None,
        "OnBuild": list(config.on_build) or None,
        "Labels": dict(config.labels) or None,
        "StopSignal": config.stop_signal,
    }
    if (check := config.healthcheck) is not None:
        document["Healthcheck"] = {
            "Test": list(check.test),
            "Interval": check.interval,
            "Timeout": check.timeout,
            "StartPeriod": check.start_period,
            "Retries": check.retries,
        }
    return document


def _matches(image: ImageSummary, filters: Filters) -> bool:
    if "dangling" in filters and wants_true(filters, "dangling") is bool(image.references):
        return False
    if "reference" in filters and not any(
        _named(name, pattern)
        for name in (*image.references, *image.repositories)
        for pattern in filters["reference"]
    ):
        return False
    return matches_labels(filters, "label", image.labels)


def _named(name: str, pattern: str) -> bool:
    """Docker's reading: shell patterns, against the name with its tag and without."""
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(":")[0], pattern)


async def push_image(call: Call) -> Answer:
    raise ApiError(501, "pushing to a registry is not built yet; `image save` writes an archive")


async def search_images(call: Call) -> Answer:
    raise ApiError(501, "searching a registry is not built; name the image as its registry does")


ROUTES = (
    Route("GET", "/images/search", search_images, Right.NODE),
    Route("POST", "/images/{name...}/push", push_image, Right.NODE),
    Route("GET", "/images/json", list_images, Right.NODE),
    Route("POST", "/images/load", load_images, Right.NODE),
    Route("POST", "/images/create", create_image, Right.NODE),
    Route("GET", "/images/get", save_images, Right.NODE),
    Route("GET", "/images/{name...}/get", save_image, Right.NODE),
    Route("GET", "/images/{name...}/json", inspect_image, Right.NODE),
    Route("GET", "/images/{name...}/history", image_history, Right.NODE),
    Route("POST", "/images/{name...}/tag", tag_image, Right.NODE),
    Route("DELETE", "/images/{name...}", remove_image, Right.NODE),
    Route("GET", "/distribution/{name...}/json", inspect_distribution, Right.NODE),
)
