"""The filters of `prune`: until= and label=, label!=. Pure but for the time that it is given."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from swarmlet.api.exchange import ApiError
from swarmlet.api.fields import parse_timestamp
from swarmlet.api.filters import Filters, matches_labels
from swarmlet.model.validation import SpecError

PRUNE_FILTERS = ("label", "label!", "until")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def may_prune(filters: Filters, labels: Mapping[str, str], created_at: float) -> bool:
    """Whether something unused with *labels* is meant. Raises ApiError."""
    for text in filters.get("until", ()):
        if created_at > parse_until(text, time.time()):
            return False
    unwanted = filters.get("label!", ())
    if unwanted and all(matches_labels({"label": (text,)}, "label", labels) for text in unwanted):
        return False
    return matches_labels(filters, "label", labels)


def parse_until(text: str, now: float) -> float:
    """A time, or how long ago: `24h`, `2026-01-02T03:04:05`, seconds since 1970."""
    parts = list(_DURATION.finditer(text))
    if parts and "".join(part.group() for part in parts) == text:
        return now - sum(float(part[1]) * _SECONDS[part[2]] for part in parts)
    try:
        return parse_timestamp(text, "until")
    except SpecError as exc:
        raise ApiError(400, str(exc)) from None
