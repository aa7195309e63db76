"""Reading JSON strictly: every field is taken by name, and what nobody took is refused by name.

Pure. A client's body becomes a Fields; a converter takes what it understands, says with
refuse() what it knows and cannot do, and closes with done(). So no field is ever ignored: a typo
and a feature that is not there both come back with the path to the field.

null counts as not given, as in Docker's API. Raises SpecError(path, reason), nothing else,
whatever the JSON is.
"""

from __future__ import annotations

import base64
import binascii
import enum
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from swarmlet.model.validation import SpecError

E = TypeVar("E", bound=enum.StrEnum)

NANOSECONDS = 1_000_000_000
INTEGER_MAX = (1 << 63) - 1  # what msgpack and Docker's clients hold
#: Entries of one list or map; a service with more is a mistake or an attack.
ENTRIES_MAX = 10_000
#: What Go leaves out or writes where nothing was given.
EMPTY: tuple[Any, ...] = (None, "", 0, False, [], {})
#: The longest value that a refusal repeats.
SHOWN_CHARACTERS = 60


class Fields:
    """One JSON object on its way into a record."""

    def __init__(self, value: Any, path: str = "") -> None:
        if not isinstance(value, dict):
            raise SpecError(path, f"must be an object, not {_kind(value)}")
        self.path = path
        self._left: dict[str, Any] = {k: v for k, v in value.items() if v is not None}
        self._known: list[str] = []

    def at(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def has(self, name: str) -> bool:
        return name in self._left

    def names(self) -> tuple[str, ...]:
        """Those that nobody took yet."""
        return tuple(self._left)

    def take(self, name: str) -> Any:
        """Return the raw value, None if it was not given."""
        self._known.append(name)
        return self._left.pop(name, None)

    def text(self, name: str, default: str = "") -> str:
        value = self.take(name)
        if value is None:
            return default
        return _text(value, self.at(name))

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise SpecError(self.at(name), f"must be true or false, not {_shown(value)}")
        return value

    def integer(self, name: str, default: int = 0, *, least: int = -INTEGER_MAX) -> int:
        value = self.take(name)
        if value is None:
            return default
        return _integer(value, self.at(name), least)

    def number(self, name: str, default: float = 0.0) -> float:
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SpecError(self.at(name), f"must be a number, not {_shown(value)}")
        if abs(value) > INTEGER_MAX or not math.isfinite(value):
            raise SpecError(self.at(name), "is not a finite number that fits in 63 bits")
        return float(value)

    def seconds(self, name: str, default: float = 0.0) -> float:
        """A duration: nanoseconds in the API, seconds in a spec."""
        value = self.take(name)
        if value is None:
            return default
        return _integer(value, self.at(name), 0) / NANOSECONDS

    def choice(self, name: str, choices: type[E], default: E) -> E:
        text = self.text(name)
        if not text:
            return default
        try:
            return choices(text)
        except ValueError:
            known = ", ".join(choices)
            raise SpecError(self.at(name), f"{_shown(text)} is not one of {known}") from None

    def texts(self, name: str) -> tuple[str, ...]:
        items = self._items(name)
        return tuple(_text(item, f"{self.at(name)}[{i}]") for i, item in enumerate(items))

    def text_map(self, name: str) -> dict[str, str]:
        value = self.take(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise SpecError(self.at(name), f"must be an object, not {_kind(value)}")
        if len(value) > ENTRIES_MAX:
            raise SpecError(self.at(name), f"more than {ENTRIES_MAX} entries")
        return {
            _text(key, self.at(name)): _text(item, f"{self.at(name)}.{key}")
            for key, item in value.items()
        }

    def blob(self, name: str) -> bytes:
        """Bytes, which the API carries in base64."""
        text = self.text(name)
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise SpecError(self.at(name), "is not base64") from None

    def child(self, name: str) -> Fields | None:
        """The object called *name*; the caller calls its done()."""
        value = self.take(name)
        return None if value is None else Fields(value, self.at(name))

    def children(self, name: str) -> list[Fields]:
        items = self._items(name)
        return [Fields(item, f"{self.at(name)}[{i}]") for i, item in enumerate(items)]

    def refuse(self, name: str, reason: str) -> None:
        """Known, but not to be had here: refused unless it is empty or zero."""
        value = self.take(name)
        if not _asks_nothing(value):
            raise SpecError(self.at(name), reason)

    def ignore(self, *names: str) -> None:
        """What a client may send and what has no meaning for the cluster."""
        for name in names:
            self.take(name)

    def done(self) -> None:
        """Raise SpecError for the first field that nobody took."""
        if not self._left:
            return
        import difflib  # only a misspelt field needs it

        for name in self._left:
            near = difflib.get_close_matches(name, self._known, n=1)
            hint = f"did you mean {near[0]}?" if near else "remove it, or correct its name"
            raise SpecError(self.at(name)[:200], f"no such field here; {hint}")

    def _items(self, name: str) -> list[Any]:
        value = self.take(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise SpecError(self.at(name), f"must be a list, not {_kind(value)}")
        if len(value) > ENTRIES_MAX:
            raise SpecError(self.at(name), f"more than {ENTRIES_MAX} entries")
        return value


def nanoseconds(seconds: float) -> int:
    return round(seconds * NANOSECONDS)


def timestamp(at: float) -> str:
    """Return RFC 3339 with nanoseconds, as Go writes it; Go's zero time for 0."""
    if at <= 0:
        return "0001-01-01T00:00:00Z"
    whole, fraction = divmod(round(at * 1_000_000), 1_000_000)
    moment = datetime.fromtimestamp(whole, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{fraction:06d}000Z"


def parse_timestamp(text: str, path: str) -> float:
    """Read a since/until: seconds since 1970, with a fraction, or RFC 3339."""
    try:
        value = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise SpecError(path, f"{_shown(text)} is no time") from None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return moment.timestamp()
    if not math.isfinite(value):
        raise SpecError(path, f"{_shown(text)} is no time")
    return value


def without_empty(values: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what Go's omitempty drops: "", 0, false, [] and {}."""
    return {name: value for name, value in values.items() if value not in EMPTY}


def _asks_nothing(value: Any) -> bool:
    """Whether a client only sent an object as it stands in its memory: all of it is empty."""
    if isinstance(value, dict):
        return all(_asks_nothing(item) for item in value.values())
    return value in EMPTY


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise SpecError(path, f"must be text, not {_shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can carry and a file cannot
        raise SpecError(path, "is not text in UTF-8") from None
    return value


def _integer(value: Any, path: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise SpecError(path, f"must be a whole number, not {_shown(value)}")
    if not least <= value <= INTEGER_MAX:
        edge = f"less than {least}" if value < least else "more than fits in 63 bits"
        raise SpecError(path, f"{_shown(value)} is {edge}")
    return value


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return kinds.get(type(value), "null" if value is None else "a number")


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return _kind(value)
    if isinstance(value, int) and abs(value) > INTEGER_MAX:
        return "the number given"  # Python refuses to print what has more than 4300 digits
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."
