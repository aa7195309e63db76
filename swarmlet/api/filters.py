"""Docker's `filters=` of list calls: {"name": {"value": true}} or {"name": ["value"]}.

Pure. Values of one filter are alternatives, different filters must all hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from swarmlet.api.exchange import ApiError, Query

Filters: TypeAlias = Mapping[str, tuple[str, ...]]

VALUES_MAX = 1000


def parse_filters(query: Query, known: Iterable[str]) -> Filters:
    """Return the filters of *query*. Raises ApiError for one that is not in *known*."""
    text = query.text("filters")
    if not text:
        return {}
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise ApiError(400, "filters: not JSON") from None
    if not isinstance(document, dict):
        raise ApiError(400, 'filters: not an object such as {"name": ["web"]}')
    allowed = sorted(known)
    filters = {}
    for name, values in document.items():
        if name not in allowed:
            shown = ", ".join(word for word in allowed if not word.startswith("_"))
            raise ApiError(400, f"invalid filter '{name[:60]}'; known here are {shown}")
        filters[name] = _values(name, values)
    return filters


def _values(name: str, values: object) -> tuple[str, ...]:
    if isinstance(values, dict):
        chosen = [key for key, wanted in values.items() if wanted is not False]
    elif isinstance(values, list):
        chosen = values
    else:
        raise ApiError(400, f"filters.{name}: not a list")
    if len(chosen) > VALUES_MAX or not all(isinstance(value, str) for value in chosen):
        raise ApiError(400, f"filters.{name}: not a list of at most {VALUES_MAX} texts")
    return tuple(chosen)


def matches_prefix(filters: Filters, name: str, *texts: str) -> bool:
    """Whether one of *texts* begins as the filter says; True without such a filter."""
    if name not in filters:
        return True
    return any(text.startswith(value) for value in filters[name] for text in texts)


def matches_part(filters: Filters, name: str, text: str) -> bool:
    return name not in filters or any(value in text for value in filters[name])


def matches_exactly(filters: Filters, name: str, text: str) -> bool:
    return name not in filters or text in filters[name]


def matches_labels(filters: Filters, name: str, labels: Mapping[str, str]) -> bool:
    """Labels are not alternatives: each that was given must be there, `key` or `key=value`."""
    for wanted in filters.get(name, ()):
        key, separator, value = wanted.partition("=")
        if key not in labels or (separator and labels[key] != value):
            return False
    return True


def wants_true(filters: Filters, name: str) -> bool:
    return any(value in ("1", "true") for value in filters.get(name, ()))
