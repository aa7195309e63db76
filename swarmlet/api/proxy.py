"""Handing a call to another node as it is: any call, with streams and upgrades.

The client sees what that node answered: the leader, or the one that has the container. When it
cannot be reached the client sees why, and whether the change that it asked for may have been made.
"""

from __future__ import annotations

import trio

from swarmlet.api.backend import LocalNode
from swarmlet.api.exchange import (
    Answer,
    ApiError,
    Headers,
    RawStream,
    Request,
    Response,
    Send,
    Streamed,
    Upgraded,
)
from swarmlet.api.upstream import FORWARDED, Broken, Head, Upstream, end_to_end
from swarmlet.manager.errors import Unavailable
from swarmlet.model import NodeId

#: While there is no leader: so long its election is waited for.
RETRY_SECONDS, RETRY_PAUSE = 5.0, 0.25
#: For the leader to answer: it waits for its managers to agree.
ANSWER_SECONDS = 60.0
#: Answers that are no longer are sent on whole, so that the client sees their length.
WHOLE_BYTES_MAX = 1 << 20


async def forward(
    request: Request, node: LocalNode, *, to: NodeId | None = None, target: str = ""
) -> Answer:
    """Hand *request* to node *to*, or to the leader, and return its answer.

    While no leader answers it is tried again, for a moment: a call of which nothing was sent yet,
    or one that only looks. *target* takes the place of the request's own.

    Raises:
        Unavailable, ApiError: nobody answers, and why.
    """
    deadline = trio.current_time() + (RETRY_SECONDS if to is None else 0.0)
    while True:
        try:
            upstream = Upstream(await node.dial_api(to))
        except Unavailable:
            if trio.current_time() >= deadline:
                raise
            await trio.sleep(RETRY_PAUSE)
            continue
        try:
            head = await _ask(request, node, upstream, target or request.target)
            if not _may_pass(request, head) or trio.current_time() >= deadline:
                return await _relay(head, upstream)
        except BaseException:
            with trio.CancelScope(shield=True):
                await upstream.aclose()
            raise
        await upstream.aclose()
        await trio.sleep(RETRY_PAUSE)


def _may_pass(request: Request, head: Head) -> bool:
    """Whether the one who was asked does not lead any more, and it does no harm to ask again."""
    return head.status == 503 and request.method in ("GET", "HEAD")


async def _ask(request: Request, node: LocalNode, upstream: Upstream, target: str) -> Head:
    headers: Headers = (
        *end_to_end(tuple(request.headers.items())),
        (FORWARDED, str(node.status.node_id)),
    )
    try:
        with trio.fail_after(ANSWER_SECONDS):
            return await upstream.request(
                request.method,
                target,
                headers=headers,
                body=request.body,
                upgrade=request.wants_upgrade,
            )
    except (Broken, trio.TooSlowError) as exc:
        if request.method in ("GET", "HEAD"):
            text = f"the leader went away before it answered ({exc}); try again in a moment"
        else:
            text = (
                f"the leader went away before it answered ({exc}): the change may have been "
                "made or not; look, and repeat it if it is not there"
            )
        raise ApiError(503, text) from exc


async def _relay(head: Head, upstream: Upstream) -> Answer:
    headers = end_to_end(head.headers)
    if head.is_upgraded:
        type_ = next((v for n, v in headers if n.lower() == "content-type"), "")

        async def join(client: RawStream) -> None:
            await splice(client, upstream.raw())

        return Upgraded(join, type_ or "application/vnd.docker.raw-stream", upstream.aclose)
    if _length(head) <= WHOLE_BYTES_MAX:
        chunks = []
        try:
            with trio.fail_after(ANSWER_SECONDS):
                while chunk := await upstream.receive():
                    chunks.append(chunk)
        except (Broken, trio.TooSlowError) as exc:
            raise ApiError(503, f"the leader's answer broke off ({exc}); try again") from exc
        await upstream.aclose()
        return Response(head.status, b"".join(chunks), headers)

    async def produce(send: Send) -> None:
        try:
            while chunk := await upstream.receive():
                await send(chunk)
        except Broken as exc:
            raise ApiError(503, f"the leader's answer broke off: {exc}") from exc

    return Streamed(head.status, produce, headers, upstream.aclose)


def _length(head: Head) -> int:
    """The length that the answer names; more than any if it names none."""
    for name, value in head.headers:
        if name.lower() == "content-length" and value.isdigit():
            return int(value)
    return 0 if head.status in (204, 304) else WHOLE_BYTES_MAX + 1


async def splice(left: RawStream, right: RawStream) -> None:
    """Carry bytes both ways until *right*, the one who answers, has ended."""
    async with trio.open_nursery() as nursery:

        async def to_right() -> None:
            while data := await left.receive_some():
                await right.send_all(data)
            await right.send_eof()

        nursery.start_soon(to_right)
        while data := await right.receive_some():
            await left.send_all(data)
        nursery.cancel_scope.cancel()
