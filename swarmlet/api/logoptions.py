"""The query of a call for logs, and how a line of a log is written for it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, urlencode

from swarmlet.api.exchange import ApiError, Query
from swarmlet.api.frames import STREAMS, encode_frame

#: More lines than that are "all".
TAIL_MAX = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    follow: bool = False
    stdout: bool = True
    stderr: bool = True
    since: float = 0.0
    until: float = 0.0
    tail: int | None = None  # None: all
    timestamps: bool = False
    details: bool = False

    @property
    def since_time(self) -> datetime | None:
        return datetime.fromtimestamp(self.since, UTC) if self.since else None

    @property
    def until_time(self) -> datetime | None:
        return datetime.fromtimestamp(self.until, UTC) if self.until else None


def parse_log_options(query: Query) -> LogOptions:
    """Raises ApiError."""
    tail = query.text("tail", "all")
    stdout, stderr = query.flag("stdout"), query.flag("stderr")
    if not (stdout or stderr):
        raise ApiError(400, "Bad parameters: you must choose at least one stream")
    since, until = query.moment("since"), query.moment("until")
    for moment in (since, until):
        if not 0 <= moment < 253_402_300_800:  # the year 10000, where datetime ends
            raise ApiError(400, "since, until: a time before 1970 or after 9999")
    return LogOptions(
        follow=query.flag("follow"),
        stdout=stdout,
        stderr=stderr,
        since=since,
        until=until,
        tail=_parse_tail(tail),
        timestamps=query.flag("timestamps"),
        details=query.flag("details"),
    )


def _parse_tail(text: str) -> int | None:
    if text in ("", "all") or text.startswith("-"):
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ApiError(400, f"tail: {text[:60]!r} is not 'all' or a number of lines")
    number = int(text)
    return number if number <= TAIL_MAX else None


def write_query(options: LogOptions) -> str:
    """The query that asks another node for the same lines, each with its time."""
    values = {
        "follow": int(options.follow),
        "stdout": int(options.stdout),
        "stderr": int(options.stderr),
        "since": f"{options.since:.6f}" if options.since else "",
        "until": f"{options.until:.6f}" if options.until else "",
        "tail": "all" if options.tail is None else str(options.tail),
        "timestamps": 1,
    }
    return urlencode({name: value for name, value in values.items() if value != ""})


def write_line(
    options: LogOptions,
    stream: str,
    time_text: str,
    data: bytes,
    *,
    details: Mapping[str, str] | None = None,
    terminal: bool = False,
) -> bytes:
    """One line as the client reads it: time, details, text; in a frame if there is no terminal."""
    head = f"{time_text} " if options.timestamps else ""
    if options.details:
        pairs = sorted((details or {}).items())
        head += ",".join(f"{quote(key)}={quote(value)}" for key, value in pairs) + " "
    text = head.encode() + data
    return text if terminal else encode_frame(STREAMS.get(stream, 1), text)
