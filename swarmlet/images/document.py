"""Reading JSON that a stranger wrote: typed, bounded, and every complaint names the path.

Pure. A Field is a value and where it stands; asking it for a type gives the value or raises
BadManifest("layers[3].size: a number is wanted, a string is there").
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from swarmlet.images.errors import BadManifest

#: Bytes of a manifest, an index or a configuration. Registries refuse more than 4 MiB.
DOCUMENT_BYTES_MAX = 4 * 1024 * 1024
#: Characters of one string, and members of one list or object.
STRING_LENGTH_MAX = 1024 * 1024
MEMBERS_MAX = 20_000

_NAMES = {
    type(None): "nothing",
    bool: "a truth value",
    int: "a number",
    float: "a fraction",
    str: "a string",
    list: "a list",
    dict: "an object",
}


@dataclass(frozen=True, slots=True)
class Field:
    """A value in a document, with its path ("" for the whole)."""

    value: Any
    path: str = ""

    def __getitem__(self, key: str) -> Field:
        """The member *key* of this object; its value is None when it is absent."""
        found = self._typed(dict)
        return Field(found.get(key), f"{self.path}.{key}" if self.path else key)

    @property
    def exists(self) -> bool:
        """Whether the value is there; JSON's null counts as absent, as it does for Go."""
        return self.value is not None

    def fail(self, complaint: str) -> BadManifest:
        return BadManifest(f"{self.path}: {complaint}" if self.path else complaint)

    # Required: the value, or BadManifest.
    def text(self) -> str:
        """A string that is safe to hand to the kernel and to encode: no NUL, no half characters."""
        found: str = self._typed(str)
        if len(found) > STRING_LENGTH_MAX:
            raise self.fail(f"a string longer than {STRING_LENGTH_MAX} characters")
        if "\0" in found:
            raise self.fail("a NUL in a string")
        try:
            found.encode()
        except UnicodeEncodeError:
            raise self.fail("half a surrogate pair in a string") from None
        return found

    def number(self, *, least: int = 0, most: int = 2**63 - 1) -> int:
        found: int = self._typed(int)
        if not least <= found <= most:
            raise self.fail(f"{found} is not between {least} and {most}")
        return found

    def items(self, *, most: int = MEMBERS_MAX) -> Iterator[Field]:
        found = self._typed(list)
        if len(found) > most:
            raise self.fail(f"{len(found)} members; {most} are allowed")
        return (Field(item, f"{self.path}[{i}]") for i, item in enumerate(found))

    def members(self, *, most: int = MEMBERS_MAX) -> Iterator[tuple[str, Field]]:
        found = self._typed(dict)
        if len(found) > most:
            raise self.fail(f"{len(found)} members; {most} are allowed")
        for key, value in found.items():
            name = Field(key, f"{self.path}, a key").text()
            yield name, Field(value, f"{self.path}[{name!r}]")

    # Optional: what an absent value means is said by the name or the argument.
    def text_or(self, default: str = "") -> str:
        return self.text() if self.exists else default

    def number_or(self, default: int = 0) -> int:
        return self.number() if self.exists else default

    def texts(self) -> tuple[str, ...]:
        return tuple(item.text() for item in self.items()) if self.exists else ()

    def texts_or_none(self) -> tuple[str, ...] | None:
        """None and the empty list differ: an empty `Cmd` clears, an absent one inherits."""
        return self.texts() if self.exists else None

    def text_map(self) -> dict[str, str]:
        return {key: item.text() for key, item in self.members()} if self.exists else {}

    def keys(self) -> tuple[str, ...]:
        """The keys of an object that is used as a set (`ExposedPorts`, `Volumes`), sorted."""
        return tuple(sorted(key for key, _ in self.members())) if self.exists else ()

    def _typed(self, wanted: type) -> Any:
        # bool is a subclass of int: type() and not isinstance.
        if type(self.value) is not wanted:
            there = _NAMES.get(type(self.value), "something else")
            raise self.fail(f"{_NAMES[wanted]} is wanted, {there} is there")
        return self.value


def read_document(data: bytes, *, what: str) -> Field:
    """Parse *data*, a JSON object. Raises BadManifest, with *what* it was meant to be."""
    if len(data) > DOCUMENT_BYTES_MAX:
        raise BadManifest(f"{what} of {len(data)} bytes; {DOCUMENT_BYTES_MAX} are allowed")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise BadManifest(f"{what} is no JSON: {reason}") from None
    if type(value) is not dict:
        raise BadManifest(f"{what} is no JSON object")
    return Field(value)


def write_document(value: dict[str, Any]) -> bytes:
    """Return *value* as JSON, the same bytes for the same value on every host."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
