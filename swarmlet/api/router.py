"""From a request to its handler: the table of routes, and the one boundary of errors.

A route is (method, pattern, handler, right). In a pattern `{name}` stands for one part of the
path and `{name...}` for the rest, slashes included: names of images have them. Patterns are
tried in the order of the table.

Handlers raise ApiError, SpecError, ControlError or ImageError, and those become Docker's
`{"message": "..."}` with their status here. Anything else is a bug: it is logged with its
traceback and answered with 500. This is the one exception to "a bug ends the daemon", because
any client could otherwise end a manager with one odd request.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar
from urllib.parse import unquote

import trio

from swarmlet.agent.container import UnusableTemplate
from swarmlet.agent.local.errors import LocalError
from swarmlet.agent.local.networks import Taken
from swarmlet.agent.local.volumes import BadVolume
from swarmlet.agent.network import NetworkFailed
from swarmlet.api.backend import Control, LocalNode
from swarmlet.api.exchange import (
    Answer,
    ApiError,
    Request,
    Response,
    Streamed,
    Upgraded,
    error_response,
)
from swarmlet.api.exectable import ExecTable
from swarmlet.api.proxy import forward
from swarmlet.api.rights import Forward, Refuse, Right, Serve, decide
from swarmlet.api.upstream import FORWARDED
from swarmlet.images.errors import (
    AmbiguousImage,
    BadArchive,
    BadChange,
    BadLayer,
    BadManifest,
    BadReference,
    BlobNotFound,
    DigestMismatch,
    ImageError,
    ImageInUse,
    ImageNotFound,
    NoPlatform,
    NoSpace,
    RegistryDenied,
    RegistryUnavailable,
)
from swarmlet.manager.errors import ControlError, SpecError, Unavailable
from swarmlet.manager.view import View
from swarmlet.runtime import decoding as oci
from swarmlet.runtime.failures import NoSuchContainer, RuntimeFailure, ZygoteLost

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Ends of a connection, and of the task that serves it.
ENDED = (trio.BrokenResourceError, trio.ClosedResourceError)
ENDS = (*ENDED, trio.Cancelled)

API_VERSION = (1, 50)
API_VERSION_MIN = (1, 24)

#: The first match decides.
IMAGE_STATUS: tuple[tuple[type[ImageError], int], ...] = (
    (AmbiguousImage, 400),
    (ImageNotFound, 404),
    (BlobNotFound, 404),
    (NoPlatform, 404),
    (ImageInUse, 409),
    (BadReference, 400),
    (BadManifest, 400),
    (BadChange, 400),
    (BadLayer, 400),
    (BadArchive, 400),
    (DigestMismatch, 400),
    (NoSpace, 507),
    (RegistryDenied, 403),
    (RegistryUnavailable, 503),
)

#: Docker's resources that are not built: their calls say so by name.
NOT_BUILT = {
    "secrets": "secrets are",
    "configs": "configs are",
    "volumes": "this call on volumes is",
    "plugins": "plugins are",
    "build": "building images is",
    "session": "BuildKit sessions are",
    "grpc": "BuildKit is",
    "auth": "registry logins are",
    "containers": "this call on containers is",
    "images": "this call on images is",
    "networks": "this call on networks is",
    "swarm": "this call on the swarm is",
    "system": "this call on the system is",
}


@dataclass(frozen=True, slots=True)
class Call:
    """What a handler gets: the request, the values of its path, and who it may ask."""

    request: Request
    node: LocalNode
    params: Mapping[str, str]
    execs: ExecTable
    masked: bool = False

    def start_soon(self, act: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Have *act* go on in the background, whatever becomes of the call."""

        async def guarded() -> None:
            try:
                await act(*arguments)
            except* (*ENDED, RuntimeFailure, OSError) as failures:
                logger.debug("background work ended reason=%s", failures.exceptions[0])

        self.node.start_soon(guarded)

    @property
    def control(self) -> Control:
        """Raises Unavailable when the leadership has gone since the call was let in."""
        control = self.node.control
        if control is None:
            raise Unavailable("this node does not lead the swarm now; try again in a moment")
        return control

    @property
    def view(self) -> View:
        return self.control.view


Handler: TypeAlias = Callable[[Call], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    pattern: str
    handler: Handler
    right: Right


class Router:
    """Answers requests: respond() is what serve_stream and serve_unix want."""

    def __init__(self, node: LocalNode, routes: Iterable[Route]) -> None:
        self._node = node
        self._execs = ExecTable()
        self._routes = [(compile_pattern(route.pattern), route) for route in routes]

    async def respond(self, request: Request) -> Answer:
        try:
            answer = await self._respond(request)
        except Exception as exc:
            error = as_api_error(exc, request)
            answer = error_response(error.status, str(error))
        return self._finished(answer, request)

    async def _respond(self, request: Request) -> Answer:
        check_version(request.version)
        route, params = self.find(request.method, request.path)
        forwarded = FORWARDED in request.headers
        match decide(route.right, self._node.status, request.peer, forwarded=forwarded):
            case Serve(masked):
                return await route.handler(Call(request, self._node, params, self._execs, masked))
            case Forward():
                return await forward(request, self._node)
            case Refuse(status, message):
                raise ApiError(status, message)

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """Raises ApiError: 404 for no such path, 405 for no such method of it, 501."""
        known = False
        for pattern, route in self._routes:
            found = pattern.fullmatch(path)
            if found is None:
                continue
            if route.method == method or (route.method == "GET" and method == "HEAD"):
                return route, {name: unquote(text) for name, text in found.groupdict().items()}
            known = True
        resource = path.split("/")[1] if path.startswith("/") else ""
        if resource in NOT_BUILT and not known:
            raise ApiError(501, f"{NOT_BUILT[resource]} not built yet ({method} {path[:100]})")
        if known:
            raise ApiError(405, f"{method[:20]} is no method of {path[:100]}")
        raise ApiError(404, f"page not found: {path[:100]}")

    def _finished(self, answer: Answer, request: Request) -> Answer:
        """*answer* with the headers of every answer, and with its errors made ApiErrors."""
        common = (
            ("Api-Version", "{}.{}".format(*API_VERSION)),
            ("Docker-Experimental", "false"),
            ("Ostype", "linux"),
            ("Server", f"swarmlet/{self._node.status.version} (linux)"),
        )
        match answer:
            case Response(status, body, headers):
                return Response(status, body, (*_besides(headers, common), *common))
            case Streamed(status, produce, headers, close, reads_body):
                both = (*_besides(headers, common), *common)
                guarded = _guarded(produce, request)
                return Streamed(status, guarded, both, close, reads_body)
            case Upgraded(run, content_type, close):
                return Upgraded(_guarded(run, request), content_type, close)


async def answer_as(call: Call, right: Right, handler: Handler) -> Answer:
    """Answer the cluster's half of a call of Right.BOTH: here, by the leader, or not at all.

    Raises ApiError, Unavailable.
    """
    request = call.request
    forwarded = FORWARDED in request.headers
    match decide(right, call.node.status, request.peer, forwarded=forwarded):
        case Serve(masked):
            return await handler(replace(call, masked=masked))
        case Forward():
            return await forward(request, call.node)
        case Refuse(status, message):
            raise ApiError(status, message)


def as_api_error(exc: Exception, request: Request) -> ApiError:
    """The refusal that *exc* is; a bug is logged here, and is one too."""
    match exc:
        case ApiError():
            return exc
        case SpecError() | oci.SpecError():
            return ApiError(400, str(exc))
        case ControlError():
            return ApiError(exc.status, str(exc))
        case LocalError():
            return ApiError(exc.status, str(exc))
        case UnusableTemplate() | BadVolume():
            return ApiError(400, str(exc))
        case Taken():
            return ApiError(409, str(exc))
        case NetworkFailed():
            return ApiError(500, str(exc))
        case ImageError():
            return ApiError(image_status(exc), str(exc))
        case NoSuchContainer():
            return ApiError(404, str(exc))
        case ZygoteLost():
            return ApiError(503, str(exc))
        case RuntimeFailure():
            return ApiError(409, str(exc))
        case trio.TooSlowError() | OSError():
            return ApiError(500, f"{type(exc).__name__}: {exc}")
    logger.error("request failed method=%s path=%s", request.method, request.path, exc_info=exc)
    return ApiError(500, f"{type(exc).__name__} in the daemon: a bug; its log has the details")


def _guarded(
    act: Callable[[T], Awaitable[None]], request: Request
) -> Callable[[T], Awaitable[None]]:
    """*act*, which runs when the head of the answer is out: its errors become ApiErrors."""

    async def guarded(argument: T) -> None:
        try:
            await act(argument)
        except BaseExceptionGroup as group:
            # Nurseries wrap: what ends the connection goes on, the rest is one error.
            ends, others = group.split(lambda e: isinstance(e, ENDS))
            if ends is not None or others is None:
                raise
            first = next(_leaves(others))
            if not isinstance(first, Exception):
                raise
            raise as_api_error(first, request) from group
        except ENDS:
            raise
        except Exception as exc:
            raise as_api_error(exc, request) from exc

    return guarded


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for exc in group.exceptions:
        if isinstance(exc, BaseExceptionGroup):
            yield from _leaves(exc)
        else:
            yield exc


def _besides(
    headers: tuple[tuple[str, str], ...], common: tuple[tuple[str, str], ...]
) -> list[tuple[str, str]]:
    """*headers* less those in *common*: the leader's answer has them as well."""
    names = {name.lower() for name, _ in common} | {"date"}
    return [(name, value) for name, value in headers if name.lower() not in names]


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """`/images/{name...}/json` as a regular expression with named groups."""
    parts = re.split(r"(\{\w+(?:\.\.\.)?\})", pattern)
    expression = ""
    for part in parts:
        if part.startswith("{") and part.endswith("...}"):
            expression += f"(?P<{part[1:-4]}>.+)"
        elif part.startswith("{"):
            expression += f"(?P<{part[1:-1]}>[^/]+)"
        else:
            expression += re.escape(part)
    return re.compile(expression)


def check_version(version: tuple[int, int]) -> None:
    """Raises ApiError; (0, 0) is a path without version, which means the newest."""
    if version == (0, 0):
        return
    asked = "{}.{}".format(*version)
    if version > API_VERSION:
        newest = "{}.{}".format(*API_VERSION)
        raise ApiError(
            400,
            f"client version {asked} is too new. Maximum supported API version is {newest}",
        )
    if version < API_VERSION_MIN:
        oldest = "{}.{}".format(*API_VERSION_MIN)
        raise ApiError(
            400,
            f"client version {asked} is too old. Minimum supported API version is {oldest}, "
            "please upgrade your client to a newer version",
        )


def image_status(exc: ImageError) -> int:
    return next((status for cls, status in IMAGE_STATUS if isinstance(exc, cls)), 500)
