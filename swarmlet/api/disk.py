"""What takes room on this host's disk, and giving back what nothing needs: df, prune."""

from __future__ import annotations

from typing import Any

from swarmlet.agent.local.errors import LocalError, NoSuch
from swarmlet.api.backend import LocalNode
from swarmlet.api.containers import around_of, sizes_of, write_found_row
from swarmlet.api.exchange import Answer, ApiError, json_response
from swarmlet.api.filters import parse_filters, wants_true
from swarmlet.api.found import all_containers
from swarmlet.api.images import pinned_images, write_image_row
from swarmlet.api.prunefilters import PRUNE_FILTERS, may_prune
from swarmlet.api.rights import Right
from swarmlet.api.router import Call, Route
from swarmlet.api.volumes import measured_volumes

KINDS = ("container", "image", "volume", "build-cache")


async def disk_usage(call: Call) -> Answer:
    node = call.node
    kinds = call.request.query.all("type") or list(KINDS)
    for kind in kinds:
        if kind not in KINDS:
            raise ApiError(400, f"type: {kind[:40]!r} is none of {', '.join(KINDS)}")
    document: dict[str, Any] = {}
    if "image" in kinds:
        used = node.images.disk_usage()
        document["LayersSize"] = used.blob_bytes + used.layer_bytes
        document["Images"] = _images(node)
    if "container" in kinds:
        found, around = all_containers(node), around_of(node)
        sizes = await sizes_of(node, found)
        document["Containers"] = [
            write_found_row(node, container, around) | sizes.get(container.id, {})
            for container in found
        ]
    if "volume" in kinds:
        document["Volumes"] = await measured_volumes(node)
    if "build-cache" in kinds:
        document |= {"BuildCache": [], "BuilderSize": 0}
    return json_response(document)


def _images(node: LocalNode) -> list[dict[str, Any]]:
    counts: dict[str, int] = {}
    for found in all_containers(node):
        if found.local is not None:
            digest = found.local.record.image
        else:
            digest = found.image.partition("@")[2]
        counts[digest] = counts.get(digest, 0) + 1
    return [
        {**write_image_row(image), "Containers": counts.get(image.digest, 0), "SharedSize": 0}
        for image in node.images.images()
    ]


async def prune_containers(call: Call) -> Answer:
    filters = parse_filters(call.request.query, PRUNE_FILTERS)
    engine = call.node.local
    removed, freed = [], 0
    for container in list(engine.containers.values()):
        record = container.record
        idle = container.phase.value in ("created", "exited")
        if not idle or not may_prune(filters, record.config.labels, record.created_at):
            continue
        own, _ = await engine.size_of(container)
        try:
            await engine.remove(container)
        except LocalError:
            continue  # it was started meanwhile
        removed.append(record.id)
        freed += own
    return json_response({"ContainersDeleted": removed or None, "SpaceReclaimed": freed})


async def prune_images(call: Call) -> Answer:
    """Images without a name that nothing needs; with dangling=false those with one as well."""
    filters = parse_filters(call.request.query, (*PRUNE_FILTERS, "dangling"))
    every = "dangling" in filters and not wants_true(filters, "dangling")
    images = call.node.images
    pins = await pinned_images(call)
    pins |= {
        image.digest
        for image in images.images()
        if not may_prune(filters, image.labels, image.created_at)
    }
    removal = await images.collect(pins, tagged_too=every)
    rows = [{"Untagged": name} for name in removal.untagged]
    rows += [{"Deleted": digest} for digest in removal.deleted]
    return json_response({"ImagesDeleted": rows or None, "SpaceReclaimed": removal.freed_bytes})


async def prune_builds(call: Call) -> Answer:
    """There is no cache of builds: `docker system prune` asks all the same."""
    return json_response({"CachesDeleted": None, "SpaceReclaimed": 0})


async def inspect_plugin(call: Call) -> Answer:
    """Where Docker's client looks last for what `inspect` names."""
    raise NoSuch("plugin", call.params["name"])


ROUTES = (
    Route("GET", "/plugins/{name}/json", inspect_plugin, Right.NODE),
    Route("GET", "/system/df", disk_usage, Right.NODE),
    Route("POST", "/containers/prune", prune_containers, Right.NODE),
    Route("POST", "/images/prune", prune_images, Right.NODE),
    Route("POST", "/build/prune", prune_builds, Right.NODE),
)
