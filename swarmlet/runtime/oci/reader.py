"""Questions to a JSON value that somebody else wrote, whose errors name the place.

Pure. `Node` stands at one value; each question returns a plain Python value or raises SpecError:
`linux.namespaces[2].type: must be text, not int`. Unknown fields are never asked for, so they are
ignored, as the OCI runtime specification wants (config.md, "Extensibility").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from swarmlet.runtime.decoding import SpecError

_KINDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    type(None): "null",
}


class Node:
    """One value and where it stands; a field that is missing or null is an empty one."""

    def __init__(self, value: object, path: str = "") -> None:
        self.value = value
        self.path = path

    def refuse(self, text: str) -> NoReturn:
        raise SpecError(f"{self.path or 'config.json'}: {text}")

    def __getitem__(self, name: str) -> Node:
        value = self._of(dict, {}).get(name)
        return Node(value, f"{self.path}.{name}" if self.path else name)

    @property
    def missing(self) -> bool:
        return self.value is None

    def text(self, default: str | None = None) -> str:
        value: str = self._of(str, default)
        if "\0" in value:
            self.refuse("holds a NUL byte")
        return value

    def word(self) -> str:
        """A text that is there and not empty."""
        value = self.text()
        if not value:
            self.refuse("must not be empty")
        return value

    def path_name(self, default: str | None = None) -> str:
        """An absolute path."""
        value = self.text(default)
        if not value.startswith("/"):
            self.refuse(f"must be an absolute path, not {value!r}")
        return value

    def flag(self) -> bool:
        return bool(self._of(bool, default=False))

    def number(
        self, default: int | None = None, *, least: int = -(2**63), most: int = 2**64 - 1
    ) -> int:
        value = self._of(int, default)
        if isinstance(value, bool):
            self.refuse("must be a whole number, not true or false")
        if not least <= value <= most:
            self.refuse(f"must be {least} to {most}, not {value}")
        return int(value)

    def optional(self, *, least: int = -(2**63), most: int = 2**64 - 1) -> int | None:
        """A number, or None where there is none."""
        return None if self.missing else self.number(least=least, most=most)

    def items(self) -> Iterator[Node]:
        for index, item in enumerate(self._of(list, [])):
            yield Node(item, f"{self.path}[{index}]")

    def texts(self) -> tuple[str, ...]:
        return tuple(item.text() for item in self.items())

    def mapping(self) -> Mapping[str, str]:
        return {str(name): self[name].text("") for name in self._of(dict, {})}

    def _of(self, kind: type, default: object) -> Any:
        if self.missing and default is not None:
            return default
        if self.missing:
            self.refuse("is required")
        if not isinstance(self.value, kind):
            self.refuse(f"must be {_KINDS[kind]}, not {_KINDS.get(type(self.value), 'that')}")
        return self.value
