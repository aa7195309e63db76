"""The API as a whole: every resource's routes in one router, and its two doors."""

from __future__ import annotations

from swarmlet.api import (
    attach,
    containers,
    disk,
    execs,
    files,
    images,
    lives,
    logs,
    networks,
    nodes,
    recovery,
    remote,
    services,
    swarm,
    system,
    tasks,
    usage,
    volumes,
)
from swarmlet.api.backend import LocalNode
from swarmlet.api.http import serve_stream, serve_unix
from swarmlet.api.router import Route, Router

__all__ = ["ROUTES", "make_router", "serve_stream", "serve_unix"]

ROUTES: tuple[Route, ...] = (
    *system.ROUTES,
    *swarm.ROUTES,
    *recovery.ROUTES,
    *nodes.ROUTES,
    *services.ROUTES,
    *tasks.ROUTES,
    *networks.ROUTES,
    *logs.ROUTES,
    *containers.ROUTES,
    *lives.ROUTES,
    *attach.ROUTES,
    *remote.ROUTES,
    *execs.ROUTES,
    *files.ROUTES,
    *usage.ROUTES,
    *disk.ROUTES,
    *volumes.ROUTES,
    *images.ROUTES,
)


def make_router(node: LocalNode) -> Router:
    return Router(node, ROUTES)
