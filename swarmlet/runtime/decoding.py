"""JSON to frozen dataclasses and back, with errors that name the place.

Pure. `decode` builds a dataclass from what json.loads returned and refuses unknown fields by
name; `encode` gives the JSON value back, without the fields that hold their default. Known types:
str, int, float, bool, bytes (base64), `tuple[T, ...]`, `Mapping[str, T]`, `T | None`, `Literal`
and other dataclasses. What only these two need is imported by them: others come for the error.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Hashable, Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

if TYPE_CHECKING:
    import dataclasses

D = TypeVar("D")


class SpecError(ValueError):
    """The user asked nonsense. The text is `path: what is wrong`."""


def decode(kind: type[D], value: object, path: str = "") -> D:
    """Return *value* as a *kind*; raise SpecError with the path of the first wrong field."""
    result: D = _decode(kind, value, path)
    return result


def encode(value: object) -> Any:
    """Return the JSON value of a dataclass; fields that equal their default are left out."""
    import base64
    import dataclasses

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        members = {}
        for field in dataclasses.fields(value):
            member = getattr(value, field.name)
            if member != _default(field):
                members[field.name] = encode(member)
        return members
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    return value


def _default(field: dataclasses.Field[Any]) -> object:
    import dataclasses

    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


@functools.cache
def _hints(kind: Hashable) -> dict[str, Any]:
    assert isinstance(kind, type)
    return get_type_hints(kind)


def _decode(kind: Any, value: object, path: str) -> Any:
    import dataclasses

    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_dataclass(kind, value, path)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise SpecError(f"{path}: must be a list, not {_name(value)}")
        (item_kind, _) = get_args(kind)
        return tuple(
            _decode(item_kind, item, f"{path}[{index}]") for index, item in enumerate(value)
        )
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise SpecError(f"{path}: must be an object, not {_name(value)}")
        (_, item_kind) = get_args(kind)
        return {
            _decode(str, key, path): _decode(item_kind, item, f"{path}.{key}")
            for key, item in value.items()
        }
    if origin is Literal:
        if value not in get_args(kind):
            allowed = ", ".join(map(str, get_args(kind)))
            raise SpecError(f"{path}: must be one of {allowed}, not {value!r}")
        return value
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        (member,) = [member for member in get_args(kind) if member is not type(None)]
        return _decode(member, value, path)
    return _decode_scalar(kind, value, path)


def _decode_dataclass(kind: type[Any], value: object, path: str) -> Any:
    import dataclasses

    if not isinstance(value, Mapping):
        raise SpecError(f"{path or 'spec'}: must be an object, not {_name(value)}")
    hints = _hints(cast(Hashable, kind))
    fields = {field.name: field for field in dataclasses.fields(kind)}
    prefix = f"{path}." if path else ""
    for key in value:
        if key not in fields:
            raise SpecError(f"{prefix}{key}: is not a known field")
    members = {}
    for name, field in fields.items():
        if name in value:
            members[name] = _decode(hints[name], value[name], prefix + name)
        elif _default(field) is dataclasses.MISSING:
            raise SpecError(f"{prefix}{name}: is required")
    return kind(**members)


def _decode_scalar(kind: Any, value: object, path: str) -> object:
    if kind is bytes:
        import base64
        import binascii

        if isinstance(value, str):
            try:
                return base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError):
                pass
        raise SpecError(f"{path}: must be base64 text")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise SpecError(f"{path}: must be {_NAMES[kind]}, not {_name(value)}")


_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _name(value: object) -> str:
    return "null" if value is None else type(value).__name__
