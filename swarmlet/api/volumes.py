"""/volumes: the named volumes of this host."""

from __future__ import annotations

from typing import Any

import trio

from swarmlet.agent.local.errors import NoSuch
from swarmlet.agent.local.records import VolumeRecord
from swarmlet.agent.local.volumes import size_of
from swarmlet.api.backend import LocalNode
from swarmlet.api.exchange import Answer, ApiError, Response, json_response
from swarmlet.api.fields import Fields, timestamp
from swarmlet.api.filters import (
    Filters,
    matches_exactly,
    matches_labels,
    matches_part,
    parse_filters,
    wants_true,
)
from swarmlet.api.prunefilters import may_prune
from swarmlet.api.rights import Right
from swarmlet.api.router import Call, Route

DRIVER = "local"
FILTERS = ("dangling", "driver", "label", "name")


async def list_volumes(call: Call) -> Answer:
    filters = parse_filters(call.request.query, FILTERS)
    found = await trio.to_thread.run_sync(call.node.local.volumes.all)
    used = call.node.local.volumes_in_use()
    rows = [
        write_volume(call.node, record)
        for record in found.values()
        if _matches(record, filters, record.name in used)
    ]
    return json_response({"Volumes": rows, "Warnings": None})


def _matches(record: VolumeRecord, filters: Filters, is_used: bool) -> bool:
    if "dangling" in filters and wants_true(filters, "dangling") is is_used:
        return False
    return (
        matches_part(filters, "name", record.name)
        and matches_exactly(filters, "driver", DRIVER)
        and matches_labels(filters, "label", record.labels)
    )


def write_volume(node: LocalNode, record: VolumeRecord) -> dict[str, Any]:
    return {
        "CreatedAt": timestamp(record.created_at),
        "Driver": DRIVER,
        "Labels": dict(record.labels) or None,
        "Mountpoint": str(node.local.volumes.data(record.name)),
        "Name": record.name,
        "Options": dict(record.options) or None,
        "Scope": "local",
    }


async def measured_volumes(node: LocalNode) -> list[dict[str, Any]]:
    """Every volume with its size and how many containers have it."""
    found = await trio.to_thread.run_sync(node.local.volumes.all)
    used = node.local.volumes_in_use()
    rows = []
    for name, record in found.items():
        size = await trio.to_thread.run_sync(size_of, node.local.volumes.data(name))
        usage = {"RefCount": len(used.get(name, ())), "Size": size}
        rows.append({**write_volume(node, record), "UsageData": usage})
    return rows


async def create_volume(call: Call) -> Answer:
    fields = Fields(await call.request.body.json())
    name, driver = fields.text("Name"), fields.text("Driver")
    labels, options = fields.text_map("Labels"), fields.text_map("DriverOpts")
    fields.refuse("ClusterVolumeSpec", "cluster volumes are not built; leave it out")
    fields.done()
    if driver not in ("", DRIVER):
        raise ApiError(400, f"Driver: {driver[:60]!r} is not built; local is what there is")
    record = await call.node.local.create_volume(name, labels=labels, options=options)
    return json_response(write_volume(call.node, record), 201)


async def inspect_volume(call: Call) -> Answer:
    return json_response(write_volume(call.node, await _find(call)))


async def remove_volume(call: Call) -> Answer:
    try:
        record = await _find(call)
    except NoSuch:
        if call.request.query.flag("force"):
            return Response(204)
        raise
    await call.node.local.remove_volume(record.name)
    return Response(204)


async def _find(call: Call) -> VolumeRecord:
    name = call.params["name"]
    record = await trio.to_thread.run_sync(call.node.local.volumes.find, name)
    if record is None:
        raise NoSuch("volume", name)
    return record


async def prune_volumes(call: Call) -> Answer:
    """Anonymous ones that no container has; all such with the filter all=true."""
    filters = parse_filters(call.request.query, ("label", "label!", "all"))
    # Before API 1.42 there was no filter, and all were meant.
    every = call.request.version < (1, 42) and call.request.version != (0, 0)
    every = every or ("all" in filters and wants_true(filters, "all"))
    found = await trio.to_thread.run_sync(call.node.local.volumes.all)
    removed, freed = [], 0
    for name, record in found.items():
        if name in call.node.local.volumes_in_use() or not (record.anonymous or every):
            continue
        if may_prune(filters, record.labels, record.created_at):
            freed += await call.node.local.remove_volume(name)
            removed.append(name)
    return json_response({"VolumesDeleted": removed or None, "SpaceReclaimed": freed})


ROUTES = (
    Route("GET", "/volumes", list_volumes, Right.NODE),
    Route("POST", "/volumes/create", create_volume, Right.NODE),
    Route("POST", "/volumes/prune", prune_volumes, Right.NODE),
    Route("GET", "/volumes/{name}", inspect_volume, Right.NODE),
    Route("DELETE", "/volumes/{name}", remove_volume, Right.NODE),
)
